//! The exception vectors, and the report of an exception that nobody expected.
//!
//! Interrupts are off but while a CPU sleeps, and what comes from a guest comes as the outcome of a
//! call to the platform. So every vector saves the state on a stack of its own and reports it, but
//! those of what wakes a CPU that sleeps, or may: they return at once.

use core::arch::global_asm;
use core::fmt::Write;

use boot::Verdict;

use crate::assembly::{end_of_macros, macros};
use crate::cpu::{self, Cpu};
use crate::{panic, spr};

/// The first vector.
const FIRST: usize = 0x100;
/// The end of the vectors that may be taken with relocation off.
const END: usize = 0x1000;
/// From one vector to the next.
const STEP: usize = 0x20;

/// The state at an exception, as the vectors store it.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Frame {
    gpr: [u64; 32],
    srr0: u64,
    srr1: u64,
    lr: u64,
    ctr: u64,
    xer: u64,
    cr: u64,
    dar: u64,
    dsisr: u64,
}

/// The frame, and the header that the ABI asks for below it.
const FRAME: usize = size_of::<Frame>() + 32;
const _: () = assert!(size_of::<Frame>() == 320 && FRAME.is_multiple_of(16));

global_asm!(
    macros!(),
    r#"
    // Every vector comes here with r3 in SPRG1 and its own number in r3.
    .section .text.vectors, "ax"
    .global exception
exception:
    mtsprg  2, 4
    mtsprg  3, 5
    mfcr    5
    mfsprg  4, 0                    // the CPU
    std     6, 32(4)                // scratch
    ld      6, 24(4)                // depth
    addi    6, 6, 1
    std     6, 24(4)
    cmpldi  6, 2
    blt     1f
    beq     2f
    b       hard_stop
1:  ld      6, 8(4)                 // the emergency stack
    b       3f
2:  ld      6, 16(4)                // the last stack
3:  addi    6, 6, -{frame}
    std     0, 32+0*8(6)
    std     1, 32+1*8(6)
    std     2, 32+2*8(6)
    mfsprg  0, 1
    std     0, 32+3*8(6)
    mfsprg  0, 2
    std     0, 32+4*8(6)
    mfsprg  0, 3
    std     0, 32+5*8(6)
    ld      0, 32(4)
    std     0, 32+6*8(6)
    std     7, 32+7*8(6)
    std     8, 32+8*8(6)
    std     9, 32+9*8(6)
    std     10, 32+10*8(6)
    std     11, 32+11*8(6)
    std     12, 32+12*8(6)
    std     13, 32+13*8(6)
    std     14, 32+14*8(6)
    std     15, 32+15*8(6)
    std     16, 32+16*8(6)
    std     17, 32+17*8(6)
    std     18, 32+18*8(6)
    std     19, 32+19*8(6)
    std     20, 32+20*8(6)
    std     21, 32+21*8(6)
    std     22, 32+22*8(6)
    std     23, 32+23*8(6)
    std     24, 32+24*8(6)
    std     25, 32+25*8(6)
    std     26, 32+26*8(6)
    std     27, 32+27*8(6)
    std     28, 32+28*8(6)
    std     29, 32+29*8(6)
    std     30, 32+30*8(6)
    std     31, 32+31*8(6)
    mfsrr0  0
    std     0, 32+32*8(6)
    mfsrr1  0
    std     0, 32+33*8(6)
    mflr    0
    std     0, 32+34*8(6)
    mfctr   0
    std     0, 32+35*8(6)
    mfxer   0
    std     0, 32+36*8(6)
    std     5, 32+37*8(6)
    mfdar   0
    std     0, 32+38*8(6)
    mfdsisr 0
    std     0, 32+39*8(6)
    li      0, 0
    std     0, 0(6)                 // the end of the back chain
    mr      1, 6
    address 2, .TOC.
    addi    4, 6, 32
    bl      {unexpected}
    nop

    // The report of the report has failed: say so without a stack, without memory that may be
    // spoilt, and turn the machine off.
    .global hard_stop
hard_stop:
    address 14, hard_stop_text
    li      15, (hard_stop_text_end - hard_stop_text) / 16
1:  li      3, 0x58                 // H_PUT_TERM_CHAR
    li      4, 0
    li      5, 16
    ldbrx   6, 0, 14
    addi    14, 14, 8
    ldbrx   7, 0, 14
    addi    14, 14, 8
    sc      1
    addic.  15, 15, -1
    bne     1b
    lis     3, 0
    ori     3, 3, 0xf000            // H_RTAS
    address 4, {power_off}
    sc      1
2:  or      31, 31, 31
    b       2b

    // Proves that an interrupt arrives here, in the right byte order, and can be returned from.
    .global probe_stub
probe_stub:
    addi    3, 3, 1
    rfid
    .global probe_stub_end
probe_stub_end:

    .section .rodata.hard_stop, "a"
    .balign 16
hard_stop_text:
    .ascii  "\r\nbulkhead: verdict 1: failed over and over while a failure was being reported\r\n"
    .balign 16, 0x20
hard_stop_text_end:
    .text
    "#,
    end_of_macros!(),
    frame = const FRAME,
    unexpected = sym unexpected,
    power_off = sym crate::rtas::POWER_OFF,
);

