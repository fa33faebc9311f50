//! Watches a console: expectations in order, things that must not appear, the verdict line.

use regex::Regex;

/// The longest piece of console text that is looked at as one line.
const LINE_LIMIT: usize = 16 << 10;

/// How the verdict begins: the first bytes of its line, as they are. The hypervisor lets nobody else
/// print such a line.
const VERDICT: &[u8] = b"bulkhead: verdict ";

/// The hypervisor's last word, `bulkhead: verdict N: reason`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// 0 when all is well.
    pub(crate) status: u64,
    /// Why.
    pub(crate) reason: String,
}

/// What the console has shown so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing that ends the run.
    Going,
    /// The last expectation.
    LastExpectation,
    /// Something forbidden.
    Forbidden,
    /// The verdict, and nothing after it.
    Verdict,
}

/// A console being watched.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    expects: Vec<Regex>,
    next: usize,
    forbids: Vec<Regex>,
    line: Vec<u8>,
    /// What is in `line` is not the start of its line, which was too long.
    goes_on: bool,
    /// Bytes of the cleaned line that earlier expectations have used up.
    used: usize,
    forbidden: Option<String>,
    verdict: Option<Verdict>,
}

impl Watch {
    /// Watches for `expects`, in order.
    pub(crate) fn new(expects: Vec<Regex>, forbids: Vec<Regex>) -> Self {
        Self {
            expects,
            forbids,
            ..Self::default()
        }
    }

    /// Takes the next bytes of the console.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Seen {
        for &byte in bytes {
            self.line.push(byte);
            if byte == b'\n' || self.line.len() >= LINE_LIMIT {
                self.look(Line::Whole);
                self.goes_on = byte != b'\n';
                self.line.clear();
                self.used = 0;
            }
        }
        if !self.line.is_empty() {
            self.look(Line::Partial);
        }
        self.seen()
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> Seen {
        if self.forbidden.is_some() {
            Seen::Forbidden
        } else if self.verdict.is_some() {
            Seen::Verdict
        } else if !self.expects.is_empty() && self.missing().is_none() {
            Seen::LastExpectation
        } else {
            Seen::Going
        }
    }

    /// The first expectation that was not seen yet.
    pub(crate) fn missing(&self) -> Option<&Regex> {
        self.expects.get(self.next)
    }

    /// How many expectations were met so far.
    pub(crate) fn met(&self) -> usize {
        self.next
    }

    /// Whether there is anything to wait for.
    pub(crate) fn expects_anything(&self) -> bool {
        !self.expects.is_empty()
    }

    /// The forbidden line that was seen.
    pub(crate) fn forbidden(&self) -> Option<&str> {
        self.forbidden.as_deref()
    }

    /// The verdict that was seen.
    pub(crate) fn verdict(&self) -> Option<&Verdict> {
        self.verdict.as_ref()
    }

    fn look(&mut self, line: Line) {
        let text = clean(&self.line);
        while let Some(expect) = self.expects.get(self.next) {
            let Some(found) = text.get(self.used..).and_then(|rest| expect.find(rest)) else {
                break;
            };
            // An empty match moves on too, by the expectation it satisfied.
            self.used += found.end();
            self.next += 1;
        }
        // A negative answer or a verdict needs the whole line: the rest may still be on its way.
        if line == Line::Whole {
            if self.forbidden.is_none() && self.forbids.iter().any(|forbid| forbid.is_match(&text))
            {
                self.forbidden = Some(text.clone());
            }
            // What is followed by anything was not the last word.
            if self.goes_on || !text.is_empty() {
                let starts = !self.goes_on && self.line.starts_with(VERDICT);
                self.verdict = starts.then(|| parse_verdict(&text)).flatten();
            }
        }
    }
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Line {
    Whole,
    Partial,
}

/// The text of a line without carriage returns and terminal escapes.
fn clean(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                if chars.next_if_eq(&'[').is_some() {
                    // Parameters up to the final byte of a control sequence.
                    for c in chars.by_ref() {
                        if ('@'..='~').contains(&c) {
                            break;
                        }
                    }
                } else {
                    chars.next();
                }
            }
            '\r' | '\n' => {}
            c => out.push(c),
        }
    }
    out
}

