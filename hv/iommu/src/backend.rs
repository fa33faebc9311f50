//! What the core asks of a piece of IOMMU hardware.

use core::fmt;

use types::{Asid, Iova, Pa, PageSize, Span, SubstreamId};

use crate::area::Permissions;
use crate::nested::NestedConfig;

/// One IOMMU of the machine: an SMMU, or a PCI host bridge with TCE tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(u32);

impl UnitId {
    /// The unit with this number; the platform numbers them.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a unit tells DMA masters apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The unit in front of the master.
    pub unit: UnitId,
    /// On Arm the stream ID, on POWER the PE number.
    pub source: u32,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} at unit {}", self.source, self.unit)
    }
}

/// A translation table of a backend, named by the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(u32);

impl TableId {
    /// The table with this number.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// A set of page sizes: bit n stands for pages of 2^n bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageSizes(u64);

impl PageSizes {
    /// No size at all.
    pub const NONE: Self = Self(0);

    /// These sizes.
    #[must_use]
    pub fn new(sizes: &[PageSize]) -> Self {
        Self(sizes.iter().fold(0, |bits, size| bits | size.bytes()))
    }

    /// This size alone.
    #[must_use]
    pub const fn of(size: PageSize) -> Self {
        Self(size.bytes())
    }

    /// The mask.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The smallest size, in bytes; 1 for the empty set.
    #[must_use]
    pub const fn smallest(self) -> u64 {
        let lowest = self.0 & self.0.wrapping_neg();
        if lowest == 0 { 1 } else { lowest }
    }

    /// Every size there is.
    pub const ALL: Self = Self(u64::MAX);

    /// The sizes that are in both sets.
    #[must_use]
    pub const fn common(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    /// These sizes and those.
    #[must_use]
    pub const fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// The sizes of at most `bytes` bytes.
    #[must_use]
    pub const fn up_to(self, bytes: u64) -> Self {
        Self(self.0 & (bytes | bytes.wrapping_sub(1)))
    }

    /// The largest size of at most `bytes` bytes that `align` (the bits that must be clear below
    /// the page, or-ed together) allows; `None` when even the smallest does not fit.
    #[must_use]
    pub const fn largest_for(self, align: u64, bytes: u64) -> Option<u64> {
        let aligned = if align == 0 {
            u64::MAX
        } else {
            // Every power of two up to the lowest set bit.
            align ^ align.wrapping_sub(1)
        };
        let fitting = self.0 & aligned & Self(u64::MAX).up_to_power(bytes);
        match fitting.checked_ilog2() {
            Some(shift) => 1_u64.checked_shl(shift),
            None => None,
        }
    }

    const fn up_to_power(self, bytes: u64) -> u64 {
        match bytes.checked_ilog2() {
            Some(shift) => self.0 & (u64::MAX >> 63_u32.saturating_sub(shift)),
            None => 0,
        }
    }

    /// Whether the size is in the set.
    #[must_use]
    pub const fn contains(self, size: PageSize) -> bool {
        self.0 & size.bytes() != 0
    }
}

impl fmt::Debug for PageSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageSizes({:#x})", self.0)
    }
}

/// A range of bus addresses that a table can translate.
///
/// An SMMU's stage 2 has one, from zero to its input size. A POWER PE has a list; the platform
/// chooses their bases (0 and 2^59 on pseries), never the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The addresses.
    pub span: Span<Iova>,
    /// The page sizes of its entries. A TCE window has exactly one.
    pub pages: PageSizes,
}

/// What kind of memory a mapping shows.
///
/// It follows from the memory object and from nothing else: no request can choose it, so a BAR can
/// never become cacheable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryType {
    /// RAM: Normal, write-back, inner shareable.
    Normal,
    /// A device's registers: Device-nGnRE, never cached or merged.
    Device,
}

/// A physically contiguous piece of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where the device sees it.
    pub iova: Iova,
    /// Where it is.
    pub pa: Pa,
    /// Its length in bytes: a multiple of the smallest of `leaves`, as are both addresses.
    pub bytes: u64,
    /// What the device may do.
    pub permissions: Permissions,
    /// How it must be accessed.
    pub memory: MemoryType,
    /// The leaf sizes that may be used.
    pub leaves: PageSizes,
}

