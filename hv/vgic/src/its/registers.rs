//! The register frames of an ITS [IHI 0069 §12.18].

use crate::{
    Width,
    bits::{double, high, low},
    distributor::{IIDR_VALUE, identification},
};

pub(super) const CTLR: u32 = 0x0000;
const IIDR: u32 = 0x0004;
const TYPER: u32 = 0x0008;
pub(super) const CBASER: u32 = 0x0080;
pub(super) const CWRITER: u32 = 0x0088;
const CREADR: u32 = 0x0090;
/// `GITS_BASER0`: devices.
pub(super) const BASER_DEVICES: u32 = 0x0100;
/// `GITS_BASER1`: collections.
pub(super) const BASER_COLLECTIONS: u32 = 0x0108;

/// `GITS_CTLR.Enabled`.
const CTLR_ENABLED: u32 = 1 << 0;
/// `GITS_CTLR.Quiescent`.
const CTLR_QUIESCENT: u32 = 1 << 31;
/// `GITS_TYPER`: physical LPIs, 8-byte translation entries, 16-bit EventIDs and DeviceIDs, `PTA` 0,
/// `HCC` 0, `CIL` with 6-bit collection IDs.
pub(super) const TYPER_VALUE: u64 = 1 | 7 << 4 | 15 << 8 | 15 << 13 | 5 << 32 | 1 << 36;
/// `Valid` of a table or queue.
const VALID: u64 = 1 << 63;
/// `GITS_BASER<n>.Indirect`.
const INDIRECT: u64 = 1 << 62;
/// `Valid`, `InnerCache`, `OuterCache`, `Physical_Address`, `Shareability`, `Size`.
const CBASER_MASK: u64 = 0xb8ef_ffff_ffff_fcff;
/// `Valid`, `InnerCache`, `OuterCache`, `Physical_Address`, `Shareability`, `Page_Size`, `Size`.
const BASER_MASK: u64 = 0xb8e0_ffff_ffff_ffff;
/// `Type` 1 (devices), entries of 8 bytes.
const BASER_DEVICES_FIXED: u64 = 1 << 56 | (ENTRY_BYTES - 1) << 48;
/// `Type` 4 (collections), entries of 8 bytes.
const BASER_COLLECTIONS_FIXED: u64 = 4 << 56 | (ENTRY_BYTES - 1) << 48;
/// Bytes of a table's entry, of either level.
const ENTRY_BYTES: u64 = 8;
/// `GITS_CWRITER.Offset`, `GITS_CREADR.Offset`.
const OFFSET_MASK: u64 = 0xf_ffe0;
/// `GITS_CWRITER.Retry`.
const RETRY: u64 = 1;
/// `GITS_CREADR.Stalled`.
const STALLED: u64 = 1;

/// The table behind a `GITS_BASER<n>`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Baser(u64);

impl Baser {
    /// How many entries the table has room for.
    pub(super) const fn entries(self) -> u64 {
        if self.0 & VALID == 0 {
            return 0;
        }
        let page_bits = match (self.0 >> 8) & 3 {
            0 => 12_u32,
            1 => 14,
            _ => 16,
        };
        let pages = (self.0 & 0xff).wrapping_add(1);
        let first_level = pages.wrapping_shl(page_bits) / ENTRY_BYTES;
        if self.0 & INDIRECT == 0 {
            first_level
        } else {
            // Every entry of the first level is a page of the second.
            first_level.wrapping_shl(page_bits) / ENTRY_BYTES
        }
    }
}

/// What a write asks of the ITS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Nothing,
    /// There may be commands to do.
    Work,
    /// The device table is another: it is empty.
    NoDevices,
    /// The collection table is another: it is empty.
    NoCollections,
}

#[derive(Debug)]
pub(super) struct Registers {
    enabled: bool,
    cbaser: u64,
    cwriter: u64,
    creadr: u64,
    stalled: bool,
    pub(super) devices: Baser,
    pub(super) collections: Baser,
}

impl Registers {
    pub(super) const RESET: Self = Self {
        enabled: false,
        cbaser: 0,
        cwriter: 0,
        creadr: 0,
        stalled: false,
        devices: Baser(BASER_DEVICES_FIXED),
        collections: Baser(BASER_COLLECTIONS_FIXED),
    };

