//! Running something that may not come back: whatever exception it meets brings its CPU back to where
//! it was called from, with the exception's vector.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

/// What a cage keeps of a CPU: LR, r1, r2, CR, r14 to r31, then SRR0, SRR1 and DAR of the exception.
#[repr(C, align(64))]
struct Kept([AtomicU64; 32]);

static KEPT: [Kept; 2] = [const { Kept([const { AtomicU64::new(0) }; 32]) }; 2];
const SRR0: usize = 22;
const DAR: usize = 24;

global_asm!(
    r#"
    .text
    // r3 = what to run, r4 and r5 = its arguments. r3 = 0 when it came back, else the vector.
    .global guest_cage
guest_cage:
    mflr    0
    mfcr    7
    mfsprg  6, 2
    std     0, 0(6)
    std     1, 8(6)
    std     2, 16(6)
    std     7, 24(6)
    .set    n, 14
    .rept   18
    std     n, 32+8*(n-14)(6)
    .set    n, n+1
    .endr
    stdu    1, -112(1)
    mr      12, 3
    mtctr   3
    mr      3, 4
    mr      4, 5
    bctrl
    li      3, 0
guest_cage_out:
    mfsprg  6, 2
    ld      0, 0(6)
    ld      1, 8(6)
    ld      2, 16(6)
    ld      7, 24(6)
    .set    n, 14
    .rept   18
    ld      n, 32+8*(n-14)(6)
    .set    n, n+1
    .endr
    mtlr    0
    mtcr    7
    // Interrupts off, whatever ran has left on.
    li      7, 2
    mtmsrd  7, 1
    blr

    // Every vector comes here with its number in r3.
    .global guest_exception
guest_exception:
    mfsprg  6, 2
    cmpdi   6, 0
    bne     1f
    li      3, 1
    b       guest_secondary_again
1:
    mfsrr0  7
    std     7, 176(6)
    mfsrr1  7
    std     7, 184(6)
    mfdar   7
    std     7, 192(6)
    b       guest_cage_out
    "#
);

unsafe extern "C" {
    fn guest_cage(run: extern "C" fn(u64, u64), first: u64, second: u64) -> u64;
    fn guest_exception();
}

/// Puts the vectors in place, for both CPUs, and makes the first CPU ready for cages.
pub fn use_vectors() {
    const MTSPRG1_R3: u32 = 0x7c71_43a6;
    const LI_R3: u32 = 0x3860_0000;
    const BRANCH_ABSOLUTE: u32 = 0x4800_0002;
    let target = (guest_exception as *const ()).addr() as u64 as u32 & 0x01ff_fffc;
    for vector in (0x100_u32..0x1000).step_by(0x20) {
        let stub = [MTSPRG1_R3, LI_R3 | vector, BRANCH_ABSOLUTE | target];
        for (at, word) in (vector as usize..).step_by(4).zip(stub) {
            let at = core::ptr::with_exposed_provenance_mut::<u32>(at);
            // SAFETY: the guest's memory begins at 0, and nothing else is there.
            unsafe { at.write_volatile(word) };
        }
        // SAFETY: cache maintenance.
        unsafe {
            asm!("dcbst 0, {0}", "sync", "icbi 0, {0}", "isync", in(reg) vector as usize);
        }
    }
    // Interrupts arrive in little-endian mode.
    crate::hcall::call(crate::hcall::SET_MODE, [1, 4, 0, 0]);
    enter_cpu(0);
}

/// Makes this CPU ready for cages.
pub fn enter_cpu(cpu: usize) {
    let kept = core::ptr::from_ref(&KEPT[cpu]).expose_provenance();
    // SAFETY: SPRG2 is the cage's.
    unsafe { asm!("mtsprg 2, {}", in(reg) kept) };
}

/// How something ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It came back.
    Completed,
    /// By an exception with this vector.
    Exception(u64),
}

/// Runs something with two arguments. Interrupts are off before and after.
pub fn run(what: extern "C" fn(u64, u64), first: u64, second: u64) -> Left {
    // SAFETY: whatever it does to registers is undone; what it does to memory is the caller's.
    match unsafe { guest_cage(what, first, second) } {
        0 => Left::Completed,
        vector => Left::Exception(vector),
    }
}

/// SRR0 and DAR of the last exception of a CPU.
pub fn last(cpu: usize) -> [u64; 2] {
    [SRR0, DAR].map(|at| KEPT[cpu].0[at].load(Ordering::Relaxed))
}
