//! `cargo xtask test`: host tests, then boards under QEMU.

mod bundles;
mod cases;
pub(crate) mod host;
mod kernel_log;
mod neighbours;
mod pairwise;
mod refusals;
mod reports;
mod runner;
mod shares;
mod tables;
mod tool;
mod trees;
mod two_smmus;

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, anyhow, bail};

use self::cases::Smmus;
use crate::board::{self, Arch, Board};
use crate::build::Profile;
use crate::cli::TestOptions;
use crate::provide::disk::{self, Work};
use crate::provide::permission;
use crate::{say, show, timings, workspace};

/// How many tests came to what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Proved what they are for.
    pub(crate) passed: u64,
    /// Did not.
    pub(crate) failed: u64,
    /// Not run, with a reason shown.
    pub(crate) skipped: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// How much of a large matrix is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// A sample in which every pair of values occurs.
    Pairs,
    /// Every combination.
    Full,
}

/// What of the tests is run.
#[derive(Debug, PartialEq, Eq)]
struct Selection {
    host: bool,
    boards: Vec<String>,
    filter: Option<String>,
}

impl Selection {
    /// Reads `[host|BOARD…] [FILTER]`.
    fn parse(words: &[String], known: &[String]) -> Result<Self> {
        let mut selection = Self {
            host: false,
            boards: Vec::new(),
            filter: None,
        };
        for word in words {
            if let Some(filter) = &selection.filter {
                bail!(
                    "`{filter}` is no board, so it is the filter and the last word, but `{word}` \
                     follows; the boards are: {}",
                    known.join(", ")
                );
            }
            if word == "host" {
                selection.host = true;
            } else if known.contains(word) {
                selection.boards.push(word.clone());
            } else {
                selection.filter = Some(word.clone());
            }
        }
        if !selection.host && selection.boards.is_empty() {
            selection.host = true;
            selection.boards = known.to_vec();
        }
        Ok(selection)
    }
}

/// Runs the tests.
///
/// # Errors
/// A wrong selection, or something missing that the tests need.
pub(crate) fn command(options: &TestOptions) -> Result<u8> {
    let folder = workspace::root().join("boards");
    let known = board::names(&folder)?;
    let selection = Selection::parse(&options.words, &known)?;
    let filter = selection.filter.as_deref();
    let extent = if options.full {
        Extent::Full
    } else {
        Extent::Pairs
    };

    let profile = Profile::of_option(options.debug);
    disk::ensure_room(Work::Test, profile)?;
    let mut tally = Tally::default();
    let mut chosen = Vec::new();
    let mut boards = BTreeMap::new();
    for name in &selection.boards {
        boards.insert(name.clone(), Board::load(&folder, name)?);
    }
    if !boards.is_empty() {
        let arches: Vec<Arch> = boards.values().map(|board| board.arch).collect();
        permission::ensure(&arches)?;
    }
    for (name, board) in &boards {
        let cases = cases::of_board(name, extent);
        if cases.is_empty() {
            say!("board {name} has no tests");
        }
        let (can_be_made, more): (Vec<_>, Vec<_>) = cases
            .into_iter()
            .filter(|case| case.is_of(profile))
            .filter(|case| filter.is_none_or(|f| case.name.contains(f)))
            .partition(|case| case.smmus == Smmus::OfBoard);
        chosen.extend(can_be_made);
        if !more.is_empty() {
            match two_smmus::qemu(board.arch) {
                Ok(_) => chosen.extend(more),
                Err(error) => say!(
                    "board {name}: {} tests of a machine with two SMMUs are not among these: they take QEMU {} or newer; \
                     PATH has none, and none can be had beside it: {error:#}",
                    more.len(),
                    two_smmus::LEAST
                ),
            }
        }
    }
    // One compiler or unpacker alone leaves processors idle: what boards need is made meanwhile.
    let (hosts, prepared) = std::thread::scope(|scope| {
        let prepared = (!chosen.is_empty()).then(|| {
            let cases = &chosen;
            let boards = &boards;
            scope.spawn(move || runner::prepare(cases, boards, profile))
        });
        let hosts = selection.host.then(|| host::run(filter));
        let prepared = prepared.map(|thread| {
            let ended = thread.join();
            ended.unwrap_or_else(|_| Err(anyhow!("preparing the board tests panicked")))
        });
        (hosts, prepared)
    });
    if let Some(hosts) = hosts {
        tally += hosts?;
    }
    if let Some(prepared) = prepared {
        tally += runner::run(chosen, &boards, prepared?, profile);
    }
    if tally == Tally::default() {
        let filter = filter.unwrap_or_default();
        bail!(
            "no test has `{filter}` in its name; the tiers are: host, {}",
            known.join(", ")
        );
    }
    say!("{}", timings::report(options.timings));
    show!("{tally}");
    Ok(u8::from(tally.failed > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(words: &[&str]) -> Result<Selection> {
        let owned = |words: &[&str]| {
            words
                .iter()
                .map(|&word| word.to_owned())
                .collect::<Vec<_>>()
        };
        Selection::parse(&owned(words), &owned(&["pseries", "virt"]))
    }

    #[test]
    fn bare_means_everything() {
        let all = select(&[]).unwrap();
        assert!(all.host && all.boards == ["pseries", "virt"] && all.filter.is_none());
        let filtered = select(&["report"]).unwrap();
        assert!(filtered.host && filtered.boards.len() == 2);
        assert_eq!(filtered.filter.as_deref(), Some("report"));
    }

    #[test]
    fn tiers_narrow_and_the_filter_comes_last() {
        let some = select(&["virt", "8 CPUs"]).unwrap();
        assert!(!some.host && some.boards == ["virt"]);
        let host = select(&["host"]).unwrap();
        assert!(host.host && host.boards.is_empty());
        assert!(select(&["report", "virt"]).is_err());
    }

    #[test]
    fn the_last_line_is_the_contract() {
        let mut tally = Tally {
            passed: 3,
            failed: 0,
            skipped: 1,
        };
        tally += Tally {
            passed: 1,
            failed: 2,
            skipped: 0,
        };
        assert_eq!(tally.to_string(), "4 passed, 2 failed, 1 skipped");
    }
}
