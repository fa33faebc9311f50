//! Host bridges without a hypervisor below: their tables are in our memory (IODA).
//!
//! A host bridge tells partitionable endpoints (PEs) apart, and has two windows for each: bus addresses
//! with bit 59 clear go to the first, the others to the second. What a window translates is one entry
//! of a table of the bridge's own ([`Tve`]), which names the top table in memory. The bridge caches what
//! it read, and forgets it when told to ([`Ioda::kill`]): after *every* change, since it may also know
//! that an entry was empty.

mod backend;
mod table;
mod tve;

use alloc::vec::Vec;

use hal::{FrameAllocator, SharedMemory};
use iommu::{Endpoint, PageSizes, TableId, UnitId, Window};
use types::{Iova, PageSize, PeNumber, Span};

use crate::Tce;
use table::Tree;
pub use tve::{Shape, Tve};

/// Which of the two windows of a PE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Half {
    /// Bus addresses with bit 59 clear.
    Low,
    /// Bus addresses with bit 59 set.
    High,
}

impl Half {
    /// How many bits of a bus address are below the one that chooses.
    pub const BITS: u8 = 59;

    /// Both.
    pub const BOTH: [Self; 2] = [Self::Low, Self::High];

    /// The first bus address.
    #[must_use]
    pub const fn base(self) -> u64 {
        match self {
            Self::Low => 0,
            Self::High => 1 << Self::BITS,
        }
    }
}

/// The host bridge, or its firmware, did not do what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the host bridge answers {0}")]
pub struct BridgeError(pub i64);

/// What is asked of host bridges. On powernv OPAL does it: `OPAL_PCI_MAP_PE_DMA_WINDOW` with the parts
/// of the [`Tve`] and a table size of zero for an invalid one, and `OPAL_PCI_TCE_KILL`.
#[auto_impl::auto_impl(&)]
pub trait Ioda {
    /// Makes a window of a PE what `tve` says.
    ///
    /// # Errors
    /// [`BridgeError`]; the window is then as before.
    fn set_window(
        &self,
        unit: UnitId,
        pe: PeNumber,
        half: Half,
        tve: Tve,
    ) -> Result<(), BridgeError>;

    /// Drops every cached translation of a PE, and returns when no access under one is left.
    ///
    /// # Errors
    /// [`BridgeError`]; what is cached is then not known.
    fn kill(&self, unit: UnitId, pe: PeNumber) -> Result<(), BridgeError>;
}

/// A host bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// How many PEs it tells apart.
    pub pes: u16,
    /// The page sizes it has.
    pub pages: PageSizes,
    /// The page size of the low window that a table starts with.
    pub default_page: PageSize,
    /// The size of that window in bytes: a power of two.
    pub default_bytes: u64,
    /// Log2 of the most entries of a window.
    pub entries: u8,
}

/// A PE that could not be put into abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclosed {
    /// The bridge did not do it.
    #[error("PE {pe} of unit {unit} cannot be closed: {error}")]
    Bridge {
        /// The host bridge.
        unit: UnitId,
        /// The PE.
        pe: PeNumber,
        /// What it answered.
        error: BridgeError,
    },
    /// The default window is no window.
    #[error("the default window of unit {unit} is impossible")]
    Impossible {
        /// The host bridge.
        unit: UnitId,
    },
}

#[derive(Debug)]
struct TreeWindow {
    half: Half,
    bytes: u64,
    page: PageSize,
    tree: Tree,
}

impl TreeWindow {
    fn span(&self) -> Option<Span<Iova>> {
        Span::from_len(Iova::truncated(self.half.base()), self.bytes)
    }

    fn tve(&self) -> Tve {
        self.tree.tve(self.page).unwrap_or(Tve::INVALID)
    }

    fn shown(&self) -> Option<Window> {
        Some(Window {
            span: self.span()?,
            pages: PageSizes::new(&[self.page]),
        })
    }

    /// The entries of a range: the first, and how many.
    fn range(&self, span: Span<Iova>) -> Option<(u64, u64)> {
        let bytes = span.len()?;
        let into = span.start().bits().checked_sub(self.half.base())?;
        if !self.span()?.contains_span(span) || (into | bytes) & self.page.mask() != 0 {
            return None;
        }
        Some((into >> self.page.shift(), bytes >> self.page.shift()))
    }
}

#[derive(Debug)]
struct Table {
    unit: UnitId,
    /// Ordered by half; room for both from the start.
    windows: Vec<TreeWindow>,
    shown: Vec<Window>,
    /// Entries were cleared, and what is cached of them has not been dropped yet.
    stale: bool,
}

#[derive(Clone, Copy, Debug)]
struct Bound {
    endpoint: Endpoint,
    table: TableId,
}

/// Host bridges with tables in memory, behind the IOMMU core. Unit n is the n-th of them, a source is
/// a PE.
#[derive(Debug)]
pub struct IodaBackend<B, P, F> {
    bridge: B,
    units: Vec<Bridge>,
    tables: Vec<Option<Table>>,
    bound: Vec<Bound>,
    memory: P,
    frames: F,
    /// A bridge did not confirm that it forgot, when nothing else could be done about it.
    unsure: bool,
}

impl<B: Ioda, P: SharedMemory, F: FrameAllocator> IodaBackend<B, P, F> {
    /// The host bridges, every PE of which is in abort when this returns: firmware, or whoever had the
    /// machine before, may have left a window without translation.
    ///
    /// # Errors
    /// [`Unclosed`]: the devices of that PE may still reach memory.
    pub fn new(bridge: B, units: Vec<Bridge>, memory: P, frames: F) -> Result<Self, Unclosed> {
        for (number, described) in (0..).zip(&units) {
            let unit = UnitId::new(number);
            if !backend::can_be(described, described.default_page, described.default_bytes) {
                return Err(Unclosed::Impossible { unit });
            }
            for pe in 0..described.pes {
                let Ok(pe) = PeNumber::new(pe) else { continue };
                let failed = |error| Unclosed::Bridge { unit, pe, error };
                for half in Half::BOTH {
                    bridge
                        .set_window(unit, pe, half, Tve::INVALID)
                        .map_err(failed)?;
                }
                bridge.kill(unit, pe).map_err(failed)?;
            }
        }
        Ok(Self {
            bridge,
            units,
            tables: Vec::new(),
            bound: Vec::new(),
            memory,
            frames,
            unsure: false,
        })
    }

    /// Whether every bridge confirmed everything. When not, memory that a device could reach must never
    /// get another owner.
    pub fn is_sure(&self) -> bool {
        !self.unsure
    }

    /// The entry of a table at an address, as it is in memory.
    pub fn entry(&self, table: TableId, at: Iova) -> Option<Tce> {
        let table = self.table(table)?;
        let mut windows = table.windows.iter();
        let window = windows.find(|w| w.span().is_some_and(|span| span.contains(at)))?;
        let into = at.bits().checked_sub(window.half.base())?;
        let index = into >> window.page.shift();
        window.tree.get(&self.memory, index).ok()
    }

    fn unit(&self, unit: UnitId) -> Option<&Bridge> {
        self.units.get(usize::try_from(unit.bits()).ok()?)
    }

    fn table(&self, table: TableId) -> Option<&Table> {
        let at = usize::try_from(table.bits()).ok()?;
        self.tables.get(at)?.as_ref()
    }
}
