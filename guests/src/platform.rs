//! Where things are: the guest platform of `hv/firmware`, and of QEMU's `virt`.

/// The interrupt distributor.
pub const GICD: usize = 0x0800_0000;
/// The first CPU's redistributor.
pub const GICR: usize = 0x080a_0000;
/// Bytes from one redistributor to the next.
pub const GICR_STRIDE: usize = 0x2_0000;
/// The PL011.
pub const UART: usize = 0x0900_0000;
/// The PL031.
pub const RTC: usize = 0x0901_0000;
/// Memory starts here.
pub const RAM: usize = 0x4000_0000;
/// The PL011's interrupt: SPI 1.
pub const UART_INTID: u32 = 33;
/// The virtual timer's interrupt.
pub const VIRTUAL_TIMER: u32 = 27;