/// Where the entry of a page is: the number of its window among those of the table, and of the page among
/// those of the window.
///
/// It saves a backend the search. It is right when the core says it; a backend that is not sure looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryPlace {
    /// The window's number, from 0 in the order of [`Backend::windows`].
    pub window: usize,
    /// The page's number, from 0.
    pub page: u64,
}

/// One page of RAM in a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// Where it is, aligned.
    pub pa: Pa,
    /// Its size.
    pub size: PageSize,
    /// What the device may do.
    pub permissions: Permissions,
}

/// How a unit behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Bits of a source ID (SMMU: SIDSIZE). A source at or above 2^n does not exist.
    pub source_bits: u8,
    /// A guest's stage 1 can run on top of a table. Never on POWER.
    pub nesting: bool,
    /// Tables can record which pages were written.
    pub dirty: bool,
    /// A stage-1 attribute cannot make memory non-coherent (S2FWB, or a platform known to be
    /// coherent throughout).
    pub forces_coherence: bool,
    /// Address translation caches in devices can be invalidated.
    pub atc_invalidation: bool,
    /// Windows can be created and removed (DDW).
    pub dynamic_windows: bool,
}

/// How a new table shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// A guest's stage 1 may be put on top.
    pub nest_parent: bool,
    /// It shall be able to record which pages were written.
    pub dirty: bool,
}

/// What an endpoint's DMA goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Nothing gets through. The state of every endpoint before its first installation.
    Abort,
    /// Bus addresses are physical addresses. Only for the hypervisor's own devices.
    Identity,
    /// One table.
    Table(TableId),
    /// The guest's stage 1 as configured, then the table.
    Nested {
        /// The stage-2 table.
        parent: TableId,
        /// What the guest configured, checked.
        config: NestedConfig,
    },
}

/// Pages of a guest's stage 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VaRange {
    /// The first virtual address, a multiple of the granule.
    pub first: u64,
    /// The last one, included.
    pub last: u64,
    /// Log2 of the granule in bytes: 12, 14 or 16.
    pub granule_shift: u8,
    /// The level of all leaves in it, 1 to 3; 0 when they are at several, or not known to be at one.
    pub level: u8,
    /// Whether only leaves changed, or the tables above them, too.
    pub scope: VaScope,
}

/// What of a guest's stage 1 changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VaScope {
    /// Leaves.
    Leaves,
    /// Leaves, and the tables that lead to them.
    Walks,
}

/// Invalidations of which the backend has done only the first ones for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// How many, from the first on, are surely done.
    pub done: usize,
    /// What became of the next one.
    pub because: BackendError,
}

/// An invalidation of a guest's stage 1, decoded and with physical identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageOneInvalidation {
    /// All stage-1 translations of the VM.
    All,
    /// All translations of an address space.
    Asid(Asid),
    /// One page, of one address space or (global) of all.
    Page {
        /// The address space; `None` for every one.
        asid: Option<Asid>,
        /// The virtual address.
        va: u64,
    },
    /// A range of pages, of one address space or (global) of all.
    Range {
        /// The address space; `None` for every one.
        asid: Option<Asid>,
        /// The pages.
        range: VaRange,
    },
    /// A context descriptor.
    Context {
        /// The physical source.
        source: u32,
        /// The substream; `None` for all of them.
        substream: Option<SubstreamId>,
    },
    /// A device's own translation cache.
    Atc {
        /// The physical source.
        source: u32,
        /// The addresses.
        span: Span<Iova>,
    },
}

/// Whether reading dirty pages also forgets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirtyRead {
    /// The pages are clean afterwards.
    Clear,
    /// Nothing changes.
    Keep,
}

/// Whether written pages are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirtyTracking {
    /// They are.
    On,
    /// They are not.
    Off,
}

/// Why hardware, or the driver of it, did not do as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// No memory for tables. Nothing changed.
    #[error("no memory for translation tables")]
    OutOfMemory,
    /// The hardware did not confirm in time. Whether it did the work is unknown.
    #[error("the unit did not complete in time")]
    Timeout,
    /// The table does not suit the endpoint; another table may.
    #[error("the table does not suit the endpoint")]
    Incompatible,
    /// The unit cannot do this at all.
    #[error("the unit cannot do this")]
    Unsupported,
    /// No further window is to be had.
    #[error("no further window is to be had")]
    NoWindow,
    /// The window's page size or size is not possible.
    #[error("no such window is possible")]
    BadWindow,
}

