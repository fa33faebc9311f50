//! What belongs to one CPU: its number, its stacks and their guard.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::spr;

/// Bytes of all the stacks of a CPU together, aligned to [`GUARD`]. From the bottom: the guard, the
/// ordinary stack, the last stack, the emergency stack; what overflows never reaches the stack that
/// reports it.
pub(crate) const STACKS: u64 = 0x2_0000;
/// Real mode has no page to leave unmapped, so a watchpoint and a pattern stand guard below the
/// stack. The widest watchpoint is 512 bytes and must not cross a multiple of them.
/// [Power ISA 3.1B Book III §10.4]
pub(crate) const GUARD: u64 = 512;
const STACK_TOP: u64 = 0x1_8000;
const LAST_TOP: u64 = 0x1_a000;

/// How far below the stacks the frames of an overflow are still looked for. There is memory: the
/// image lies below the boot CPU's stacks, and frames below the others'.
const SLACK: u64 = 0x1000;

const PATTERN: u64 = 0x6b6f_5f64_7261_7567;

/// One CPU. SPRG0 of the CPU holds its address; the entry code and the vectors know where the first
/// five fields are.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Cpu {
    /// The ordinary stack.
    stack_top: AtomicU64,
    /// The stack for the report of an exception.
    emergency_top: AtomicU64,
    /// The stack for saying that the report itself has failed.
    last_top: AtomicU64,
    /// Exceptions being reported now.
    depth: AtomicU64,
    scratch: AtomicU64,
    stacks: AtomicU64,
    number: AtomicU64,
    server: AtomicU64,
    /// When the guest that runs here shall have left; zero while none runs.
    slice_end: AtomicU64,
}

/// The CPU that firmware starts.
pub(crate) static BOOT_CPU: Cpu = Cpu::new(0, 0);

impl Cpu {
    /// CPU `number` of ours, which the platform calls `server` (`ibm,ppc-interrupt-server#s`).
    pub(crate) const fn new(number: u64, server: u64) -> Self {
        Self {
            stack_top: AtomicU64::new(0),
            emergency_top: AtomicU64::new(0),
            last_top: AtomicU64::new(0),
            depth: AtomicU64::new(0),
            scratch: AtomicU64::new(0),
            stacks: AtomicU64::new(0),
            number: AtomicU64::new(number),
            server: AtomicU64::new(server),
            slice_end: AtomicU64::new(0),
        }
    }

    /// Gives the CPU the [`STACKS`] bytes at `stacks`, and lays the guard's pattern.
    ///
    /// # Safety
    /// They must be memory that nobody else uses, aligned to [`GUARD`], for ever.
    pub(crate) unsafe fn set_stacks(&self, stacks: u64) {
        self.stacks.store(stacks, Ordering::Relaxed);
        self.stack_top.store(stacks + STACK_TOP, Ordering::Relaxed);
        self.last_top.store(stacks + LAST_TOP, Ordering::Relaxed);
        self.emergency_top.store(stacks + STACKS, Ordering::Relaxed);
        for word in guard(stacks) {
            // SAFETY: the caller gives us the memory.
            unsafe { word.write_volatile(PATTERN) };
        }
    }

    /// Our number: 0 is the boot CPU.
    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }

    /// The platform's number for it.
    pub(crate) fn server(&self) -> u64 {
        self.server.load(Ordering::Relaxed)
    }

    /// Sets the platform's number, once the device tree has been read.
    pub(crate) fn set_server(&self, server: u64) {
        self.server.store(server, Ordering::Relaxed);
    }

    /// A guest runs here that shall have left at this time.
    pub(crate) fn slice_begins(&self, end: u64) {
        // A tick more or less is nothing, and zero would be no guest.
        self.slice_end.store(end | 1, Ordering::Relaxed);
    }

    /// No guest runs here.
    pub(crate) fn slice_ends(&self) {
        self.slice_end.store(0, Ordering::Relaxed);
    }

    /// Whether a guest runs here that should have left more than `grace` ticks ago.
    pub(crate) fn is_late(&self, now: u64, grace: u64) -> bool {
        let end = self.slice_end.load(Ordering::Relaxed);
        end != 0 && now > end.saturating_add(grace)
    }

    /// The guarded bytes.
    pub(crate) fn guard(&self) -> u64 {
        self.stacks.load(Ordering::Relaxed)
    }

    /// Whether the guard's pattern is whole. The watchpoint sees what writes to the guard; this
    /// sees what wrote to it while there was no watchpoint.
    pub(crate) fn guard_is_whole(&self) -> bool {
        let stacks = self.guard();
        stacks == 0
            || guard(stacks).all(|word| {
                // SAFETY: `set_stacks` was given this memory.
                let value = unsafe { word.read_volatile() };
                value == PATTERN
            })
    }

    /// Whether a frame may start at `address`: on one of the CPU's stacks, or so little below them
    /// that an overflow explains it.
    pub(crate) fn on_a_stack(&self, address: u64) -> bool {
        let stacks = self.guard();
        stacks != 0
            && address.is_multiple_of(8)
            && address >= stacks - SLACK
            && address <= stacks + STACKS - 32
    }
}

#[expect(clippy::cast_possible_truncation, reason = "usize is 64 bits here")]
fn guard(stacks: u64) -> impl Iterator<Item = *mut u64> {
    (stacks..stacks + GUARD)
        .step_by(8)
        .map(|address| core::ptr::with_exposed_provenance_mut(address as usize))
}

/// The CPU this runs on.
pub(crate) fn this() -> &'static Cpu {
    let pointer = core::ptr::with_exposed_provenance::<Cpu>(spr::sprg0());
    // SAFETY: the entry code put there the address of a `Cpu` that is never freed.
    unsafe { &*pointer }
}
