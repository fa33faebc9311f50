//! Hot plug: a host bridge leaves a running VM, and comes back. The guest knows it as one connector for
//! PCI slots, on the node of the bridge.
//!
//! What leaves is off first: bus mastering, messages, pins. Then no call reaches its windows, they are
//! emptied, and only then is it anybody's. The guest finds all ones in the place of its registers, a PE that
//! is gone for good, and an empty slot; an event tells it to look.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use dtoolkit::model::{DeviceTreeNode, DeviceTreeProperty};
use eeh::{Pe, Service};
use papr::Served;
use vm::Plug;
use vtce::Progress;

use crate::hardware::Shared;

use super::recovery::{LATER, Masters};
use super::registers::{Shown, bars};
use super::{Devices, HARDWARE, Held, PARAMETER, View};

/// Indexes of connectors for PCI slots begin here; QEMU's.
const SLOTS: u32 = 0x4000_0000;
/// Slots by PAPR's numbers: one that takes any card.
const TYPE: &str = "28";
/// The one power domain: it is always on.
const LIVE: u32 = u32::MAX;
const FULL_POWER: u32 = 100;

/// The services for connectors, by name and token; tokens are QEMU's.
pub(super) const SERVICES: [(&str, u32); 4] = [
    ("set-indicator", token::SET_INDICATOR),
    ("set-power-level", token::SET_POWER),
    ("get-power-level", token::GET_POWER),
    ("get-sensor-state", token::GET_SENSOR),
];
pub(super) const TOKENS: [u32; 4] = [
    token::SET_INDICATOR,
    token::SET_POWER,
    token::GET_POWER,
    token::GET_SENSOR,
];

mod token {
    pub(super) const SET_INDICATOR: u32 = 0x201a;
    pub(super) const SET_POWER: u32 = 0x201b;
    pub(super) const GET_POWER: u32 = 0x201c;
    pub(super) const GET_SENSOR: u32 = 0x201d;
}

/// Indicators and sensors: whether a connector is isolated, its lamp, what is in it. [Linux
/// arch/powerpc/include/asm/rtas.h]
const ISOLATION: u32 = 9001;
const LAMP: u32 = 9002;
const ENTITY: u32 = 9003;
/// What is in a connector.
const EMPTY: u32 = 0;
const PRESENT: u32 = 1;

/// A bridge that was taken away.
#[derive(Debug)]
pub(super) struct Away {
    bridge: usize,
    /// What the guest hears of its PE: it is gone.
    pe: Pe,
}

/// The index of a bridge's connector.
fn connector(bridge: usize) -> u32 {
    SLOTS | u32::try_from(bridge & 0xfff).unwrap_or(0) << 16
}

/// Says in a bridge's node that it is a slot.
pub(super) fn describe(node: &mut DeviceTreeNode, bridge: usize) {
    let mut add = |name: &str, cells: &[u32], text: &str| {
        let cells = cells.iter().flat_map(|cell| cell.to_be_bytes());
        let mut value: Vec<u8> = cells.collect();
        if !text.is_empty() {
            value.extend(text.bytes());
            value.push(0);
        }
        node.add_property(DeviceTreeProperty::new_unchecked(name, value));
    };
    let name = alloc::format!("PHB{bridge}");
    add("ibm,drc-indexes", &[1, connector(bridge)], "");
    add("ibm,drc-power-domains", &[1, LIVE], "");
    add("ibm,drc-names", &[1], &name);
    add("ibm,drc-types", &[1], TYPE);
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
        Ok(connector(at))
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
            pe,
        });
        let silent = self.silence(held);
        for bar in bridge.topology.functions().iter().flat_map(bars) {
            let _ = self.show_bar(bar, Shown::Ones, view);
        }
        if let Some(io) = bridge.io {
            let _ = self.show_at(io, Shown::Ones, view);
        }
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
        (held.returns, held.isolated) = (false, false);
        self.show(held, view);
        self.connect_pins(held);
        let at = held.bridge;
        self.away.lock().retain(|away| away.bridge != at);
        let buid = self.hardware.bridges[at].buid;
        log::info!("vm {}: phb:{buid:x} is back", self.vm);
        Some(connector(at))
    }

    /// What a service for errors says of a bridge that is away.
    pub(super) fn recover_away(
        &self,
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
        Served::new(outcome.status, outcome.values())
    }

    /// Serves one of [`SERVICES`].
    pub(super) fn connector_service(
        &self,
        view: View<'_>,
        token: u32,
        arguments: &[u32],
        results: usize,
    ) -> Served {
        let status = |status| Served::new(status, &[]);
        match (token, arguments, results) {
            (token::GET_POWER, &[LIVE], 2) | (token::SET_POWER, &[LIVE, _], 2) => {
                Served::new(0, &[FULL_POWER])
            }
            (token::GET_SENSOR, &[ENTITY, index], 2) => {
                let all = self.held.lock();
                let present = |held: &Held| connector(held.bridge) == index && !held.returns;
                if all.iter().any(present) {
                    Served::new(0, &[PRESENT])
                } else if self.bridges.iter().any(|at| connector(*at) == index) {
                    Served::new(0, &[EMPTY])
                } else {
                    status(PARAMETER)
                }
            }
            (token::SET_INDICATOR, &[LAMP, index, 0..4], 1) => {
                let its = self.bridges.iter().any(|at| connector(*at) == index);
                status(if its { 0 } else { PARAMETER })
            }
            (token::SET_INDICATOR, &[ISOLATION, index, value @ (0 | 1)], 1) => {
                let mut all = self.held.lock();
                let mut found = all.iter_mut();
                match found.find(|held| connector(held.bridge) == index && !held.returns) {
                    Some(held) if value == 0 => status(self.isolate(held, view)),
                    Some(held) => status(self.unite(held, view)),
                    None => status(PARAMETER),
                }
            }
            _ => status(PARAMETER),
        }
    }

    /// The guest parts from a bridge: nothing of it reaches the guest, or the guest it.
    fn isolate(&self, held: &mut Held, view: View<'_>) -> i32 {
        if !held.isolated {
            held.isolated = true;
            let buid = self.hardware.bridges[held.bridge].buid;
            self.hardware.messages.stop_pins(buid);
            let off = self.set_masters(held, Masters::None);
            self.show(held, view);
            self.begin_resets(held);
            if !off {
                return HARDWARE;
            }
        }
        0
    }

    /// The guest has it again, once its devices are through their resets.
    fn unite(&self, held: &mut Held, view: View<'_>) -> i32 {
        if !held.isolated {
            return 0;
        }
        if !self.poll_resets(held) {
            return LATER;
        }
        held.isolated = false;
        self.show(held, view);
        if held.answers() {
            let buid = self.hardware.bridges[held.bridge].buid;
            self.hardware.messages.allow_pins(buid);
        }
        0
    }
}
