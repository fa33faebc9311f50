//! Where the guest keeps what, and the values that it throws about.

use guests::platform::{GICD, GICR, RAM, RTC, UART};

use guests::random::Random;

/// The CPUs' parts for code are this far apart, further than a conditional branch reaches.
const CODE_STRIDE: u64 = 8 << 20;
/// Where the first CPU's code is: in the middle of zeroes, which are no instructions.
const CODE: u64 = 0x4110_0000;
/// Memory that may be written at will.
const SCRATCH: u64 = 0x4380_0000;
const SCRATCH_BYTES: u64 = 4 << 20;
/// Zeroes.
const ZEROES: u64 = 0x4080_0000;
/// Translation tables: two pages for each CPU.
const TABLES: u64 = 0x4060_0000;

/// Where a CPU's random code goes.
pub(crate) const fn code(cpu: usize) -> u64 {
    CODE + cpu as u64 * CODE_STRIDE
}

/// Where a CPU's copy of the vectors goes.
pub(crate) const fn vectors(cpu: usize) -> u64 {
    0x4040_0000 + cpu as u64 * 0x1_0000
}

/// A CPU's lower and upper translation table.
pub(crate) const fn tables(cpu: usize) -> (u64, u64) {
    let first = TABLES + cpu as u64 * 0x1_0000;
    (first, first + 0x1000)
}

/// The devices: base and bytes.
const DEVICES: [(u64, u64); 6] = [
    (GICD as u64, 0x1_0000),
    (GICD as u64, 0x1000),
    // Four redistributors, and where a fifth would be.
    (GICR as u64, 5 * 0x2_0000),
    (UART as u64, 0x1000),
    (UART as u64, 0x60),
    (RTC as u64, 0x1000),
];

/// An address of a device, aligned or not.
pub(crate) fn device(random: &mut Random) -> u64 {
    let (base, bytes) = random.of(&DEVICES);
    let align = random.of(&[0_u64, 1, 3, 3, 3, 7, 15]);
    base + (random.below(bytes) & !align)
}

/// An address outside of memory.
pub(crate) fn nowhere(random: &mut Random) -> u64 {
    let bits = random.of(&[27, 30, 32, 36, 39, 40, 41, 44, 48, 52, 56, 64_u32]);
    let address = random.bits() >> (64 - bits);
    match address {
        // Not the guest's own memory, and what its sums with an offset reach.
        0x3000_0000..0x6000_0000 => address ^ 0x8000_0000,
        _ => address,
    }
}

/// An address in the scratch area, far enough from its ends.
pub(crate) fn scratch(random: &mut Random) -> u64 {
    SCRATCH + 0x1_0000 + random.below(SCRATCH_BYTES - 0x2_0000)
}

/// An address by the tables of `tables.rs`: below, where they are good or garbage, and above.
fn translated(random: &mut Random) -> u64 {
    let address = random.bits() & 0x7f_ffff_ffff;
    match random.below(3) {
        // The upper half is wholly the upper table's.
        0 => address | 0xffff_ff80_0000_0000,
        1 => device(random) | 0xffff_ff80_0000_0000,
        _ => nowhere(random) & 0x7f_ffff_ffff,
    }
}

/// What is put into a register.
pub(crate) fn value(random: &mut Random) -> u64 {
    match random.below(16) {
        0..=4 => device(random),
        5 | 6 => nowhere(random),
        7..=9 => scratch(random),
        10 => translated(random),
        11 => random.below(4096),
        12 => random.of(&[0, u64::MAX, 1 << 63, u64::MAX >> 1, u64::MAX << 12]),
        13 => 1 << random.below(64),
        14 => (random.below(4096)).wrapping_neg(),
        _ => random.bits() | 1 << 60,
    }
}

/// Where to jump to: never into what the guest itself needs.
pub(crate) fn target(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => ZEROES + random.below(1 << 20),
        1 => device(random),
        2 => nowhere(random) & !3,
        _ => nowhere(random),
    }
}

/// A target that holds no memory at all.
pub(crate) fn empty_target(random: &mut Random) -> u64 {
    nowhere(random)
}

const _: () = assert!(SCRATCH + SCRATCH_BYTES <= RAM as u64 + (64 << 20));
const _: () = assert!(code(3) + CODE_STRIDE / 2 <= SCRATCH);
