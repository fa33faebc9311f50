//! The host bridges of a PAPR platform as the hardware of the IOMMU core.
//!
//! A host bridge is a unit with one endpoint, source 0: all devices behind it share its windows, so
//! they are described to the core with the *alias* 0 and no source of their own. The platform has no
//! switch between tables; its windows hold the entries of the table that is bound, and nothing in the
//! state of abort. A table that is not bound exists here only.
//!
//! Switching from one table to another with the same windows exchanges entry after entry, each in one
//! step: at every address a device finds the old binding or the new one. Between tables whose windows
//! differ there is no such way ([`BackendError::Incompatible`]); it leads over abort.

mod audit;
mod backend;
mod hardware;

use alloc::vec::Vec;

pub use audit::{AuditPlace, AuditScope};

use iommu::{BackendError, PageSizes, TableId, UnitId, Window};
use types::{Iova, Liobn, PageSize, Span};

use crate::platform::{HcallError, Multi, Platform};
use crate::{Entries, OutOfMemory, Tce};
use hardware::{Live, MOST_WINDOWS, Range, Shape, Unit, for_each_chunk, refusal};

/// What a platform can do about windows (DDW).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ddw {
    /// There is the default window and no other.
    None,
    /// Windows can be created and removed (`ibm,ddw-applicable`).
    Create,
    /// And put back to the default window (`ibm,ddw-extensions`).
    CreateAndReset,
}

/// A host bridge, as the platform's device tree describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostBridge {
    /// Its unique id.
    pub buid: u64,
    /// The configuration address that names it to the services for windows.
    pub config_address: u32,
    /// The table of the default window (`ibm,dma-window`).
    pub liobn: Liobn,
    /// The default window's first bus address.
    pub base: Iova,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its page size: 4 KiB.
    pub page: PageSize,
    /// Whether there can be others.
    pub ddw: Ddw,
    /// Whether a call takes several entries.
    pub multi: Multi,
    /// Log2 of the most entries of a window. The platform's own word for it is not to be trusted:
    /// QEMU says more than its 32-bit count holds, and ends its life when asked for it. At most
    /// [`HostBridge::MOST_ENTRIES`] is used.
    pub entries: u8,
}

impl HostBridge {
    /// What [`HostBridge::entries`] can be at most: 16 GiB of platform memory for a table.
    pub const MOST_ENTRIES: u8 = 31;
    /// What it sensibly is: 64 GiB of guest memory in pages of 4 KiB, 128 MiB for a table.
    pub const SENSIBLE_ENTRIES: u8 = 24;
}

/// A host bridge whose windows could not be emptied. Its devices must not master the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A call failed.
    #[error("unit {unit}: the window at {base} cannot be emptied: {error}")]
    Call {
        /// The host bridge.
        unit: UnitId,
        /// The window.
        base: Iova,
        /// What the platform answered.
        error: HcallError,
    },
    /// An entry is still there after it was cleared.
    #[error("unit {unit}: the window at {base} is not empty after it was emptied")]
    StillOpen {
        /// The host bridge.
        unit: UnitId,
        /// The window.
        base: Iova,
    },
    /// The default window is no window.
    #[error("unit {unit}: the default window is impossible")]
    Impossible {
        /// The host bridge.
        unit: UnitId,
    },
    /// There is no memory to describe it.
    #[error("no memory")]
    OutOfMemory,
}

impl From<OutOfMemory> for Broken {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// An entry that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discrepancy {
    /// The table.
    pub liobn: Liobn,
    /// The bus address.
    pub at: Iova,
    /// What was written.
    pub expected: Tce,
    /// What the platform has, or that it does not say.
    pub found: Result<Tce, HcallError>,
}

/// A window of a table.
#[derive(Debug)]
struct TableWindow {
    shape: Shape,
    entries: Entries,
}

impl TableWindow {
    fn new(shape: Shape) -> Result<Self, OutOfMemory> {
        Ok(Self {
            shape,
            entries: Entries::new(shape.entries())?,
        })
    }

