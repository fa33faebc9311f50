//! Runs the board tests, several machines at a time.

use std::cell::Cell;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use regex::Regex;

use super::Tally;
use super::bundles;
use super::cases::{Case, Check, Disks, End, Ground, Smmus};
use super::trees::{self, Tree};
use super::{reports, tables, tool, two_smmus};
use crate::board::{Arch, Board, Disk};
use crate::build::{self, Built, Contents, Profile};
use crate::manifest::PayloadName;
use crate::provide::{self, toolchain};
use crate::qemu::{self, Line};
use crate::session::{self, Input, Outcome, Output, Plan, Until};
use crate::watch::Watch;
use crate::{guest, run, say, shell, show, timings, workspace};

/// Machines at a time beside one for each processor: they wait for a device's clock, a disk or a network.
const MORE_WORKERS: usize = 1;
/// Machines beside these, of tests that hardly use a processor.
const WAITING_WORKERS: usize = 2;
/// Lines of the console that are shown of a failed run.
const TAIL: usize = 30;
/// Tests that are named at the end as those that took most.
const SLOWEST: usize = 10;

/// What a test took.
#[derive(Debug, Clone, Copy, Default)]
struct Took {
    /// By the clock.
    clock: Duration,
    /// Of the host's processors.
    processor: Duration,
}

/// What the cases of one architecture need.
struct Tools {
    qemu: PathBuf,
    built: Built,
    /// The image for bring-up, where a case is about it.
    bring_up: Option<Built>,
}

impl Tools {
    fn built(&self, ground: Ground) -> Result<&Built> {
        match ground {
            Ground::BringUp => self.bring_up.as_ref().context("no image for bring-up"),
            Ground::Hypervisor | Ground::Bare { .. } => Ok(&self.built),
        }
    }
}

/// What all the cases need.
pub(super) struct Prepared(BTreeMap<Arch, Tools>);

