//! An IOMMU in ordinary memory, for tests of every crate above this one.
//!
//! Its pages are smaller than the CPU's (2 KiB), it keeps a translation cache that forgets only
//! when told to, it counts what it is asked, it fails where a test wants it to, and its tables can
//! be walked. A DMA goes through [`Mock::dma`], which is what a device could do at that moment,
//! cached translations included.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "test double: an overflow or a missing element is a failed test"
)]

mod check;
mod exercise;
mod table;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use types::{Iova, Pa, PageSize, Span};

use crate::area::Permissions;
use crate::backend::{
    Backend, BackendError, Binding, Capabilities, DirtyRead, DirtyTracking, Endpoint, MemoryType,
    PageSizes, Partial, Run, StageOneInvalidation, TableId, TableOptions, UnitId, Window,
    WindowLimits,
};
use crate::nested::StageOne;
pub use check::check;
pub use exercise::exercise;
pub use table::Leaf;
use table::Table;

/// The mock's small page: half of the CPU's smallest.
pub const SMALL_PAGE: u64 = 2048;
/// The mock's huge page: 512 small ones.
pub const HUGE_PAGE: u64 = 1 << 20;
/// The first address that the mock's SMMU-like unit translates.
pub const APERTURE_START: u64 = 1 << 24;
/// The last address that the mock's SMMU-like unit translates.
pub const APERTURE_LAST: u64 = (1 << 31) - 1;
/// Where the mock's TCE-like unit puts created windows: 2^59, as pseries does.
pub const DYNAMIC_WINDOW_BASE: u64 = 1 << 59;
/// The size of the window that the mock's TCE-like unit starts with.
pub const DEFAULT_WINDOW_BYTES: u64 = 1 << 30;
/// How many windows a table of the TCE-like unit has at most.
pub const MAX_WINDOWS: usize = 2;

/// What a device does at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dma {
    /// It reads memory.
    Read,
    /// It writes memory.
    Write,
}

/// Why a device got nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaFault {
    /// The endpoint is in abort.
    Aborted,
    /// Nothing is mapped there.
    Translation,
    /// Something is, but not for this.
    Permission,
}

/// How the leaf sizes of an SMMU-like unit are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// 2 KiB only.
    Small,
    /// 2 KiB and 1 MiB.
    SmallAndHuge,
}

/// Whether endpoints of a unit can use the same table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Any can.
    Any,
    /// A table suits the endpoint it was made for and no other (a LIOBN of a host bridge).
    Own,
}

#[derive(Clone, Debug)]
struct Unit {
    capabilities: Capabilities,
    windows: Vec<Window>,
    sharing: Sharing,
}

/// How often the mock was asked what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls of [`Backend::map`].
    pub maps: u64,
    /// Calls of [`Backend::unmap`].
    pub unmaps: u64,
    /// Calls of [`Backend::invalidate`].
    pub invalidations: u64,
    /// Calls of [`Backend::install`].
    pub installs: u64,
    /// Calls of [`Backend::invalidate_stage_one`].
    pub stage_one: u64,
}

/// The mock backend. See the module.
#[derive(Clone, Debug, Default)]
pub struct Mock {
    units: BTreeMap<UnitId, Unit>,
    tables: BTreeMap<TableId, Table>,
    bindings: BTreeMap<Endpoint, Binding>,
    stage_one: Vec<StageOneInvalidation>,
    history: Vec<(Endpoint, Binding)>,
    next_table: u32,
    allocations_left: Option<u64>,
    installs_left: Option<u64>,
    invalidations_left: Option<u64>,
    stage_one_left: Option<u64>,
    exchanges_left: Option<u64>,
    /// Tables of which it is not sure, and never will be.
    lost: Vec<TableId>,
    /// What was asked so far.
    pub counts: Counts,
}

fn page(bytes: u64) -> PageSize {
    PageSize::from_bytes(bytes).unwrap_or(PageSize::SIZE_4K)
}

