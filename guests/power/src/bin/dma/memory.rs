//! The guest's own memory: a page to send, pages to receive in, and a pattern in all that is left.

use power_guests::random::Random;

/// What is sent by DMA: 64 KiB.
pub(crate) const SOURCE: u64 = 0xc0_0000;
/// Where it arrives: 64 KiB.
pub(crate) const TARGET: u64 = 0xc1_0000;
/// Lists of entries.
pub(crate) const LIST: u64 = 0xc2_0000;
/// From here on there is nothing but the pattern.
const PATTERN: u64 = 0x100_0000;

/// A word of memory.
pub(crate) fn read(at: u64) -> u64 {
    let at = core::ptr::with_exposed_provenance::<u64>(usize::try_from(at).unwrap_or(0));
    // SAFETY: the guest's memory, which nothing else uses.
    unsafe { at.read_volatile() }
}

/// Sets it.
pub(crate) fn write(at: u64, value: u64) {
    let at = core::ptr::with_exposed_provenance_mut::<u64>(usize::try_from(at).unwrap_or(0));
    // SAFETY: as above.
    unsafe { at.write_volatile(value) };
}

/// Fills words with something that says where it belongs.
pub(crate) fn fill(at: u64, bytes: u64, salt: u64) {
    let mut random = Random::new(salt, 0);
    (at..at + bytes)
        .step_by(8)
        .for_each(|at| write(at, random.bits()));
}

/// Whether they are still so; the first that is not.
pub(crate) fn changed(at: u64, bytes: u64, salt: u64) -> Option<u64> {
    let mut random = Random::new(salt, 0);
    (at..at + bytes)
        .step_by(8)
        .find(|at| read(*at) != random.bits())
}

/// Zeroes.
pub(crate) fn zero(at: u64, bytes: u64) {
    (at..at + bytes).step_by(8).for_each(|at| write(at, 0));
}

/// Whether both hold the same; the first word that differs.
pub(crate) fn differ(one: u64, other: u64, bytes: u64) -> Option<u64> {
    (0..bytes)
        .step_by(8)
        .find(|at| read(one + at) != read(other + at))
}

const SALT: u64 = 77;

/// Fills all that is left.
pub(crate) fn plant(end: u64) {
    fill(PATTERN, end - PATTERN, SALT);
}

/// The first place of it that has changed.
pub(crate) fn trampled(end: u64) -> Option<u64> {
    changed(PATTERN, end - PATTERN, SALT)
}
