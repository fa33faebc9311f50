//! Any block, anywhere in a memory of anything: no panic, and a VM that does not end has an answer. The sequences in
//! `corpus/services` are part of the crate's tests.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "the other target's")]
#[path = "../../tests/calls/exercise.rs"]
mod exercise;

fuzz_target!(|bytes: &[u8]| {
    exercise::services(bytes);
});