unsafe extern "C" {
    fn exception();
    fn probe_stub();
    fn hard_stop() -> !;
}

/// Says that the end has failed, and ends, without a stack.
pub(crate) fn stop_hard() -> ! {
    // SAFETY: it needs nothing of us and does not return.
    unsafe { hard_stop() }
}

/// Why the vectors do not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("{0}")]
    ByteOrder(#[from] crate::hcall::ModeRefused),
    #[error("a system call came back with {0}, not with 1")]
    Probe(u64),
}

/// Puts the vectors in place and tries one.
///
/// # Safety
/// The memory from 0 to 0x1000 must be nobody else's, and the CPU's `Cpu` must be complete.
pub(crate) unsafe fn install() -> Result<(), Unusable> {
    for vector in (FIRST..END).step_by(STEP) {
        // SAFETY: the caller gives us this memory.
        unsafe { put_stub(vector) };
    }
    // SAFETY: ours, as above.
    unsafe { put(DECREMENTER, &POSTPONE) };
    for vector in [EXTERNAL, DOORBELL] {
        // SAFETY: ours, as above.
        unsafe { put(vector, &MASK) };
    }
    // SAFETY: a system call is the one exception that can be had on purpose and returned from; its
    // vector is for this alone until it is put back below.
    unsafe { put(SYSTEM_CALL, &branch_to(probe_stub as *const ())) };
    crate::hcall::little_endian_interrupts()?;
    let answer: u64;
    // SAFETY: the vector adds one to r3 and returns; interrupts change SRR0 and SRR1 only.
    unsafe {
        core::arch::asm!(
            "sc",
            inout("r3") 0_u64 => answer,
            out("lr") _, out("ctr") _, out("r0") _,
        );
    }
    // SAFETY: as above.
    unsafe { put_stub(SYSTEM_CALL) };
    if answer == 1 {
        Ok(())
    } else {
        Err(Unusable::Probe(answer))
    }
}

const SYSTEM_CALL: usize = 0xc00;
const DECREMENTER: usize = 0x900;

/// The decrementer runs always, is used for nothing, and comes through when an idle CPU waits with
/// interrupts on: it is set anew and forgotten.
const POSTPONE: [u32; 5] = [
    0x7c71_43a6, // mtsprg 1,r3
    0x3c60_7fff, // lis    r3,0x7fff
    0x7c76_03a6, // mtdec  r3
    0x7c71_42a6, // mfsprg r3,1
    0x4c00_0024, // rfid
];

const EXTERNAL: usize = 0x500;
/// A doorbell that a guest has rung for itself and left behind.
const DOORBELL: usize = 0xa00;

/// What wakes an idle CPU stays pending until it is accepted, so the CPU goes on with interrupts off.
const MASK: [u32; 7] = [
    0x7c71_43a6, // mtsprg 1,r3
    0x7c7b_02a6, // mfsrr1 r3
    0x7863_8042, // rldicl r3,r3,48,1
    0x7863_8000, // rldicl r3,r3,16,0
    0x7c7b_03a6, // mtsrr1 r3
    0x7c71_42a6, // mfsprg r3,1
    0x4c00_0024, // rfid
];

/// An absolute branch, for one of the first 32 MiB. [Power ISA 3.1B Book I §2.4]
fn branch_to(target: *const ()) -> [u32; 1] {
    const BRANCH_ABSOLUTE: u32 = 0x4800_0002;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the image lies below 32 MiB"
    )]
    let target = target.addr() as u32;
    [BRANCH_ABSOLUTE | target & 0x01ff_fffc]
}

/// # Safety
/// The 32 bytes at `vector` must be ours.
unsafe fn put_stub(vector: usize) {
    const MTSPRG1_R3: u32 = 0x7c71_43a6;
    const LI_R3: u32 = 0x3860_0000;
    // Vectors fit the 16-bit operand without a sign.
    let li = LI_R3 | u32::try_from(vector).unwrap_or(0);
    let [branch] = branch_to(exception as *const ());
    // SAFETY: passed on to the caller.
    unsafe { put(vector, &[MTSPRG1_R3, li, branch]) };
}

