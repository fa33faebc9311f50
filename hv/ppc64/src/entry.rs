//! The first instructions, of the boot CPU and of the others.
//!
//! A PAPR platform enters an image in 32-bit big-endian real mode, even a little-endian ELF, with
//! r3 and r4 = base and size of the initrd or zero, r5 = the Open Firmware entry [LoPAPR §B.6]. CPUs
//! that RTAS starts arrive in 64-bit big-endian real mode with r3 as given.

use core::arch::global_asm;

use crate::cpu::BOOT_CPU;

// The assembler knows one byte order only, so what runs before the switch is written as words. The
// code after the words starts in 64-bit little-endian mode at the next address; r3 to r9 are kept.
global_asm!(
    r#"
    .macro  big_endian word
    .long   ((\word & 0xff) << 24) | ((\word & 0xff00) << 8) | ((\word >> 8) & 0xff00) | (\word >> 24)
    .endm

    .macro  to_little_endian
    big_endian 0x429f0005           // bcl    20,31,.+4
    big_endian 0x7d8802a6           // mflr   r12
    big_endian 0x7d6000a6           // mfmsr  r11
    big_endian 0x39400001           // li     r10,1
    big_endian 0x794af806           // sldi   r10,r10,63       MSR[SF]
    big_endian 0x7d6b5378           // or     r11,r11,r10
    big_endian 0x616b0001           // ori    r11,r11,1        MSR[LE]
    big_endian 0x398c0028           // addi   r12,r12,40       the word after these
    big_endian 0x7d9a03a6           // mtsrr0 r12
    big_endian 0x7d7b03a6           // mtsrr1 r11
    big_endian 0x4c000024           // rfid
    .endm

    .macro  address register, symbol
    lis     \register, \symbol@h
    ori     \register, \register, \symbol@l
    .endm

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
