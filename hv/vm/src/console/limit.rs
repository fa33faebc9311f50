//! How much a VM may print while others share the terminal.

/// Bytes that a VM may print at once: more than a talkative kernel's whole boot.
const BURST: u64 = 128 << 10;
/// Bytes a second after that: three times what a serial line at 115,200 baud carries.
const RATE: u64 = 32 << 10;
/// A VM that was cut off speaks again when it has this much room, so that it comes in pieces worth
/// reading.
const RESUME: u64 = 4 << 10;
const US: u64 = 1_000_000;

/// A bucket of bytes that fills with time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// In millionths of a byte.
    room: u64,
    at_us: u64,
    dropped: u64,
}

/// What is to be done with a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is shown.
    Show,
    /// It is shown, after so many that were not.
    ShowAfter(u64),
    /// It is not.
    Drop,
}

impl Limit {
    pub(super) const fn new() -> Self {
        Self {
            room: BURST.saturating_mul(US),
            at_us: 0,
            dropped: 0,
        }
    }

    /// Judges a byte that comes at `now_us`.
    pub(super) fn judge(&mut self, now_us: u64) -> Verdict {
        let passed = now_us.saturating_sub(self.at_us);
        self.at_us = self.at_us.max(now_us);
        let full = BURST.saturating_mul(US);
        self.room = self
            .room
            .saturating_add(passed.saturating_mul(RATE))
            .min(full);
        let needed = if self.dropped > 0 { RESUME } else { 1 };
        match self.room.checked_sub(needed.saturating_mul(US)) {
            None => {
                self.dropped = self.dropped.saturating_add(1);
                Verdict::Drop
            }
            Some(_) => {
                self.room = self.room.saturating_sub(US);
                match core::mem::take(&mut self.dropped) {
                    0 => Verdict::Show,
                    dropped => Verdict::ShowAfter(dropped),
                }
            }
        }
    }

    /// How many bytes were dropped since the last was shown; from now on it is none.
    pub(super) fn take_dropped(&mut self) -> u64 {
        core::mem::take(&mut self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::{BURST, Limit, RATE, Verdict};

    fn shown(limit: &mut Limit, at: impl Iterator<Item = u64>) -> u64 {
        at.filter(|us| limit.judge(*us) != Verdict::Drop)
            .count()
            .try_into()
            .unwrap()
    }

    #[test]
    fn a_boot_is_shown_whole_and_a_flood_is_held_to_the_rate() {
        let mut limit = Limit::new();
        assert_eq!(
            shown(&mut limit, (0..BURST).map(|_| 5)),
            BURST,
            "nothing of a boot is lost"
        );
        // Ten seconds of a byte a microsecond.
        let flood = shown(&mut limit, 5..10_000_005);
        assert!(
            flood <= 10 * RATE + 1 && flood > 9 * RATE,
            "{flood} bytes in ten seconds"
        );
    }

    #[test]
    fn what_was_dropped_is_told_once() {
        let mut limit = Limit::new();
        let burst = shown(&mut limit, (0..BURST + 7).map(|_| 0));
        assert_eq!(burst, BURST);
        assert_eq!(limit.judge(1_000), Verdict::Drop, "too little room yet");
        assert_eq!(limit.judge(1_000_000), Verdict::ShowAfter(8));
        assert_eq!(limit.judge(1_000_000), Verdict::Show);
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let mut limit = Limit::new();
        shown(&mut limit, (0..BURST).map(|_| 1_000_000));
        assert_eq!(limit.judge(0), Verdict::Drop);
    }
}
