//! The hypercalls for entries. [LoPAPR §14.5.4]

use iommu::{Backend, Iommu};
use tce::{LIST, Tce};
use types::Ipa;

use crate::bridge::Dma;
use crate::list;
use crate::slot::GuestMemory;
use crate::status::Status;

/// The numbers of the calls that [`Dma::hypercall`] serves.
pub const HYPERCALLS: [u64; 4] = [
    number::GET,
    number::PUT,
    number::STUFF,
    number::PUT_INDIRECT,
];

/// The groups of them, as `/rtas/ibm,hypertas-functions` names them. [LoPAPR Table 187]
pub const HYPERTAS: [&str; 2] = ["hcall-tce", "hcall-multi-tce"];

mod number {
    pub(super) const GET: u64 = 0x1c;
    pub(super) const PUT: u64 = 0x20;
    pub(super) const STUFF: u64 = 0x138;
    pub(super) const PUT_INDIRECT: u64 = 0x13c;
}

/// What a call comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// For r3.
    pub status: Status,
    /// For r4, where the call has a result.
    pub value: Option<u64>,
}

impl From<Result<(), Status>> for Answer {
    fn from(result: Result<(), Status>) -> Self {
        Self {
            status: result.err().unwrap_or(Status::SUCCESS),
            value: None,
        }
    }
}

