//! What can be wrong with the facts handed to this crate.

use types::Bdf;

use crate::host::Window;

/// A description of a host bridge that makes no sense, or a device that does not do what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The last bus is below the first.
    #[error("bus range {first:02x}-{last:02x} is empty")]
    EmptyBusRange {
        /// The first bus.
        first: u8,
        /// The last bus.
        last: u8,
    },
    /// A window is empty, or leaves the bus's or the CPU's address space.
    #[error("window at bus address {:#x}, {:#x} bytes, is empty or wraps", .window.bus, .window.size)]
    BadWindow {
        /// The window.
        window: Window,
    },
    /// Two windows of the same space share bus addresses.
    #[error("windows at bus addresses {bus:#x} and {other:#x} overlap")]
    WindowsOverlap {
        /// Where one starts.
        bus: u64,
        /// Where the other starts.
        other: u64,
    },
    /// Nothing was found there when the bus was enumerated.
    #[error("no function at {0}")]
    NotFound(Bdf),
    /// A register does not take the value it was given.
    #[error("{bdf} does not take what is written at {offset:#x}")]
    NotTaken {
        /// The function.
        bdf: Bdf,
        /// The register.
        offset: u16,
    },
    /// A message has more bits than the device's MSI capability.
    #[error("{bdf} cannot send a message of that width")]
    TooWide {
        /// The function.
        bdf: Bdf,
    },
    /// There is no such reset.
    #[error("{0} cannot be reset that way")]
    NoReset(Bdf),
    /// A function is not there any more after a reset.
    #[error("{0} does not answer after its reset")]
    DoesNotAnswer(Bdf),
}
