//! `cargo xtask bench traps`: what a guest's exits cost, in instructions.
//!
//! The guest `guests/src/bin/bench.rs` measures itself, once under the hypervisor and once on the same machine
//! without it. Each figure is net of an empty measurement.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use regex::Regex;
use serde::Serialize;

use super::folder;
use crate::board::{Arch, Board, Smmu};
use crate::build::{self, Profile};
use crate::manifest::Overrides;
use crate::provide::{self, toolchain};
use crate::qemu::{self, Files, Line, Time, Variation};
use crate::session::{self, Input, Output, Plan, Until};
use crate::watch::Watch;
use crate::{guest, run, say, workspace};

/// Its name on the command line.
pub(super) const NAME: &str = "traps";
const BOARD: &str = "virt";
const MANIFEST: &str = "qemu/guests/bench.toml";
/// The guest's last line.
const END: &str = "^bench end$";

/// What the guest measures, what that is, and the most it may come to.
const ROWS: [(&str, &str, Option<u64>); 13] = [
    ("hvc-unknown", "HVC with an unknown function", Some(150)),
    ("pl011-read", "read of UARTFR", Some(450)),
    ("pl011-write", "write of UARTICR", None),
    ("gicd-read", "read of GICD_TYPER", Some(450)),
    ("gicd-read-isenabler", "read of GICD_ISENABLER1", Some(450)),
    (
        "abort-injection",
        "read of nothing, to the guest's vector",
        None,
    ),
    ("sgi-to-self", "ICC_SGI1R written, to the vector", None),
    ("sgi-send", "ICC_SGI1R written, the sender's part", None),
    (
        "sgi-to-other",
        "CPU 0 writes ICC_SGI1R, to CPU 1's vector",
        Some(1500),
    ),
    ("sgi-to-other-in-wfi", "the same, CPU 1 in WFI", Some(1500)),
    (
        "timer-to-handler",
        "CNTV_CVAL reached, to the vector",
        Some(900),
    ),
    ("wfi-wake-up", "CNTV_CVAL reached, to behind WFI", None),
    ("wfi-ready", "WFI with an interrupt pending", None),
];

/// One row of the table, and of `target/bench/traps.json`.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Row {
    name: &'static str,
    what: &'static str,
    /// Instructions, the median.
    value: u64,
    least: u64,
    most: u64,
    /// The same without the hypervisor.
    bare: u64,
    limit: Option<u64>,
    command: String,
}

/// Measures. The status is 1 when a figure is over its limit.
///
/// # Errors
/// A failed build or run, or a figure that the guest did not print.
pub(super) fn run() -> Result<u8> {
    let board = Board::load(&workspace::root().join("boards"), BOARD)?;
    let qemu = provide::qemu::provide(board.arch)?;
    let built = build::build(&toolchain::provide()?, board.arch, Profile::Release)?;
    let vary = Variation {
        time: Time::Instructions,
        ..Variation::default()
    };

    let mut files = run::files(&board, &built)?;
    let manifest = workspace::root().join(MANIFEST);
    files.bundle = Some(run::make_bundle(&board, &manifest, &Overrides::default())?);
    let line = qemu::line(&qemu, &board, &vary, &files)?;
    let ours = measure(&line, Until::Verdict(0), "traps")?;

    let bare = board.bare(Smmu::Gone);
    let files = Files {
        hypervisor: guest::file(Arch::Aarch64, "bench")?,
        bundle: None,
        ..files
    };
    let line = qemu::line(&qemu, &bare, &vary, &files)?;
    let bare = measure(&line, Until::LastExpectation, "traps-bare")?;

    let rows = rows(&ours, &bare)?;
    let mut json = serde_json::to_string_pretty(&rows).context("cannot write the figures")?;
    json.push('\n');
    let path = folder().join("traps.json");
    workspace::write_whole(&path, json.as_bytes())?;
    print!("{}", table(&rows));
    say!("the figures are in {} too", path.display());
    Ok(u8::from(rows.iter().any(Row::is_over)))
}

