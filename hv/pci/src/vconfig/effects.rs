//! What a guest's write asks of the hypervisor.

use bitflags::bitflags;

bitflags! {
    /// What a write changed. The new state is in the
    /// [`VirtualFunction`](crate::vconfig::VirtualFunction).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Effects: u8 {
        /// Where memory BARs appear, or whether.
        const MAPPING = 1 << 0;
        /// Whether the device may master the bus.
        const MASTERING = 1 << 1;
        /// Whether the device may raise its interrupt pin.
        const INTX = 1 << 2;
        /// The MSI capability.
        const MSI = 1 << 3;
        /// The MSI-X capability.
        const MSIX = 1 << 4;
        /// The guest asks for a function-level reset. The device is to be stopped, reset, and
        /// [`VirtualFunction::reset`](crate::vconfig::VirtualFunction::reset) called.
        const RESET = 1 << 5;
    }
}

/// The MSI capability as the guest wrote it. The address is the guest's, to be judged and
/// translated, never to be given to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiState {
    /// Whether MSI is on: enabled, in D0, with bus mastering.
    pub enabled: bool,
    /// Vectors allocated: 1 to as many as the device asks for.
    pub vectors: u8,
    /// The message address.
    pub address: u64,
    /// The message data of vector 0.
    pub data: u16,
    /// Vectors that are masked, one bit each.
    pub masked: u32,
}

/// The MSI-X capability as the guest wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixState {
    /// Whether MSI-X is on.
    pub enabled: bool,
    /// Whether all vectors are masked at once.
    pub masked: bool,
}
