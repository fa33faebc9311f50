//! Messages: which sources a device has.

use papr::Served;

use super::{Devices, HARDWARE, PARAMETER, address};
use crate::rtas::Error;

impl Devices {
    /// The source of a device's message, by its number.
    pub(super) fn source(&self, at: u32, buid: [u32; 2], number: u32) -> Served {
        let mut all = self.held.lock();
        let held = self.bridge(&mut all, buid);
        let Some((bridge, function)) = held.and_then(|held| self.function(held, at)) else {
            return Served::new(PARAMETER, &[]);
        };
        let rtas = self.hardware.rtas;
        match rtas.source_of_msi(bridge.buid, address(function.bdf), number) {
            Ok(source) => Served::new(0, &source),
            Err(_) => Served::new(PARAMETER, &[]),
        }
    }

    /// Changes how many messages a device has.
    pub(super) fn change_msi(
        &self,
        server: u32,
        at: u32,
        buid: [u32; 2],
        what: [u32; 3],
    ) -> Served {
        let mut all = self.held.lock();
        let held = self.bridge(&mut all, buid);
        let Some((held, (bridge, function))) =
            held.and_then(|held| Some((&*held, self.function(held, at)?)))
        else {
            return Served::new(PARAMETER, &[]);
        };
        if !held.answers() {
            return Served::new(HARDWARE, &[0, 0, 0]);
        }
        let device = address(function.bdf);
        let name = [bridge.buid, device.into()];
        self.hardware.messages.forget(name);
        let rtas = self.hardware.rtas;
        // SAFETY: the device is the VM's.
        let changed = unsafe { rtas.change_msi(bridge.buid, device, what) };
        let [count, sequence, kind] = match changed {
            Ok(changed) => changed,
            Err(Error::Status { status, .. }) => {
                return Served::new(status, &[0, 0, 0]);
            }
            Err(_) => return Served::new(HARDWARE, &[0, 0, 0]),
        };
        for number in 0..count {
            let source = rtas.source_of_msi(bridge.buid, device, number);
            let Ok([source, _]) = source else { continue };
            if !self.hardware.messages.add(source, self.vm, name, server) {
                log::warn!("vm {}: interrupt {source:#x} goes nowhere", self.vm);
            }
        }
        Served::new(0, &[count, sequence, kind])
    }
}
