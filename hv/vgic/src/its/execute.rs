//! What commands do.

use types::Ipa;

use super::command::Command;
use super::pending::Pending;
use super::{COLLECTIONS, COSTLY, CommandFault, GuestMemory, INTID_BITS, State};
use crate::{FIRST_LPI, Kicks, bits::low};

impl State {
    pub(super) fn has_work(&self) -> bool {
        !self.unread.is_empty() || self.registers.next_command().is_some()
    }

    /// Does one command or reads one configuration table. Returns its cost, and whose LPIs changed;
    /// `None` when there is nothing to do.
    pub(super) fn step(
        &mut self,
        memory: &dyn GuestMemory,
        pending: &Pending,
    ) -> Option<(u32, Kicks)> {
        if let Some(vcpu) = self.unread.next() {
            let kicks = u8::try_from(vcpu).map_or(Kicks::NONE, |vcpu| {
                self.configure_all(vcpu, memory, pending)
            });
            return Some((COSTLY, kicks));
        }
        let at = self.registers.next_command()?;
        let mut bytes = [0; 32];
        let read = Ipa::new(at)
            .ok()
            .and_then(|ipa| memory.read(ipa, &mut bytes).ok());
        if read.is_none() {
            self.registers.stall();
            self.fault(CommandFault::NotRam { at });
            return Some((1, Kicks::NONE));
        }
        self.registers.advance();
        let done =
            Command::decode(&bytes).and_then(|command| self.execute(command, memory, pending));
        Some(done.unwrap_or_else(|fault| {
            self.fault(fault);
            (1, Kicks::NONE)
        }))
    }

    fn fault(&mut self, fault: CommandFault) {
        self.faults = self.faults.saturating_add(1);
        self.last_fault = Some(fault);
    }

    fn execute(
        &mut self,
        command: Command,
        memory: &dyn GuestMemory,
        pending: &Pending,
    ) -> Result<(u32, Kicks), CommandFault> {
        let mut kicks = Kicks::NONE;
        let mut cost = 1;
        match command {
            Command::MapDevice { device, bits } => {
                self.check_device(device)?;
                if bits > 16 {
                    return Err(CommandFault::EventBits { bits });
                }
                kicks = self.unmap_device(device, pending);
                self.tables.map_device(device, bits);
                cost = COSTLY;
            }
            Command::UnmapDevice { device } => {
                self.check_device(device)?;
                kicks = self.unmap_device(device, pending);
                cost = COSTLY;
            }
            Command::MapCollection { collection, vcpu } => {
                self.check_collection(collection)?;
                let vcpu = self.vcpu(vcpu)?;
                self.tables.map_collection(collection, Some(vcpu))?;
                kicks = self.configure_all(vcpu, memory, pending);
                cost = COSTLY;
            }
            Command::UnmapCollection { collection } => {
                self.check_collection(collection)?;
                self.tables.map_collection(collection, None)?;
            }
            Command::MapEvent {
                device,
                event,
                intid,
                collection,
            } => {
                self.check_device(device)?;
                self.check_collection(collection)?;
                let (lpi, old) = self.tables.map_event(device, event, intid, collection)?;
                let mut open = pending.open();
                kicks = match (old, self.tables.vcpu_of(collection)) {
                    (Some(same), Some(vcpu)) if same == lpi => open.move_to(lpi, vcpu),
                    (Some(old), _) => open.forget(old),
                    (None, _) => Kicks::NONE,
                };
                drop(open);
                kicks = kicks.union(self.configure(lpi, collection, memory, pending));
            }
            Command::Move {
                device,
                event,
                collection,
            } => {
                let route = self.tables.route(device, event)?;
                let (Some(_), Some(to)) = (route.vcpu, self.tables.vcpu_of(collection)) else {
                    return Err(CommandFault::Collection { collection });
                };
                self.tables.move_event(device, event, collection);
                kicks = pending.open().move_to(route.lpi, to);
            }
            Command::MoveAll { from, to } => {
                let (from, to) = (self.vcpu(from)?, self.vcpu(to)?);
                if from != to {
                    kicks = pending.open().move_all(from, to);
                }
                cost = COSTLY;
            }
            Command::Interrupt { device, event } => {
                let (lpi, vcpu) = self.target(device, event)?;
                kicks = pending.open().pend(lpi, vcpu);
            }
            Command::Clear { device, event } => {
                let (lpi, _) = self.target(device, event)?;
                kicks = pending.open().clear(lpi);
            }
            Command::Discard { device, event } => {
                let route = self.tables.route(device, event)?;
                self.tables.unmap_event(device, event);
                kicks = pending.open().forget(route.lpi);
            }
            Command::Invalidate { device, event } => {
                let route = self.tables.route(device, event)?;
                kicks = self.configure(route.lpi, route.collection, memory, pending);
            }
            Command::InvalidateAll { collection } => {
                let vcpu = self.tables.vcpu_of(collection);
                let vcpu = vcpu.ok_or(CommandFault::Collection { collection })?;
                kicks = self.configure_all(vcpu, memory, pending);
                cost = COSTLY;
            }
            Command::Sync => {}
        }
        Ok((cost, kicks))
    }

