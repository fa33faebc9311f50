//! The stored corpus of the fuzz target, and what grows out of it.

use crate::exercise::exercise;
use crate::mutants::{Random, mutant, stored};

#[test]
fn every_stored_sequence_ends_as_the_model_says() {
    let stored = stored();
    let steps: usize = stored.iter().map(|bytes| exercise(bytes)).sum();
    assert!(stored.len() >= 64, "the corpus is there");
    assert!(steps > 5 * stored.len(), "{steps}");
}

/// Executions of each half of the mutants: together 200,000.
const HALF: usize = 100_000;

fn mutants(seed: u64) {
    let stored = stored();
    let mut random = Random::new(seed);
    let mut bytes = Vec::new();
    let mut steps = 0;
    for _ in 0..HALF {
        mutant(&mut random, &stored, &mut bytes);
        steps += exercise(&bytes);
    }
    assert!(steps > 5 * HALF, "{steps}");
}

// Two tests, so that two cores may have them.

#[test]
fn a_hundred_thousand_mutants_end_as_the_model_says() {
    mutants(1);
}

#[test]
fn a_hundred_thousand_others_end_as_the_model_says() {
    mutants(2);
}
