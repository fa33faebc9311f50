//! A function as enumeration found it.

use alloc::vec::Vec;
use core::fmt;

use types::{Bdf, Pa};

use crate::capability::Capabilities;
use crate::defect::Defect;

/// A class code: what a function does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    /// The base class.
    pub base: u8,
    /// The sub-class.
    pub sub: u8,
    /// The programming interface.
    pub interface: u8,
}

impl Class {
    /// A word for people, `None` when there is none at hand.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match (self.base, self.sub, self.interface) {
            (0x01, 0x06, _) => "ahci",
            (0x01, 0x08, 0x02) => "nvme",
            (0x01, _, _) => "storage",
            (0x02, 0x00, _) => "ethernet",
            (0x02, _, _) => "network",
            (0x03, _, _) => "display",
            (0x04, _, _) => "multimedia",
            (0x05, _, _) => "memory",
            (0x06, 0x00, _) => "host-bridge",
            (0x06, 0x04, _) => "bridge",
            (0x07, 0x00, _) => "serial",
            (0x0c, 0x03, _) => "usb",
            _ => return None,
        })
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}.{:02x}.{:02x}",
            self.base, self.sub, self.interface
        )
    }
}

/// What a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory below 4 GiB without read side effects.
    Prefetchable32,
    /// Memory anywhere.
    Memory64,
    /// Memory anywhere, without read side effects.
    Prefetchable64,
}

impl BarKind {
    /// Whether it is I/O rather than memory.
    #[must_use]
    pub const fn is_io(self) -> bool {
        matches!(self, Self::Io)
    }

    /// Whether it takes two BAR registers.
    #[must_use]
    pub const fn is_64_bit(self) -> bool {
        matches!(self, Self::Memory64 | Self::Prefetchable64)
    }

    /// Whether reads of it have no side effects.
    #[must_use]
    pub const fn is_prefetchable(self) -> bool {
        matches!(self, Self::Prefetchable32 | Self::Prefetchable64)
    }
}

impl fmt::Display for BarKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Io => "io",
            Self::Memory32 => "mem32",
            Self::Prefetchable32 => "pref32",
            Self::Memory64 => "mem64",
            Self::Prefetchable64 => "pref64",
        })
    }
}

/// Where a BAR is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarPlace {
    /// Its bus address.
    pub bus: u64,
    /// Where the CPU sees it.
    pub cpu: Pa,
}

/// One base address register that decodes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its number, 0 to 5; a 64-bit BAR also takes the next one.
    pub index: u8,
    /// What it decodes.
    pub kind: BarKind,
    /// Bytes, a power of two.
    pub size: u64,
    /// The bus address it held when it was found.
    pub found: u64,
    /// Where placement put it; `None` until then, and when it did not fit.
    pub place: Option<BarPlace>,
}

/// Bus numbers of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgeBuses {
    /// The bus right below.
    pub secondary: u8,
    /// The highest bus anywhere below.
    pub subordinate: u8,
}

/// How wide the addresses of a bridge's optional window are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowWidth {
    /// The bridge has no such window.
    None,
    /// I/O: 16 bits. Prefetchable memory: 32 bits.
    Narrow,
    /// I/O: 32 bits. Prefetchable memory: 64 bits.
    Wide,
}

/// An address range a bridge forwards, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgeWindow {
    /// The first bus address.
    pub first: u64,
    /// The last bus address, included.
    pub last: u64,
}

/// The windows of a bridge that are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BridgeWindows {
    /// I/O ports, in steps of 4 KiB.
    pub io: Option<BridgeWindow>,
    /// Memory below 4 GiB, in steps of 1 MiB.
    pub memory: Option<BridgeWindow>,
    /// Prefetchable memory, in steps of 1 MiB.
    pub prefetchable: Option<BridgeWindow>,
}

/// What only a PCI-to-PCI bridge has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// The buses below; `None` when nothing below was looked at.
    pub buses: Option<BridgeBuses>,
    /// Its I/O window.
    pub io: WindowWidth,
    /// Its prefetchable memory window.
    pub prefetchable: WindowWidth,
    /// What it forwards: as found, then as placed.
    pub windows: BridgeWindows,
}

/// The layout of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Type 0.
    Endpoint,
    /// Type 1.
    Bridge(Bridge),
    /// Any other type; nothing beyond the common part was read.
    Unknown(u8),
}

/// Whether the function was allowed to master the bus when it was found. It no longer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundMastering {
    /// Mastering was off.
    Off,
    /// Mastering was on; enumeration switched it off.
    On,
}

/// Something whoever ran before us left switched on. Enumeration switched it off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOn {
    /// MSI.
    Msi,
    /// MSI-X.
    MsiX,
    /// Address translation services: the device would use addresses it was given.
    Ats,
    /// Page requests.
    Pri,
    /// Process address spaces.
    Pasid,
    /// Virtual functions. They master the bus by themselves and do not show up in a scan.
    VirtualFunctions,
}

impl fmt::Display for LeftOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Msi => "MSI",
            Self::MsiX => "MSI-X",
            Self::Ats => "ATS",
            Self::Pri => "PRI",
            Self::Pasid => "PASID",
            Self::VirtualFunctions => "virtual functions",
        })
    }
}

/// One PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub bdf: Bdf,
    /// The bridge right above; `None` on a root bus.
    pub parent: Option<Bdf>,
    /// Who made it.
    pub vendor: u16,
    /// Which of the maker's devices it is.
    pub device: u16,
    /// The device's revision.
    pub revision: u8,
    /// Subsystem vendor and device; only endpoints have them.
    pub subsystem: Option<(u16, u16)>,
    /// What it does.
    pub class: Class,
    /// The header's layout.
    pub header: Header,
    /// BARs that decode something, in order of their number.
    pub bars: Vec<Bar>,
    /// Bytes of the expansion ROM, a power of two. The ROM is switched off and never placed.
    pub rom: Option<u64>,
    /// Capabilities.
    pub capabilities: Capabilities,
    /// The interrupt pin, 1 (INTA) to 4 (INTD).
    pub interrupt_pin: Option<u8>,
    /// Bus mastering as it was found.
    pub found_mastering: FoundMastering,
    /// What else was found switched on.
    pub left_on: Vec<LeftOn>,
    /// What it says that cannot be true.
    pub defects: Vec<Defect>,
}

impl Function {
    /// The bridge part of the header.
    #[must_use]
    pub fn bridge(&self) -> Option<&Bridge> {
        match &self.header {
            Header::Bridge(bridge) => Some(bridge),
            _ => None,
        }
    }

    pub(crate) fn bridge_mut(&mut self) -> Option<&mut Bridge> {
        match &mut self.header {
            Header::Bridge(bridge) => Some(bridge),
            _ => None,
        }
    }

    /// The BAR with this number.
    #[must_use]
    pub fn bar(&self, index: u8) -> Option<&Bar> {
        self.bars.iter().find(|bar| bar.index == index)
    }
}
