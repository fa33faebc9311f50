//! The stored corpus of the fuzz target, and sequences drawn at random.

use std::{fs, path::Path};

use proptest::prelude::{ProptestConfig, any, proptest};

use crate::exercise::exercise;

#[test]
fn the_stored_corpus_passes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/its");
    let mut runs = 0;
    for entry in fs::read_dir(corpus).unwrap() {
        exercise(&fs::read(entry.unwrap().path()).unwrap());
        runs += 1;
    }
    assert!(runs >= 32, "the corpus is there");
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
