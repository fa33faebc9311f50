//! Random numbers that a seed repeats: xorshift64*.

/// A generator.
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

#[expect(
    clippy::cast_possible_truncation,
    reason = "random bits, cut on purpose"
)]
impl Random {
    /// A stream of its own for each seed and CPU.
    pub fn new(seed: u64, cpu: usize) -> Self {
        let mixed =
            (seed ^ (cpu as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x2545_f491);
        // Not zero, and no two seeds alike: an odd number of its own for each.
        let mut random = Self(mixed << 1 | 1);
        for _ in 0..8 {
            random.bits();
        }
        random
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 32 random bits.
    pub fn word(&mut self) -> u32 {
        (self.bits() >> 32) as u32
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.bits() >> 16) % bound
    }

    /// One time in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of them.
    pub fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }
}
