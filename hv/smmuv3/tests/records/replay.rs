//! The stored corpus of the fuzz target, and what grows out of it.

use replay::{Random, Steps, mutant};

use crate::exercise::exercise;

fn stored() -> Vec<Vec<u8>> {
    replay::stored(env!("CARGO_MANIFEST_DIR"), "records")
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
    let mut random = Random::new(1);
    let shape = Steps {
        head: 0,
        bytes: 1,
        longest: 1000,
    };
    let steps: usize = (0..MUTANTS)
        .map(|_| exercise(&mutant(&mut random, &stored, shape)))
        .sum();
    assert!(steps > 10 * MUTANTS, "{steps}");
}
