//! What commands have mapped: devices, their events, collections.
//!
//! The guest provides memory for these tables, as an ITS asks for it, but it is never read or
//! written: they are here, and no larger than the VM's devices need.

use alloc::{boxed::Box, vec, vec::Vec};

use super::{COLLECTIONS, CommandFault, DeviceEvents, INTID_BITS, ItsError, LPIS};
use crate::FIRST_LPI;

/// An event without a translation.
const NO_LPI: u16 = u16::MAX;
/// A collection that is nowhere.
const NOWHERE: u8 = u8::MAX;

/// A device of the VM.
#[derive(Clone, Copy, Debug)]
struct Device {
    id: u32,
    /// Its first event in the array of all.
    first: u32,
    /// How many events it can have.
    limit: u32,
    /// How many events the guest mapped; zero while the device is not mapped.
    mapped: u32,
}

/// The translation of one event.
#[derive(Clone, Copy, Debug)]
struct Event {
    lpi: u16,
    collection: u16,
}

impl Event {
    const NONE: Self = Self {
        lpi: NO_LPI,
        collection: 0,
    };
}

/// Where an event goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// The LPI, counted from the first.
    pub(super) lpi: u16,
    pub(super) collection: u16,
    /// The vCPU its collection is at, if that is mapped.
    pub(super) vcpu: Option<u8>,
}

#[derive(Debug)]
pub(super) struct Tables {
    /// By ascending DeviceID.
    devices: Box<[Device]>,
    events: Box<[Event]>,
    collections: [u8; COLLECTIONS],
    /// A bit for each LPI that an event is mapped to.
    used: Box<[u64]>,
}

impl Tables {
    pub(super) fn new(devices: &[DeviceEvents]) -> Result<Self, ItsError> {
        let mut sorted: Vec<Device> = Vec::new();
        let mut total = 0_u32;
        for &DeviceEvents { device, events } in devices {
            if device > u32::from(u16::MAX) {
                return Err(ItsError::DeviceId { device });
            }
            if sorted.iter().any(|other| other.id == device) {
                return Err(ItsError::SameDevice { device });
            }
            let first = total;
            total = total
                .checked_add(events)
                .filter(|total| *total as usize <= LPIS)
                .ok_or(ItsError::TooManyEvents)?;
            sorted.push(Device {
                id: device,
                first,
                limit: events,
                mapped: 0,
            });
        }
        types::sort_by_key(&mut sorted, |device| device.id);
        Ok(Self {
            devices: sorted.into_boxed_slice(),
            events: vec![Event::NONE; total as usize].into_boxed_slice(),
            collections: [NOWHERE; COLLECTIONS],
            used: vec![0; LPIS >> 6].into_boxed_slice(),
        })
    }

    #[inline]
    fn device(&self, id: u32) -> Option<&Device> {
        let index = self.devices.binary_search_by_key(&id, |device| device.id);
        self.devices.get(index.ok()?)
    }

    fn device_mut(&mut self, id: u32) -> Option<&mut Device> {
        let index = self.devices.binary_search_by_key(&id, |device| device.id);
        self.devices.get_mut(index.ok()?)
    }

    fn place(&self, device: u32, event: u32) -> Result<usize, CommandFault> {
        let known = self
            .device(device)
            .filter(|device| device.mapped != 0)
            .ok_or(CommandFault::Device { device })?;
        if event >= known.mapped {
            return Err(CommandFault::Event { device, event });
        }
        Ok(known.first.saturating_add(event) as usize)
    }

    /// Where the event goes.
    pub(super) fn route(&self, device: u32, event: u32) -> Result<Route, CommandFault> {
        let fault = CommandFault::Event { device, event };
        let known = *self.events.get(self.place(device, event)?).ok_or(fault)?;
        if known.lpi == NO_LPI {
            return Err(fault);
        }
        Ok(Route {
            lpi: known.lpi,
            collection: known.collection,
            vcpu: self.vcpu_of(known.collection),
        })
    }

    /// Where an event is in the array of all, for as long as there are these tables.
    pub(super) fn place_of(&self, device: u32, event: u32) -> Option<u16> {
        let known = self.device(device)?;
        let place = (event < known.limit).then(|| known.first.saturating_add(event))?;
        u16::try_from(place).ok()
    }

    /// The LPI and the vCPU of the event at a place, if it goes somewhere. An event has an LPI only while its device has
    /// that many mapped.
    #[inline]
    pub(super) fn target(&self, place: u16) -> Option<(u16, u8)> {
        let Event { lpi, collection } = *self.events.get(usize::from(place))?;
        if lpi == NO_LPI {
            return None;
        }
        Some((lpi, self.vcpu_of(collection)?))
    }

    /// The vCPU a collection is at.
    #[inline]
    pub(super) fn vcpu_of(&self, collection: u16) -> Option<u8> {
        let vcpu = *self.collections.get(usize::from(collection))?;
        (vcpu != NOWHERE).then_some(vcpu)
    }

