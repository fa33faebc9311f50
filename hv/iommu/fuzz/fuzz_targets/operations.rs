//! Sequences of operations over the mock: after each one every invariant of the core holds.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|sequence: &[u8]| {
    iommu::mock::exercise(sequence);
});
