//! What a VM is doing, and what follows when it ends.

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};

use bundle::{Restart, Start};

/// What a VM is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing of it runs. It keeps its memory.
    Stopped,
    /// Its memory is being cleared and its guest loaded.
    Starting,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are leaving their cores.
    Ending(Ending),
    /// It ended by a fault, or could not be started. It can be started again.
    Failed,
}

/// Why a running VM ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest turned itself off.
    PowerOff,
    /// The guest reset itself.
    Reset,
    /// The monitor stops it.
    Stop,
    /// The monitor restarts it.
    Restart,
    /// It cannot go on.
    Fault,
}

impl State {
    const fn encode(self) -> u8 {
        match self {
            Self::Stopped => 0,
            Self::Starting => 1,
            Self::Running => 2,
            Self::Failed => 3,
            Self::Ending(Ending::PowerOff) => 4,
            Self::Ending(Ending::Reset) => 5,
            Self::Ending(Ending::Stop) => 6,
            Self::Ending(Ending::Restart) => 7,
            Self::Ending(Ending::Fault) => 8,
        }
    }

    const fn decode(bits: u8) -> Self {
        match bits {
            0 => Self::Stopped,
            1 => Self::Starting,
            2 => Self::Running,
            4 => Self::Ending(Ending::PowerOff),
            5 => Self::Ending(Ending::Reset),
            6 => Self::Ending(Ending::Stop),
            7 => Self::Ending(Ending::Restart),
            8 => Self::Ending(Ending::Fault),
            _ => Self::Failed,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Ending(Ending::PowerOff | Ending::Stop) => "powering off",
            Self::Ending(Ending::Reset | Ending::Restart) => "resetting",
            Self::Ending(Ending::Fault) => "failing",
            Self::Failed => "failed",
        })
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PowerOff => "powered off",
            Self::Reset => "reset",
            Self::Stop => "stopped",
            Self::Restart => "restarted",
            Self::Fault => "failed",
        })
    }
}

/// What follows an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The VM starts again. It is [`State::Starting`] already.
    Start,
    /// It stays as it is.
    Stay,
}

impl Ending {
    /// What follows, by the VM's policy. The monitor's word goes before it.
    #[must_use]
    pub const fn next(self, policy: Restart) -> Next {
        match (self, policy) {
            (Self::Restart, _)
            | (Self::Reset, Restart::OnReset | Restart::Always)
            | (Self::PowerOff, Restart::Always) => Next::Start,
            _ => Next::Stay,
        }
    }
}

/// A VM that has ended: no vCPU of it is on a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "whoever gets this concludes the end; nobody else does"]
pub struct Ended {
    /// Why.
    pub ending: Ending,
    /// What follows.
    pub next: Next,
}