    /// Whether the VM has the device.
    pub(super) fn has_device(&self, device: u32) -> bool {
        self.device(device).is_some()
    }

    /// Gives the device `1 << bits` events, but no more than it can have. It has none mapped: see
    /// [`Tables::unmap_device`].
    pub(super) fn map_device(&mut self, device: u32, bits: u32) {
        if let Some(known) = self.device_mut(device) {
            known.mapped = known.limit.min(1_u32.wrapping_shl(bits & 0x1f));
        }
    }

    /// Takes the device's events away, and tells `forgotten` of each LPI.
    pub(super) fn unmap_device(&mut self, device: u32, forgotten: impl FnMut(u16)) {
        if let Some(known) = self.device_mut(device) {
            known.mapped = 0;
            let first = known.first as usize;
            let last = first.saturating_add(known.limit as usize);
            self.empty(first, last, forgotten);
        }
    }

    /// Takes all devices away, and tells `forgotten` of each LPI.
    pub(super) fn unmap_devices(&mut self, forgotten: impl FnMut(u16)) {
        for device in &mut self.devices {
            device.mapped = 0;
        }
        self.empty(0, self.events.len(), forgotten);
    }

    fn empty(&mut self, first: usize, last: usize, mut forgotten: impl FnMut(u16)) {
        for event in self.events.get_mut(first..last).unwrap_or_default() {
            let lpi = core::mem::replace(event, Event::NONE).lpi;
            if lpi != NO_LPI {
                forgotten(lpi);
                if let Some(word) = self.used.get_mut(usize::from(lpi >> 6)) {
                    *word &= !(1_u64.wrapping_shl(u32::from(lpi & 63)));
                }
            }
        }
    }

    /// Takes all collections away.
    pub(super) fn unmap_collections(&mut self) {
        self.collections = [NOWHERE; COLLECTIONS];
    }

    /// Puts a collection at a vCPU.
    pub(super) fn map_collection(
        &mut self,
        collection: u16,
        vcpu: Option<u8>,
    ) -> Result<(), CommandFault> {
        let place = self
            .collections
            .get_mut(usize::from(collection))
            .ok_or(CommandFault::Collection { collection })?;
        *place = vcpu.unwrap_or(NOWHERE);
        Ok(())
    }

    /// Translates an event to an LPI in a collection. Returns the LPI, and the one that the event
    /// had before, if any, which may be the same.
    pub(super) fn map_event(
        &mut self,
        device: u32,
        event: u32,
        intid: u32,
        collection: u16,
    ) -> Result<(u16, Option<u16>), CommandFault> {
        let place = self.place(device, event)?;
        let lpi = intid
            .checked_sub(FIRST_LPI)
            .filter(|_| intid >> INTID_BITS == 0)
            .and_then(|lpi| u16::try_from(lpi).ok())
            .ok_or(CommandFault::Intid { intid })?;
        if usize::from(collection) >= COLLECTIONS {
            return Err(CommandFault::Collection { collection });
        }
        let fault = CommandFault::Event { device, event };
        let old = self.events.get(place).ok_or(fault)?.lpi;
        if old != lpi && self.is_used(lpi) {
            return Err(CommandFault::Taken { intid });
        }
        if old != lpi && old != NO_LPI {
            self.mark(old, Use::Free);
        }
        self.mark(lpi, Use::Mapped);
        if let Some(to) = self.events.get_mut(place) {
            *to = Event { lpi, collection };
        }
        Ok((lpi, (old != NO_LPI).then_some(old)))
    }

    /// Puts an event that is mapped into another collection.
    pub(super) fn move_event(&mut self, device: u32, event: u32, collection: u16) {
        if let Ok(place) = self.place(device, event)
            && let Some(event) = self.events.get_mut(place)
        {
            event.collection = collection;
        }
    }

    /// Takes an event's translation away.
    pub(super) fn unmap_event(&mut self, device: u32, event: u32) {
        if let Ok(place) = self.place(device, event) {
            self.empty(place, place.saturating_add(1), |_| {});
        }
    }

    /// The words of 64 LPIs in which any is mapped, each with its index.
    pub(super) fn used_words(&self) -> impl Iterator<Item = (u16, u64)> {
        (0_u16..)
            .zip(self.used.iter().copied())
            .filter(|(_, word)| *word != 0)
    }

    fn is_used(&self, lpi: u16) -> bool {
        self.used
            .get(usize::from(lpi >> 6))
            .is_some_and(|word| word.wrapping_shr(u32::from(lpi & 63)) & 1 != 0)
    }

    fn mark(&mut self, lpi: u16, as_: Use) {
        if let Some(word) = self.used.get_mut(usize::from(lpi >> 6)) {
            let bit = 1_u64.wrapping_shl(u32::from(lpi & 63));
            match as_ {
                Use::Mapped => *word |= bit,
                Use::Free => *word &= !bit,
            }
        }
    }
}

/// Whether an event is mapped to an LPI.
#[derive(Clone, Copy)]
enum Use {
    Mapped,
    Free,
}
