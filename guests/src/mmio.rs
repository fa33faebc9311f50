//! Device registers by address.

/// Reads 32 bits.
pub fn read32(address: usize) -> u32 {
    // SAFETY: a guest may read anywhere: what is not memory is a device's or the hypervisor's
    // matter. Volatile, so it is done once and as written.
    unsafe { core::ptr::with_exposed_provenance::<u32>(address).read_volatile() }
}

/// Writes 32 bits to a device.
pub fn write32(address: usize, value: u32) {
    // SAFETY: callers name device registers only, and no Rust object lives there.
    unsafe { core::ptr::with_exposed_provenance_mut::<u32>(address).write_volatile(value) };
}

/// Writes 8 bits to a device.
pub fn write8(address: usize, value: u8) {
    // SAFETY: as for `write32`.
    unsafe { core::ptr::with_exposed_provenance_mut::<u8>(address).write_volatile(value) };
}
