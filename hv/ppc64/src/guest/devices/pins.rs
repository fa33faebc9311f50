//! Interrupt pins: levels, which the guest's own interrupt controller gets under numbers of the VM's.
//!
//! From when a pin interrupts until the guest ends that interrupt its source is off at the machine's
//! controller. Then it is let through, and comes at once if the pin is still up.

use alloc::vec::Vec;

use types::Bdf;

use super::{Devices, Held};
use crate::hardware::Hardware;
use crate::messages::{Came, Kind};

/// The first source that pins of a guest have, and how many there may be; messages are behind them.
const FIRST: u32 = 0x1200;
const MOST: u32 = 0x100;

/// A source of the machine's that a VM's pins have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// The bridge, by its place among the machine's.
    bridge: usize,
    /// Its number at the machine's controller.
    source: u32,
    /// Its number at the guest's.
    guest: u32,
}

/// The sources of the pins behind a VM's bridges, numbered from [`FIRST`] on.
pub(super) fn lines(hardware: &Hardware, bridges: &[usize]) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for bridge in bridges {
        for (_, source) in &hardware.bridges[*bridge].pins {
            let known = lines.iter().any(|line| line.source == *source);
            let number = u32::try_from(lines.len()).unwrap_or(MOST);
            if !known && number < MOST {
                lines.push(Line {
                    bridge: *bridge,
                    source: *source,
                    guest: FIRST + number,
                });
            }
        }
    }
    lines
}

impl Devices {
    /// The sources that the guest's controller has for pins.
    pub(crate) fn pin_sources(&self) -> impl Iterator<Item = u32> {
        self.lines.iter().map(|line| line.guest)
    }

    /// The source of a function's pin, as the guest numbers it.
    pub(super) fn pin(&self, bridge: usize, bdf: Bdf) -> Option<u32> {
        let mut pins = self.hardware.bridges[bridge].pins.iter();
        let (_, source) = pins.find(|(other, _)| *other == bdf)?;
        let mut lines = self.lines.iter();
        let line = lines.find(|line| line.source == *source)?;
        Some(line.guest)
    }

    /// The VM starts, or has a bridge again: its pins interrupt it.
    pub(super) fn connect_pins(&self, held: &Held) {
        let buid = self.hardware.bridges[held.bridge].buid;
        let messages = &self.hardware.messages;
        messages.forget_pins(buid);
        for line in self.lines.iter().filter(|line| line.bridge == held.bridge) {
            let came = Came {
                vm: self.vm,
                source: line.guest,
                kind: Kind::Pin,
            };
            if !messages.add_pin(line.source, came, buid, self.server) {
                log::warn!("vm {}: interrupt {:#x} goes nowhere", self.vm, line.source);
            }
        }
        if !held.answers() {
            messages.stop_pins(buid);
        }
    }

    /// The guest has ended the interrupt of a pin, or says so.
    pub(crate) fn ended(&self, source: u32) {
        self.hardware.messages.ended(self.vm, source);
    }
}
