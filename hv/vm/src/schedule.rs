//! Who runs next on a core, and for how long it has run.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

/// How long a VM has a core while other VMs wait for it, in microseconds, unless its manifest says
/// otherwise.
pub const DEFAULT_SLICE_US: u64 = 10_000;

/// The slice of a VM in microseconds: what its manifest says, or [`DEFAULT_SLICE_US`].
#[must_use]
pub fn slice_us(configured: Option<u32>) -> u64 {
    configured.map_or(DEFAULT_SLICE_US, u64::from)
}

/// Takes turns on a core: the VMs do, and in a VM's turn its vCPUs do.
///
/// A VM's turn lasts for its slice, or until none of its vCPUs here wants to run. A vCPU that waits leaves
/// what is left to the next of its VM. So VMs that always want the core have it in proportion to their
/// slices, whatever their numbers of vCPUs and however these come and go.
#[derive(Clone, Debug)]
pub struct Turns {
    vms: Vec<Member>,
    /// Whose turn it is.
    current: usize,
    /// Ticks left of it.
    left: u64,
    /// A rest of a turn shorter than this is not worth an entry.
    shortest: u64,
}

/// A VM's vCPUs on the core.
#[derive(Clone, Debug)]
struct Member {
    vm: usize,
    vcpus: Vec<usize>,
    next: usize,
    /// Ticks that others have had to spend on its account.
    owed: u64,
    /// Turns in a row that have gone to what it owes.
    passed: u32,
}

/// The most turns in a row that go to what a VM owes, and the most turns that it can owe: so a VM that wants to run
/// does, however much was spent on its account, or how long the core was away while something was.
const MOST_PASSED: u32 = 16;

impl Member {
    /// The next vCPU for which there is an answer, and what comes [next](Self::next) once it has run.
    fn pick<R>(&self, choose: &mut impl FnMut(usize, usize) -> Option<R>) -> Option<(R, usize)> {
        let next = self.next.min(self.vcpus.len());
        for at in (next..self.vcpus.len()).chain(0..next) {
            if let Some(vcpu) = self.vcpus.get(at)
                && let Some(chosen) = choose(self.vm, *vcpu)
            {
                return Some((chosen, at.saturating_add(1)));
            }
        }
        None
    }

    /// Its turn has come, of `slice` ticks: what is left of it beside what it owes. A rest of less than `shortest`
    /// goes to that, too.
    fn turn(&mut self, slice: u64, shortest: u64) -> Option<u64> {
        let most = slice.saturating_mul(MOST_PASSED.into());
        let owed = self.owed.min(most);
        self.owed = owed.saturating_sub(slice);
        let left = slice.saturating_sub(owed);
        if left >= shortest {
            self.passed = 0;
            return Some(left);
        }
        if self.passed >= MOST_PASSED {
            self.passed = 0;
            return Some(slice);
        }
        self.passed = self.passed.saturating_add(1);
        None
    }
}

impl Turns {
    /// For these vCPUs, each with its VM. A turn's rest of less than `shortest` ticks is forfeited.
    #[must_use]
    pub fn new(vcpus: &[(usize, usize)], shortest: u64) -> Self {
        let mut vms: Vec<Member> = Vec::new();
        for (vm, vcpu) in vcpus {
            match vms.iter_mut().find(|member| member.vm == *vm) {
                Some(member) => member.vcpus.push(*vcpu),
                None => vms.push(Member {
                    vm: *vm,
                    vcpus: Vec::from([*vcpu]),
                    next: 0,
                    owed: 0,
                    passed: 0,
                }),
            }
        }
        Self {
            // The first VM's turn comes next.
            current: vms.len(),
            vms,
            left: 0,
            shortest,
        }
    }

