//! The stored corpus of the fuzz target, and what grows out of it.

use std::fs;
use std::path::Path;

use crate::exercise::exercise;

fn stored() -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/records");
    let mut paths: Vec<_> = fs::read_dir(corpus)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn every_stored_sequence_is_read_as_it_was_written() {
    let stored = stored();
    let steps: usize = stored.iter().map(|bytes| exercise(bytes)).sum();
    assert!(stored.len() >= 16 && steps > 10 * stored.len(), "{steps}");
}

/// Executions of [`mutants_are_read_as_they_were_written`].
const MUTANTS: usize = 50_000;

#[test]
fn mutants_are_read_as_they_were_written() {
    let stored = stored();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % n.max(1)
    };
    let mut bytes = Vec::new();
    let mut steps = 0;
    for n in 0..MUTANTS {
        bytes.clear();
        if n % 4 == 0 {
            let len = random(400);
            bytes.extend((0..len).map(|_| random(256) as u8));
        } else {
            bytes.extend(&stored[random(stored.len())]);
            for _ in 0..=random(6) {
                let at = random(bytes.len());
                bytes[at] = random(256) as u8;
            }
        }
        steps += exercise(&bytes);
    }
    assert!(steps > 10 * MUTANTS, "{steps}");
}
