//! `cargo xtask bench io`: how often a guest leaves for the hypervisor for each read of its NVMe disk, by cause,
//! and what a read costs as a ratio ([`reads`]).
//!
//! How exits are counted: [`super::exits`]. What a message costs is in `cargo xtask bench smmu`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use regex::Regex;
use serde::Serialize;

use super::exits::{Ground, Row, table};
use super::{folder, reads};
use crate::board::Board;
use crate::build::{self, Built, Profile};
use crate::manifest::Overrides;
use crate::provide::{self, toolchain};
use crate::qemu::{self, Files, Time, Variation};
use crate::session::{self, Input, Output, Plan, Until};
use crate::watch::Watch;
use crate::{output, run, say, show, workspace};

/// Its name on the command line.
pub(super) const NAME: &str = "io";
pub(super) const BOARD: &str = "virt";
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

fn ground(name: &'static str, manifest: &'static str) -> Ground {
    Ground {
        name,
        manifest,
        told: "timer",
        each_read: "message",
        command: format!("cargo xtask bench {NAME}"),
    }
}

/// What a cause may come to for 1,000 reads.
fn limit(ground: &str) -> impl Fn(&str) -> Option<u64> {
    let is_without_smmu = ground == "stage2";
    move |cause| match cause {
        "message" => Some(MESSAGES_PER_MILLE),
        cause if is_without_smmu && DATA_PATH.contains(&cause) => Some(STRAY_PER_MILLE),
        _ => None,
    }
}

/// Measures. The status is 1 when a figure is over its limit.
///
/// # Errors
/// A failed build or run, or a console without figures.
pub(super) fn run() -> Result<u8> {
    let board = Board::load(&workspace::root().join("boards"), BOARD)?;
    let qemu = provide::qemu::provide(board.arch)?;
    let built = build::build(&toolchain::provide()?, board.arch, Profile::Release)?;
    let mut rows = Vec::new();
    for (name, manifest) in GROUNDS {
        let ground = ground(name, manifest);
        rows.extend(ground.rows(&ground.count(&board, &qemu, &built)?, limit(name))?);
    }
    let start = start(&board, &qemu, &built)?;
    let reads = reads::measure(&board, &qemu, &built)?;
    let figures = (&rows, &start, &reads);
    let mut json = serde_json::to_string_pretty(&figures).context("cannot write the figures")?;
    json.push('\n');
    let path = folder().join("io.json");
    workspace::write_whole(&path, json.as_bytes())?;
    output::text(&table(&rows));
    show!(
        "taking {} devices at a VM's start: {} instructions, limit {}{}",
        start.devices,
        start.instructions,
        start.limit,
        if start.is_over() { "  OVER" } else { "" }
    );
    output::text(&reads::table(&reads));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::exits::{Counts, STEPS, counts};

    fn rows(name: &'static str, counts: &Counts) -> Result<Vec<Row>> {
        ground(name, "").rows(counts, limit(name))
    }

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
        let told = counts(&console(MESSAGES, [7, 8, 9, 9, 9])).unwrap();
        let all = rows("stage2", &told).unwrap();
        let of = |cause: &str| all.iter().find(|row| row.cause == cause).unwrap();
        assert_eq!(
            (of("message").in_order, of("message").at_random),
            (1000, 1000)
        );
        assert_eq!((of("its").in_order, of("its").at_random), (0, 0));
        assert!(!all.iter().any(Row::is_over));
    }

    #[test]
    fn an_exit_on_the_data_path_is_over_the_limit() {
        let told = counts(&console(MESSAGES, [0, 64, 1152, 1152, 1152])).unwrap();
        let over = |ground| rows(ground, &told).unwrap().iter().any(Row::is_over);
        assert!(over("stage2") && !over("nested"));
        assert!(table(&rows("stage2", &told).unwrap()).contains("OVER"));
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
        let told = counts(&console([10; STEPS], [0; STEPS])).unwrap();
        assert!(rows("stage2", &told).is_err());
        assert!(counts("monitor> exits linux\r\ntimer 1\r\n").is_err());
    }
}
