//! Judges a console on which a hostile guest and its neighbour have been.

use anyhow::{Context as _, Result, bail, ensure};
use regex::Regex;

/// The most lines that the hypervisor may log from the start of the VMs to the end. The hostile guest does
/// hundreds of thousands of things; what it makes the hypervisor say must not grow with them.
const MOST_LOG_LINES: usize = 40;
/// What of the operations must at least have happened each way, in a thousand: a guest that finds all its
/// operations undefined has tested nothing.
const LEAST_PER_MILLE: u64 = 5;

/// How operations end on Arm.
const ARM: [&str; 5] = [
    "completed",
    "data_aborts",
    "instruction_aborts",
    "undefined",
    "interrupts",
];
/// How they end on POWER.
const POWER: [&str; 6] = [
    "completed",
    "machine_checks",
    "programs",
    "interrupts",
    "privileged",
    "refused",
];

/// Whether the neighbour has never been held up, the hostile guest has done what it was asked to, and the
/// hypervisor's log has stayed short.
///
/// # Errors
/// What is wrong.
pub(super) fn judge(console: &str) -> Result<()> {
    hostile(console)?;
    heartbeat(console)?;
    log(console)
}

/// The control for [`judge`]: the neighbour is known to miss beats.
///
/// # Errors
/// Anything is wrong but the beats, or the beats are not.
pub(super) fn judge_must_refuse(console: &str) -> Result<()> {
    hostile(console)?;
    log(console)?;
    match heartbeat(console) {
        Ok(()) => bail!("the neighbour overslept, and nothing has noticed"),
        Err(error) if error.to_string().contains("missed") => Ok(()),
        Err(error) => Err(error.context("the neighbour overslept, but something else was noticed")),
    }
}

fn number(console: &str, pattern: &str) -> Result<u64> {
    let pattern = Regex::new(pattern)?;
    let found = pattern
        .captures(console)
        .with_context(|| format!("the console has no `{pattern}`"))?;
    Ok(found[1].parse()?)
}

fn hostile(console: &str) -> Result<()> {
    let wanted = number(console, r"hostile start: seed=\d+ ops=(\d+)")?;
    let done = number(console, r"hostile end: seed=\d+ ops=(\d+) ")?;
    ensure!(
        done >= wanted,
        "the hostile guest did {done} operations of {wanted}"
    );
    let ways: &[&str] = if console.contains(" machine_checks=") {
        &POWER
    } else {
        &ARM
    };
    for way in ways {
        let count = number(console, &format!(r"hostile end: .* {way}=(\d+)"))?;
        ensure!(
            count >= done / 1000 * LEAST_PER_MILLE,
            "only {count} operations of {done} ended with {way}"
        );
    }
    let lives = number(console, r"hostile end: .* lives=(\d+)")?;
    ensure!(
        lives > 1,
        "the CPU of the hostile guest that comes and goes came {lives} times"
    );
    Ok(())
}

fn heartbeat(console: &str) -> Result<()> {
    let beats = number(console, r"heartbeat start: (\d+) beats")?;
    let pattern = Regex::new(r"(?m)^\[heartbeat\] beat (\d+)\r?$")?;
    let mut expected = 1..=beats;
    for found in pattern.captures_iter(console) {
        let beat: u64 = found[1].parse()?;
        let next = expected.next();
        ensure!(
            next == Some(beat),
            "beat {beat} came where {next:?} was due"
        );
    }
    if let Some(next) = expected.next() {
        bail!("beat {next} of {beats} never came");
    }
    let missed = number(console, r"heartbeat end: .* missed=(\d+)")?;
    let gap = number(console, r"heartbeat end: .* longest_gap_us=(\d+)")?;
    ensure!(
        missed == 0,
        "{missed} beats were missed, the longest gap is {gap} us"
    );
    // The neighbour must have been there all the time.
    let (Some(attack), Some(rest)) = (
        console.find("hostile end: "),
        console.find("heartbeat end: "),
    ) else {
        bail!("one of the guests has no end");
    };
    ensure!(
        attack < rest,
        "the neighbour was gone before the attack was over: give it more beats"
    );
    Ok(())
}

fn log(console: &str) -> Result<()> {
    let line = Regex::new(r"(?m)^\[ *\d+\.\d{6}\] ")?;
    let (_, after) = console
        .split_once("report: complete")
        .context("the hypervisor's report is not complete")?;
    let count = line.find_iter(after).count();
    ensure!(
        count <= MOST_LOG_LINES,
        "the hypervisor logged {count} lines while the guests ran, more than {MOST_LOG_LINES}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: &str = "[hostile] hostile end: seed=1 ops=1000 completed=300 data_aborts=300 \
                       instruction_aborts=100 undefined=200 interrupts=100 others=0 cpu1=0 lives=4\n";

    fn console(beats: &str, missed: u64, log_lines: usize) -> String {
        let log = "[    0.100000] WARN  vm: a guest did something\r\n".repeat(log_lines);
        format!(
            "[    0.000100] INFO  aarch64: report: complete 1 ticks\r\n\
             [hostile] hostile start: seed=1 ops=1000\n\
             [heartbeat] heartbeat start: 3 beats, period 10000 us, limit 10000 us\n\
             {log}{END}{beats}\
             [heartbeat] heartbeat end: beats=3 longest_gap_us=10100 latest_us=100 missed={missed}\n"
        )
    }

    const BEATS: &str = "[heartbeat] beat 1\n[heartbeat] beat 2\r\n[heartbeat] beat 3\n";

    #[test]
    fn a_quiet_neighbourhood_is_well() {
        judge(&console(BEATS, 0, MOST_LOG_LINES)).unwrap();
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |console: &str| judge(console).unwrap_err().to_string();
        assert!(refused(&console(BEATS, 1, 0)).contains("missed"));
        let gap = "[heartbeat] beat 1\n[heartbeat] beat 3\n";
        assert!(refused(&console(gap, 0, 0)).contains("beat 3 came"));
        assert!(refused(&console("[heartbeat] beat 1\n", 0, 0)).contains("never came"));
        assert!(refused(&console(BEATS, 0, MOST_LOG_LINES + 1)).contains("logged"));
        let good = console(BEATS, 0, 0);
        assert!(refused(&good.replace("ops=1000 ", "ops=999 ")).contains("of 1000"));
        assert!(refused(&good.replace("undefined=200", "undefined=1")).contains("undefined"));
        assert!(refused(&good.replace("lives=4", "lives=1")).contains("comes and goes"));
        let power = good.replace("data_aborts", "machine_checks");
        assert!(refused(&power).contains("programs"));
        let late = good.replace(END, "") + END;
        assert!(refused(&late).contains("gone before"));
    }

    #[test]
    fn the_control_wants_missed_beats_and_nothing_else() {
        judge_must_refuse(&console(BEATS, 2, 0)).unwrap();
        assert!(judge_must_refuse(&console(BEATS, 0, 0)).is_err());
        assert!(judge_must_refuse(&console("", 2, 0)).is_err());
        assert!(judge_must_refuse(&console(BEATS, 2, MOST_LOG_LINES + 1)).is_err());
    }
}
