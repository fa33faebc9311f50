//! The last line of a run.

use core::fmt;

/// How a run of the machine ended.
///
/// Whoever watches the console judges the run by this line, because most machines cannot report a
/// status when they power off. It is printed exactly once, just before the machine is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Everything asked for was done.
    Good(&'a str),
    /// The hypervisor could not go on.
    Fatal(&'a str),
}

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good(reason) => write!(f, "bulkhead: verdict 0: {reason}"),
            Self::Fatal(reason) => write!(f, "bulkhead: verdict 1: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::Verdict;

    #[test]
    fn the_verdict_line_is_the_one_scripts_look_for() {
        assert_eq!(
            Verdict::Good("done").to_string(),
            "bulkhead: verdict 0: done"
        );
        assert_eq!(
            Verdict::Fatal("panic").to_string(),
            "bulkhead: verdict 1: panic"
        );
    }
}