    fn check_device(&self, device: u32) -> Result<(), CommandFault> {
        if u64::from(device) < self.registers.devices.entries() && self.tables.has_device(device) {
            Ok(())
        } else {
            Err(CommandFault::Device { device })
        }
    }

    fn check_collection(&self, collection: u16) -> Result<(), CommandFault> {
        let room = self.registers.collections.entries();
        if u64::from(collection) < room && usize::from(collection) < COLLECTIONS {
            Ok(())
        } else {
            Err(CommandFault::Collection { collection })
        }
    }

    fn vcpu(&self, number: u64) -> Result<u8, CommandFault> {
        u8::try_from(number)
            .ok()
            .filter(|vcpu| usize::from(*vcpu) < self.lpi_tables.len())
            .ok_or(CommandFault::Vcpu { vcpu: number })
    }

    /// The LPI of an event and the vCPU it goes to.
    fn target(&self, device: u32, event: u32) -> Result<(u16, u8), CommandFault> {
        let route = self.tables.route(device, event)?;
        let collection = route.collection;
        let vcpu = route.vcpu.ok_or(CommandFault::Collection { collection })?;
        Ok((route.lpi, vcpu))
    }

    fn unmap_device(&mut self, device: u32, pending: &Pending) -> Kicks {
        let mut kicks = Kicks::NONE;
        let mut open = pending.open();
        self.tables
            .unmap_device(device, |lpi| kicks = kicks.union(open.forget(lpi)));
        kicks
    }

    /// Reads the configuration of one LPI from the table of the vCPU its collection is at.
    fn configure(
        &self,
        lpi: u16,
        collection: u16,
        memory: &dyn GuestMemory,
        pending: &Pending,
    ) -> Kicks {
        let mut config = [0];
        if let Some(vcpu) = self.tables.vcpu_of(collection) {
            self.read_configuration(vcpu, lpi, memory, &mut config);
        }
        pending.open().configure(lpi, config[0])
    }

    /// Reads the configuration of all LPIs in use from a vCPU's table: 64 bytes at most for each of
    /// them.
    fn configure_all(&self, vcpu: u8, memory: &dyn GuestMemory, pending: &Pending) -> Kicks {
        let mut kicks = Kicks::NONE;
        for (index, word) in self.tables.used_words() {
            let first = index.wrapping_shl(6);
            let mut configs = [0; 64];
            self.read_configuration(vcpu, first, memory, &mut configs);
            let mut open = pending.open();
            for (bit, config) in configs.into_iter().enumerate() {
                let bit = u16::try_from(bit).unwrap_or(0);
                if word.wrapping_shr(bit.into()) & 1 != 0 {
                    kicks = kicks.union(open.configure(first.wrapping_add(bit), config));
                }
            }
        }
        kicks
    }

    /// Reads configuration bytes from LPI `first` on. What cannot be read stays as it is: zero,
    /// which is disabled.
    fn read_configuration(&self, vcpu: u8, first: u16, memory: &dyn GuestMemory, into: &mut [u8]) {
        let Some(Some(tables)) = self.lpi_tables.get(usize::from(vcpu)) else {
            return;
        };
        // `IDbits` is one less than the number of bits.
        let bits = (low(tables.propbaser) & 0x1f)
            .wrapping_add(1)
            .min(INTID_BITS);
        let last = u64::from(first)
            .saturating_add(u64::from(FIRST_LPI))
            .saturating_add(into.len() as u64);
        if last > 1_u64.wrapping_shl(bits) {
            return;
        }
        let base = tables.propbaser & 0xf_ffff_ffff_f000;
        let Ok(at) = Ipa::new(base.wrapping_add(first.into())) else {
            return;
        };
        if memory.read(at, into).is_err() {
            into.fill(0);
        }
    }
}
