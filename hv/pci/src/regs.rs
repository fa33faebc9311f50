//! Offsets and bits of the configuration header. Bits only.

pub(crate) const VENDOR: u16 = 0x00;
pub(crate) const COMMAND: u16 = 0x04;
pub(crate) const STATUS: u16 = 0x06;
pub(crate) const REVISION: u16 = 0x08;
pub(crate) const HEADER_TYPE: u16 = 0x0e;
pub(crate) const BAR0: u16 = 0x10;
pub(crate) const SUBSYSTEM: u16 = 0x2c;
pub(crate) const CAPABILITIES: u16 = 0x34;
pub(crate) const INTERRUPT_PIN: u16 = 0x3d;
pub(crate) const ROM_ENDPOINT: u16 = 0x30;
pub(crate) const ROM_BRIDGE: u16 = 0x38;

pub(crate) const COMMAND_IO: u16 = 1 << 0;
pub(crate) const COMMAND_MEMORY: u16 = 1 << 1;
pub(crate) const COMMAND_MASTER: u16 = 1 << 2;
pub(crate) const COMMAND_INTX_OFF: u16 = 1 << 10;
pub(crate) const COMMAND_DECODE: u16 = COMMAND_IO | COMMAND_MEMORY;
/// The function raises its interrupt pin, or would if it might.
pub(crate) const STATUS_INTX: u16 = 1 << 3;
pub(crate) const STATUS_CAPABILITIES: u16 = 1 << 4;

pub(crate) const HEADER_MULTIFUNCTION: u8 = 1 << 7;

/// Primary, secondary, subordinate bus number and secondary latency timer, a byte each.
pub(crate) const BUS_NUMBERS: u16 = 0x18;
pub(crate) const IO_BASE: u16 = 0x1c;
pub(crate) const MEMORY_BASE: u16 = 0x20;
pub(crate) const PREFETCH_BASE: u16 = 0x24;
pub(crate) const PREFETCH_BASE_UPPER: u16 = 0x28;
pub(crate) const PREFETCH_LIMIT_UPPER: u16 = 0x2c;
pub(crate) const IO_UPPER: u16 = 0x30;
pub(crate) const BRIDGE_CONTROL: u16 = 0x3e;
pub(crate) const BRIDGE_RESET: u16 = 1 << 6;

pub(crate) const BAR_IO: u32 = 1 << 0;
pub(crate) const BAR_TYPE: u32 = 3 << 1;
pub(crate) const BAR_TYPE_32: u32 = 0 << 1;
pub(crate) const BAR_TYPE_64: u32 = 2 << 1;
pub(crate) const BAR_PREFETCHABLE: u32 = 1 << 3;
pub(crate) const BAR_MEMORY_MASK: u32 = !0xf;
pub(crate) const BAR_IO_MASK: u32 = !0x3;
pub(crate) const ROM_MASK: u32 = !0x7ff;

pub(crate) const CAP_PM: u8 = 0x01;
pub(crate) const CAP_MSI: u8 = 0x05;
pub(crate) const CAP_VENDOR: u8 = 0x09;
pub(crate) const CAP_EXPRESS: u8 = 0x10;
pub(crate) const CAP_MSIX: u8 = 0x11;
pub(crate) const CAP_AF: u8 = 0x13;

pub(crate) const EXT_ACS: u16 = 0x000d;
pub(crate) const EXT_ATS: u16 = 0x000f;
pub(crate) const EXT_SRIOV: u16 = 0x0010;
pub(crate) const EXT_PRI: u16 = 0x0013;
pub(crate) const EXT_RESIZABLE: u16 = 0x0015;
pub(crate) const EXT_PASID: u16 = 0x001b;
