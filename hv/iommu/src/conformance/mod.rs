//! What every [`Backend`] must do, in one place.
//!
//! A backend's tests implement [`Subject`] over the backend and whatever stands in for its hardware,
//! and call [`check`]. The cases look at hardware through [`Subject::reach`] only: what a device could
//! do at that moment. Whatever a case does not need (windows that come and go, an exchange in one
//! step) a backend may lack, as long as it says so by the right error and changes nothing.
//!
//! The cases are themselves tested: `tests::conformance` runs them over backends with one fault each.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::expect_used,
    reason = "a test: an overflow or a missing element is a failed one"
)]

mod cases;
mod model;

use types::{Iova, Pa, PageSize, Span};

use crate::area::Permissions;
use crate::backend::{
    Backend, BackendError, Binding, Endpoint, MemoryType, PageSizes, Run, TableId, TableOptions,
    Window,
};

/// A backend with what stands in for its hardware.
pub trait Subject {
    /// The backend.
    type Backend: Backend;

    /// The backend.
    fn backend(&mut self) -> &mut Self::Backend;

    /// Two endpoints that can be bound to different tables; of different units where there are some.
    fn endpoints(&self) -> [Endpoint; 2];

    /// Where an access of an endpoint goes, and what accesses are allowed there; `None` where it does
    /// not get through. As the hardware would answer: by its tables, not by the driver's notes.
    fn reach(&mut self, endpoint: Endpoint, at: Iova) -> Option<(Pa, Permissions)>;

    /// Lets that many more allocations for tables pass, and fails all after them; `None` heals.
    fn fail_allocations_after(&mut self, allocations: Option<u64>);

    /// Lets that many more calls that change windows pass, and lets the hardware fail the one after them, or all where
    /// it need not be called to undo the others; `None` heals. False where nothing of the kind can fail.
    fn fail_windows_after(&mut self, calls: Option<u64>) -> bool {
        let _ = calls;
        false
    }

    /// Looks at whatever else must hold between two steps.
    fn invariants(&mut self) {}
}

/// A case: its name, and what it does with a fresh subject.
type Case<S> = (&'static str, fn(&mut Rig<S>));

/// The names of the cases, in order.
pub fn names<S: Subject>() -> impl Iterator<Item = &'static str> {
    cases::all::<S>().into_iter().map(|(name, _)| name)
}

/// Runs every case, each on a fresh subject.
///
/// # Panics
/// When the backend does not do what it must.
pub fn check<S: Subject>(fresh: impl Fn() -> S) {
    for (_, case) in cases::all::<S>() {
        case(&mut Rig::new(fresh()));
    }
}

/// Runs one case, by name.
///
/// # Panics
/// When the backend does not do what it must, or there is no such case.
pub fn check_one<S: Subject>(name: &str, fresh: impl Fn() -> S) {
    let mut all = cases::all::<S>().into_iter();
    let (_, case) = all.find(|(other, _)| *other == name).expect("no such case");
    case(&mut Rig::new(fresh()));
}

/// Where the memory is that the cases map: aligned to every page size.
const MEMORY: u64 = 1 << 40;

/// A subject with short ways to use it.
#[derive(Debug)]
pub(crate) struct Rig<S> {
    subject: S,
    /// The endpoint most cases use.
    one: Endpoint,
    other: Endpoint,
}

impl<S: Subject> Rig<S> {
    fn new(subject: S) -> Self {
        let [one, other] = subject.endpoints();
        assert_ne!(one, other);
        Self {
            subject,
            one,
            other,
        }
    }

    fn backend(&mut self) -> &mut S::Backend {
        self.subject.backend()
    }

    fn table(&mut self, endpoint: Endpoint) -> TableId {
        let options = TableOptions {
            nest_parent: false,
            dirty: false,
        };
        let table = self.backend().create_table(endpoint, options);
        table.expect("a table")
    }

    fn bind(&mut self, endpoint: Endpoint, table: TableId) {
        let done = self.backend().install(endpoint, &Binding::Table(table));
        assert_eq!(done, Ok(()), "{endpoint} to {table:?}");
        self.subject.invariants();
    }