/// A VM's state and how many cores are about its vCPUs.
///
/// A core [enters](Self::enter) before it looks at a vCPU and [leaves](Self::leave) after; whoever
/// ends the VM enters and leaves too. The last one to leave a VM that ends gets [`Ended`], once, so
/// a VM none of whose vCPUs is on a core ends at once, and no vCPU is ever on a core while the VM
/// is taken apart.
#[derive(Debug)]
pub struct Lifecycle {
    state: AtomicU8,
    inside: AtomicUsize,
    starts: AtomicU32,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

impl Lifecycle {
    /// A stopped VM.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: AtomicU8::new(State::Stopped.encode()),
            inside: AtomicUsize::new(0),
            starts: AtomicU32::new(0),
        }
    }

    /// The state now.
    #[must_use]
    pub fn state(&self) -> State {
        State::decode(self.state.load(Ordering::Acquire))
    }

    /// Whether it is off: no vCPU of it is on a core, and none will be until it is started.
    #[must_use]
    pub fn is_off(&self) -> bool {
        matches!(self.state(), State::Stopped | State::Failed)
    }

    /// Whether its vCPUs may run. Asked before each entry into a guest, so it is one load and one
    /// comparison.
    #[inline]
    #[must_use]
    pub fn is_running(&self) -> bool {
        const RUNNING: u8 = State::Running.encode();
        self.state.load(Ordering::Acquire) == RUNNING
    }

    /// How often it has started, modulo 2^32.
    #[must_use]
    pub fn starts(&self) -> u32 {
        self.starts.load(Ordering::Relaxed)
    }

    fn change(&self, from: State, to: State) -> bool {
        self.state
            .compare_exchange(
                from.encode(),
                to.encode(),
                Ordering::AcqRel,
                Ordering::Acquire,
            )
            .is_ok()
    }

    /// Claims a stopped or failed VM for a start; false when it is neither. The caller makes it
    /// ready and then says [`Self::started`] or [`Self::failed`].
    #[must_use]
    pub fn claim(&self) -> bool {
        self.change(State::Stopped, State::Starting) || self.change(State::Failed, State::Starting)
    }

    /// The VM that was claimed is ready: its vCPUs may run.
    pub fn started(&self) {
        self.starts.fetch_add(1, Ordering::Relaxed);
        self.state.store(State::Running.encode(), Ordering::Release);
    }

    /// The VM that was claimed cannot start.
    pub fn failed(&self) {
        self.state.store(State::Failed.encode(), Ordering::Release);
    }

    /// Ends a running VM; false when it was not running. Its vCPUs are yet to leave their cores: the
    /// caller makes them, and brackets this with [`Self::enter`] and [`Self::leave`].
    #[must_use]
    pub fn end(&self, ending: Ending) -> bool {
        self.change(State::Running, State::Ending(ending))
    }

    /// A core looks at the VM. True when its vCPUs may run; [`Self::leave`] follows in either case.
    #[must_use]
    pub fn enter(&self) -> bool {
        self.inside.fetch_add(1, Ordering::AcqRel);
        self.is_running()
    }

    /// The core is done with it. The last one concludes what has ended.
    pub fn leave(&self, policy: Restart) -> Option<Ended> {
        if self.inside.fetch_sub(1, Ordering::AcqRel) != 1 {
            return None;
        }
        let State::Ending(ending) = self.state() else {
            return None;
        };
        let next = ending.next(policy);
        let to = match (next, ending) {
            (Next::Start, _) => State::Starting,
            (Next::Stay, Ending::Fault) => State::Failed,
            (Next::Stay, _) => State::Stopped,
        };
        self.change(State::Ending(ending), to)
            .then_some(Ended { ending, next })
    }
}

/// How long a VM that ended itself rests before it runs again, in ticks, so that making it ready
/// takes at most a tenth of its core's time however often it resets: `lived` is how long it ran,
/// `rebuilt` how long it took to make ready.
#[must_use]
pub const fn rest_ticks(lived: u64, rebuilt: u64) -> u64 {
    rebuilt.saturating_mul(9).saturating_sub(lived)
}

/// The places of the VMs that start when `ended` has stopped, among those whose starts are given.
pub fn dependents<'a>(
    starts: impl IntoIterator<Item = &'a Start>,
    ended: &str,
) -> impl Iterator<Item = usize> {
    starts
        .into_iter()
        .enumerate()
        .filter(move |(_, start)| matches!(start, Start::After(name) if name == ended))
        .map(|(index, _)| index)
}

