//! The platform of one VM.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use hal::Mutex;

use crate::area::{OFF_THREAD, ON_THREAD};
use crate::cpus::Cpus;
use crate::event::{Events, HOT_PLUG_SOURCE, HotPlug};
use crate::xics::Xics;
use crate::{Environment, MOST_CPUS, Servers, Source, UnknownSource};

/// What a VM is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// vCPUs: [`MOST_CPUS`] at most count.
    pub cpus: usize,
    /// The unit address of its terminal, if it has one; calls may name it 0 as well.
    pub terminal: Option<u32>,
    /// Interrupt sources; others that the guest names are refused.
    pub sources: Vec<Source>,
    /// What `H_GET_CPU_CHARACTERISTICS` answers: what the platform below says of the same CPUs.
    pub characteristics: Option<Characteristics>,
}

/// How the CPUs withstand speculation attacks: r4 and r5 of `H_GET_CPU_CHARACTERISTICS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Characteristics {
    /// What the CPUs can do.
    pub character: u64,
    /// What software shall do.
    pub behaviour: u64,
}

/// Why a vCPU that waits goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// It does not.
    Stay,
    /// Something is there for it.
    Due,
}

/// The PAPR platform of one VM, shared by its vCPUs.
#[derive(Debug)]
pub struct Platform {
    config: Config,
    pub(crate) xics: Mutex<Xics>,
    pub(crate) cpus: Mutex<Cpus>,
    /// Interrupts arrive in little-endian mode.
    pub(crate) little_endian: AtomicBool,
    /// Interrupts leave translation on and arrive at the high location.
    pub(crate) alternate: AtomicBool,
    /// A process table has been registered.
    pub(crate) has_process_table: AtomicBool,
    /// Seconds that the guest's clock is ahead of the real-time clock.
    pub(crate) clock_offset: AtomicI64,
    /// vCPUs for which a system reset interrupt is due: looked at before each entry into the guest.
    pub(crate) resets: AtomicU64,
    pub(crate) events: Mutex<Events>,
}

impl Platform {
    /// A platform just turned on: the first vCPU runs, all others are stopped.
    #[must_use]
    pub fn new(mut config: Config) -> Self {
        config.cpus = config.cpus.clamp(1, MOST_CPUS);
        Self {
            xics: Mutex::new(Xics::new(config.cpus, &config.sources)),
            cpus: Mutex::new(Cpus::new(config.cpus)),
            little_endian: AtomicBool::new(false),
            alternate: AtomicBool::new(false),
            has_process_table: AtomicBool::new(false),
            clock_offset: AtomicI64::new(0),
            resets: AtomicU64::new(0),
            events: Mutex::new(Events::default()),
            config,
        }
    }

    /// As it was made, but for the time of day. No vCPU may be running.
    pub fn reset(&self) {
        *self.xics.lock() = Xics::new(self.config.cpus, &self.config.sources);
        *self.cpus.lock() = Cpus::new(self.config.cpus);
        self.little_endian.store(false, Ordering::Release);
        self.alternate.store(false, Ordering::Release);
        self.has_process_table.store(false, Ordering::Release);
        self.resets.store(0, Ordering::Release);
        self.events.lock().clear();
    }

    /// What the platform was made with.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Whether interrupts of all vCPUs arrive in little-endian mode.
    #[must_use]
    pub fn has_little_endian_interrupts(&self) -> bool {
        self.little_endian.load(Ordering::Acquire)
    }

    /// Whether interrupts that come while addresses are translated leave them so (`LPCR[AIL]` 3).
    #[must_use]
    pub fn has_alternate_location(&self) -> bool {
        self.alternate.load(Ordering::Acquire)
    }

    /// Whether an external interrupt is to be given to the vCPU as soon as it lets it through.
    #[must_use]
    #[inline]
    pub fn has_interrupt(&self, vcpu: usize) -> bool {
        self.xics.lock().is_pending(vcpu)
    }

    /// Whether a system reset interrupt is to be given to the vCPU now; it is taken by this.
    #[must_use]
    pub fn take_system_reset(&self, vcpu: usize) -> bool {
        let this = Servers::one(vcpu).bits();
        self.resets.load(Ordering::Acquire) & this != 0
            && self.resets.fetch_and(!this, Ordering::AcqRel) & this != 0
    }