fn window(start: u64, last: u64, pages: PageSizes) -> Window {
    Window {
        span: crate::area::span(start, last),
        pages,
    }
}

impl Mock {
    /// No units yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an SMMU-like unit: one window, nesting, dirty tracking, 16-bit sources.
    #[must_use]
    pub fn with_smmu(mut self, unit: UnitId, leaves: Leaves) -> Self {
        let pages = match leaves {
            Leaves::Small => PageSizes::new(&[page(SMALL_PAGE)]),
            Leaves::SmallAndHuge => PageSizes::new(&[page(SMALL_PAGE), page(HUGE_PAGE)]),
        };
        let capabilities = Capabilities {
            source_bits: 16,
            nesting: true,
            dirty: true,
            forces_coherence: false,
            atc_invalidation: true,
            dynamic_windows: false,
        };
        let windows = [window(APERTURE_START, APERTURE_LAST, pages)];
        self.units.insert(
            unit,
            Unit {
                capabilities,
                windows: windows.into(),
                sharing: Sharing::Any,
            },
        );
        self
    }

    /// Adds a TCE-like unit: a window of 1 GiB with 4 KiB pages at 0, a second one on demand, no
    /// nesting.
    #[must_use]
    pub fn with_tce(mut self, unit: UnitId) -> Self {
        let capabilities = Capabilities {
            source_bits: 16,
            nesting: false,
            dirty: false,
            forces_coherence: true,
            atc_invalidation: false,
            dynamic_windows: true,
        };
        let pages = PageSizes::new(&[PageSize::SIZE_4K]);
        let windows = [window(0, DEFAULT_WINDOW_BYTES - 1, pages)];
        self.units.insert(
            unit,
            Unit {
                capabilities,
                windows: windows.into(),
                sharing: Sharing::Any,
            },
        );
        self
    }

    /// Changes what a unit says it can do.
    pub fn change(&mut self, unit: UnitId, f: impl FnOnce(&mut Capabilities)) {
        if let Some(unit) = self.units.get_mut(&unit) {
            f(&mut unit.capabilities);
        }
    }

    /// Says which endpoints of a unit can share tables.
    pub fn set_sharing(&mut self, unit: UnitId, sharing: Sharing) {
        if let Some(unit) = self.units.get_mut(&unit) {
            unit.sharing = sharing;
        }
    }

    /// Replaces the windows that new tables of a unit start with.
    pub fn set_windows(&mut self, unit: UnitId, windows: &[Window]) {
        if let Some(unit) = self.units.get_mut(&unit) {
            unit.windows = windows.into();
        }
    }

    /// Lets that many more allocations pass and fails those after; `None` heals.
    pub fn fail_allocations_after(&mut self, allocations: Option<u64>) {
        self.allocations_left = allocations;
    }

    /// Lets that many more installations pass, and lets the one after them time out; those after
    /// that one pass again.
    pub fn fail_install_after(&mut self, installs: Option<u64>) {
        self.installs_left = installs;
    }

    /// Lets that many more invalidations pass and all after them time out; `None` heals.
    pub fn fail_invalidations_after(&mut self, invalidations: Option<u64>) {
        self.invalidations_left = invalidations;
    }

    /// Whoever went through a table may do so for ever.
    pub fn lose(&mut self, table: TableId) {
        self.lost.push(table);
    }

    /// Lets that many more stage-1 invalidations pass and all after them time out; `None` heals.
    pub fn fail_stage_one_after(&mut self, invalidations: Option<u64>) {
        self.stage_one_left = invalidations;
    }

    /// Lets that many more exchanges of entries pass and refuses all after them; `None` heals.
    pub fn fail_exchanges_after(&mut self, exchanges: Option<u64>) {
        self.exchanges_left = exchanges;
    }

