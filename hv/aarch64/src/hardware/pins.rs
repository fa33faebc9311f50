//! Interrupt pins: which line of the machine's a function's pin raises, and the bit that keeps it off.
//!
//! A pin is off (`COMMAND`, interrupt disable) unless a VM has the function and its guest lets it interrupt.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use machine::{Interrupt, Machine};
use pci::Permission;
use types::Bdf;

use super::{Bridge, Function, Hardware};

/// Interrupts in a row that no function admits to, after which the line is off until a pin is let out again.
const MOST_UNCLAIMED: u32 = 1000;

/// An interrupt of the machine's that pins raise.
pub(super) struct Line {
    interrupt: Interrupt,
    unclaimed: AtomicU32,
}

/// What became of an interrupt of a [`Line`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// A function had reason to raise it.
    Claimed,
    /// None had.
    Unclaimed,
}

/// The line that the pin of a function comes out at, if it is one that a guest can be served by: a level,
/// on which every pin can be kept off.
pub(super) fn line_of(
    machine: &Machine,
    bridge: &Bridge,
    function: &pci::Function,
) -> Option<Interrupt> {
    let line = wired_to(machine, bridge, function.bdf)?;
    let served = !line.trigger.is_edge() && !bridge.loud.contains(&line.number);
    served.then_some(line)
}

fn wired_to(machine: &Machine, bridge: &Bridge, bdf: Bdf) -> Option<Interrupt> {
    let host = machine.host_bridge(bridge.topology.segment())?;
    let (at, pin) = bridge.topology.root_pin(bdf)?;
    host.intx.lookup(at, pin)
}

/// Turns the pins of all functions below a bridge off. The lines of those that have no such bit are the
/// bridge's loud ones.
pub(super) fn silence(machine: &Machine, bridge: &mut Bridge) {
    let mut loud = Vec::new();
    for function in bridge.topology.functions() {
        let off = || pci::set_pin(&bridge.space, function.bdf, Permission::Denied);
        if function.interrupt_pin.is_some()
            && off().is_err()
            && let Some(line) = wired_to(machine, bridge, function.bdf)
        {
            loud.push(line.number);
        }
    }
    bridge.loud = loud;
}

impl Hardware {
    /// The lines of the functions, each once.
    pub(super) fn collect_lines(&mut self) {
        let mut lines: Vec<Line> = Vec::new();
        for interrupt in self.functions.iter().filter_map(|function| function.line) {
            let known = |line: &Line| line.interrupt.number == interrupt.number;
            if !lines.iter().any(known) {
                lines.push(Line {
                    interrupt,
                    unclaimed: AtomicU32::new(0),
                });
            }
        }
        self.lines = lines;
    }

    fn line(&self, intid: u32) -> Option<&Line> {
        let mut lines = self.lines.iter();
        lines.find(|line| line.interrupt.number == intid)
    }

    /// Whether an interrupt is a line that pins raise.
    pub(crate) fn is_line(&self, intid: u32) -> bool {
        self.line(intid).is_some()
    }

    /// Counts an interrupt of a line, which is turned off when it comes again and again for nobody's sake.
    pub(crate) fn count_line(&self, intid: u32, claim: Claim) {
        let Some(line) = self.line(intid) else {
            return;
        };
        match claim {
            Claim::Claimed => line.unclaimed.store(0, Ordering::Relaxed),
            Claim::Unclaimed => {
                self.silence_line(intid);
                if line.unclaimed.fetch_add(1, Ordering::Relaxed) == MOST_UNCLAIMED {
                    crate::gic::disable_spi(intid);
                    log::info!("pci: interrupt {intid}: no function admits to it: it is off");
                }
            }
        }
    }

    /// Turns off the pins on a line that nobody waits for: a reset lets a pin out, and what a device was at
    /// may end in the middle of it.
    fn silence_line(&self, intid: u32) {
        let on_it = |function: &&Function| function.line.is_some_and(|line| line.number == intid);
        for function in self.functions.iter().filter(on_it) {
            if !function.pin_is_out.load(Ordering::Acquire) && self.wants_pin(function) {
                self.write_pin(function, Permission::Denied);
            }
        }
    }

    fn write_pin(&self, function: &Function, permission: Permission) {
        if let Some(bridge) = self.bridges.get(function.bridge) {
            let _guard = bridge.command_lock.lock();
            // Functions whose bit does not obey have no pin to show.
            let _ = pci::set_pin(&bridge.space, function.bdf, permission);
        }
    }

    /// Lets a function raise its pin, or not. Either way its line is on again if it was turned off.
    pub(crate) fn set_pin(&self, function: &Function, permission: Permission) {
        let is_out = permission == Permission::Granted;
        function.pin_is_out.store(is_out, Ordering::Release);
        self.write_pin(function, permission);
        if let Some(line) = function.line.and_then(|line| self.line(line.number))
            && line.unclaimed.swap(0, Ordering::Relaxed) > MOST_UNCLAIMED
        {
            crate::gic::allow_spi(line.interrupt.number);
        }
    }

    /// Whether a function has reason to raise its pin.
    pub(crate) fn wants_pin(&self, function: &Function) -> bool {
        let bridge = self.bridges.get(function.bridge);
        bridge.is_some_and(|bridge| pci::wants_pin(&bridge.space, function.bdf))
    }
}
