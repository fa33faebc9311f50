//! Memory and device registers by physical address, over the identity map.

use core::mem::MaybeUninit;
use core::ptr::with_exposed_provenance_mut;

use hal::{Mmio, NotMemory, PhysMemory, SharedMemory};
use linked_list_allocator::LockedHeap;
use types::{Address, Pa, PageSize, Span};

use crate::cpu::identity;

/// The hypervisor's own heap: descriptions of the machine and of VMs, never guest memory.
pub(crate) const HEAP_BYTES: usize = 2 * 1024 * 1024;

#[repr(C, align(4096))]
struct HeapSpace(MaybeUninit<[u8; HEAP_BYTES]>);

/// Behind all else, and not cleared: code reaches what is in front of it with one instruction.
#[unsafe(link_section = ".heap")]
static mut HEAP_SPACE: HeapSpace = HeapSpace(MaybeUninit::uninit());

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Gives the heap its memory. Called once, by the boot CPU, with the MMU on (locks need it).
pub(crate) fn start_heap() {
    let space = (&raw mut HEAP_SPACE).cast::<u8>();
    // SAFETY: the space is used for nothing else, and this is called once.
    unsafe { HEAP.lock().init(space, HEAP_BYTES) };
}

/// What is left of memory.
pub(crate) fn frames(frames: &boot::Frames<Ram>) -> vm::Frames {
    let (heap_used, heap_total) = heap_use();
    vm::Frames {
        free: frames.free_frames(),
        total: frames.total(),
        heap_used,
        heap_total,
    }
}

/// Bytes of the heap in use, and its size.
pub(crate) fn heap_use() -> (usize, usize) {
    (HEAP.lock().used(), HEAP_BYTES)
}

/// The machine's RAM, readable and writable where it is mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ram {
    spans: &'static [Span<Pa>],
    /// The words of the first of them, where nearly every word is: image, bundle and tree cut RAM into
    /// about as many.
    words: [Words; 4],
}

/// Whole words from an address on that is a multiple of 16.
#[derive(Clone, Copy, Debug)]
struct Words {
    start: u64,
    /// How far behind `start` the last one is.
    last: u64,
}

impl Words {
    fn of(span: &Span<Pa>) -> Option<Self> {
        let start = span.start().bits().checked_next_multiple_of(16)?;
        let last = span.last().bits().checked_sub(start)?.checked_sub(7)?;
        Some(Self { start, last })
    }

    fn hold(self, pa: Pa) -> bool {
        pa.bits().wrapping_sub(self.start) <= self.last
    }
}

impl Ram {
    /// RAM at `spans`, the ones first that are used most.
    ///
    /// # Safety
    /// The spans must be memory, mapped at their physical addresses as normal memory, and no Rust
    /// reference may cover any of it, for as long as the value lives.
    pub(crate) unsafe fn new(spans: &'static [Span<Pa>]) -> Self {
        // No word is at the last address.
        let none = Words {
            start: u64::MAX,
            last: 0,
        };
        let words = [0, 1, 2, 3].map(|at| spans.get(at).and_then(Words::of).unwrap_or(none));
        Self { spans, words }
    }

    fn check(&self, pa: Pa, bytes: usize) -> Result<usize, NotMemory> {
        if bytes == 0 {
            return Ok(identity(pa));
        }
        let start = pa.bits();
        let last = start.checked_add(bytes as u64 - 1);
        let holds = |span: &Span<Pa>| {
            let (from, to) = (span.start().bits(), span.last().bits());
            last.is_some_and(|last| from <= start && last <= to)
        };
        match self.spans.iter().any(holds) {
            true => Ok(identity(pa)),
            false => Err(NotMemory { pa, bytes }),
        }
    }

    #[inline]
    fn check_word(&self, pa: Pa) -> Result<usize, NotMemory> {
        if pa.bits().is_multiple_of(8) && self.holds_word(pa) {
            return Ok(identity(pa));
        }
        self.check_other_word(pa)
    }

    /// An aligned pair of words: with the second, the first is in the same span.
    #[inline]
    fn check_pair(&self, pa: Pa) -> Result<usize, NotMemory> {
        let second = Pa::truncated(pa.bits() | 8);
        if !pa.bits().is_multiple_of(16) {
            return Err(NotMemory { pa, bytes: 16 });
        }
        if self.holds_word(second) {
            return Ok(identity(pa));
        }
        self.check(pa, 16)
    }

