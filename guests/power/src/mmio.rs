//! Registers of devices, in real mode, in the order that QEMU's `edu` has them here: big-endian.

use core::arch::asm;

/// What was stored is seen by devices before what follows.
pub fn barrier() {
    // SAFETY: a barrier.
    unsafe { asm!("sync", options(nostack)) };
}

/// Reads a register.
pub fn read32(at: u64) -> u32 {
    let at = core::ptr::with_exposed_provenance::<u32>(at as usize);
    // SAFETY: a device's register, which is nobody's memory.
    let value = unsafe { at.read_volatile() };
    barrier();
    u32::from_be(value)
}

/// Reads a register, as it is, by an instruction whose target held `before`.
pub fn read32_over(at: u64, before: u64) -> u64 {
    let mut value = before;
    // SAFETY: a device's register, which is nobody's memory.
    unsafe { asm!("lwz {0}, 0({1})", inout(reg) value, in(reg_nonzero) at, options(nostack)) };
    barrier();
    value
}

/// Writes a register.
pub fn write32(at: u64, value: u32) {
    let at = core::ptr::with_exposed_provenance_mut::<u32>(at as usize);
    // SAFETY: as above.
    unsafe { at.write_volatile(value.to_be()) };
    barrier();
}

/// Writes a register.
pub fn write64(at: u64, value: u64) {
    let at = core::ptr::with_exposed_provenance_mut::<u64>(at as usize);
    // SAFETY: as above.
    unsafe { at.write_volatile(value.to_be()) };
    barrier();
}
