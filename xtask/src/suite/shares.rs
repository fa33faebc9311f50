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
/// What is shared while a device of `owner` floods: windows in which both compute, one in which the owner sleeps, and
/// those in which it is off. Others lie between two of these.
const FLOODED: std::ops::RangeInclusive<u64> = 2..=3;
const ASLEEP: std::ops::RangeInclusive<u64> = 5..=5;
const OFF: std::ops::RangeInclusive<u64> = 7..=8;
/// How far the half of the flood's neighbour may be off, in a hundred thousand of the CPU.
const FLOOD_TOLERANCE: u64 = 300;
/// What reading the records takes at least, in the same: half of it would be missing to a neighbour, were it on nobody's
/// account, which is to be more than what it may be off.
const FLOOD_COSTS: u64 = 4 * FLOOD_TOLERANCE;
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

/// Whether a VM that computes has its half of a CPU beside one whose devices flood, and is told of its own refused DMA.
/// That reading the records takes enough to be seen is shown while the owner sleeps: nobody is there then to pay for it.
///
/// # Errors
/// A share that is off, a record that is missing, or a flood that shows nothing.
pub(super) fn judge_flood(console: &str) -> Result<()> {
    let rate = |name, windows: std::ops::RangeInclusive<u64>| -> Result<u64> {
        let count = windows.clone().count() as u64;
        let mut sum = 0;
        for window in windows {
            sum += counted(console, name, "dma", window, "steps")?;
        }
        Ok(sum / count)
    };
    let alone = rate("neighbour", OFF)?;
    ensure!(alone > 0, "alone on its CPU the neighbour stood still");
    let share = |name, windows| Ok::<_, anyhow::Error>(rate(name, windows)? * 100_000 / alone);
    let costs = 100_000_u64.saturating_sub(share("neighbour", ASLEEP)?);
    ensure!(
        costs >= FLOOD_COSTS,
        "the flood takes {costs} of 100000 only: too little to show who pays for it"
    );
    let neighbour = share("neighbour", FLOODED)?;
    ensure!(
        neighbour.abs_diff(50_000) <= FLOOD_TOLERANCE,
        "share of the flood's neighbour: {neighbour} of 100000, not 50000 ± {FLOOD_TOLERANCE}"
    );
    let owner = share("owner", FLOODED)?;
    ensure!(
        owner <= 50_000 - costs / 2,
        "share of the flood's owner: {owner} of 100000, although reading takes {costs}"
    );
    for window in 1..=*OFF.end() {
        let page = 0x30_0000_0000_u64 + window * 0x1000;
        let line = format!("F_TRANSLATION sid 0x300 write of {page:#x}, stage 2, 03:00.0 of VM 2");
        ensure!(
            console.contains(&line),
            "no record names the neighbour's write of {page:#x}"
        );
    }
    Ok(())
}

/// Whether a VM that computes has its half of a CPU beside one whose device sends messages there.
///
/// # Errors
/// A share that is off.
pub(super) fn judge_messages(console: &str) -> Result<()> {
    let sum = |windows: std::ops::RangeInclusive<u64>| -> Result<u64> {
        let steps = |window| counted(console, "neighbour", "dma", window, "steps");
        windows.map(steps).sum()
    };
    let share = per_mille(sum(FLOODED)?, sum(OFF)?);
    ensure!(
        share.abs_diff(HALF) <= TOLERANCE,
        "share of the neighbour of a VM whose device sends messages: {share} of 1000, not {HALF} ± {TOLERANCE}"
    );
    Ok(())
}

fn per_mille(part: u64, whole: u64) -> u64 {
    part.saturating_mul(1000)
        .checked_div(whole)
        .unwrap_or_default()
}

fn iterations(console: &str, name: &str, window: u64) -> Result<u64> {
    counted(console, name, "busy", window, "iterations")
}

fn counted(console: &str, name: &str, who: &str, window: u64, what: &str) -> Result<u64> {
    let row = Regex::new(&format!(
        r"(?m)^\[{name}\] {who} window {window}: (\d+) {what}\r?$"
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

    /// What of a thousand each has while both compute, and the neighbour while the other sleeps.
    fn flooded(owner: u64, neighbour: u64, asleep: u64) -> String {
        let mut console = String::new();
        for window in 1..=8 {
            let steps = match window {
                1..=3 => neighbour,
                4..=5 => asleep,
                _ => 1_000,
            };
            let page = 0x30_0000_0000_u64 + window * 0x1000;
            console += &format!(
                "INFO  events: smmu0: F_TRANSLATION sid 0x300 write of {page:#x}, stage 2, 03:00.0 of VM 2\r\n\
                 [owner] dma window {window}: {owner} steps\r\n\
                 [neighbour] dma window {window}: {steps} steps\r\n"
            );
        }
        console
    }

    #[test]
    fn messages_that_take_a_share_are_seen() {
        judge_messages(&flooded(500, 480, 1)).unwrap();
        let refused = judge_messages(&flooded(500, 300, 1)).unwrap_err();
        assert!(refused.to_string().contains("300 of 1000"));
    }

    #[test]
    fn who_pays_for_a_flood_is_seen() {
        // As measured, first as it is, then with reading on nobody's account: it is missing in both turns alike.
        judge_flood(&flooded(468, 500, 966)).unwrap();
        let refused = |console: &str| judge_flood(console).unwrap_err().to_string();
        assert!(refused(&flooded(484, 484, 966)).contains("share of the flood's neighbour"));
        // On the neighbour's.
        assert!(refused(&flooded(500, 468, 966)).contains("share of the flood's neighbour"));
        // All of what the owner loses, and more, goes to the neighbour.
        assert!(refused(&flooded(451, 549, 966)).contains("share of the flood's neighbour"));
        assert!(refused(&flooded(500, 500, 966)).contains("share of the flood's owner"));
        assert!(refused(&flooded(500, 500, 999)).contains("too little to show"));
        let well = flooded(468, 500, 966);
        assert!(refused(&well.replace("of 0x3000003000", "of 0x3000000000")).contains("no record"));
        assert!(refused("").contains("no window"));
    }
}
