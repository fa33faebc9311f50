//! Resets a function, or all functions below a bridge, without waiting inside.

use alloc::vec;
use alloc::vec::Vec;

use hal::Clock;
use types::Bdf;

use crate::capability::FunctionReset;
use crate::config::ConfigSpace;
use crate::error::Error;
use crate::function::Function;
use crate::probe::{self, Presence};
use crate::program;
use crate::regs;
use crate::topology::Topology;

/// How long a device may take to finish the requests it has made, in µs. It is reset anyway.
const DRAIN_US: u64 = 100_000;
/// How long a bus is held in reset, in µs: at least 1 ms.
const HOLD_US: u64 = 2_000;
/// How long nothing may be asked of a device that was reset, in µs.
const SETTLE_US: u64 = 100_000;
/// How long after that a device may take to answer, in µs.
const ANSWER_US: u64 = 1_000_000;
/// How often a device is looked at, in µs.
const POLL_US: u64 = 1_000;

/// How a function is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// By the device control register of this PCI Express capability.
    Express(u16),
    /// By the control register of this advanced features capability.
    Advanced(u16),
    /// All functions below a bridge, by its control register.
    Bus,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Requests the device has made are on their way, until then at most.
    Draining(u64),
    /// The bus is held in reset until then.
    Holding(u64),
    /// Nothing may be asked until then.
    Settling(u64),
    /// Functions are waited for, until then at most.
    Answering(u64),
    Done,
}

/// How far a reset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing to do before the clock shows this many ticks.
    Wait(u64),
    /// The functions are as enumeration and placement left them: in place, decoding, without bus
    /// mastering or interrupts.
    Done,
}

/// A reset under way. [`Reset::poll`] moves it on.
#[derive(Debug)]
pub struct Reset {
    at: Bdf,
    method: Method,
    phase: Phase,
}

impl Reset {
    /// Begins a function-level reset. Bus mastering is off from here on.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NoReset`] when the function has no reset of its own.
    pub fn function(
        space: &dyn ConfigSpace,
        topology: &Topology,
        bdf: Bdf,
        clock: &dyn Clock,
    ) -> Result<Self, Error> {
        let function = topology.function(bdf).ok_or(Error::NotFound(bdf))?;
        let supported = |reset: FunctionReset| reset == FunctionReset::Supported;
        let capabilities = &function.capabilities;
        let express = capabilities.express.filter(|e| supported(e.reset));
        let advanced = capabilities.advanced.filter(|a| supported(a.reset));
        let method = match (express, advanced) {
            (Some(express), _) => Method::Express(express.offset),
            (None, Some(advanced)) => Method::Advanced(advanced.offset),
            (None, None) => return Err(Error::NoReset(bdf)),
        };
        let _ = probe::quiet(space, bdf);
        Ok(Self {
            at: bdf,
            method,
            phase: Phase::Draining(after(clock, DRAIN_US)),
        })
    }

    /// Begins a reset of everything below a bridge. All of it must belong to whoever asks.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NoReset`] when it is no bridge, or nothing below it is known.
    pub fn bus(
        space: &dyn ConfigSpace,
        topology: &Topology,
        bridge: Bdf,
        clock: &dyn Clock,
    ) -> Result<Self, Error> {
        let function = topology.function(bridge).ok_or(Error::NotFound(bridge))?;
        if function.bridge().and_then(|b| b.buses).is_none() {
            return Err(Error::NoReset(bridge));
        }
        for below in below(topology, bridge) {
            let _ = probe::quiet(space, below.bdf);
        }
        hold(space, bridge, regs::BRIDGE_RESET);
        Ok(Self {
            at: bridge,
            method: Method::Bus,
            phase: Phase::Holding(after(clock, HOLD_US)),
        })
    }

    /// Does what can be done now.
    ///
    /// # Errors
    /// [`Error::DoesNotAnswer`] when a function is not back in time; it stays without bus
    /// mastering and decodes nothing.
    pub fn poll(
        &mut self,
        space: &dyn ConfigSpace,
        topology: &Topology,
        clock: &dyn Clock,
    ) -> Result<Progress, Error> {
        loop {
            let now = clock.ticks();
            let soon = after(clock, POLL_US);
            match self.phase {
                Phase::Draining(until) => {
                    if self.is_pending(space) && now < until {
                        return Ok(Progress::Wait(soon.min(until)));
                    }
                    self.trigger(space);
                    self.phase = Phase::Settling(after(clock, SETTLE_US));
                }
                Phase::Holding(until) => {
                    if now < until {
                        return Ok(Progress::Wait(until));
                    }
                    hold(space, self.at, 0);
                    self.phase = Phase::Settling(after(clock, SETTLE_US));
                }
                Phase::Settling(until) => {
                    if now < until {
                        return Ok(Progress::Wait(until));
                    }
                    self.phase = Phase::Answering(after(clock, ANSWER_US));
                }
                Phase::Answering(until) => match self.restore(space, topology) {
                    Ok(()) => self.phase = Phase::Done,
                    Err(error) if now >= until => return Err(error),
                    Err(_) => return Ok(Progress::Wait(soon.min(until))),
                },
                Phase::Done => return Ok(Progress::Done),
            }
        }
    }

    /// Whether requests of the device are still on their way.
    fn is_pending(&self, space: &dyn ConfigSpace) -> bool {
        match self.method {
            Method::Express(at) => space.read16(self.at, at.saturating_add(0xa)) & 1 << 5 != 0,
            Method::Advanced(at) => space.read8(self.at, at.saturating_add(5)) & 1 != 0,
            Method::Bus => false,
        }
    }

    fn trigger(&self, space: &dyn ConfigSpace) {
        match self.method {
            Method::Express(at) => {
                let at = at.saturating_add(8);
                let control = space.read16(self.at, at);
                space.write16(self.at, at, control | 1 << 15);
            }
            Method::Advanced(at) => space.write8(self.at, at.saturating_add(4), 1),
            Method::Bus => {}
        }
    }

    /// Puts everything that was reset back in place, a bridge before what is below it.
    fn restore(&self, space: &dyn ConfigSpace, topology: &Topology) -> Result<(), Error> {
        let functions = match self.method {
            Method::Bus => below(topology, self.at),
            _ => topology.function(self.at).map_or(vec![], |f| vec![f]),
        };
        for function in functions {
            if probe::presence(space, function.bdf) != Presence::Present {
                return Err(Error::DoesNotAnswer(function.bdf));
            }
            program::restore(space, function);
        }
        Ok(())
    }
}

fn after(clock: &dyn Clock, us: u64) -> u64 {
    clock.ticks().saturating_add(clock.ticks_of_us(us))
}

/// Every function below a bridge, bridges first.
fn below(topology: &Topology, bridge: Bdf) -> Vec<&Function> {
    let is_below = |function: &&Function| {
        let mut above = topology.bridges_above(function.bdf);
        above.any(|above| above.bdf == bridge)
    };
    topology.functions().iter().filter(is_below).collect()
}

/// Writes the reset bit of a bridge's control register.
fn hold(space: &dyn ConfigSpace, bridge: Bdf, value: u16) {
    let control = space.read16(bridge, regs::BRIDGE_CONTROL);
    let control = control & !regs::BRIDGE_RESET | value;
    space.write16(bridge, regs::BRIDGE_CONTROL, control);
}
