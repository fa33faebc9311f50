//! The host tier: the unit tests of every crate that runs here.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::Tally;
use crate::board::Arch;
use crate::{guest, say, workspace};

/// The packages whose tests run on the host: all but the two binaries and the guests.
///
/// # Errors
/// cargo cannot be asked.
pub(crate) fn packages() -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
    }
    let text = crate::provide::output_of(cargo().args([
        "metadata",
        "--no-deps",
        "--format-version=1",
        "--locked",
    ]))
    .context("cargo cannot list the packages of the workspace")?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo's list is not readable")?;
    let mut names: Vec<String> = metadata
        .packages
        .into_iter()
        .map(|package| package.name)
        .collect();
    names.retain(|name| {
        guest::PACKAGES.iter().all(|(_, package)| package != name)
            && Arch::ALL.iter().all(|arch| arch.package() != name)
    });
    names.sort();
    Ok(names)
}

/// The cargo that we were started by.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace::root());
    command
}

/// Runs them.
///
/// # Errors
/// cargo cannot be started.
pub(crate) fn run(filter: Option<&str>) -> Result<Tally> {
    let packages = packages()?;
    say!("host tests of {} crates", packages.len());
    let mut command = cargo();
    command.args(["test", "--locked", "--no-fail-fast"]);
    for package in &packages {
        command.args(["-p", package]);
    }
    if let Some(filter) = filter {
        command.args(["--", filter]);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let stdout = child
        .stdout
        .take()
        .context("cargo came without its output")?;
    let mut tally = read(stdout, |line| println!("{line}"));
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() && tally.failed == 0 {
        // It did not compile, or a test ended its whole process.
        say!("cargo test ended with {status} before it could count: one failure");
        tally.failed = 1;
    }
    Ok(tally)
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