    /// Who runs next, and for how many ticks at most: the next vCPU for which `choose` (asked with VM and
    /// vCPU) has an answer, and that answer. Each vCPU is asked at most twice. `slice` says the ticks of a
    /// VM's turn.
    pub fn pick<R>(
        &mut self,
        mut choose: impl FnMut(usize, usize) -> Option<R>,
        slice: impl Fn(usize) -> u64,
    ) -> Option<(R, u64)> {
        if self.left >= self.shortest.max(1)
            && let Some(member) = self.vms.get_mut(self.current)
            && let Some((chosen, next)) = member.pick(&mut choose)
        {
            member.next = next;
            return Some((chosen, self.left));
        }
        let count = self.vms.len();
        let next = self.current.saturating_add(1).min(count);
        // Whose turn goes to what it owes, with what it would have run.
        let mut pays = None;
        for at in (next..count).chain(0..next) {
            if let Some(member) = self.vms.get_mut(at)
                && let Some((chosen, next)) = member.pick(&mut choose)
            {
                let slice = slice(member.vm);
                // Only a vCPU that runs gives its place to the next of its VM.
                let Some(left) = member.turn(slice, self.shortest.max(1)) else {
                    pays.get_or_insert((at, chosen, next, slice));
                    continue;
                };
                member.next = next;
                self.current = at;
                self.left = left;
                return Some((chosen, left));
            }
        }
        // Nobody else wants the core.
        let Some((at, chosen, next, slice)) = pays else {
            self.left = 0;
            return None;
        };
        if let Some(member) = self.vms.get_mut(at) {
            member.next = next;
            member.passed = 0;
        }
        self.current = at;
        self.left = slice;
        Some((chosen, slice))
    }

    /// Somebody has spent so many ticks of the core on a VM's account: its next turns are shorter by that, as long as
    /// others want to run, and for 16 turns at most.
    pub fn owes(&mut self, vm: usize, ticks: u64) {
        let mut members = self.vms.iter_mut();
        if let Some(member) = members.find(|member| member.vm == vm) {
            member.owed = member.owed.saturating_add(ticks);
        }
    }

    /// The one that was picked has had the core for so many ticks.
    pub fn used(&mut self, ticks: u64) {
        self.left = self.left.saturating_sub(ticks);
    }
}

/// Which vCPU of each VM was on a core last.
///
/// All vCPUs of a VM have its identifier in the TLB, but each has translations of its own: two may use the
/// same ASID for different tables, and invalidate on their own core only. [DDI 0487 D8.16]
#[derive(Clone, Debug)]
pub struct Lodgers {
    last: Vec<Option<usize>>,
}

impl Lodgers {
    /// Of so many VMs, none of which was here.
    #[must_use]
    pub fn new(vms: usize) -> Self {
        let mut last = Vec::new();
        last.resize(vms, None);
        Self { last }
    }

