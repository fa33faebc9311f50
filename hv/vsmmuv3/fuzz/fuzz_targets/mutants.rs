//! Mutants of the stored corpus, as many as asked for, on any toolchain and at full speed:
//! `cargo run --release --bin mutants -- EXECUTIONS [SEED]`. The crate's tests run the first of them.

#[path = "../../tests/guest/exercise.rs"]
mod exercise;
#[path = "../../tests/guest/model.rs"]
mod model;
#[path = "../../tests/guest/mutants.rs"]
mod mutants;
#[path = "../../tests/guest/rig.rs"]
mod rig;
#[path = "../../tests/guest/tables.rs"]
mod tables;

fn main() {
    let mut words = std::env::args().skip(1).map(|word| word.parse::<u64>());
    let count = words.next().and_then(Result::ok).unwrap_or(1_000_000);
    let seed = words.next().and_then(Result::ok).unwrap_or(1);
    let stored = mutants::stored();
    assert!(!stored.is_empty(), "no corpus");
    let mut random = mutants::Random::new(seed);
    let mut bytes = Vec::new();
    let mut steps = 0;
    for n in 1..=count {
        mutants::mutant(&mut random, &stored, &mut bytes);
        let outcome = std::panic::catch_unwind(|| exercise::exercise(&bytes));
        match outcome {
            Ok(more) => steps += more as u64,
            Err(_) => {
                println!("execution {n}: {bytes:02x?}");
                std::process::exit(1);
            }
        }
        if n % 1_000_000 == 0 || n == count {
            println!("{n} executions, {steps} steps: as the model says");
        }
    }
}
