//! A physical ITS: its tables, and the commands that fill them. [§5.2, §5.3]

use alloc::vec::Vec;

use hal::{Clock, FrameAllocator, Mmio, SharedMemory};
use types::{Address, Pa};

use crate::command::Command;
use crate::{Error, Snoop, attributes};

/// `GITS_TRANSLATER`, the doorbell, in bytes from the start of the ITS.
pub const TRANSLATER: u64 = 0x1_0040;

const CTLR: usize = 0x0;
const TYPER: usize = 0x8;
const CBASER: usize = 0x80;
const CWRITER: usize = 0x88;
const CREADR: usize = 0x90;
const BASER: usize = 0x100;

const ENABLED: u32 = 1;
const QUIESCENT: u32 = 1 << 31;
const VALID: u64 = 1 << 63;

/// Entries of the command queue: 4 KiB.
const ENTRIES: u64 = 128;
/// Commands that fit: one place stays free.
const BATCH: usize = 127;
/// How long commands may take, in µs.
const TIMEOUT_US: u64 = 1_000_000;
/// The largest table: 4 MiB.
const LARGEST_ORDER: u8 = 10;

/// A redistributor, as an ITS names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target(u64);

impl Target {
    /// The field of `MAPC` and `SYNC`: bits 50:16.
    pub(crate) fn field(self) -> u64 {
        self.0
    }
}

#[derive(Clone, Copy, Debug)]
struct Device {
    id: u32,
    table: Pa,
    order: u8,
}

/// A physical ITS.
#[derive(Debug)]
pub struct Its<M, P, F, C> {
    mmio: M,
    memory: P,
    frames: F,
    clock: C,
    typer: u64,
    snoop: Snoop,
    queue: Pa,
    write: u64,
    /// DeviceIDs below this have a place in the device table.
    device_ids: u64,
    devices: Vec<Device>,
    /// Where each collection goes, for the `SYNC` behind its commands.
    collections: Vec<Target>,
    is_lost: bool,
}

/// The smallest block of frames that holds so many bytes.
pub(crate) fn order_for(bytes: u64) -> u8 {
    let frames = bytes.div_ceil(4096).max(1).next_power_of_two();
    frames.trailing_zeros().to_le_bytes()[0]
}