impl Dma {
    /// Serves a hypercall with the guest's r4 to r7; `None` for a number that is not one of
    /// [`HYPERCALLS`].
    ///
    /// A call that fails has changed nothing: also of a list, every entry or none is written. Where the
    /// hypervisor has not even the memory to go back, an entry that was to change is empty.
    pub fn hypercall<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        memory: &impl GuestMemory,
        number: u64,
        arguments: [u64; 4],
    ) -> Option<Answer> {
        let [liobn, at, third, fourth] = arguments;
        Some(match number {
            number::GET => match self.get(liobn, at) {
                Ok(tce) => Answer {
                    status: Status::SUCCESS,
                    value: Some(tce.bits()),
                },
                Err(status) => Err(status).into(),
            },
            number::PUT => self.put(core, liobn, at, Tce::from_bits(third)).into(),
            number::STUFF => self
                .stuff(core, liobn, at, Tce::from_bits(third), fourth)
                .into(),
            number::PUT_INDIRECT => self
                .put_indirect(core, memory, liobn, at, third, fourth)
                .into(),
            _ => return None,
        })
    }

    /// `H_PUT_TCE`, if that is cheap; false where [`Dma::hypercall`] has to be asked, and nothing has changed.
    /// It is the one call that guests make for every page.
    #[inline(always)]
    pub fn put_tce<B: Backend>(&mut self, core: &mut Iommu<B>, arguments: [u64; 4]) -> bool {
        let [liobn, at, tce, _] = arguments;
        self.put_quickly(core, liobn, at, Tce::from_bits(tce))
            .unwrap_or(false)
    }

    #[inline(always)]
    fn put_quickly<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        liobn: u64,
        at: u64,
        tce: Tce,
    ) -> Option<bool> {
        let (bridge, window) = self.last;
        let bridge = self.bridges.get_mut(bridge)?;
        let ioas = bridge.options.ioas;
        let window = bridge.windows.get_mut(window)?;
        if u64::from(window.liobn.bits()) != liobn {
            return None;
        }
        let index = window.index_of_one(at)?;
        Some(if tce.is_empty() {
            window.clear_quickly(core, ioas, index)
        } else {
            let place = self.slots.first(tce, window.page)?;
            window.put_quickly(core, ioas, (index, tce), place)
        })
    }

    fn get(&self, liobn: u64, at: u64) -> Result<Tce, Status> {
        let (bridge, window) = self.find(liobn).ok_or(Status::PARAMETER)?;
        let window = self
            .bridges
            .get(bridge)
            .and_then(|bridge| bridge.windows.get(window))
            .ok_or(Status::PARAMETER)?;
        let index = window.index(at, 1).ok_or(Status::PARAMETER)?;
        Ok(window.entries.get(index))
    }

    fn put<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        liobn: u64,
        at: u64,
        tce: Tce,
    ) -> Result<(), Status> {
        self.last = self.find(liobn).ok_or(Status::PARAMETER)?;
        let (bridge, window) = self.last;
        let bridge = self.bridges.get_mut(bridge).ok_or(Status::PARAMETER)?;
        let ioas = bridge.options.ioas;
        let its = bridge.windows.get_mut(window).ok_or(Status::PARAMETER)?;
        let index = its.index_of_one(at).ok_or(Status::PARAMETER)?;
        if tce.is_empty() {
            return its.clear(core, ioas, index, 1);
        }
        let place = self.slots.place(tce, its.page);
        let place = place.ok_or(Status::PARAMETER)?;
        if its.entries.slot(index).is_none() {
            bridge.may_fill(window, index, 1)?;
        }
        let window = bridge.windows.get_mut(window).ok_or(Status::PARAMETER)?;
        window.put_one(core, ioas, index, tce, place, &self.slots)
    }

    fn put_indirect<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        memory: &impl GuestMemory,
        liobn: u64,
        at: u64,
        list: u64,
        count: u64,
    ) -> Result<(), Status> {
        let length = usize::try_from(count)
            .ok()
            .filter(|count| (1..=LIST).contains(count))
            .ok_or(Status::PARAMETER)?;
        // A list is within one page of 4 KiB, and starts it.
        let list = Ipa::new(list).map_err(|_| Status::PARAMETER)?;
        if list.bits() & 0xfff != 0 {
            return Err(Status::PARAMETER);
        }
        let scratch = &mut self.scratch;
        let bytes = scratch.bytes.get_mut(..length.saturating_mul(8));
        let bytes = bytes.ok_or(Status::PARAMETER)?;
        // Once: what another vCPU writes there from now on does not matter.
        memory.read(list, bytes).map_err(|_| Status::PARAMETER)?;
        scratch.list.clear();
        let (words, _) = bytes.as_chunks::<8>();
        scratch.list.extend(
            words
                .iter()
                .map(|word| Tce::from_bits(u64::from_be_bytes(*word))),
        );
        self.put_list(core, liobn, at, count)
    }

    fn stuff<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        liobn: u64,
        at: u64,
        tce: Tce,
        count: u64,
    ) -> Result<(), Status> {
        let length = usize::try_from(count)
            .ok()
            .filter(|count| (1..=LIST).contains(count))
            .ok_or(Status::PARAMETER)?;
        if !tce.is_empty() {
            // The same page everywhere: a list like any other.
            self.scratch.list.clear();
            self.scratch.list.resize(length, tce);
            return self.put_list(core, liobn, at, count);
        }
        let (bridge, window) = self.find(liobn).ok_or(Status::PARAMETER)?;
        let bridge = self.bridges.get_mut(bridge).ok_or(Status::PARAMETER)?;
        let ioas = bridge.options.ioas;
        let window = bridge.windows.get_mut(window).ok_or(Status::PARAMETER)?;
        let index = window.index(at, count).ok_or(Status::PARAMETER)?;
        window.clear(core, ioas, index, count)
    }

    /// Writes the entries that lie ready.
    fn put_list<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        liobn: u64,
        at: u64,
        count: u64,
    ) -> Result<(), Status> {
        let (bridge, window) = self.find(liobn).ok_or(Status::PARAMETER)?;
        let Self {
            slots,
            bridges,
            shut: _,
            scratch,
            ..
        } = self;
        let bridge = bridges.get_mut(bridge).ok_or(Status::PARAMETER)?;
        let ioas = bridge.options.ioas;
        let its = bridge.windows.get(window).ok_or(Status::PARAMETER)?;
        let index = its.index(at, count).ok_or(Status::PARAMETER)?;
        list::judge(scratch, its, slots)?;
        // A list that only empties may always.
        if scratch.list.iter().any(|tce| !tce.is_empty()) {
            bridge.may_fill(window, index, count)?;
        }
        let window = bridge.windows.get_mut(window).ok_or(Status::PARAMETER)?;
        list::apply(scratch, window, core, ioas, index, slots)
    }
}
