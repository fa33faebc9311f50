//! A guest's stream table and its entries.

use iommu::{Ats, ContextFormat, DefaultSubstream, NestedConfig, StageOne, Translate};
use smmuv3::spec::{L1Std, Ste, SteConfig};
use types::StreamId;

use crate::features::Features;
use crate::memory::{GuestMemory, words};

/// A stream table entry as a guest wrote it: copied once, and judged from the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestSte(pub [u64; 8]);

/// Why an entry is illegal: what becomes `C_BAD_STE`. [IHI 0070 §7.3.5]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSte {
    /// `V` is 0.
    #[error("the entry is not valid")]
    Invalid,
    /// `Config` asks for a stage 2, which a guest has not got.
    #[error("the entry asks for stage 2")]
    StageTwo,
    /// `S1CDMax` is above what `IDR1.SSIDSIZE` says.
    #[error("the entry asks for 2^{0} substreams")]
    Substreams(u8),
    /// `S1Fmt` asks for two-level tables, which are not offered.
    #[error("the entry's context descriptors have format {0}")]
    Format(u8),
    /// `S1STALLD` with a stall model that never stalls.
    #[error("the entry says something of stalls, which there are none")]
    Stall,
    /// `EATS` is split-stage.
    #[error("the entry's EATS is {0}")]
    Eats(u8),
    /// `S1ContextPtr` is beyond the guest's address space.
    #[error("the context descriptors at {0:#x} are beyond the address space")]
    Context(u64),
}

const fn byte(word: u64, shift: u32, mask: u8) -> u8 {
    (word >> (shift & 63)).to_le_bytes()[0] & mask
}

impl GuestSte {
    fn ste(&self) -> Ste {
        Ste(self.0)
    }

    /// What the entry asks of the hardware, or why it is illegal.
    ///
    /// Fields that mean nothing without stage 2, EL2 or attribute overrides (`STRW`, `SHCFG`,
    /// `MTCFG`, `S2…`) are ignored, as they are RES0 or IGNORED by what the guest is told, and
    /// Linux sets some of them. What is legal is as the manual's `SteIllegal` has it
    /// [IHI 0070 §5.2.2].
    ///
    /// # Errors
    /// [`BadSte`].
    pub fn judge(&self, features: &Features) -> Result<NestedConfig, BadSte> {
        let ste = self.ste();
        if !ste.is_valid() {
            return Err(BadSte::Invalid);
        }
        match ste.config() {
            // All encodings with the top bit clear abort, silently. [IHI 0070 §5.2]
            SteConfig::Abort | SteConfig::Reserved(_) => Ok(NestedConfig::ABORT),
            SteConfig::Bypass => Ok(NestedConfig::BYPASS),
            SteConfig::S1Translate => self.judge_stage_one(features),
            SteConfig::S2Translate if features.has_stage_two() => Ok(NestedConfig::BYPASS),
            SteConfig::Nested if features.has_stage_two() => self.judge_stage_one(features),
            SteConfig::S2Translate | SteConfig::Nested => Err(BadSte::StageTwo),
        }
    }

    fn judge_stage_one(&self, features: &Features) -> Result<NestedConfig, BadSte> {
        const S1STALLD: u64 = 1 << 27;
        let [word0, word1, ..] = self.0;
        let ste = self.ste();
        let most = features.substream_bits();
        let substream_bits = match most {
            0 => 0,
            _ => byte(ste.s1_cd_max(), 0, 0x1f),
        };
        if substream_bits > most {
            return Err(BadSte::Substreams(substream_bits));
        }
        // With one descriptor only neither field means anything; a reserved value of either is as 0.
        let (format, default_substream) = if substream_bits == 0 {
            (ContextFormat::Linear, DefaultSubstream::Terminate)
        } else {
            let two_level = features.idr0.cd2l();
            let format = match byte(word0, 4, 3) {
                1 if two_level => ContextFormat::TwoLevel4K,
                2 if two_level => ContextFormat::TwoLevel64K,
                format @ (1 | 2) => return Err(BadSte::Format(format)),
                _ => ContextFormat::Linear,
            };
            let default = match ste.s1_dss() {
                1 => DefaultSubstream::Bypass,
                2 => DefaultSubstream::Substream0,
                _ => DefaultSubstream::Terminate,
            };
            (format, default)
        };
        if word1 & S1STALLD != 0 {
            return Err(BadSte::Stall);
        }
        let ats = match (features.ats(), byte(ste.eats(), 0, 3)) {
            (true, 1) => Ats::On,
            (true, 2) => return Err(BadSte::Eats(2)),
            // 3 is for device permission tables, and as 0 without them.
            _ => Ats::Off,
        };
        let base = ste.s1_context();
        if base.checked_shr(features.output_bits().into()) != Some(0) {
            return Err(BadSte::Context(base));
        }
        Ok(NestedConfig {
            stage_one: StageOne::Translate(Translate {
                format,
                default_substream,
                substream_bits,
                base,
            }),
            ats,
        })
    }
}

