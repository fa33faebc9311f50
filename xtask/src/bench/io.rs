//! `cargo xtask bench io`: how often a guest leaves for the hypervisor for each read of its NVMe disk, by cause,
//! and what a read costs as a ratio ([`reads`]).
//!
//! Exits are counted by the hypervisor (`exits` at the monitor) between steps that the guest takes when it is
//! told to. Two steps of a kind differ in how many blocks they read and in nothing else, so their difference
//! is the reads alone. What a message costs is in `cargo xtask bench smmu`.
//!
//! Exits are not counted under `--icount`: completions of QEMU's disks are not deterministic under it, and counts are wanted,
//! not times.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use regex::Regex;
use serde::Serialize;

use super::{folder, reads};
use crate::board::Board;
use crate::build::{self, Built, Profile};
use crate::manifest::Overrides;
use crate::provide::{self, toolchain};
use crate::qemu::{self, Files, Time, Variation};
use crate::session::{self, Input, Output, Plan, Typed, Until};
use crate::watch::Watch;
use crate::{run, say, workspace};

/// Its name on the command line.
pub(super) const NAME: &str = "io";
pub(super) const BOARD: &str = "virt";
/// Reads of each kind: as the manifests say.
const READS: u64 = 1024;
/// Steps of the guest's action.
pub(super) const STEPS: usize = 5;
/// The manifests, and what the guest sees.
const GROUNDS: [(&str, &str); 2] = [
    ("stage2", "qemu/guests/bench-io.toml"),
    ("nested", "qemu/guests/bench-io-nested.toml"),
];
/// Causes that are no delivery of an interrupt and no timer: on the data path of a guest without an SMMU of
/// its own there may be none of them.
const DATA_PATH: [&str; 7] = ["gic", "its", "smmu", "config", "bar", "abort", "call"];
/// The most of those for each read, in a thousand: what the boot of a program takes now and then.
const STRAY_PER_MILLE: u64 = 5;
/// The most messages for each read, in a thousand.
const MESSAGES_PER_MILLE: u64 = 1_100;

/// The most instructions that taking four devices may cost.
const MOST_FOR_TAKING: u64 = 3_000_000;

/// One row of the table, and of `target/bench/io.json`: exits for each 1,000 reads.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Row {
    /// What the guest sees.
    ground: &'static str,
    cause: String,
    in_order: u64,
    at_random: u64,
    limit: Option<u64>,
    command: String,
}

impl Row {
    fn is_over(&self) -> bool {
        // Each read at random is a program of its own, with a life of its own.
        self.limit.is_some_and(|limit| self.in_order > limit)
    }
}

/// Exits by cause, at each step.
pub(super) type Counts = Vec<BTreeMap<String, u64>>;

/// Measures. The status is 1 when a figure is over its limit.
///
/// # Errors
/// A failed build or run, or a console without figures.
pub(super) fn run() -> Result<u8> {
    let board = Board::load(&workspace::root().join("boards"), BOARD)?;
    let qemu = provide::qemu::provide(board.arch)?;
    let built = build::build(&toolchain::provide()?, board.arch, Profile::Release)?;
    let mut rows = Vec::new();
    let bad = Regex::new("FAILED|PANIC|EXCEPTION")?;
    for (ground, manifest) in GROUNDS {
        let manifest = workspace::root().join(manifest);
        let files = Files {
            bundle: Some(run::make_bundle(&board, &manifest, &Overrides::default())?),
            ..run::files(&board, &built)?
        };
        let line = qemu::line(&qemu, &board, &Variation::default(), &files)?;
        let log = folder().join(format!("io-{ground}.log"));
        let (expects, script) = script("timer")?;
        let outcome = session::run(Plan {
            line: &line,
            watch: Watch::new(expects, vec![bad.clone()]),
            until: Until::Verdict(0),
            timeout: Some(Duration::from_secs(600)),
            input: Input::Script(script),
            output: Output::Nothing,
            log: Some(&log),
        })?;
        ensure!(
            outcome.status == 0,
            "{ground}: {} (console: {})",
            outcome.reason,
            log.display()
        );
        let console = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let counts = counts(&String::from_utf8_lossy(&console))?;
        rows.extend(self::rows(ground, &counts)?);
    }
    let start = start(&board, &qemu, &built)?;
    let reads = reads::measure(&board, &qemu, &built)?;
    let figures = (&rows, &start, &reads);
    let mut json = serde_json::to_string_pretty(&figures).context("cannot write the figures")?;
    json.push('\n');
    let path = folder().join("io.json");
    workspace::write_whole(&path, json.as_bytes())?;
    print!("{}", table(&rows));
    println!(
        "taking {} devices at a VM's start: {} instructions, limit {}{}",
        start.devices,
        start.instructions,
        start.limit,
        if start.is_over() { "  OVER" } else { "" }
    );
    print!("{}", reads::table(&reads));
    say!("the figures are in {} too", path.display());
    let over = rows.iter().any(Row::is_over) || start.is_over();
    Ok(u8::from(over || reads.iter().any(reads::Row::is_missed)))
}

