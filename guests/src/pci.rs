//! PCI functions by their configuration space, which is memory-mapped. [PCI Express Base 6.0 §7.2.2]
//!
//! No firmware ran: BARs have no addresses until the guest gives them some, and decoding is off.

use crate::{mmio, platform};

/// Vendor and device ID.
pub const IDS: usize = 0x00;
/// Command; status in the upper half of the word.
pub const COMMAND: usize = 0x04;
/// The first BAR.
pub const BAR0: usize = 0x10;
/// The interrupt line: a byte for software to keep things in.
pub const INTERRUPT_LINE: usize = 0x3c;
const HEADER_TYPE: usize = 0x0e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_PIN: usize = 0x3d;
/// `COMMAND`: memory is decoded.
pub const MEMORY_SPACE: u16 = 1 << 1;
/// `COMMAND`: the function may master the bus.
pub const BUS_MASTER: u16 = 1 << 2;
/// `COMMAND`: INTx stays silent.
pub const INTERRUPT_DISABLE: u16 = 1 << 10;
/// The capability ID of MSI.
pub const CAP_MSI: u8 = 0x05;
/// The capability ID of MSI-X.
pub const CAP_MSIX: u8 = 0x11;
/// Capabilities that fit into 256 bytes: a longer list goes in circles.
const MOST_CAPABILITIES: usize = 48;

/// A function: bus, device and function number, as in a requester ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function(pub u16);

/// A BAR as it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Bytes; 0 if there is no memory BAR.
    pub bytes: u64,
    /// Whether it takes two registers.
    pub is_64: bool,
}

/// MSI's registers, by offset in configuration space.
#[derive(Clone, Copy, Debug)]
pub struct Msi {
    function: Function,
    at: usize,
    is_64: bool,
}

