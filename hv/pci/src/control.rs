//! What a running device is told: to master the bus or not, to raise its pin, where its messages
//! go.

use hal::Mmio;
use types::Bdf;

use crate::capability::{Msi, MsiX};
use crate::config::ConfigSpace;
use crate::error::Error;
use crate::regs;
use crate::topology::Topology;

/// Whether a function may do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// It may.
    Granted,
    /// It may not.
    Denied,
}

/// Lets a function master the bus, or stops it. To let it, all bridges above forward requests too;
/// they go on doing so, for whoever else is below.
///
/// Only call it to grant once the IOMMU is ready for every requester ID of the function.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::NotTaken`] when the register does not take the value.
pub fn set_mastering(
    space: &dyn ConfigSpace,
    topology: &Topology,
    bdf: Bdf,
    permission: Permission,
) -> Result<(), Error> {
    topology.function(bdf).ok_or(Error::NotFound(bdf))?;
    if permission == Permission::Granted {
        for bridge in topology.bridges_above(bdf) {
            set_command(space, bridge.bdf, regs::COMMAND_MASTER, permission)?;
        }
    }
    set_command(space, bdf, regs::COMMAND_MASTER, permission)
}

/// Lets a function raise its interrupt pin, or stops it.
///
/// # Errors
/// [`Error::NotTaken`] when the register does not take the value.
pub fn set_pin(space: &dyn ConfigSpace, bdf: Bdf, permission: Permission) -> Result<(), Error> {
    // The bit switches the pin off.
    let bit = match permission {
        Permission::Granted => Permission::Denied,
        Permission::Denied => Permission::Granted,
    };
    set_command(space, bdf, regs::COMMAND_INTX_OFF, bit)
}

/// Whether a function has a reason to raise its interrupt pin, whether or not it may
/// [PCI Express Base 6.0 §7.5.1.1.4].
#[must_use]
pub fn wants_pin(space: &dyn ConfigSpace, bdf: Bdf) -> bool {
    space.read16(bdf, regs::STATUS) & regs::STATUS_INTX != 0
}

fn set_command(
    space: &dyn ConfigSpace,
    bdf: Bdf,
    bit: u16,
    permission: Permission,
) -> Result<(), Error> {
    change16(
        space,
        bdf,
        regs::COMMAND,
        bit,
        match permission {
            Permission::Granted => bit,
            Permission::Denied => 0,
        },
    )
}

/// Gives the bits of `mask` in a register without write-one-to-clear bits a value.
fn change16(
    space: &dyn ConfigSpace,
    bdf: Bdf,
    offset: u16,
    mask: u16,
    value: u16,
) -> Result<(), Error> {
    let found = space.read16(bdf, offset);
    if found & mask != value {
        space.write16(bdf, offset, found & !mask | value);
    }
    if space.read16(bdf, offset) & mask == value {
        Ok(())
    } else {
        Err(Error::NotTaken { bdf, offset })
    }
}

/// Where a message-signalled interrupt is written, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The bus address, a multiple of 4.
    pub address: u64,
    /// The data.
    pub data: u32,
}

impl Msi {
    const ENABLE: u16 = 1 << 0;
    const VECTORS: u16 = 7 << 4;

    fn at(&self, offset: u16) -> u16 {
        self.offset.saturating_add(offset)
    }

    /// Switches MSI off. Needed before [`Msi::enable`] changes the message.
    ///
    /// # Errors
    /// [`Error::NotTaken`] when the register does not take the value.
    pub fn disable(&self, space: &dyn ConfigSpace, bdf: Bdf) -> Result<(), Error> {
        change16(space, bdf, self.at(2), Self::ENABLE, 0)
    }

    /// Switches MSI on with this message for vector 0, and `1 << log2` vectors, whose data count
    /// up in the low bits. Vectors whose bits of `masked` are set are masked and the others are not, where the device
    /// can. MSI is off while the message or the number of vectors changes; it stays on when the masks alone do, so
    /// that no message is lost.
    ///
    /// # Errors
    /// [`Error::TooWide`] when the address or the data has more bits than the device takes, and
    /// [`Error::NotTaken`]; MSI is off then.
    pub fn enable(
        &self,
        space: &dyn ConfigSpace,
        bdf: Bdf,
        message: Message,
        log2: u8,
        masked: u32,
    ) -> Result<(), Error> {
        let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
        let low = u32::from_le_bytes([a, b, c, d]);
        let high = u32::from_le_bytes([e, f, g, h]);
        let data = u16::try_from(message.data);
        let (Ok(data), true) = (data, self.wide || high == 0) else {
            self.disable(space, bdf)?;
            return Err(Error::TooWide { bdf });
        };
        let control = Self::ENABLE | u16::from(log2 & 7) << 4;
        let mask = Self::ENABLE | Self::VECTORS;
        let at_data = self.at(if self.wide { 0xc } else { 8 });
        let is_same = space.read16(bdf, self.at(2)) & mask == control
            && space.read32(bdf, self.at(4)) == low
            && (!self.wide || space.read32(bdf, self.at(8)) == high)
            && space.read16(bdf, at_data) == data;
        if is_same {
            self.mask(space, bdf, masked);
            return Ok(());
        }
        self.disable(space, bdf)?;
        space.write32(bdf, self.at(4), low);
        if self.wide {
            space.write32(bdf, self.at(8), high);
        }
        space.write16(bdf, at_data, data);
        self.mask(space, bdf, masked);
        change16(space, bdf, self.at(2), mask, control)
    }

    fn mask(&self, space: &dyn ConfigSpace, bdf: Bdf, masked: u32) {
        if self.maskable {
            space.write32(bdf, self.at(if self.wide { 0x10 } else { 0xc }), masked);
        }
    }
}

/// What MSI-X as a whole does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsixMode {
    /// It is off.
    Off,
    /// It is on, with every vector masked.
    Masked,
    /// It is on; each vector's own mask counts.
    On,
}

impl MsiX {
    const ENABLE: u16 = 1 << 15;
    const MASKED: u16 = 1 << 14;

    /// Switches MSI-X on or off.
    ///
    /// # Errors
    /// [`Error::NotTaken`] when the register does not take the value.
    pub fn set_mode(&self, space: &dyn ConfigSpace, bdf: Bdf, mode: MsixMode) -> Result<(), Error> {
        let value = match mode {
            MsixMode::Off => 0,
            MsixMode::Masked => Self::ENABLE | Self::MASKED,
            MsixMode::On => Self::ENABLE,
        };
        let offset = self.offset.saturating_add(2);
        change16(space, bdf, offset, Self::ENABLE | Self::MASKED, value)
    }

    /// Writes one vector of the device's table. `table` are the registers from the table's start.
    /// The vector is masked while its message changes; `None` leaves it masked. A vector beyond
    /// the table is ignored.
    pub fn write_vector(&self, table: &impl Mmio, vector: u16, message: Option<Message>) {
        const MASKED: u32 = 1;
        if vector >= self.vectors {
            return;
        }
        let at = usize::from(vector) << 4;
        table.write32(at | 0xc, MASKED);
        // A read brings the mask to the device before the message changes.
        let _ = table.read32(at | 0xc);
        let Some(message) = message else { return };
        let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
        table.write32(at, u32::from_le_bytes([a, b, c, d]));
        table.write32(at | 4, u32::from_le_bytes([e, f, g, h]));
        table.write32(at | 8, message.data);
        table.write32(at | 0xc, 0);
    }
}
