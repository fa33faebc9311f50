//! The stored corpora of the fuzz targets, and a fixed number of mutants of theirs.

use replay::{Random, Steps, mutant};

use crate::exercise::{calls, services};

fn stored(target: &str) -> Vec<Vec<u8>> {
    replay::stored(env!("CARGO_MANIFEST_DIR"), target)
}

#[test]
fn every_stored_sequence_is_answered() {
    let all = stored("calls");
    let made: usize = all.iter().map(|bytes| calls(bytes)).sum();
    assert!(all.len() >= 50 && made > 4 * all.len(), "{made}");
    let all = stored("services");
    let made: usize = all.iter().map(|bytes| services(bytes)).sum();
    assert!(made >= 30, "{made}");
}

/// Executions of each of the two below.
const MUTANTS: usize = 100_000;
/// What the mutants are drawn from.
const SEED: u64 = 1;

fn mutants(target: &str, exercise: fn(&[u8]) -> usize) -> usize {
    println!("{target}: {MUTANTS} executions, seed {SEED}");
    let stored = stored(target);
    let mut random = Random::new(SEED);
    let steps = Steps {
        head: 0,
        bytes: 1,
        longest: 400,
    };
    (0..MUTANTS)
        .map(|_| exercise(&mutant(&mut random, &stored, steps)))
        .sum()
}

#[test]
fn mutants_of_calls_are_answered() {
    let made = mutants("calls", calls);
    assert!(made > 2 * MUTANTS, "{made}");
}

#[test]
fn mutants_of_services_are_answered() {
    let made = mutants("services", services);
    assert!(made > MUTANTS / 2, "{made}");
}
