//! Any bytes as what a guest does to its ITS and what its devices send: as the model says, and within
//! the bounds of every guest. The sequences in `corpus/its` are part of the crate's tests.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/its/exercise.rs"]
mod exercise;
#[path = "../../tests/its/model.rs"]
mod model;
#[allow(dead_code)]
#[path = "../../tests/its/rig.rs"]
mod rig;

fuzz_target!(|bytes: &[u8]| exercise::exercise(bytes));
