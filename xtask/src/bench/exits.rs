//! Exits of a guest for each read of its NVMe disk, by cause.
//!
//! They are counted by the hypervisor (`exits` at the monitor) between steps that the guest takes when it is
//! told to. Two steps of a kind differ in how many blocks they read and in nothing else, so their difference
//! is the reads alone.
//!
//! Not under `--icount`: completions of QEMU's disks are not deterministic under it, and counts are wanted,
//! not times.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use regex::Regex;
use serde::Serialize;

use super::folder;
use crate::board::Board;
use crate::build::Built;
use crate::manifest::Overrides;
use crate::qemu::{self, Files, Variation};
use crate::session::{self, Input, Output, Plan, Typed, Until};
use crate::watch::Watch;
use crate::{run, workspace};

/// Reads of each kind: as the manifests say.
const READS: u64 = 1024;
/// Steps of the guest's action.
pub(super) const STEPS: usize = 5;
/// The least of what comes with every read, in a thousand: with less, nothing was read.
const LEAST_PER_MILLE: u64 = 500;

/// One row of the table, and of of the JSON file: exits for each 1,000 reads.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(super) struct Row {
    /// What the guest sees.
    pub(super) ground: &'static str,
    pub(super) cause: String,
    pub(super) in_order: u64,
    pub(super) at_random: u64,
    pub(super) limit: Option<u64>,
    pub(super) command: String,
}

impl Row {
    pub(super) fn is_over(&self) -> bool {
        // Each read at random is a program of its own, with a life of its own.
        self.limit.is_some_and(|limit| self.in_order > limit)
    }
}

/// Exits by cause, at each step.
pub(super) type Counts = Vec<BTreeMap<String, u64>>;

/// What is measured, and how it is judged.
pub(super) struct Ground {
    /// What the guest sees.
    pub(super) name: &'static str,
    /// Its manifest, in the repository.
    pub(super) manifest: &'static str,
    /// A cause that `exits` names at every step.
    pub(super) told: &'static str,
    /// The cause that comes with every read.
    pub(super) each_read: &'static str,
    /// The command that measures it.
    pub(super) command: String,
}

impl Ground {
    /// Boots the guest and counts at each step.
    ///
    /// # Errors
    /// A failed run, or a console without figures.
    pub(super) fn count(&self, board: &Board, qemu: &Path, built: &Built) -> Result<Counts> {
        let manifest = workspace::root().join(self.manifest);
        let files = Files {
            bundle: Some(run::make_bundle(board, &manifest, &Overrides::default())?),
            ..run::files(board, built)?
        };
        let line = qemu::line(qemu, board, &Variation::default(), &files)?;
        let log = folder().join(format!("io-{}.log", self.name));
        let (expects, script) = script(self.told)?;
        let outcome = session::run(Plan {
            line: &line,
            watch: Watch::new(expects, vec![Regex::new("FAILED|PANIC|EXCEPTION")?]),
            until: Until::Verdict(0),
            timeout: Some(Duration::from_secs(600)),
            input: Input::Script(script),
            output: Output::Nothing,
            log: Some(&log),
        })?;
        ensure!(
            outcome.status == 0,
            "{}: {} (console: {})",
            self.name,
            outcome.reason,
            log.display()
        );
        let console = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        counts(&String::from_utf8_lossy(&console))
    }

    /// The figures; `limit` says what a cause may come to.
    ///
    /// # Errors
    /// The disk was not read.
    pub(super) fn rows(
        &self,
        counts: &Counts,
        limit: impl Fn(&str) -> Option<u64>,
    ) -> Result<Vec<Row>> {
        let [start, few, many, few_at_random, many_at_random] = counts.as_slice() else {
            bail!("{} steps were counted, not {STEPS}", counts.len());
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
            ground: self.name,
            cause: cause.clone(),
            in_order: beyond(cause, [start, few, many]),
            at_random: beyond(cause, [many, few_at_random, many_at_random]),
            limit: limit(cause),
            command: self.command.clone(),
        });
        let rows: Vec<Row> = rows.collect();
        // Without it nothing was read, and every other figure means nothing.
        let each = rows.iter().find(|row| row.cause == self.each_read);
        ensure!(
            each.is_some_and(
                |row| row.in_order >= LEAST_PER_MILLE && row.at_random >= LEAST_PER_MILLE
            ),
            "{}: `{}` was hardly counted: the disk was not read",
            self.name,
            self.each_read
        );
        Ok(rows)
    }
}

/// At each step the monitor is asked, which says at least `row`, then the guest is told to go on.
fn script(row: &str) -> Result<(Vec<Regex>, VecDeque<Typed>)> {
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

pub(super) fn table(rows: &[Row]) -> String {
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
