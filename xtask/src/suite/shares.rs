//! Judges how two VMs have shared a CPU, by how far each came in windows of time.

use anyhow::{Context as _, Result, bail, ensure};
use regex::Regex;

/// Windows in which both compute.
const SHARED: std::ops::RangeInclusive<u64> = 1..=2;
/// Windows in which the first is alone. The one between is neither.
const ALONE: std::ops::RangeInclusive<u64> = 4..=5;
/// The share of each, and how far it may be off: in a thousand.
const HALF: u64 = 500;
const TOLERANCE: u64 = 50;
/// How much of what the CPU can do may differ between two windows, in a thousand: more, and the control
/// means nothing.
const UNSTEADY: u64 = 10;

/// Whether each got its half.
///
/// # Errors
/// A share that is off, or a control that means nothing.
pub(super) fn judge(console: &str) -> Result<()> {
    let alone: Vec<u64> = ALONE
        .map(|window| iterations(console, "first", window))
        .collect::<Result<_>>()?;
    let (Some(&least), Some(&most)) = (alone.iter().min(), alone.iter().max()) else {
        bail!("no window alone");
    };
    ensure!(
        least > 0 && per_mille(most - least, most) <= UNSTEADY,
        "alone on its CPU the VM came {least} and {most} times round"
    );
    let whole: u64 = alone.iter().sum();
    for name in ["first", "second"] {
        let mut count = 0;
        for window in SHARED {
            count += iterations(console, name, window)?;
        }
        let share = per_mille(count, whole);
        ensure!(
            share.abs_diff(HALF) <= TOLERANCE,
            "share of {name}: {share} of 1000, not {HALF} ± {TOLERANCE}"
        );
    }
    Ok(())
}

/// The control for [`judge`]: the second VM is known to get more.
///
/// # Errors
/// Anything is wrong but the shares, or they are not.
pub(super) fn judge_must_refuse(console: &str) -> Result<()> {
    match judge(console) {
        Ok(()) => bail!("one VM had turns twice as long, and nothing has noticed"),
        Err(error) if error.to_string().contains("share of") => Ok(()),
        Err(error) => Err(error.context("the turns differ, but something else was noticed")),
    }
}

fn per_mille(part: u64, whole: u64) -> u64 {
    part.saturating_mul(1000)
        .checked_div(whole)
        .unwrap_or_default()
}

fn iterations(console: &str, name: &str, window: u64) -> Result<u64> {
    let row = Regex::new(&format!(
        r"(?m)^\[{name}\] busy window {window}: (\d+) iterations\r?$"
    ))?;
    let found = row
        .captures(console)
        .with_context(|| format!("the console has no window {window} of {name}"))?;
    Ok(found[1].parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(first: u64, second: u64, alone: u64) -> String {
        let row =
            |name, window, count| format!("[{name}] busy window {window}: {count} iterations\r\n");
        [
            row("first", 1, first),
            row("second", 1, second),
            row("first", 2, first),
            row("second", 2, second),
            row("first", 3, 1),
            row("first", 4, alone),
            row("first", 5, 1000),
        ]
        .concat()
    }

    #[test]
    fn halves_are_well() {
        judge(&console(500, 500, 1000)).unwrap();
        judge(&console(450, 550, 1000)).unwrap();
    }

    #[test]
    fn other_shares_are_refused() {
        let refused = |console: &str| judge(console).unwrap_err().to_string();
        assert!(refused(&console(449, 500, 1000)).contains("share of first"));
        assert!(refused(&console(500, 551, 1000)).contains("share of second"));
        // Neither gets its half when the CPU is wasted.
        assert!(refused(&console(400, 400, 1000)).contains("share of first"));
        assert!(refused(&console(500, 500, 900)).contains("alone"));
        assert!(refused("").contains("no window"));
    }

    #[test]
    fn the_control_wants_other_shares_and_nothing_else() {
        judge_must_refuse(&console(333, 667, 1000)).unwrap();
        assert!(judge_must_refuse(&console(500, 500, 1000)).is_err());
        assert!(judge_must_refuse(&console(500, 500, 900)).is_err());
    }
}
