//! Hypercalls.

use core::arch::asm;

/// Reads a DMA translation.
pub const GET_TCE: u64 = 0x1c;
/// Writes a DMA translation.
pub const PUT_TCE: u64 = 0x20;
/// Writes the same DMA translation to several entries.
pub const STUFF_TCE: u64 = 0x138;
/// Writes a list of DMA translations.
pub const PUT_TCE_INDIRECT: u64 = 0x13c;
/// The end of an interrupt.
pub const EOI: u64 = 0x64;
/// The priority that interrupts must be above.
pub const CPPR: u64 = 0x68;
/// Asks a CPU to look.
pub const IPI: u64 = 0x6c;
/// Accepts an interrupt.
pub const XIRR: u64 = 0x74;
/// Takes what was typed.
pub const GET_TERM_CHAR: u64 = 0x54;
/// Prints.
pub const PUT_TERM_CHAR: u64 = 0x58;
/// Waits.
pub const CEDE: u64 = 0xe0;
/// Gives the thread to others.
pub const CONFER: u64 = 0xe4;
/// Ends the wait of a CPU.
pub const PROD: u64 = 0xe8;
/// Waits for a prod.
pub const JOIN: u64 = 0x298;
/// How interrupts arrive.
pub const SET_MODE: u64 = 0x31c;
/// Where the process table is.
pub const REGISTER_PROC_TBL: u64 = 0x37c;
/// QEMU's own: a run-time service.
pub const RTAS: u64 = 0xf000;

/// Makes a call. Status, and r4.
pub fn call(number: u64, arguments: [u64; 4]) -> (i64, u64) {
    let (status, [first, ..]) = values(number, arguments);
    (status, first)
}

/// Makes a call. Status, and r4 to r9.
pub fn values(number: u64, arguments: [u64; 4]) -> (i64, [u64; 6]) {
    let [mut r4, mut r5, mut r6, mut r7] = arguments;
    let (r8, r9): (u64, u64);
    let status: i64;
    // SAFETY: what it does to memory is the caller's; registers that it may change are named.
    unsafe {
        asm!(
            "sc 1",
            inout("r3") number => status,
            inout("r4") r4,
            inout("r5") r5,
            inout("r6") r6,
            inout("r7") r7,
            out("r8") r8, out("r9") r9,
            out("r0") _, out("r10") _, out("r11") _, out("r12") _,
            out("ctr") _, out("lr") _, out("xer") _,
            out("cr0") _, out("cr1") _, out("cr5") _, out("cr6") _, out("cr7") _,
        );
    }
    (status, [r4, r5, r6, r7, r8, r9])
}
