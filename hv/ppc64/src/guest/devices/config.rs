//! Configuration space: read whole, written in the enables only.

use papr::Served;
use pci::Function;
use vtce::{COMMAND_MASTER, COMMAND_MEMORY, Controls, Mastering, Role};

use super::{Devices, HARDWARE, Held, PARAMETER, View, address};

/// The command register: I/O, memory, bus mastering, no interrupt pin.
const COMMAND: u32 = 0x04;
/// The interrupt line and pin, a byte each.
const PIN: u32 = 0x3c;
pub(super) const MASTER: u32 = COMMAND_MASTER;

impl Held {
    /// What the guest lets a function do.
    fn enables(&mut self, function: &Function) -> Option<&mut super::FunctionState> {
        let mut all = self.functions.iter_mut();
        all.find(|held| held.bdf == function.bdf)
    }
}

impl Devices {
    pub(super) fn read_config(&self, at: u32, buid: [u32; 2], bytes: u32) -> Served {
        if !matches!(bytes, 1 | 2 | 4) {
            return Served::new(PARAMETER, &[]);
        }
        // Nothing there: all ones, as on the bus itself.
        let nothing = u32::MAX >> (32 - 8 * bytes);
        let mut all = self.held.lock();
        let Some(held) = self.bridge(&mut all, buid) else {
            return Served::new(HARDWARE, &[nothing]);
        };
        let Some((bridge, function)) = self.function(held, at) else {
            return Served::new(HARDWARE, &[nothing]);
        };
        if !held.answers() {
            return Served::new(0, &[nothing]);
        }
        let config = at & 0xf000_00ff | address(function.bdf);
        let read = self.hardware.rtas.read_config(bridge.buid, config, bytes);
        let Ok(mut value) = read else {
            return Served::new(HARDWARE, &[nothing]);
        };
        // While DMA is stopped the guest finds what it wants, not what is.
        if config & 0xf000_00ff == COMMAND
            && let Some(enables) = held.enables(function)
        {
            value &= !MASTER;
            if enables.masters {
                value |= MASTER;
            }
        }
        // A pin that goes nowhere is none.
        if config & 0xf000_00fc == PIN && self.pin(held.bridge, function.bdf).is_none() {
            value &= 0xffff_0000 >> (8 * (config & 3));
        }
        Served::new(0, &[value])
    }

    /// Lets a guest write the enables, each where it is; everything else stays as it is.
    pub(super) fn write_config(
        &self,
        view: View<'_>,
        at: u32,
        buid: [u32; 2],
        [bytes, value]: [u32; 2],
    ) -> i32 {
        let mut all = self.held.lock();
        let Some(held) = self.bridge(&mut all, buid) else {
            return HARDWARE;
        };
        let Some((bridge, function)) = self.function(held, at) else {
            return HARDWARE;
        };
        let state = held.pe.state();
        if !held.answers() {
            // It is lost.
            return 0;
        }
        let register = at & 0xff | at >> 20 & 0xf00;
        let capabilities = &function.capabilities;
        let control = |offset: u16| u32::from(offset) + 2;
        let controls = Controls {
            role: if function.bridge().is_some() {
                Role::Bridge
            } else {
                Role::Device
            },
            msi: capabilities.msi.as_ref().map(|msi| control(msi.offset)),
            msix: capabilities.msix.as_ref().map(|msix| control(msix.offset)),
        };
        let Some(change) = controls.write(register, bytes, value) else {
            return 0;
        };
        let config = at & 0xf000_00ff | address(function.bdf);
        let rtas = self.hardware.rtas;
        let Ok(old) = rtas.read_config(bridge.buid, config, 2) else {
            return HARDWARE;
        };
        let mastering = if state.allows_dma() {
            Mastering::AsWanted
        } else {
            Mastering::Stopped
        };
        let new = change.applied(old, mastering);
        // SAFETY: the device is the VM's, and its DMA reaches what the VM mapped.
        if unsafe { rtas.write_config(bridge.buid, config, 2, new) }.is_err() {
            return HARDWARE;
        }
        if let Some(command) = change.command
            && let Some(enables) = held.enables(function)
        {
            enables.masters = command & MASTER != 0;
            let decodes = command & COMMAND_MEMORY != 0;
            if decodes != enables.decodes {
                enables.decodes = decodes;
                self.show(held, view);
            }
        }
        0
    }
}
