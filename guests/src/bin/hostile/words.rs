//! Instruction words: random ones of a kind, and what must not be executed.
//!
//! Encodings are those of [DDI 0487 C4].

use guests::random::Random;

/// A kind of instruction: the fixed bits, and which bits are random.
type Pattern = (u32, u32);

/// Loads and stores. Bits 4:0 are Rt, 9:5 Rn; the size is in bits 31:30.
const LOADS_AND_STORES: [Pattern; 25] = [
    // Unsigned offset, general and SIMD.
    (0x3900_0000, 0xc0c0_03ff),
    (0x3900_0000, 0xc0ff_ffff),
    (0x3d00_0000, 0xc0c0_03ff),
    // Unscaled, post-index, unprivileged, pre-index, general and SIMD.
    (0x3800_0000, 0xc0df_ffff),
    (0x3800_0000, 0xc0c0_0fff),
    (0x3c00_0000, 0xc0df_ffff),
    // Register offset.
    (0x3820_0800, 0xc0df_f3ff),
    (0x3c20_0800, 0xc0df_f3ff),
    // Pairs: no-allocate, post, offset, pre; general and SIMD.
    (0x2800_0000, 0xc1ff_ffff),
    (0x2900_0000, 0xc0c0_7fff),
    (0x2c00_0000, 0xc1ff_ffff),
    // Exclusives, pairs of them, acquire, release, CAS.
    (0x0800_0000, 0xc0ff_ffff),
    (0x0800_7c00, 0xc0ff_83ff),
    (0x0880_7c00, 0xc07f_83ff),
    (0x08a0_7c00, 0xc05f_83ff),
    // Atomics: LDADD and its like, SWP, LDAPR.
    (0x3820_0000, 0xc0df_f3ff),
    // LDAPUR, STLUR.
    (0x1900_0000, 0xc0df_f3ff),
    // SIMD structures, multiple and single, plain and post-index.
    (0x0c00_0000, 0x4040_ffff),
    (0x0c80_0000, 0x405f_ffff),
    (0x0d00_0000, 0x4060_ffff),
    (0x0d80_0000, 0x407f_ffff),
    // Authenticated loads.
    (0xf820_0400, 0x00df_fbff),
    // Tags.
    (0xd920_0000, 0x00df_ffff),
    // LDR literal and PRFM.
    (0x1800_0000, 0xc4ff_ffff),
    // SVE: contiguous loads.
    (0xa400_0000, 0x01ff_ffff),
];

/// A load or store. Half of them go by x1, which the caller may point somewhere.
pub(crate) fn load_or_store(random: &mut Random) -> u32 {
    let (fixed, open) = random.of(&LOADS_AND_STORES);
    let word = fixed | random.word() & open;
    if random.one_in(2) { by_x1(word) } else { word }
}

/// A plain store or load of any width at x1.
pub(crate) fn access_at_x1(random: &mut Random) -> u32 {
    by_x1(0x3900_0000 | random.word() & 0xc0c0_001f)
}

const fn by_x1(word: u32) -> u32 {
    word & !(0x1f << 5) | 1 << 5
}

/// MRS, MSR, SYS, SYSL, PSTATE: any encoding.
pub(crate) fn system(random: &mut Random) -> u32 {
    0xd500_0000 | random.word() & 0x003f_ffff
}

/// MRS or MSR of what EL1 has: less is wasted on what is undefined everywhere.
pub(crate) fn system_register(random: &mut Random) -> u32 {
    let op1 = random.of(&[0, 0, 0, 3, 3, 4, 6_u32]);
    let crn = random.of(&[0, 0, 1, 4, 5, 9, 10, 11, 12, 12, 13, 14, 15_u32]);
    0xd510_0000 | random.word() & 0x0028_0fff | op1 << 16 | crn << 12
}

/// `DC ISW`, `CSW`, `CISW`, or another cache or TLB operation.
pub(crate) fn maintenance(random: &mut Random) -> u32 {
    match random.below(5) {
        0 => 0xd508_7640 | random.word() & 0x1f,
        1 => 0xd508_7a40 | random.word() & 0x1f,
        2 => 0xd508_7e40 | random.word() & 0x1f,
        // CRn 7 and 8, op1 0 and 3.
        3 => 0xd508_7000 | random.word() & 0x0003_0fff,
        _ => 0xd508_8000 | random.word() & 0x0003_0fff,
    }
}