    #[inline]
    fn holds_word(&self, pa: Pa) -> bool {
        let [first, second, third, fourth] = self.words;
        first.hold(pa) || second.hold(pa) || third.hold(pa) || fourth.hold(pa)
    }

    #[cold]
    #[inline(never)]
    fn check_other_word(&self, pa: Pa) -> Result<usize, NotMemory> {
        match pa.bits().is_multiple_of(8) {
            true => self.check(pa, 8),
            false => Err(NotMemory { pa, bytes: 8 }),
        }
    }
}

impl Ram {
    /// Copies words from an address that is a multiple of 8, each in one access.
    ///
    /// # Errors
    /// [`NotMemory`] outside memory or between words.
    pub(crate) fn read_words(&self, pa: Pa, words: &mut [u64]) -> Result<(), NotMemory> {
        let bytes = size_of_val(words);
        let start = self.check(pa, bytes)?;
        if !start.is_multiple_of(8) {
            return Err(NotMemory { pa, bytes });
        }
        let from = with_exposed_provenance_mut::<u64>(start);
        for (at, word) in words.iter_mut().enumerate() {
            // SAFETY: `check` has shown that all of it is RAM.
            let from = unsafe { from.add(at) };
            // SAFETY: an aligned word of RAM.
            *word = unsafe { from.read_volatile() };
        }
        Ok(())
    }

    /// Writes a word of 32 bits to an address that is a multiple of 4, in one access, after all accesses before.
    ///
    /// # Errors
    /// [`NotMemory`] outside memory or between words.
    #[inline]
    pub(crate) fn write_word(&self, pa: Pa, word: u32) -> Result<(), NotMemory> {
        // Of the two words of 32 bits in one of 64, both are memory.
        let double = self.check_word(Pa::truncated(pa.bits() & !7))?;
        if !pa.bits().is_multiple_of(4) {
            return Err(NotMemory { pa, bytes: 4 });
        }
        let to = with_exposed_provenance_mut::<u32>(double | (identity(pa) & 4));
        aarch64_cpu::asm::barrier::dmb(aarch64_cpu::asm::barrier::ISH);
        // SAFETY: an aligned word of RAM, by `check_word`.
        unsafe { to.write_volatile(word) };
        Ok(())
    }

    /// Writes what the caches hold of a range back to memory and drops it: for whoever will look
    /// with its caches off, as a guest does at first.
    ///
    /// # Errors
    /// [`NotMemory`] outside memory.
    pub(crate) fn clean(&self, pa: Pa, bytes: usize) -> Result<(), NotMemory> {
        let start = self.check(pa, bytes)?;
        let line = cache_line_bytes();
        for address in (start & !(line - 1)..start + bytes).step_by(line) {
            // SAFETY: cache maintenance by address changes no value.
            unsafe {
                core::arch::asm!("dc civac, {}", in(reg) address, options(nostack));
            };
        }
        aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
        Ok(())
    }
}

impl SharedMemory for Ram {
    fn publish(&self) {
        aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
    }

    fn clean_to_memory(&self, pa: Pa, bytes: usize) {
        let _ = self.clean(pa, bytes);
    }
}

/// Bytes of the smallest data cache line. [DDI 0487 D19.2.34]
fn cache_line_bytes() -> usize {
    let ctr: usize;
    // SAFETY: reads an identification register.
    unsafe { core::arch::asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack)) };
    4 << (ctr >> 16 & 0xf)
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

    fn write_pair(&self, pa: Pa, [low, high]: [u64; 2]) -> Result<(), NotMemory> {
        let word = with_exposed_provenance_mut::<u64>(self.check_pair(pa)?);
        // SAFETY: an aligned word of RAM, as the one behind it.
        let next = unsafe { word.add(1) };
        // SAFETY: as above.
        unsafe { word.write_volatile(low) };
        // SAFETY: as above.
        unsafe { next.write_volatile(high) };
        Ok(())
    }

    fn zero(&self, pa: Pa, bytes: usize) -> Result<(), NotMemory> {
        let start = self.check(pa, bytes)?;
        let block = zva_bytes();
        if block == 0 || !start.is_multiple_of(block) || !bytes.is_multiple_of(block) {
            let to = with_exposed_provenance_mut::<u8>(start);
            // SAFETY: the range is RAM by `check` and the promise of `new`.
            unsafe { core::ptr::write_bytes(to, 0, bytes) };
            return Ok(());
        }
        for address in (start..start + bytes).step_by(block) {
            // SAFETY: zeroes one aligned block of the checked range.
            unsafe {
                core::arch::asm!("dc zva, {}", in(reg) address, options(nostack, preserves_flags));
            };
        }
        Ok(())
    }
}

