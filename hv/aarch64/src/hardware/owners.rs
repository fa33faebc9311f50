//! A function changes hands: taken for a VM, given back, reset in between.

use alloc::format;
use alloc::string::{String, ToString};
use core::sync::atomic::Ordering;

use pci::{ConfigSpace, Progress, Reset};

use super::{Function, Hardware, ResetBy, Resetting, owner};
use crate::console::SystemCounter;

impl Hardware {
    /// Takes a function for a VM: bound to it in the core, with its messages made LPIs of the CPUs
    /// `cpu_of` names, none of which goes anywhere yet. It reaches nothing before it is attached.
    #[optimize(size)]
    pub(crate) fn take(
        &self,
        index: usize,
        vm: usize,
        cpu_of: impl Fn(u32) -> usize,
    ) -> Result<(), String> {
        let function = self.functions.get(index).ok_or("no such function")?;
        let mut reset = function.reset.lock();
        match &*reset {
            Resetting::Lost => return Err("it did not come back from its last reset".to_string()),
            Resetting::Stale(before) if *before != vm => {
                return Err(format!(
                    "VM {} has used it, and it cannot be reset: it might go on with that VM's work",
                    before + 1
                ));
            }
            _ => {}
        }
        match function.smmu {
            Some(behind) => {
                let bound = self.iommu.lock().bind(behind.device, owner(vm));
                bound.map_err(|error| error.to_string())?;
            }
            // What the core says of the others. The lock of its reset keeps others out.
            None if self.has_owner(index) => return Err("another VM has it".to_string()),
            None => {}
        }
        if let Err(error) = self.map_events(function, cpu_of) {
            self.unbind(function);
            return Err(format!("its ITS: {error}"));
        }
        *reset = Resetting::Used(vm);
        if let Some(slot) = self.owners.get(index) {
            slot.store(vm + 1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Gives a function back: it masters nothing, reaches nothing, interrupts nobody, and is on its way
    /// back to its beginning. It must be detached.
    #[optimize(size)]
    pub(crate) fn give_back(&self, index: usize) {
        let Some(function) = self.functions.get(index) else {
            return;
        };
        for vector in 0..function.events {
            self.set_route(function, vector, None);
        }
        if let Some(slot) = self.owners.get(index) {
            slot.store(0, Ordering::Relaxed);
        }
        // Whoever has the same DeviceID goes to the same VM, and comes back with it.
        if let Some(its) = self.itss.get(function.its)
            && !self.has_messages(function)
        {
            let mut its = its.lock();
            let alike = self.alike(function.its, function.device_id);
            let ends = alike.map(|(_, other)| other.first_event.saturating_add(other.events));
            // A message that waits at a CPU outlives its mapping: it must not reach the next owner.
            let cleared = its.clear(function.device_id, ends.max().unwrap_or(0));
            if let Err(error) = cleared.and_then(|()| its.unmap_device(function.device_id)) {
                log::error!("pci {}: its ITS: {error}", function.bdf);
            }
        }
        self.unbind(function);
        self.begin_reset(function);
    }

    fn has_owner(&self, index: usize) -> bool {
        let owner = self.owners.get(index);
        owner.is_some_and(|owner| owner.load(Ordering::Relaxed) != 0)
    }

    fn unbind(&self, function: &Function) {
        if let Some(behind) = function.smmu
            && let Err(error) = self.iommu.lock().unbind(behind.device)
        {
            log::error!("pci {}: {error}", function.bdf);
        }
    }

    /// Stops a function: no bus mastering, no messages.
    pub(crate) fn quiet(&self, function: &Function) {
        let Some(bridge) = self.bridges.get(function.bridge) else {
            return;
        };
        self.set_mastering(function, pci::Permission::Denied);
        if let Some(msix) = function.msix(self) {
            let _ = msix.set_mode(&bridge.space, function.bdf, pci::MsixMode::Off);
        }
        if let Some(msi) = function.msi(self) {
            let _ = msi.disable(&bridge.space, function.bdf);
        }
    }

    /// Lets a function master the bus, or not.
    pub(crate) fn set_mastering(&self, function: &Function, permission: pci::Permission) {
        let Some(bridge) = self.bridges.get(function.bridge) else {
            return;
        };
        let guard = bridge.command_lock.lock();
        let set = pci::set_mastering(&bridge.space, &bridge.topology, function.bdf, permission);
        drop(guard);
        if let Err(error) = set {
            log::error!("pci {}: {error}", function.bdf);
        }
    }

    /// Begins to reset a function; [`Hardware::poll_reset`] goes on.
    #[optimize(size)]
    pub(crate) fn begin_reset(&self, function: &Function) {
        let Some(bridge) = self.bridges.get(function.bridge) else {
            return;
        };
        let (space, topology): (&dyn ConfigSpace, _) = (&bridge.space, &bridge.topology);
        let begun = match function.reset_by {
            ResetBy::Function => Reset::function(space, topology, function.bdf, &SystemCounter),
            ResetBy::Bus(above) => Reset::bus(space, topology, above, &SystemCounter),
            ResetBy::Nothing => {
                let mut state = function.reset.lock();
                if let Resetting::Used(vm) = &*state {
                    *state = Resetting::Stale(*vm);
                }
                return;
            }
        };
        *function.reset.lock() = match begun {
            Ok(reset) => Resetting::Running(reset),
            Err(error) => {
                log::error!("pci {}: reset: {error}", function.bdf);
                Resetting::Lost
            }
        };
    }

    /// Moves a reset on; when it is to be looked at again, in ticks, or `None` when it is over.
    #[optimize(size)]
    pub(crate) fn poll_reset(&self, function: &Function) -> Option<u64> {
        let bridge = self.bridges.get(function.bridge)?;
        let mut state = function.reset.lock();
        let Resetting::Running(reset) = &mut *state else {
            return None;
        };
        match reset.poll(&bridge.space, &bridge.topology, &SystemCounter) {
            Ok(Progress::Wait(until)) => Some(until),
            Ok(Progress::Done) => {
                *state = Resetting::Fresh;
                self.set_pin(function, pci::Permission::Denied);
                None
            }
            Err(error) => {
                log::error!("pci {}: reset: {error}", function.bdf);
                *state = Resetting::Lost;
                None
            }
        }
    }

    /// Whether a function has no reset at all.
    pub(crate) fn has_reset(&self, function: &Function) -> bool {
        function.reset_by != ResetBy::Nothing
    }
}
