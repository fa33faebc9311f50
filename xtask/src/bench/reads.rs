//! The part of `cargo xtask bench io` that compares reads: a guest with its NVMe disk, and the same kernel with the
//! same option on the same machine without the hypervisor, where it drives the machine's SMMU itself.
//!
//! Counted are instructions of whatever exception level, out of QEMU's recording of the run; a CPU that sleeps
//! executes none. The guest reads in stretches, and what a stretch takes is known from the bytes it writes to
//! the console. A disk that answers at once (`null-co`) answers before the reading program sleeps or after it, as the
//! emulator's threads happen to run, and that decides about thousands of instructions on either side. So the disk
//! takes as long as flash does ([`LATENCY`]): the program always sleeps, the CPU always idles, and every read is woken for.
//! It reads as zeros. Every run is repeated, and of each stretch the least counts: on both sides that is the read beside
//! which the least else happened. The runs alternate, so that what else the machine does is everybody's,
//! and how far the ratio depends on any one round of them is told beside it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use regex::Regex;
use rustix::process::Signal;
use serde::Serialize;

use super::folder;
use super::record::Record;
use crate::board::{Board, Smmu};
use crate::build::Built;
use crate::manifest::{Overrides, PayloadName};
use crate::provide::payload;
use crate::qemu::{self, Files, Line, Time, Variation};
use crate::{child, run, say, workspace};

const SERIES: &str = "6.12";
/// Reads of each order, and of a stretch: as `devtool reads` does them.
const READS: u64 = 4096;
const STRETCH: u64 = 256;
/// How often each kind is run, in rounds.
pub(super) const ROUNDS: usize = 3;
pub(super) const ORDERS: [&str; 2] = ["in-order", "at-random"];
/// What the disk takes for a read, in nanoseconds by the clock on the wall.
const LATENCY: u64 = 100_000;
/// A run takes some ten seconds.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the guest has, its kernel's word, and the least that its reads may come to, in a thousand.
const ROWS: [(&str, &str, &str, u64); 4] = [
    ("stage 2", "stage2", "iommu.strict=1", 970),
    ("nested, strict", "nested", "iommu.strict=1", 850),
    ("nested, lazy", "nested", "iommu.strict=0", 970),
    ("nested, passthrough", "nested", "iommu.passthrough=1", 970),
];

/// Instructions of each stretch, by order.
pub(super) type Stretches = BTreeMap<String, Vec<u64>>;

/// One row of the table, and of `target/bench/io.json`.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(super) struct Row {
    /// What the guest has.
    ground: &'static str,
    order: &'static str,
    /// Instructions for a read.
    value: u64,
    /// The same without the hypervisor.
    bare: u64,
    /// Of the speed without the hypervisor.
    per_mille: u64,
    /// The least and the most that this would have been without one of the rounds.
    spread: (u64, u64),
    least_per_mille: u64,
    command: String,
}

impl Row {
    pub(super) fn is_missed(&self) -> bool {
        self.per_mille < self.least_per_mille
    }

    /// Instructions that a read costs beyond what it costs without the hypervisor.
    pub(super) fn beyond(&self) -> u64 {
        self.value.saturating_sub(self.bare)
    }
}

/// Measures.
///
/// # Errors
/// A failed run, or a console or recording without the reads.
pub(super) fn measure(board: &Board, qemu: &Path, built: &Built) -> Result<Vec<Row>> {
    let mut kinds: BTreeMap<String, Line> = BTreeMap::new();
    for (_, iommu, word, _) in ROWS {
        if let Entry::Vacant(entry) = kinds.entry(without(word)) {
            entry.insert(alone(board, qemu, built, word)?);
        }
        kinds.insert(within(iommu, word), guest(board, qemu, built, iommu, word)?);
    }
    let mut runs: BTreeMap<&str, Vec<Stretches>> = BTreeMap::new();
    for round in 1..=ROUNDS {
        for (name, line) in &kinds {
            let stretches = once(line, name).with_context(|| format!("reads, {name}"))?;
            runs.entry(name).or_default().push(stretches);
        }
        say!("reads: round {round} of {ROUNDS}");
    }
    let of = |name: &str| runs.get(name).context("nothing was measured");
    let mut rows = Vec::new();
    for (ground, iommu, word, least) in ROWS {
        let (ours, bare) = (of(&within(iommu, word))?, of(&without(word))?);
        for order in ORDERS {
            let command = format!("cargo xtask bench {}", super::io::NAME);
            rows.push(row((ground, order), ours, bare, least, command)?);
        }
    }
    Ok(rows)
}

