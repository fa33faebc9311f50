//! `cargo xtask bench`: figures that are the same on every machine.
//!
//! Under `--icount` an instruction takes one nanosecond of the machine's time, so that its clock
//! counts instructions. The IOMMU core is measured on the host: ratios of one run.

mod boot;
mod exits;
mod io;
mod io_power;
mod iommu;
mod reads;
mod record;
mod smmu;
mod traps;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use regex::Regex;
use serde::Serialize;

use crate::board::Board;
use crate::build::{self, Profile};
use crate::cli::BenchOptions;
use crate::provide::disk::{self, Work};
use crate::provide::{self, toolchain};
use crate::qemu::{self, Line, Time, Variation};
use crate::session::{self, Input, Output, Plan, Until};
use crate::watch::Watch;
use crate::{output, run, say, workspace};

/// A bench.
struct Bench {
    name: &'static str,
    board: &'static str,
    what: &'static str,
    /// The most it may come to.
    limit: u64,
    /// Reads the figure from a console.
    read: fn(&str) -> Option<u64>,
}

const BENCHES: [Bench; 2] = [
    Bench {
        name: "boot-report",
        board: "virt",
        what: "instructions from entry to the end of the report, virt with one NVMe",
        limit: 10_000_000,
        read: report_instructions,
    },
    Bench {
        name: "boot-report-pseries",
        board: "pseries",
        what: "instructions from entry to the end of the report, pseries with one NVMe",
        limit: 10_000_000,
        read: report_instructions,
    },
];

/// What is written to `target/bench/NAME.json`.
#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    board: &'static str,
    what: &'static str,
    value: u64,
    limit: u64,
    command: String,
}

/// The bench of DMA windows on POWER, on the command line.
const TCE: &str = "tce";

/// Runs the benches, or one. The status is 1 when a figure is over its limit.
///
/// # Errors
/// An unknown name (with the known ones), or a run that fails.
pub(crate) fn command(options: &BenchOptions) -> Result<u8> {
    disk::ensure_room(Work::Bench, Profile::Release)?;
    let name = options.name.as_deref();
    if name == Some(traps::NAME) {
        return traps::run(options.board.as_deref().unwrap_or(traps::BOARDS[0].name));
    }
    if name == Some(boot::NAME) {
        return boot::run(options.board.as_deref().unwrap_or(boot::BOARDS[0].board));
    }
    if name == Some(io::NAME) && options.board.as_deref() == Some(io_power::BOARD) {
        return io_power::run();
    }
    if let (Some(io::NAME), Some(board)) = (name, &options.board) {
        ensure!(
            board == io::BOARD,
            "`{}` is measured on {} and {}, not on `{board}`",
            io::NAME,
            io::BOARD,
            io_power::BOARD
        );
    }
    ensure!(
        options.board.is_none() || name == Some(io::NAME),
        "only `{}`, `{}` and `{}` are measured on several boards",
        traps::NAME,
        boot::NAME,
        io::NAME
    );
    if name == Some(TCE) {
        return traps::run_measured(&traps::TCE);
    }
    if name == Some(iommu::NAME) {
        return iommu::run();
    }
    if name == Some(smmu::NAME) {
        return smmu::run();
    }
    if name == Some(io::NAME) {
        return io::run();
    }
    let chosen: Vec<&Bench> = BENCHES
        .iter()
        .filter(|bench| name.is_none_or(|name| name == bench.name))
        .collect();
    if chosen.is_empty() {
        let known: Vec<&str> = BENCHES
            .iter()
            .map(|bench| bench.name)
            .chain([
                traps::NAME,
                TCE,
                boot::NAME,
                iommu::NAME,
                smmu::NAME,
                io::NAME,
            ])
            .collect();
        bail!(
            "there is no bench `{}`; the benches are: {}",
            name.unwrap_or_default(),
            known.join(", ")
        );
    }
    let toolchain = toolchain::provide()?;
    let mut figures = Vec::new();
    for bench in chosen {
        let board = Board::load(&workspace::root().join("boards"), bench.board)?;
        let qemu = provide::qemu::provide(board.arch)?;
        let built = build::build(&toolchain, board.arch, Profile::Release)?;
        let vary = Variation {
            time: Time::Instructions,
            ..Variation::default()
        };
        let line = qemu::line(&qemu, &board, &vary, &run::files(&board, &built)?)?;
        let first = measure(bench, &line, "1")?;
        let second = measure(bench, &line, "2")?;
        ensure!(
            first == second,
            "{}: two runs differ, {first} and {second}: the figure means nothing",
            bench.name
        );
        let figure = Figure {
            name: bench.name,
            board: bench.board,
            what: bench.what,
            value: first,
            limit: bench.limit,
            command: format!("cargo xtask bench {}", bench.name),
        };
        let path = folder().join(format!("{}.json", bench.name));
        let mut json = serde_json::to_string_pretty(&figure).context("cannot write a figure")?;
        json.push('\n');
        workspace::write_whole(&path, json.as_bytes())?;
        figures.push(figure);
    }
    output::text(&table(&figures));
    say!("the figures are in {} too", folder().display());
    let over = u8::from(figures.iter().any(|figure| figure.value > figure.limit));
    match name {
        None => {
            let mut worst = over;
            for board in &traps::BOARDS {
                worst = worst.max(traps::run(board.name)?);
            }
            worst = worst.max(traps::run_measured(&traps::TCE)?);
            for measured in &boot::BOARDS {
                worst = worst.max(boot::run(measured.board)?);
            }
            let others = [iommu::run, smmu::run, io::run, io_power::run];
            others
                .iter()
                .try_fold(worst, |worst, bench| Ok(worst.max(bench()?)))
        }
        Some(_) => Ok(over),
    }
}

