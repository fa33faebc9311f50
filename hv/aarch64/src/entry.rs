//! The first instructions: the arm64 `Image` header, relocation, the first stack.
//!
//! Entered as Linux's arm64 boot protocol says: MMU off, x0 = physical address of the FDT, any
//! 2 MiB-aligned load address, EL2. [Linux Documentation/arch/arm64/booting.rst]

use core::arch::global_asm;

use crate::early;
use crate::image;

/// `SCTLR_EL2` with its RES1 bits and everything else off: MMU, caches, alignment checks, and
/// little-endian. [DDI 0487 D19.2.136]
pub(crate) const SCTLR_EL2_OFF: u64 = 0x30c5_0830;

global_asm!(
    r#"
    .section .head, "ax"
    .global _head
_head:
    b       _start
    .long   0
    .quad   0                               // text_offset
    .quad   __image_size                    // counts .bss and the stacks
    .quad   0b1010                          // little-endian, 4 KiB pages, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   0

_start:
    msr     daifset, #0xf
    mov     x19, x0                         // FDT
    mrs     x20, cntpct_el0                 // when we were entered

    adrp    x9, __boot_stack_top
    add     x9, x9, :lo12:__boot_stack_top
    mov     sp, x9
    mov     x29, xzr

    // Clear .bss.
    adrp    x9, __bss_start
    add     x9, x9, :lo12:__bss_start
    adrp    x10, __bss_end
    add     x10, x10, :lo12:__bss_end
1:  cmp     x9, x10
    b.hs    2f
    stp     xzr, xzr, [x9], #16
    b       1b
2:
    // Relocate: the image is linked at 0. An even entry is the offset of a word to relocate; the bits of
    // an odd one, but the lowest, say which of the 63 words behind those so far are to be too.
    adrp    x11, __image_start
    adrp    x9, __relr_start
    add     x9, x9, :lo12:__relr_start
    adrp    x10, __relr_end
    add     x10, x10, :lo12:__relr_end
3:  cmp     x9, x10
    b.hs    7f
    ldr     x12, [x9], #8
    tbnz    x12, #0, 4f
    add     x13, x12, x11
    ldr     x14, [x13]
    add     x14, x14, x11
    str     x14, [x13], #8
    b       3b
4:  mov     x15, x13
    add     x13, x13, #(63 * 8)
5:  lsr     x12, x12, #1
    cbz     x12, 3b
    tbz     x12, #0, 6f
    ldr     x14, [x15]
    add     x14, x14, x11
    str     x14, [x15]
6:  add     x15, x15, #8
    b       5b
7:
    mrs     x9, CurrentEL
    cmp     x9, #8
    b.ne    8f

    ldr     x9, ={sctlr}
    msr     sctlr_el2, x9
    adrp    x9, vectors
    add     x9, x9, :lo12:vectors
    msr     vbar_el2, x9
    msr     tpidr_el2, xzr
    isb

    // Drop what the caches may hold of the image: everything written so far went around them.
    // Nothing has touched the heap behind it, which is first written through them.
    adrp    x0, __image_start
    adrp    x1, __heap_start
    bl      invalidate_range
    mov     x0, x19
    mov     x1, x20
    bl      {early}
    b       .
8:
    lsr     x1, x9, #2
    mov     x0, x19
    bl      {wrong_level}
    b       .

// x0 = start, x1 = end: invalidates the data cache to the point of coherency.
invalidate_range:
    mrs     x2, ctr_el0
    ubfx    x2, x2, #16, #4
    mov     x3, #4
    lsl     x2, x3, x2
    sub     x3, x2, #1
    bic     x0, x0, x3
1:  cmp     x0, x1
    b.hs    2f
    dc      ivac, x0
    add     x0, x0, x2
    b       1b
2:  dsb     sy
    ret

// A secondary core, by PSCI CPU_ON: MMU off, x0 = physical address of a `Start`
// {{ttbr, stack top, cpu}}.
    .global secondary_entry
secondary_entry:
    msr     daifset, #0xf
    mov     x19, x0
    ldr     x9, ={sctlr}
    msr     sctlr_el2, x9
    adrp    x9, vectors
    add     x9, x9, :lo12:vectors
    msr     vbar_el2, x9
    isb
    ldp     x20, x21, [x19]                 // TTBR0_EL2, stack top
    ldr     x22, [x19, #16]                 // per-CPU data
    ldr     x23, [x19, #24]                 // MAIR_EL2
    ldr     x24, [x19, #32]                 // TCR_EL2
    ldr     x25, [x19, #40]                 // SCTLR_EL2
    msr     tpidr_el2, x22
    msr     mair_el2, x23
    msr     tcr_el2, x24
    msr     ttbr0_el2, x20
    ic      iallu
    tlbi    alle2
    dsb     nsh
    isb
    msr     sctlr_el2, x25
    isb
    mov     sp, x21
    mov     x29, xzr
    mov     x0, x22
    bl      {secondary}
    b       .
    "#,
    sctlr = const SCTLR_EL2_OFF,
    early = sym early::main,
    wrong_level = sym early::wrong_level,
    secondary = sym crate::smp::secondary,
);

unsafe extern "C" {
    fn secondary_entry();
}

/// Where a secondary core starts, for PSCI `CPU_ON`. The map is the identity, so the address of
/// the code is its physical address.
pub(crate) fn secondary_address() -> u64 {
    image::address_of(secondary_entry as *const ())
}