/// The kernel alone, as part of a file's name.
fn without(word: &str) -> String {
    format!("without-{}", plain(word))
}

/// The guest, as part of a file's name.
fn within(iommu: &str, word: &str) -> String {
    format!("{iommu}-{}", plain(word))
}

/// A kernel's word as part of a file's name.
fn plain(word: &str) -> String {
    word.replace(['.', '='], "-")
}

fn append(word: &str) -> String {
    format!("console=ttyAMA0 quiet {word} do=reads:{READS},off")
}

/// The guest under the hypervisor.
fn guest(board: &Board, qemu: &Path, built: &Built, iommu: &str, word: &str) -> Result<Line> {
    let manifest = folder().join(format!("reads-{iommu}-{}.toml", plain(word)));
    let text = format!(
        "version = 1\n[[vm]]\nname = \"linux\"\nmemory = \"512M\"\npin = [0]\nkernel = \"debian:{SERIES}\"\n\
         initrd = \"initramfs\"\nfirmware = \"dt\"\nrestart = \"never\"\niommu = \"{iommu}\"\n\
         append = \"{}\"\ndevices = [ {{ host = \"0000:00:01.0\" }} ]\n",
        append(word)
    );
    workspace::write_whole(&manifest, text.as_bytes())?;
    let files = Files {
        bundle: Some(run::make_bundle(board, &manifest, &Overrides::default())?),
        ..run::files(board, built)?
    };
    qemu::line(qemu, board, &vary(None, Vec::new()), &files)
}

