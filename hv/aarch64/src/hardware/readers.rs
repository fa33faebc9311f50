//! Which core reads what an SMMU tells: each SMMU has one.
//!
//! It is the console's core, until a VM's devices make noise: from then on it is a core of that VM, so that
//! reading what a flood leaves takes the time of whoever floods. Where several VMs do, it is the one that began
//! last. When the VM gives its devices back, it is the console's core again.
//!
//! An SMMU that has a wire for its events and one for its errors is looked at when it interrupts. Any other is looked
//! at every [`POLL_MS`], too: by the same core, on the same account.

use alloc::format;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use hal::{Clock, Mutex};
use machine::{Interrupt, SmmuInterrupts};
use smmuv3::spec::Event;
use vm::CONSOLE_CORE;

use super::events::MOST_RECORDS;
use super::{Hardware, Unit};
use crate::console::SystemCounter;
use crate::gic;

/// How often an SMMU is looked at that does not interrupt. What it tells is told that much later at most.
const POLL_MS: u64 = 10;

/// When one is looked at that interrupts.
pub(super) const NEVER: u64 = u64::MAX;

/// A core, as the loop over VMs and as the interrupt controller know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    /// Its number.
    pub(crate) core: usize,
    /// Its affinity.
    pub(crate) mpidr: u64,
}

/// How the records of an SMMU are read.
pub(super) struct Reading {
    /// The core that does, and its affinity.
    core: AtomicUsize,
    mpidr: AtomicU64,
    /// The VM on whose account that core reads, counted from 1; 0: on nobody's.
    account: AtomicUsize,
    /// What reading has taken on that VM's account, in ticks, as far as nobody has asked for it.
    spent: AtomicU64,
    /// A VM whose devices have begun to make noise, counted from 1.
    noise: AtomicUsize,
    /// Records wait in the event queue.
    waiting: AtomicBool,
    /// When to look whatever has come, in ticks, or [`NEVER`].
    due: AtomicU64,
    /// Records on their way from the event queue to whom they concern.
    pub(super) records: Mutex<Vec<Event>>,
}

impl Reading {
    /// Of an SMMU that is to be looked at first when it is `due`, in ticks, or [`NEVER`] of itself.
    fn new(due: u64) -> Self {
        Self {
            core: AtomicUsize::new(CONSOLE_CORE),
            mpidr: AtomicU64::new(0),
            account: AtomicUsize::new(0),
            spent: AtomicU64::new(0),
            noise: AtomicUsize::new(0),
            waiting: AtomicBool::new(false),
            due: AtomicU64::new(due),
            records: Mutex::new(Vec::with_capacity(MOST_RECORDS)),
        }
    }

    pub(super) fn is_by(&self, core: usize) -> bool {
        self.core.load(Ordering::Acquire) == core
    }

    /// A look at the event queue begins.
    pub(super) fn begins(&self) {
        self.waiting.store(false, Ordering::Relaxed);
        if self.due.load(Ordering::Relaxed) != NEVER {
            let period = SystemCounter.ticks_of_us(POLL_MS * 1000);
            let due = SystemCounter.ticks().saturating_add(period);
            self.due.store(due, Ordering::Relaxed);
        }
    }

    /// It has not read all there is.
    pub(super) fn leaves_some(&self) {
        self.waiting.store(true, Ordering::Relaxed);
    }

    /// When to look again, in ticks: 0 where records wait, or [`NEVER`].
    fn due(&self) -> u64 {
        match self.waiting.load(Ordering::Acquire) {
            true => 0,
            false => self.due.load(Ordering::Relaxed),
        }
    }

    /// Whether records wait, or may.
    fn is_wanted(&self) -> bool {
        match self.due() {
            0 => true,
            NEVER => false,
            due => due <= SystemCounter.ticks(),
        }
    }

    /// Whether it is on a VM's account.
    pub(super) fn is_paid(&self) -> bool {
        self.account.load(Ordering::Relaxed) != 0
    }

    /// Reading has taken so many ticks of the VM's that pays.
    pub(super) fn took(&self, ticks: u64) {
        self.spent.fetch_add(ticks, Ordering::Relaxed);
    }

    /// A VM's devices have begun to make noise.
    pub(super) fn is_noise_of(&self, vm: usize) {
        self.noise.store(vm + 1, Ordering::Relaxed);
    }
}

impl Unit {
    /// The SMMU of that place in the device tree, with these wires.
    #[optimize(size)]
    pub(super) fn new(index: usize, wires: SmmuInterrupts) -> Self {
        let name = format!("smmu{index}");
        let (event, error) = (wires.of_events(), wires.of_errors());
        let missing = match (event, error) {
            (Some(_), Some(_)) => None,
            (Some(_), None) => Some("errors"),
            (None, Some(_)) => Some("events"),
            (None, None) => Some("events and errors"),
        };
        if let Some(missing) = missing {
            log::info!("{name}: polled every {POLL_MS} ms: no wire for its {missing}");
        }
        Self {
            name,
            event,
            // One line may be for both.
            error: error.filter(|_| event != error),
            reading: Reading::new(missing.map_or(NEVER, |_| 0)),
        }
    }