fn parse_verdict(line: &str) -> Option<Verdict> {
    let rest = line.strip_prefix("bulkhead: verdict ")?;
    let (status, reason) = rest.split_once(": ")?;
    Some(Verdict {
        status: status.parse().ok()?,
        reason: reason.trim_end().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regexes(patterns: &[&str]) -> Vec<Regex> {
        patterns
            .iter()
            .map(|pattern| Regex::new(pattern).unwrap())
            .collect()
    }

    #[test]
    fn expectations_are_met_in_order_only() {
        let mut watch = Watch::new(regexes(&["one", "two"]), vec![]);
        assert_eq!(watch.feed(b"two\none\n"), Seen::Going);
        assert_eq!(watch.missing().unwrap().as_str(), "two");
        assert_eq!(watch.feed(b"two\n"), Seen::LastExpectation);
    }

    #[test]
    fn a_prompt_without_a_newline_is_seen_however_it_is_cut() {
        for cut in 0..11 {
            let text = b"boot\nlogin: ";
            let mut watch = Watch::new(regexes(&["login: $"]), vec![]);
            watch.feed(&text[..cut]);
            assert_eq!(
                watch.feed(&text[cut..]),
                Seen::LastExpectation,
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn one_line_may_satisfy_several_expectations_but_no_text_twice() {
        let mut watch = Watch::new(regexes(&["a", "a", "b"]), vec![]);
        assert_eq!(watch.feed(b"ab\n"), Seen::Going);
        assert_eq!(watch.feed(b"ab\n"), Seen::LastExpectation);
    }

    #[test]
    fn colours_and_carriage_returns_do_not_hide_text() {
        let mut watch = Watch::new(regexes(&["^ok done$"]), vec![]);
        assert_eq!(
            watch.feed(b"\x1b[1;32mok\x1b[0m done\r\n"),
            Seen::LastExpectation
        );
    }

    #[test]
    fn a_forbidden_line_is_kept() {
        let mut watch = Watch::new(vec![], regexes(&["(?i)oops"]));
        assert_eq!(watch.feed(b"fine\nOops: 1"), Seen::Going);
        assert_eq!(watch.feed(b"2\nmore\n"), Seen::Forbidden);
        assert_eq!(watch.forbidden(), Some("Oops: 12"));
    }

    #[test]
    fn the_verdict_is_read_from_a_whole_line() {
        let mut watch = Watch::default();
        assert_eq!(watch.feed(b"# \r\nbulkhead: verdict 1: pan"), Seen::Going);
        assert_eq!(watch.feed(b"ic: at x\r\n"), Seen::Verdict);
        let verdict = Verdict {
            status: 1,
            reason: "panic: at x".into(),
        };
        assert_eq!(watch.verdict(), Some(&verdict));
    }

    #[test]
    fn what_only_looks_like_a_verdict_is_none() {
        for line in [
            "bulkhead: verdict",
            "bulkhead: verdict x: y",
            "bulkhead: verdict 1 y",
            "verdict 0: z",
            // What the hypervisor lets a guest print.
            "bulkhead: verdic? 0: z",
            "[vm] bulkhead: verdict 0: z",
            "\rbulkhead: verdict 0: z",
            "x\rbulkhead: verdict 0: z",
            "bulk\x1b[0mhead: verdict 0: z",
            "\x1b[2K\x1b[1Gbulkhead: verdict 0: z",
            "\0bulkhead: verdict 0: z",
        ] {
            let mut watch = Watch::default();
            watch.feed(line.as_bytes());
            assert_eq!(watch.feed(b"\n"), Seen::Going, "{line}");
        }
    }

    #[test]
    fn the_rest_of_a_line_that_is_too_long_is_no_line() {
        let mut watch = Watch::default();
        watch.feed(&vec![b'x'; LINE_LIMIT]);
        assert_eq!(watch.feed(b"bulkhead: verdict 0: z\n"), Seen::Going);
        assert_eq!(watch.feed(b"bulkhead: verdict 0: z\n"), Seen::Verdict);
    }

    #[test]
    fn a_verdict_that_is_not_the_last_word_is_none() {
        let mut watch = Watch::default();
        assert_eq!(watch.feed(b"bulkhead: verdict 0: z\r\n"), Seen::Verdict);
        assert_eq!(watch.feed(b"\r\n"), Seen::Verdict);
        assert_eq!(watch.feed(b"and on it goes\r\n"), Seen::Going);
        assert_eq!(watch.verdict(), None);
        watch.feed(b"bulkhead: verdict 1: panic\r\n");
        assert_eq!(watch.verdict().unwrap().status, 1, "the last counts");
    }

    #[test]
    fn bytes_that_are_not_text_do_no_harm() {
        let mut watch = Watch::new(regexes(&["end"]), vec![]);
        watch.feed(&[0xff, 0x1b, b'[', 0xc3, b'\n', 0x1b]);
        watch.feed(&vec![b'x'; 3 * LINE_LIMIT]);
        assert_eq!(watch.feed(b"\nend"), Seen::LastExpectation);
    }
}
