//! Prints what Bulkhead makes of a device tree blob:
//! `cargo run -p bulkhead-machine --example report FILE`. For bringing up a board before it boots.

use std::process::ExitCode;

use bulkhead_machine::Machine;

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: report FILE");
        return ExitCode::FAILURE;
    };
    let blob = match std::fs::read(&path) {
        Ok(blob) => blob,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    };
    match read(&blob) {
        Ok(machine) => {
            print!("{machine}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

/// On its own, so that a profiler can count it: `valgrind --tool=callgrind
/// --toggle-collect='report::read'`.
#[inline(never)]
fn read(blob: &[u8]) -> Result<Machine, bulkhead_machine::Error> {
    Machine::from_fdt(blob)
}
