//! `cargo xtask bench traps`: what a guest's exits cost, in instructions.
//!
//! The guest `guests/src/bin/bench.rs` (on POWER `guests/power/src/bin/bench.rs`) measures itself, once under
//! the hypervisor and once on the same machine without it. Each figure is net of an empty measurement.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use regex::Regex;
use serde::Serialize;

use super::folder;
use crate::board::{Board, Smmu};
use crate::build::{self, Profile};
use crate::manifest::Overrides;
use crate::provide::{self, toolchain};
use crate::qemu::{self, Files, Line, Time, Variation};
use crate::session::{self, Input, Output, Plan, Until};
use crate::watch::Watch;
use crate::{guest, output, run, say, workspace};

/// Its name on the command line.
pub(super) const NAME: &str = "traps";

/// A board whose exits are measured.
pub(super) struct Measured {
    /// What the command line calls the bench.
    bench: &'static str,
    pub(super) name: &'static str,
    manifest: &'static str,
    rows: &'static [Wanted],
    /// What the guest's counter counts in a second.
    counter: &'static str,
    /// The file of the figures.
    file: &'static str,
    /// Whether the guest is measured without the hypervisor too.
    alone: Alone,
    /// The machine's memory, where the board's is too small.
    memory: Option<&'static str>,
}

/// Whether a guest is measured without the hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alone {
    /// It is.
    Measured,
    /// It is not: what it asks of the hypervisor is no instruction there, because the emulator does it.
    Free,
}

/// What the guest measures, what that is, and the most it may come to.
type Wanted = (&'static str, &'static str, Option<u64>);

/// The boards.
pub(super) const BOARDS: [Measured; 2] = [
    Measured {
        bench: NAME,
        name: "virt",
        manifest: "qemu/guests/bench.toml",
        rows: &ROWS,
        counter: "1000000000",
        file: "traps",
        alone: Alone::Measured,
        memory: None,
    },
    // The guest turns ticks into nanoseconds, of which an instruction takes one.
    Measured {
        bench: NAME,
        name: "pseries",
        manifest: "qemu/guests/bench-pseries.toml",
        rows: &POWER_ROWS,
        counter: "512000000",
        file: "traps-pseries",
        alone: Alone::Free,
        memory: None,
    },
];

const POWER_ROWS: [Wanted; 9] = [
    ("hcall-unknown", "an unknown hypercall", Some(400)),
    ("hcall-cppr", "H_CPPR", None),
    ("hcall-xirr", "H_XIRR, nothing pending", None),
    ("hcall-ipi-to-self", "H_IPI and its taking back", None),
    ("rtas-unknown", "a service that is not there", None),
    ("rtas-query-cpu", "query-cpu-stopped-state", None),
    ("prod-and-cede", "H_PROD, H_CEDE that does not wait", None),
    (
        "machine-check",
        "load from nothing, to the guest's vector",
        None,
    ),
    (
        "timer-late-ns",
        "decrementer reached at 250 Hz, to behind H_CEDE, ns",
        Some(20_000),
    ),
];
/// The entries of DMA windows on POWER: `cargo xtask bench tce`.
pub(super) const TCE: Measured = Measured {
    bench: "tce",
    name: "pseries",
    manifest: "qemu/guests/bench-tce.toml",
    rows: &TCE_ROWS,
    counter: "512000000",
    file: "tce",
    alone: Alone::Free,
    memory: Some("4G"),
};

const TCE_ROWS: [Wanted; 9] = [
    (
        "hcall-unknown",
        "an unknown hypercall: the exit alone",
        None,
    ),
    ("tce-put", "H_PUT_TCE, an empty entry", Some(600)),
    ("tce-clear", "H_PUT_TCE, an entry emptied", None),
    ("tce-exchange", "H_PUT_TCE, a live entry replaced", None),
    (
        "tce-list",
        "H_PUT_TCE_INDIRECT, 512 pages in a row",
        Some(60 * 512),
    ),
    ("tce-stuff", "H_STUFF_TCE, these 512", Some(10 * 512)),
    (
        "tce-list-scattered",
        "H_PUT_TCE_INDIRECT, 512 pages anywhere",
        None,
    ),
    ("tce-stuff-scattered", "H_STUFF_TCE, these 512", None),
    (
        "tce-direct-2g",
        "2 GiB mapped in pages of 64 KiB, 64 lists, all",
        Some(2_000_000),
    ),
];
/// The guest's last line.
const END: &str = "^bench end$";

/// What the guest measures, what that is, and the most it may come to.
const ROWS: [Wanted; 13] = [
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
        Some(220),
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
    bare: Option<u64>,
    limit: Option<u64>,
    command: String,
}

/// Measures. The status is 1 when a figure is over its limit.
///
/// # Errors
/// A failed build or run, or a figure that the guest did not print.
pub(super) fn run(board: &str) -> Result<u8> {
    let Some(measured) = BOARDS.iter().find(|measured| measured.name == board) else {
        let known = BOARDS.map(|measured| measured.name).join(", ");
        bail!("no exits are measured on `{board}`; the boards are: {known}");
    };
    run_measured(measured)
}

