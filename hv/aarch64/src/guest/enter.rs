//! Into the guest and back.

use core::arch::global_asm;

/// The registers that an exit saves at once. The assembly knows the offsets.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(16))]
pub(crate) struct GuestRegisters {
    /// x0 to x30.
    pub(crate) x: [u64; 31],
    /// The program counter.
    pub(crate) pc: u64,
    /// The program status.
    pub(crate) pstate: u64,
}

const _: () = assert!(size_of::<GuestRegisters>() == 272);

/// Why the guest stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// A trapped instruction or an abort: `ESR_EL2` tells.
    Synchronous,
    /// An interrupt for the hypervisor is pending.
    Interrupt,
    /// An error without an instruction to blame.
    SError,
}

global_asm!(
    r#"
    // x0 = the guest's registers. Returns the kind of exit.
    .section .text.enter_guest, "ax"
    .global enter_guest
enter_guest:
    stp     x29, x30, [sp, #-112]!
    stp     x27, x28, [sp, #16]
    stp     x25, x26, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x21, x22, [sp, #64]
    stp     x19, x20, [sp, #80]
    str     x0, [sp, #96]
    ldp     x2, x3, [x0, #248]
    msr     elr_el2, x2
    msr     spsr_el2, x3
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
    ldr     x30, [x0, #240]
    ldp     x0, x1, [x0]
    eret
    // Nothing is speculated past the return to the guest.
    dsb     nsh
    isb

    // From the vectors: x0, x1 of the guest are on the stack, x1 = the kind of exit.
    .global leave_guest
leave_guest:
    ldr     x0, [sp, #16 + 96]
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
    str     x30, [x0, #240]
    mrs     x4, elr_el2
    mrs     x5, spsr_el2
    stp     x4, x5, [x0, #248]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x0]
    mov     x0, x1
    ldp     x27, x28, [sp, #16]
    ldp     x25, x26, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x21, x22, [sp, #64]
    ldp     x19, x20, [sp, #80]
    ldp     x29, x30, [sp], #112
    ret
    "#
);

unsafe extern "C" {
    fn enter_guest(registers: *mut GuestRegisters) -> u64;
}

/// Runs the guest whose EL1 state, stage 2 and interrupt state are loaded, until it exits.
///
/// # Safety
/// The loaded stage 2 must give the guest nothing of the hypervisor's, and `HCR_EL2` must be that
/// of a guest.
pub(crate) unsafe fn enter(registers: &mut GuestRegisters) -> Exit {
    // SAFETY: the assembly keeps to the C calling convention; the guest's confinement is the
    // caller's promise.
    match unsafe { enter_guest(registers) } {
        0 => Exit::Synchronous,
        3 => Exit::SError,
        _ => Exit::Interrupt,
    }
}
