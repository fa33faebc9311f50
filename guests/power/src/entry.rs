//! The first instructions: from 64-bit big-endian real mode, r3 = the device tree or what the starter
//! gave.

use core::arch::global_asm;

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
    address 8, __bss_start
    address 9, __bss_end
    li      10, 0
1:  cmpld   8, 9
    bge     2f
    std     10, 0(8)
    addi    8, 8, 8
    b       1b
2:  address 1, __stacks
    addis   1, 1, 1                 // two stacks of 0x8000: the second is the first CPU's
    stdu    10, -64(1)
    address 2, .TOC.
    bl      guest_main
    nop
    trap

    .global guest_secondary_entry
guest_secondary_entry:
    to_little_endian
    // An exception that came before there was a cage begins here again.
    .global guest_secondary_again
guest_secondary_again:
    address 1, __stacks
    addi    1, 1, 0x7fc0
    li      10, 0
    std     10, 0(1)
    address 2, .TOC.
    bl      guest_secondary
    nop
    trap
    .text
    .purgem big_endian
    .purgem to_little_endian
    .purgem address
    "#
);

unsafe extern "C" {
    fn guest_secondary_entry();
}

/// Where a CPU that is started begins.
pub(crate) fn secondary() -> u64 {
    (guest_secondary_entry as *const ()).addr() as u64
}
