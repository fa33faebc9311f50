//! What the guest's SMMU says of itself: promises, each of which is kept.

use iommu::Ats;
use smmuv3::Identity;
use smmuv3::spec::{Idr0, Idr1, Idr3, Idr5};

/// The most bits of a guest's stream ID: a PCI requester ID.
pub const MOST_STREAM_BITS: u8 = 16;
/// Log2 of the smallest queue limit that Linux takes: more than 64 commands.
pub const LEAST_QUEUE: u8 = 7;
/// Log2 of the largest queue there is.
pub const MOST_QUEUE: u8 = 19;

/// What a stream goes through while the guest's SMMU is off, until the guest says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtReset {
    /// Every access aborts.
    Abort,
    /// Bus addresses are guest-physical, as with no SMMU: for guests that do not drive one.
    Bypass,
}

/// Whether the guest's SMMU sends messages, besides its wires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Messages {
    /// Interrupts are wires alone.
    Off,
    /// As the guest configures them: the guest has an ITS, or polls its memory.
    Offered,
}

/// What an invalidation of one address without a range means to the hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SingleAddress {
    /// The leaf that translates the address, whatever its size, as the architecture says.
    WholeLeaf,
    /// Only 4 KiB of it (QEMU's model, when stage 2 maps smaller leaves than stage 1): such an
    /// invalidation is widened to the whole VM.
    FourKilobytes,
}

/// What the integrator decides about a guest's SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bits of a guest-physical address that stage 2 takes.
    pub ipa_bits: u8,
    /// Bits of a guest stream ID, at most [`MOST_STREAM_BITS`].
    pub stream_bits: u8,
    /// Log2 of the largest command queue; 7 to 19.
    pub commands_log2: u8,
    /// Log2 of the largest event queue; 7 to 19.
    pub events_log2: u8,
    /// Whether ATS is offered, where the hardware has it.
    pub ats: Ats,
    /// Whether messages are offered. The emulation sends them, whatever the hardware has.
    pub messages: Messages,
    /// What holds while the guest's SMMU is off.
    pub at_reset: AtReset,
    /// How the hardware takes an invalidation of one address.
    pub single_address: SingleAddress,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ipa_bits: 40,
            stream_bits: MOST_STREAM_BITS,
            commands_log2: 10,
            events_log2: 10,
            ats: Ats::Off,
            messages: Messages::Off,
            at_reset: AtReset::Abort,
            single_address: SingleAddress::WholeLeaf,
        }
    }
}

/// Why no guest can have an SMMU over a physical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It does not have both stages.
    #[error("stage 1 and stage 2 are not both there")]
    NoNesting,
    /// It does not read AArch64 tables, or only big-endian ones.
    #[error("little-endian AArch64 tables are not read")]
    Tables,
    /// Every fault stalls: a guest could hold transactions of others up.
    #[error("faults can only stall")]
    StallForced,
    /// Its walks are not coherent, and a guest is told that they are.
    #[error("table walks are not coherent")]
    NotCoherent,
    /// Stage 2 takes less than 32 bits.
    #[error("{0} bits of guest-physical address are too few")]
    InputBits(u8),
}

/// The identification registers of a guest's SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    pub(crate) idr0: Idr0,
    pub(crate) idr1: Idr1,
    pub(crate) idr3: Idr3,
    pub(crate) idr5: Idr5,
    pub(crate) options: Options,
}

/// The architecture version a guest is told: 3.1.
pub(crate) const AIDR: u32 = 1;

