//! What an SMMU says of itself.

use core::fmt;

use hal::Mmio;

use crate::spec::{Idr0, Idr1, Idr3, Idr5, Iidr, regs};

/// The identification registers of one SMMU, read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Features.
    pub idr0: Idr0,
    /// Sizes.
    pub idr1: Idr1,
    /// Later features.
    pub idr3: Idr3,
    /// Address sizes.
    pub idr5: Idr5,
    /// Product.
    pub iidr: Iidr,
    /// Minor of the architecture version 3.x.
    pub minor: u8,
}

/// Why the hypervisor cannot translate with an SMMU. It is locked all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// `IDR0.S2P` is 0.
    #[error("no stage 2: VMs could not be isolated from each other")]
    NoStage2,
    /// `IDR0.TTF` lacks AArch64.
    #[error("no AArch64 table format")]
    NoAarch64Tables,
    /// `IDR0.TTENDIAN` is big-endian only.
    #[error("tables must be big-endian")]
    BigEndian,
    /// `IDR5.GRAN4K` is 0.
    #[error("no 4 KiB granule")]
    No4k,
    /// `IDR0.STALL_MODEL` is 2: no fault terminates, and a device that waits for ever holds up others.
    #[error("faults can only stall")]
    StallForced,
    /// `IDR1` fixes the addresses of tables or queues.
    #[error("tables or queues are at preset addresses")]
    Preset,
    /// `IDR1.CMDQS` leaves no room for a command and its `CMD_SYNC`.
    #[error("its command queue has a single entry")]
    SmallQueue,
}

impl Identity {
    /// Reads the registers, 32 bits at a time: some models answer wider reads with zero.
    pub fn read(mmio: &impl Mmio) -> Self {
        Self {
            idr0: Idr0::from_bits(mmio.read32(regs::IDR0)),
            idr1: Idr1::from_bits(mmio.read32(regs::IDR1)),
            idr3: Idr3::from_bits(mmio.read32(regs::IDR3)),
            idr5: Idr5::from_bits(mmio.read32(regs::IDR5)),
            iidr: Iidr::from_bits(mmio.read32(regs::IIDR)),
            minor: mmio.read32(regs::AIDR).to_le_bytes()[0] & 0xf,
        }
    }

    /// Whether the hypervisor can put VMs behind it.
    ///
    /// # Errors
    /// [`Unusable`], with the first reason.
    pub fn usable(&self) -> Result<(), Unusable> {
        if !self.idr0.s2p() {
            return Err(Unusable::NoStage2);
        }
        if self.idr0.ttf() & 0b10 == 0 {
            return Err(Unusable::NoAarch64Tables);
        }
        if self.idr0.ttendian() == 3 {
            return Err(Unusable::BigEndian);
        }
        if !self.idr5.gran4k() {
            return Err(Unusable::No4k);
        }
        if self.idr0.stall_model() & 0b10 != 0 {
            return Err(Unusable::StallForced);
        }
        if self.idr1.queues_preset() || self.idr1.tables_preset() {
            return Err(Unusable::Preset);
        }
        if self.idr1.cmdqs() == 0 {
            return Err(Unusable::SmallQueue);
        }
        Ok(())
    }

    /// Whether guests can have a stage 1 of their own over our stage 2.
    #[must_use]
    pub fn nests(&self) -> bool {
        self.idr0.s1p() && self.idr0.s2p()
    }
}

/// One line: version, stages, sizes, features.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages = match (self.idr0.s1p(), self.idr0.s2p()) {
            (true, true) => "stages 1+2 (nests)",
            (true, false) => "stage 1 only",
            (false, true) => "stage 2 only",
            (false, false) => "no stage",
        };
        write!(
            f,
            "v3.{} {stages}, sid {} bits, ssid {} bits, oas {} bits, vmid {} bits, granules",
            self.minor,
            self.idr1.sidsize(),
            self.idr1.ssidsize(),
            self.idr5.oas_bits(),
            if self.idr0.vmid16() { 16 } else { 8 },
        )?;
        let granules = [
            (self.idr5.gran4k(), " 4K"),
            (self.idr5.gran16k(), " 16K"),
            (self.idr5.gran64k(), " 64K"),
        ];
        let features = [
            (self.idr0.cohacc(), " coherent"),
            (self.idr0.st_level() == 1, " two-level-stream-table"),
            (self.idr0.stall_model() != 1, " stall"),
            (self.idr3.ril(), " range-invalidation"),
            (self.idr3.fwb(), " fwb"),
            (self.idr0.btm(), " btm"),
            (self.idr0.httu() != 0, " httu"),
            (self.idr0.ats(), " ats"),
            (self.idr0.pri(), " pri"),
            (self.idr0.msi(), " msi"),
        ];
        granules
            .iter()
            .filter(|(has, _)| *has)
            .try_for_each(|(_, name)| f.write_str(name))?;
        f.write_str(";")?;
        features
            .iter()
            .filter(|(has, _)| *has)
            .try_for_each(|(_, name)| f.write_str(name))?;
        write!(f, " bbm{}", self.idr3.bbml())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use hal::fake::FakeMmio;

    use super::{Identity, Unusable};
    use crate::spec::regs;

    fn with(registers: &[(usize, u64)]) -> Identity {
        let mmio = FakeMmio::new();
        // The values QEMU 10.0's nested model gives.
        for (offset, value) in [
            (regs::IDR0, 0x0d44_101b),
            (regs::IDR1, 0x0273_0010),
            (regs::IDR3, 0x1414),
            (regs::IDR5, 0x74),
            (regs::AIDR, 1),
        ] {
            mmio.preset(offset, 4, value);
        }
        for (offset, value) in registers {
            mmio.preset(*offset, 4, *value);
        }
        Identity::read(&mmio)
    }

    #[test]
    fn a_nesting_smmu_is_usable_and_told_in_one_line() {
        let id = with(&[]);
        assert_eq!(id.usable(), Ok(()));
        assert!(id.nests());
        assert_eq!(
            id.to_string(),
            "v3.1 stages 1+2 (nests), sid 16 bits, ssid 0 bits, oas 44 bits, vmid 16 bits, \
             granules 4K 16K 64K; coherent two-level-stream-table range-invalidation bbm2"
        );
    }

    #[test]
    fn each_missing_feature_is_named() {
        let cases = [
            ((regs::IDR0, 0x0d44_101a), Unusable::NoStage2),
            ((regs::IDR0, 0x0d44_1017), Unusable::NoAarch64Tables),
            ((regs::IDR0, 0x0d64_101b), Unusable::BigEndian),
            ((regs::IDR5, 0x64), Unusable::No4k),
            ((regs::IDR0, 0x0e44_101b), Unusable::StallForced),
            ((regs::IDR1, 0x4273_0010), Unusable::Preset),
            ((regs::IDR1, 0x2273_0010), Unusable::Preset),
            ((regs::IDR1, 0x0013_0010), Unusable::SmallQueue),
        ];
        for (register, reason) in cases {
            assert_eq!(with(&[register]).usable(), Err(reason));
        }
    }
}