    /// A vCPU comes on the core. True when the core must forget what it has cached of the VM's
    /// translations, because another vCPU of it was here last, or nobody knows who.
    #[must_use]
    pub fn comes(&mut self, vm: usize, vcpu: usize) -> bool {
        match self.last.get_mut(vm) {
            Some(last) => last.replace(vcpu) != Some(vcpu),
            None => true,
        }
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

    use super::{Lodgers, MOST_PASSED, RunClock, Turns, slice_us};

    const SLICE: u64 = 100;

    /// A core whose vCPUs always want to run, each for as long as `wants` says; how long each VM had it.
    fn shares(
        vcpus: &[(usize, usize)],
        slice: impl Fn(usize) -> u64,
        mut wants: impl FnMut(usize, usize) -> u64,
        picks: usize,
    ) -> [u64; 4] {
        let mut turns = Turns::new(vcpus, 1);
        let mut had = [0; 4];
        for _ in 0..picks {
            let ((vm, vcpu), most) = turns.pick(|vm, vcpu| Some((vm, vcpu)), &slice).unwrap();
            let ran = wants(vm, vcpu).min(most);
            turns.used(ran);
            had[vm] += ran;
        }
        had
    }

    #[test]
    fn turns_go_round_and_pass_over_those_that_cannot_run() {
        let mut turns = Turns::new(&[(0, 0), (1, 0), (2, 0)], 1);
        let mut pick = |ready: [bool; 3]| {
            let picked = turns.pick(|vm, _| ready[vm].then_some(vm), |_| SLICE);
            turns.used(SLICE);
            picked
        };
        let all = [true; 3];
        let order: Vec<_> = (0..4).map(|_| pick(all).map(|(vm, _)| vm)).collect();
        assert_eq!(order, [Some(0), Some(1), Some(2), Some(0)]);
        assert_eq!(pick([true, false, true]), Some((2, SLICE)));
        assert_eq!(pick([false; 3]), None);
        assert_eq!(pick(all), Some((0, SLICE)));
    }

    #[test]
    fn what_others_spend_for_a_vm_is_missing_in_its_turns() {
        // Each time the second one has the core, something of 30 ticks is done for the first, in its own time or not.
        let mut turns = Turns::new(&[(0, 0), (1, 0)], 10);
        let mut had = [0; 2];
        for _ in 0..100 {
            let (vm, most) = turns.pick(|vm, _| Some(vm), |_| SLICE).unwrap();
            had[vm] += most;
            turns.used(most);
            if vm == 1 {
                turns.owes(0, 30);
            }
        }
        // The first turn owes nothing yet.
        assert_eq!(had, [50 * 70 + 30, 50 * SLICE]);
    }

    #[test]
    fn a_vm_that_owes_more_than_a_turn_waits_for_others_and_for_nobody_else() {
        let mut turns = Turns::new(&[(0, 0), (1, 0)], 10);
        turns.owes(0, 2 * SLICE + 95);
        turns.owes(7, 1);
        let mut pick = |ready: [bool; 2]| {
            let picked = turns.pick(|vm, _| ready[vm].then_some(vm), |_| SLICE);
            turns.used(SLICE);
            picked
        };
        assert_eq!(pick([true; 2]), Some((1, SLICE)));
        assert_eq!(pick([true; 2]), Some((1, SLICE)));
        // What is left of the third turn is too short for one.
        assert_eq!(pick([true; 2]), Some((1, SLICE)));
        assert_eq!(pick([true; 2]), Some((0, SLICE)));
        turns.owes(0, 5 * SLICE);
        turns.used(SLICE);
        let alone = turns.pick(|vm, _| (vm == 0).then_some(vm), |_| SLICE);
        assert_eq!(alone, Some((0, SLICE)), "nobody else wants the core");
    }

    #[test]
    fn a_vm_that_owes_without_end_runs_all_the_same() {
        // What it owes grows by more than a turn, each time the other has had one.
        let mut turns = Turns::new(&[(0, 0), (1, 0)], 10);
        let mut waited = Vec::from([0]);
        for _ in 0..200 {
            let picked = turns.pick(|vm, _| Some(vm), |_| SLICE);
            turns.used(SLICE);
            turns.owes(0, 3 * SLICE);
            match picked {
                Some((0, most)) => {
                    assert_eq!(most, SLICE);
                    waited.push(0);
                }
                _ => *waited.last_mut().unwrap() += 1,
            }
        }
        assert_eq!(waited[1..10], [MOST_PASSED + 1; 9]);
        // What was spent while the core was away for hours is forgiven, all but some turns.
        let mut turns = Turns::new(&[(0, 0), (1, 0)], 10);
        turns.owes(0, u64::MAX);
        let order: Vec<_> = (0..MOST_PASSED + 4)
            .map(|_| {
                turns.used(SLICE);
                turns.pick(|vm, _| Some(vm), |_| SLICE).map(|(vm, _)| vm)
            })
            .collect();
        let paid = MOST_PASSED as usize;
        assert!(order[..paid].iter().all(|vm| *vm == Some(1)), "{order:?}");
        assert_eq!(order[paid..], [Some(0), Some(1), Some(0), Some(1)]);
    }

    #[test]
    fn a_turn_that_goes_to_what_a_vm_owes_takes_no_vcpus_place() {
        // Each second turn of the VM goes to what it owes.
        let mut turns = Turns::new(&[(0, 0), (0, 1), (1, 0)], 10);
        let mut had = [0_u32; 2];
        for _ in 0..40 {
            let picked = turns.pick(|vm, vcpu| Some((vm, vcpu)), |_| SLICE);
            turns.used(SLICE);
            if let Some(((0, vcpu), _)) = picked {
                had[vcpu] += 1;
                turns.owes(0, SLICE);
            }
        }
        assert!(had[0].abs_diff(had[1]) <= 1, "{had:?}");
        assert!(had[0] > 5, "{had:?}");
    }

    #[test]
    fn nobody_to_pick_from_is_no_pick() {
        assert_eq!(
            Turns::new(&[], 1).pick(|_, _| -> Option<()> { None }, |_| SLICE),
            None
        );
    }

    #[test]
    fn the_vcpus_of_a_vm_go_round_in_its_turns() {
        let mut turns = Turns::new(&[(0, 0), (1, 0), (1, 1), (1, 2)], 1);
        let mut order = Vec::new();
        for _ in 0..6 {
            order.extend(
                turns
                    .pick(|vm, vcpu| Some((vm, vcpu)), |_| SLICE)
                    .map(|(it, _)| it),
            );
            turns.used(SLICE);
        }
        assert_eq!(order, [(0, 0), (1, 0), (0, 0), (1, 1), (0, 0), (1, 2)]);
    }

    #[test]
    fn what_a_waiting_vcpu_leaves_is_its_vms() {
        let mut turns = Turns::new(&[(0, 0), (1, 0), (1, 1)], 10);
        let mut pick = |ran| {
            let picked = turns.pick(|vm, vcpu| Some((vm, vcpu)), |_| SLICE);
            turns.used(ran);
            picked
        };
        assert_eq!(pick(SLICE), Some(((0, 0), SLICE)));
        assert_eq!(pick(30), Some(((1, 0), SLICE)));
        assert_eq!(pick(65), Some(((1, 1), 70)));
        assert_eq!(pick(SLICE), Some(((0, 0), SLICE)), "a rest of 5 is none");
    }

    #[test]
    fn two_busy_vms_have_half_each_whatever_their_vcpus() {
        let vcpus = [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3)];
        let had = shares(&vcpus, |_| SLICE, |_, _| u64::MAX, 1000);
        assert_eq!(had[0], had[1]);
        let had = shares(&vcpus, |vm| [SLICE, 3 * SLICE][vm], |_, _| u64::MAX, 1000);
        assert_eq!(3 * had[0], had[1]);
    }

