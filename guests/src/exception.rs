//! The vectors, for guests that keep their stack in order.

use core::arch::global_asm;

/// Which vector was taken, without regard to where from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An instruction's doing: `ESR_EL1` says what.
    Synchronous,
    /// An interrupt.
    Irq,
    /// A fast interrupt: Group 0, which nobody configures.
    Fiq,
    /// An error that is nobody's instruction.
    SError,
}

/// What an exception interrupted. The registers are put back from here.
#[derive(Debug)]
#[repr(C)]
pub struct Frame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// `ELR_EL1`.
    pub pc: u64,
    /// `SPSR_EL1`.
    pub pstate: u64,
    /// `CNTVCT_EL0` in the third instruction of the vector.
    pub entered: u64,
    vector: u64,
    spare: u64,
}

const _: () = assert!(size_of::<Frame>() == 288);

impl Frame {
    /// Which vector it was.
    pub fn kind(&self) -> Kind {
        match self.vector & 3 {
            0 => Kind::Synchronous,
            1 => Kind::Irq,
            2 => Kind::Fiq,
            _ => Kind::SError,
        }
    }

    /// Goes on behind the instruction that was interrupted.
    pub fn skip(&mut self) {
        self.pc = self.pc.wrapping_add(4);
    }
}

global_asm!(
    r#"
    .macro vector number
    .balign 0x80
    sub     sp, sp, #288
    stp     x0, x1, [sp]
    mrs     x0, cntvct_el0
    mov     x1, #\number
    b       1f
    .endm

    .section .text.vectors, "ax"
    .balign 0x800
    .global guest_vectors
guest_vectors:
    .irp    number, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3
    vector  \number
    .endr

    .balign 0x80
1:  stp     x0, x1, [sp, #264]
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
    mrs     x2, elr_el1
    stp     x30, x2, [sp, #240]
    mrs     x3, spsr_el1
    str     x3, [sp, #256]
    mov     x0, sp
    bl      guest_exception
    ldp     x30, x2, [sp, #240]
    msr     elr_el1, x2
    ldr     x3, [sp, #256]
    msr     spsr_el1, x3
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldp     x0, x1, [sp]
    add     sp, sp, #288
    eret
    "#
);

unsafe extern "C" {
    fn guest_vectors();
}

/// The address of the vectors.
pub(crate) fn vectors() -> u64 {
    (guest_vectors as *const ()).addr() as u64
}