/// Whether the `starts`-th start of a VM is worth a line of the log: one that resets in a loop must
/// not fill it.
#[must_use]
pub const fn is_notable(starts: u32) -> bool {
    starts <= 8 || starts.is_power_of_two()
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use bundle::{Restart, Start};
    use proptest::prelude::{prop, proptest};

    use super::{Ended, Ending, Lifecycle, Next, State, dependents, is_notable, rest_ticks};

    fn running() -> Lifecycle {
        let vm = Lifecycle::new();
        assert!(vm.claim());
        vm.started();
        vm
    }

    #[test]
    fn the_policy_decides_what_follows_and_the_monitor_goes_before_it() {
        use Ending::{Fault, PowerOff, Reset, Restart as Again, Stop};
        let starts = |ending: Ending| {
            [Restart::Never, Restart::OnReset, Restart::Always]
                .map(|policy| ending.next(policy) == Next::Start)
        };
        assert_eq!(starts(PowerOff), [false, false, true]);
        assert_eq!(starts(Reset), [false, true, true]);
        assert_eq!(starts(Stop), [false; 3]);
        assert_eq!(starts(Again), [true; 3]);
        assert_eq!(starts(Fault), [false; 3]);
    }

    #[test]
    fn the_last_to_leave_concludes_and_nobody_else() {
        let vm = running();
        assert!(vm.enter() && vm.enter());
        assert!(vm.enter());
        assert!(vm.end(Ending::Stop));
        assert_eq!(vm.leave(Restart::Always), None);
        assert_eq!(vm.leave(Restart::Always), None);
        assert!(!vm.enter(), "a vCPU does not enter a VM that ends");
        assert_eq!(vm.leave(Restart::Always), None);
        let ended = Ended {
            ending: Ending::Stop,
            next: Next::Stay,
        };
        assert_eq!(vm.leave(Restart::Always), Some(ended));
        assert_eq!(vm.state(), State::Stopped);
        assert!(!vm.enter());
        assert_eq!(vm.leave(Restart::Always), None);
    }

    #[test]
    fn a_vm_with_no_vcpu_on_a_core_ends_at_once() {
        let vm = running();
        assert!(vm.enter());
        assert!(vm.end(Ending::Restart));
        let ended = vm.leave(Restart::Never).unwrap();
        assert_eq!(ended.next, Next::Start);
        assert_eq!(vm.state(), State::Starting);
        assert!(!vm.claim(), "it has been claimed for the restart");
        vm.started();
        assert_eq!((vm.state(), vm.starts()), (State::Running, 2));
    }

    #[test]
    fn only_a_running_vm_ends_and_only_once() {
        let vm = Lifecycle::new();
        assert!(!vm.end(Ending::Stop));
        let vm = running();
        assert!(vm.end(Ending::Reset));
        assert!(!vm.end(Ending::PowerOff), "the first reason counts");
        assert!(!vm.claim());
    }

    #[test]
    fn a_fault_leaves_a_failed_vm_that_can_be_started() {
        let vm = running();
        assert!(vm.enter() && vm.end(Ending::Fault));
        assert_eq!(vm.leave(Restart::Always).unwrap().next, Next::Stay);
        assert_eq!(vm.state(), State::Failed);
        assert!(vm.claim());
        vm.failed();
        assert_eq!(vm.state(), State::Failed);
    }

    #[test]
    fn every_state_survives_its_encoding() {
        for bits in 0..9 {
            assert_eq!(State::decode(bits).encode(), bits);
        }
    }

    #[test]
    fn rebuilding_takes_a_tenth_of_the_time_at_most() {
        for (lived, rebuilt) in [(0, 100), (50, 100), (899, 100), (900, 100), (5000, 100)] {
            let total = lived + rebuilt + rest_ticks(lived, rebuilt);
            assert!(rebuilt * 10 <= total, "{lived} {rebuilt}");
        }
        assert_eq!(rest_ticks(900, 100), 0);
        assert_eq!(rest_ticks(0, u64::MAX), u64::MAX);
    }

    #[test]
    fn dependents_are_those_that_name_the_vm() {
        let starts = [
            Start::Boot,
            Start::After("a".into()),
            Start::After("b".into()),
        ];
        assert_eq!(dependents(&starts, "a").collect::<Vec<_>>(), [1]);
        assert_eq!(dependents(&starts, "c").count(), 0);
    }

    #[test]
    fn a_loop_of_resets_is_logged_ever_more_rarely() {
        assert_eq!((1..=1_000_000).filter(|n| is_notable(*n)).count(), 8 + 16);
    }

    proptest! {
        /// However cores and ends interleave, a VM that ends is concluded exactly once, with nobody
        /// inside who was let in.
        #[test]
        fn every_end_is_concluded_once(steps in prop::collection::vec((0_usize..4, 0_u8..3), 0..80)) {
            let vm = running();
            let mut cores = [None; 4];
            let (mut ends, mut concluded) = (0, 0);
            for (core, step) in steps {
                match (step, cores[core]) {
                    (0, None) => cores[core] = Some(vm.enter()),
                    (1, Some(_)) => {
                        cores[core] = None;
                        if vm.leave(Restart::Never).is_some() {
                            concluded += 1;
                            assert!(cores.iter().all(|inside| *inside != Some(true)));
                            assert!(vm.claim());
                            vm.started();
                        }
                    }
                    (2, Some(true)) => ends += usize::from(vm.end(Ending::Reset)),
                    _ => {}
                }
            }
            for inside in cores {
                if inside.is_some() {
                    concluded += usize::from(vm.leave(Restart::Never).is_some());
                }
            }
            assert_eq!(ends, concluded);
        }
    }
}
