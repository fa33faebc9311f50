//! The host tier: the unit tests of every crate that runs here.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::Tally;
use crate::board::Arch;

use crate::{build, child, guest, output, say, show, timings, workspace};

/// The packages whose tests run on the host: all but the two binaries and the guests.
///
/// # Errors
/// cargo cannot be asked.
pub(crate) fn packages() -> Result<Vec<String>> {
    Ok(members()?.into_iter().map(|(name, _)| name).collect())
}

/// The same with their folders.
fn members() -> Result<Vec<(String, PathBuf)>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        manifest_path: PathBuf,
    }
    let text = crate::provide::output_of(cargo().args([
        "metadata",
        "--no-deps",
        "--format-version=1",
        "--locked",
    ]))
    .context("cargo cannot list the packages of the workspace")?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo's list is not readable")?;
    let mut members: Vec<(String, PathBuf)> = metadata
        .packages
        .into_iter()
        .filter_map(|package| Some((package.name, package.manifest_path.parent()?.to_owned())))
        .collect();
    members.retain(|(name, _)| {
        guest::PACKAGES.iter().all(|(_, package)| package != name)
            && Arch::ALL.iter().all(|arch| arch.package() != name)
    });
    members.sort();
    Ok(members)
}

/// The cargo that we were started by.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace::root());
    command
}

/// How tests are built here: whole, as they are on a fresh machine. What would make the next build after a change shorter
/// takes a fifth of this one, and the cargo that works on one crate keeps it.
pub(crate) const WHOLE: [&str; 2] = ["--config", "profile.test.incremental=false"];

/// An example of one of the crates, built with what their tests are built with: all crates together decide which features
/// those that they need have, and what one of them alone would ask for is to compile once more.
///
/// # Errors
/// It cannot be built.
pub(super) fn example(name: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "-q", "--locked", "--profile=test"]);
    command.args(WHOLE).args(["--example", name]);
    for (package, _) in members()? {
        command.args(["-p", &package]);
    }
    let (status, _, spent) = child::output(&mut command).context("cannot start cargo")?;
    timings::add("build: examples", spent);
    ensure!(status.success(), "the example {name} cannot be built");
    Ok(workspace::target_dir().join("debug/examples").join(name))
}

/// A program of tests.
#[derive(Debug)]
struct Program {
    /// The package, and the target in it.
    label: String,
    file: PathBuf,
    /// The package's folder, where cargo would start it.
    folder: PathBuf,
}

/// Those that take longest. They are started first, so that no processor waits for them at the end.
const LONGEST: [&str; 4] = [
    "bulkhead-iommu",
    "bulkhead-vsmmuv3",
    "bulkhead-pagetable",
    "bulkhead-vgic",
];

/// Runs them: each crate's programs of tests, one for each processor at a time, and examples in documentation.
///
/// # Errors
/// cargo cannot be started.
pub(crate) fn run(filter: Option<&str>) -> Result<Tally> {
    let members = members()?;
    say!("host tests of {} crates", members.len());
    let mut command = cargo();
    command.args([
        "test",
        "--locked",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    command.args(WHOLE);
    for (package, _) in &members {
        command.args(["-p", package]);
    }
    let (status, messages, spent) = child::output(&mut command).context("cannot start cargo")?;
    timings::add("build: host tests", spent);
    let mut tally = Tally::default();
    if !status.success() {
        say!("the host tests do not build: one failure");
        tally.failed += 1;
        return Ok(tally);
    }
    let mut programs = programs(&messages, &members);
    programs.sort_by_key(|program| {
        let place = LONGEST
            .iter()
            .position(|long| program.label.starts_with(long));
        place.unwrap_or(LONGEST.len())
    });
    tally += run_all(programs, filter);
    tally += documentation(&members, filter)?;
    Ok(tally)
}

/// The programs of tests that cargo's messages name.
fn programs(messages: &[u8], members: &[(String, PathBuf)]) -> Vec<Program> {
    build::executables(messages)
        .into_iter()
        .filter(|made| made.tests)
        .map(|made| {
            let folder = made.manifest.parent().map(Path::to_owned);
            let folder = folder.unwrap_or_else(workspace::root);
            let package = members.iter().find(|(_, of)| *of == folder);
            let package = package.map_or("?", |(name, _)| name);
            Program {
                label: format!("{package} {}", made.name),
                file: made.program,
                folder,
            }
        })
        .collect()
}

fn run_all(programs: Vec<Program>, filter: Option<&str>) -> Tally {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let queue = Mutex::new(VecDeque::from(programs));
    let tally = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = queue
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .pop_front();
                    let Some(program) = next else { break };
                    let counted = run_one(&program, filter);
                    *tally.lock().unwrap_or_else(PoisonError::into_inner) += counted;
                }
            });
        }
    });
    tally.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one as cargo would, and shows what is worth reading of what it says, all of it together.
fn run_one(program: &Program, filter: Option<&str>) -> Tally {
    let failed = |why: &str| {
        show!("FAILED  host: {}: {why}", program.label);
        Tally {
            failed: 1,
            ..Tally::default()
        }
    };
    let mut command = Command::new(&program.file);
    command
        .current_dir(&program.folder)
        .env("CARGO_MANIFEST_DIR", &program.folder)
        .args(filter);
    let (status, output, spent) = match child::output(&mut command) {
        Ok(ended) => ended,
        Err(error) => return failed(&error.to_string()),
    };
    timings::add(&format!("host: {}", program.label), spent);
    let mut text = String::new();
    let tally = read(output.as_slice(), |line| {
        text.push_str("    ");
        text.push_str(line);
        text.push('\n');
    });
    if tally != Tally::default() {
        let took = spent.as_secs_f64();
        output::text(&format!(
            "host    {} ({took:.1} s of CPU)\n{text}",
            program.label
        ));
    }
    if !status.success() && tally.failed == 0 {
        return failed(&format!("it ended with {status} before it could count"));
    }
    tally
}

