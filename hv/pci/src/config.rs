//! Access to configuration space.

use hal::Mmio;
use types::Bdf;

use crate::host::BusRange;

/// How much configuration space each function has behind a [`ConfigSpace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// 256 bytes: the conventional header and capability list.
    Conventional,
    /// 4096 bytes: extended capabilities too.
    Extended,
}

impl Extent {
    /// Bytes of configuration space of one function.
    #[must_use]
    pub const fn bytes(self) -> u16 {
        match self {
            Self::Conventional => 256,
            Self::Extended => 4096,
        }
    }
}

/// The configuration space of everything below one host bridge.
///
/// One value is one host bridge (one PCI segment, or one `ibm,read-pci-config` BUID): a [`Bdf`] is
/// only unique within it. Accesses cannot fail: a read of a function or register that is not there
/// gives all ones, a write to it does nothing, which is what the bus itself does. Values are
/// little-endian as PCI defines them. Offsets are multiples of the width and below
/// [`Extent::bytes`]; others count as registers that are not there.
///
/// Over RTAS (PAPR) an implementation holds the PHB's BUID and makes one
/// `ibm,read-pci-config` / `ibm,write-pci-config` call an access: config address =
/// `(offset & 0xf00) << 20 | bdf << 8 | offset & 0xff`, then BUID high, BUID low, width; a status
/// other than 0 is a read of all ones.
pub trait ConfigSpace {
    /// How far each function's registers reach.
    fn extent(&self) -> Extent;
    /// Reads 8 bits.
    fn read8(&self, bdf: Bdf, offset: u16) -> u8;
    /// Reads 16 bits.
    fn read16(&self, bdf: Bdf, offset: u16) -> u16;
    /// Reads 32 bits.
    fn read32(&self, bdf: Bdf, offset: u16) -> u32;
    /// Writes 8 bits.
    fn write8(&self, bdf: Bdf, offset: u16, value: u8);
    /// Writes 16 bits.
    fn write16(&self, bdf: Bdf, offset: u16, value: u16);
    /// Writes 32 bits.
    fn write32(&self, bdf: Bdf, offset: u16, value: u32);
}

/// The enhanced configuration access mechanism: 4 KiB of memory a function, 1 MiB a bus.
///
/// Offset 0 of the registers is the first bus of the range, as in the `reg` of a
/// `pci-host-ecam-generic` node.
#[derive(Debug)]
pub struct Ecam<M> {
    registers: M,
    buses: BusRange,
}

impl<M: Mmio> Ecam<M> {
    /// Access to `buses` through `registers`, which are at least `buses.count()` MiB.
    #[must_use]
    pub fn new(registers: M, buses: BusRange) -> Self {
        Self { registers, buses }
    }

    fn place(&self, bdf: Bdf, offset: u16, width: u16) -> Option<usize> {
        let inside = offset < Extent::Extended.bytes() && offset & width.wrapping_sub(1) == 0;
        if !inside || !self.buses.contains(bdf.bus()) {
            return None;
        }
        let first = u32::from(self.buses.first()) << 20;
        let at = (u32::from(bdf.bits()) << 12).checked_sub(first)? | u32::from(offset);
        usize::try_from(at).ok()
    }
}

impl<M: Mmio> ConfigSpace for Ecam<M> {
    fn extent(&self) -> Extent {
        Extent::Extended
    }

    fn read8(&self, bdf: Bdf, offset: u16) -> u8 {
        let at = self.place(bdf, offset, 1);
        at.map_or(u8::MAX, |at| self.registers.read8(at))
    }

    fn read16(&self, bdf: Bdf, offset: u16) -> u16 {
        let at = self.place(bdf, offset, 2);
        at.map_or(u16::MAX, |at| self.registers.read16(at))
    }

    fn read32(&self, bdf: Bdf, offset: u16) -> u32 {
        let at = self.place(bdf, offset, 4);
        at.map_or(u32::MAX, |at| self.registers.read32(at))
    }

    fn write8(&self, bdf: Bdf, offset: u16, value: u8) {
        if let Some(at) = self.place(bdf, offset, 1) {
            self.registers.write8(at, value);
        }
    }

    fn write16(&self, bdf: Bdf, offset: u16, value: u16) {
        if let Some(at) = self.place(bdf, offset, 2) {
            self.registers.write16(at, value);
        }
    }

    fn write32(&self, bdf: Bdf, offset: u16, value: u32) {
        if let Some(at) = self.place(bdf, offset, 4) {
            self.registers.write32(at, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use hal::fake::{Access, FakeMmio};
    use types::Bdf;

    use super::{ConfigSpace, Ecam};
    use crate::BusRange;

    #[test]
    fn ecam_places_bus_device_function_and_counts_from_the_first_bus() {
        let ecam = Ecam::new(FakeMmio::new(), BusRange::new(0x40, 0x41).unwrap());
        ecam.write16(Bdf::new(0x41, 2, 3).unwrap(), 0x104, 7);
        assert_eq!(ecam.registers.take_log(), [Access::Write(0x11_3104, 2, 7)]);
    }

    #[test]
    fn what_is_not_there_reads_as_all_ones_and_is_never_touched() {
        let ecam = Ecam::new(FakeMmio::new(), BusRange::new(1, 2).unwrap());
        for (bus, offset) in [(0, 0), (3, 0), (1, 4096), (1, 2)] {
            let bdf = Bdf::new(bus, 0, 0).unwrap();
            assert_eq!(ecam.read32(bdf, offset), u32::MAX);
            ecam.write32(bdf, offset, 1);
        }
        assert_eq!(ecam.registers.take_log(), []);
        assert_eq!(ecam.read32(Bdf::new(1, 0, 0).unwrap(), 0), 0);
    }
}
