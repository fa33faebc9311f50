//! Runs random code and comes back, whatever it does to registers, stack and exception level.
//!
//! The random code is entered with all registers and the stack pointer as wanted. It ends with an
//! exception: its own `SVC` or whatever it provokes. The vectors, of which each CPU has a copy with
//! the address of its [`Context`] inside, use no stack and trust no register: they put back what
//! `run` saved and return to its caller.

use core::arch::global_asm;
use core::mem::offset_of;

use guests::platform::VIRTUAL_TIMER;
use guests::{cpu, gic, read_register, write_register};

use crate::memory;

/// Interrupts that may come while one piece of code runs, before it is given up.
const MOST_IRQS: u64 = 4;
/// Bytes of the vectors with what follows them.
const VECTOR_BYTES: usize = 0x1000;
/// `ESR_EL1` of a piece of code that an interrupt ended: an exception class that cannot be.
pub(crate) const ENDED_BY_INTERRUPT: u64 = 0x3f << 26;

/// A CPU's state around random code. The assembly knows the offsets.
#[repr(C)]
pub(crate) struct Context {
    /// x0 to x30 of the code.
    pub(crate) x: [u64; 31],
    /// Its stack pointer.
    pub(crate) sp: u64,
    /// x19 to x30 and the stack pointer of `run`'s caller.
    host: [u64; 13],
    active: u64,
    /// What ended it.
    pub(crate) esr: u64,
    far: u64,
    elr: u64,
    interrupted: [u64; 31],
    interrupted_sp: u64,
    stack: u64,
    irqs: u64,
}

const _: () = assert!(offset_of!(Context, host) == 256);
const _: () = assert!(offset_of!(Context, active) == 360);
const _: () = assert!(offset_of!(Context, esr) == 368);
const _: () = assert!(offset_of!(Context, far) == 376);
const _: () = assert!(offset_of!(Context, interrupted) == 392);
const _: () = assert!(offset_of!(Context, stack) == 648);

impl Context {
    pub(crate) const fn new() -> Self {
        Self {
            x: [0; 31],
            sp: 0,
            host: [0; 13],
            active: 0,
            esr: 0,
            far: 0,
            elr: 0,
            interrupted: [0; 31],
            interrupted_sp: 0,
            stack: 0,
            irqs: 0,
        }
    }
}