/// The examples in documentation, of the packages that have some: the tool that finds them is slow to find none.
fn documentation(members: &[(String, PathBuf)], filter: Option<&str>) -> Result<Tally> {
    let mut command = cargo();
    command.args(["test", "--locked", "--doc"]).args(WHOLE);
    let mut some = false;
    for (name, folder) in members {
        if has_examples(&folder.join("src"))? {
            command.args(["-p", name]);
            some = true;
        }
    }
    if !some {
        return Ok(Tally::default());
    }
    let (status, output, spent) =
        child::output(command.arg("--").args(filter)).context("cannot start cargo")?;
    timings::add("host: examples in documentation", spent);
    let mut tally = read(output.as_slice(), |line| show!("{line}"));
    if !status.success() && tally.failed == 0 {
        say!("the examples in documentation ended with {status} before they could be counted");
        tally.failed = 1;
    }
    Ok(tally)
}

/// Whether a source below a folder has an example that is run.
fn has_examples(folder: &Path) -> Result<bool> {
    if !folder.is_dir() {
        return Ok(false);
    }
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        let found = if path.is_dir() {
            has_examples(&path)?
        } else {
            path.extension().is_some_and(|kind| kind == "rs")
                && example_in(&fs::read_to_string(&path)?)
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether documentation in a source has a block that is no plain text.
fn example_in(source: &str) -> bool {
    let mut inside = false;
    for line in source.lines().map(str::trim_start) {
        let Some(text) = line
            .strip_prefix("//!")
            .or_else(|| line.strip_prefix("///"))
        else {
            inside = false;
            continue;
        };
        if let Some(kind) = text.trim_start().strip_prefix("```") {
            if !inside && !["text", "toml", "ignore"].contains(&kind.trim()) {
                return true;
            }
            inside = !inside;
        }
    }
    false
}

/// Counts what libtest says; passes on what is worth reading.
fn read(output: impl Read, mut show: impl FnMut(&str)) -> Tally {
    let mut tally = Tally::default();
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        if let Some(counted) = summary(&line) {
            tally += counted;
            if counted != Tally::default() {
                show(&line);
            }
        } else if !(line.is_empty() || line.starts_with("running ") || line.ends_with(" ... ok")) {
            show(&line);
        }
    }
    tally
}

/// `test result: ok. 54 passed; 0 failed; 1 ignored; 0 measured; …`
fn summary(line: &str) -> Option<Tally> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut tally = Tally::default();
    for count in counts.split("; ") {
        let mut words = count.split_whitespace();
        let (Some(number), Some(what)) = (words.next(), words.next()) else {
            continue;
        };
        match (number.parse(), what) {
            (Ok(number), "passed") => tally.passed = number,
            (Ok(number), "failed") => tally.failed = number,
            (Ok(number), "ignored") => tally.skipped = number,
            _ => {}
        }
    }
    Some(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtests_summaries_are_added_up() {
        let output = "\nrunning 2 tests\ntest a ... ok\ntest b ... FAILED\n\nfailures:\n\n\
            test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            running 0 tests\n\
            test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.00s\n\
            test result: ok. 5 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        let mut shown = Vec::new();
        let tally = read(output.as_bytes(), |line| shown.push(line.to_owned()));
        assert_eq!(
            tally,
            Tally {
                passed: 6,
                failed: 1,
                skipped: 2
            }
        );
        assert_eq!(shown[0], "test b ... FAILED");
        assert_eq!(shown.len(), 4);
    }

    #[test]
    fn a_program_that_ends_without_a_count_is_a_failure() {
        let program = |file: &str| Program {
            label: "bulkhead-none".into(),
            file: file.into(),
            folder: workspace::root(),
        };
        assert_eq!(run_one(&program("false"), None).failed, 1);
        assert_eq!(run_one(&program("no-such-program-here"), None).failed, 1);
        assert_eq!(run_one(&program("true"), None), Tally::default());
    }

    #[test]
    fn only_examples_that_are_run_count() {
        assert!(example_in(
            "/// ```\n/// assert!(true);\n/// ```\nfn f() {}"
        ));
        assert!(example_in("    //! ```rust\n"));
        assert!(example_in(
            "/// ```text\n/// x\n/// ```\n/// ```should_panic\n"
        ));
        assert!(!example_in("/// ```text\n/// x\n/// ```\n"));
        assert!(!example_in("let text = \"```\";"));
    }

    #[test]
    fn the_longest_are_there() {
        let packages = packages().unwrap();
        for long in LONGEST {
            assert!(packages.contains(&long.to_owned()), "{long}");
        }
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(summary("test result is fine"), None);
        assert_eq!(summary("2 passed"), None);
    }

    #[test]
    fn the_binaries_are_not_among_the_host_packages() {
        let packages = packages().unwrap();
        assert!(packages.contains(&"xtask".to_owned()));
        assert!(!packages.contains(&"bulkhead-aarch64".to_owned()));
    }
}
