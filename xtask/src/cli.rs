//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::build::{Contents, Profile};

/// Build, run, test and measure Bulkhead, the hypervisor whose business is DMA.
///
/// Every command first provides what it needs and the machine lacks (QEMU 9.2 or newer, compiler
/// parts, guest kernels), with one line for each thing it does. Begin with `cargo xtask run`.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = true
)]
#[command(max_term_width = 100)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build the hypervisor and boot a board under QEMU, its console on this terminal
    Run(Box<RunOptions>),
    /// Build the hypervisor for every board, or for one
    Build(BuildOptions),
    /// Run the tests: on the host, then on the boards
    Test(TestOptions),
    /// Measure: instruction counts, on screen and as JSON in `target/bench/`
    Bench(BenchOptions),
    /// List what is in a boot bundle: its files, and its manifest as device tree source
    Bundle {
        /// The bundle
        file: PathBuf,
    },
    /// Check format, lints and documentation; warnings are errors
    Lint,
    /// List what is needed, what is here, and how to get the rest
    Doctor,
}

/// Options of `run`.
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = "\
Exit status:
  0    every --expect was seen; or, without any, the machine powered off and nothing went wrong
  1    hypervisor panic, failed build, QEMU error, or power-off before the last --expect
  124  time-out

Keys: the console is raw, every key goes to the guest, except
  Ctrl-C      ends the run
  Ctrl-A x    ends the run        Ctrl-A c    sends Ctrl-C        Ctrl-A a    sends Ctrl-A
  Ctrl-]      is the hypervisor's: Ctrl-] ? lists what follows it, Ctrl-] m is its monitor

Examples:
  cargo xtask run                                  Arm, QEMU `virt`
  cargo xtask run pseries --cpu power10 --smp 4    POWER
  cargo xtask run --expect 'verdict 0' --timeout 60 --log console.log
  cargo xtask run virt -- -device edu              one more PCI device")]
pub(crate) struct RunOptions {
    /// A folder of `boards/`
    #[arg(default_value = "virt")]
    pub(crate) board: String,
    /// Guest manifest, in place of the board's own
    #[arg(long, value_name = "FILE")]
    pub(crate) guest: Option<PathBuf>,
    /// Kernel of the first VM, in place of the manifest's
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// Initial RAM disk of the first VM, in place of the manifest's
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,
    /// Kernel command line of the first VM, in place of the manifest's
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    pub(crate) append: Option<String>,
    /// Number of CPUs of the machine
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) smp: Option<u32>,
    /// Memory of the machine: a number with M or G
    #[arg(long, value_name = "SIZE", value_parser = crate::board::parse_size_argument)]
    pub(crate) memory: Option<String>,
    /// CPU model, with QEMU's options for it
    #[arg(long, value_name = "MODEL")]
    pub(crate) cpu: Option<String>,
    /// Firmware variant, on boards that have several (pseries: vof, slof)
    #[arg(long, value_name = "NAME")]
    pub(crate) firmware: Option<String>,
    /// Deterministic instruction counting: the same inputs give the same console, byte for byte
    #[arg(long)]
    pub(crate) icount: bool,
    /// A regular expression to wait for on the console, within a line; repeatable, in order. The
    /// run ends well with the last one
    #[arg(long, value_name = "REGEX", value_parser = regex::Regex::new, allow_hyphen_values = true)]
    pub(crate) expect: Vec<regex::Regex>,
    /// End the run with status 124 after so long
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(crate) timeout: Option<std::time::Duration>,
    /// Write the whole console to a file too
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Wait for a debugger on port 1234 before the first instruction
    #[arg(long)]
    pub(crate) gdb: bool,
    /// Build everything, then print the exact QEMU line and start nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Build with the checks of a debug build; after a change it is made anew within seconds
    #[arg(long)]
    pub(crate) debug: bool,
    /// Build without what runs VMs: takes the machine, prints the report, powers off
    #[arg(long)]
    pub(crate) bring_up: bool,
    /// Further arguments for QEMU
    #[arg(last = true, value_name = "QEMU ARGS")]
    pub(crate) qemu_args: Vec<String>,
}

