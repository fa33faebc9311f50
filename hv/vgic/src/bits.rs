//! Sets of 32 small numbers in a word, without arithmetic that could overflow.

/// The word with only bit `index` set; the index counts modulo 32.
pub(crate) const fn bit(index: u32) -> u32 {
    1_u32.wrapping_shl(index)
}

/// The members of a set, lowest first.
#[derive(Clone, Copy)]
pub(crate) struct Bits(pub(crate) u32);

impl Iterator for Bits {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.0 == 0 {
            return None;
        }
        let index = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        Some(index)
    }
}

/// Replaces, in `old`, the bits of `mask` by those of `new`.
pub(crate) const fn replace(old: u32, mask: u32, new: u32) -> u32 {
    (old & !mask) | (new & mask)
}

/// The low half of a double word.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low half is what is asked for"
)]
pub(crate) const fn low(value: u64) -> u32 {
    value as u32
}

/// The high half of a double word.
pub(crate) const fn high(value: u64) -> u32 {
    low(value >> 32)
}

/// A double word of two halves.
pub(crate) const fn double(high: u32, low: u32) -> u64 {
    ((high as u64) << 32) | low as u64
}