    /// How many tables exist.
    #[must_use]
    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    /// The leaves of a table, by address. Cached translations are not in it.
    #[must_use]
    pub fn walk(&self, table: TableId) -> Vec<(Iova, Leaf)> {
        self.tables.get(&table).map(Table::walk).unwrap_or_default()
    }

    /// What an endpoint is bound to.
    #[must_use]
    pub fn binding(&self, endpoint: Endpoint) -> Binding {
        self.bindings
            .get(&endpoint)
            .copied()
            .unwrap_or(Binding::Abort)
    }

    /// The table below an endpoint.
    #[must_use]
    pub fn table_of(&self, endpoint: Endpoint) -> Option<TableId> {
        match self.binding(endpoint) {
            Binding::Table(table) | Binding::Nested { parent: table, .. } => Some(table),
            Binding::Abort | Binding::Identity => None,
        }
    }

    /// Every installation so far, in order.
    #[must_use]
    pub fn history(&self) -> &[(Endpoint, Binding)] {
        &self.history
    }

    /// Every stage-1 invalidation so far, in order.
    #[must_use]
    pub fn stage_one_invalidations(&self) -> &[StageOneInvalidation] {
        &self.stage_one
    }

    /// A device's access: where it ends up, and how. A guest's stage 1 counts as identity.
    ///
    /// # Errors
    /// [`DmaFault`].
    pub fn dma(
        &mut self,
        endpoint: Endpoint,
        iova: Iova,
        access: Dma,
    ) -> Result<(Pa, MemoryType), DmaFault> {
        let table = match self.binding(endpoint) {
            Binding::Abort => return Err(DmaFault::Aborted),
            Binding::Identity => return Ok((Pa::truncated(iova.bits()), MemoryType::Normal)),
            Binding::Table(table) => table,
            Binding::Nested { parent, config } => match config.stage_one {
                StageOne::Abort | StageOne::Invalid => return Err(DmaFault::Aborted),
                StageOne::Bypass | StageOne::Translate(_) => parent,
            },
        };
        let table = self.tables.get_mut(&table).ok_or(DmaFault::Aborted)?;
        let (at, leaf) = table.translate(iova).ok_or(DmaFault::Translation)?;
        let allowed = match access {
            Dma::Read => leaf.permissions.allows_read(),
            Dma::Write => leaf.permissions.allows_write(),
        };
        if !allowed {
            return Err(DmaFault::Permission);
        }
        if access == Dma::Write {
            table.mark_dirty(at);
        }
        let pa = Pa::truncated(leaf.pa.bits() + (iova.bits() - at));
        Ok((pa, leaf.memory))
    }

    fn allocate(&mut self) -> Result<(), BackendError> {
        take(&mut self.allocations_left, BackendError::OutOfMemory)
    }

    fn table(&mut self, table: TableId) -> Result<&mut Table, BackendError> {
        self.tables.get_mut(&table).ok_or(BackendError::Unsupported)
    }
}

fn take(left: &mut Option<u64>, error: BackendError) -> Result<(), BackendError> {
    match left {
        None => Ok(()),
        Some(0) => Err(error),
        Some(n) => {
            *n -= 1;
            Ok(())
        }
    }
}

impl Backend for Mock {
    fn capabilities(&self, unit: UnitId) -> Option<Capabilities> {
        self.units.get(&unit).map(|unit| unit.capabilities)
    }

    fn create_table(
        &mut self,
        endpoint: Endpoint,
        options: TableOptions,
    ) -> Result<TableId, BackendError> {
        let unit = self
            .units
            .get(&endpoint.unit)
            .ok_or(BackendError::Unsupported)?;
        let caps = unit.capabilities;
        if (options.nest_parent && !caps.nesting) || (options.dirty && !caps.dirty) {
            return Err(BackendError::Unsupported);
        }
        let table = Table::new(endpoint, unit.windows.clone());
        self.allocate()?;
        let id = TableId::new(self.next_table);
        self.next_table += 1;
        self.tables.insert(id, table);
        Ok(id)
    }

