//! Where things are: the guest platform of `hv/firmware`, and of QEMU's `virt`.

/// The interrupt distributor.
pub const GICD: usize = 0x0800_0000;
/// The ITS; its doorbell is at [`DOORBELL`].
pub const ITS: usize = 0x0808_0000;
/// `GITS_TRANSLATER`.
pub const DOORBELL: usize = ITS + 0x1_0040;
/// The first CPU's redistributor.
pub const GICR: usize = 0x080a_0000;
/// Bytes from one redistributor to the next.
pub const GICR_STRIDE: usize = 0x2_0000;
/// The PL011.
pub const UART: usize = 0x0900_0000;
/// The PL031.
pub const RTC: usize = 0x0901_0000;
/// The SMMU, where there is one; its second page is 64 KiB further on.
pub const SMMU: usize = 0x0905_0000;
/// The PCI host's window below 4 GiB.
pub const PCI_WINDOW: usize = 0x1000_0000;
/// Its length in bytes.
pub const PCI_WINDOW_BYTES: usize = 0x2eff_0000;
/// Configuration space: 1 MiB a bus.
pub const ECAM: usize = 0x40_1000_0000;
/// The PCI host's window above 4 GiB.
pub const PCI_WINDOW64: usize = 0x80_0000_0000;
/// Memory starts here.
pub const RAM: usize = 0x4000_0000;
/// The PL011's interrupt: SPI 1.
pub const UART_INTID: u32 = 33;
/// The virtual timer's interrupt.
pub const VIRTUAL_TIMER: u32 = 27;
/// The SMMU's interrupt for events: SPI 74, an edge.
pub const SMMU_EVENT: u32 = 106;
/// The SMMU's interrupt for global errors: SPI 77, an edge.
pub const SMMU_GERROR: u32 = 109;
