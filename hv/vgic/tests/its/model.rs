//! The ITS as a naive model: maps and lists, no bound on work.

use std::collections::BTreeMap;

use crate::rig::{CONFIGURATION, DEVICES, VALID};

/// What a guest's commands and devices' messages come to.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    vcpus: usize,
    pub(crate) enabled: bool,
    /// DeviceID → events mapped.
    devices: BTreeMap<u32, u32>,
    /// (DeviceID, EventID) → (INTID, collection).
    events: BTreeMap<(u32, u32), (u32, u64)>,
    collections: BTreeMap<u64, usize>,
    /// INTID → configuration as last read.
    configuration: BTreeMap<u32, u8>,
    /// INTID → the vCPU it is pending for.
    pending: BTreeMap<u32, usize>,
    /// INTID → the vCPU it belongs to.
    place: BTreeMap<u32, usize>,
    /// INTID → the vCPU that took it.
    taken: BTreeMap<u32, usize>,
    /// For each vCPU what waits, in order of arrival.
    pub(crate) waiting: Vec<Vec<u32>>,
    /// For each vCPU where its configuration table is.
    pub(crate) tables: Vec<Option<u64>>,
    pub(crate) faults: u64,
    /// The configuration table.
    pub(crate) memory: Vec<u8>,
}

impl Model {
    /// A model of [`crate::rig::Rig::enabled`].
    pub(crate) fn new(vcpus: usize) -> Self {
        Self {
            vcpus,
            enabled: true,
            devices: BTreeMap::new(),
            events: BTreeMap::new(),
            collections: BTreeMap::new(),
            configuration: BTreeMap::new(),
            pending: BTreeMap::new(),
            place: BTreeMap::new(),
            taken: BTreeMap::new(),
            waiting: vec![Vec::new(); vcpus],
            tables: vec![Some(CONFIGURATION); vcpus],
            faults: 0,
            memory: vec![0; 8192],
        }
    }

    fn config(&self, intid: u32) -> u8 {
        self.configuration.get(&intid).copied().unwrap_or(0)
    }

    fn leave(&mut self, intid: u32) {
        for list in &mut self.waiting {
            list.retain(|other| *other != intid);
        }
    }

    fn waits(&self, intid: u32) -> bool {
        self.waiting.iter().any(|list| list.contains(&intid))
    }

    fn join(&mut self, intid: u32, vcpu: usize, at_front: bool) {
        self.pending.insert(intid, vcpu);
        self.place.insert(intid, vcpu);
        if self.config(intid) & 1 != 0 {
            let at = if at_front {
                0
            } else {
                self.waiting[vcpu].len()
            };
            self.waiting[vcpu].insert(at, intid);
        }
    }

    fn pend(&mut self, intid: u32, vcpu: usize) {
        if self.tables[vcpu].is_none() || self.waiting[vcpu].contains(&intid) {
            return;
        }
        self.leave(intid);
        self.join(intid, vcpu, false);
    }

    fn clear(&mut self, intid: u32) {
        self.leave(intid);
        self.pending.remove(&intid);
        self.taken.remove(&intid);
    }

    fn forget(&mut self, intid: u32) {
        self.clear(intid);
        self.place.remove(&intid);
        self.configuration.remove(&intid);
    }

    fn move_to(&mut self, intid: u32, vcpu: usize) {
        if self.place.get(&intid) == Some(&vcpu) {
            return;
        }
        self.leave(intid);
        self.place.insert(intid, vcpu);
        if self.pending.remove(&intid).is_some() && self.tables[vcpu].is_some() {
            self.join(intid, vcpu, false);
        }
    }

    fn configure(&mut self, intid: u32, table: Option<u64>) {
        let config = match table {
            Some(CONFIGURATION) => self.memory[(intid - 8192) as usize],
            _ => 0,
        };
        if config == self.config(intid) {
            return;
        }
        self.leave(intid);
        self.configuration.insert(intid, config);
        if let Some(vcpu) = self.pending.get(&intid).copied() {
            self.join(intid, vcpu, false);
        }
    }

    fn configure_all(&mut self, vcpu: usize) {
        // In the order in which the words of 64 are looked at.
        let mut mapped: Vec<_> = self.events.values().map(|(intid, _)| *intid).collect();
        mapped.sort_unstable();
        for intid in mapped {
            self.configure(intid, self.tables[vcpu]);
        }
    }

    fn unmap_events(&mut self, device: u32) {
        let gone: Vec<_> = self
            .events
            .range((device, 0)..=(device, u32::MAX))
            .map(|(event, (intid, _))| (*event, *intid))
            .collect();
        for (event, intid) in gone {
            self.events.remove(&event);
            self.forget(intid);
        }
    }

    fn vcpu(&self, rdbase: u64) -> Option<usize> {
        usize::try_from(rdbase)
            .ok()
            .filter(|vcpu| *vcpu < self.vcpus)
    }

    /// Does a command; a wrong one counts as a fault.
    pub(crate) fn command(&mut self, words: [u64; 4]) {
        if self.execute(words).is_none() {
            self.faults += 1;
        }
    }