/// The driver of the machine's IOMMUs.
///
/// The core checks everything that comes from outside; a backend only executes. Where a method can
/// fail with [`BackendError::OutOfMemory`], [`BackendError::Incompatible`] or
/// [`BackendError::Unsupported`], it must then have changed nothing.
///
/// What only some hardware has (exchanging an entry in one step, a guest's stage 1, a record of written pages) a backend
/// may leave out: it is then [`BackendError::Unsupported`].
///
/// A leaf never spans two areas, because every area is mapped by its own calls; so
/// [`Backend::unmap`] of whole areas never has to split a leaf and never needs memory.
pub trait Backend {
    /// What a unit can do; `None` when there is no such unit.
    fn capabilities(&self, unit: UnitId) -> Option<Capabilities>;

    /// Makes a table that `endpoint` could be bound to, with the windows the platform starts with.
    ///
    /// # Errors
    /// See [`BackendError`].
    fn create_table(
        &mut self,
        endpoint: Endpoint,
        options: TableOptions,
    ) -> Result<TableId, BackendError>;

    /// Gives a table back. Nothing is bound to it. Cached translations are gone when this returns.
    fn destroy_table(&mut self, table: TableId);

    /// Whether all accesses through a table are over that are to be: of endpoints that are bound to it no more, and to what
    /// it no longer maps. One that is not sure of that never will be, and [`Backend::invalidate`] says so.
    fn is_sure(&self, table: TableId) -> bool {
        let _ = table;
        true
    }

    /// The windows of a table, ordered by address.
    fn windows(&self, table: TableId) -> &[Window];

    /// Adds a window; the platform chooses where.
    ///
    /// # Errors
    /// [`BackendError::NoWindow`], [`BackendError::BadWindow`] and the general ones.
    fn create_window(
        &mut self,
        table: TableId,
        page: PageSize,
        bytes: u64,
    ) -> Result<Window, BackendError>;

    /// Takes away the window at `base`, in which nothing is mapped.
    ///
    /// # Errors
    /// [`BackendError::NoWindow`] when none starts there.
    fn remove_window(&mut self, table: TableId, base: Iova) -> Result<(), BackendError>;

    /// Puts the windows back to those the platform starts with. Nothing is mapped.
    ///
    /// # Errors
    /// The general ones.
    fn reset_windows(&mut self, table: TableId) -> Result<(), BackendError>;

    /// What a further window could be: how many, the largest size in bytes, the page sizes.
    fn window_limits(&self, table: TableId) -> WindowLimits;

    /// Adds entries for a run that lies in one window and touches no mapped entry. All or nothing.
    ///
    /// # Errors
    /// The general ones.
    fn map(&mut self, table: TableId, run: &Run) -> Result<(), BackendError>;

    /// [`Backend::map`] of one page of RAM, in a window whose pages have one size; false where that takes
    /// [`Backend::map`] itself, and nothing has changed. A guest may ask for each page by itself.
    #[inline]
    fn map_page(&mut self, table: TableId, at: EntryPlace, page: PageRun) -> bool {
        let _ = (table, at, page);
        false
    }

    /// Clears one entry of a window whose pages have one size, and drops what is cached of it; false
    /// where that takes [`Backend::unmap`] and [`Backend::invalidate`], and nothing has changed.
    #[inline]
    fn unmap_page(&mut self, table: TableId, at: EntryPlace) -> bool {
        let _ = (table, at);
        false
    }

    /// Clears the entries of `span`, which lies in one window, covers whole leaves and may have holes. Cached
    /// translations may remain until [`Backend::invalidate`].
    fn unmap(&mut self, table: TableId, span: Span<Iova>);

    /// Replaces the one mapped entry that a run covers, in one step: a device finds the old entry or
    /// the new one, never none. When this returns, no access under the old one is left.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] where the table cannot do that, or the run is more than an
    /// entry; the general ones. The old entry is then still there.
    fn exchange(&mut self, table: TableId, run: &Run) -> Result<(), BackendError> {
        let _ = (table, run);
        Err(BackendError::Unsupported)
    }