/// The kernel alone, with as much memory.
fn alone(board: &Board, qemu: &Path, built: &Built, word: &str) -> Result<Line> {
    let mut bare = board.bare(Smmu::Kept);
    bare.disks.clone_from(&board.disks);
    let files = Files {
        hypervisor: payload::file(board.arch, &PayloadName::DebianKernel(SERIES), &[SERIES])?,
        bundle: Some(payload::file(
            board.arch,
            &PayloadName::Initramfs,
            &[SERIES],
        )?),
        ..run::files(board, built)?
    };
    let args = ["-append".to_owned(), append(word)];
    qemu::line(qemu, &bare, &vary(Some("512M"), args.into()), &files)
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

/// Of each stretch of an order the least of several runs, and of these the sum. Without the run `omitted`, if there is such.
fn least(runs: &[Stretches], order: &str, omitted: usize) -> u64 {
    let all = runs.iter().enumerate().filter(|(at, _)| *at != omitted);
    let mut least: Vec<u64> = Vec::new();
    for values in all.filter_map(|(_, run)| run.get(order)) {
        if least.is_empty() {
            least.clone_from(values);
        }
        take_less(&mut least, values);
    }
    least.iter().sum()
}

fn take_less(least: &mut [u64], values: &[u64]) {
    for (least, value) in least.iter_mut().zip(values) {
        *least = (*least).min(*value);
    }
}

/// One run.
fn once(line: &Line, name: &str) -> Result<Stretches> {
    let (console, record) = recorded_run(line, name)?;
    let failed = || format!("console: reads-{name}.log");
    stretches(&console, &record).with_context(failed)
}

/// One run: its console and its recording.
pub(super) fn recorded_run(line: &Line, name: &str) -> Result<(Vec<u8>, Record)> {
    let console = folder().join(format!("reads-{name}.log"));
    let record = folder().join(format!("reads-{name}-{}.rr", std::process::id()));
    workspace::write_whole(&console, b"")?;
    let mut command = Command::new(&line.program);
    command
        .args(recorded(&line.args, &record, &console)?)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut machine = child::tied(&mut command, Signal::KILL)
        .spawn()
        .with_context(|| format!("cannot start {}", line.program.display()))?;
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = machine.try_wait().context("cannot wait for QEMU")? {
            break Some(status);
        }
        if Instant::now() > until {
            let _ = machine.kill();
            machine.wait().context("cannot wait for QEMU")?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let written = fs::read(&record);
    let _ = fs::remove_file(&record);
    let failed = || format!("console: {}", console.display());
    ensure!(
        status.is_some_and(|status| status.success()),
        "QEMU ended with {status:?}, {}",
        failed()
    );
    let record = Record::parse(&written.context("QEMU has recorded nothing")?)?;
    Ok((fs::read(&console)?, record))
}

/// The arguments, with a recording, the console in a file, and a disk that takes its time. The clock of a CPU
/// that sleeps goes as that on the wall: otherwise it would be woken by timer after timer while it waits.
fn recorded(args: &[String], record: &Path, console: &Path) -> Result<Vec<String>> {
    let mut args = args.to_vec();
    let chardev = args.iter().position(|arg| arg == "-chardev");
    args.drain(chardev.map_or(0..0, |at| at..at + 2));
    let mut replace = |option: &str, with: String| -> Result<()> {
        let at = args.iter().position(|arg| arg == option);
        let value = at.and_then(|at| args.get_mut(at + 1));
        *value.with_context(|| format!("QEMU's line has no {option}"))? = with;
        Ok(())
    };
    replace(
        "-icount",
        format!("shift=0,rr=record,rrfile={}", record.display()),
    )?;
    replace("-serial", format!("file:{}", console.display()))?;
    replace(
        "-drive",
        format!("if=none,id=disk0,driver=null-co,size=16M,read-zeroes=on,latency-ns={LATENCY}"),
    )?;
    Ok(args)
}

/// What each stretch took.
pub(super) fn stretches(console: &[u8], record: &Record) -> Result<Stretches> {
    let lines = Regex::new(r"reads ([a-z-]+): 4096 begin\r\n((?:\.\r\n)+)reads [a-z-]+: 4096 end")?;
    let mut stretches = Stretches::new();
    // One character for each byte, as the recording counts bytes.
    let text = |byte: &u8| {
        if byte.is_ascii() {
            char::from(*byte)
        } else {
            '?'
        }
    };
    let console: String = console.iter().map(text).collect();
    for found in lines.captures_iter(&console) {
        let order = found[1].to_owned();
        let signs = found.get(2).context("no signs")?;
        let ends = (signs.start()..=signs.end()).step_by(3);
        let at: Option<Vec<u64>> = ends.map(|end| record.at(end)).collect();
        let at = at.context("the recording ends before the console does")?;
        let taken = at.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
        stretches.insert(order, taken.collect());
    }
    for order in ORDERS {
        let known = stretches.get(order).map_or(0, Vec::len) as u64;
        if known * STRETCH != READS {
            bail!(
                "{known} stretches {order} are told, not {}",
                READS / STRETCH
            );
        }
    }
    Ok(stretches)
}

pub(super) fn row(
    (ground, order): (&'static str, &'static str),
    ours: &[Stretches],
    bare: &[Stretches],
    least_per_mille: u64,
    command: String,
) -> Result<Row> {
    let ratio = |omitted| {
        let (ours, bare) = (least(ours, order, omitted), least(bare, order, omitted));
        let per_mille = (bare * 1000 + ours / 2).checked_div(ours);
        per_mille.context("reads that took nothing")
    };
    const NONE: usize = usize::MAX;
    let per_mille = ratio(NONE)?;
    let mut spread = (per_mille, per_mille);
    for omitted in 0..ours.len().min(bare.len()) {
        let other = ratio(omitted)?;
        spread = (spread.0.min(other), spread.1.max(other));
    }
    Ok(Row {
        ground,
        order,
        value: least(ours, order, NONE).div_ceil(READS),
        bare: least(bare, order, NONE).div_ceil(READS),
        per_mille,
        spread,
        least_per_mille,
        command,
    })
}

pub(super) fn table(rows: &[Row]) -> String {
    let ratio = |per_mille: u64| format!("{}.{:03}", per_mille / 1000, per_mille % 1000);
    let mut text = format!(
        "{:32} {:>10} {:>10} {:>8} {:>14} {:>8}\n",
        "reads, instructions for each",
        "as a guest",
        "without",
        "ratio",
        "less a round",
        "at least"
    );
    for row in rows {
        let mark = if row.is_missed() { "  MISSED" } else { "" };
        text.push_str(&format!(
            "{:32} {:>10} {:>10} {:>8} {:>14} {:>8}{mark}\n",
            format!("{}, {}", row.ground, row.order),
            row.value,
            row.bare,
            ratio(row.per_mille),
            format!("{} {}", ratio(row.spread.0), ratio(row.spread.1)),
            ratio(row.least_per_mille)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::recording;

    fn console(signs: usize) -> Vec<u8> {
        let one = |order: &str| {
            let signs = ".\r\n".repeat(signs);
            format!("reads {order}: 4096 begin\r\n{signs}reads {order}: 4096 end\r\n")
        };
        format!(
            "quiet\r\n{}{}action reads: ok",
            one("in-order"),
            one("at-random")
        )
        .into_bytes()
    }

    #[test]
    fn a_stretch_is_what_comes_before_its_sign_is_written() {
        let console = console(16);
        let before = vec![100; console.len()];
        let record = Record::parse(&recording(&before)).unwrap();
        let found = stretches(&console, &record).unwrap();
        assert_eq!(found.get("at-random"), Some(&vec![300; 16]));
        assert_eq!(found.len(), 2);
        let short = Record::parse(&recording(&before[..40])).unwrap();
        assert!(stretches(&console, &short).is_err());
        assert!(stretches(&self::console(15), &record).is_err());
    }

    fn run(values: [u64; 3]) -> Stretches {
        [("in-order".to_owned(), values.to_vec())].into()
    }

    #[test]
    fn of_several_runs_the_least_of_each_stretch_counts() {
        let runs = [run([5, 9, 3]), run([6, 2, 3])];
        assert_eq!(least(&runs, "in-order", usize::MAX), 5 + 2 + 3);
        assert_eq!(least(&runs, "in-order", 1), 5 + 9 + 3);
        assert_eq!(least(&runs, "at-random", usize::MAX), 0);
    }

    #[test]
    fn a_ratio_is_held_against_the_least() {
        let bare = [run([970; 3]), run([970; 3])];
        let row = |ours, least| {
            super::row(
                ("stage 2", "in-order"),
                &[run([ours; 3]), run([ours; 3])],
                &bare,
                least,
                "bench io".to_owned(),
            )
        };
        let good = row(1000, 970).unwrap();
        assert_eq!((good.per_mille, good.spread), (970, (970, 970)));
        assert!(!good.is_missed() && !table(&[good]).contains("MISSED"));
        let missed = row(1001, 970).unwrap();
        assert!(missed.is_missed() && table(&[missed]).contains("0.969"));
        assert!(row(0, 970).is_err());
    }

    #[test]
    fn a_ratio_that_one_round_makes_is_told_as_such() {
        let bare = [run([1000; 3]), run([1000; 3]), run([1000; 3])];
        let ours = [run([2000; 3]), run([1000; 3]), run([1250; 3])];
        let row = super::row(("stage 2", "in-order"), &ours, &bare, 970, String::new()).unwrap();
        assert_eq!((row.per_mille, row.spread), (1000, (800, 1000)));
    }

    #[test]
    fn the_run_is_recorded_with_another_disk_and_console() {
        let args = "-chardev stdio,id=console -serial chardev:console -icount shift=0,sleep=off -drive x -device y";
        let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
        let made = recorded(&args, Path::new("/r"), Path::new("/c")).unwrap();
        let wanted = "-serial file:/c -icount shift=0,rr=record,rrfile=/r -drive if=none,id=disk0,driver=null-co,size=16M,read-zeroes=on,latency-ns=100000 -device y";
        assert_eq!(made.join(" "), wanted);
        assert!(recorded(&args[..4], Path::new("/r"), Path::new("/c")).is_err());
    }
}
