//! What a command took of the host's processors, by step: on a shared machine that says more than a clock.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::child;

/// What this process had taken when the tool began. It has the number of the cargo that built the tool, which gave
/// its place to it, and that of the shell that may have done the same after other work: theirs is counted to it.
static BEFORE: OnceLock<Duration> = OnceLock::new();

/// The tool begins.
pub(crate) fn begin() {
    let _ = BEFORE.set(child::own_processor_time().unwrap_or_default());
}

static LEDGER: Mutex<BTreeMap<String, Duration>> = Mutex::new(BTreeMap::new());

/// Adds what a step took. Its name is `KIND: WHAT`, and kinds are added up.
pub(crate) fn add(step: &str, spent: Duration) {
    let mut ledger = LEDGER.lock().unwrap_or_else(PoisonError::into_inner);
    *ledger.entry(step.to_owned()).or_default() += spent;
}

/// The processor time of all steps, with every step if there shall be.
pub(crate) fn report(each: bool) -> String {
    let ledger = LEDGER.lock().unwrap_or_else(PoisonError::into_inner);
    let before = BEFORE.get().copied().unwrap_or_default();
    let all = child::own_processor_time().map(|all| all.saturating_sub(before));
    text(&ledger, all, each)
}

fn text(ledger: &BTreeMap<String, Duration>, all: Option<Duration>, each: bool) -> String {
    let mut lines = Vec::new();
    if each {
        let mut steps: Vec<_> = ledger.iter().collect();
        steps.sort_by_key(|(_, spent)| std::cmp::Reverse(**spent));
        lines.extend(
            steps
                .iter()
                .map(|(step, spent)| format!("{:8.2} s  {step}", spent.as_secs_f64())),
        );
    }
    let mut kinds: BTreeMap<&str, Duration> = BTreeMap::new();
    for (step, spent) in ledger {
        let kind = step
            .split_once(": ")
            .map_or(step.as_str(), |(kind, _)| kind);
        *kinds.entry(kind).or_default() += *spent;
    }
    let known: Duration = kinds.values().sum();
    let all = all.map_or(known, |all| all.max(known));
    let mut parts: Vec<String> = kinds
        .iter()
        .map(|(kind, spent)| format!("{kind} {:.0}", spent.as_secs_f64()))
        .collect();
    parts.push(format!("else {:.0}", (all - known).as_secs_f64()));
    lines.push(format!(
        "{:.0} s of the processors: {}",
        all.as_secs_f64(),
        parts.join(", ")
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_listed_and_kinds_are_added_up() {
        let second = Duration::from_secs;
        let ledger = BTreeMap::from([
            ("build: a".to_owned(), second(2)),
            ("build: b".to_owned(), second(3)),
            ("host: c".to_owned(), second(4)),
        ]);
        let sums = "10 s of the processors: build 5, host 4, else 1";
        assert_eq!(text(&ledger, Some(second(10)), false), sums);
        let each = text(&ledger, Some(second(10)), true);
        let lines: Vec<&str> = each.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0], "    4.00 s  host: c");
        assert_eq!(lines[3], sums);
    }

    #[test]
    fn without_a_sum_of_all_the_known_ones_count() {
        let ledger = BTreeMap::from([("host: c".to_owned(), Duration::from_secs(4))]);
        assert_eq!(
            text(&ledger, None, false),
            "4 s of the processors: host 4, else 0"
        );
    }
}
