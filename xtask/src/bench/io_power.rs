//! `cargo xtask bench io --board pseries`: a guest's reads of its NVMe disk on POWER: exits for each, by cause, and what a
//! read costs as a ratio to the same kernel on the same machine without the hypervisor, where it has the same kind of
//! window.
//!
//! The method is that on Arm ([`super::io`], [`super::reads`]), with one difference: what the platform does for a call,
//! of the hypervisor or of the kernel alone, is no instruction.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use regex::Regex;

use super::exits::{Ground, Row, table};
use super::reads::{self, Stretches, recorded_run};
use super::{folder, io};
use crate::board::{Board, Smmu};
use crate::build::{self, Built, Profile};
use crate::manifest::{Overrides, PayloadName};
use crate::provide::{self, payload, toolchain};
use crate::qemu::{self, Files, Line, Time, Variation};
use crate::{output, run, say, workspace};

pub(super) const BOARD: &str = "pseries";
const SERIES: &str = "6.12";
/// Reads of a stretch.
const READS: u64 = 4096;
/// Memory of the kernel alone. Without room for more, QEMU's tree does not say how much a window has to hold, and the
/// kernel makes none.
const ALONE: &str = "512M,slots=1,maxmem=1G";
/// The least that reads may come to, in a thousand.
const LEAST_PER_MILLE: u64 = 950;
/// Calls to the interrupt presentation in a thousand reads: one takes the interrupt, one ends it.
const MOST_CALLS_FOR_INTERRUPTS: u64 = 2_050;
/// Calls for entries in a thousand reads: memory is mapped once.
const MOST_CALLS_FOR_ENTRIES: u64 = 5;

fn command() -> String {
    format!("cargo xtask bench {} --board {BOARD}", io::NAME)
}

fn ground() -> Ground {
    Ground {
        name: BOARD,
        manifest: "qemu/guests/bench-io-pseries.toml",
        told: "wait",
        // Each read ends with an interrupt, which the kernel takes by a call and ends by another.
        each_read: "xics",
        command: command(),
    }
}

/// What a cause may come to for 1,000 reads.
fn limit(cause: &str) -> Option<u64> {
    match cause {
        "tce" => Some(MOST_CALLS_FOR_ENTRIES),
        "xics" => Some(MOST_CALLS_FOR_INTERRUPTS),
        _ => None,
    }
}

/// Measures. The status is 1 when a figure is not reached.
///
/// # Errors
/// A failed build or run, or a console without figures.
pub(super) fn run() -> Result<u8> {
    let board = Board::load(&workspace::root().join("boards"), BOARD)?;
    let qemu = provide::qemu::provide(board.arch)?;
    let built = build::build(&toolchain::provide()?, board.arch, Profile::Release)?;
    let ground = ground();
    let rows = ground.rows(&ground.count(&board, &qemu, &built)?, limit)?;
    let lines = [
        ("pseries", guest(&board, &qemu, &built)?),
        ("pseries-without", alone(&board, &qemu, &built)?),
    ];
    let mut runs = [Vec::new(), Vec::new()];
    for round in 1..=reads::ROUNDS {
        for ((name, line), runs) in lines.iter().zip(&mut runs) {
            runs.push(once(line, name).with_context(|| format!("reads, {name}"))?);
        }
        say!("reads: round {round} of {}", reads::ROUNDS);
    }
    let [ours, bare] = runs;
    let mut reads = Vec::new();
    for order in reads::ORDERS {
        let what = ("64-bit window", order);
        reads.push(reads::row(what, &ours, &bare, LEAST_PER_MILLE, command())?);
    }
    let mut json =
        serde_json::to_string_pretty(&(&rows, &reads)).context("cannot write the figures")?;
    json.push('\n');
    let path = folder().join("io-pseries.json");
    workspace::write_whole(&path, json.as_bytes())?;
    output::text(&(table(&rows) + &reads::table(&reads)));
    say!("the figures are in {} too", path.display());
    let beyond: Vec<u64> = reads.iter().map(reads::Row::beyond).collect();
    output::text(&format!(
        "instructions of a read beyond the kernel's alone, by orders: {beyond:?}\n"
    ));
    let missed = reads.iter().any(reads::Row::is_missed);
    Ok(u8::from(missed || rows.iter().any(Row::is_over)))
}

/// Without the driver of idle states, which spins for a while before it lets go of the CPU: instructions that count, and do
/// nothing.
fn append() -> String {
    format!("console=hvc0 quiet cpuidle.off=1 do=reads:{READS},off")
}