fn folder() -> PathBuf {
    workspace::target_dir().join("bench")
}

fn measure(bench: &Bench, line: &Line, run: &str) -> Result<u64> {
    let log = folder().join(format!("{}-{run}.log", bench.name));
    let outcome = session::run(Plan {
        line,
        watch: Watch::default(),
        until: Until::Verdict(0),
        timeout: Some(Duration::from_secs(300)),
        input: Input::Nothing,
        output: Output::Nothing,
        log: Some(&log),
    })?;
    ensure!(
        outcome.status == 0,
        "{}: {} (console: {})",
        bench.name,
        outcome.reason,
        log.display()
    );
    let console = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    (bench.read)(&String::from_utf8_lossy(&console)).with_context(|| {
        format!(
            "{}: the console {} has no figure",
            bench.name,
            log.display()
        )
    })
}

/// Nanoseconds from entry to the line that ends the report: by the ticks that it tells, or else by its
/// time stamp.
fn report_instructions(console: &str) -> Option<u64> {
    let line = console
        .lines()
        .find(|line| line.contains("report: complete"))?;
    let ticks = Regex::new(r"complete (\d+) ticks after entry at (\d+) Hz").ok()?;
    if let Some(found) = ticks.captures(line) {
        let ticks: u128 = found[1].parse().ok()?;
        let hertz: u128 = found[2].parse().ok()?;
        return u64::try_from(ticks.checked_mul(1_000_000_000)?.checked_div(hertz)?).ok();
    }
    let stamp = Regex::new(r"^\[ *(\d+)\.(\d{6})\]").ok()?.captures(line)?;
    let seconds: u64 = stamp[1].parse().ok()?;
    let micros: u64 = stamp[2].parse().ok()?;
    seconds
        .checked_mul(1_000_000)?
        .checked_add(micros)?
        .checked_mul(1000)
}

fn table(figures: &[Figure]) -> String {
    let mut text = format!("{:24} {:>12} {:>12}  what\n", "bench", "figure", "limit");
    for figure in figures {
        let mark = if figure.value > figure.limit {
            "  OVER"
        } else {
            ""
        };
        text.push_str(&format!(
            "{:24} {:>12} {:>12}  {}{mark}\n",
            figure.name, figure.value, figure.limit, figure.what
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_is_read_from_ticks_or_from_the_time_stamp() {
        let ticks = "x\n[    0.002806] INFO  aarch64: report: complete 2806429 ticks after entry at 1000000000 Hz, 2 functions\n";
        assert_eq!(report_instructions(ticks), Some(2_806_429));
        let slower = "report: complete 512 ticks after entry at 512000000 Hz";
        assert_eq!(report_instructions(slower), Some(1000));
        let stamp = "[    1.003031] INFO  ppc64: report: complete, 509616 frames free";
        assert_eq!(report_instructions(stamp), Some(1_003_031_000));
        assert_eq!(report_instructions("report: complete"), None);
        assert_eq!(report_instructions(""), None);
        assert_eq!(
            report_instructions("report: complete 1 ticks after entry at 0 Hz"),
            None
        );
    }

    #[test]
    fn a_figure_over_its_limit_is_marked() {
        let figure = |value| Figure {
            name: "n",
            board: "b",
            what: "w",
            value,
            limit: 10,
            command: String::new(),
        };
        assert!(table(&[figure(11)]).contains("OVER"));
        assert!(!table(&[figure(10)]).contains("OVER"));
    }
}
