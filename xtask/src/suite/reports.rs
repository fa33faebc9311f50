//! Whether two images report one machine in the same words.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

/// The last line of a report.
const END: &str = "report: complete";
/// What is said of times, of sizes, and of what lies behind the image, which are each image's own.
const OWN: [&str; 5] = ["entered at tick", "initrd:", "frames:", "heap:", "ticks"];

/// Compares the reports on two consoles.
///
/// # Errors
/// A console without a whole report, and the first line that differs.
pub(super) fn same(first: &Path, second: &Path) -> Result<()> {
    let read = |path: &Path| {
        let console =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        report(&String::from_utf8_lossy(&console))
            .with_context(|| format!("the console {}", path.display()))
    };
    compare(&read(first)?, &read(second)?)
}

/// The lines of the report up to its last, without their times, and without numbers where those are the image's own.
fn report(console: &str) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for line in console.lines() {
        let Some((_, said)) = line.split_once("] ").filter(|_| line.starts_with('[')) else {
            continue;
        };
        if said.contains(END) {
            // A run may be over with these words.
            return Ok(lines);
        }
        let is_own = OWN.iter().any(|words| said.contains(words));
        let kept = said
            .chars()
            .filter(|c| !(is_own && c.is_ascii_hexdigit()))
            .collect();
        lines.push(kept);
    }
    bail!("there is no `{END}` on it")
}

fn compare(first: &[String], second: &[String]) -> Result<()> {
    for (number, (a, b)) in (1..).zip(first.iter().zip(second)) {
        ensure!(
            a == b,
            "the reports differ in line {number}:\n    1 {a}\n    2 {b}"
        );
    }
    ensure!(
        first.len() == second.len(),
        "one report has {} lines, the other {}",
        first.len(),
        second.len()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "SLOF\n\
        [    0.000001] INFO  survey: smmu0: locked\n\
        [    0.000001] INFO  survey: initrd: 0xcc0000-0xcc3403, 13316 bytes\n\
        [    0.000002] INFO  survey: frames: 2000 MiB free in 4 ranges\n\
        [    0.000003] INFO  main: report: complete 8209 ticks after entry at 100 Hz, 2 functions\n\
        [    0.000004] INFO  launch: vm small: one more\n";

    fn differ(other: &str) -> bool {
        compare(&report(WHOLE).unwrap(), &report(other).unwrap()).is_err()
    }

    #[test]
    fn times_sizes_and_what_follows_the_report_are_each_images_own() {
        assert_eq!(report(WHOLE).unwrap().len(), 3);
        let other = WHOLE
            .replace("0.00000", "0.10000")
            .replace("0xcc", "0xc7")
            .replace("2000 MiB", "2001 MiB")
            .replace("8209 ticks", "77 ticks")
            .replace("vm small", "vm large");
        assert!(!differ(&other));
    }

    #[test]
    fn a_line_that_is_missing_or_says_something_else_is_found() {
        assert!(differ(&WHOLE.replace("smmu0", "smmu1")));
        assert!(differ(
            &WHOLE.replace("INFO  survey: smmu0", "ERROR survey: smmu0")
        ));
        assert!(differ(&WHOLE.replace("MiB free in", "MiB lost in")));
        let without = WHOLE.replace("[    0.000001] INFO  survey: smmu0: locked\n", "");
        assert!(differ(&without));
    }

    #[test]
    fn a_console_without_an_end_has_no_report() {
        assert!(report("").is_err());
        assert!(report(&WHOLE.replace("complete", "")).is_err());
    }
}