    /// The entries of a range of addresses; `None` unless it is whole pages of the window.
    fn range(&self, span: Span<Iova>) -> Option<Range> {
        let bytes = span.len()?;
        let into = span.start().bits().checked_sub(self.shape.base.bits())?;
        let mask = self.shape.page.mask();
        if !self.shape.span()?.contains_span(span) || (into | bytes) & mask != 0 {
            return None;
        }
        let shift = self.shape.page.shift();
        Some(Range {
            first: into >> shift,
            count: bytes >> shift,
        })
    }
}

#[derive(Debug)]
struct Table {
    unit: UnitId,
    /// Ordered by base; room for [`MOST_WINDOWS`] from the start.
    windows: Vec<TableWindow>,
    /// The same, as the core sees them.
    shown: Vec<Window>,
}

fn shown(shape: Shape) -> Option<Window> {
    Some(Window {
        span: shape.span()?,
        pages: PageSizes::new(&[shape.page]),
    })
}

impl Table {
    fn new(unit: UnitId, default: TableWindow) -> Result<Self, OutOfMemory> {
        let mut table = Self {
            unit,
            windows: Vec::new(),
            shown: Vec::new(),
        };
        let room = table.windows.try_reserve_exact(MOST_WINDOWS);
        room.and(table.shown.try_reserve_exact(MOST_WINDOWS))
            .map_err(|_| OutOfMemory)?;
        table.add(default);
        Ok(table)
    }

    fn add(&mut self, window: TableWindow) {
        let Some(shown) = shown(window.shape) else {
            return;
        };
        let base = window.shape.base;
        let at = self
            .windows
            .partition_point(|other| other.shape.base < base);
        self.windows.insert(at, window);
        self.shown.insert(at, shown);
    }

    fn take(&mut self, base: Iova) -> Option<TableWindow> {
        let at = self.windows.iter().position(|w| w.shape.base == base)?;
        self.shown.remove(at);
        Some(self.windows.remove(at))
    }

    fn shapes(&self) -> Result<Vec<Shape>, OutOfMemory> {
        let mut shapes = Vec::new();
        shapes
            .try_reserve_exact(self.windows.len())
            .map_err(|_| OutOfMemory)?;
        shapes.extend(self.windows.iter().map(|window| window.shape));
        Ok(shapes)
    }

    /// Makes the windows those of the platform: what is new there starts empty, from `spare`.
    fn follow(&mut self, unit: &Unit, spare: Option<TableWindow>) {
        let live = |shape: Shape| unit.live.iter().any(|live| live.shape == shape);
        let mut at = 0;
        while let Some(shape) = self.windows.get(at).map(|window| window.shape) {
            if live(shape) {
                at = at.saturating_add(1);
            } else {
                self.take(shape.base);
            }
        }
        if let Some(spare) = spare
            && live(spare.shape)
            && self
                .windows
                .iter()
                .all(|window| window.shape != spare.shape)
        {
            self.add(spare);
        }
    }

    fn locate(&self, span: Span<Iova>) -> Option<(usize, Range)> {
        let mut windows = self.windows.iter().enumerate();
        windows.find_map(|(at, window)| Some((at, window.range(span)?)))
    }
}

/// All host bridges of a PAPR platform, behind the IOMMU core. Unit n is the n-th of them.
#[derive(Debug)]
pub struct PaprBackend<P> {
    platform: P,
    units: Vec<Unit>,
    tables: Vec<Option<Table>>,
}

impl<P: Platform> PaprBackend<P> {
    /// The host bridges of a platform. Their windows are the default ones, and empty, when this
    /// returns: whoever had the machine before may have left both.
    ///
    /// # Errors
    /// [`Broken`]: devices behind the named host bridge may still reach memory.
    pub fn new(platform: P, bridges: &[HostBridge]) -> Result<Self, Broken> {
        let mut units = Vec::new();
        units
            .try_reserve_exact(bridges.len())
            .map_err(|_| OutOfMemory)?;
        for (number, bridge) in (0..).zip(bridges) {
            let unit = UnitId::new(number);
            units.push(Self::close(&platform, unit, *bridge)?);
        }
        Ok(Self {
            platform,
            units,
            tables: Vec::new(),
        })
    }

