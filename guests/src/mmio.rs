//! Device registers by address, and memory that no Rust object lives in.

macro_rules! accessors {
    ($($read:ident $write:ident $type:ty, $bits:literal);+ $(;)?) => {$(
        #[doc = concat!("Reads ", $bits, " bits.")]
        pub fn $read(address: usize) -> $type {
            // SAFETY: a guest may read anywhere: what is not memory is a device's or the
            // hypervisor's matter. Volatile, so it is done once and as written.
            unsafe { core::ptr::with_exposed_provenance::<$type>(address).read_volatile() }
        }

        #[doc = concat!("Writes ", $bits, " bits to a device, or to memory that is nobody's object.")]
        pub fn $write(address: usize, value: $type) {
            let place = core::ptr::with_exposed_provenance_mut::<$type>(address);
            // SAFETY: callers name device registers, or memory outside of the image, and no Rust
            // object lives there.
            unsafe { place.write_volatile(value) };
        }
    )+};
}

accessors! {
    read8 write8 u8, "8";
    read16 write16 u16, "16";
    read32 write32 u32, "32";
    read64 write64 u64, "64";
}

/// What was written before is seen by devices before what is written after.
pub fn barrier() {
    // SAFETY: a barrier.
    unsafe { core::arch::asm!("dsb sy", options(nostack)) };
}
