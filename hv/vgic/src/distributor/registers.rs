//! The distributor's register frame [IHI 0069 §12.9].

use crate::{
    Kicks, Width,
    bank::Bank,
    bits::{bit, double, high, low, replace},
    distributor::Distributor,
};

const CTLR: u32 = 0x0000;
const TYPER: u32 = 0x0004;
const IIDR: u32 = 0x0008;
const IPRIORITYR: u32 = 0x0400;
const IPRIORITYR_LAST: u32 = 0x07ff;
const ICFGR: u32 = 0x0c00;
const ICFGR_LAST: u32 = 0x0cff;
const IROUTER: u32 = 0x6000;
const IROUTER_LAST: u32 = 0x7fdf;
/// `GICD_CTLR.EnableGrp1`.
const CTLR_ENABLE_GRP1: u32 = 1 << 1;
/// `GICD_CTLR.ARE`, always set.
const CTLR_ARE: u32 = 1 << 4;
/// `GICD_CTLR.DS`, always set.
const CTLR_DS: u32 = 1 << 6;
/// `GICD_IIDR` and `GICR_IIDR`: product `B`, revision 0, variant 0, no implementer code.
pub(crate) const IIDR_VALUE: u32 = (b'B' as u32) << 24;

/// A register with one bit an interrupt; the same offsets serve SPIs in the distributor and private
/// interrupts in the redistributor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BitRegister {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
}

impl BitRegister {
    /// The register at a word-aligned offset, and which word of it.
    pub(crate) const fn at(offset: u32) -> Option<(Self, u32)> {
        let register = match offset & !0x7f {
            0x080 => Self::Group,
            0x100 => Self::SetEnable,
            0x180 => Self::ClearEnable,
            0x200 => Self::SetPending,
            0x280 => Self::ClearPending,
            0x300 => Self::SetActive,
            0x380 => Self::ClearActive,
            _ => return None,
        };
        Some((register, (offset & 0x7f) >> 2))
    }

    pub(crate) const fn read(self, bank: &Bank) -> u32 {
        match self {
            Self::Group => bank.group1,
            Self::SetEnable | Self::ClearEnable => bank.enabled,
            Self::SetPending | Self::ClearPending => bank.shown_pending(),
            Self::SetActive | Self::ClearActive => bank.shown_active(),
        }
    }

    /// Which interrupts a write of `value` touches.
    pub(crate) const fn touched(self, bank: &Bank, value: u32) -> u32 {
        match self {
            Self::Group => bank.group1 ^ value,
            Self::SetEnable => value & !bank.enabled,
            Self::ClearEnable => value & bank.enabled,
            _ => value,
        }
    }

    /// Writes `value` for the interrupts of `mask`.
    pub(crate) const fn write(self, bank: &mut Bank, mask: u32, value: u32) {
        match self {
            Self::Group => bank.group1 = replace(bank.group1, mask, value),
            Self::SetEnable => bank.enabled |= mask,
            Self::ClearEnable => bank.enabled &= !mask,
            Self::SetPending => bank.set_pending(mask),
            Self::ClearPending => bank.clear_pending(mask),
            Self::SetActive => bank.set_active(mask),
            Self::ClearActive => bank.clear_active(mask),
        }
    }
}

/// `ICFGR`: bit 2n + 1 of the word says that interrupt n of its 16 is edge-triggered.
pub(crate) const fn spread_edges(edges: u32) -> u32 {
    let mut x = edges & 0xffff;
    x = (x | x << 8) & 0x00ff_00ff;
    x = (x | x << 4) & 0x0f0f_0f0f;
    x = (x | x << 2) & 0x3333_3333;
    x = (x | x << 1) & 0x5555_5555;
    x << 1
}

/// The reverse of [`spread_edges`].
pub(crate) const fn gather_edges(word: u32) -> u32 {
    let mut x = (word >> 1) & 0x5555_5555;
    x = (x | x >> 1) & 0x3333_3333;
    x = (x | x >> 2) & 0x0f0f_0f0f;
    x = (x | x >> 4) & 0x00ff_00ff;
    (x | x >> 8) & 0xffff
}

/// The identification registers at the end of every frame: `PIDR2` says GICv3, `CIDR<n>` are
/// those of every CoreSight component, the rest is zero.
pub(crate) const fn identification(offset: u32) -> u32 {
    match offset {
        0xffe8 => 0x30,
        0xfff0 => 0x0d,
        0xfff4 => 0xf0,
        0xfff8 => 0x05,
        0xfffc => 0xb1,
        _ => 0,
    }
}

impl Distributor {
    /// Reads the register at `offset`. What does not exist, or not at this width, reads as zero.
    pub(crate) fn read(&self, offset: u32, width: Width) -> u64 {
        if !width.is_aligned(offset) {
            return 0;
        }
        match (offset, width) {
            (IPRIORITYR..=IPRIORITYR_LAST, Width::Byte | Width::Word) => {
                let mut value = [0; 4];
                for (byte, intid) in value
                    .iter_mut()
                    .take(width.bytes().into())
                    .zip(offset.wrapping_sub(IPRIORITYR)..)
                {
                    *byte = self
                        .spi_of(intid)
                        .and_then(|spi| self.spis.get(spi as usize))
                        .map_or(0, |spi| spi.priority);
                }
                u32::from_le_bytes(value).into()
            }
            (IROUTER..=IROUTER_LAST, Width::Word | Width::Double) => {
                let router = self.router_at(offset).map_or(0, |spi| {
                    self.spis.get(spi as usize).map_or(0, |spi| spi.router)
                });
                match width {
                    Width::Double => router,
                    _ if offset & 4 == 0 => low(router).into(),
                    _ => high(router).into(),
                }
            }
            (_, Width::Word) => self.read_word(offset).into(),
            _ => 0,
        }
    }

