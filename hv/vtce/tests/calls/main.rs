//! A fixed number of mutants of the fuzz target's in each run of the tests.

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
#[should_panic(expected = "left == right")]
fn an_entry_that_nobody_asked_for_is_noticed() {
    exercise::corrupted();
}
