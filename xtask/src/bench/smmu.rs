//! `cargo xtask bench smmu`: what a guest's own SMMU costs, in instructions, and what a message costs.
//!
//! The guest `guests/src/bin/dma` measures itself: with an SMMU of its own over our stage 2, with stage 2
//! alone, and on the same machine without the hypervisor, where the SMMU is the emulator's. What taking
//! memory from devices costs the hypervisor measures, when their VM starts.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
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
use crate::{guest, output, run, say, workspace};

/// Its name on the command line.
pub(super) const NAME: &str = "smmu";
const BOARD: &str = "virt";
const NESTED: &str = "qemu/guests/bench-smmu.toml";
const STAGE_2: &str = "qemu/guests/bench-stage2.toml";
/// The guest's last line.
const END: &str = "^dma verdict: ";

/// Under which of the machines a figure was taken.
#[derive(Debug, Clone, Copy, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Ground {
    Nested,
    Stage2,
}

/// The figure's name, where it is from, what it is, and the most it may come to.
const ROWS: [(&str, Ground, &str, Option<u64>); 12] = [
    (
        "tlbi-sync",
        Ground::Nested,
        "TLBI_NH_VA and SYNC, trap to completion",
        Some(1_600),
    ),
    (
        "tlbi-in-batch",
        Ground::Nested,
        "each further TLBI_NH_VA of a batch of 64",
        Some(250),
    ),
    (
        "tlbi-sync-index",
        Ground::Nested,
        "TLBI_NH_VA and SYNC, and a read of CMDQ_CONS, as a driver waits without messages",
        None,
    ),
    (
        "tlbi-sync-word",
        Ground::Nested,
        "TLBI_NH_VA and SYNC that writes a word, and a look at it, as Linux waits with them",
        None,
    ),
    (
        "cfgi-ste",
        Ground::Nested,
        "CFGI_STE and SYNC for a live nested stream",
        Some(2_600),
    ),
    (
        "fault-to-handler",
        Ground::Nested,
        "a write without translation, to the guest's event handler",
        Some(6_000),
    ),
    (
        "msi-to-handler",
        Ground::Nested,
        "a device's message, to the guest's handler",
        Some(250),
    ),
    (
        "msi-to-handler",
        Ground::Stage2,
        "the same with stage 2 alone",
        Some(250),
    ),
    (
        PAGE,
        Ground::Nested,
        "4 KiB taken from the devices: unmapped, invalidated, waited for",
        None,
    ),
    (
        PAGE,
        Ground::Stage2,
        "the same with stage 2 alone",
        Some(1_500),
    ),
    (
        GIBIBYTE,
        Ground::Nested,
        "commands for 1 GiB taken from the devices",
        Some(32),
    ),
    (
        GIBIBYTE,
        Ground::Stage2,
        "the same with stage 2 alone",
        Some(32),
    ),
];
/// What the hypervisor says of itself when a VM takes devices, at the level `debug`.
const PAGE: &str = "page-taken-back";
const GIBIBYTE: &str = "gibibyte-taken-back";
const TAKEN: [(&str, &str); 2] = [
    (
        PAGE,
        r": a page taken from its devices in (\d+) ticks and \d+ commands",
    ),
    (
        GIBIBYTE,
        r": 1 GiB taken from its devices in \d+ ticks and (\d+) commands",
    ),
];

/// One row of the table, and of `target/bench/smmu.json`.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Row {
    name: &'static str,
    ground: Ground,
    what: &'static str,
    /// Instructions, the median.
    value: u64,
    least: u64,
    most: u64,
    /// The same without the hypervisor, if there is such a thing.
    bare: Option<u64>,
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
    let device = |slot: u8| {
        let edu = format!("edu,dma_mask=0xffffffffffffffff,addr={slot:02x}.0");
        ["-device".to_owned(), edu]
    };
    let vary = Variation {
        time: Time::Instructions,
        args: [device(2), device(3)].concat(),
        ..Variation::default()
    };
    let files = run::files(&board, &built)?;
    let ours = |manifest: &str, append: &str, words: &str, name: &str| {
        let overrides = Overrides {
            append: Some(append.to_owned()),
            ..Overrides::default()
        };
        let manifest = workspace::root().join(manifest);
        let files = Files {
            bundle: Some(run::make_bundle(&board, &manifest, &overrides)?),
            ..files.clone()
        };
        let mut vary = vary.clone();
        vary.args.extend(["-append", words].map(str::to_owned));
        let line = qemu::line(&qemu, &board, &vary, &files)?;
        measure(&line, Until::Verdict(0), name)
    };
    let debug = "bulkhead.log=debug";
    let mut nested = ours(NESTED, "smmu", "", "smmu-nested")?;
    nested.extend(ours(NESTED, "latency", debug, "smmu-nested-latency")?);
    let stage_2 = ours(STAGE_2, "latency", debug, "smmu-stage2-latency")?;

    let alone = |append: &str, smmu: Smmu, name: &str| {
        let files = Files {
            hypervisor: guest::file(Arch::Aarch64, "dma")?,
            bundle: None,
            ..files.clone()
        };
        let mut vary = vary.clone();
        // The guest's device tree is at 128 MiB then.
        vary.memory = Some("256M".to_owned());
        vary.args.extend(["-append".to_owned(), append.to_owned()]);
        let line = qemu::line(&qemu, &board.bare(smmu), &vary, &files)?;
        measure(&line, Until::LastExpectation, name)
    };
    let mut bare = alone("smmu", Smmu::Kept, "smmu-bare")?;
    bare.extend(alone("latency", Smmu::Gone, "smmu-bare-latency")?);

    let rows = rows(&nested, &stage_2, &bare)?;
    let mut json = serde_json::to_string_pretty(&rows).context("cannot write the figures")?;
    json.push('\n');
    let path = folder().join("smmu.json");
    workspace::write_whole(&path, json.as_bytes())?;
    output::text(&table(&rows));
    say!("the figures are in {} too", path.display());
    Ok(u8::from(rows.iter().any(Row::is_over)))
}

