//! Bulkhead's one tool: it provides what the machine lacks, builds both hypervisors, runs them under
//! QEMU, tests and measures them.
//!
//! `cargo xtask --help` is the user's page. The commands, their options and exit statuses are a
//! contract that scripts rely on.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "`output` writes, and knows what to do when that fails"
)]

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
mod output;
mod provide;
mod qemu;
mod run;
mod session;
mod shell;
mod suite;
mod terminal;
mod timings;
#[cfg(test)]
mod units;
mod watch;
mod workspace;

use std::process::ExitCode;

use clap::Parser as _;

pub(crate) use output::{say, show};

fn main() -> ExitCode {
    timings::begin();
    let cli = cli::Cli::parse();
    let result = match cli.command {
        cli::Command::Run(options) => run::run(&options),
        cli::Command::Build(options) => build::command(&options),
        cli::Command::Test(options) => suite::command(&options),
        cli::Command::Bundle { file } => manifest::list_bundle(&file).map(|text| {
            output::text(&text);
            0
        }),
        cli::Command::Bench(options) => bench::command(&options),
        cli::Command::Lint => lint::lint(),
        cli::Command::Doctor => doctor::doctor(),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            say!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}