/// A write of x0 to 3 to a timer, GIC or other register that the hypervisor lives by.
pub(crate) fn write_of(random: &mut Random, registers: &[u32]) -> u32 {
    0xd510_0000 | random.of(registers) << 5 | random.word() & 3
}

const fn register(op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    // op0 = 3, without the 1 that MSR has anyway.
    (0x8 << 11) | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// `CNTV_*` and `CNTP_*`: TVAL, CTL, CVAL.
pub(crate) const TIMERS: [u32; 6] = [
    register(3, 14, 3, 0),
    register(3, 14, 3, 1),
    register(3, 14, 3, 2),
    register(3, 14, 2, 0),
    register(3, 14, 2, 1),
    register(3, 14, 2, 2),
];

/// `ICC_SGI1R`, `ICC_ASGI1R`, `ICC_SGI0R`.
pub(crate) const SGIS: [u32; 4] = [
    register(0, 12, 11, 5),
    register(0, 12, 11, 5),
    register(0, 12, 11, 6),
    register(0, 12, 11, 7),
];

/// The GIC's CPU interface: PMR, IAR (a write), EOIR, BPR0, CTLR, IGRPEN, DIR, AP0R0, AP1R0, SRE.
pub(crate) const CPU_INTERFACE: [u32; 10] = [
    register(0, 4, 6, 0),
    register(0, 12, 8, 1),
    register(0, 12, 12, 1),
    register(0, 12, 8, 3),
    register(0, 12, 12, 4),
    register(0, 12, 12, 7),
    register(0, 12, 11, 1),
    register(0, 12, 8, 4),
    register(0, 12, 9, 0),
    register(0, 12, 12, 5),
];

/// `HVC` or `SMC` with any immediate.
pub(crate) fn call(random: &mut Random) -> u32 {
    let kind = random.of(&[0xd400_0002, 0xd400_0002, 0xd400_0003_u32]);
    let immediate = if random.one_in(2) {
        0
    } else {
        random.word() & 0xffff
    };
    kind | immediate << 5
}

/// `BR x1`.
pub(crate) const JUMP: u32 = 0xd61f_0020;
/// `BLR x1`.
pub(crate) const CALL: u32 = 0xd63f_0020;
/// `ERET`.
pub(crate) const ERET: u32 = 0xd69f_03e0;
/// `STP x2, x3, [sp, #-16]!`.
pub(crate) const PUSH: u32 = 0xa9bf_0fe2;
/// `LDP x2, x3, [sp], #16`.
pub(crate) const POP: u32 = 0xa8c1_0fe2;
/// `SVC #0`: how a piece of random code ends.
pub(crate) const SVC: u32 = 0xd400_0001;

/// The word, made harmless to the guest itself where need be.
///
/// What is left out kills the guest and nobody else, and ends the test: its own translation regime,
/// its vectors. Branches go forward, into zeroes, so that nothing loops.
pub(crate) fn tame(word: u32) -> u32 {
    if word & 0xfff0_0000 == 0xd510_0000 {
        let crm_and_op2 = word >> 5 & 0x7f;
        let (op0, op1, crn) = (word >> 19 & 3, word >> 16 & 7, word >> 12 & 0xf);
        let is_own = op0 == 3
            && op1 == 0
            && match crn {
                // SCTLR, SCTLR2; RGSR and GCR stay.
                1 => matches!(crm_and_op2, 0 | 3),
                // TTBR0, TTBR1, TCR, TCR2.
                2 => crm_and_op2 < 4,
                // MAIR.
                10 => crm_and_op2 >> 3 == 2,
                // VBAR, RMR. And ICC_BPR1: QEMU ends itself when its low three bits are 0 and a higher
                // one is not, seen with 10.0.2 (`icv_gprio_mask`: assertion `bpr > 0`).
                12 => crm_and_op2 < 8 || crm_and_op2 == 12 << 3 | 3,
                _ => false,
            };
        return if is_own { 0xd503_201f } else { word };
    }
    // B, BL: 18 bits forward, not to itself.
    if word & 0x7c00_0000 == 0x1400_0000 {
        return word & 0xfc01_ffff | 0x100;
    }
    // B.cond and CBZ, CBNZ: 19 bits in 23:5.
    if word & 0xfe00_0000 == 0x5400_0000 || word & 0x7e00_0000 == 0x3400_0000 {
        return word & !(1 << 23) | 0x100 << 5;
    }
    // TBZ, TBNZ: 14 bits in 18:5.
    if word & 0x7e00_0000 == 0x3600_0000 {
        return word & !(1 << 18) | 0x100 << 5;
    }
    word
}
