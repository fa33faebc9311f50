//! TCE tables, as the platform keeps them: the calls that `tce` makes.

use core::cell::UnsafeCell;

use hal::Mutex;
use tce::{Created, HcallError, LIST, Limits, Platform, RtasError, Tce, WindowSpec};
use types::{Iova, Liobn, PageSize};

use crate::hcall::{self, Hcall};
use crate::rtas::{self, Rtas};

/// Where lists of entries are handed to the platform: one page. [LoPAPR §14.5.4.2]
#[repr(C, align(4096))]
struct Page(UnsafeCell<[u64; LIST]>);

// SAFETY: it is used under the lock below only.
unsafe impl Send for Page {}

static PAGE: Mutex<Page> = Mutex::new(Page(UnsafeCell::new([0; LIST])));

/// The platform's calls and services.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calls {
    rtas: &'static Rtas,
}

impl Calls {
    /// # Safety
    /// Whoever writes entries by it must own the memory that they lead to, for the devices behind the
    /// window.
    pub(crate) unsafe fn new(rtas: &'static Rtas) -> Self {
        Self { rtas }
    }
}

#[cold]
fn failure(status: i64) -> HcallError {
    match status {
        -1 => HcallError::Hardware,
        hcall::FUNCTION => HcallError::Function,
        -4 => HcallError::Parameter,
        -9 | -16 => HcallError::Resource,
        other => HcallError::Other(other),
    }
}

fn outcome(outcome: hcall::Outcome) -> Result<u64, HcallError> {
    let [first, ..] = outcome.values;
    match outcome.status {
        hcall::SUCCESS => Ok(first),
        status => Err(failure(status)),
    }
}

fn call(number: Hcall, arguments: [u64; 4]) -> Result<u64, HcallError> {
    // SAFETY: the calls below write entries of tables, which is the promise of `Calls::new`.
    outcome(unsafe { hcall::call(number, arguments) })
}

fn service<T>(result: Result<T, rtas::Error>) -> Result<T, RtasError> {
    result.map_err(|error| match error {
        rtas::Error::NoHcall(_) | rtas::Error::NoToken(_) => RtasError::Missing,
        rtas::Error::Status { status, .. } => RtasError::Status(status),
    })
}

/// Page sizes by the bits of a query's answer.
const PAGES: [(u32, u8); 9] = [
    (0x1, 12),
    (0x2, 16),
    (0x4, 24),
    (0x8, 25),
    (0x10, 26),
    (0x20, 27),
    (0x40, 28),
    (0x80, 34),
    (0x100, 21),
];

impl Platform for Calls {
    #[inline(always)]
    fn put(&self, liobn: Liobn, at: Iova, tce: Tce) -> Result<(), HcallError> {
        let arguments = [liobn.bits().into(), at.bits(), tce.bits(), 0];
        // SAFETY: it writes an entry of a table, which is the promise of `Calls::new`.
        let done = unsafe { hcall::call(Hcall::PutTce, arguments) };
        if done.status == hcall::SUCCESS {
            Ok(())
        } else {
            Err(failure(done.status))
        }
    }

    fn put_list(&self, liobn: Liobn, at: Iova, list: &[Tce]) -> Result<(), HcallError> {
        let mut page = PAGE.lock();
        for (to, from) in page.0.get_mut().iter_mut().zip(list) {
            *to = from.bits().to_be();
        }
        let address = page.0.get().expose_provenance() as u64;
        let count = list.len() as u64;
        call(
            Hcall::PutTceIndirect,
            [liobn.bits().into(), at.bits(), address, count],
        )
        .map(|_| ())
    }

    fn stuff(&self, liobn: Liobn, at: Iova, tce: Tce, count: u64) -> Result<(), HcallError> {
        let arguments = [liobn.bits().into(), at.bits(), tce.bits(), count];
        call(Hcall::StuffTce, arguments).map(|_| ())
    }

    fn get(&self, liobn: Liobn, at: Iova) -> Result<Tce, HcallError> {
        let arguments = [liobn.bits().into(), at.bits(), 0, 0];
        call(Hcall::GetTce, arguments).map(Tce::from_bits)
    }

    fn query_windows(&self, buid: u64, config: u32) -> Result<Limits, RtasError> {
        let [available, high, low, mask, _] = service(self.rtas.query_windows(buid, config))?;
        let pages = PAGES.iter().filter(|(bit, _)| mask & bit != 0);
        Ok(Limits {
            available,
            entries: u64::from(high) << 32 | u64::from(low),
            pages: pages
                .filter_map(|(_, shift)| PageSize::from_shift(*shift).ok())
                .fold(0, |pages, page| pages | page.bytes()),
        })
    }

    fn create_window(
        &self,
        buid: u64,
        config: u32,
        spec: WindowSpec,
    ) -> Result<Created, RtasError> {
        let (page, window) = (spec.page.shift().into(), spec.shift.into());
        let made = self.rtas.create_window(buid, config, page, window);
        let [liobn, high, low] = service(made)?;
        Ok(Created {
            liobn: Liobn::new(liobn).map_err(|_| RtasError::Status(-1))?,
            base: Iova::truncated(u64::from(high) << 32 | u64::from(low)),
        })
    }

    fn remove_window(&self, liobn: Liobn) -> Result<(), RtasError> {
        service(self.rtas.remove_window(liobn.bits()))
    }

    fn reset_windows(&self, buid: u64, config: u32) -> Result<(), RtasError> {
        service(self.rtas.reset_windows(buid, config))
    }
}
