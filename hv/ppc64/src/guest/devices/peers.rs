//! Peer-to-peer: registers of a VM's devices that its other devices may reach, by entries of their windows.
//!
//! The manifest grants it, for each device by name. The guest then finds the registers in its entries where
//! its CPUs find them; the core sees that they are the VM's own, and takes them out of every table as long as
//! they do not answer.

use alloc::vec::Vec;

use iommu::{IoasId, MemoryId, PeerToPeer, Permissions};
use types::{Bdf, Ipa, Span};
use vtce::{Dma, Slot};

use super::registers::{Shown, bars};
use super::{Devices, Held};
use crate::hardware::{Core, Shared};

use super::claim::Refusal;

impl Devices {
    /// Makes the registers of a bridge's devices reachable, of those that the manifest names, and lets its
    /// windows show such registers. All or nothing.
    pub(super) fn grant(
        &self,
        core: &mut Core,
        dma: &mut Dma,
        at: usize,
        ioas: IoasId,
    ) -> Result<Vec<(Bdf, MemoryId)>, Refusal> {
        let mut granted = Vec::new();
        if self.peers.is_empty() {
            return Ok(granted);
        }
        core.set_peer_to_peer(ioas, PeerToPeer::Enabled)?;
        let mine = self.peers.iter().filter(|(bridge, _)| *bridge == at);
        let done = mine
            .map(|(_, bdf)| *bdf)
            .try_for_each(|bdf| self.grant_one(core, dma, (at, bdf), &mut granted));
        match done {
            Ok(()) => Ok(granted),
            Err(error) => {
                withdraw(core, dma, &granted);
                Err(error)
            }
        }
    }

    fn grant_one(
        &self,
        core: &mut Core,
        dma: &mut Dma,
        (at, bdf): (usize, Bdf),
        granted: &mut Vec<(Bdf, MemoryId)>,
    ) -> Result<(), Refusal> {
        let bridge = &self.hardware.bridges[at];
        let mut devices = bridge.devices.iter();
        let device = devices.find(|(other, _)| *other == bdf);
        let (Some((_, device)), Some(function)) = (device, bridge.topology.function(bdf)) else {
            return Ok(());
        };
        for bar in bars(function) {
            let Some(place) = bar.place else { continue };
            let memory = core.add_bar(*device, place.cpu, bar.size, &[])?;
            granted.push((bdf, memory));
            let span = Ipa::new(place.cpu.bits()).ok();
            let span = span.and_then(|at| Span::from_len(at, bar.size));
            dma.add_slot(Slot {
                span: span.ok_or(vtce::Refusal::Taken)?,
                memory,
                offset: 0,
                permissions: Permissions::ReadWrite,
                page: None,
            })?;
        }
        Ok(())
    }

    /// Lets the VM's devices find the registers of a bridge's devices where its CPUs do, and nowhere else.
    pub(super) fn show_to_peers(&self, held: &Held) {
        if held.granted.is_empty() {
            return;
        }
        let mut shared = self.hardware.shared.lock();
        let Shared { core, .. } = &mut *shared;
        for (bdf, memory) in &held.granted {
            let mut functions = held.functions.iter();
            let function = functions.find(|function| function.bdf == *bdf);
            let done = match function.map(|function| function.shown) {
                Some(Shown::Registers) => core.restore(*memory),
                _ => core.revoke(*memory),
            };
            if let Err(error) = done {
                log::error!("vm {}: {bdf}: p2p: {error}", self.vm);
            }
        }
    }
}

/// Takes registers away from the VM's devices, also where entries lead there.
pub(super) fn withdraw(core: &mut Core, dma: &mut Dma, granted: &[(Bdf, MemoryId)]) {
    for (bdf, memory) in granted {
        if let Err(error) = dma.withdraw(core, *memory) {
            log::error!("{bdf}: p2p: {error}");
        }
        if let Err(error) = core.destroy_memory(*memory) {
            log::error!("{bdf}: p2p: {error}");
        }
    }
}
