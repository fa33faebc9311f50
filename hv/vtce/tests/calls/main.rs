//! The fuzz target's stored sequences, mutants of theirs and sequences at random, a fixed number in each run of the tests.

mod exercise;

/// A plain generator: the same in every run.
struct Bytes(u64);

impl Bytes {
    fn next(&mut self) -> u8 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0.to_be_bytes()[0]
    }
}

#[test]
fn two_thousand_sequences_do_what_the_model_says() {
    let mut bytes = Bytes(42);
    let (mut changes, mut others) = (0, 0);
    for _ in 0..2000 {
        let length = 14 * (1 + usize::from(bytes.next() % 60));
        let sequence: Vec<u8> = (0..length).map(|_| bytes.next()).collect();
        let [entries, functions] = exercise::calls(&sequence);
        changes += entries;
        others += functions;
    }
    assert!(changes > 3_000 && others > 200, "{changes} {others}");
}

#[test]
fn stored_sequences_and_their_mutants_do_what_the_model_says() {
    const MUTANTS: usize = 2000;
    const SEED: u64 = 1;
    println!("calls: {MUTANTS} executions, seed {SEED}");
    let stored = replay::stored(env!("CARGO_MANIFEST_DIR"), "calls");
    let sum = |[a, b]: [u64; 2], [c, d]: [u64; 2]| [a + c, b + d];
    let all = stored.iter().map(|bytes| counted(bytes));
    let [entries, functions] = all.fold([0, 0], sum);
    assert!(stored.len() >= 25 && entries > 100 && functions > 25);
    let mut random = replay::Random::new(SEED);
    let steps = replay::Steps {
        head: 0,
        bytes: 14,
        longest: 840,
    };
    let mutants = (0..MUTANTS).map(|_| counted(&replay::mutant(&mut random, &stored, steps)));
    let [entries, functions] = mutants.fold([0, 0], sum);
    assert!(entries > 3_000 && functions > 200, "{entries} {functions}");
}

/// How many changes of entries and of other things a sequence makes.
fn counted(bytes: &[u8]) -> [u64; 2] {
    exercise::calls(bytes).map(|count| count as u64)
}

#[test]
#[should_panic(expected = "left == right")]
fn an_entry_that_nobody_asked_for_is_noticed() {
    exercise::corrupted();
}