/// Bytes that `DC ZVA` clears, or 0 where it is prohibited. [DDI 0487 D19.2.29]
fn zva_bytes() -> usize {
    let dczid: usize;
    // SAFETY: reads an identification register.
    unsafe {
        core::arch::asm!("mrs {}, dczid_el0", out(reg) dczid, options(nomem, nostack));
    };
    if dczid & 0x10 != 0 {
        0
    } else {
        4 << (dczid & 0xf)
    }
}

/// The registers of one device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registers {
    base: usize,
    bytes: usize,
}

impl Registers {
    /// The registers at `span`.
    ///
    /// # Safety
    /// The span must be a device's registers, mapped at their physical addresses as device memory,
    /// and whatever is written through the value must be the owner's right.
    pub(crate) unsafe fn new(span: Span<Pa>) -> Self {
        debug_assert!(span.start().is_aligned(PageSize::SIZE_4K));
        let bytes = span
            .len()
            .and_then(|len| usize::try_from(len).ok())
            .unwrap_or(usize::MAX);
        Self {
            base: identity(span.start()),
            bytes,
        }
    }

    #[inline(always)]
    fn at<T>(&self, offset: usize) -> *mut T {
        let width = size_of::<T>();
        assert!(
            offset.is_multiple_of(width) && offset <= self.bytes - width,
            "register offset {offset:#x} is not in the device at {:#x}",
            self.base
        );
        with_exposed_provenance_mut(self.base + offset)
    }
}

/// One load or store instruction, of the kind that reports a complete syndrome when a hypervisor
/// below traps it: no pairs, no write-back.
macro_rules! accessors {
    ($($read:ident $write:ident $int:ty, $load:literal, $store:literal;)*) => {
        impl Mmio for Registers {
            $(
                fn $read(&self, offset: usize) -> $int {
                    let address = self.at::<$int>(offset);
                    let value: $int;
                    // SAFETY: an aligned register inside the device, by `at`.
                    unsafe {
                        core::arch::asm!($load, value = out(reg) value, address = in(reg) address,
                            options(nostack, preserves_flags));
                    };
                    value
                }

                fn $write(&self, offset: usize, value: $int) {
                    let address = self.at::<$int>(offset);
                    // SAFETY: an aligned register inside the device, by `at`.
                    unsafe {
                        core::arch::asm!($store, value = in(reg) value, address = in(reg) address,
                            options(nostack, preserves_flags));
                    };
                }
            )*
        }
    };
}

/// The registers of one device, which may answer with an external abort: where nothing is, at a width that it does not
/// know, or because its owner has made it deaf. A read is of ones then, and a write is lost, as on the bus.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guarded(Registers);

impl Guarded {
    /// The registers at `span`.
    ///
    /// # Safety
    /// As for [`Registers::new`].
    pub(crate) unsafe fn new(span: Span<Pa>) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { Registers::new(span) })
    }
}

macro_rules! guarded {
    ($($read:ident $write:ident $int:ty, $guarded_read:ident $guarded_write:ident;)*) => {
        unsafe extern "C" {
            $(
                fn $guarded_read(address: *mut $int) -> $int;
                fn $guarded_write(address: *mut $int, value: $int);
            )*
        }

        impl Mmio for Guarded {
            $(
                fn $read(&self, offset: usize) -> $int {
                    // SAFETY: an aligned register inside the device, by `at`. The vectors know the function's one load.
                    unsafe { $guarded_read(self.0.at(offset)) }
                }

                fn $write(&self, offset: usize, value: $int) {
                    // SAFETY: as above; its one store.
                    unsafe { $guarded_write(self.0.at(offset), value) }
                }
            )*
        }
    };
}

guarded! {
    read8 write8 u8, guarded_read8 guarded_write8;
    read16 write16 u16, guarded_read16 guarded_write16;
    read32 write32 u32, guarded_read32 guarded_write32;
    read64 write64 u64, guarded_read64 guarded_write64;
}

accessors! {
    read8 write8 u8, "ldrb {value:w}, [{address}]", "strb {value:w}, [{address}]";
    read16 write16 u16, "ldrh {value:w}, [{address}]", "strh {value:w}, [{address}]";
    read32 write32 u32, "ldr {value:w}, [{address}]", "str {value:w}, [{address}]";
    read64 write64 u64, "ldr {value:x}, [{address}]", "str {value:x}, [{address}]";
}