    fn destroy_table(&mut self, table: TableId) {
        let bound = self.bindings.values().any(|binding| match binding {
            Binding::Table(t) | Binding::Nested { parent: t, .. } => *t == table,
            Binding::Abort | Binding::Identity => false,
        });
        assert!(!bound, "a table is destroyed under a device");
        assert!(self.tables.remove(&table).is_some(), "no such table");
    }

    fn is_sure(&self, table: TableId) -> bool {
        !self.lost.contains(&table)
    }

    fn windows(&self, table: TableId) -> &[Window] {
        self.tables.get(&table).map_or(&[], |t| &t.windows)
    }

    fn create_window(
        &mut self,
        table: TableId,
        page: PageSize,
        bytes: u64,
    ) -> Result<Window, BackendError> {
        let limits = self.window_limits(table);
        if limits.available == 0 {
            return Err(BackendError::NoWindow);
        }
        if !limits.pages.contains(page)
            || !bytes.is_power_of_two()
            || bytes < page.bytes()
            || bytes > limits.largest
        {
            return Err(BackendError::BadWindow);
        }
        self.allocate()?;
        let table = self.table(table)?;
        // As pseries does: the first window is at 0, whatever its size, the second far up.
        let base = if table.windows.iter().any(|w| w.span.start() == Iova::ZERO) {
            DYNAMIC_WINDOW_BASE
        } else {
            0
        };
        let new = window(base, base + (bytes - 1), PageSizes::new(&[page]));
        table.windows.push(new);
        table.windows.sort_by_key(|w| w.span.start());
        Ok(new)
    }

    fn remove_window(&mut self, table: TableId, base: Iova) -> Result<(), BackendError> {
        let table = self.table(table)?;
        let at = table
            .windows
            .iter()
            .position(|w| w.span.start() == base)
            .ok_or(BackendError::NoWindow)?;
        let gone = table.windows.remove(at);
        assert!(table.is_empty(gone.span), "a window goes with its entries");
        Ok(())
    }

    fn reset_windows(&mut self, table: TableId) -> Result<(), BackendError> {
        let unit = self.table(table)?.made_for.unit;
        let windows = self
            .units
            .get(&unit)
            .map(|unit| unit.windows.clone())
            .unwrap_or_default();
        self.table(table)?.windows = windows;
        Ok(())
    }

    fn window_limits(&self, table: TableId) -> WindowLimits {
        let none = WindowLimits {
            available: 0,
            largest: 0,
            pages: PageSizes::NONE,
        };
        let Some(table) = self.tables.get(&table) else {
            return none;
        };
        if !self
            .capabilities(table.made_for.unit)
            .is_some_and(|caps| caps.dynamic_windows)
        {
            return none;
        }
        let free = MAX_WINDOWS.saturating_sub(table.windows.len());
        WindowLimits {
            available: u32::try_from(free).unwrap_or(0),
            largest: 1 << 45,
            pages: PageSizes::new(&[
                PageSize::SIZE_4K,
                PageSize::SIZE_64K,
                PageSize::SIZE_2M,
                PageSize::SIZE_16M,
            ]),
        }
    }

    fn map(&mut self, table: TableId, run: &Run) -> Result<(), BackendError> {
        self.counts.maps += 1;
        let mut at = 0;
        while at < run.bytes {
            let iova = run.iova.bits() + at;
            let pa = run.pa.bits() + at;
            let size = run
                .leaves
                .largest_for(iova | pa, run.bytes - at)
                .unwrap_or_else(|| unreachable_run(run));
            let allocated = self.allocate();
            let entry = Leaf {
                pa: Pa::truncated(pa),
                bytes: size,
                permissions: run.permissions,
                memory: run.memory,
                dirty: false,
            };
            let result = self.table(table).and_then(|table| {
                allocated?;
                table.insert(iova, entry);
                Ok(())
            });
            if let Err(error) = result {
                if at > 0
                    && let Ok(table) = self.table(table)
                {
                    table.clear(crate::area::span(run.iova.bits(), iova - 1));
                }
                return Err(error);
            }
            at += size;
        }
        Ok(())
    }

