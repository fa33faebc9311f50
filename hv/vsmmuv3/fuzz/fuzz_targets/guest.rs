//! Any bytes as what a guest does to its SMMU and its memory: as the model says, and within the bounds
//! of every guest. The sequences in `corpus/guest` are part of the crate's tests.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/guest/exercise.rs"]
mod exercise;
#[path = "../../tests/guest/model.rs"]
mod model;
#[path = "../../tests/guest/rig.rs"]
mod rig;
#[path = "../../tests/guest/tables.rs"]
mod tables;

fuzz_target!(|bytes: &[u8]| {
    exercise::exercise(bytes);
});
