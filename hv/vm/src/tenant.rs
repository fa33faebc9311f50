//! A VM and its vCPUs as policy sees them.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use bundle::{Restart, Start, VmConfig};
use hal::Mutex;

use crate::{Activity, Ending, ExitCounts, Lifecycle, RunClock, rest_ticks, slice_us};

/// Registers by name.
pub type Registers = Vec<(&'static str, u64)>;

const OFF: u8 = 0;
const READY: u8 = 1;
const WAITING: u8 = 2;

/// A vCPU and what others may know of it. `V` is the vCPU itself, `B` what its architecture keeps beside
/// it.
pub struct Slot<V, B> {
    /// The core it runs on.
    pub core: usize,
    activity: AtomicU8,
    /// When a waiting vCPU goes on, in ticks.
    pub deadline: AtomicU64,
    /// Held by the core it is on.
    pub vcpu: Mutex<V>,
    /// What its architecture keeps beside it.
    pub beside: B,
    exits: AtomicU64,
    /// Its exits by cause.
    pub causes: ExitCounts,
    /// How long it has been on its core.
    pub clock: RunClock,
    /// The monitor wants to see the registers of the vCPU, which is on a core.
    peek: AtomicBool,
    /// The registers as they were when it did.
    view: Mutex<Option<Registers>>,
}

impl<V, B> Slot<V, B> {
    /// A vCPU that is off, which runs on `core`.
    pub fn new(core: usize, vcpu: V, beside: B) -> Self {
        Self {
            core,
            activity: AtomicU8::new(OFF),
            deadline: AtomicU64::new(u64::MAX),
            vcpu: Mutex::new(vcpu),
            beside,
            exits: AtomicU64::new(0),
            causes: ExitCounts::default(),
            clock: RunClock::default(),
            peek: AtomicBool::new(false),
            view: Mutex::new(None),
        }
    }

    /// What it does.
    pub fn activity(&self) -> Activity {
        match self.activity.load(Ordering::Acquire) {
            OFF => Activity::Off,
            READY => Activity::Ready,
            _ => Activity::Waiting,
        }
    }

    /// Says what it does.
    pub fn set_activity(&self, activity: Activity) {
        let activity = match activity {
            Activity::Off => OFF,
            Activity::Ready => READY,
            Activity::Waiting => WAITING,
        };
        self.activity.store(activity, Ordering::Release);
    }

    /// A waiting vCPU has something to do; others are left alone.
    pub fn wake(&self) {
        let _ = self
            .activity
            .compare_exchange(WAITING, READY, Ordering::AcqRel, Ordering::Acquire);
    }

    /// It waits, and what it waits for was due before `now`.
    pub(crate) fn is_due(&self, now: u64) -> bool {
        self.activity() == Activity::Waiting && self.deadline.load(Ordering::Acquire) <= now
    }

    /// Counts an exit. One core does at a time.
    #[inline]
    pub fn count_exit(&self) {
        let exits = self.exits.load(Ordering::Relaxed);
        self.exits.store(exits.wrapping_add(1), Ordering::Release);
    }

    /// Its exits.
    pub fn exits(&self) -> u64 {
        self.exits.load(Ordering::Acquire)
    }

    /// Shows the registers to the monitor, if it wants to see them. Called by the core that has the vCPU.
    pub fn show(&self, registers: impl FnOnce() -> Registers) {
        if self.peek.load(Ordering::Acquire) && self.peek.swap(false, Ordering::AcqRel) {
            *self.view.lock() = Some(registers());
        }
    }

    /// What was shown since the last time.
    pub(crate) fn take_view(&self) -> Option<Registers> {
        self.view.lock().take()
    }

    /// Asks for the registers, or does so no longer.
    pub(crate) fn want_view(&self, want: bool) {
        self.peek.store(want, Ordering::Release);
    }
}

/// A VM as policy sees it: what its manifest says of it, its state, its vCPUs.
pub struct Tenant<V, B> {
    /// Its place among the VMs.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// What follows when it ends.
    pub restart: Restart,
    /// When it starts.
    pub start: Start,
    /// Its turn on a core that others share, in microseconds.
    pub slice_us: u64,
    /// Bytes of its memory.
    pub bytes: u64,
    /// Its state.
    pub lifecycle: Lifecycle,
    /// Its vCPUs.
    pub slots: Box<[Slot<V, B>]>,
    /// Nothing has run in it yet: its memory is as it was given out, zero.
    fresh: AtomicBool,
    /// When it started last, in ticks.
    born: AtomicU64,
}

impl<V, B> Tenant<V, B> {
    /// A stopped VM.
    pub fn new(number: usize, config: &VmConfig, slots: impl Iterator<Item = Slot<V, B>>) -> Self {
        Self {
            number,
            name: config.name.clone(),
            restart: config.restart,
            start: config.start.clone(),
            slice_us: slice_us(config.time_slice_us),
            bytes: config.memory,
            lifecycle: Lifecycle::new(),
            slots: slots.collect(),
            fresh: AtomicBool::new(true),
            born: AtomicU64::new(0),
        }
    }

    /// Whether its memory is as it was given out: asked once a start, by who then uses it.
    #[must_use]
    pub fn takes_fresh_memory(&self) -> bool {
        self.fresh.swap(false, Ordering::AcqRel)
    }

    /// A vCPU that may run now.
    pub(crate) fn is_ready(&self, vcpu: usize) -> bool {
        let slot = self.slots.get(vcpu);
        slot.is_some_and(|slot| slot.activity() == Activity::Ready) && self.lifecycle.is_running()
    }

    /// The VM has been made ready between `begun` and `now`: its first vCPU runs, after a rest when the VM
    /// `ended` by itself.
    pub(crate) fn runs(&self, ended: Option<Ending>, begun: u64, now: u64) {
        let lived = begun.saturating_sub(self.born.swap(now, Ordering::AcqRel));
        let rest = match ended {
            Some(Ending::Reset | Ending::PowerOff) => rest_ticks(lived, now.saturating_sub(begun)),
            _ => 0,
        };
        if let Some(first) = self.slots.first() {
            first
                .deadline
                .store(now.saturating_add(rest), Ordering::Release);
            first.set_activity(if rest > 0 {
                Activity::Waiting
            } else {
                Activity::Ready
            });
        }
        self.lifecycle.started();
    }
}
