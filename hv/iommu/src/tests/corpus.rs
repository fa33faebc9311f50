//! The fuzz target's sequences on the stable toolchain: the stored ones, and random ones from
//! fixed seeds.

use super::*;
use crate::mock::exercise;

fn stored() -> Vec<Vec<u8>> {
    replay::stored(env!("CARGO_MANIFEST_DIR"), "operations")
}

#[test]
fn every_stored_sequence_keeps_the_invariants() {
    let stored = stored();
    assert!(stored.iter().all(|sequence| exercise(sequence) > 0));
    assert!(stored.len() >= 16, "{}", stored.len());
}

/// A small generator, so that the sequences are the same everywhere.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}

#[test]
fn two_hundred_random_sequences_keep_the_invariants() {
    let mut steps = 0;
    for seed in 1..=200_u64 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let sequence: Vec<u8> = (0..2500)
            .map(|_| {
                // Ids of objects there are, more often than chance has them.
                match random.below(24) {
                    0 => 0xee,
                    _ => random.next().to_le_bytes()[3],
                }
            })
            .collect();
        steps += exercise(&sequence);
    }
    assert!(steps > 20_000, "{steps}");
}

/// Executions that [`mutants_of_the_stored_sequences_keep_the_invariants`] makes.
const MUTANTS: usize = 1000;

/// What the fuzzer does to its corpus, without coverage to guide it: bytes changed, pieces of
/// another sequence put in, ends cut off.
fn mutate(random: &mut Random, sequence: &mut Vec<u8>, other: &[u8]) {
    let at =
        |random: &mut Random, len: usize| usize::try_from(random.below(len.max(1) as u64)).unwrap();
    for _ in 0..=random.below(6) {
        let here = at(random, sequence.len());
        match random.below(4) {
            0 | 1 => {
                if let Some(byte) = sequence.get_mut(here) {
                    *byte = random.next().to_le_bytes()[5];
                }
            }
            2 => {
                let from = at(random, other.len());
                let to = (from + at(random, 200)).min(other.len());
                sequence.splice(here..here, other[from..to].iter().copied());
            }
            _ => sequence.truncate(here.max(32)),
        }
    }
    sequence.truncate(4096);
}

#[test]
fn mutants_of_the_stored_sequences_keep_the_invariants() {
    let stored = stored();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut steps = 0;
    for n in 0..MUTANTS {
        let mut sequence = stored[n % stored.len()].clone();
        let other = usize::try_from(random.below(stored.len() as u64)).unwrap();
        mutate(&mut random, &mut sequence, &stored[other]);
        steps += exercise(&sequence);
    }
    assert!(steps > 20 * MUTANTS, "{steps}");
}
