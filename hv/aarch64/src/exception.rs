//! The EL2 vectors, the accesses that may abort, and the report of an exception that nobody expected.

use core::arch::global_asm;
use core::fmt::Write;

use boot::Verdict;

use crate::cpu;
use crate::panic;

/// The state at an exception, as the vectors push it.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Frame {
    x: [u64; 31],
    sp: u64,
    elr: u64,
    spsr: u64,
    esr: u64,
    far: u64,
}

const _: () = assert!(size_of::<Frame>() == 288);

global_asm!(
    r#"
    .macro entry kind
    .align 7
    // Room for the frame; then see, without a free register, whether the stack has been left:
    // bit 15 of a good stack pointer is set.
    sub     sp, sp, #288
    add     sp, sp, x0
    sub     x0, sp, x0
    tbz     x0, #15, 1f
    sub     x0, sp, x0
    sub     sp, sp, x0
    stp     x0, x1, [sp]
    .if \kind == 4
    b       go_on_or_report
    .else
    mov     x0, #\kind
    b       save_and_report
    .endif
1:  // The stack is gone: TPIDR_EL0 and TPIDRRO_EL0 may be spent, nothing will be resumed.
    msr     tpidrro_el0, x0                 // sp at the exception, less 288
    sub     x0, sp, x0
    msr     tpidr_el0, x0                   // x0
    mov     x0, #\kind
    b       report_on_emergency_stack
    .endm

    // From a guest: its x0 and x1 go to the stack, the kind to x1.
    .macro guest kind
    .align 7
    stp     x0, x1, [sp, #-16]!
    mov     x1, #\kind
    b       leave_guest
    .endm

    // An interrupt from a guest: it may be that the guest goes on at once.
    .macro guest_interrupt
    .align 7
    stp     x0, x1, [sp, #-16]!
    b       interrupt_guest
    .endm

    .section .text.vectors, "ax"
    .align 11
    .global vectors
vectors:
    entry   0
    entry   1
    entry   2
    entry   3
    entry   4
    entry   5
    entry   6
    entry   7
    guest   0
    guest_interrupt
    guest_interrupt
    guest   3
    entry   12
    entry   13
    entry   14
    entry   15

// An external abort of an access that may have one (`memory::Guarded`) makes it a read of ones, or a write of nothing.
go_on_or_report:
    mrs     x1, esr_el2
    and     x1, x1, #0x3f
    cmp     x1, #0x10
    b.ne    1f
    mrs     x0, elr_el2
    adr     x1, guarded
    sub     x0, x0, x1
    cmp     x0, #guarded_end - guarded
    b.hs    1f
    adr     x1, guarded_end
    msr     elr_el2, x1
    ldp     x0, x1, [sp]
    add     sp, sp, #288
    eret
1:  mov     x0, #4
    b       save_and_report

    .macro access name, instruction, register
    .global guarded_\name
guarded_\name:
    \instruction \register, [x0]
    ret
    .endm
guarded:
    access  read8, ldrb, w0
    access  read16, ldrh, w0
    access  read32, ldr, w0
    access  read64, ldr, x0
    access  write8, strb, w1
    access  write16, strh, w1
    access  write32, str, w1
    access  write64, str, x1
guarded_end:
    mov     x0, #-1
    ret

report_on_emergency_stack:
    mrs     x0, tpidr_el2
    cbz     x0, 1f
    ldr     x0, [x0]
    b       2f
1:  adrp    x0, __emergency_stack_top
    add     x0, x0, :lo12:__emergency_stack_top
2:  mov     sp, x0
    sub     sp, sp, #288
    mrs     x0, tpidr_el0
    stp     x0, x1, [sp]
    mrs     x1, tpidrro_el0
    add     x1, x1, #288
    str     x1, [sp, #248]
    mov     x0, #16                         // the kind is no longer known: "stack overflow"
    b       save_rest

save_and_report:
    add     x1, sp, #288
    str     x1, [sp, #248]
save_rest:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    str     x30, [sp, #240]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [sp, #256]
    mrs     x2, esr_el2
    mrs     x3, far_el2
    stp     x2, x3, [sp, #272]
    mov     x1, sp
    bl      {unexpected}
    b       .
    "#,
    unexpected = sym unexpected,
);

const KINDS: [&str; 17] = [
    "synchronous, EL2 with SP_EL0",
    "IRQ, EL2 with SP_EL0",
    "FIQ, EL2 with SP_EL0",
    "SError, EL2 with SP_EL0",
    "synchronous",
    "IRQ",
    "FIQ",
    "SError",
    "synchronous, from a guest",
    "IRQ, from a guest",
    "FIQ, from a guest",
    "SError, from a guest",
    "synchronous, from a 32-bit guest",
    "IRQ, from a 32-bit guest",
    "FIQ, from a 32-bit guest",
    "SError, from a 32-bit guest",
    "stack overflow",
];

/// What the exception class says. [DDI 0487 D19.2.40]
fn class(esr: u64) -> &'static str {
    match esr >> 26 & 0x3f {
        0x00 => "unknown instruction",
        0x0e => "illegal execution state",
        0x16 => "HVC",
        0x17 => "SMC",
        0x18 => "system register access",
        0x20 => "instruction abort from a guest",
        0x21 => "instruction abort",
        0x22 => "misaligned PC",
        0x24 => "data abort from a guest",
        0x25 => match esr >> 6 & 1 {
            0 => "data abort, read",
            _ => "data abort, write",
        },
        0x26 => "misaligned SP",
        0x2f => "SError",
        0x3c => "BRK",
        _ => "other",
    }
}

/// What the fault status code says, for aborts. [DDI 0487 D19.2.40]
fn fault(esr: u64) -> &'static str {
    match esr & 0x3f {
        0x00..=0x03 => "address size fault",
        0x04..=0x07 => "translation fault: nothing is mapped there",
        0x08..=0x0b => "access flag fault",
        0x0c..=0x0f => "permission fault",
        0x10 => "external abort: nothing answers there",
        0x14..=0x17 => "external abort on a table walk",
        0x21 => "alignment fault",
        _ => "other fault",
    }
}

extern "C" fn unexpected(kind: usize, frame: &Frame) -> ! {
    let mut out = panic::begin();
    let what = KINDS.get(kind).copied().unwrap_or("unknown");
    let _ = report(&mut out, what, frame);
    let _ = panic::backtrace(&mut out, frame.x[29]);
    panic::end(Verdict::Fatal(if kind == 16 {
        "stack overflow"
    } else {
        "unexpected exception"
    }))
}

fn report(out: &mut impl Write, what: &str, frame: &Frame) -> core::fmt::Result {
    writeln!(
        out,
        "\nbulkhead: EXCEPTION on CPU {}: {what}: {}",
        cpu::index(),
        class(frame.esr)
    )?;
    if matches!(frame.esr >> 26 & 0x3f, 0x20 | 0x21 | 0x24 | 0x25) {
        writeln!(out, "  {} at {:#x}", fault(frame.esr), frame.far)?;
    }
    write!(out, "  elr {:#x}", frame.elr)?;
    if let Some(offset) = crate::image::offset(frame.elr) {
        write!(out, " (+{offset:#x})")?;
    }
    writeln!(
        out,
        " spsr {:#x} esr {:#x} far {:#x}",
        frame.spsr, frame.esr, frame.far
    )?;
    for (i, pair) in frame.x.chunks(4).enumerate() {
        write!(out, " ")?;
        for (j, value) in pair.iter().enumerate() {
            write!(out, " x{:<2} {value:016x}", i * 4 + j)?;
        }
        writeln!(out)?;
    }
    writeln!(out, "  sp  {:016x}", frame.sp)
}