    fn abort(&mut self, endpoint: Endpoint) {
        let done = self.backend().install(endpoint, &Binding::Abort);
        assert_eq!(done, Ok(()), "{endpoint} to abort");
        self.subject.invariants();
    }

    /// A table that the first endpoint is bound to.
    fn bound(&mut self) -> TableId {
        let one = self.one;
        let table = self.table(one);
        self.bind(one, table);
        table
    }

    fn windows(&mut self, table: TableId) -> alloc::vec::Vec<Window> {
        self.backend().windows(table).to_vec()
    }

    fn first_window(&mut self, table: TableId) -> Window {
        self.windows(table)[0]
    }

    fn try_map(&mut self, table: TableId, run: &Run) -> Result<(), BackendError> {
        let done = self.backend().map(table, run);
        self.subject.invariants();
        done
    }

    fn map(&mut self, table: TableId, run: &Run) {
        let done = self.try_map(table, run);
        assert_eq!(done, Ok(()), "mapping {run:?}");
    }

    fn unmap(&mut self, table: TableId, span: Span<Iova>) {
        self.backend().unmap(table, span);
        let done = self.backend().invalidate(table, span);
        assert_eq!(done, Ok(()), "invalidating {span}");
        self.subject.invariants();
    }

    fn reach(&mut self, endpoint: Endpoint, at: u64) -> Option<(u64, Permissions)> {
        let reached = self.subject.reach(endpoint, Iova::truncated(at));
        reached.map(|(pa, permissions)| (pa.bits(), permissions))
    }

    #[track_caller]
    fn nothing_at(&mut self, endpoint: Endpoint, at: u64) {
        let reached = self.reach(endpoint, at);
        assert_eq!(reached, None, "{endpoint} gets through at {at:#x}");
    }

    /// Asserts that an endpoint finds a run, at every page's ends, and nothing on either side of it.
    #[track_caller]
    fn shows(&mut self, endpoint: Endpoint, run: &Run) {
        self.shows_inside(endpoint, run);
        let start = run.iova.bits();
        if let Some(before) = start.checked_sub(1) {
            self.nothing_at(endpoint, before);
        }
        if let Some(after) = start.checked_add(run.bytes) {
            self.nothing_at(endpoint, after);
        }
    }

    #[track_caller]
    fn shows_inside(&mut self, endpoint: Endpoint, run: &Run) {
        let page = run.leaves.smallest();
        let mut into = 0;
        while into < run.bytes {
            for byte in [into, into + page - 1] {
                assert_eq!(
                    self.reach(endpoint, run.iova.bits() + byte),
                    Some((run.pa.bits() + byte, run.permissions)),
                    "{byte:#x} bytes into {run:?}"
                );
            }
            into += page;
        }
    }

    /// Asserts that an endpoint finds nothing where a run is, or was.
    #[track_caller]
    fn hides(&mut self, endpoint: Endpoint, run: &Run) {
        let page = run.leaves.smallest();
        for page_at in 0..run.bytes / page {
            self.nothing_at(endpoint, run.iova.bits() + page_at * page);
        }
        self.nothing_at(endpoint, run.iova.bits() + (run.bytes - 1));
    }
}

/// `pages` small pages of a window, from its page `first` on, showing memory from page `memory` on.
fn run(window: &Window, first: u64, pages: u64, memory: u64) -> Run {
    let page = window.pages.smallest();
    Run {
        iova: Iova::truncated(window.span.start().bits() + first * page),
        pa: Pa::truncated(MEMORY + memory * page),
        bytes: pages * page,
        permissions: Permissions::ReadWrite,
        memory: MemoryType::Normal,
        leaves: window.pages,
    }
}

fn span(run: &Run) -> Span<Iova> {
    Span::from_len(run.iova, run.bytes).expect("a run within the space")
}

fn largest(pages: PageSizes) -> PageSize {
    let shift = pages.bits().checked_ilog2().expect("page sizes");
    PageSize::from_shift(u8::try_from(shift).expect("a shift")).expect("a page size")
}
