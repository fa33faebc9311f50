//! Mutants of stored sequences: what a fuzzer does to its corpus, without coverage to guide it.

use std::fs;
use std::path::Path;

/// The longest mutant, in bytes.
const LONGEST: usize = 400;

/// A small generator, so that the mutants are the same everywhere.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed.wrapping_mul(2) | 1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 11) as usize % n.max(1)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
}

/// The stored sequences, in the order of their names.
pub(crate) fn stored() -> Vec<Vec<u8>> {
    // The fuzz crate is one folder further down.
    let places = ["fuzz/corpus/guest", "corpus/guest"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<_> = places
        .iter()
        .filter_map(|place| fs::read_dir(root.join(place)).ok())
        .flatten()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Makes `bytes` the next mutant: of a stored sequence, or of nothing, all random.
pub(crate) fn mutant(random: &mut Random, stored: &[Vec<u8>], bytes: &mut Vec<u8>) {
    bytes.clear();
    if random.below(8) == 0 {
        let steps = 1 + random.below(30);
        bytes.extend((0..=steps * 8).map(|_| random.byte()));
        return;
    }
    bytes.extend(&stored[random.below(stored.len())]);
    for _ in 0..=random.below(5) {
        let at = random.below(bytes.len());
        match random.below(8) {
            0..=2 => bytes[at] = random.byte(),
            3 => bytes[at] ^= 1 << random.below(8),
            4 => bytes[0] = random.byte(),
            5 => bytes.truncate(at + 9),
            // Steps of another one, where a step begins.
            _ => {
                let other = &stored[random.below(stored.len())];
                let from = (1 + random.below(other.len()) / 8 * 8).min(other.len());
                let to = (from + random.below(16) * 8).min(other.len());
                let at = (1 + at / 8 * 8).min(bytes.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
        }
    }
    bytes.truncate(LONGEST);
}