/// # Safety
/// The memory for the instructions at `vector` must be ours.
unsafe fn put(vector: usize, instructions: &[u32]) {
    for (address, instruction) in (vector..).step_by(4).zip(instructions) {
        let pointer = core::ptr::with_exposed_provenance_mut::<u32>(address);
        // SAFETY: the caller gives us the memory.
        unsafe { pointer.write_volatile(*instruction) };
    }
    flush(vector);
}

/// Makes the instructions at `address` those that were written. [Power ISA 3.1B Book II §1.9]
fn flush(address: usize) {
    // SAFETY: cache maintenance changes no data.
    unsafe {
        core::arch::asm!(
            "dcbst 0, {0}", "sync", "icbi 0, {0}", "isync",
            in(reg) address, options(nostack),
        );
    }
}

/// What a vector is for. [Power ISA 3.1B Book III §7.5]
fn name(vector: u64) -> &'static str {
    match vector {
        0x100 => "system reset",
        0x200 => "machine check",
        0x300 => "data storage",
        0x380 => "data segment",
        0x400 => "instruction storage",
        0x480 => "instruction segment",
        0x500 => "external",
        0x600 => "alignment",
        0x700 => "program",
        0x800 => "floating-point unavailable",
        0x900 => "decrementer",
        0x980 => "hypervisor decrementer",
        0xa00 => "privileged doorbell",
        0xc00 => "system call",
        0xd00 => "trace",
        0xe00 => "hypervisor data storage",
        0xe20 => "hypervisor instruction storage",
        0xe40 => "hypervisor emulation assistance",
        0xe60 => "hypervisor maintenance",
        0xe80 => "hypervisor doorbell",
        0xea0 => "hypervisor virtualization",
        0xf00 => "performance monitor",
        0xf20 => "vector unavailable",
        0xf40 => "VSX unavailable",
        0xf60 => "facility unavailable",
        0xf80 => "hypervisor facility unavailable",
        _ => "reserved",
    }
}

/// Why a program interrupt came: SRR1 bits 42 to 46. [Power ISA 3.1B Book III §7.5.9]
fn program(srr1: u64) -> &'static str {
    match srr1 >> 16 & 0x3f {
        bits if bits & 0x20 != 0 => "TM bad thing",
        bits if bits & 0x10 != 0 => "floating-point exception",
        bits if bits & 0x08 != 0 => "illegal instruction",
        bits if bits & 0x04 != 0 => "privileged instruction",
        bits if bits & 0x02 != 0 => "trap",
        _ => "other",
    }
}

/// DSISR: the access matched a watchpoint. [Power ISA 3.1B Book III §7.5.3]
const WATCHPOINT: u64 = 1 << 22;
/// DSISR: the access was a store.
const STORE: u64 = 1 << 25;

extern "C" fn unexpected(vector: u64, frame: &Frame) -> ! {
    let mut out = panic::begin();
    let cpu = cpu::this();
    let overflow = vector == 0x300
        && frame.dsisr & WATCHPOINT != 0
        && frame.dar.wrapping_sub(cpu.guard()) < cpu::GUARD
        || !cpu.guard_is_whole();
    let _ = report(&mut out, vector, frame, cpu);
    let _ = panic::backtrace(&mut out, cpu, frame.gpr[1], Some(frame.lr));
    panic::end(Verdict::Fatal(if overflow {
        "stack overflow"
    } else {
        "unexpected exception"
    }))
}

fn report(out: &mut impl Write, vector: u64, frame: &Frame, cpu: &Cpu) -> core::fmt::Result {
    write!(
        out,
        "\nbulkhead: EXCEPTION on CPU {} (server {}): vector {vector:#x}, {}",
        cpu.number(),
        cpu.server(),
        name(vector)
    )?;
    match vector {
        0x700 => writeln!(out, ": {}", program(frame.srr1))?,
        0x300 | 0x380 => {
            // Only stores are watched; some platforms do not say so again.
            let access = match frame.dsisr {
                dsisr if dsisr & WATCHPOINT != 0 => "watched store",
                dsisr if dsisr & STORE != 0 => "store",
                _ => "load",
            };
            writeln!(out, ": {access} at {:#x}", frame.dar)?;
        }
        _ => writeln!(out)?,
    }
    writeln!(
        out,
        "  srr0 {:#x} srr1 {:#x} dar {:#x} dsisr {:#x}",
        frame.srr0, frame.srr1, frame.dar, frame.dsisr
    )?;
    panic::registers(out, &frame.gpr)?;
    writeln!(
        out,
        "  lr {:#x} ctr {:#x} xer {:#x} cr {:#x}",
        frame.lr, frame.ctr, frame.xer, frame.cr
    )?;
    writeln!(out, "  msr {:#x} pvr {:#x}", spr::msr(), spr::pvr())?;
    if !cpu.guard_is_whole() {
        writeln!(out, "  the guard below the stack has been written to")?;
    }
    Ok(())
}