/// What taking devices costs when a VM starts, beyond zeroing and loading its memory.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Taking {
    devices: u32,
    instructions: u64,
    limit: u64,
    command: String,
}

impl Taking {
    fn is_over(&self) -> bool {
        self.instructions > self.limit
    }
}

/// Under `--icount`, where a tick is an instruction: an NVMe disk, three NICs.
fn start(board: &Board, qemu: &Path, built: &Built) -> Result<Taking> {
    let manifest = workspace::root().join("qemu/guests/bench-start.toml");
    let files = Files {
        bundle: Some(run::make_bundle(board, &manifest, &Overrides::default())?),
        ..run::files(board, built)?
    };
    let mut args = ["-append", "bulkhead.log=debug"]
        .map(str::to_owned)
        .to_vec();
    for (number, nic) in (0..).zip(["virtio-net-pci,iommu_platform=on", "e1000e", "igb"]) {
        let place = format!("chassis={},addr={:x}", number + 1, number + 2);
        args.extend([
            "-device".to_owned(),
            format!("pcie-root-port,id=port{number},{place}"),
            "-netdev".to_owned(),
            format!("user,id=net{number}"),
            "-device".to_owned(),
            format!("{nic},bus=port{number},netdev=net{number},romfile="),
        ]);
    }
    let vary = Variation {
        time: Time::Instructions,
        args,
        ..Variation::default()
    };
    let line = qemu::line(qemu, board, &vary, &files)?;
    let log = folder().join("io-start.log");
    let outcome = session::run(Plan {
        line: &line,
        watch: Watch::default(),
        until: Until::Verdict(0),
        timeout: Some(Duration::from_secs(300)),
        input: Input::Nothing,
        output: Output::Nothing,
        log: Some(&log),
    })?;
    ensure!(
        outcome.status == 0,
        "start: {} (console: {})",
        outcome.reason,
        log.display()
    );
    let console = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    taken(&String::from_utf8_lossy(&console))
}

fn taken(console: &str) -> Result<Taking> {
    let pattern = Regex::new("vm start: devices taken in ([0-9]+) ticks")?;
    let found = pattern.captures(console);
    let found = found.context("nobody told what taking the devices cost")?;
    let devices = Regex::new("vm start: [0-9a-f.:]+ is 0000:")?;
    Ok(Taking {
        devices: u32::try_from(devices.find_iter(console).count())?,
        instructions: found[1].parse()?,
        limit: MOST_FOR_TAKING,
        command: format!("cargo xtask bench {NAME}"),
    })
}

/// At each step the monitor is asked, which says at least `row`, then the guest is told to go on.
pub(super) fn script(row: &str) -> Result<(Vec<Regex>, VecDeque<Typed>)> {
    let (mut expects, mut typed) = (Vec::new(), VecDeque::new());
    for step in 0..STEPS {
        let mut then = |wanted: &str, text: &str| -> Result<()> {
            expects.push(Regex::new(wanted)?);
            typed.push_back(Typed {
                after: expects.len(),
                text: text.to_owned(),
            });
            Ok(())
        };
        then(&format!("action io: step {step}"), "\x1dm")?;
        then("monitor> ", "exits linux\r")?;
        then(&format!("{row} +[0-9]"), "\r")?;
        if step + 1 == STEPS {
            then("monitor> ", "quit\r")?;
        } else {
            then("monitor> ", "focus linux\r")?;
            then("has the keyboard", "\r")?;
        }
    }
    Ok((expects, typed))
}

/// What `exits` said each time.
pub(super) fn counts(console: &str) -> Result<Counts> {
    let mut counts = Counts::new();
    for answer in console.split("exits linux").skip(1) {
        let lines = answer.lines().skip(1).map(str::trim);
        let row = |line: &str| {
            let (cause, count) = line.split_once(' ')?;
            Some((cause.to_owned(), count.trim().parse().ok()?))
        };
        // The line is shown again when a VM's line comes in between, which may also come after it.
        let lines = lines.skip_while(|line| line.starts_with('['));
        let step: BTreeMap<String, u64> = lines.map_while(row).collect();
        if !step.is_empty() {
            counts.push(step);
        }
    }
    ensure!(
        counts.len() == STEPS,
        "the monitor told of exits {} times, not {STEPS}",
        counts.len()
    );
    Ok(counts)
}

