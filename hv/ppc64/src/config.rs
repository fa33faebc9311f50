//! PCI configuration space by RTAS.

use pci::{ConfigSpace, Extent};
use types::Bdf;

use crate::rtas::Rtas;

/// The configuration space below one host bridge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RtasConfig<'r> {
    rtas: &'r Rtas,
    buid: u64,
}

impl<'r> RtasConfig<'r> {
    /// That of the host bridge with this bus unit ID.
    ///
    /// # Safety
    /// The devices below it must be ours to configure, and none may have been given away.
    pub(crate) unsafe fn new(rtas: &'r Rtas, buid: u64) -> Self {
        Self { rtas, buid }
    }

    fn read(&self, bdf: Bdf, offset: u16, bytes: u32) -> u32 {
        let value = self
            .rtas
            .read_config(self.buid, address(bdf, offset), bytes);
        // A register that is not there reads as all ones on the bus itself.
        value.unwrap_or(u32::MAX)
    }

    fn write(&self, bdf: Bdf, offset: u16, bytes: u32, value: u32) {
        let address = address(bdf, offset);
        // SAFETY: the devices are ours by the promise of `new`. A register that is not there takes
        // no write on the bus either.
        let _ = unsafe { self.rtas.write_config(self.buid, address, bytes, value) };
    }
}

/// Bus, device, function and the low half of the offset where conventional PCI has them, the rest
/// of the offset in the top nibble. [LoPAPR §7.3.5]
fn address(bdf: Bdf, offset: u16) -> u32 {
    let offset = u32::from(offset);
    (offset & 0xf00) << 20 | u32::from(bdf.bits()) << 8 | offset & 0xff
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the platform gives as many bytes as were asked for"
)]
impl ConfigSpace for RtasConfig<'_> {
    fn extent(&self) -> Extent {
        Extent::Extended
    }

    fn read8(&self, bdf: Bdf, offset: u16) -> u8 {
        self.read(bdf, offset, 1) as u8
    }

    fn read16(&self, bdf: Bdf, offset: u16) -> u16 {
        self.read(bdf, offset, 2) as u16
    }

    fn read32(&self, bdf: Bdf, offset: u16) -> u32 {
        self.read(bdf, offset, 4)
    }

    fn write8(&self, bdf: Bdf, offset: u16, value: u8) {
        self.write(bdf, offset, 1, value.into());
    }

    fn write16(&self, bdf: Bdf, offset: u16, value: u16) {
        self.write(bdf, offset, 2, value.into());
    }

    fn write32(&self, bdf: Bdf, offset: u16, value: u32) {
        self.write(bdf, offset, 4, value);
    }
}
