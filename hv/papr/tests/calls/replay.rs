//! The stored corpora of the fuzz targets, and a fixed number of mutants of theirs.

use std::fs;
use std::path::Path;

use crate::exercise::{calls, services};

fn stored(target: &str) -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut paths: Vec<_> = fs::read_dir(corpus)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    // A folder lists its files in any order; the executions are the same everywhere.
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn every_stored_sequence_is_answered() {
    let all = stored("calls");
    let made: usize = all.iter().map(|bytes| calls(bytes)).sum();
    assert!(all.len() >= 50 && made > 4 * all.len(), "{made}");
    let all = stored("services");
    let made: usize = all.iter().map(|bytes| services(bytes)).sum();
    assert!(made >= 30, "{made}");
}

/// Executions of each of the two below.
const MUTANTS: usize = 100_000;
/// What the mutants are drawn from.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

fn mutants(target: &str, exercise: fn(&[u8]) -> usize) -> usize {
    println!("{target}: {MUTANTS} executions, seed {SEED:#x}");
    let stored = stored(target);
    let mut state = SEED;
    let mut random = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 11).unwrap() % n.max(1)
    };
    let mut bytes = Vec::new();
    let mut made = 0;
    for n in 0..MUTANTS {
        bytes.clear();
        if n % 4 == 0 {
            let len = random(160);
            bytes.extend((0..len).map(|_| u8::try_from(random(256)).unwrap()));
        } else {
            bytes.extend(&stored[random(stored.len())]);
            bytes.truncate(400);
            for _ in 0..=random(6) {
                let at = random(bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = u8::try_from(random(256)).unwrap();
                }
            }
        }
        made += exercise(&bytes);
    }
    made
}

#[test]
fn mutants_of_calls_are_answered() {
    let made = mutants("calls", calls);
    assert!(made > 2 * MUTANTS, "{made}");
}

#[test]
fn mutants_of_services_are_answered() {
    let made = mutants("services", services);
    assert!(made > MUTANTS / 2, "{made}");
}