fn measure(line: &Line, until: Until, name: &str) -> Result<BTreeMap<String, Figures>> {
    let log = folder().join(format!("{name}.log"));
    let outcome = session::run(Plan {
        line,
        watch: Watch::new(
            vec![Regex::new(END)?],
            vec![Regex::new("^guest: |^dma verdict: .* FAILED")?],
        ),
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
    let row = Regex::new(r"(?m)^bench ([a-z0-9-]+) (\d+) (\d+) (\d+)\r?$")?;
    let mut figures = BTreeMap::new();
    for found in row.captures_iter(console) {
        let number = |at: usize| found[at].parse::<u64>();
        figures.insert(found[1].to_owned(), (number(2)?, number(3)?, number(4)?));
    }
    for (name, line) in TAKEN {
        if let Some(found) = Regex::new(line)?.captures(console) {
            let value = found[1].parse()?;
            figures.insert(name.to_owned(), (value, value, value));
        }
    }
    Ok(figures)
}

fn rows(
    nested: &BTreeMap<String, Figures>,
    stage_2: &BTreeMap<String, Figures>,
    bare: &BTreeMap<String, Figures>,
) -> Result<Vec<Row>> {
    ROWS.iter()
        .map(|&(name, ground, what, limit)| {
            let missing = || anyhow!("nobody printed a figure `{name}`");
            let of = match ground {
                Ground::Nested => nested,
                Ground::Stage2 => stage_2,
            };
            let &(value, least, most) = of.get(name).ok_or_else(missing)?;
            let bare = match bare.get(name) {
                Some(&(bare, _, _)) => Some(bare),
                None if TAKEN.iter().any(|(own, _)| *own == name) => None,
                None => return Err(missing()),
            };
            Ok(Row {
                name,
                ground,
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
        "smmu, instructions", "median", "min", "max", "limit", "without"
    );
    for row in rows {
        let limit = row
            .limit
            .map_or_else(|| "-".to_owned(), |limit| limit.to_string());
        let bare = row
            .bare
            .map_or_else(|| "-".to_owned(), |bare| bare.to_string());
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

    fn all(value: u64) -> BTreeMap<String, Figures> {
        let line = |(name, ..): &(&str, Ground, &str, Option<u64>)| {
            format!("bench {name} {value} {value} {value}\r\n")
        };
        let own = "DEBUG claim: vm x: a page taken from its devices in 1500 ticks and 1 commands\r\n\
            DEBUG claim: vm x: a last page taken from its devices in 9 ticks and 1 commands\r\n\
            DEBUG claim: vm x: 1 GiB taken from its devices in 9 ticks and 32 commands\r\n";
        let all = ROWS.iter().map(line).collect::<String>();
        let mut all = figures(&format!("{all}{own}")).unwrap();
        assert_eq!(
            (all[PAGE], all[GIBIBYTE]),
            ((1500, 1500, 1500), (32, 32, 32))
        );
        if value == 1 {
            // The machine without the hypervisor has nothing to take.
            all.retain(|name, _| TAKEN.iter().all(|(own, _)| own != name));
        }
        all
    }

    #[test]
    fn every_row_is_read_and_held_against_its_limit() {
        let good = rows(&all(250), &all(250), &all(1)).unwrap();
        assert!(!good.iter().any(Row::is_over));
        let over = rows(&all(250), &all(251), &all(1)).unwrap();
        assert_eq!(over.iter().filter(|row| row.is_over()).count(), 1);
        assert!(table(&over).contains("OVER"));
    }

    #[test]
    fn a_missing_row_is_an_error() {
        let mut some = all(250);
        some.remove("cfgi-ste");
        assert!(rows(&some, &all(250), &all(1)).is_err());
        assert!(rows(&all(250), &all(1), &all(1)).is_err());
    }
}
