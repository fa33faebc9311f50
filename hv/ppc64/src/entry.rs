//! The first instructions, of the boot CPU and of the others.
//!
//! A PAPR platform enters an image in 32-bit big-endian real mode, even a little-endian ELF, with
//! r3 and r4 = base and size of the initrd or zero, r5 = the Open Firmware entry [LoPAPR §B.6]. CPUs
//! that RTAS starts arrive in 64-bit big-endian real mode with r3 as given.

use core::arch::global_asm;

use crate::assembly::{end_of_macros, macros};
use crate::cpu::BOOT_CPU;

global_asm!(
    macros!(),
    r#"
    .section .head, "ax"
    .global _start
_start:
    to_little_endian

    mftb    6                       // the fourth argument
    // No floating point, no interrupts: whatever uses them by mistake shall be noticed.
    li      8, 0x1000               // MSR[ME]
    li      9, 1
    sldi    9, 9, 63                // MSR[SF]
    or      8, 8, 9
    ori     8, 8, 3                 // MSR[RI], MSR[LE]
    mtmsrd  8

    address 8, __bss_start
    address 9, __bss_end
    li      10, 0
1:  cmpld   8, 9
    bge     2f
    std     10, 0(8)
    addi    8, 8, 8
    b       1b
2:
    address 1, __boot_stack_top
    li      10, 0
    stdu    10, -64(1)              // a zero back chain ends every backtrace
    address 2, .TOC.
    address 8, {boot_cpu}
    mtsprg  0, 8
    bl      {main}
    nop
    trap
    b       .

    // A CPU that RTAS has started: r3 = its `Cpu`, which says in its first word where the stack is.
    .global secondary_entry
secondary_entry:
    to_little_endian
    li      8, 0x1000
    li      9, 1
    sldi    9, 9, 63
    or      8, 8, 9
    ori     8, 8, 3
    mtmsrd  8
    mtsprg  0, 3
    ld      1, 0(3)
    li      10, 0
    stdu    10, -64(1)
    address 2, .TOC.
    bl      {secondary}
    nop
    trap
    b       .
    "#,
    end_of_macros!(),
    boot_cpu = sym BOOT_CPU,
    main = sym crate::main,
    secondary = sym crate::smp::secondary,
);

unsafe extern "C" {
    static __image_start: u8;
    static __image_end: u8;
    static __boot_stacks_start: u8;
    static __heap_start: u8;
    static __heap_end: u8;
    fn secondary_entry();
}

/// The image with its stacks and heap: first byte, and first byte behind.
pub(crate) fn image() -> (u64, u64) {
    (
        address(&raw const __image_start),
        address(&raw const __image_end),
    )
}

/// The heap: first byte, and first byte behind.
pub(crate) fn heap() -> (u64, u64) {
    (
        address(&raw const __heap_start),
        address(&raw const __heap_end),
    )
}

/// The memory for the boot CPU's stacks.
pub(crate) fn boot_stacks() -> u64 {
    address(&raw const __boot_stacks_start)
}

/// Where a CPU that RTAS starts begins.
pub(crate) fn secondary_address() -> u64 {
    address(secondary_entry as *const ())
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.addr() as u64
}
