//! How often a device may interrupt, so that no flood of messages, its own or forged, takes a CPU.
//!
//! Each source of messages has an account. What comes too often is not lost: the source is muted, which
//! its interrupt controller remembers one event through, and let through again when its period is over.

/// How often a source may interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Interrupts in a period; at least 1.
    pub most: u32,
    /// The period, in ticks.
    pub ticks: u64,
}

/// What becomes of a source after an interrupt of its, which is delivered either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moderated {
    /// It stays as it is.
    Open,
    /// It is to be muted now. [`Moderation::is_due`] says when it is let through again.
    Mute,
}

/// The account of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moderation {
    /// When the period began.
    since: u64,
    count: u32,
    muted: bool,
}

impl Moderation {
    /// An interrupt came at `now`, in ticks.
    pub fn came(&mut self, now: u64, rate: Rate) -> Moderated {
        if now.saturating_sub(self.since) >= rate.ticks {
            (self.since, self.count) = (now, 0);
        }
        self.count = self.count.saturating_add(1);
        // One that was on its way when the source was muted changes nothing.
        if self.muted || self.count < rate.most {
            return Moderated::Open;
        }
        self.muted = true;
        Moderated::Mute
    }

    /// Whether it is muted.
    #[must_use]
    pub fn is_muted(&self) -> bool {
        self.muted
    }

    /// When it is to be let through again, if it is muted.
    #[must_use]
    pub fn due(&self, rate: Rate) -> Option<u64> {
        self.muted.then(|| self.since.saturating_add(rate.ticks))
    }

    /// Whether it was muted and its period is over: it is to be let through again, and counts as such.
    pub fn is_due(&mut self, now: u64, rate: Rate) -> bool {
        let due = self.muted && now.saturating_sub(self.since) >= rate.ticks;
        if due {
            *self = Self {
                since: now,
                ..Self::default()
            };
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate {
        most: 4,
        ticks: 100,
    };

    #[test]
    fn what_comes_seldom_is_never_muted() {
        let mut account = Moderation::default();
        for n in 0..1000 {
            assert_eq!(account.came(n * 34, RATE), Moderated::Open);
            assert!(!account.is_due(n * 34, RATE));
        }
    }

    #[test]
    fn a_flood_is_muted_until_its_period_is_over() {
        let mut account = Moderation::default();
        for now in 1000..1003 {
            assert_eq!(account.came(now, RATE), Moderated::Open);
        }
        assert_eq!(account.came(1003, RATE), Moderated::Mute);
        // On its way already.
        assert_eq!(account.came(1004, RATE), Moderated::Open);
        assert!(account.is_muted());
        assert_eq!(account.due(RATE), Some(1100));
        assert!(!account.is_due(1099, RATE));
        assert!(account.is_due(1100, RATE));
        assert!(!account.is_muted() && !account.is_due(1101, RATE));
        assert_eq!(account.due(RATE), None);
        assert_eq!(account.came(1101, RATE), Moderated::Open);
    }

    proptest! {
        /// With a controller that lets nothing of a muted source through, no period has more than the
        /// most, and a source that has something to say is heard again.
        #[test]
        fn no_period_has_more_than_the_most(gaps in proptest::collection::vec(0..60_u64, 1..400)) {
            let mut account = Moderation::default();
            let mut now = 10_000;
            let mut delivered = std::vec::Vec::new();
            let mut latched = false;
            for gap in gaps {
                now += gap;
                if account.is_due(now, RATE) && latched {
                    latched = false;
                    delivered.push(now);
                    prop_assert_eq!(account.came(now, RATE), Moderated::Open);
                }
                if account.is_muted() {
                    latched = true;
                } else {
                    delivered.push(now);
                    account.came(now, RATE);
                }
            }
            // Periods begin with an interrupt, so that two of them may touch.
            for window in delivered.windows(2 * RATE.most as usize) {
                prop_assert!(window[window.len() - 1] - window[0] >= RATE.ticks);
            }
            prop_assert!(account.is_due(now + RATE.ticks, RATE) || !latched);
        }
    }
}
