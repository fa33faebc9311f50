//! The ITS and LPIs, as a guest drives them: tables and queue in memory of its own. [IHI 0069 §5]

use crate::{cpu, mmio, platform};

/// The first LPI.
pub const FIRST_LPI: u32 = 8192;
/// Bits of an INTID: LPIs are 8192 to 16383. More than that not every ITS has.
const INTID_BITS: u64 = 14;

/// `GITS_CTLR`.
pub const CTLR: usize = 0x0000;
/// `GITS_TYPER`.
pub const TYPER: usize = 0x0008;
/// `GITS_CBASER`.
pub const CBASER: usize = 0x0080;
/// `GITS_CWRITER`.
pub const CWRITER: usize = 0x0088;
/// `GITS_CREADR`.
pub const CREADR: usize = 0x0090;
/// `GITS_BASER0`; eight of them.
pub const BASER: usize = 0x0100;
const GICR_CTLR: usize = 0x0000;
const GICR_PROPBASER: usize = 0x0070;
const GICR_PENDBASER: usize = 0x0078;
const ENABLE: u32 = 1;
const ENABLE_LPIS: u32 = 1;
const VALID: u64 = 1 << 63;
/// Inner write-back, and inner shareable, in a `CBASER` and a `BASER`.
const CACHED: u64 = 7 << 59 | 1 << 10;
/// 64 KiB pages, in a `BASER`.
const PAGES_64K: u64 = 2 << 8;
/// `GICR_PENDBASER`: the table is zero.
const PENDING_IS_ZERO: u64 = 1 << 62;
/// Bytes of the queue.
pub const QUEUE_BYTES: u64 = 0x1_0000;
/// Bytes of a command.
pub const COMMAND_BYTES: u64 = 32;
/// Ticks that a batch of commands is waited for: a second of QEMU's fastest counter, and more of others.
const PATIENCE: u64 = 1_000_000_000;
/// Priority 0xa0, enabled.
const LPI_ENABLED: u8 = 0xa1;

/// Where the tables are: 64 KiB boundaries, outside of the image. They take [`AREA_BYTES`].
#[derive(Clone, Copy, Debug)]
pub struct Area(pub u64);

/// Bytes of an [`Area`].
pub const AREA_BYTES: u64 = 0x20_0000;

impl Area {
    /// The command queue.
    pub const fn queue(self) -> u64 {
        self.0
    }

    /// A byte for each LPI.
    pub const fn configuration(self) -> u64 {
        self.0 + 0x1_0000
    }

    const fn pending(self, cpu: u64) -> u64 {
        self.0 + 0x2_0000 + 0x1_0000 * (cpu % 8)
    }

    const fn devices(self) -> u64 {
        self.0 + 0x10_0000
    }

    const fn collections(self) -> u64 {
        self.0 + 0x18_0000
    }

    /// The events of a device: 4 KiB for each of the first 16.
    pub const fn events(self, index: u64) -> u64 {
        self.0 + 0x19_0000 + 0x1000 * (index % 16)
    }
}

/// A command.
pub type Command = [u64; 4];

/// Commands by name. [IHI 0069 §5.3]
pub mod command {
    use super::{Command, VALID};

    /// `MAPD`: a device has events 0 to 2^`bits` - 1, in a table at `events`.
    pub const fn mapd(device: u32, events: u64, bits: u64) -> Command {
        [(device as u64) << 32 | 0x08, bits - 1, VALID | events, 0]
    }

    /// `MAPD` without `V`: the device has none.
    pub const fn unmapd(device: u32) -> Command {
        [(device as u64) << 32 | 0x08, 0, 0, 0]
    }

    /// `MAPC`: a collection goes to a CPU, by number.
    pub const fn mapc(collection: u16, cpu: u64) -> Command {
        [0x09, 0, VALID | cpu << 16 | collection as u64, 0]
    }

    /// `MAPTI`.
    pub const fn mapti(device: u32, event: u32, lpi: u32, collection: u16) -> Command {
        let ids = (lpi as u64) << 32 | event as u64;
        [(device as u64) << 32 | 0x0a, ids, collection as u64, 0]
    }

    /// `MOVI`.
    pub const fn movi(device: u32, event: u32, collection: u16) -> Command {
        [
            (device as u64) << 32 | 0x01,
            event as u64,
            collection as u64,
            0,
        ]
    }

    /// `INT`, `CLEAR`, `DISCARD`, `INV`: commands about an event alone.
    pub const fn about(code: u64, device: u32, event: u32) -> Command {
        [(device as u64) << 32 | code, event as u64, 0, 0]
    }

    /// `INVALL`.
    pub const fn invall(collection: u16) -> Command {
        [0x0d, 0, collection as u64, 0]
    }

    /// `SYNC`, for a CPU.
    pub const fn sync(cpu: u64) -> Command {
        [0x05, 0, cpu << 16, 0]
    }

    /// Code of `INT`.
    pub const INT: u64 = 0x03;
    /// Code of `CLEAR`.
    pub const CLEAR: u64 = 0x04;
    /// Code of `INV`.
    pub const INV: u64 = 0x0c;
    /// Code of `DISCARD`.
    pub const DISCARD: u64 = 0x0f;
}

/// The queue does not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// `GITS_CREADR`.
    pub read: u64,
    /// `GITS_CWRITER`.
    pub write: u64,
}

