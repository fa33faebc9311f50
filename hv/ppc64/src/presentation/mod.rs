//! How interrupts reach the machine's CPUs: each other's, which make a CPU leave a guest or wake, and those of
//! devices. By XICS, which needs no agreement, or by XIVE where that is what was agreed on.

mod xics;
mod xive;

use core::sync::atomic::{Ordering, fence};

use hal::FrameAllocator;
use machine::{InterruptController, Machine};

use self::xive::Xive;
use crate::cpu::{self, Cpu};
use crate::rtas::Rtas;

pub(crate) use self::xive::Failure;

/// There when CPUs take interrupts by it.
static XIVE: spin::Once<Xive> = spin::Once::new();

/// Prepares the machine's CPUs for interrupts. None of them is let through yet.
#[optimize(size)]
pub(crate) fn start(machine: &Machine, frames: &impl FrameAllocator) -> Result<(), Failure> {
    if let Some(InterruptController::Xive(controller)) = &machine.interrupt_controller {
        let servers = machine.cpus.iter().map(|cpu| cpu.id);
        let xive = Xive::new(controller, servers, frames)?;
        XIVE.call_once(|| xive);
    }
    Ok(())
}

/// Lets interrupts reach this CPU, which makes it leave a guest. Its own interrupts stay off.
pub(crate) fn open() {
    match XIVE.get() {
        Some(xive) => xive.open(),
        None => xics::open(),
    }
}

/// Lets none reach it.
pub(crate) fn close() {
    match XIVE.get() {
        Some(xive) => xive.close(),
        None => xics::close(),
    }
}

/// Makes a CPU leave its guest, or wake.
#[optimize(speed)]
pub(crate) fn kick(cpu: &Cpu) {
    fence(Ordering::SeqCst);
    match XIVE.get() {
        Some(xive) => xive.kick(cpu.number()),
        None => xics::kick(cpu.server()),
    }
}

/// What becomes of a device's interrupt once it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Afterwards {
    /// The next one is let through.
    Heard,
    /// The next one is kept, until [`Sources::release`].
    Held,
}

/// What made a CPU leave its guest or wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Devices, one at least, and nothing else.
    Devices,
    /// Another CPU, or something else, if anything.
    Other,
}

/// Who is told of devices' interrupts.
pub(crate) trait Listener {
    /// An interrupt of this source has come.
    fn came(&mut self, source: u32) -> Afterwards;
}

/// Takes back what made this CPU leave its guest or wake. `listener` is told of each device's source.
#[inline]
#[optimize(speed)]
pub(crate) fn acknowledge(listener: &mut impl Listener) -> Heard {
    let this = cpu::this();
    match XIVE.get() {
        Some(xive) => xive.acknowledge(this.number(), listener),
        None => xics::acknowledge(this.server(), listener),
    }
}

/// The interrupt sources of devices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sources {
    rtas: &'static Rtas,
}

impl Sources {
    pub(crate) fn new(rtas: &'static Rtas) -> Self {
        Self { rtas }
    }

    /// Directs a source to a CPU, and lets it through. False when it cannot.
    pub(crate) fn direct(self, source: u32, server: u32) -> bool {
        match XIVE.get() {
            Some(xive) => xive.direct(source, server),
            None => self
                .rtas
                .direct_source(source, server, xics::PRIORITY)
                .is_ok(),
        }
    }

    /// Lets a source through no more. False when it cannot.
    pub(crate) fn silence(self, source: u32) -> bool {
        match XIVE.get() {
            Some(xive) => xive.silence(source),
            None => self.rtas.silence_source(source).is_ok(),
        }
    }

    /// Keeps a source's next event, while one is being looked at. False when it cannot.
    pub(crate) fn hold(self, source: u32) -> bool {
        match XIVE.get() {
            // It is kept as long as this one is not over.
            Some(_) => true,
            // The source's controller keeps one event of a source that is off.
            None => self.rtas.silence_source(source).is_ok(),
        }
    }

    /// Lets a source through again that was held or silenced, to the CPU it was directed to, with what came
    /// meanwhile. False when it cannot.
    pub(crate) fn release(self, source: u32, server: u32) -> bool {
        match XIVE.get() {
            Some(xive) => xive.end(source),
            // (`ibm,int-on` would bring back what `ibm,int-off` found, which is off when that was called twice.)
            None => self.direct(source, server),
        }
    }
}