    fn read_word(&self, offset: u32) -> u32 {
        if let Some((register, word)) = BitRegister::at(offset) {
            return self
                .spi_word(word)
                .and_then(|word| self.banks.get(word as usize))
                .map_or(0, |bank| register.read(bank));
        }
        match offset {
            CTLR if self.enabled => CTLR_DS | CTLR_ARE | CTLR_ENABLE_GRP1,
            CTLR => CTLR_DS | CTLR_ARE,
            TYPER => self.typer(),
            IIDR => IIDR_VALUE,
            ICFGR..=ICFGR_LAST => {
                let (word, shift) = config_place(offset);
                self.spi_word(word)
                    .and_then(|word| self.banks.get(word as usize))
                    .map_or(0, |bank| spread_edges(bank.edge.wrapping_shr(shift)))
            }
            0xffd0..=0xffff => identification(offset),
            _ => 0,
        }
    }

    /// Writes the register at `offset`. What does not exist, or not at this width, ignores it.
    /// Returns the vCPUs that have to look.
    pub(crate) fn write(&mut self, offset: u32, width: Width, value: u64) -> Kicks {
        if !width.is_aligned(offset) {
            return Kicks::NONE;
        }
        match (offset, width) {
            (IPRIORITYR..=IPRIORITYR_LAST, Width::Byte | Width::Word) => {
                let mut kicks = Kicks::NONE;
                for (byte, intid) in low(value)
                    .to_le_bytes()
                    .into_iter()
                    .take(width.bytes().into())
                    .zip(offset.wrapping_sub(IPRIORITYR)..)
                {
                    if let Some(spi) = self.spi_of(intid) {
                        kicks = kicks.union(self.set_priority(spi, byte));
                    }
                }
                kicks
            }
            (IROUTER..=IROUTER_LAST, Width::Word | Width::Double) => {
                let Some(spi) = self.router_at(offset) else {
                    return Kicks::NONE;
                };
                let old = self.spis.get(spi as usize).map_or(0, |spi| spi.router);
                let value = match width {
                    Width::Double => value,
                    _ if offset & 4 == 0 => double(high(old), low(value)),
                    _ => double(low(value), low(old)),
                };
                self.set_router(spi, value)
            }
            (_, Width::Word) => self.write_word(offset, low(value)),
            _ => Kicks::NONE,
        }
    }

    fn write_word(&mut self, offset: u32, value: u32) -> Kicks {
        if let Some((register, word)) = BitRegister::at(offset) {
            let Some(word) = self.spi_word(word) else {
                return Kicks::NONE;
            };
            let touched = self
                .banks
                .get(word as usize)
                .map_or(0, |bank| register.touched(bank, value));
            return self.change(word, touched, |bank, mask| {
                register.write(bank, mask, value)
            });
        }
        match offset {
            CTLR => {
                let enabled = value & CTLR_ENABLE_GRP1 != 0;
                if enabled == self.enabled {
                    return Kicks::NONE;
                }
                self.enabled = enabled;
                self.everybody()
            }
            ICFGR..=ICFGR_LAST => {
                let (word, shift) = config_place(offset);
                let Some(word) = self.spi_word(word) else {
                    return Kicks::NONE;
                };
                let edges = gather_edges(value).wrapping_shl(shift);
                let mask = 0xffff_u32.wrapping_shl(shift);
                let touched = self
                    .banks
                    .get(word as usize)
                    .map_or(0, |bank| (bank.edge ^ edges) & mask);
                self.change(word, touched, |bank, mask| {
                    bank.edge = replace(bank.edge, mask, edges);
                })
            }
            _ => Kicks::NONE,
        }
    }

    /// The SPI word that word `word` of a bit register is; the first holds private interrupts,
    /// which are in the redistributors.
    fn spi_word(&self, word: u32) -> Option<u32> {
        let word = word.checked_sub(1)?;
        ((word as usize) < self.banks.len()).then_some(word)
    }

    fn router_at(&self, offset: u32) -> Option<u32> {
        self.spi_of(offset.wrapping_sub(IROUTER) >> 3)
    }

    fn everybody(&self) -> Kicks {
        let mut all = Kicks::NONE;
        for vcpu in 0..u32::try_from(self.topology.vcpus()).unwrap_or(0) {
            all = all.union(Kicks::of(vcpu));
        }
        all
    }

    /// `GICD_TYPER`: no message-based SPIs, no extended SPIs, 1-of-N supported; the rest as the
    /// machine is.
    fn typer(&self) -> u32 {
        let (lpis, intid_bits) = match self.lpi_bits {
            Some(bits) => (1 << 17, bits),
            None => (0, 10),
        };
        let lines = u32::try_from(self.banks.len()).unwrap_or(0) & 0x1f;
        let mut typer = lines | lpis | (intid_bits.wrapping_sub(1) & 0x1f) << 19;
        if self.a3v {
            typer |= bit(24);
        }
        if self.topology.needs_ranges() {
            typer |= bit(26);
        }
        typer
    }
}

/// The word of interrupts that an `ICFGR` is about, and the first of its 16 in it.
const fn config_place(offset: u32) -> (u32, u32) {
    let register = offset.wrapping_sub(ICFGR) >> 2;
    (register >> 1, (register & 1) << 4)
}