global_asm!(
    r#"
    .macro entry_of kind
    .balign 0x80
    .if \kind == 1
    msr     tpidr_el1, x0
    ldr     x0, 90f
    b       80f
    .else
    ldr     x0, 90f
    b       70f
    .endif
    .endm

    .section .text.hostile_vectors, "ax"
    .balign 0x800
    .global hostile_vectors
hostile_vectors:
    .irp    kind, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3
    entry_of \kind
    .endr
    .balign 0x80
    // x0 = context. The code has ended.
70: mrs     x1, esr_el1
    str     x1, [x0, #368]
    mrs     x1, far_el1
    mrs     x2, elr_el1
    stp     x1, x2, [x0, #376]
    ldr     x1, [x0, #360]
    cbz     x1, 75f
71: str     xzr, [x0, #360]
    ldp     x19, x20, [x0, #256]
    ldp     x21, x22, [x0, #272]
    ldp     x23, x24, [x0, #288]
    ldp     x25, x26, [x0, #304]
    ldp     x27, x28, [x0, #320]
    ldp     x29, x30, [x0, #336]
    ldr     x1, [x0, #352]
    mov     sp, x1
    ret
    // Nothing random was running: the guest itself has failed.
75: ldr     x1, [x0, #648]
    mov     sp, x1
    ldr     x2, 92f
    br      x2
    // x0 = context, its own value in TPIDR_EL1. An interrupt.
80: add     x0, x0, #392
    str     x1, [x0, #8]
    stp     x2, x3, [x0, #16]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    mov     x1, sp
    stp     x30, x1, [x0, #240]
    mrs     x1, tpidr_el1
    str     x1, [x0]
    sub     x19, x0, #392
    ldr     x1, [x19, #648]
    mov     sp, x1
    mrs     x20, elr_el1
    mrs     x21, spsr_el1
    mov     x0, x19
    ldr     x2, 91f
    blr     x2
    cbz     x0, 81f
    str     x0, [x19, #368]
    mov     x0, x19
    b       71b
81: msr     elr_el1, x20
    msr     spsr_el1, x21
    add     x0, x19, #392
    ldp     x30, x1, [x0, #240]
    mov     sp, x1
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldp     x28, x29, [x0, #224]
    ldp     x0, x1, [x0]
    eret
    .balign 8
    .global hostile_literals
hostile_literals:
90: .quad   0
91: .quad   0
92: .quad   0

    // In front of random code: x0 = context.
    .balign 8
    .global hostile_prologue
hostile_prologue:
    mov     x30, x0
    ldr     x0, [x30, #248]
    mov     sp, x0
    ldp     x0, x1, [x30]
    ldp     x2, x3, [x30, #16]
    ldp     x4, x5, [x30, #32]
    ldp     x6, x7, [x30, #48]
    ldp     x8, x9, [x30, #64]
    ldp     x10, x11, [x30, #80]
    ldp     x12, x13, [x30, #96]
    ldp     x14, x15, [x30, #112]
    ldp     x16, x17, [x30, #128]
    ldp     x18, x19, [x30, #144]
    ldp     x20, x21, [x30, #160]
    ldp     x22, x23, [x30, #176]
    ldp     x24, x25, [x30, #192]
    ldp     x26, x27, [x30, #208]
    ldp     x28, x29, [x30, #224]
    ldr     x30, [x30, #240]
    msr     daifclr, #2
    .global hostile_prologue_end
hostile_prologue_end:

    .global hostile_run
hostile_run:
    stp     x19, x20, [x0, #256]
    stp     x21, x22, [x0, #272]
    stp     x23, x24, [x0, #288]
    stp     x25, x26, [x0, #304]
    stp     x27, x28, [x0, #320]
    stp     x29, x30, [x0, #336]
    mov     x2, sp
    str     x2, [x0, #352]
    mov     x2, #1
    str     x2, [x0, #360]
    br      x1
    "#
);

unsafe extern "C" {
    static hostile_vectors: [u32; VECTOR_BYTES / 4];
    static hostile_literals: u8;
    static hostile_prologue: u32;
    static hostile_prologue_end: u32;
    fn hostile_run(context: *mut Context, code: u64);
}

/// Words of random code in one piece.
pub(crate) const MOST_WORDS: usize = 4;

/// A CPU's place for random code, and its vectors.
pub(crate) struct Cage {
    context: *mut Context,
    code: *mut u32,
    /// Words of the prologue.
    prologue: usize,
}

impl Cage {
    /// Makes the CPU's copies of vectors and prologue and points it at them. `context` is the
    /// CPU's own for good, `stack` the top of one for interrupts.
    pub(crate) fn build(cpu: usize, context: *mut Context, stack: u64) -> Self {
        let place = |address: u64| core::ptr::with_exposed_provenance_mut::<u32>(address as usize);
        let vectors = place(memory::vectors(cpu));
        // SAFETY: the memory map keeps this page for the copy; the original is that long or longer.
        unsafe {
            core::ptr::copy_nonoverlapping(
                (&raw const hostile_vectors).cast(),
                vectors,
                VECTOR_BYTES / 4,
            );
        }
        let offset = (&raw const hostile_literals).addr() - (&raw const hostile_vectors).addr();
        let literals = [
            context.expose_provenance() as u64,
            (interrupt as *const ()).addr() as u64,
            (lost as *const ()).addr() as u64,
        ];
        for (index, literal) in literals.into_iter().enumerate() {
            // SAFETY: inside of the copy, 8-byte aligned by the assembly.
            unsafe {
                let place = vectors.wrapping_byte_add(offset + 8 * index);
                place.cast::<u64>().write(literal)
            };
        }
        let prologue =
            ((&raw const hostile_prologue_end).addr() - (&raw const hostile_prologue).addr()) / 4;
        let code = place(memory::code(cpu));
        // SAFETY: likewise for the code.
        unsafe { core::ptr::copy_nonoverlapping(&raw const hostile_prologue, code, prologue) };
        // SAFETY: the caller gives the context to this CPU.
        unsafe { (*context).stack = stack };
        synchronise(memory::code(cpu), 4 * prologue as u64);
        synchronise(memory::vectors(cpu), VECTOR_BYTES as u64);
        write_register!("vbar_el1", memory::vectors(cpu));
        Self {
            context,
            code,
            prologue,
        }
    }

    /// The registers that the code will see.
    pub(crate) fn context(&mut self) -> &mut Context {
        // SAFETY: this CPU's own; the vectors use it only while `run` is running.
        unsafe { &mut *self.context }
    }

    /// Where the code ends.
    pub(crate) fn end(&self) -> u64 {
        self.code.addr() as u64 + 4 * (self.prologue + MOST_WORDS) as u64
    }

    /// Runs a piece of code; returns the `ESR_EL1` of what ended it.
    pub(crate) fn run(&mut self, words: &[u32]) -> u64 {
        for slot in 0..MOST_WORDS + 2 {
            let word = words.get(slot).filter(|_| slot < MOST_WORDS).copied();
            let filler = if slot < MOST_WORDS {
                NOP
            } else {
                crate::words::SVC
            };
            // SAFETY: behind the prologue, in the memory that is kept for it.
            unsafe {
                self.code
                    .wrapping_add(self.prologue + slot)
                    .write_volatile(word.unwrap_or(filler))
            };
        }
        let start = self.code.addr() as u64;
        synchronise(
            start + 4 * self.prologue as u64,
            4 * (MOST_WORDS as u64 + 2),
        );
        self.context().irqs = 0;
        // SAFETY: saves what a call must keep in the context; the vectors put it back.
        unsafe { hostile_run(self.context, start) };
        self.context().esr
    }
}

const NOP: u32 = 0xd503_201f;

/// What was written is what will be executed. [DDI 0487 B2.7.4.2]
fn synchronise(start: u64, bytes: u64) {
    // The smallest line of any CPU here.
    const LINE: u64 = 64;
    let mut at = start & !(LINE - 1);
    while at < start + bytes {
        // SAFETY: maintenance of the guest's own memory.
        unsafe {
            core::arch::asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", in(reg) at, options(nostack));
        }
        at += LINE;
    }
    // SAFETY: barriers.
    unsafe { core::arch::asm!("dsb ish", "isb", options(nostack)) };
}

/// From the vectors, on the context's stack: takes what is pending. Not 0: the code has ended.
extern "C" fn interrupt(context: &mut Context) -> u64 {
    let mut over = context.active == 0;
    let intid = gic::acknowledge();
    if intid < 1020 {
        gic::end(intid);
        write_register!("icc_dir_el1", u64::from(intid));
    }
    if intid == VIRTUAL_TIMER {
        cpu::stop_timer();
        over = true;
    }
    context.irqs += 1;
    if over && context.active == 0 {
        return 0;
    }
    if over || context.irqs > MOST_IRQS {
        ENDED_BY_INTERRUPT
    } else {
        0
    }
}

/// From the vectors: an exception that no random code has caused.
extern "C" fn lost(context: &mut Context) -> ! {
    crate::fail(
        context.esr,
        context.far,
        context.elr,
        read_register!("spsr_el1"),
    )
}
