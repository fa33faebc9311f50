//! Memory by physical address. Real mode makes the two the same.

use core::ptr::with_exposed_provenance_mut;

use hal::{NotMemory, PhysMemory};
use types::{Pa, Span};

use crate::heap;

/// Bytes that `dcbz` clears, on every POWER since POWER4.
const BLOCK: usize = 128;

/// The machine's RAM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ram {
    spans: &'static [Span<Pa>],
}

impl Ram {
    /// RAM at `spans`.
    ///
    /// # Safety
    /// The spans must be memory, and no Rust reference may cover any of it, for as long as the
    /// value lives.
    pub(crate) const unsafe fn new(spans: &'static [Span<Pa>]) -> Self {
        Self { spans }
    }

    fn check(&self, pa: Pa, bytes: usize) -> Result<usize, NotMemory> {
        let fail = NotMemory { pa, bytes };
        if bytes == 0 {
            return Ok(identity(pa));
        }
        let access = Span::from_len(pa, bytes as u64).ok_or(fail)?;
        if self.spans.iter().any(|span| span.contains_span(access)) {
            Ok(identity(pa))
        } else {
            Err(fail)
        }
    }

    /// Changes a native-endian word of 32 bits by one load and one store; `pa` is a multiple of 4.
    ///
    /// # Errors
    /// [`NotMemory`] outside memory or misaligned.
    #[optimize(speed)]
    #[inline]
    pub(crate) fn change_u32(
        &self,
        pa: Pa,
        change: impl FnOnce(u32) -> u32,
    ) -> Result<(), NotMemory> {
        let fail = NotMemory { pa, bytes: 4 };
        let access = Span::from_len(pa, 4).filter(|_| pa.bits().is_multiple_of(4));
        let access = access.ok_or(fail)?;
        // What guests have is mostly in the last one.
        let mut spans = self.spans.iter().rev();
        if !spans.any(|span| span.contains_span(access)) {
            return Err(fail);
        }
        let word = with_exposed_provenance_mut::<u32>(identity(pa));
        // SAFETY: an aligned word of RAM, by the promise of `new`.
        let before = unsafe { word.read_volatile() };
        // SAFETY: the same.
        unsafe { word.write_volatile(change(before)) };
        Ok(())
    }

    fn check_word(&self, pa: Pa) -> Result<usize, NotMemory> {
        if pa.bits().is_multiple_of(8) {
            self.check(pa, 8)
        } else {
            Err(NotMemory { pa, bytes: 8 })
        }
    }
}

/// The pointer value of a physical address.
#[expect(clippy::cast_possible_truncation, reason = "usize is 64 bits here")]
pub(crate) fn identity(pa: Pa) -> usize {
    pa.bits() as usize
}

/// The bytes of `span`.
///
/// # Safety
/// They must be memory that nobody writes to from now on.
pub(crate) unsafe fn blob(span: Span<Pa>) -> &'static [u8] {
    let start = core::ptr::with_exposed_provenance(identity(span.start()));
    let bytes = span.len().and_then(|bytes| usize::try_from(bytes).ok());
    // SAFETY: passed on to the caller.
    unsafe { core::slice::from_raw_parts(start, bytes.unwrap_or(0)) }
}

/// Makes the instructions in these bytes those that were written. [Power ISA 3.1B Book II §1.9]
pub(crate) fn flush_code(pa: Pa, bytes: usize) {
    let start = identity(pa);
    for address in (start..start.saturating_add(bytes)).step_by(BLOCK) {
        // SAFETY: cache maintenance changes no data.
        unsafe {
            core::arch::asm!("dcbst 0, {0}", "sync", "icbi 0, {0}", in(reg) address, options(nostack));
        }
    }
    // SAFETY: as above.
    unsafe { core::arch::asm!("sync", "isync", options(nostack)) };
}

impl PhysMemory for Ram {
    fn read(&self, pa: Pa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        let from = with_exposed_provenance_mut::<u8>(self.check(pa, buffer.len())?);
        // SAFETY: the range is RAM by `check` and the promise of `new`; the buffer is not in it,
        // because no reference is.
        unsafe { core::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), buffer.len()) };
        Ok(())
    }

    fn write(&self, pa: Pa, bytes: &[u8]) -> Result<(), NotMemory> {
        let to = with_exposed_provenance_mut::<u8>(self.check(pa, bytes.len())?);
        // SAFETY: as in `read`.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    fn read_u64(&self, pa: Pa) -> Result<u64, NotMemory> {
        let word = with_exposed_provenance_mut::<u64>(self.check_word(pa)?);
        // SAFETY: an aligned word of RAM.
        Ok(unsafe { word.read_volatile() })
    }

    fn write_u64(&self, pa: Pa, value: u64) -> Result<(), NotMemory> {
        let word = with_exposed_provenance_mut::<u64>(self.check_word(pa)?);
        // SAFETY: an aligned word of RAM.
        unsafe { word.write_volatile(value) };
        Ok(())
    }

    fn zero(&self, pa: Pa, bytes: usize) -> Result<(), NotMemory> {
        let start = self.check(pa, bytes)?;
        if !start.is_multiple_of(BLOCK) || !bytes.is_multiple_of(BLOCK) {
            let to = with_exposed_provenance_mut::<u8>(start);
            // SAFETY: the range is RAM by `check` and the promise of `new`.
            unsafe { core::ptr::write_bytes(to, 0, bytes) };
            return Ok(());
        }
        for address in (start..start + bytes).step_by(BLOCK) {
            // SAFETY: zeroes one aligned block of the checked range.
            unsafe { core::arch::asm!("dcbz 0, {}", in(reg) address, options(nostack)) };
        }
        Ok(())
    }
}

/// What is left of memory.
pub(crate) fn frames(frames: &boot::Frames<Ram>) -> vm::Frames {
    let (used, free) = heap::usage();
    vm::Frames {
        free: frames.free_frames(),
        total: frames.total(),
        heap_used: used,
        heap_total: used + free,
    }
}
