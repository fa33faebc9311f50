//! Stored sequences of fuzz targets and mutants of them, for tests on any toolchain.
//!
//! Key types: [`stored`] reads what `fuzz/corpus/TARGET` of a crate holds, [`Random`] draws the same numbers
//! everywhere, [`mutant`] does to a sequence what a fuzzer does without coverage to guide it. Tests of the crates that
//! have fuzz targets call it; nothing of the hypervisor links it.

#![forbid(unsafe_code)]

use std::fs;
use std::ops::Range;
use std::path::Path;

/// The stored sequences of a target, in the order of their names: a folder lists its files in any order, the executions
/// are the same everywhere. `folder` is `env!("CARGO_MANIFEST_DIR")` of the crate.
///
/// # Panics
/// When the corpus cannot be read: it is part of the tests.
#[must_use]
pub fn stored(folder: &str, target: &str) -> Vec<Vec<u8>> {
    let corpus = Path::new(folder).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{corpus:?}: {error}"));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// A small generator (xorshift), so that mutants are the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers that follow from a seed; any will do.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed.wrapping_mul(2) | 1))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `n`, or 0.
    pub fn below(&mut self, n: usize) -> usize {
        let n = u64::try_from(n.max(1)).unwrap_or(u64::MAX);
        usize::try_from((self.bits() >> 11) % n).unwrap_or(0)
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.bits().to_le_bytes()[3]
    }

    /// Bytes, as many as a number in `length`.
    pub fn bytes(&mut self, length: Range<usize>) -> Vec<u8> {
        let count = length.start + self.below(length.len());
        (0..count).map(|_| self.byte()).collect()
    }
}

/// The steps of a target's sequences: whole ones are put in and cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// Bytes before the first.
    pub head: usize,
    /// Bytes of each; 1 where sequences have no steps.
    pub bytes: usize,
    /// The longest mutant, in bytes.
    pub longest: usize,
}

/// A mutant of one of the stored sequences: bytes changed, steps of another one put in, one all random added, the
/// end cut off; one in four is all random.
///
/// # Panics
/// When nothing is stored.
#[must_use]
pub fn mutant(random: &mut Random, stored: &[Vec<u8>], steps: Steps) -> Vec<u8> {
    let Steps {
        head,
        bytes,
        longest,
    } = steps;
    if random.below(4) == 0 {
        return random.bytes(0..longest.min(400));
    }
    let mut mutant = stored[random.below(stored.len())].clone();
    // The start of a step, at or before a place.
    let start = |at: usize| head + at.saturating_sub(head) / bytes * bytes;
    for _ in 0..=random.below(6) {
        let at = random.below(mutant.len());
        match random.below(8) {
            0..=3 => {
                if let Some(byte) = mutant.get_mut(at) {
                    *byte = random.byte();
                }
            }
            4 => mutant.truncate(at + head + bytes),
            5 => mutant.extend(random.bytes(bytes..bytes + 1)),
            _ => {
                let other = &stored[random.below(stored.len())];
                let from = start(random.below(other.len())).min(other.len());
                let to = (from + random.below(16) * bytes).min(other.len());
                let at = start(at).min(mutant.len());
                mutant.splice(at..at, other[from..to].iter().copied());
            }
        }
    }
    mutant.truncate(longest);
    mutant
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Random, Steps, mutant, stored};

    const STEPS: Steps = Steps {
        head: 1,
        bytes: 8,
        longest: 100,
    };

    #[test]
    fn the_same_seed_draws_the_same_and_another_does_not() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..8).map(|_| random.bits()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(0).iter().all(|bits| *bits != 0));
    }

    #[test]
    fn numbers_are_below_and_every_one_comes() {
        let mut random = Random::new(7);
        let seen: BTreeSet<_> = (0..1000).map(|_| random.below(10)).collect();
        assert_eq!(seen, (0..10).collect());
        assert_eq!((random.below(0), random.below(1)), (0, 0));
        assert!((0..100).all(|_| (3..7).contains(&random.bytes(3..7).len())));
    }

    #[test]
    fn mutants_differ_are_bounded_and_keep_something_of_what_is_stored() {
        let stored = vec![vec![1; 49], vec![2; 97], Vec::new()];
        let mut random = Random::new(1);
        let all: Vec<_> = (0..2000)
            .map(|_| mutant(&mut random, &stored, STEPS))
            .collect();
        assert!(all.iter().all(|bytes| bytes.len() <= 100));
        let different: BTreeSet<_> = all.iter().collect();
        assert!(different.len() > 1500, "{}", different.len());
        let both = |bytes: &&Vec<u8>| bytes.contains(&1) && bytes.contains(&2);
        assert!(all.iter().filter(both).count() > 200, "steps of another");
    }

    #[test]
    #[should_panic(expected = "corpus/none")]
    fn a_corpus_that_is_not_there_is_no_empty_one() {
        let _ = stored(env!("CARGO_MANIFEST_DIR"), "none");
    }
}
