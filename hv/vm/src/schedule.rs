//! Who runs next on a core, and for how long it has run.

use core::sync::atomic::{AtomicU64, Ordering};

/// How long a vCPU runs while others wait for its core, in microseconds, unless its VM says
/// otherwise.
pub const DEFAULT_SLICE_US: u64 = 10_000;

/// The slice of a VM in microseconds: what its manifest says, or [`DEFAULT_SLICE_US`].
#[must_use]
pub fn slice_us(configured: Option<u32>) -> u64 {
    configured.map_or(DEFAULT_SLICE_US, u64::from)
}

/// Takes turns. A core has one for its vCPUs.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundRobin {
    next: usize,
}

impl RoundRobin {
    /// The first of `entries` after the last one picked for which `choose` has an answer, and that
    /// answer. Each entry is asked at most once.
    pub fn pick<T, R>(
        &mut self,
        entries: &[T],
        mut choose: impl FnMut(&T) -> Option<R>,
    ) -> Option<R> {
        let start = if self.next < entries.len() {
            self.next
        } else {
            0
        };
        let order = (start..entries.len()).chain(0..start);
        for at in order {
            if let Some(chosen) = entries.get(at).and_then(&mut choose) {
                self.next = at.saturating_add(1);
                return Some(chosen);
            }
        }
        None
    }
}

/// How long a vCPU has been on a core. Written by that core, read by anyone.
#[derive(Debug, Default)]
pub struct RunClock {
    ran: AtomicU64,
    /// When it came on its core, plus one; 0 when it is on none.
    since: AtomicU64,
}

impl RunClock {
    /// It comes on a core at `now` (ticks).
    pub fn begin(&self, now: u64) {
        self.since.store(now.saturating_add(1), Ordering::Release);
    }

    /// It leaves the core at `now`.
    pub fn end(&self, now: u64) {
        let since = self.since.swap(0, Ordering::AcqRel);
        if since != 0 {
            let more = now.saturating_add(1).saturating_sub(since);
            self.ran.fetch_add(more, Ordering::AcqRel);
        }
    }

    /// The ticks it has been on a core by `now`. Read while it comes or goes, the answer may miss
    /// the stay that just ends.
    #[must_use]
    pub fn total(&self, now: u64) -> u64 {
        let since = self.since.load(Ordering::Acquire);
        let running = match since {
            0 => 0,
            since => now.saturating_add(1).saturating_sub(since),
        };
        self.ran.load(Ordering::Acquire).saturating_add(running)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::{any, prop, proptest};

    use super::{RoundRobin, RunClock, slice_us};

    #[test]
    fn turns_go_round_and_pass_over_those_that_cannot_run() {
        let mut queue = RoundRobin::default();
        let mut pick = |ready: [bool; 3]| queue.pick(&[0, 1, 2], |i| ready[*i].then_some(*i));
        let all = [true; 3];
        let order: Vec<_> = (0..4).map(|_| pick(all)).collect();
        assert_eq!(order, [Some(0), Some(1), Some(2), Some(0)]);
        assert_eq!(pick([true, false, true]), Some(2));
        assert_eq!(pick([false; 3]), None);
        assert_eq!(pick(all), Some(0));
    }

    #[test]
    fn nobody_to_pick_from_is_no_pick() {
        assert_eq!(
            RoundRobin::default().pick(&[], |_: &u8| -> Option<()> { None }),
            None
        );
    }

    proptest! {
        /// One that stays ready waits for no more than one turn of each other.
        #[test]
        fn nobody_starves(ready in prop::collection::vec(any::<[bool; 4]>(), 4..60), who in 0_usize..4) {
            let mut queue = RoundRobin::default();
            let mut waited = 0;
            for mut ready in ready {
                ready[who] = true;
                let picked = queue.pick(&[0, 1, 2, 3], |i| ready[*i].then_some(*i)).unwrap();
                waited = if picked == who { 0 } else { waited + 1 };
                assert!(waited <= 3);
            }
        }
    }

    #[test]
    fn a_clock_counts_the_stay_that_goes_on() {
        let clock = RunClock::default();
        assert_eq!(clock.total(5), 0);
        clock.begin(0);
        assert_eq!(clock.total(7), 7);
        clock.end(10);
        assert_eq!(clock.total(100), 10);
        clock.end(200);
        assert_eq!(
            clock.total(200),
            10,
            "an end without a beginning adds nothing"
        );
        clock.begin(300);
        clock.end(305);
        assert_eq!(clock.total(400), 15);
    }

    #[test]
    fn a_manifest_sets_the_slice() {
        assert_eq!((slice_us(None), slice_us(Some(250))), (10_000, 250));
    }
}