    fn close(platform: &P, id: UnitId, bridge: HostBridge) -> Result<Unit, Broken> {
        let mut live = Vec::new();
        live.try_reserve_exact(MOST_WINDOWS)
            .map_err(|_| OutOfMemory)?;
        let mut unit = Unit {
            bridge,
            live,
            bound: None,
        };
        let shape = unit.default_shape();
        let whole = shape.span().filter(|span| span.is_aligned(shape.page));
        if whole.is_none() {
            return Err(Broken::Impossible { unit: id });
        }
        if bridge.ddw == Ddw::CreateAndReset {
            // A refusal leaves windows that are not known of: the default one is looked at below, and
            // a table of any other could not be named.
            let _ = platform.reset_windows(bridge.buid, bridge.config_address);
        }
        let window = Live {
            liobn: bridge.liobn,
            shape,
            stuck: None,
        };
        let all = Range {
            first: 0,
            count: shape.entries(),
        };
        let base = shape.base;
        let failed = |error| Broken::Call {
            unit: id,
            base,
            error,
        };
        window.wipe(platform, bridge.multi, all).map_err(failed)?;
        if !window.looks_empty(platform).map_err(failed)? {
            return Err(Broken::StillOpen { unit: id, base });
        }
        unit.live.push(window);
        Ok(unit)
    }

    /// The platform.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// Whether the platform did everything it was told. When not, memory that a device could reach
    /// must never get another owner: an entry that should be gone may be there.
    pub fn is_sure(&self) -> bool {
        self.units.iter().all(Unit::is_sure)
    }

    /// The platform's name of the window at `base` of a table, where the platform has it now.
    pub fn liobn(&self, table: TableId, base: Iova) -> Option<Liobn> {
        let table = self.table(table)?;
        let unit = self.unit(table.unit)?;
        unit.find(base).map(|live| live.liobn)
    }

    /// The entry of a table at an address, as it is known here.
    pub fn entry(&self, table: TableId, at: Iova) -> Option<Tce> {
        let table = self.table(table)?;
        let mut windows = table.windows.iter();
        let window = windows.find(|w| w.shape.span().is_some_and(|span| span.contains(at)))?;
        let into = at.bits().checked_sub(window.shape.base.bits())?;
        Some(window.entries.get(into >> window.shape.page.shift()))
    }

    fn unit(&self, unit: UnitId) -> Option<&Unit> {
        self.units.get(usize::try_from(unit.bits()).ok()?)
    }

    fn table(&self, table: TableId) -> Option<&Table> {
        let at = usize::try_from(table.bits()).ok()?;
        self.tables.get(at)?.as_ref()
    }

    /// A table with its host bridge and the platform.
    fn parts(&mut self, table: TableId) -> Option<(&P, &mut Unit, &mut Table, bool)> {
        let at = usize::try_from(table.bits()).ok()?;
        let object = self.tables.get_mut(at)?.as_mut()?;
        let unit = usize::try_from(object.unit.bits()).ok()?;
        let unit = self.units.get_mut(unit)?;
        let bound = unit.bound == Some(table);
        Some((&self.platform, unit, object, bound))
    }

    /// Makes the platform's windows those of a table, so that they can be changed for it.
    fn settle(&mut self, table: TableId) -> Result<(), BackendError> {
        let (platform, unit, object, bound) = self.parts(table).ok_or(BackendError::Unsupported)?;
        if bound {
            return Ok(());
        }
        if unit.bound.is_some() {
            return Err(BackendError::Incompatible);
        }
        let shapes = object.shapes().map_err(|_| BackendError::OutOfMemory)?;
        unit.reshape(platform, &shapes)
    }

    #[cfg(any(test, feature = "fake"))]
    /// Lets that many more allocations for entries of a table pass; `None` heals.
    pub fn fail_entries_after(&mut self, table: TableId, chunks: Option<u64>) {
        if let Some((_, _, table, _)) = self.parts(table) {
            for window in &mut table.windows {
                window.entries.fail_after(chunks);
            }
        }
    }
}
