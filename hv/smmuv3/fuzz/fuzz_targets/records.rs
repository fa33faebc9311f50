//! Any bytes as what an SMMU writes into its event queue and says of it. The sequences in
//! `corpus/records` are part of the crate's tests.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/records/exercise.rs"]
mod exercise;

fuzz_target!(|bytes: &[u8]| {
    exercise::exercise(bytes);
});
