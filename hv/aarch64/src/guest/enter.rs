//! Into the guest and back.

use core::arch::global_asm;
use core::ffi::c_void;

use super::run::Residency;
use crate::gic;

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
    /// An interrupt for the hypervisor, acknowledged, which [`Residency::take`] has not seen to the end of.
    Interrupt(u32),
    /// An error without an instruction to blame.
    SError,
}

global_asm!(
    r#"
    // x0 = the guest's registers, x1 = the residency, x2 = what an interrupt calls with it: the vectors, which
    // an image without VMs has too, do not lead there. Returns the kind of exit, or 4 more than an interrupt.
    .section .text.enter_guest, "ax"
    .global enter_guest
enter_guest:
    stp     x29, x30, [sp, #-128]!
    stp     x27, x28, [sp, #16]
    stp     x25, x26, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x21, x22, [sp, #64]
    stp     x19, x20, [sp, #80]
    stp     x0, x1, [sp, #96]
    str     x2, [sp, #112]
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
back_to_caller:
    ldp     x27, x28, [sp, #16]
    ldp     x25, x26, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x21, x22, [sp, #64]
    ldp     x19, x20, [sp, #80]
    ldp     x29, x30, [sp], #128
    ret

    // From the vectors: x0, x1 of the guest are on the stack. A message or a timer may be dealt with at once: saved
    // is what a call may change, the rest only if there is more to do. The frame chain goes on where enter_guest left
    // it.
    .global interrupt_guest
interrupt_guest:
    mrs     x1, icc_iar1_el1
    lsr     x0, x1, #13
    cbnz    x0, 1f
    cmp     x1, #{virtual_timer}
    ccmp    x1, #{physical_timer}, #4, ne
    b.eq    1f
    add     x1, x1, #4
    b       leave_guest
1:  ldr     x0, [sp, #16 + 96]
    stp     x2, x3, [x0, #16]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    str     x18, [x0, #144]
    stp     x29, x30, [x0, #232]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x0]
    ldr     x0, [sp, #104]
    mov     x29, sp
    ldr     x2, [sp, #112]
    blr     x2
    ldr     x1, [sp, #96]
    cbnz    x0, 2f
    ldp     x2, x3, [x1, #16]
    ldp     x4, x5, [x1, #32]
    ldp     x6, x7, [x1, #48]
    ldp     x8, x9, [x1, #64]
    ldp     x10, x11, [x1, #80]
    ldp     x12, x13, [x1, #96]
    ldp     x14, x15, [x1, #112]
    ldp     x16, x17, [x1, #128]
    ldr     x18, [x1, #144]
    ldp     x29, x30, [x1, #232]
    ldp     x0, x1, [x1]
    eret
    dsb     nsh
    isb
2:  str     x19, [x1, #152]
    stp     x20, x21, [x1, #160]
    stp     x22, x23, [x1, #176]
    stp     x24, x25, [x1, #192]
    stp     x26, x27, [x1, #208]
    str     x28, [x1, #224]
    mrs     x4, elr_el2
    mrs     x5, spsr_el2
    stp     x4, x5, [x1, #248]
    b       back_to_caller
    "#,
    virtual_timer = const gic::VIRTUAL_TIMER,
    physical_timer = const gic::PHYSICAL_TIMER,
);

// The assembly tells messages by it.
const _: () = assert!(gic::FIRST_LPI == 1 << 13);

/// A message or a timer of the guest's while it ran: 0 if it goes on, or 4 more than what is left of it.
extern "C" fn interrupt(residency: *mut c_void, intid: u64) -> u64 {
    // SAFETY: it is what `enter` was given, whose caller does not use it meanwhile.
    let residency = unsafe { &mut *residency.cast::<Residency<'_>>() };
    #[expect(clippy::cast_possible_truncation, reason = "an INTID has 24 bits")]
    match residency.take(intid as u32) {
        None => 0,
        Some(left) => u64::from(left) + 4,
    }
}

unsafe extern "C" {
    fn enter_guest(
        registers: *mut GuestRegisters,
        residency: *mut c_void,
        interrupt: extern "C" fn(*mut c_void, u64) -> u64,
    ) -> u64;
}

/// Runs the guest whose EL1 state, stage 2 and interrupt state are loaded, until it exits for more than
/// [`Residency::take`] does. Until then `registers` are the guest's, and at no time those that a call keeps.
///
/// # Safety
/// The loaded stage 2 must give the guest nothing of the hypervisor's, and `HCR_EL2` must be that
/// of a guest. Both pointers must be good for writes, and nobody else may use what they point to.
pub(crate) unsafe fn enter(registers: *mut GuestRegisters, residency: *mut Residency<'_>) -> Exit {
    // SAFETY: the assembly keeps to the C calling convention; the guest's confinement and the pointers are the
    // caller's promise.
    let exit = unsafe { enter_guest(registers, residency.cast(), interrupt) };
    match exit {
        0 => Exit::Synchronous,
        3 => Exit::SError,
        #[expect(clippy::cast_possible_truncation, reason = "an INTID has 24 bits")]
        _ => Exit::Interrupt(exit as u32 - 4),
    }
}