/// Where a stream's entry is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The stream ID has no entry: `C_BAD_STREAMID`.
    StreamId,
    /// A table is not in memory: `F_STE_FETCH`, with the address.
    Fetch(u64),
}

/// An entry, and how it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The level-1 descriptor and where it lies.
    pub(crate) level1: Option<(u64, u64)>,
    /// Where the entry lies.
    pub(crate) at: u64,
    pub(crate) ste: GuestSte,
}

/// A guest's stream table, as its registers describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamTable {
    base: u64,
    log2size: u32,
    /// Stream ID bits of the second level, in a table of two levels.
    split: Option<u32>,
}

/// An address with its low `log2` bits cleared.
pub(crate) fn aligned(address: u64, log2: u32) -> u64 {
    let low = 1_u64.checked_shl(log2).unwrap_or(0).wrapping_sub(1);
    address & !low
}

impl StreamTable {
    const ADDRESS: u64 = 0x000f_ffff_ffff_ffc0;

    /// The table of `STRTAB_BASE` and `STRTAB_BASE_CFG`. Sizes beyond the guest's stream IDs are
    /// cut; a reserved format is linear, a reserved split is 6; the base is aligned to the size that
    /// was written, cut or not. [IHI 0070 §6.3.24, §6.3.25]
    pub(crate) fn new(base: u64, config: u32, sid_bits: u8) -> Self {
        let written = config & 0x3f;
        let log2size = written.min(sid_bits.into());
        let split = match (config >> 16 & 3, config >> 6 & 0x1f) {
            (1, split @ (8 | 10)) => Some(split),
            (1, _) => Some(6),
            _ => None,
        };
        let bytes_log2 = match split {
            Some(split) => written.saturating_sub(split).saturating_add(3).max(6),
            None => written.saturating_add(6),
        };
        Self {
            base: aligned(base & Self::ADDRESS, bytes_log2),
            log2size,
            split,
        }
    }

    /// Reads a stream's entry, from level 1 on: Linux links level-2 tables without a command.
    pub(crate) fn find(
        &self,
        memory: &impl GuestMemory,
        stream: StreamId,
    ) -> Result<Found, Missing> {
        let sid = u64::from(stream.bits());
        if sid.checked_shr(self.log2size) != Some(0) {
            return Err(Missing::StreamId);
        }
        let (level1, table, index) = match self.split {
            None => (None, self.base, sid),
            Some(split) => {
                let index = sid.checked_shr(split).unwrap_or(0);
                let at = self.base.saturating_add(index.saturating_mul(8));
                let [raw] = words(memory, at).map_err(|_| Missing::Fetch(at))?;
                let descriptor = L1Std(raw);
                let span = byte(descriptor.span(), 0, 0x1f);
                let bits = match u32::from(span).checked_sub(1) {
                    Some(bits) if bits <= split => bits,
                    _ => return Err(Missing::StreamId),
                };
                let index = sid & !aligned(u64::MAX, split);
                if index.checked_shr(bits) != Some(0) {
                    return Err(Missing::StreamId);
                }
                let table = aligned(descriptor.pointer(), bits.saturating_add(6));
                (Some((at, raw)), table, index)
            }
        };
        let at = table.saturating_add(index.saturating_mul(64));
        let ste = words(memory, at).map_err(|_| Missing::Fetch(at))?;
        Ok(Found {
            level1,
            at,
            ste: GuestSte(ste),
        })
    }
}