/// The guest under the hypervisor.
fn guest(board: &Board, qemu: &Path, built: &Built) -> Result<Line> {
    let manifest = folder().join("reads-pseries.toml");
    let text = format!(
        "version = 1\n[[vm]]\nname = \"linux\"\nmemory = \"512M\"\npin = [0]\nkernel = \"debian:{SERIES}\"\n\
         initrd = \"initramfs\"\nrestart = \"never\"\nappend = \"{}\"\n\
         devices = [ {{ host = \"phb:800000020000000\" }} ]\n",
        append()
    );
    workspace::write_whole(&manifest, text.as_bytes())?;
    let files = Files {
        bundle: Some(run::make_bundle(board, &manifest, &Overrides::default())?),
        ..run::files(board, built)?
    };
    qemu::line(qemu, board, &vary(None, Vec::new()), &files)
}

/// The kernel alone, with as much memory.
fn alone(board: &Board, qemu: &Path, built: &Built) -> Result<Line> {
    let mut bare = board.bare(Smmu::Gone);
    bare.disks.clone_from(&board.disks);
    let kernel = payload::file(board.arch, &PayloadName::DebianKernel(SERIES), &[SERIES])?;
    let initrd = payload::file(board.arch, &PayloadName::Initramfs, &[SERIES])?;
    let path = |path: &Path| path.display().to_string();
    let args = [
        "-initrd".to_owned(),
        path(&initrd),
        "-append".to_owned(),
        append(),
    ];
    let files = Files {
        hypervisor: kernel,
        bundle: None,
        ..run::files(board, built)?
    };
    qemu::line(qemu, &bare, &vary(Some(ALONE), args.into()), &files)
}

fn vary(memory: Option<&str>, args: Vec<String>) -> Variation {
    Variation {
        time: Time::Instructions,
        smp: Some(1),
        memory: memory.map(str::to_owned),
        args,
        ..Variation::default()
    }
}

/// One run.
fn once(line: &Line, name: &str) -> Result<Stretches> {
    let (console, record) = recorded_run(line, name)?;
    let text = String::from_utf8_lossy(&console);
    let windows = Regex::new("action reads: windows: (.*)")?;
    let windows = windows
        .captures(&text)
        .map(|found| found[1].trim().to_owned());
    let windows = windows.with_context(|| format!("{name}: the kernel tells of no windows"))?;
    ensure!(
        windows.contains("direct64-ddr-window-info"),
        "{name}: the kernel has no direct window: {windows}"
    );
    let failed = || format!("console: reads-{name}.log");
    reads::stretches(&console, &record).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::exits::{Counts, STEPS, counts};

    fn rows(counts: &Counts) -> Result<Vec<Row>> {
        ground().rows(counts, limit)
    }

    fn console(xics: [u64; STEPS], tce: [u64; STEPS]) -> String {
        let step = |(xics, tce): (u64, u64)| {
            format!("monitor> exits linux\r\nxics   {xics}\r\ntce  {tce}\r\nwait  9\r\nmonitor> ")
        };
        xics.into_iter().zip(tce).map(step).collect()
    }

    /// 64 reads, 1088, 64, 1088, two calls each.
    const XICS: [u64; STEPS] = [20, 148, 2324, 2452, 4628];

    #[test]
    fn a_pair_of_steps_gives_the_reads_alone() {
        let told = counts(&console(XICS, [7, 8, 9, 9, 9])).unwrap();
        let all = rows(&told).unwrap();
        let of = |cause: &str| all.iter().find(|row| row.cause == cause).unwrap();
        assert_eq!((of("xics").in_order, of("xics").at_random), (2000, 2000));
        assert_eq!(of("tce").in_order, 0);
        assert!(!all.iter().any(Row::is_over) && !table(&all).contains("OVER"));
    }

    #[test]
    fn entries_for_each_read_are_over_the_limit_and_no_interrupts_are_no_figure() {
        let told = counts(&console(XICS, [0, 64, 1152, 1152, 1152])).unwrap();
        assert!(table(&rows(&told).unwrap()).contains("OVER"));
        let told = counts(&console([5; STEPS], [0; STEPS])).unwrap();
        assert!(rows(&told).is_err());
        // A third call for each read.
        let told = counts(&console(XICS.map(|calls| calls / 2 * 3), [0; STEPS])).unwrap();
        assert!(table(&rows(&told).unwrap()).contains("OVER"));
    }
}
