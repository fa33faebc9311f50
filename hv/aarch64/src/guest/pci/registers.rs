//! Registers in a device's BAR, which the hypervisor reads and writes at the width of one access.

use hal::Mmio;
use types::{Address, Pa, PageSize, Span};
use vdev::Width;

use crate::memory::Guarded;

/// A device's registers from an offset on, for what is in the middle of a page.
pub(super) struct Within {
    pub(super) registers: Guarded,
    pub(super) offset: usize,
}

impl Mmio for Within {
    fn read8(&self, offset: usize) -> u8 {
        self.registers.read8(self.offset + offset)
    }
    fn read16(&self, offset: usize) -> u16 {
        self.registers.read16(self.offset + offset)
    }
    fn read32(&self, offset: usize) -> u32 {
        self.registers.read32(self.offset + offset)
    }
    fn read64(&self, offset: usize) -> u64 {
        self.registers.read64(self.offset + offset)
    }
    fn write8(&self, offset: usize, value: u8) {
        self.registers.write8(self.offset + offset, value);
    }
    fn write16(&self, offset: usize, value: u16) {
        self.registers.write16(self.offset + offset, value);
    }
    fn write32(&self, offset: usize, value: u32) {
        self.registers.write32(self.offset + offset, value);
    }
    fn write64(&self, offset: usize, value: u64) {
        self.registers.write64(self.offset + offset, value);
    }
}

/// A register beside an MSI-X table: the device's own, at the width the guest has asked for.
fn register(pa: Pa, offset: u64) -> Option<(Guarded, usize)> {
    let page = pa.checked_add(offset & !PageSize::SIZE_4K.mask())?;
    let span = Span::from_len(page, PageSize::SIZE_4K.bytes())?;
    // SAFETY: a page of a BAR of a device that this VM has; it is mapped, and not of its MSI-X table
    // where this is used.
    let registers = unsafe { Guarded::new(span) };
    Some((
        registers,
        usize::try_from(offset & PageSize::SIZE_4K.mask()).ok()?,
    ))
}

pub(super) fn read_register(pa: Pa, offset: u64, width: Width) -> Option<u64> {
    let (registers, at) = register(pa, offset)?;
    if !at.is_multiple_of(width.bytes().into()) {
        return None;
    }
    Some(match width {
        Width::Byte => registers.read8(at).into(),
        Width::Half => registers.read16(at).into(),
        Width::Word => registers.read32(at).into(),
        Width::Double => registers.read64(at),
    })
}

pub(super) fn write_register(pa: Pa, offset: u64, width: Width, value: u64) -> Option<()> {
    let (registers, at) = register(pa, offset)?;
    if !at.is_multiple_of(width.bytes().into()) {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the width says what counts"
    )]
    match width {
        Width::Byte => registers.write8(at, value as u8),
        Width::Half => registers.write16(at, value as u16),
        Width::Word => registers.write32(at, value as u32),
        Width::Double => registers.write64(at, value),
    }
    Some(())
}
