//! Hot plug: a host bridge leaves a running VM, and comes back.
//!
//! What leaves is off first: bus mastering, messages, pins. Then no call reaches its windows, they are
//! emptied, and only then is it anybody's. The guest finds all ones in the place of its registers, a PE that
//! is gone for good, and an empty slot; an event tells it to look.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use eeh::{Pe, Service};
use papr::Served;
use vm::Plug;
use vtce::Progress;

use crate::hardware::Shared;

use super::connectors::slot;
use super::recovery::answer;
use super::registers::{Shown, bars};
use super::{Devices, Held, PARAMETER, View};

/// A bridge that was taken away.
#[derive(Debug)]
pub(super) struct Away {
    pub(super) bridge: usize,
    /// What the guest finds in the place of its registers.
    pub(super) shown: Shown,
    /// What the guest hears of its PE: it is gone.
    pe: Pe,
}

impl Devices {
    pub(super) fn is_away(&self, bridge: usize) -> bool {
        self.away.lock().iter().any(|away| away.bridge == bridge)
    }

    /// Takes a bridge away from the VM, whose vCPUs may run, or begins to give it back ([`Devices::look`]); the
    /// index of its connector.
    pub(crate) fn plug(&self, buid: u64, plug: Plug, view: View<'_>) -> Result<u32, vm::Refusal> {
        let mut bridges = self.bridges.iter().copied();
        let its = |at: &usize| self.hardware.bridges[*at].buid == buid;
        let at = bridges.find(its).ok_or(vm::Refusal::NoBridge)?;
        let mut all = self.held.lock();
        let held = all.iter().position(|held| held.bridge == at);
        match (plug, held) {
            (Plug::In, Some(_)) | (Plug::Out, None) => return Err(vm::Refusal::There),
            (Plug::Out, Some(held)) => self.take_away(&mut all, held, view)?,
            (Plug::In, None) => self.bring_back(&mut all, at, view)?,
        }
        self.has_bridges.store(!all.is_empty(), Ordering::Release);
        Ok(slot(at))
    }

    fn take_away(&self, all: &mut Vec<Held>, at: usize, view: View<'_>) -> Result<(), vm::Refusal> {
        let Some(held) = all.get_mut(at) else {
            return Err(vm::Refusal::There);
        };
        let bridge = &self.hardware.bridges[held.bridge];
        // Before anything of it is off, so that the guest hears of an error in no moment between.
        let mut pe = held.pe.clone();
        let _ = pe.fail();
        self.away.lock().push(Away {
            bridge: held.bridge,
            shown: Shown::Ones,
            pe,
        });
        let silent = self.silence(held);
        let mut whole = true;
        for bar in bridge.topology.functions().iter().flat_map(bars) {
            whole &= self.show_bar(bar, Shown::Ones, view);
        }
        if let Some(io) = bridge.io {
            whole &= self.show_at(io, Shown::Ones, view);
        }
        let shown = if whole { Shown::Ones } else { Shown::Broken };
        // Where it is kept, too.
        held.io = shown;
        for function in &mut held.functions {
            function.shown = shown;
        }
        let mut away = self.away.lock();
        if let Some(away) = away.iter_mut().find(|away| away.bridge == held.bridge) {
            away.shown = shown;
        }
        drop(away);
        if silent && self.empty(held) && self.release(held).is_ok() {
            log::info!("vm {}: phb:{:x} is taken away", self.vm, bridge.buid);
            all.swap_remove(at);
            return Ok(());
        }
        log::error!(
            "vm {}: phb:{:x} does not come to rest: it is kept, and gone for the guest",
            self.vm,
            bridge.buid
        );
        let _ = held.pe.fail();
        Err(vm::Refusal::NotDone)
    }

    /// Nothing is left of a bridge's windows, and no call of the guest's reaches them.
    fn empty(&self, held: &Held) -> bool {
        let number = u8::try_from(held.bridge).unwrap_or(u8::MAX);
        let shut = |shared: &mut Shared| {
            let dma = shared.dmas.get_mut(self.dma)?;
            dma.shut_bridge(number).ok()
        };
        if shut(&mut self.hardware.shared.lock()).is_none() {
            return false;
        }
        loop {
            let mut shared = self.hardware.shared.lock();
            let Shared { core, dmas } = &mut *shared;
            let Some(dma) = dmas.get_mut(self.dma) else {
                return false;
            };
            match dma.clear_shut(core) {
                Ok(Progress::More) => {}
                Ok(Progress::Done) => return core.backend().is_sure(),
                Err(error) => {
                    log::error!("vm {}: windows cannot be emptied: {error}", self.vm);
                    return false;
                }
            }
        }
    }

    fn bring_back(
        &self,
        all: &mut Vec<Held>,
        at: usize,
        view: View<'_>,
    ) -> Result<(), vm::Refusal> {
        let bridge = &self.hardware.bridges[at];
        let mut held = self.take_one(at, view).map_err(|error| {
            log::error!("vm {}: phb:{:x}: {error}", self.vm, bridge.buid);
            vm::Refusal::NotDone
        })?;
        bridge.used.store(self.vm + 1, Ordering::Release);
        self.begin_return(&mut held, view);
        all.push(held);
        self.returning.store(true, Ordering::Release);
        Ok(())
    }

    /// Bridges on their way back whose devices are through their resets are the guest's: the index of a connector
    /// to be told of. Called every few milliseconds, by whoever looks around.
    pub(crate) fn look(&self, view: View<'_>) -> Option<u32> {
        if !self.returning.load(Ordering::Acquire) {
            return None;
        }
        let mut all = self.held.try_lock()?;
        let mut returning = all.iter_mut().filter(|held| held.returns);
        let Some(held) = returning.find_map(|held| self.poll_resets(held).then_some(held)) else {
            let left = all.iter().any(|held| held.returns);
            self.returning.store(left, Ordering::Release);
            return None;
        };
        // What the guest has given up it has to take.
        (held.returns, held.isolated) = (false, self.is_released(held.bridge));
        self.show(held, view);
        self.connect_pins(held);
        let at = held.bridge;
        self.away.lock().retain(|away| away.bridge != at);
        let buid = self.hardware.bridges[at].buid;
        log::info!("vm {}: phb:{buid:x} is back", self.vm);
        Some(slot(at))
    }

    /// What a service for errors says of a bridge that is away.
    pub(super) fn recover_away(
        &self,
        view: View<'_>,
        service: Service,
        arguments: &[u32],
        results: usize,
    ) -> Served {
        let mut all = self.away.lock();
        let mut found = all.iter_mut();
        let Some(away) = found.find(|away| away.pe.is_meant(arguments)) else {
            return Served::new(PARAMETER, &[]);
        };
        let bridge = away.bridge;
        let exists = |config| self.exists(bridge, config);
        // There is no hardware to do anything to.
        let outcome = away.pe.service(service, arguments, results, exists);
        answer(&away.pe, &outcome, arguments, view)
    }
}
