//! The seams: what pure crates ask of the machine.
//!
//! Key traits: [`Mmio`] (a device's registers), [`PhysMemory`] (memory by physical address),
//! [`FrameAllocator`], [`Console`], [`Clock`]. The arch crates implement them over hardware, the
//! `fake` feature over ordinary memory, so that drivers run on the build host. Nothing here may
//! know which device or architecture stands behind a trait, but for how a CPU waits ([`relax`]), which the locks of all
//! crates need.
#![no_std]
#![cfg_attr(target_arch = "powerpc64", feature(asm_experimental_arch))]

#[cfg(any(feature = "fake", test))]
extern crate alloc;

#[cfg(any(feature = "fake", test))]
pub mod fake;
mod lock;

pub use lock::{Mutex, MutexGuard, Patience, TicketMutex, relax};

use types::{Address, Pa};

/// The registers of one device, by byte offset from its base.
///
/// Every access is performed exactly once, in program order, at the width of the method. Values are
/// those the CPU's little-endian view gives. Offsets are multiples of the width; an implementation
/// may panic on an offset beyond the device, which is a bug of the driver, never of a guest.
#[auto_impl::auto_impl(&)]
pub trait Mmio {
    /// Reads 8 bits.
    fn read8(&self, offset: usize) -> u8;
    /// Reads 16 bits.
    fn read16(&self, offset: usize) -> u16;
    /// Reads 32 bits.
    fn read32(&self, offset: usize) -> u32;
    /// Reads 64 bits.
    fn read64(&self, offset: usize) -> u64;
    /// Writes 8 bits.
    fn write8(&self, offset: usize, value: u8);
    /// Writes 16 bits.
    fn write16(&self, offset: usize, value: u16);
    /// Writes 32 bits.
    fn write32(&self, offset: usize, value: u32);
    /// Writes 64 bits.
    fn write64(&self, offset: usize, value: u64);
}

/// An access that does not lie wholly in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes at {pa} are not memory")]
pub struct NotMemory {
    /// Where the access started.
    pub pa: Pa,
    /// Its length in bytes.
    pub bytes: usize,
}

/// Memory by physical address: tables, queues and guest RAM.
///
/// It never hands out a reference: what a device or a guest may change at any time is copied.
#[auto_impl::auto_impl(&)]
pub trait PhysMemory {
    /// Copies `buffer.len()` bytes from `pa`.
    ///
    /// # Errors
    /// [`NotMemory`], with the buffer unchanged, when any byte lies outside memory.
    fn read(&self, pa: Pa, buffer: &mut [u8]) -> Result<(), NotMemory>;

    /// Copies `bytes` to `pa`.
    ///
    /// # Errors
    /// [`NotMemory`], with memory unchanged, when any byte lies outside memory.
    fn write(&self, pa: Pa, bytes: &[u8]) -> Result<(), NotMemory>;

    /// Reads a native-endian 64-bit word in one access; `pa` is a multiple of 8.
    ///
    /// # Errors
    /// [`NotMemory`] outside memory or misaligned.
    fn read_u64(&self, pa: Pa) -> Result<u64, NotMemory>;

    /// Writes a native-endian 64-bit word in one access; `pa` is a multiple of 8.
    ///
    /// # Errors
    /// [`NotMemory`] outside memory or misaligned.
    fn write_u64(&self, pa: Pa, value: u64) -> Result<(), NotMemory>;

    /// Writes two native-endian 64-bit words, one after the other, each in one access; `pa` is a multiple of 16.
    ///
    /// # Errors
    /// [`NotMemory`], with memory unchanged, outside memory or misaligned.
    fn write_pair(&self, pa: Pa, pair: [u64; 2]) -> Result<(), NotMemory> {
        let [low, high] = pair;
        let aligned = pa.bits().is_multiple_of(16);
        let next = pa.checked_add(8).filter(|_| aligned);
        let next = next.ok_or(NotMemory { pa, bytes: 16 })?;
        self.read_u64(next)?;
        self.write_u64(pa, low)?;
        self.write_u64(next, high)
    }

    /// Sets `bytes` bytes from `pa` to zero.
    ///
    /// # Errors
    /// [`NotMemory`], with memory unchanged, when any byte lies outside memory.
    fn zero(&self, pa: Pa, bytes: usize) -> Result<(), NotMemory>;
}

/// Memory that the CPUs share with a device.
#[auto_impl::auto_impl(&)]
pub trait SharedMemory: PhysMemory {
    /// Orders every write to memory so far before the next access of a device register (Arm:
    /// `DSB`). Enough for a device that snoops the CPUs' caches.
    fn publish(&self);

    /// Writes what caches hold of a range back to memory and drops it: for a device that does not
    /// snoop, after the CPU wrote and before it reads what the device wrote. Bytes outside memory
    /// are ignored.
    fn clean_to_memory(&self, pa: Pa, bytes: usize);
}

/// No frame of the asked size is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no free block of {frames} frames of 4 KiB")]
pub struct OutOfFrames {
    /// What was asked for, in 4 KiB frames.
    pub frames: usize,
}

/// Frames of 4 KiB in naturally aligned power-of-two blocks.
#[auto_impl::auto_impl(&)]
pub trait FrameAllocator {
    /// A zeroed block of `1 << order` frames, aligned to its size.
    ///
    /// # Errors
    /// [`OutOfFrames`] when no such block is free.
    fn alloc_zeroed(&self, order: u8) -> Result<Pa, OutOfFrames>;

    /// Gives back a block that [`FrameAllocator::alloc_zeroed`] returned with the same order.
    fn free(&self, block: Pa, order: u8);
}

/// A byte sink for people: a UART, or a hypervisor's virtual terminal.
#[auto_impl::auto_impl(&)]
pub trait Console {
    /// Writes all bytes, waiting for room where the device needs it.
    fn write(&self, bytes: &[u8]);
    /// A byte somebody typed, if there is one.
    fn read(&self) -> Option<u8>;
}

/// A counter that only goes up.
#[auto_impl::auto_impl(&)]
pub trait Clock {
    /// The current count.
    fn ticks(&self) -> u64;
    /// Ticks in a second.
    fn frequency(&self) -> u64;

    /// The ticks in `us` microseconds, rounded up.
    fn ticks_of_us(&self, us: u64) -> u64 {
        const US: u64 = 1_000_000;
        // No clock ticks so fast that a second of it, in microseconds, is too long.
        let frequency = self.frequency().min(u64::MAX / US);
        let rest = (us % US * frequency).div_ceil(US);
        (us / US).saturating_mul(frequency).saturating_add(rest)
    }
}
