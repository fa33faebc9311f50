//! The stored corpus of the fuzz target, and sequences drawn at random.

use std::{fs, path::Path};

use proptest::prelude::{ProptestConfig, any, proptest};

use crate::exercise::exercise;

/// The stored sequences, in the order of their names.
fn stored() -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/its");
    let entries = fs::read_dir(corpus).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn the_stored_corpus_passes() {
    let stored = stored();
    for bytes in &stored {
        exercise(bytes);
    }
    assert!(stored.len() >= 32, "the corpus is there");
}

/// What a fuzzer does to its corpus, without coverage to guide it: bytes changed, steps of another
/// sequence put in, the end cut off. The same everywhere.
#[test]
fn two_thousand_mutants_of_the_stored_corpus_pass() {
    let stored = stored();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % n.max(1)
    };
    for _ in 0..2000 {
        let mut bytes = stored[below(stored.len())].clone();
        for _ in 0..=below(6) {
            let at = below(bytes.len());
            match below(4) {
                0 | 1 => bytes[at] = u8::try_from(below(256)).unwrap(),
                2 => bytes.truncate(at + 9),
                _ => {
                    let other = &stored[below(stored.len())];
                    let from = (1 + below(other.len()) / 8 * 8).min(other.len());
                    let to = (from + 8 * below(16)).min(other.len());
                    let at = (1 + at / 8 * 8).min(bytes.len());
                    bytes.splice(at..at, other[from..to].iter().copied());
                }
            }
        }
        bytes.truncate(2000);
        exercise(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_sequence_ends_as_the_model_says(
        steps in proptest::collection::vec(any::<[u8; 8]>(), 1..400),
    ) {
        exercise(&[&[0], steps.as_flattened()].concat());
    }

    #[test]
    fn no_guest_gets_more_than_its_share(
        steps in proptest::collection::vec(any::<[u8; 8]>(), 1..400),
    ) {
        exercise(&[&[1], steps.as_flattened()].concat());
    }
}