/// Options of `build`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
The result is the optimised build unless --debug is given, as with `run` and `test`.")]
pub(crate) struct BuildOptions {
    /// A folder of `boards/`; every architecture when left out
    pub(crate) board: Option<String>,
    /// Build with optimisation (the default)
    #[arg(long, conflicts_with = "debug")]
    pub(crate) release: bool,
    /// Build with the checks of a debug build; after a change it is made anew within seconds
    #[arg(long)]
    pub(crate) debug: bool,
    /// Build the image for a new board: without what runs VMs, it takes the machine, prints the
    /// report and powers off. Its files have `-bring-up` in their names
    #[arg(long)]
    pub(crate) bring_up: bool,
}

/// Options of `test`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
The last line is `N passed, N failed, N skipped`; the exit status is 0 when none failed.
A failed board test shows the end of its console and the command that repeats it alone.

Examples:
  cargo xtask test                       everything, a sample of the large matrices
  cargo xtask test host smmu             host tests with `smmu` in their name
  cargo xtask test virt pseries          both boards
  cargo xtask test virt 'smp 8' --full  every combination with 8 CPUs")]
pub(crate) struct TestOptions {
    /// Tiers (`host`, boards) and then, last, a part of the names of the tests to run
    #[arg(value_name = "host|BOARD|FILTER")]
    pub(crate) words: Vec<String>,
    /// Every combination of the large matrices, not a sample in which every pair occurs
    #[arg(long)]
    pub(crate) full: bool,
    /// The images with the checks of a debug build, which are made anew within seconds after a change;
    /// without the tests that hold the optimised ones to a size
    #[arg(long)]
    pub(crate) debug: bool,
    /// Say at the end what each build, host test program and board test took of the processors
    #[arg(long)]
    pub(crate) timings: bool,
}

/// Options of `bench`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Figures are counts under --icount, not times: every machine gets the same. The exit status is 1 when
one is over its limit.")]
pub(crate) struct BenchOptions {
    /// One bench; all when left out
    pub(crate) name: Option<String>,
    /// The board of `traps`, `boot` or `io`: virt (the default) or pseries
    #[arg(long)]
    pub(crate) board: Option<String>,
}

impl RunOptions {
    /// The profile that the options ask for.
    pub(crate) fn profile(&self) -> Profile {
        Profile::of_option(self.debug)
    }

    /// What the options ask to be built.
    pub(crate) fn contents(&self) -> Contents {
        Contents::of_option(self.bring_up)
    }
}

impl BuildOptions {
    /// The profile that the options ask for.
    pub(crate) fn profile(&self) -> Profile {
        Profile::of_option(self.debug)
    }

    /// What the options ask to be built.
    pub(crate) fn contents(&self) -> Contents {
        Contents::of_option(self.bring_up)
    }
}

fn parse_seconds(text: &str) -> Result<std::time::Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "a number of seconds is wanted".to_owned())?;
    std::time::Duration::try_from_secs_f64(seconds)
        .map_err(|_| "a number of seconds, zero or more, is wanted".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_is_what_it_was() {
        let mut text = String::new();
        let mut command = Cli::command().term_width(100);
        command.build();
        text.push_str(&command.render_long_help().to_string());
        for sub in command.get_subcommands_mut() {
            let help = sub.render_long_help();
            text.push_str(&format!("\n=== {}\n{help}", sub.get_name()));
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn qemu_arguments_come_after_two_dashes() {
        let cli = Cli::parse_from(["xtask", "run", "virt", "--", "-device", "edu"]);
        let Command::Run(options) = cli.command else {
            panic!("not run: {cli:?}")
        };
        assert_eq!(options.qemu_args, ["-device", "edu"]);
    }

    #[test]
    fn bad_values_are_refused() {
        for bad in [
            &["xtask", "run", "--smp", "0"][..],
            &["xtask", "run", "--memory", "much"],
            &["xtask", "run", "--expect", "("],
            &["xtask", "run", "--timeout", "-1"],
            &["xtask", "run", "--nonsense"],
            &["xtask", "sing"],
        ] {
            assert!(Cli::try_parse_from(bad).is_err(), "accepted: {bad:?}");
        }
    }
}