fn measure(line: &Line, until: Until, name: &str) -> Result<BTreeMap<String, Figures>> {
    let log: PathBuf = folder().join(format!("{name}.log"));
    let outcome = session::run(Plan {
        line,
        watch: Watch::new(vec![Regex::new(END)?], vec![Regex::new("^guest: ")?]),
        until,
        timeout: Some(Duration::from_secs(300)),
        input: Input::Nothing,
        output: Output::Nothing,
        log: Some(&log),
    })?;
    ensure!(
        outcome.status == 0,
        "{name}: {} (console: {})",
        outcome.reason,
        log.display()
    );
    let console = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    figures(&String::from_utf8_lossy(&console))
}

/// Median, least, most.
type Figures = (u64, u64, u64);

/// The guest's figures by name.
fn figures(console: &str) -> Result<BTreeMap<String, Figures>> {
    let counter = Regex::new(r"bench counter: (\d+) Hz")?;
    let frequency = counter.captures(console).map(|found| found[1].to_owned());
    if frequency.as_deref() != Some("1000000000") {
        bail!("the guest's counter does not count instructions: {frequency:?} Hz");
    }
    let row = Regex::new(
        r"(?m)^bench ([a-z0-9-]+): (\d+) instructions \(min (\d+), max (\d+), \d+ runs\)",
    )?;
    let mut figures = BTreeMap::new();
    for found in row.captures_iter(console) {
        let number = |at: usize| found[at].parse::<u64>();
        figures.insert(found[1].to_owned(), (number(2)?, number(3)?, number(4)?));
    }
    Ok(figures)
}

fn rows(ours: &BTreeMap<String, Figures>, bare: &BTreeMap<String, Figures>) -> Result<Vec<Row>> {
    ROWS.iter()
        .map(|&(name, what, limit)| {
            let missing = || format!("the guest printed no figure `{name}`");
            let &(value, least, most) = ours.get(name).with_context(missing)?;
            let &(bare, _, _) = bare.get(name).with_context(missing)?;
            Ok(Row {
                name,
                what,
                value,
                least,
                most,
                bare,
                limit,
                command: format!("cargo xtask bench {NAME}"),
            })
        })
        .collect()
}

impl Row {
    fn is_over(&self) -> bool {
        self.limit.is_some_and(|limit| self.value > limit)
    }
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:20} {:>8} {:>8} {:>8} {:>8} {:>8}  what\n",
        "traps, instructions", "median", "min", "max", "limit", "without"
    );
    for row in rows {
        let limit = row
            .limit
            .map_or_else(|| "-".to_owned(), |limit| limit.to_string());
        let mark = if row.is_over() { "  OVER" } else { "" };
        text.push_str(&format!(
            "{:20} {:>8} {:>8} {:>8} {:>8} {:>8}  {}{mark}\n",
            row.name, row.value, row.least, row.most, limit, row.bare, row.what
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(hvc: u64) -> String {
        let mut text = "bench counter: 1000000000 Hz\nbench empty-loop: 2 instructions (min 2, max 2, 400 runs)\n".to_owned();
        for (name, _, _) in ROWS {
            text.push_str(&format!(
                "bench {name}: {hvc} instructions (min {hvc}, max {hvc}, 400 runs)\r\n"
            ));
        }
        text
    }

    #[test]
    fn every_row_is_read_and_held_against_its_limit() {
        let bare = figures(&console(1)).unwrap();
        let good = rows(&figures(&console(150)).unwrap(), &bare).unwrap();
        assert_eq!(good.len(), ROWS.len());
        assert!(!good.iter().any(Row::is_over));
        assert!(!table(&good).contains("OVER"));
        let over = rows(&figures(&console(151)).unwrap(), &bare).unwrap();
        assert_eq!(over.iter().filter(|row| row.is_over()).count(), 1);
        assert!(table(&over).contains("OVER"));
    }

    #[test]
    fn a_missing_row_and_another_counter_are_errors() {
        let all = figures(&console(1)).unwrap();
        let mut some = all.clone();
        some.remove("sgi-send");
        assert!(rows(&some, &all).is_err());
        assert!(figures(&console(1).replace("1000000000", "62500000")).is_err());
    }

    #[test]
    fn the_machine_without_us_has_no_el2() {
        let board = Board::load(&workspace::root().join("boards"), BOARD).unwrap();
        assert!(
            board
                .machine
                .options
                .iter()
                .any(|option| option == "virtualization=on")
        );
        assert!(
            board
                .bare(Smmu::Gone)
                .machine
                .options
                .iter()
                .all(|option| !option.contains("virtualization"))
        );
    }
}
