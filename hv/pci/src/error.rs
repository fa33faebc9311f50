//! What can be wrong with the facts handed to this crate.

use crate::host::Window;

/// A host bridge's description that makes no sense.
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
}
