//! Any hypercalls for entries, services for windows and errors, errors: no panic, and the real tables are what the
//! guest asked for, translated.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "the control is the tests'")]
#[path = "../../tests/calls/exercise.rs"]
mod exercise;

fuzz_target!(|bytes: &[u8]| {
    exercise::calls(bytes);
});