    proptest! {
        /// A VM that stays ready waits for no more than one turn of each other.
        #[test]
        fn nobody_starves(ready in prop::collection::vec(any::<[bool; 4]>(), 4..60), who in 0_usize..4) {
            let mut turns = Turns::new(&[(0, 0), (1, 0), (2, 0), (3, 0)], 1);
            let mut waited = 0;
            for mut ready in ready {
                ready[who] = true;
                let (picked, most) = turns.pick(|vm, _| ready[vm].then_some(vm), |_| SLICE).unwrap();
                turns.used(most);
                waited = if picked == who { 0 } else { waited + 1 };
                assert!(waited <= 3);
            }
        }

        /// A vCPU that stays ready runs again, whoever else comes and goes, does not run at all, or has the core for
        /// longer than it should: once each of its VM's vCPUs has had a turn of the VM's, and each VM one in between. With
        /// time that is spent on accounts, each of these turns may have gone to what is owed, so many times.
        #[test]
        fn no_vcpu_that_can_run_waits_for_long(
            counts in prop::array::uniform3(1_usize..5),
            who in (0_usize..3, any::<prop::sample::Index>()),
            steps in prop::collection::vec(
                (any::<[bool; 16]>(), 0_u64..4 * SLICE, prop::option::of((0_usize..4, 0_u64..50 * SLICE))), 1..600),
            owing: bool,
        ) {
            let who = (who.0, who.1.index(counts[who.0]));
            let vcpus: Vec<_> = (0..3)
                .flat_map(|vm| (0..counts[vm]).map(move |vcpu| (vm, vcpu)))
                .collect();
            let mut turns = Turns::new(&vcpus, 10);
            let passes = if owing { u64::from(MOST_PASSED) + 1 } else { 1 };
            // A VM's turn, and what its last vCPU has of it.
            let bound = counts[who.0] as u64 * passes * 3 * SLICE;
            let mut waited = 0;
            for (ready, ran, owed) in steps {
                let can = |vm, vcpu| (vm, vcpu) == who || ready[4 * vm + vcpu];
                let choose = |vm, vcpu| can(vm, vcpu).then_some((vm, vcpu));
                let (picked, most) = turns.pick(choose, |_| SLICE).unwrap();
                turns.used(ran);
                waited = if picked == who { 0 } else { waited + ran.min(most) };
                assert!(waited <= bound, "{waited} ticks");
                if owing && let Some((vm, ticks)) = owed {
                    turns.owes(vm, ticks);
                }
            }
        }

        /// VMs that always have a vCPU that wants to run are never more than a turn apart, and what is
        /// forfeited.
        #[test]
        fn vms_that_are_always_ready_have_like_shares(
            counts in prop::array::uniform3(1_usize..5),
            runs in prop::collection::vec(1_u64..300, 1..200),
        ) {
            let vcpus: Vec<_> = (0..3)
                .flat_map(|vm| (0..counts[vm]).map(move |vcpu| (vm, vcpu)))
                .collect();
            let mut next = runs.iter().cycle();
            let had = shares(&vcpus, |_| SLICE, |_, _| *next.next().unwrap(), 400);
            let (least, most) = (had[..3].iter().min().unwrap(), had[..3].iter().max().unwrap());
            assert!(most - least <= SLICE, "{had:?}");
        }
    }

