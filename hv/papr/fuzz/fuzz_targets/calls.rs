//! Any calls of three vCPUs, with any arguments: no panic, and each has a status that PAPR knows. The sequences in
//! `corpus/calls` are part of the crate's tests.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "the other target's")]
#[path = "../../tests/calls/exercise.rs"]
mod exercise;

fuzz_target!(|bytes: &[u8]| {
    exercise::calls(bytes);
});