    fn unmap(&mut self, table: TableId, span: Span<Iova>) {
        self.counts.unmaps += 1;
        if let Ok(table) = self.table(table) {
            table.clear(span);
        }
    }

    /// As with TCE tables: of an entry that is there, at its size.
    fn exchange(&mut self, table: TableId, run: &Run) -> Result<(), BackendError> {
        let unit = self.table(table)?.made_for.unit;
        let caps = self.capabilities(unit).ok_or(BackendError::Unsupported)?;
        if !caps.dynamic_windows {
            return Err(BackendError::Unsupported);
        }
        take(&mut self.exchanges_left, BackendError::Unsupported)?;
        let new = Leaf {
            pa: run.pa,
            bytes: run.bytes,
            permissions: run.permissions,
            memory: run.memory,
            dirty: false,
        };
        self.table(table)?.exchange(run.iova.bits(), new)
    }

    fn invalidate(&mut self, table: TableId, span: Span<Iova>) -> Result<(), BackendError> {
        self.counts.invalidations += 1;
        take(&mut self.invalidations_left, BackendError::Timeout)?;
        if !self.is_sure(table) {
            return Err(BackendError::Timeout);
        }
        self.table(table)?.forget(span);
        Ok(())
    }

    fn install(&mut self, endpoint: Endpoint, binding: &Binding) -> Result<(), BackendError> {
        self.counts.installs += 1;
        if self.installs_left == Some(0) {
            self.installs_left = None;
            return Err(BackendError::Timeout);
        }
        take(&mut self.installs_left, BackendError::Timeout)?;
        if let Binding::Table(table) | Binding::Nested { parent: table, .. } = binding {
            let made_for = self.table(*table)?.made_for;
            let unit = self.units.get(&endpoint.unit);
            let own = unit.is_some_and(|unit| unit.sharing == Sharing::Own);
            if made_for.unit != endpoint.unit || own && made_for != endpoint {
                return Err(BackendError::Incompatible);
            }
        }
        self.history.push((endpoint, *binding));
        if *binding == Binding::Abort {
            self.bindings.remove(&endpoint);
        } else {
            self.bindings.insert(endpoint, *binding);
        }
        Ok(())
    }

    fn invalidate_stage_one(
        &mut self,
        parent: TableId,
        what: &mut dyn Iterator<Item = StageOneInvalidation>,
    ) -> Result<(), Partial> {
        for (done, what) in what.enumerate() {
            take(&mut self.stage_one_left, BackendError::Timeout)
                .and_then(|()| self.table(parent).map(|_| ()))
                .map_err(|because| Partial { done, because })?;
            self.counts.stage_one += 1;
            self.stage_one.push(what);
        }
        Ok(())
    }

    fn set_dirty_tracking(
        &mut self,
        table: TableId,
        tracking: DirtyTracking,
    ) -> Result<(), BackendError> {
        self.table(table)?.track(tracking);
        Ok(())
    }

    fn read_dirty(
        &mut self,
        table: TableId,
        span: Span<Iova>,
        read: DirtyRead,
        report: &mut dyn FnMut(Span<Iova>),
    ) -> Result<(), BackendError> {
        self.table(table)?.read_dirty(span, read, report);
        Ok(())
    }
}

#[expect(clippy::panic, reason = "the core broke the contract of Backend::map")]
fn unreachable_run(run: &Run) -> u64 {
    panic!("a run that no leaf fits: {run:?}")
}

/// Whether an access is within what a leaf allows; for models.
impl Dma {
    /// Whether `permissions` allow it.
    #[must_use]
    pub fn allowed_by(self, permissions: Permissions) -> bool {
        match self {
            Self::Read => permissions.allows_read(),
            Self::Write => permissions.allows_write(),
        }
    }
}