    fn execute(&mut self, [first, second, third, fourth]: [u64; 4]) -> Option<()> {
        let device = u32::try_from(first >> 32).unwrap();
        let event = u32::try_from(second & 0xffff_ffff).unwrap();
        let key = (device, event);
        let collection = third & 0xffff;
        let target = |word: u64| word >> 16 & 0xf_ffff_ffff;
        let limit = DEVICES
            .iter()
            .find(|known| known.device == device)
            .map(|known| known.events);
        match first & 0xff {
            0x08 => {
                let limit = limit?;
                let bits = (event & 0x1f) + 1;
                if third & VALID == 0 {
                    self.unmap_events(device);
                    self.devices.remove(&device);
                } else if bits <= 16 {
                    self.unmap_events(device);
                    self.devices.insert(device, limit.min(1 << bits));
                } else {
                    return None;
                }
            }
            0x09 => {
                if collection >= 64 {
                    return None;
                }
                if third & VALID == 0 {
                    self.collections.remove(&collection);
                } else {
                    let vcpu = self.vcpu(target(third))?;
                    self.collections.insert(collection, vcpu);
                    self.configure_all(vcpu);
                }
            }
            opcode @ (0x0a | 0x0b) => {
                let intid = if opcode == 0x0a {
                    u32::try_from(second >> 32).unwrap()
                } else {
                    event
                };
                if collection >= 64
                    || event >= *self.devices.get(&device)?
                    || !(8192..16384).contains(&intid)
                    || self
                        .events
                        .iter()
                        .any(|(other, (taken, _))| *other != key && *taken == intid)
                {
                    return None;
                }
                let old = self.events.insert(key, (intid, collection));
                let to = self.collections.get(&collection).copied();
                match (old, to) {
                    (Some((same, _)), Some(to)) if same == intid => self.move_to(intid, to),
                    (Some((old, _)), _) => self.forget(old),
                    (None, _) => {}
                }
                let table = to.and_then(|vcpu| self.tables[vcpu]);
                self.configure(intid, table);
            }
            0x01 => {
                let (intid, from) = *self.events.get(&key)?;
                self.collections.get(&from)?;
                let to = *self.collections.get(&collection)?;
                self.events.insert(key, (intid, collection));
                self.move_to(intid, to);
            }
            0x0e => {
                let (from, to) = (self.vcpu(target(third))?, self.vcpu(target(fourth))?);
                let there: Vec<_> = self
                    .place
                    .iter()
                    .filter(|(_, vcpu)| **vcpu == from)
                    .map(|(intid, _)| *intid)
                    .collect();
                for intid in there {
                    self.move_to(intid, to);
                }
            }
            opcode @ (0x03 | 0x04) => {
                let (intid, collection) = *self.events.get(&key)?;
                let vcpu = *self.collections.get(&collection)?;
                if opcode == 0x03 {
                    self.pend(intid, vcpu);
                } else {
                    self.clear(intid);
                }
            }
            0x0f => {
                let (intid, _) = self.events.remove(&key)?;
                self.forget(intid);
            }
            0x0c => {
                let (intid, collection) = *self.events.get(&key)?;
                let table = self.collections.get(&collection);
                let table = table.and_then(|vcpu| self.tables[*vcpu]);
                self.configure(intid, table);
            }
            0x0d => {
                let vcpu = *self.collections.get(&collection)?;
                self.configure_all(vcpu);
            }
            0x05 => {}
            _ => return None,
        }
        Some(())
    }

    pub(crate) fn signal(&mut self, device: u32, event: u32) {
        if let (true, Some((intid, collection))) =
            (self.enabled, self.events.get(&(device, event)).copied())
            && let Some(vcpu) = self.collections.get(&collection)
        {
            self.pend(intid, *vcpu);
        }
    }

    /// The most urgent that waits; the first to come among equals.
    pub(crate) fn first(&self, vcpu: usize) -> Option<u32> {
        self.waiting[vcpu]
            .iter()
            .min_by_key(|intid| self.config(**intid) >> 3)
            .copied()
    }

    pub(crate) fn take(&mut self, vcpu: usize, intid: u32) {
        self.leave(intid);
        self.pending.remove(&intid);
        self.taken.insert(intid, vcpu);
    }

    pub(crate) fn give_back(&mut self, vcpu: usize, intid: u32) {
        if self.taken.get(&intid) != Some(&vcpu) {
            return;
        }
        self.taken.remove(&intid);
        if let Some(now_at) = self.place.get(&intid).copied()
            && !self.waits(intid)
            && self.tables[now_at].is_some()
        {
            self.join(intid, now_at, true);
        }
    }

    pub(crate) fn set_table(&mut self, vcpu: usize, table: Option<u64>) {
        self.tables[vcpu] = table;
        if table.is_some() {
            self.configure_all(vcpu);
            return;
        }
        self.waiting[vcpu].clear();
        self.pending.retain(|_, at| *at != vcpu);
        self.taken.retain(|_, at| *at != vcpu);
        self.place.retain(|_, at| *at != vcpu);
    }

    /// Another device table.
    pub(crate) fn no_devices(&mut self) {
        for device in DEVICES {
            self.unmap_events(device.device);
        }
        self.devices.clear();
    }
}
