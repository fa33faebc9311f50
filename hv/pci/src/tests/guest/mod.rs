//! The stored corpus of the fuzz target `guest`, and what grows out of it.

mod exercise;

use std::vec::Vec;

use exercise::exercise;
use replay::{Random, Steps, mutant};

fn stored() -> Vec<Vec<u8>> {
    replay::stored(env!("CARGO_MANIFEST_DIR"), "guest")
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

#[test]
fn mutants_are_survived() {
    let stored = stored();
    let mut random = Random::new(1);
    let steps = Steps {
        head: 2,
        bytes: 6,
        longest: 1500,
    };
    let accesses: usize = (0..MUTANTS)
        .map(|_| exercise(&mutant(&mut random, &stored, steps)))
        .sum();
    assert!(accesses > 10 * MUTANTS, "{accesses}");
}