/// The ITS.
#[derive(Debug)]
pub struct Its {
    area: Area,
    write: u64,
}

impl Its {
    /// Turns it off, gives it tables, and turns it on. Nothing is mapped.
    pub fn start(area: Area) -> Self {
        let its = platform::ITS;
        mmio::write32(its + CTLR, 0);
        for index in 0..8 {
            let register = its + BASER + 8 * index;
            let found = mmio::read64(register);
            // Type and entry size are the ITS's own. Devices need 8 x 64 KiB, for 16 bits of eight bytes.
            let (at, pages) = match found >> 56 & 7 {
                1 => (area.devices(), 8),
                4 => (area.collections(), 1),
                _ => continue,
            };
            clear(at, pages << 16);
            mmio::write64(register, VALID | CACHED | at | PAGES_64K | (pages - 1));
        }
        let pages = QUEUE_BYTES / 4096;
        mmio::write64(its + CBASER, VALID | CACHED | area.queue() | (pages - 1));
        mmio::write64(its + CWRITER, 0);
        mmio::barrier();
        mmio::write32(its + CTLR, ENABLE);
        Self { area, write: 0 }
    }

    /// Turns LPIs on for this CPU. They cannot be turned off again everywhere. Returns whether they are
    /// on: a CPU that came on anew has them already.
    pub fn start_lpis(area: Area) -> bool {
        let frame = platform::GICR + cpu::index() * platform::GICR_STRIDE;
        if mmio::read32(frame + GICR_CTLR) & ENABLE_LPIS == 0 {
            if cpu::index() == 0 {
                clear(area.configuration(), 1 << INTID_BITS);
            }
            let pending = area.pending(cpu::index() as u64);
            clear(pending, 0x1_0000);
            mmio::write64(
                frame + GICR_PROPBASER,
                area.configuration() | 7 << 7 | 1 << 10 | (INTID_BITS - 1),
            );
            mmio::write64(
                frame + GICR_PENDBASER,
                pending | 7 << 7 | 1 << 10 | PENDING_IS_ZERO,
            );
            mmio::barrier();
            mmio::write32(frame + GICR_CTLR, ENABLE_LPIS);
        }
        mmio::read32(frame + GICR_CTLR) & ENABLE_LPIS != 0
    }

    /// Lets an LPI in or keeps it out, in the table; the ITS needs `INV` to know.
    pub fn configure(&self, lpi: u32, enabled: bool) {
        let at = self.area.configuration() + u64::from(lpi - FIRST_LPI);
        let byte = if enabled {
            LPI_ENABLED
        } else {
            LPI_ENABLED & !1
        };
        mmio::write8(usize::try_from(at).unwrap_or(0), byte);
    }

    /// Puts a command into the queue. It is carried out by [`Its::flush`].
    pub fn add(&mut self, command: Command) {
        let at = self.area.queue() + self.write;
        for (index, word) in command.into_iter().enumerate() {
            mmio::write64(usize::try_from(at).unwrap_or(0) + 8 * index, word);
        }
        self.write = (self.write + COMMAND_BYTES) % QUEUE_BYTES;
    }

    /// Tells the ITS about what is in the queue, and does not wait.
    pub fn ring(&self) {
        mmio::barrier();
        mmio::write64(platform::ITS + CWRITER, self.write);
    }

    /// Has the queue carried out.
    ///
    /// # Errors
    /// It is not, in time.
    pub fn flush(&mut self) -> Result<(), Stuck> {
        self.ring();
        let end = cpu::now().saturating_add(PATIENCE);
        loop {
            let read = mmio::read64(platform::ITS + CREADR);
            if read == self.write {
                return Ok(());
            }
            if cpu::now() >= end {
                return Err(Stuck {
                    read,
                    write: self.write,
                });
            }
            cpu::give_way();
        }
    }

    /// Carries out commands and a `SYNC` for CPU 0.
    ///
    /// # Errors
    /// As [`Its::flush`].
    pub fn run(&mut self, commands: &[Command]) -> Result<(), Stuck> {
        for &command in commands {
            self.add(command);
        }
        self.add(command::sync(0));
        self.flush()
    }

    /// Maps one event of a device to an LPI of CPU 0 (collection 0), enabled.
    ///
    /// # Errors
    /// As [`Its::flush`].
    pub fn route(&mut self, device: u32, index: u64, event: u32, lpi: u32) -> Result<(), Stuck> {
        let events = self.area.events(index);
        clear(events, 0x1000);
        self.configure(lpi, true);
        self.run(&[
            command::mapc(0, 0),
            command::mapd(device, events, 5),
            command::mapti(device, event, lpi, 0),
            command::about(command::INV, device, event),
        ])
    }
}

/// Zeroes memory outside of the image; whole words.
pub fn clear(at: u64, bytes: u64) {
    let start = usize::try_from(at).unwrap_or(0);
    for offset in (0..usize::try_from(bytes).unwrap_or(0)).step_by(8) {
        mmio::write64(start + offset, 0);
    }
}

/// The LPI's place from 0, of an INTID that is one.
pub fn lpi_index(intid: u32) -> Option<usize> {
    let index = intid.checked_sub(FIRST_LPI)?;
    (index < 1 << INTID_BITS).then_some(index as usize)
}