    fn interrupts(&self) -> impl Iterator<Item = Interrupt> + '_ {
        [self.event, self.error].into_iter().flatten()
    }

    /// Another core reads from now on, on a VM's account (counted from 1) or nobody's.
    fn is_read_by(&self, seat: Seat, account: usize) {
        self.reading.account.store(account, Ordering::Relaxed);
        self.reading.spent.store(0, Ordering::Relaxed);
        if self.reading.is_by(seat.core) {
            return;
        }
        self.reading.mpidr.store(seat.mpidr, Ordering::Release);
        self.reading.core.store(seat.core, Ordering::Release);
        for interrupt in self.interrupts() {
            gic::route_spi(interrupt.number, seat.mpidr);
        }
        // What came to the core before is for the other to read, and may be all that comes.
        self.remind();
    }

    /// Has the core that reads look at the event queue.
    fn remind(&self) {
        self.reading.waiting.store(true, Ordering::Release);
        gic::kick(self.reading.mpidr.load(Ordering::Acquire));
    }
}

impl Hardware {
    /// Has every SMMU's interrupts come to a core, which is to read all records when nobody makes noise.
    pub(crate) fn listen(&self, home: Seat) {
        self.home.call_once(|| home);
        for unit in &self.units {
            unit.reading.mpidr.store(home.mpidr, Ordering::Release);
            for interrupt in unit.interrupts() {
                if !gic::enable_spi(interrupt, home.mpidr) {
                    unit.reading.due.store(0, Ordering::Relaxed);
                }
            }
        }
    }

    /// Whether a core reads records of any SMMU.
    pub(crate) fn reads(&self, core: usize) -> bool {
        self.units.iter().any(|unit| unit.reading.is_by(core))
    }

    /// What reading on this core has taken on a VM's account since this was asked last: the VM, and the ticks.
    pub(crate) fn spent(&self, core: usize) -> Option<(usize, u64)> {
        let mut readings = self.units.iter().map(|unit| &unit.reading);
        readings.find_map(|reading| {
            let vm = reading.account.load(Ordering::Relaxed).checked_sub(1)?;
            if !reading.is_by(core) || reading.spent.load(Ordering::Relaxed) == 0 {
                return None;
            }
            Some((vm, reading.spent.swap(0, Ordering::Relaxed)))
        })
    }

    /// Whether records wait for this core to [drain](Hardware::drain) them, or may.
    pub(crate) fn has_records(&self, core: usize) -> bool {
        self.units
            .iter()
            .any(|unit| unit.reading.is_by(core) && unit.reading.is_wanted())
    }

    /// When this core, if it reads records of any SMMU, is to look at one again, in ticks: 0 where some wait, or
    /// [`NEVER`].
    #[inline]
    pub(super) fn due(&self, core: usize) -> Option<u64> {
        let readings = self.units.iter().map(|unit| &unit.reading);
        let own = readings.filter(|reading| reading.is_by(core));
        own.map(Reading::due).min()
    }

    /// Whether an interrupt, which came to this core, is one of an SMMU's. One that was on its way while the
    /// reading changed is passed on.
    pub(crate) fn is_ours(&self, intid: u32, core: usize) -> bool {
        let mut is_ours = false;
        for unit in &self.units {
            if unit.interrupts().any(|one| one.number == intid) {
                match unit.reading.is_by(core) {
                    true => is_ours = true,
                    false => unit.remind(),
                }
            }
        }
        is_ours
    }

    /// Behind a [drain](Hardware::drain) of this core's: has what is left, and what comes, be read by the VM that
    /// has begun to make noise, on the core that `seat` says of it; and by the console's core again, where the
    /// VM that did has given its devices back and nothing of the noise is left.
    pub(crate) fn settle(&self, core: usize, seat: impl Fn(usize) -> Option<Seat>) {
        for unit in self.units.iter().filter(|unit| unit.reading.is_by(core)) {
            let noise = unit.reading.noise.swap(0, Ordering::Relaxed);
            if let Some(seat) = noise.checked_sub(1).and_then(&seat) {
                unit.is_read_by(seat, noise);
            } else if let Some(home) = self.home.get()
                && unit.reading.account.load(Ordering::Relaxed) == 0
                && !unit.reading.waiting.load(Ordering::Relaxed)
            {
                unit.is_read_by(*home, 0);
            }
        }
    }

    /// A VM has given its devices back, and reads nothing on its account any more.
    pub(crate) fn relieve(&self, vm: usize) {
        for unit in &self.units {
            let account = &unit.reading.account;
            let was = account.compare_exchange(vm + 1, 0, Ordering::AcqRel, Ordering::Relaxed);
            if was.is_ok() {
                unit.remind();
            }
        }
    }
}