    /// Whether a system reset interrupt is due for the vCPU.
    #[inline]
    pub(crate) fn has_system_reset(&self, vcpu: usize) -> bool {
        self.resets.load(Ordering::Acquire) & Servers::one(vcpu).bits() != 0
    }

    /// Whether a vCPU that waits is to go on. Its decrementer is the caller's to watch, unless the
    /// vCPU [has joined](Self::has_joined).
    #[must_use]
    pub fn wake(&self, vcpu: usize) -> Wake {
        let (due, joined) = match self.cpus.lock().get(vcpu) {
            Some(cpu) => (cpu.prodded || cpu.start.is_some(), cpu.joined),
            None => (false, false),
        };
        if due || self.has_system_reset(vcpu) || !joined && self.has_interrupt(vcpu) {
            Wake::Due
        } else {
            Wake::Stay
        }
    }

    /// Whether the vCPU waits in `H_JOIN`, from which only `H_PROD` and a system reset wake it.
    #[must_use]
    pub fn has_joined(&self, vcpu: usize) -> bool {
        self.cpus.lock().get(vcpu).is_some_and(|cpu| cpu.joined)
    }

    /// A vCPU that waited goes on.
    pub fn woken(&self, vcpu: usize) {
        if let Some(cpu) = self.cpus.lock().get_mut(vcpu) {
            cpu.prodded = false;
            cpu.joined = false;
        }
    }

    /// Where a vCPU that was started begins, and its r3; once for each start.
    #[must_use]
    pub fn take_start(&self, vcpu: usize) -> Option<(u64, u64)> {
        let start = self.cpus.lock().get_mut(vcpu)?.start.take()?;
        Some((start.entry, start.argument))
    }

    /// Whether a vCPU has been started and its start is not yet taken.
    #[must_use]
    pub fn is_starting(&self, vcpu: usize) -> bool {
        let cpus = self.cpus.lock();
        cpus.get(vcpu).is_some_and(|cpu| cpu.start.is_some())
    }

    /// Whether a vCPU is to be started, or runs.
    #[must_use]
    pub fn runs(&self, vcpu: usize) -> bool {
        self.cpus.lock().get(vcpu).is_some_and(|cpu| cpu.runs)
    }

    /// A vCPU that waited on its thread goes on: [`Self::woken`], and it [comes](Self::comes).
    #[inline]
    pub fn resume(&self, vcpu: usize, env: &impl Environment) {
        let areas = match self.cpus.lock().get_mut(vcpu) {
            Some(cpu) => {
                (cpu.prodded, cpu.joined) = (false, false);
                cpu.areas
            }
            None => return,
        };
        areas.dispatch(ON_THREAD, env);
    }

    /// The vCPU comes on a thread.
    pub fn comes(&self, vcpu: usize, env: &impl Environment) {
        self.dispatch(vcpu, ON_THREAD, env);
    }

    /// The vCPU leaves its thread.
    pub fn goes(&self, vcpu: usize, env: &impl Environment) {
        self.dispatch(vcpu, OFF_THREAD, env);
    }

    fn dispatch(&self, vcpu: usize, parity: u32, env: &impl Environment) {
        let areas = self.cpus.lock().get(vcpu).map(|cpu| cpu.areas);
        if let Some(areas) = areas {
            areas.dispatch(parity, env);
        }
    }

    /// An event of an edge source: who is to be kicked, because it is to be interrupted by it.
    ///
    /// # Errors
    /// [`UnknownSource`].
    #[inline]
    pub fn signal(&self, source: u32) -> Result<Servers, UnknownSource> {
        self.xics.lock().signal(source)
    }

    /// Devices have come or gone at a connector: who is to be kicked.
    pub fn announce(&self, event: HotPlug) -> Servers {
        self.events.lock().push(event);
        // A guest without that source asks the sensor.
        self.signal(HOT_PLUG_SOURCE).unwrap_or(Servers::NONE)
    }

    /// The line of a level source is high, or is not: who is to be kicked.
    ///
    /// # Errors
    /// [`UnknownSource`].
    pub fn raise(&self, source: u32) -> Result<Servers, UnknownSource> {
        self.xics.lock().set_line(source, true)
    }

    /// The line of a level source is low.
    ///
    /// # Errors
    /// [`UnknownSource`].
    pub fn lower(&self, source: u32) -> Result<(), UnknownSource> {
        self.xics.lock().set_line(source, false).map(|_| ())
    }
}
