//! The stored corpus of the fuzz target `guest`, and what grows out of it.

mod exercise;

use std::fs;
use std::path::Path;
use std::vec::Vec;

use exercise::exercise;

/// The stored sequences, in the order of their names.
fn stored() -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/guest");
    let entries = fs::read_dir(corpus).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn every_stored_sequence_of_accesses_is_survived() {
    let stored = stored();
    let accesses: usize = stored.iter().map(|bytes| exercise(bytes)).sum();
    assert!(
        stored.len() >= 32 && accesses > 10 * stored.len(),
        "{accesses}"
    );
}

/// Executions of [`mutants_are_survived`].
const MUTANTS: usize = 2000;

/// What a fuzzer does to its corpus, without coverage to guide it. The same everywhere.
#[test]
fn mutants_are_survived() {
    let stored = stored();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % n.max(1)
    };
    let mut accesses = 0;
    for _ in 0..MUTANTS {
        let mut bytes = stored[below(stored.len())].clone();
        for _ in 0..=below(8) {
            let at = below(bytes.len());
            match below(3) {
                0 => bytes[at] = u8::try_from(below(256)).unwrap(),
                1 => {
                    let other = &stored[below(stored.len())];
                    let from = (2 + below(other.len()) / 6 * 6).min(other.len());
                    let to = (from + 6 * below(16)).min(other.len());
                    let at = (2 + at / 6 * 6).min(bytes.len());
                    bytes.splice(at..at, other[from..to].iter().copied());
                }
                _ => bytes.extend((0..6).map(|_| u8::try_from(below(256)).unwrap())),
            }
        }
        bytes.truncate(1500);
        accesses += exercise(&bytes);
    }
    assert!(accesses > 10 * MUTANTS, "{accesses}");
}