impl Function {
    /// The functions of bus 0 that answer.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..256).map(Self).filter(|function| {
            let first = Self(function.0 & !7);
            // Functions beyond the first exist only where the first says so.
            function.read32(IDS) != u32::MAX
                && (*function == first || first.read8(HEADER_TYPE) & 0x80 != 0)
        })
    }

    /// Those with these IDs: the device's in the upper half.
    pub fn with_ids(ids: u32) -> impl Iterator<Item = Self> {
        Self::all().filter(move |function| function.read32(IDS) == ids)
    }

    /// Where its configuration space is.
    pub fn config(self) -> usize {
        platform::ECAM + (usize::from(self.0) << 12)
    }

    /// Reads a byte of configuration space.
    pub fn read8(self, at: usize) -> u8 {
        mmio::read8(self.config() + at)
    }

    /// Reads 16 bits, aligned.
    pub fn read16(self, at: usize) -> u16 {
        mmio::read16(self.config() + at)
    }

    /// Reads 32 bits, aligned.
    pub fn read32(self, at: usize) -> u32 {
        mmio::read32(self.config() + at)
    }

    /// Writes a byte.
    pub fn write8(self, at: usize, value: u8) {
        mmio::write8(self.config() + at, value);
    }

    /// Writes 16 bits, aligned.
    pub fn write16(self, at: usize, value: u16) {
        mmio::write16(self.config() + at, value);
    }

    /// Writes 32 bits, aligned.
    pub fn write32(self, at: usize, value: u32) {
        mmio::write32(self.config() + at, value);
    }

    /// Sets the command register. The status beside it clears what it reads as ones, so only these
    /// 16 bits are written.
    pub fn command(self, bits: u16) {
        self.write16(COMMAND, bits);
    }

    /// The interrupt pin: 1 to 4 for A to D, 0 for none.
    pub fn pin(self) -> u8 {
        self.read8(INTERRUPT_PIN)
    }

    /// Finds out the size of BAR `index`, by writing ones; decoding must be off. What it held stays.
    pub fn bar(self, index: usize) -> Bar {
        let at = BAR0 + 4 * index;
        let before = self.read32(at);
        let is_64 = before & 7 == 4 && index < 5;
        self.write32(at, u32::MAX);
        let mut mask = u64::from(self.read32(at) & !0xf) | 0xffff_ffff << 32;
        self.write32(at, before);
        if is_64 {
            let before = self.read32(at + 4);
            self.write32(at + 4, u32::MAX);
            mask = mask & 0xffff_ffff | u64::from(self.read32(at + 4)) << 32;
            self.write32(at + 4, before);
        }
        let absent = before & 1 != 0 || mask & 0xffff_fff0 == 0 && (!is_64 || mask >> 32 == 0);
        Bar {
            bytes: if absent { 0 } else { (!mask).wrapping_add(1) },
            is_64,
        }
    }

    /// Puts BAR `index` somewhere; decoding must be off, and the address aligned to its size. Returns
    /// the address that it then reads as.
    pub fn place(self, index: usize, address: u64) -> u64 {
        let at = BAR0 + 4 * index;
        let is_64 = self.read32(at) & 7 == 4;
        let (low, high) = (address & 0xffff_ffff, address >> 32);
        // Both fit: 32 bits each.
        self.write32(at, u32::try_from(low).unwrap_or(0));
        let mut is_at = u64::from(self.read32(at) & !0xf);
        if is_64 {
            self.write32(at + 4, u32::try_from(high).unwrap_or(0));
            is_at |= u64::from(self.read32(at + 4)) << 32;
        }
        is_at
    }

    /// The first capability with this ID, by its offset.
    pub fn capability(self, id: u8) -> Option<usize> {
        self.capabilities()
            .find(|&(_, found)| found == id)
            .map(|(at, _)| at)
    }

    /// All capabilities: offset and ID. A list that does not end is cut off.
    pub fn capabilities(self) -> impl Iterator<Item = (usize, u8)> {
        let mut next = self.read8(CAPABILITIES) & !3;
        core::iter::from_fn(move || {
            let at = usize::from(next);
            if at < 0x40 {
                return None;
            }
            next = self.read8(at + 1) & !3;
            Some((at, self.read8(at)))
        })
        .take(MOST_CAPABILITIES)
    }

    /// Where its MSI-X table is, with MSI-X on.
    pub fn start_msix(self) -> Option<MsiX> {
        let at = self.capability(CAP_MSIX)?;
        let control = self.read16(at + 2);
        self.write16(at + 2, control | 1 << 15);
        let place = |at| self.read32(at) as usize;
        Some(MsiX {
            bar: place(at + 4) & 7,
            table: place(at + 4) & !7,
            pending: place(at + 8) & !7,
            vectors: usize::from(control & 0x7ff) + 1,
        })
    }

    /// Its MSI capability.
    pub fn msi(self) -> Option<Msi> {
        let at = self.capability(CAP_MSI)?;
        let is_64 = self.read16(at + 2) & 1 << 7 != 0;
        Some(Msi {
            function: self,
            at,
            is_64,
        })
    }
}

/// MSI-X of a function whose table and pending bits are in one BAR.
#[derive(Clone, Copy, Debug)]
pub struct MsiX {
    /// The BAR.
    pub bar: usize,
    /// Where the table is, from the start of the BAR.
    pub table: usize,
    /// Where the pending bits are.
    pub pending: usize,
    /// How many vectors there are.
    pub vectors: usize,
}

impl Msi {
    /// Sets where its one message goes and what it says, and turns it on.
    pub fn enable(self, address: u64, data: u16) {
        let word = |bits: u64| u32::try_from(bits & 0xffff_ffff).unwrap_or(0);
        self.function.write32(self.at + 4, word(address));
        let data_at = if self.is_64 {
            self.function.write32(self.at + 8, word(address >> 32));
            self.at + 0xc
        } else {
            self.at + 8
        };
        self.function.write16(data_at, data);
        self.function.write16(self.at + 2, 1);
    }

    /// Turns it off.
    pub fn disable(self) {
        self.function.write16(self.at + 2, 0);
    }
}
