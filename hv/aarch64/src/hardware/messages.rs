//! Messages of functions: LPIs of the machine, and where each goes.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use vgic::its::Message;

use super::{Function, Hardware};

/// Where an LPI goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The VM.
    pub(crate) vm: usize,
    /// What it is to the VM's ITS.
    pub(crate) message: Message,
}

impl Route {
    const VALID: u64 = 1 << 63;

    fn encode(self) -> u64 {
        Self::VALID | (self.vm as u64) << 16 | u64::from(self.message.bits())
    }

    fn decode(bits: u64) -> Option<Self> {
        let [a, b, c, d, ..] = bits.to_le_bytes();
        (bits & Self::VALID != 0).then(|| Self {
            vm: u16::from_le_bytes([c, d]).into(),
            message: Message::from_bits(u16::from_le_bytes([a, b])),
        })
    }
}

impl Hardware {
    /// Where an LPI goes.
    pub(crate) fn route(&self, intid: u32) -> Option<Route> {
        let index = intid.checked_sub(gic::FIRST_LPI)? as usize;
        Route::decode(self.routes.get(index)?.load(Ordering::Acquire))
    }

    /// Says where a message of a function goes; `None` for nowhere.
    pub(crate) fn set_route(&self, function: &Function, vector: u32, route: Option<Route>) {
        if vector < function.events
            && let Some(slot) = self.routes.get(function.first + vector as usize)
        {
            slot.store(route.map_or(0, Route::encode), Ordering::Release);
        }
    }

    /// The functions whose messages have the same DeviceID, with their places.
    pub(super) fn alike(
        &self,
        its: usize,
        device_id: u32,
    ) -> impl Iterator<Item = (usize, &Function)> {
        let functions = self.functions.iter().enumerate();
        functions.filter(move |(_, other)| other.its == its && other.device_id == device_id)
    }

    /// Whether an ITS has messages of a function's DeviceID: a VM has one with it.
    pub(super) fn has_messages(&self, function: &Function) -> bool {
        self.alike(function.its, function.device_id)
            .any(|(index, other)| {
                let owner = self.owners.get(index);
                other.events > 0 && owner.is_some_and(|owner| owner.load(Ordering::Relaxed) != 0)
            })
    }

    pub(super) fn map_events(
        &self,
        function: &Function,
        cpu_of: impl Fn(u32) -> usize,
    ) -> Result<(), gic::Error> {
        let Some(its) = self.itss.get(function.its) else {
            return Err(gic::Error::NoLpis);
        };
        if function.events == 0 {
            return Ok(());
        }
        let mut its = its.lock();
        if !self.has_messages(function) {
            let alike = self.alike(function.its, function.device_id);
            let ends = alike.map(|(_, other)| other.first_event.saturating_add(other.events));
            its.map_device(function.device_id, ends.max().unwrap_or(0))?;
        }
        let events: Vec<(u32, u32, u16)> = (0..function.events)
            .map(|event| {
                let lpi = u32::try_from(function.first).unwrap_or(0) + event;
                let cpu = u16::try_from(cpu_of(event)).unwrap_or(0);
                if let Some(target) = self.targets.get(function.first + event as usize) {
                    target.store(cpu, Ordering::Relaxed);
                }
                (function.first_event + event, gic::FIRST_LPI + lpi, cpu)
            })
            .collect();
        its.map_events(function.device_id, &events)
    }
}
