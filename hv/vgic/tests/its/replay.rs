//! The stored corpus of the fuzz target, and sequences drawn at random.

use proptest::prelude::{ProptestConfig, any, proptest};
use replay::{Random, Steps, mutant};

use crate::exercise::exercise;

fn stored() -> Vec<Vec<u8>> {
    replay::stored(env!("CARGO_MANIFEST_DIR"), "its")
}

#[test]
fn the_stored_corpus_passes() {
    let stored = stored();
    for bytes in &stored {
        exercise(bytes);
    }
    assert!(stored.len() >= 32, "the corpus is there");
}

#[test]
fn two_thousand_mutants_of_the_stored_corpus_pass() {
    let stored = stored();
    let mut random = Random::new(1);
    let steps = Steps {
        head: 1,
        bytes: 8,
        longest: 2000,
    };
    for _ in 0..2000 {
        exercise(&mutant(&mut random, &stored, steps));
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