    /// A core's TLB: for each VM whose translations are in it. Runs vCPUs one after the other; false if one
    /// of them could use another's.
    fn each_has_its_own(
        stays: &[(usize, usize)],
        mut forget: impl FnMut(usize, usize) -> bool,
    ) -> bool {
        let mut cached: Vec<(usize, usize)> = Vec::new();
        stays.iter().all(|(vm, vcpu)| {
            if forget(*vm, *vcpu) {
                cached.retain(|(of, _)| of != vm);
            }
            let good = cached.iter().all(|(of, whose)| of != vm || whose == vcpu);
            cached.push((*vm, *vcpu));
            good
        })
    }

    #[test]
    fn a_vcpu_that_comes_back_keeps_its_translations() {
        let mut lodgers = Lodgers::new(2);
        let comes = [
            (0, 0),
            (0, 0),
            (1, 0),
            (0, 0),
            (0, 1),
            (0, 0),
            (9, 0),
            (9, 0),
        ];
        let forget: Vec<_> = comes.map(|(vm, vcpu)| lodgers.comes(vm, vcpu)).into();
        assert_eq!(forget, [true, false, true, false, true, true, true, true]);
    }

    #[test]
    fn translations_that_are_kept_are_noticed() {
        assert!(!each_has_its_own(&[(0, 0), (0, 1)], |_, _| false));
    }

    proptest! {
        #[test]
        fn no_vcpu_uses_the_translations_of_another(stays in prop::collection::vec((0_usize..3, 0_usize..3), 0..60)) {
            let mut lodgers = Lodgers::new(3);
            assert!(each_has_its_own(&stays, |vm, vcpu| lodgers.comes(vm, vcpu)));
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