fn rows(ground: &'static str, counts: &Counts) -> Result<Vec<Row>> {
    let [start, few, many, few_at_random, many_at_random] = counts.as_slice() else {
        anyhow::bail!("{} steps were counted, not {STEPS}", counts.len());
    };
    let of = |step: &BTreeMap<String, u64>, cause: &str| step.get(cause).copied().unwrap_or(0);
    // What the second of a pair took beyond the first.
    let beyond = |cause: &str, [before, between, after]: [&BTreeMap<String, u64>; 3]| {
        let second = of(after, cause).saturating_sub(of(between, cause));
        let first = of(between, cause).saturating_sub(of(before, cause));
        second
            .saturating_sub(first)
            .saturating_mul(1000)
            .div_ceil(READS)
    };
    let rows = many_at_random.keys().map(|cause| Row {
        ground,
        cause: cause.clone(),
        in_order: beyond(cause, [start, few, many]),
        at_random: beyond(cause, [many, few_at_random, many_at_random]),
        limit: match cause.as_str() {
            "message" => Some(MESSAGES_PER_MILLE),
            cause if ground == "stage2" && DATA_PATH.contains(&cause) => Some(STRAY_PER_MILLE),
            _ => None,
        },
        command: format!("cargo xtask bench {NAME}"),
    });
    let rows: Vec<Row> = rows.collect();
    // Without messages nothing was read, and every other figure means nothing.
    let messages = rows.iter().find(|row| row.cause == "message");
    ensure!(
        messages.is_some_and(|row| row.in_order >= 500 && row.at_random >= 500),
        "{ground}: there were hardly any messages: the disk was not read"
    );
    Ok(rows)
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:24} {:>10} {:>10} {:>8}  for each 1,000 reads of 4 KiB\n",
        "io, exits by cause", "in order", "at random", "limit"
    );
    for row in rows {
        let limit = row
            .limit
            .map_or_else(|| "-".to_owned(), |limit| limit.to_string());
        let mark = if row.is_over() { "  OVER" } else { "" };
        let name = format!("{} {}", row.ground, row.cause);
        text.push_str(&format!(
            "{name:24} {:>10} {:>10} {limit:>8}{mark}\n",
            row.in_order, row.at_random
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(messages: [u64; STEPS], its: [u64; STEPS]) -> String {
        let step = |(messages, its): (u64, u64)| {
            format!(
                "monitor> exits linux\r\nmessage          {messages}\r\nits              {its}\r\ntimer            9\r\nmonitor> "
            )
        };
        messages.into_iter().zip(its).map(step).collect()
    }

    /// 64 reads, 1088, 64, 1088, one message each.
    const MESSAGES: [u64; STEPS] = [10, 74, 1162, 1226, 2314];

    #[test]
    fn a_pair_of_steps_gives_the_reads_alone() {
        let counts = counts(&console(MESSAGES, [7, 8, 9, 9, 9])).unwrap();
        let rows = rows("stage2", &counts).unwrap();
        let of = |cause: &str| rows.iter().find(|row| row.cause == cause).unwrap();
        assert_eq!(
            (of("message").in_order, of("message").at_random),
            (1000, 1000)
        );
        assert_eq!((of("its").in_order, of("its").at_random), (0, 0));
        assert!(!rows.iter().any(Row::is_over));
    }

    #[test]
    fn an_exit_on_the_data_path_is_over_the_limit() {
        let counts = counts(&console(MESSAGES, [0, 64, 1152, 1152, 1152])).unwrap();
        let over = |ground| rows(ground, &counts).unwrap().iter().any(Row::is_over);
        assert!(over("stage2") && !over("nested"));
        assert!(table(&rows("stage2", &counts).unwrap()).contains("OVER"));
    }

    #[test]
    fn taking_is_read_with_how_many_devices_there_are() {
        let console = "launch: vm start: 00:01.0 is 0000:00:01.0\r\nlaunch: vm start: 00:02.0 is 0000:01:00.0\r\n\
            DEBUG vm: vm start: devices taken in 4000000 ticks, memory zeroed and loaded in 9 ticks\r\n";
        let taking = taken(console).unwrap();
        assert_eq!((taking.devices, taking.instructions), (2, 4_000_000));
        assert!(taking.is_over());
        assert!(taken("").is_err());
    }

    #[test]
    fn a_disk_that_was_not_read_is_no_figure() {
        let counts = counts(&console([10; STEPS], [0; STEPS])).unwrap();
        assert!(rows("stage2", &counts).is_err());
        assert!(self::counts("monitor> exits linux\r\ntimer 1\r\n").is_err());
    }
}