    /// `GITS_CTLR.Enabled`.
    pub(super) const fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Where the next command is, in guest memory.
    pub(super) const fn next_command(&self) -> Option<u64> {
        if !self.enabled
            || self.stalled
            || self.cbaser & VALID == 0
            || self.creadr == self.cwriter
            || self.cwriter >= self.queue_bytes()
        {
            return None;
        }
        Some((self.cbaser & 0xf_ffff_ffff_f000).wrapping_add(self.creadr))
    }

    /// The command is read.
    pub(super) const fn advance(&mut self) {
        self.creadr = self.creadr.wrapping_add(super::command::COMMAND_BYTES);
        if self.creadr >= self.queue_bytes() {
            self.creadr = 0;
        }
    }

    /// The command cannot be read: no more of them until the guest says to try again.
    pub(super) const fn stall(&mut self) {
        self.stalled = true;
    }

    const fn queue_bytes(&self) -> u64 {
        (self.cbaser & 0xff).wrapping_add(1).wrapping_shl(12)
    }

    /// Reads the register at `offset` of the control frame.
    pub(super) const fn read(&self, offset: u32, width: Width) -> u64 {
        if !width.is_aligned(offset) {
            return 0;
        }
        let wide = match offset & !7 {
            TYPER => TYPER_VALUE,
            CBASER => self.cbaser,
            CWRITER => self.cwriter,
            CREADR if self.stalled => self.creadr | STALLED,
            CREADR => self.creadr,
            BASER_DEVICES => self.devices.0,
            BASER_COLLECTIONS => self.collections.0,
            _ => {
                return match (offset, width) {
                    (CTLR, Width::Word) if self.enabled => CTLR_ENABLED as u64,
                    (CTLR, Width::Word) => CTLR_QUIESCENT as u64,
                    (IIDR, Width::Word) => IIDR_VALUE as u64,
                    (0xffd0..=0xffff, Width::Word) => identification(offset) as u64,
                    _ => 0,
                };
            }
        };
        match width {
            Width::Double => wide,
            Width::Word if offset & 4 == 0 => low(wide) as u64,
            Width::Word => high(wide) as u64,
            Width::Byte | Width::Half => 0,
        }
    }

    /// Writes the register at `offset` of the control frame.
    pub(super) const fn write(&mut self, offset: u32, width: Width, value: u64) -> Effect {
        if !width.is_aligned(offset) {
            return Effect::Nothing;
        }
        if offset == CTLR && matches!(width, Width::Word) {
            self.enabled = low(value) & CTLR_ENABLED != 0;
            return Effect::Work;
        }
        let old = match offset & !7 {
            CBASER => self.cbaser,
            CWRITER => self.cwriter,
            BASER_DEVICES => self.devices.0,
            BASER_COLLECTIONS => self.collections.0,
            _ => return Effect::Nothing,
        };
        let value = match width {
            Width::Double => value,
            Width::Word if offset & 4 == 0 => double(high(old), low(value)),
            Width::Word => double(low(value), low(old)),
            Width::Byte | Width::Half => return Effect::Nothing,
        };
        if offset & !7 == CWRITER {
            // The upper half of the register has no fields.
            let whole = !matches!(width, Width::Word) || offset & 4 == 0;
            return if whole {
                self.write_cwriter(value)
            } else {
                Effect::Nothing
            };
        }
        // Tables and queue do not move under an ITS at work.
        if self.enabled {
            return Effect::Nothing;
        }
        match offset & !7 {
            CBASER => {
                self.cbaser = value & CBASER_MASK;
                self.cwriter = 0;
                self.creadr = 0;
                self.stalled = false;
                Effect::Nothing
            }
            BASER_DEVICES => {
                let kept = usable(value & (BASER_MASK | INDIRECT));
                self.devices = Baser(kept | BASER_DEVICES_FIXED);
                Effect::NoDevices
            }
            _ => {
                let kept = usable(value & BASER_MASK);
                self.collections = Baser(kept | BASER_COLLECTIONS_FIXED);
                Effect::NoCollections
            }
        }
    }

    const fn write_cwriter(&mut self, value: u64) -> Effect {
        let offset = value & OFFSET_MASK;
        if offset >= self.queue_bytes() {
            return Effect::Nothing;
        }
        self.cwriter = offset;
        if value & RETRY != 0 {
            self.stalled = false;
        }
        Effect::Work
    }
}

/// A table register whose reserved page size is taken as 64 KiB.
const fn usable(value: u64) -> u64 {
    if (value >> 8) & 3 == 3 {
        value & !(1 << 8)
    } else {
        value
    }
}
