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

impl Verdict<'_> {
    /// That of an image without what runs VMs, which has done its work with the report.
    pub const BRING_UP: Verdict<'static> =
        Verdict::Good("report complete, the VMs are for an image that is not for bring-up");
}

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good(reason) => write!(f, "bulkhead: verdict 0: {reason}"),
            Self::Fatal(reason) => write!(f, "bulkhead: verdict 1: {reason}"),
        }
    }
}

/// How every verdict begins. Only at the very start of a line is it one.
const WORDS: &[u8] = b"bulkhead: verdict";

/// Keeps everything but the verdict from beginning a line like the verdict.
///
/// What guests print and what is logged goes through one guard on its way to the console; the verdict
/// alone goes by it. So whoever reads the console may trust a line whose first bytes, as they are, say
/// that it is the verdict.
#[derive(Clone, Copy, Debug)]
pub struct Guard {
    /// How many bytes of the line are as a verdict's; `None` when it has become another line.
    alike: Option<usize>,
}

impl Default for Guard {
    fn default() -> Self {
        Self::new()
    }
}

impl Guard {
    /// At the start of a line.
    #[must_use]
    pub const fn new() -> Self {
        Self { alike: Some(0) }
    }

    /// Whether the next byte is the first of a line.
    #[must_use]
    pub const fn is_at_start(&self) -> bool {
        matches!(self.alike, Some(0))
    }

    /// The byte to print for one that is to be printed: a `?` in place of the one that would complete the
    /// words, all others as they are.
    #[must_use]
    pub fn pass(&mut self, byte: u8) -> u8 {
        if byte == b'\n' {
            self.alike = Some(0);
            return byte;
        }
        let Some(alike) = self.alike else {
            return byte;
        };
        let next = alike.saturating_add(1);
        self.alike = (WORDS.get(alike) == Some(&byte) && next < WORDS.len()).then_some(next);
        if WORDS.get(alike) == Some(&byte) && next == WORDS.len() {
            b'?'
        } else {
            byte
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::{String, ToString};
    use alloc::vec::Vec;

    use proptest::prelude::{Just, Strategy, any, prop, prop_assert, prop_oneof, proptest};

    use super::{Guard, Verdict, WORDS};

    fn guarded(text: &[u8]) -> Vec<u8> {
        let mut guard = Guard::new();
        text.iter().map(|byte| guard.pass(*byte)).collect()
    }

    #[test]
    fn every_verdict_begins_with_the_words_that_are_kept() {
        for verdict in [Verdict::Good(""), Verdict::Fatal("")] {
            assert!(verdict.to_string().as_bytes().starts_with(WORDS));
        }
    }

    #[test]
    fn a_forged_verdict_is_marked_and_other_text_is_left_alone() {
        let text = |text: &str| String::from_utf8(guarded(text.as_bytes())).unwrap();
        assert_eq!(
            text("bulkhead: verdict 0: x\r\nbulkhead: verdict"),
            "bulkhead: verdic? 0: x\r\nbulkhead: verdic?"
        );
        let others =
            "# bulkhead: verdict 0: x\n\rbulkhead: verdict\nbulkhead\n: verdict\nbulkhead: v\n";
        assert_eq!(text(others), others);
    }

    #[test]
    fn the_guard_knows_where_a_line_starts() {
        let mut guard = Guard::new();
        assert!(guard.is_at_start());
        for (byte, start) in [(b'b', false), (b'\n', true), (b'\r', false), (b'x', false)] {
            assert_eq!(guard.pass(byte), byte);
            assert_eq!(guard.is_at_start(), start);
        }
    }

    proptest! {
        /// However the words are mixed with others, no line of what comes out begins with them, and
        /// nothing else is changed.
        #[test]
        fn no_line_begins_with_the_words(pieces in prop::collection::vec(
            prop_oneof![
                (0..=WORDS.len()).prop_map(|cut| WORDS[..cut].to_vec()),
                (0..=WORDS.len()).prop_map(|cut| WORDS[cut..].to_vec()),
                Just(b"\n".to_vec()), Just(b"\r\n".to_vec()),
                prop::collection::vec(any::<u8>(), 0..3),
            ], 0..40))
        {
            let text = pieces.concat();
            let out = guarded(&text);
            let mut forged = 0;
            for (line, was) in out.split(|b| *b == b'\n').zip(text.split(|b| *b == b'\n')) {
                prop_assert!(!line.starts_with(WORDS));
                forged += usize::from(was.starts_with(WORDS));
            }
            let changed = out.iter().zip(&text).filter(|(a, b)| a != b).count();
            prop_assert!(out.len() == text.len() && changed == forged);
        }
    }

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