/// Provides and builds what the cases need. The host's tests may run meanwhile.
///
/// # Errors
/// Something that they all need is missing.
pub(super) fn prepare(
    cases: &[Case],
    boards: &BTreeMap<String, Board>,
    profile: Profile,
) -> Result<Prepared> {
    let toolchain = toolchain::provide()?;
    let mut wanted = BTreeSet::new();
    let mut emulators = BTreeMap::new();
    let mut brings_up = BTreeSet::new();
    for case in cases {
        let Some(board) = boards.get(case.board) else {
            continue;
        };
        wanted.extend(bundles::payloads(case.bundle).map(|payload| (board.arch, payload)));
        if case.ground == Ground::BringUp {
            brings_up.insert(board.arch);
        }
        // One after the other: the machine's packages may be needed.
        if let Entry::Vacant(place) = emulators.entry(board.arch) {
            place.insert(provide::qemu::provide(board.arch)?);
        }
    }
    let (toolchain, brings_up) = (&toolchain, &brings_up);
    let tools = std::thread::scope(|scope| {
        let threads: Vec<_> = emulators
            .into_iter()
            .map(|(arch, qemu)| {
                scope.spawn(move || {
                    let built = build::build(toolchain, arch, profile)?;
                    build::report(arch, &built);
                    let mut bring_up = None;
                    if brings_up.contains(&arch) {
                        let made = build::build_with(toolchain, arch, profile, Contents::BringUp)?;
                        build::report(arch, &made);
                        bring_up = Some(made);
                    }
                    let tools = Tools {
                        qemu,
                        built,
                        bring_up,
                    };
                    Ok((arch, tools))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                let ended = thread.join();
                ended.unwrap_or_else(|_| bail!("building an image panicked"))
            })
            .collect::<Result<BTreeMap<Arch, Tools>>>()
    })?;
    for (arch, payload) in wanted {
        // The tests that need it will fail for the same reason, and by their names.
        if let Err(error) = provide::payload::file(arch, &payload, &[]) {
            say!("{error:#}");
        }
    }
    Ok(Prepared(tools))
}

/// Runs the cases.
pub(super) fn run(
    mut cases: Vec<Case>,
    boards: &BTreeMap<String, Board>,
    Prepared(tools): Prepared,
    profile: Profile,
) -> Tally {
    let start = Instant::now();
    let bench = Bench {
        boards,
        tools,
        profile,
    };
    let count = cases.len();
    let workers = std::thread::available_parallelism().map_or(1, usize::from) + MORE_WORKERS;
    say!(
        "{count} board tests, {workers} at a time, and {WAITING_WORKERS} of those that mostly wait"
    );
    // The long ones first, so that no processor waits for the last one.
    cases.sort_by_key(|case| std::cmp::Reverse(case.takes_s()));
    let mut all = Vec::new();
    let tally = bench.run_all(cases, workers, &mut all);
    for (name, took) in &all {
        timings::add(&format!("board: {name}"), took.processor);
    }
    all.sort_by_key(|(_, took)| std::cmp::Reverse(took.processor));
    if count > SLOWEST {
        say!("what took most of the processors:");
        for (name, took) in all.iter().take(SLOWEST) {
            say!("  {}: {name}", seconds(*took));
        }
    }
    let processor: Duration = all.iter().map(|(_, took)| took.processor).sum();
    say!(
        "{count} board tests took {:.0} s, {:.0} s of the processors",
        start.elapsed().as_secs_f64(),
        processor.as_secs_f64()
    );
    tally
}

fn seconds(took: Took) -> String {
    format!(
        "{:.1} s, {:.1} s of CPU",
        took.clock.as_secs_f64(),
        took.processor.as_secs_f64()
    )
}

/// Tests that are still to be run, in the order in which they are started.
struct Queue {
    busy: VecDeque<Case>,
    waiting: VecDeque<Case>,
}

impl Queue {
    fn new(cases: Vec<Case>) -> Self {
        let (waiting, busy): (Vec<_>, _) = cases.into_iter().partition(Case::waits);
        Self {
            busy: busy.into(),
            waiting: waiting.into(),
        }
    }

    /// For a processor: one that waits comes when there is no other.
    fn next(&mut self) -> Option<Case> {
        self.busy.pop_front().or_else(|| self.waiting.pop_front())
    }

    /// Beside what uses the processors.
    fn next_waiting(&mut self) -> Option<Case> {
        self.waiting.pop_front()
    }
}

struct Bench<'a> {
    boards: &'a BTreeMap<String, Board>,
    tools: BTreeMap<Arch, Tools>,
    profile: Profile,
}

impl Bench<'_> {
    fn run_all(&self, cases: Vec<Case>, workers: usize, all: &mut Vec<(String, Took)>) -> Tally {
        let queue = Mutex::new(Queue::new(cases));
        let (sender, results) = mpsc::channel();
        let mut tally = Tally::default();
        std::thread::scope(|scope| {
            for worker in 0..workers + WAITING_WORKERS {
                let (sender, queue) = (sender.clone(), &queue);
                scope.spawn(move || {
                    loop {
                        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                        let next = match worker < workers {
                            true => queue.next(),
                            false => queue.next_waiting(),
                        };
                        drop(queue);
                        let Some(case) = next else { break };
                        let start = Instant::now();
                        let processor = Cell::default();
                        // Of one that failed it is kept, to look at.
                        let result = self
                            .run_one(&case, &processor)
                            .and_then(|()| bundles::discard(case.board, &file_name(&case)));
                        let took = Took {
                            clock: start.elapsed(),
                            processor: processor.get(),
                        };
                        if sender.send((case, took, result)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            for (case, took, result) in results {
                report(&case, self.profile, took, &result);
                all.push((format!("{}: {}", case.board, case.name), took));
                match result {
                    Ok(()) => tally.passed += 1,
                    Err(_) => tally.failed += 1,
                }
            }
        });
        tally
    }

    /// Runs a case, and adds up what its processes took of the processors.
    fn run_one(&self, case: &Case, processor: &Cell<Duration>) -> Result<()> {
        let boot = |log: &Path| {
            let outcome = self.boot(case, log)?;
            processor.set(processor.get() + outcome.spent);
            Ok::<_, anyhow::Error>(outcome)
        };
        match &case.check {
            Check::Run => {
                let log = log_path(case, "");
                let outcome = boot(&log)?;
                judge(&outcome, &log)
            }
            Check::Judged(judge_console) => {
                let log = log_path(case, "");
                judge(&boot(&log)?, &log)?;
                let console =
                    fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
                judge_console(&String::from_utf8_lossy(&console))
                    .with_context(|| format!("the console {}", log.display()))
            }
            Check::SameTwice => {
                let logs = [log_path(case, "-1"), log_path(case, "-2")];
                for log in &logs {
                    judge(&boot(log)?, log)?;
                }
                same(&logs[0], &logs[1])
            }
            Check::SameReport => {
                let logs = [log_path(case, "-whole"), log_path(case, "")];
                let whole = Case {
                    ground: Ground::Hypervisor,
                    end: End::Expected,
                    ..case.clone()
                };
                for (case, log) in [&whole, case].into_iter().zip(&logs) {
                    let outcome = self.boot(case, log)?;
                    processor.set(processor.get() + outcome.spent);
                    judge(&outcome, log)?;
                }
                reports::same(&logs[0], &logs[1])
            }
            Check::Pasted { args } => tool::pasted(args, processor),
            Check::Bench(bench) => tool::measured(bench, processor),
            Check::Image { at_most_kib } => {
                let (_, tools) = self.of(case)?;
                let built = tools.built(case.ground)?;
                small_enough(built.size, *at_most_kib)?;
                build::says_nothing_of_us(&toolchain::provide()?, built)
            }
            Check::Tables => tables::disassembled(),
            Check::Ended(signal) => tool::ended(*signal),
            Check::Refused {
                args,
                around,
                message,
            } => {
                let dir = workspace::target_dir()
                    .join("test/around")
                    .join(file_name(case));
                tool::refused(args, *around, message, &dir)
            }
        }
    }

    /// The board of a case, and what its architecture needs.
    fn of(&self, case: &Case) -> Result<(&Board, &Tools)> {
        let board = self
            .boards
            .get(case.board)
            .with_context(|| format!("board `{}` was not loaded", case.board))?;
        let tools = self
            .tools
            .get(&board.arch)
            .context("its tools were not provided")?;
        Ok((board, tools))
    }

    fn boot(&self, case: &Case, log: &Path) -> Result<Outcome> {
        let (board, tools) = self.of(case)?;
        let mut board = board.clone();
        let mut vary = case.vary.clone();
        match case.disks {
            Disks::OfBoard => {}
            Disks::AndSpare(count) => board.disks.extend((1..=count).map(Disk::spare)),
            Disks::AndKernel(series) => {
                let name = PayloadName::DebianKernel(series);
                let kernel = provide::payload::file(board.arch, &name, &[])?;
                vary.args
                    .extend(qemu::read_only_disk("addr=5", "kernel", &kernel)?);
            }
            Disks::None => board.disks.clear(),
        }
        let files = match case.ground {
            ground @ (Ground::Hypervisor | Ground::BringUp) => {
                vary.cpu = vary.cpu.or_else(|| bundles::cpu(&board, case.bundle));
                let mut files = run::files(&board, tools.built(ground)?)?;
                files.bundle = bundles::file(&board, case.bundle, &file_name(case))?;
                files
            }
            Ground::Bare {
                guest,
                append,
                smmu,
            } => {
                board = board.bare(smmu);
                vary.args.extend(["-append".into(), append.into()]);
                let mut files = run::files(&board, &tools.built)?;
                files.hypervisor = guest::file(board.arch, guest)?;
                files
            }
        };
        let mut program = tools.qemu.clone();
        if case.smmus == Smmus::Two {
            program = two_smmus::qemu(board.arch)?;
            let tree = files.disks.join(format!("{}.dtb", file_name(case)));
            (board, vary) = two_smmus::machine(&program, &board, &vary, &files, &tree)?;
        }
        if case.tree != Tree::OfMachine {
            let tree = files.disks.join(format!("{}.dtb", file_name(case)));
            let described = trees::described(&program, &board, &vary, &files, &tree)?;
            let faulty = trees::faulty(&described, case.tree)?;
            vary.args.extend(trees::given(&tree, &faulty)?);
        }
        let line: Line = qemu::line(&program, &board, &vary, &files)?;
        session::run(Plan {
            line: &line,
            watch: Watch::new(regexes(&case.expects)?, regexes(&case.forbids)?),
            until: match case.end {
                End::PowerOff(verdict) => Until::Verdict(verdict),
                End::Expected => Until::LastExpectation,
                End::EmulatorAborts => Until::EmulatorAborts,
            },
            timeout: Some(case.timeout),
            input: Input::Script(case.typed.iter().cloned().collect()),
            output: Output::Nothing,
            log: Some(log),
        })
    }
}

fn small_enough(bytes: u64, at_most_kib: u64) -> Result<()> {
    ensure!(
        bytes <= at_most_kib << 10,
        "it has {} KiB: if what it does now is worth that, raise the limit of this test",
        bytes.div_ceil(1024)
    );
    Ok(())
}

fn regexes(patterns: &[String]) -> Result<Vec<Regex>> {
    patterns
        .iter()
        .map(|pattern| {
            Regex::new(pattern).with_context(|| format!("faulty expression `{pattern}`"))
        })
        .collect()
}

fn judge(outcome: &Outcome, log: &Path) -> Result<()> {
    if outcome.status == 0 {
        return Ok(());
    }
    let mut text = outcome.reason.clone();
    for line in outcome.messages.lines().take(TAIL) {
        text.push_str(&format!("\n    qemu: {line}"));
    }
    let console = fs::read(log).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let lines: Vec<&str> = console.lines().collect();
    for line in lines.iter().skip(lines.len().saturating_sub(TAIL)) {
        text.push_str(&format!("\n    | {line}"));
    }
    text.push_str(&format!("\n    the whole console: {}", log.display()));
    bail!(text)
}

fn same(first: &Path, second: &Path) -> Result<()> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let (a, b) = (read(first)?, read(second)?);
    ensure!(!a.is_empty(), "both consoles are empty");
    if a == b {
        return Ok(());
    }
    let (a, b) = (String::from_utf8_lossy(&a), String::from_utf8_lossy(&b));
    let pair = a
        .lines()
        .zip(b.lines())
        .enumerate()
        .find(|(_, (a, b))| a != b);
    match pair {
        Some((line, (a, b))) => {
            bail!(
                "the consoles differ in line {}:\n    1 {a}\n    2 {b}",
                line + 1
            )
        }
        None => bail!(
            "one console is longer: compare {} {}",
            first.display(),
            second.display()
        ),
    }
}

fn file_name(case: &Case) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '.';
    case.name
        .chars()
        .map(|c| if plain(c) { c } else { '-' })
        .collect()
}

fn log_path(case: &Case, suffix: &str) -> PathBuf {
    let name = format!("{}{suffix}.log", file_name(case));
    workspace::target_dir()
        .join("test")
        .join(case.board)
        .join(name)
}

fn report(case: &Case, profile: Profile, took: Took, result: &Result<()>) {
    let seconds = seconds(took);
    match result {
        Ok(()) => show!("ok      {}: {} ({seconds})", case.board, case.name),
        Err(error) => {
            show!(
                "FAILED  {}: {} ({seconds})\n    {error:#}",
                case.board,
                case.name
            );
            show!("    again: {}", again(case, profile));
        }
    }
}

/// The command that repeats a test alone.
fn again(case: &Case, profile: Profile) -> String {
    let mut words = vec!["cargo", "xtask", "test", case.board, &case.name];
    if profile == Profile::Checked {
        words.push("--debug");
    }
    if case.only_full {
        words.push("--full");
    }
    shell::line(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Scratch;

    #[test]
    fn a_test_is_repeated_on_the_image_that_it_failed_on() {
        let mut case = super::super::cases::of_board("virt", super::super::Extent::Pairs).remove(0);
        case.name = "a b".to_owned();
        case.only_full = false;
        let command = |case: &Case, profile| again(case, profile);
        assert_eq!(
            command(&case, Profile::Release),
            "cargo xtask test virt 'a b'"
        );
        case.only_full = true;
        let both = "cargo xtask test virt 'a b' --debug --full";
        assert_eq!(command(&case, Profile::Checked), both);
    }

    #[test]
    fn what_waits_is_started_beside_what_does_not() {
        let cases = || super::super::cases::of_board("virt", super::super::Extent::Pairs);
        let mut queue = Queue::new(cases());
        let beside: Vec<_> = std::iter::from_fn(|| queue.next_waiting()).collect();
        assert!(!beside.is_empty() && beside.iter().all(Case::waits));
        let rest: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
        assert_eq!(beside.len() + rest.len(), cases().len());
        assert!(!rest.iter().any(Case::waits));
        // With nobody beside, the others run them.
        let mut queue = Queue::new(cases());
        assert_eq!(std::iter::from_fn(|| queue.next()).count(), cases().len());
    }

    #[test]
    fn an_image_beyond_its_limit_is_noticed() {
        assert!(small_enough(2048, 2).is_ok());
        assert!(small_enough(2049, 2).is_err());
    }

    #[test]
    fn logs_are_compared_by_content() {
        let dir = Scratch::new("same");
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (one, like, other, longer, empty) = (
            write("1", "a\nb\n"),
            write("2", "a\nb\n"),
            write("3", "a\nc\n"),
            write("4", "a\nb\nc\n"),
            write("5", ""),
        );
        assert!(same(&one, &like).is_ok());
        assert!(
            same(&one, &other)
                .unwrap_err()
                .to_string()
                .contains("line 2")
        );
        assert!(same(&one, &longer).is_err());
        assert!(same(&empty, &empty).is_err());
    }
}
