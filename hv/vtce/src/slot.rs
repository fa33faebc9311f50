//! What of a guest's memory its devices may reach.

use alloc::vec::Vec;

use iommu::{MemoryId, PageSizes, Permissions};
use tce::{OutOfMemory, Tce};
use types::{Ipa, PageSize, Span};

/// An access that does not lie wholly in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes at {at} are not the guest's memory")]
pub struct NotMemory {
    /// Where it started.
    pub at: Ipa,
    /// Its length in bytes.
    pub bytes: usize,
}

/// The guest's RAM, as the hypervisor reads it. Device registers are not part of it.
pub trait GuestMemory {
    /// Copies from the guest's memory. Other vCPUs may change it meanwhile; what is judged is the copy.
    ///
    /// # Errors
    /// [`NotMemory`], when any byte is not.
    fn read(&self, at: Ipa, buffer: &mut [u8]) -> Result<(), NotMemory>;
}

/// A range of guest real addresses behind which one memory object of the core is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Where the guest sees it.
    pub span: Span<Ipa>,
    /// What it sees: RAM of the VM, or a BAR that was granted for peer-to-peer.
    pub memory: MemoryId,
    /// From which byte of it on.
    pub offset: u64,
    /// What devices may do there.
    pub permissions: Permissions,
    /// The largest page that is contiguous in physical memory wherever it starts in the slot at a
    /// multiple of its size. Only windows with pages up to that are offered to the guest. `None` for
    /// registers: they are shown in the windows whose pages are not larger than they are.
    pub page: Option<PageSize>,
}

/// Where an entry leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) memory: MemoryId,
    pub(crate) offset: u64,
    pub(crate) permissions: Permissions,
}

/// All slots of a guest, without overlap.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
}

impl Slots {
    /// Adds a slot; false when it overlaps one.
    pub(crate) fn add(&mut self, slot: Slot) -> Result<bool, OutOfMemory> {
        if self
            .slots
            .iter()
            .any(|other| other.span.overlaps(slot.span))
        {
            return Ok(false);
        }
        self.slots.try_reserve(1).map_err(|_| OutOfMemory)?;
        self.slots.push(slot);
        Ok(true)
    }

    pub(crate) fn remove(&mut self, memory: MemoryId) {
        self.slots.retain(|slot| slot.memory != memory);
    }

    /// The slot that holds the page an entry names, whole; `None` for an entry without rights, an
    /// address that is no page's, and a right that the slot does not have.
    pub(crate) fn find(&self, tce: Tce, page: PageSize) -> Option<&Slot> {
        self.slots
            .iter()
            .find(|slot| slot.place(tce, page).is_some())
    }

    pub(crate) fn place(&self, tce: Tce, page: PageSize) -> Option<Place> {
        self.slots.iter().find_map(|slot| slot.place(tce, page))
    }

    /// The same, of the first slot: mostly it is the only one.
    #[inline(always)]
    pub(crate) fn first(&self, tce: Tce, page: PageSize) -> Option<Place> {
        self.slots.first()?.place(tce, page)
    }

    /// The page sizes that every slot of RAM can be shown by.
    pub(crate) fn pages(&self) -> PageSizes {
        let smallest = self.slots.iter().filter_map(|slot| {
            let page = slot.page?;
            let ends = slot.span.start().bits() | slot.span.last().bits().wrapping_add(1);
            let aligned = ends & ends.wrapping_neg();
            Some(if aligned == 0 {
                page.bytes()
            } else {
                page.bytes().min(aligned)
            })
        });
        let largest = smallest.min().unwrap_or(u64::MAX);
        PageSizes::ALL.up_to(largest)
    }
}

impl Slot {
    /// How many pages of the slot, all of each, follow the page of an entry that leads there.
    pub(crate) fn pages_after(&self, tce: Tce, page: PageSize) -> u64 {
        let last = self.span.last().bits();
        let bytes = last.saturating_sub(tce.address()).saturating_add(1);
        (bytes >> page.shift()).saturating_sub(1)
    }

    /// Where an entry leads, if that is in this slot.
    #[inline(always)]
    pub(crate) fn place(&self, tce: Tce, page: PageSize) -> Option<Place> {
        let permissions = tce.permissions()?;
        let address = tce.address();
        let into = address.checked_sub(self.span.start().bits())?;
        let last = address.checked_add(page.mask())?;
        if address & page.mask() != 0
            || last > self.span.last().bits()
            || !self.permissions.covers(permissions)
        {
            return None;
        }
        Some(Place {
            memory: self.memory,
            offset: self.offset.checked_add(into)?,
            permissions,
        })
    }
}