impl Features {
    /// The features of a guest's SMMU over a physical one. What is not listed in the crate's table
    /// reads as zero, whatever the hardware has.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn derive(physical: &Identity, options: Options) -> Result<Self, Unfit> {
        let (has0, has1, has3, has5) = (physical.idr0, physical.idr1, physical.idr3, physical.idr5);
        if !has0.s1p() || !has0.s2p() {
            return Err(Unfit::NoNesting);
        }
        // Mixed (0) or little-endian (2).
        if has0.ttf() & 0b10 == 0 || has0.ttendian() & 1 != 0 {
            return Err(Unfit::Tables);
        }
        if has0.stall_model() & 0b10 != 0 {
            return Err(Unfit::StallForced);
        }
        if !has0.cohacc() {
            return Err(Unfit::NotCoherent);
        }
        let oas = encoded_bits(options.ipa_bits.min(has5.oas_bits()))
            .ok_or(Unfit::InputBits(options.ipa_bits))?;
        let substream_bits = has1.ssidsize().min(20);
        let ats = options.ats == Ats::On && has0.ats();
        Ok(Self {
            idr0: Idr0::new()
                .with_s1p(true)
                .with_ttf(0b10)
                .with_cohacc(true)
                .with_asid16(has0.asid16())
                .with_ats(ats)
                .with_msi(options.messages == Messages::Offered)
                .with_cd2l(has0.cd2l() && substream_bits > 0)
                .with_ttendian(0b10)
                .with_stall_model(0b01)
                .with_term_model(has0.term_model())
                .with_st_level(0b01),
            idr1: Idr1::new()
                .with_sidsize(options.stream_bits.clamp(1, MOST_STREAM_BITS))
                .with_ssidsize(substream_bits)
                .with_evtqs(options.events_log2.clamp(LEAST_QUEUE, MOST_QUEUE))
                .with_cmdqs(options.commands_log2.clamp(LEAST_QUEUE, MOST_QUEUE)),
            idr3: Idr3::new()
                .with_ril(has3.ril())
                .with_bbml(has3.bbml().min(2)),
            idr5: Idr5::new()
                .with_oas(oas)
                .with_gran4k(has5.gran4k())
                .with_gran16k(has5.gran16k())
                .with_gran64k(has5.gran64k())
                .with_vax(has5.vax() & 1),
            options,
        })
    }

    /// The features of an SMMU that has a stage 2 in its registers, too: hardware for tests of a
    /// driver. Entries with stage 2 are taken, and stage-2 invalidations are
    /// [`Invalidation::All`](crate::Invalidation::All).
    #[cfg(any(test, feature = "double"))]
    #[must_use]
    pub fn double(mut self) -> Self {
        self.idr0 = self.idr0.with_s2p(true).with_vmid16(true);
        self
    }

    /// Whether stage 2 is in the registers: never in a guest's.
    pub(crate) fn has_stage_two(&self) -> bool {
        self.idr0.s2p()
    }

    /// Bits of a guest-physical address that tables may name.
    #[must_use]
    pub fn output_bits(&self) -> u8 {
        self.idr5.oas_bits()
    }

    /// Bits of a substream ID; 0: none.
    #[must_use]
    pub fn substream_bits(&self) -> u8 {
        self.idr1.ssidsize()
    }

    /// Whether the guest may turn ATS on.
    #[must_use]
    pub fn ats(&self) -> bool {
        self.idr0.ats()
    }

    /// Whether the SMMU sends messages.
    #[must_use]
    pub fn msi(&self) -> bool {
        self.idr0.msi()
    }

    /// An address as the SMMU's own accesses have it: no more bits than were promised. [IHI 0070 §3.4.3]
    pub(crate) fn truncate(&self, address: u64) -> u64 {
        let bits = u32::from(self.output_bits());
        address & 1_u64.checked_shl(bits).unwrap_or(0).wrapping_sub(1)
    }

    /// The identification registers `IDR0`, `IDR1`, `IDR3`, `IDR5`.
    #[must_use]
    pub fn identification(&self) -> (Idr0, Idr1, Idr3, Idr5) {
        (self.idr0, self.idr1, self.idr3, self.idr5)
    }
}

/// The largest encoded address size of at most so many bits.
fn encoded_bits(bits: u8) -> Option<u8> {
    match bits {
        0..32 => None,
        32..36 => Some(0),
        36..40 => Some(1),
        40..42 => Some(2),
        42..44 => Some(3),
        44..48 => Some(4),
        48..52 => Some(5),
        // 56 bits need a later table format, which is not offered.
        _ => Some(6),
    }
}