impl<M, P, F, C> Its<M, P, F, C>
where
    M: Mmio,
    P: SharedMemory,
    F: FrameAllocator,
    C: Clock,
{
    /// Turns an ITS off and on again with tables of ours, which route nothing: for DeviceIDs up to
    /// `last_device`, and collections 0 to `targets - 1`.
    ///
    /// # Errors
    /// [`Error`]; it is off.
    pub fn enable(
        mmio: M,
        memory: P,
        frames: F,
        clock: C,
        snoop: Snoop,
        last_device: u32,
    ) -> Result<Self, Error> {
        let typer = mmio.read64(TYPER);
        if typer & 1 == 0 {
            return Err(Error::NoLpis);
        }
        let queue = frames.alloc_zeroed(0)?;
        let mut its = Self {
            mmio,
            memory,
            frames,
            clock,
            typer,
            snoop,
            queue,
            write: 0,
            device_ids: 0,
            devices: Vec::new(),
            collections: Vec::new(),
            is_lost: false,
        };
        its.stop()?;
        its.tables(last_device)?;
        its.start_queue();
        its.mmio
            .write32(CTLR, its.mmio.read32(CTLR) & !QUIESCENT | ENABLED);
        Ok(its)
    }

    fn stop(&self) -> Result<(), Error> {
        let control = self.mmio.read32(CTLR);
        if control & ENABLED != 0 {
            self.mmio.write32(CTLR, control & !ENABLED);
        }
        let end = self.deadline();
        while self.mmio.read32(CTLR) & QUIESCENT == 0 {
            if self.clock.ticks() > end {
                return Err(Error::Register("GITS_CTLR.Quiescent"));
            }
        }
        Ok(())
    }

    fn deadline(&self) -> u64 {
        let limit = self.clock.ticks_of_us(TIMEOUT_US);
        self.clock.ticks().saturating_add(limit)
    }

    /// Gives every table that it wants its memory.
    fn tables(&mut self, last_device: u32) -> Result<(), Error> {
        const DEVICES: u64 = 1;
        const COLLECTIONS: u64 = 4;
        let device_bits = (self.typer >> 13 & 0x1f) + 1;
        if u64::from(last_device) >> device_bits != 0 {
            return Err(Error::DeviceId(last_device));
        }
        for index in 0..8 {
            let at = BASER + 8 * index;
            let found = self.mmio.read64(at);
            let entry = (found >> 48 & 0x1f) + 1;
            let entries = match found >> 56 & 7 {
                DEVICES => u64::from(last_device) + 1,
                // One a CPU; a page holds more than there are CPUs.
                COLLECTIONS => 64,
                _ => {
                    // Nothing of GICv4 is used.
                    self.mmio.write64(at, 0);
                    continue;
                }
            };
            let bytes = self.table(at, found, entry * entries)?;
            if found >> 56 & 7 == DEVICES {
                self.device_ids = bytes / entry;
            }
        }
        if self.device_ids == 0 {
            return Err(Error::DeviceId(last_device));
        }
        Ok(())
    }

    /// Gives one table at least so many bytes; returns how many it has.
    fn table(&mut self, at: usize, found: u64, bytes: u64) -> Result<u64, Error> {
        const PAGES: [(u64, u64); 3] = [(0, 12), (1, 14), (2, 16)];
        const KEPT: u64 = 7 << 56 | 0x1f << 48;
        for (code, shift) in PAGES {
            let count = bytes.div_ceil(1 << shift).max(1);
            if count > 256 {
                continue;
            }
            let bytes = count << shift;
            let order = order_for(bytes);
            if order > LARGEST_ORDER {
                break;
            }
            let block = self.frames.alloc_zeroed(order)?;
            self.memory.clean_to_memory(block, 4096 << order);
            for snoop in [self.snoop, Snoop::NonCoherent] {
                let (cache, share) = attributes(snoop);
                let value = VALID
                    | found & KEPT
                    | cache << 59
                    | share << 10
                    | block.bits()
                    | code << 8
                    | (count - 1);
                self.mmio.write64(at, value);
                let read = self.mmio.read64(at);
                if read >> 8 & 3 != code {
                    break;
                }
                if read >> 10 & 3 == share {
                    return Ok(bytes);
                }
            }
            self.mmio.write64(at, 0);
            self.frames.free(block, order);
        }
        Err(Error::OutOfMemory)
    }

    fn start_queue(&mut self) {
        self.memory.clean_to_memory(self.queue, 4096);
        let base = |snoop| {
            let (cache, share) = attributes(snoop);
            VALID | cache << 59 | share << 10 | self.queue.bits()
        };
        self.mmio.write64(CBASER, base(self.snoop));
        if self.snoop == Snoop::Coherent && self.mmio.read64(CBASER) >> 10 & 3 == 0 {
            self.snoop = Snoop::NonCoherent;
            self.mmio.write64(CBASER, base(self.snoop));
        }
        self.mmio.write64(CWRITER, 0);
        self.write = 0;
    }

    /// How this ITS names a redistributor: by its number (`GICR_TYPER.Processor_Number`) or by its
    /// address. [§12.19.12, PTA]
    pub fn target(&self, number: u16, redistributor: Pa) -> Target {
        const PTA: u64 = 1 << 19;
        if self.typer & PTA == 0 {
            Target(u64::from(number) << 16)
        } else {
            Target(redistributor.bits() & 0x7_ffff_ffff_0000)
        }
    }

    /// Events a device can have.
    pub fn most_events(&self) -> u32 {
        1 << ((self.typer >> 8 & 0x1f) + 1).min(31)
    }

    /// Whether it did not answer in time: then nothing is known about what it routes.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Carries commands out.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Stalled`]: it is not used any more.
    fn send(&mut self, commands: &[Command]) -> Result<(), Error> {
        if self.is_lost {
            return Err(Error::Timeout);
        }
        // The queue is empty before each batch.
        for batch in commands.chunks(BATCH) {
            for command in batch {
                let at = self
                    .queue
                    .checked_add(self.write * Command::BYTES)
                    .ok_or(Error::NotMemory)?;
                for (offset, word) in (0_u64..).step_by(8).zip(command.encode()) {
                    let at = at.checked_add(offset).ok_or(Error::NotMemory)?;
                    self.memory.write_u64(at, word.to_le())?;
                }
                self.write = (self.write + 1) % ENTRIES;
            }
            match self.snoop {
                Snoop::Coherent => self.memory.publish(),
                Snoop::NonCoherent => self.memory.clean_to_memory(self.queue, 4096),
            }
            self.mmio.write64(CWRITER, self.write * Command::BYTES);
            let outcome = self.consumed();
            if outcome.is_err() {
                self.is_lost = true;
                return outcome;
            }
        }
        Ok(())
    }

    fn consumed(&self) -> Result<(), Error> {
        const STALLED: u64 = 1;
        let end = self.deadline();
        loop {
            let read = self.mmio.read64(CREADR);
            if read & STALLED != 0 {
                return Err(Error::Stalled);
            }
            if read == self.write * Command::BYTES {
                return Ok(());
            }
            if self.clock.ticks() > end {
                return Err(Error::Timeout);
            }
        }
    }

    /// Makes the next collection, whose number is returned, of a redistributor.
    ///
    /// # Errors
    /// [`Error`].
    pub fn add_collection(&mut self, target: Target) -> Result<u16, Error> {
        let collection = u16::try_from(self.collections.len()).unwrap_or(u16::MAX);
        self.send(&[
            Command::MapCollection { collection, target },
            Command::Sync { target },
            Command::InvalidateAll { collection },
            Command::Sync { target },
        ])?;
        self.collections.push(target);
        Ok(collection)
    }

    /// Has the configuration of a collection's LPIs read again.
    ///
    /// # Errors
    /// [`Error`].
    pub fn invalidate_all(&mut self, collection: u16) -> Result<(), Error> {
        let target = self.collections.get(usize::from(collection));
        let target = *target.ok_or(Error::NoLpis)?;
        self.send(&[
            Command::InvalidateAll { collection },
            Command::Sync { target },
        ])
    }

    /// Gives a device events 0 to `events - 1`, none of which is anything yet.
    ///
    /// # Errors
    /// [`Error::DeviceId`], [`Error::Events`], [`Error::OutOfMemory`]; nothing has changed.
    pub fn map_device(&mut self, device: u32, events: u32) -> Result<(), Error> {
        if u64::from(device) >= self.device_ids || self.devices.iter().any(|d| d.id == device) {
            return Err(Error::DeviceId(device));
        }
        if events > self.most_events() {
            return Err(Error::Events(events));
        }
        let count = events.next_power_of_two().max(2);
        let entry = (self.typer >> 4 & 0xf) + 1;
        let order = order_for(u64::from(count) * entry);
        self.devices
            .try_reserve(1)
            .map_err(|_| Error::OutOfMemory)?;
        let table = self.frames.alloc_zeroed(order)?;
        self.memory.clean_to_memory(table, 4096 << order);
        self.devices.push(Device {
            id: device,
            table,
            order,
        });
        let bits = count.trailing_zeros().to_le_bytes()[0];
        self.send(&[Command::MapDevice {
            device,
            bits,
            table,
        }])
    }

    /// Takes a device's events away. None of its messages becomes an interrupt any more.
    ///
    /// # Errors
    /// [`Error`] when it did not follow; its table is never used for anything else then.
    pub fn unmap_device(&mut self, device: u32) -> Result<(), Error> {
        let Some(at) = self.devices.iter().position(|d| d.id == device) else {
            return Ok(());
        };
        let mut commands = Vec::from([Command::UnmapDevice { device }]);
        commands.extend(self.syncs());
        self.send(&commands)?;
        let gone = self.devices.swap_remove(at);
        self.frames.free(gone.table, gone.order);
        Ok(())
    }

    fn syncs(&self) -> impl Iterator<Item = Command> + '_ {
        let targets = self.collections.iter();
        targets.map(|target| Command::Sync { target: *target })
    }

    /// Makes events of a device LPIs: each entry is (EventID, INTID, collection).
    ///
    /// # Errors
    /// [`Error`].
    pub fn map_events(&mut self, device: u32, events: &[(u32, u32, u16)]) -> Result<(), Error> {
        let mut commands: Vec<Command> = events
            .iter()
            .map(|(event, lpi, collection)| Command::MapEvent {
                device,
                event: *event,
                lpi: *lpi,
                collection: *collection,
            })
            .collect();
        commands.extend(self.syncs());
        self.send(&commands)
    }

    /// Forgets what is pending of a device's events 0 to `events - 1`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn clear(&mut self, device: u32, events: u32) -> Result<(), Error> {
        let mut commands: Vec<Command> = (0..events)
            .map(|event| Command::Clear { device, event })
            .collect();
        commands.extend(self.syncs());
        self.send(&commands)
    }
}
