//! Where the guest keeps what, and patterns.
//!
//! The image and the device tree are below 0x4040_0000. The last page of every 2 MiB is kept free: it is
//! what a sweep aims at.

use guests::{its, mmio, smmu};

/// Tables and queue of the ITS, 2 MiB.
pub(crate) const ITS: its::Area = its::Area(0x4040_0000);
/// Tables and queues of the SMMU, 2 MiB.
pub(crate) const SMMU: smmu::Area = smmu::Area(0x4080_0000);
/// A command queue of 2^19 entries: 8 MiB.
pub(crate) const BIG_COMMANDS: u64 = 0x4100_0000;
/// An event queue of 2^19 entries: 16 MiB.
pub(crate) const BIG_EVENTS: u64 = 0x4200_0000;
/// A page that DMA is read from.
pub(crate) const SOURCE: u64 = 0x4300_0000;
/// A page that DMA is written to.
pub(crate) const TARGET: u64 = 0x4301_0000;
/// A page for what must not arrive.
pub(crate) const BYSTANDER: u64 = 0x4302_0000;
/// From here on memory is free, to its end.
pub(crate) const FREE: u64 = 0x4340_0000;

const _: () = assert!(ITS.0 + its::AREA_BYTES <= SMMU.0);
const _: () = assert!(SMMU.0 + smmu::AREA_BYTES <= BIG_COMMANDS);

fn place(address: u64) -> usize {
    usize::try_from(address).unwrap_or(0)
}

/// Reads a word.
pub(crate) fn read(address: u64) -> u64 {
    mmio::read64(place(address))
}

/// Writes a word.
pub(crate) fn write(address: u64, value: u64) {
    mmio::write64(place(address), value);
}

/// What a place is filled with: no two places are alike, and none is zero.
pub(crate) const fn pattern(address: u64, salt: u64) -> u64 {
    (address ^ salt.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << 63
}

/// Fills memory with its pattern.
pub(crate) fn fill(address: u64, bytes: u64, salt: u64) {
    for at in (address..address + bytes).step_by(8) {
        write(at, pattern(at, salt));
    }
}

/// Fills memory with one word.
pub(crate) fn fill_with(address: u64, bytes: u64, value: u64) {
    for at in (address..address + bytes).step_by(8) {
        write(at, value);
    }
}

/// The first place where the pattern is not.
pub(crate) fn spoilt(address: u64, bytes: u64, salt: u64) -> Option<u64> {
    (address..address + bytes)
        .step_by(8)
        .find(|&at| read(at) != pattern(at, salt))
}

/// The first place where `to` has not what was at `from`.
pub(crate) fn differs(from: u64, to: u64, bytes: u64) -> Option<u64> {
    (0..bytes)
        .step_by(8)
        .find(|&at| read(from + at) != read(to + at))
        .map(|at| to + at)
}