/// Measures what a board's bench is made of.
///
/// # Errors
/// A failed build or run, or a figure that the guest did not print.
pub(super) fn run_measured(measured: &Measured) -> Result<u8> {
    let board = Board::load(&workspace::root().join("boards"), measured.name)?;
    let qemu = provide::qemu::provide(board.arch)?;
    let built = build::build(&toolchain::provide()?, board.arch, Profile::Release)?;
    let vary = Variation {
        time: Time::Instructions,
        memory: measured.memory.map(str::to_owned),
        ..Variation::default()
    };

    let mut files = run::files(&board, &built)?;
    let manifest = workspace::root().join(measured.manifest);
    files.bundle = Some(run::make_bundle(&board, &manifest, &Overrides::default())?);
    let line = qemu::line(&qemu, &board, &vary, &files)?;
    let ours = measure(&line, Until::Verdict(0), measured, measured.file)?;

    let alone = match measured.alone {
        Alone::Measured => Some(board.bare(Smmu::Gone)),
        Alone::Free => None,
    };
    let mut bare = None;
    if let Some(board) = alone {
        let files = Files {
            hypervisor: guest::file(board.arch, "bench")?,
            bundle: None,
            ..files
        };
        let line = qemu::line(&qemu, &board, &vary, &files)?;
        let name = format!("{}-bare", measured.file);
        bare = Some(measure(&line, Until::LastExpectation, measured, &name)?);
    }

    let rows = rows(measured, &ours, bare.as_ref())?;
    let mut json = serde_json::to_string_pretty(&rows).context("cannot write the figures")?;
    json.push('\n');
    let path = folder().join(format!("{}.json", measured.file));
    workspace::write_whole(&path, json.as_bytes())?;
    output::text(&table(&rows));
    say!("the figures are in {} too", path.display());
    Ok(u8::from(rows.iter().any(Row::is_over)))
}

fn measure(
    line: &Line,
    until: Until,
    measured: &Measured,
    name: &str,
) -> Result<BTreeMap<String, Figures>> {
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
    figures(&String::from_utf8_lossy(&console), measured.counter)
}

/// Median, least, most.
type Figures = (u64, u64, u64);

/// The guest's figures by name.
fn figures(console: &str, hertz: &str) -> Result<BTreeMap<String, Figures>> {
    let counter = Regex::new(r"bench counter: (\d+) Hz")?;
    let frequency = counter.captures(console).map(|found| found[1].to_owned());
    if frequency.as_deref() != Some(hertz) {
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

fn rows(
    measured: &Measured,
    ours: &BTreeMap<String, Figures>,
    bare: Option<&BTreeMap<String, Figures>>,
) -> Result<Vec<Row>> {
    measured
        .rows
        .iter()
        .map(|&(name, what, limit)| {
            let missing = || format!("the guest printed no figure `{name}`");
            let &(value, least, most) = ours.get(name).with_context(missing)?;
            let bare = match bare {
                Some(bare) => Some(bare.get(name).with_context(missing)?.0),
                None => None,
            };
            Ok(Row {
                name,
                what,
                value,
                least,
                most,
                bare,
                limit,
                command: if measured.bench == NAME {
                    format!("cargo xtask bench {NAME} --board {}", measured.name)
                } else {
                    format!("cargo xtask bench {}", measured.bench)
                },
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
        "instructions", "median", "min", "max", "limit", "without"
    );
    for row in rows {
        let or_dash = |figure: Option<u64>| {
            figure.map_or_else(|| "-".to_owned(), |figure| figure.to_string())
        };
        let (limit, bare) = (or_dash(row.limit), or_dash(row.bare));
        let mark = if row.is_over() { "  OVER" } else { "" };
        text.push_str(&format!(
            "{:20} {:>8} {:>8} {:>8} {:>8} {:>8}  {}{mark}\n",
            row.name, row.value, row.least, row.most, limit, bare, row.what
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERTZ: &str = "1000000000";

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
        let [arm, power] = &BOARDS;
        let bare = figures(&console(1), HERTZ).unwrap();
        let good = rows(arm, &figures(&console(150), HERTZ).unwrap(), Some(&bare)).unwrap();
        assert!(rows(power, &bare, None).is_err());
        assert_eq!(good.len(), ROWS.len());
        assert!(!good.iter().any(Row::is_over));
        assert!(!table(&good).contains("OVER"));
        let over = rows(arm, &figures(&console(151), HERTZ).unwrap(), Some(&bare)).unwrap();
        assert_eq!(over.iter().filter(|row| row.is_over()).count(), 1);
        assert!(table(&over).contains("OVER"));
    }

    #[test]
    fn a_missing_row_and_another_counter_are_errors() {
        let all = figures(&console(1), HERTZ).unwrap();
        let mut some = all.clone();
        some.remove("sgi-send");
        assert!(rows(&BOARDS[0], &some, Some(&all)).is_err());
        assert!(figures(&console(1), "62500000").is_err());
    }

    #[test]
    fn the_machine_without_us_has_no_el2() {
        let board = Board::load(&workspace::root().join("boards"), "virt").unwrap();
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