    /// Drops every cached translation of `span`, combined stage-1 ones and those in devices
    /// included, and returns when that is complete.
    ///
    /// # Errors
    /// [`BackendError::Timeout`].
    fn invalidate(&mut self, table: TableId, span: Span<Iova>) -> Result<(), BackendError>;

    /// Switches an endpoint. The device sees the old binding or the new one, never anything else;
    /// when this returns, no access under the old one is left.
    ///
    /// Going back to [`Binding::Abort`], or to the binding that was live just before, needs no
    /// memory.
    ///
    /// # Errors
    /// The general ones; the old binding is then still live.
    fn install(&mut self, endpoint: Endpoint, binding: &Binding) -> Result<(), BackendError>;

    /// Executes invalidations for the guest whose stage 1 sits on `parent`, with one wait for all where
    /// the hardware allows it. All are complete when it returns. There are at most
    /// [`MAX_INVALIDATIONS`](crate::MAX_INVALIDATIONS) of a guest's: one that is of a device comes once for each of the
    /// device's sources.
    ///
    /// # Errors
    /// [`Partial`], because of [`BackendError::Timeout`] or [`BackendError::Unsupported`].
    fn invalidate_stage_one(
        &mut self,
        parent: TableId,
        what: &mut dyn Iterator<Item = StageOneInvalidation>,
    ) -> Result<(), Partial> {
        let _ = (parent, what);
        Err(Partial {
            done: 0,
            because: BackendError::Unsupported,
        })
    }

    /// Starts (with every page clean) or stops recording written pages.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`], [`BackendError::Timeout`].
    fn set_dirty_tracking(
        &mut self,
        table: TableId,
        tracking: DirtyTracking,
    ) -> Result<(), BackendError> {
        let _ = (table, tracking);
        Err(BackendError::Unsupported)
    }

    /// Reports the leaves in `span` that were written, in any order, a leaf at most once. A clearing
    /// read cleans the leaves that lie wholly in `span` (one that does not would take the news of
    /// its other part with it); the core calls [`Backend::invalidate`] afterwards.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`].
    fn read_dirty(
        &mut self,
        table: TableId,
        span: Span<Iova>,
        read: DirtyRead,
        report: &mut dyn FnMut(Span<Iova>),
    ) -> Result<(), BackendError> {
        let _ = (table, span, read, report);
        Err(BackendError::Unsupported)
    }
}

/// What window could still be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowLimits {
    /// Windows that can still be created.
    pub available: u32,
    /// The largest size in bytes.
    pub largest: u64,
    /// The page sizes to choose from.
    pub pages: PageSizes,
}

#[cfg(test)]
mod tests {
    use types::PageSize;

    use super::PageSizes;

    #[test]
    fn the_largest_page_obeys_alignment_and_length() {
        let sizes = PageSizes::new(&[PageSize::SIZE_4K, PageSize::SIZE_2M, PageSize::SIZE_1G]);
        assert_eq!(sizes.largest_for(0, 1 << 30), Some(1 << 30));
        assert_eq!(sizes.largest_for(0, (1 << 30) - 1), Some(2 << 20));
        assert_eq!(sizes.largest_for(2 << 20, 1 << 40), Some(2 << 20));
        assert_eq!(sizes.largest_for(4096, 1 << 40), Some(4096));
        assert_eq!(sizes.largest_for(2048, 1 << 40), None);
        assert_eq!(sizes.largest_for(0, 4095), None);
        assert_eq!(sizes.largest_for(0, 0), None);
        assert_eq!(sizes.largest_for(0, u64::MAX), Some(1 << 30));
    }

    #[test]
    fn sets_are_cut_by_size() {
        let sizes = PageSizes::new(&[PageSize::SIZE_4K, PageSize::SIZE_64K]);
        assert_eq!(sizes.up_to(4096), PageSizes::new(&[PageSize::SIZE_4K]));
        assert_eq!(sizes.up_to(65536), sizes);
        assert_eq!(sizes.smallest(), 4096);
        assert_eq!(PageSizes::NONE.smallest(), 1);
        assert!(sizes.contains(PageSize::SIZE_64K));
        assert!(!sizes.contains(PageSize::SIZE_2M));
    }
}
