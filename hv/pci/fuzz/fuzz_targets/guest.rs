//! Any guest on any device: no panic, and nothing reaches the device but what clears error bits. The sequences
//! in `corpus/guest` are part of the crate's tests.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../src/tests/guest/exercise.rs"]
mod exercise;

fuzz_target!(|bytes: &[u8]| {
    exercise::exercise(bytes);
});
