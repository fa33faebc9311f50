//! Bulkhead's one tool: it provides what the machine lacks, builds both hypervisors, runs them under
//! QEMU, tests and measures them.
//!
//! `cargo xtask --help` is the user's page. The commands, their options and exit statuses are a
//! contract that scripts rely on.

mod bench;
mod board;
mod build;
mod child;
mod cli;
mod doctor;
mod guest;
mod image;
mod initramfs;
mod lint;
mod manifest;
mod provide;
mod qemu;
mod run;
mod session;
mod shell;
mod suite;
mod terminal;
mod timings;
mod watch;
mod workspace;

use std::process::ExitCode;

use clap::Parser as _;

/// Says what the tool does, on standard error: standard output belongs to the guest's console.
macro_rules! say {
    ($($arg:tt)*) => { eprintln!("xtask: {}", format_args!($($arg)*)) };
}
pub(crate) use say;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let result = match cli.command {
        cli::Command::Run(options) => run::run(&options),
        cli::Command::Build(options) => build::command(&options),
        cli::Command::Test(options) => suite::command(&options),
        cli::Command::Bundle { file } => manifest::list_bundle(&file).map(|text| {
            print!("{text}");
            0
        }),
        cli::Command::Bench(options) => bench::command(&options),
        cli::Command::Lint => lint::lint(),
        cli::Command::Doctor => doctor::doctor(),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("xtask: error: {error:#}");
            ExitCode::from(1)
        }
    }
}
