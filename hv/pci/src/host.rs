//! What the firmware's tables say of a host bridge, as plain data.

use alloc::vec::Vec;
use core::fmt;

use types::{Address, Pa};

use crate::Error;

/// Bus numbers `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusRange {
    first: u8,
    last: u8,
}

impl BusRange {
    /// All 256 buses.
    pub const ALL: Self = Self {
        first: 0,
        last: 255,
    };

    /// The buses `first` to `last`.
    ///
    /// # Errors
    /// [`Error::EmptyBusRange`] when `last` is below `first`.
    pub const fn new(first: u8, last: u8) -> Result<Self, Error> {
        if first <= last {
            Ok(Self { first, last })
        } else {
            Err(Error::EmptyBusRange { first, last })
        }
    }

    /// The first bus: the root bus of the host bridge.
    #[must_use]
    pub const fn first(self) -> u8 {
        self.first
    }

    /// The last bus, included.
    #[must_use]
    pub const fn last(self) -> u8 {
        self.last
    }

    /// How many buses, 1 to 256.
    #[must_use]
    pub fn count(self) -> u16 {
        u16::from(self.last.wrapping_sub(self.first)).wrapping_add(1)
    }

    /// Whether the bus is one of them.
    #[must_use]
    pub const fn contains(self, bus: u8) -> bool {
        self.first <= bus && bus <= self.last
    }
}

impl fmt::Display for BusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}-{:02x}", self.first, self.last)
    }
}

/// What goes through a window of a host bridge.
///
/// Whether memory is "32-bit" or "64-bit" follows from the window's bus addresses: what lies below
/// 4 GiB can be given to any BAR, what lies above only to a 64-bit one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowKind {
    /// I/O ports, which the CPU reaches as memory.
    Io,
    /// Memory for any BAR.
    Memory,
    /// Memory for prefetchable BARs only.
    Prefetchable,
}

/// A range of bus addresses that the host bridge decodes, and where the CPU sees it: one entry of
/// a host bridge's `ranges`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// What goes through it.
    pub kind: WindowKind,
    /// The first address as devices (BARs) see it.
    pub bus: u64,
    /// The first address as the CPU sees it.
    pub cpu: Pa,
    /// Length in bytes.
    pub size: u64,
}

impl Window {
    /// The last bus address, included; `None` for an empty window or one that wraps on either
    /// side.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        let more = self.size.checked_sub(1)?;
        self.cpu.checked_add(more)?;
        self.bus.checked_add(more)
    }

    /// Where the CPU sees `size` bytes at bus address `bus`; `None` when any of them is outside.
    #[must_use]
    pub fn to_cpu(&self, bus: u64, size: u64) -> Option<Pa> {
        let offset = bus.checked_sub(self.bus)?;
        let end = offset.checked_add(size)?;
        if end > self.size {
            return None;
        }
        self.cpu.checked_add(offset)
    }
}

/// One host bridge: a PCI segment of its own, or one PHB of a PAPR platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostBridge {
    /// The segment (PCI domain); it only names things in reports.
    pub segment: u16,
    /// Its buses; the first is the root bus.
    pub buses: BusRange,
    /// What it decodes towards its buses.
    pub windows: Vec<Window>,
}

impl HostBridge {
    /// Checks what placement relies on.
    ///
    /// # Errors
    /// [`Error::BadWindow`] for an empty or wrapping window, [`Error::WindowsOverlap`] when two of
    /// the same space share a bus address.
    pub fn check(&self) -> Result<(), Error> {
        let mut seen: Vec<(bool, u64, u64)> = Vec::new();
        for window in &self.windows {
            let last = window.last().ok_or(Error::BadWindow { window: *window })?;
            let io = window.kind == WindowKind::Io;
            for &(other_io, other_bus, other_last) in &seen {
                if io == other_io && window.bus <= other_last && other_bus <= last {
                    return Err(Error::WindowsOverlap {
                        bus: window.bus,
                        other: other_bus,
                    });
                }
            }
            seen.push((io, window.bus, last));
        }
        Ok(())
    }
}
