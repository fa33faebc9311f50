//! The live proof: a stream followed at an address through the guest's tables, in software.
//!
//! Nothing here is used for translation: hardware does that. The walk reads the tables in the
//! guest's memory as they are now, which is what the hardware reads unless it has them cached.

use iommu::{ContextFormat, DefaultSubstream, NestedConfig, StageOne, Translate};
use smmuv3::spec::EventId;
use types::{Ipa, Pa, StreamId, SubstreamId};

use crate::entry::{BadSte, GuestSte, Missing, aligned};
use crate::features::Features;
use crate::memory::{GuestMemory, words};
use crate::vsmmu::VSmmu;

/// What a device wants to do at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read,
    /// Write.
    Write,
}

/// What a step of a walk read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The guest's SMMU is off: what `GBPA` says.
    Off(NestedConfig),
    /// A level-1 stream table descriptor.
    StreamTable {
        /// Where it lies.
        at: u64,
        /// What it is.
        descriptor: u64,
    },
    /// The stream table entry, and what is thought of it.
    Ste {
        /// Where it lies.
        at: u64,
        /// What it is.
        ste: GuestSte,
        /// What it asks for.
        judged: Result<NestedConfig, BadSte>,
    },
    /// A level-1 context descriptor table entry.
    ContextTable {
        /// Where it lies.
        at: u64,
        /// Where stage 2 puts it.
        pa: Pa,
        /// What it is.
        descriptor: u64,
    },
    /// The context descriptor.
    Cd {
        /// Where it lies.
        at: u64,
        /// Where stage 2 puts it.
        pa: Pa,
        /// Its words 0 to 3: shape, roots, memory attributes.
        words: [u64; 4],
    },
    /// A stage-1 descriptor.
    Table {
        /// Its level, 0 to 3.
        level: u8,
        /// Where it lies.
        at: u64,
        /// Where stage 2 puts it.
        pa: Pa,
        /// What it is.
        descriptor: u64,
    },
    /// Stage 1 is through.
    Output {
        /// The guest-physical address.
        ipa: u64,
        /// Where stage 2 puts it.
        pa: Pa,
    },
}

/// The most steps of a walk.
pub const MOST_STEPS: usize = 12;

/// How a walk ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The access reaches memory.
    Reached(Pa),
    /// It aborts without a record.
    Aborts,
    /// The guest's tables do not allow it: the record's type.
    Fault(EventId),
    /// Stage 2 does not take a guest-physical address.
    StageTwo(u64),
}

/// A walk: its steps in order, and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    steps: [Option<Step>; MOST_STEPS],
    end: End,
}

impl Walk {
    /// The steps, in order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().flatten()
    }

    /// How it ended.
    #[must_use]
    pub fn end(&self) -> End {
        self.end
    }
}

struct Walker<'a, M, S> {
    features: &'a Features,
    memory: &'a M,
    stage_two: S,
    steps: [Option<Step>; MOST_STEPS],
    next: usize,
}

/// The lower or the upper range of a context descriptor.
#[derive(Clone, Copy)]
struct Half {
    tsz: u32,
    /// Log2 of the granule.
    granule: u32,
    root: u64,
    no_hierarchy: bool,
}

/// Where a context descriptor is, or what an access gets without one.
enum Context {
    At(u64),
    Bypass,
}

type Stop<T> = Result<T, End>;

const fn bit(word: u64, at: u32) -> bool {
    word >> (at & 63) & 1 != 0
}

const fn field(word: u64, at: u32, mask: u8) -> u32 {
    ((word >> (at & 63)).to_le_bytes()[0] & mask) as u32
}

fn fault<T>(id: EventId) -> Stop<T> {
    Err(End::Fault(id))
}

const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

impl<M: GuestMemory, S: FnMut(Ipa) -> Option<Pa>> Walker<'_, M, S> {
    fn note(&mut self, step: Step) {
        if let Some(slot) = self.steps.get_mut(self.next) {
            *slot = Some(step);
            self.next = self.next.saturating_add(1);
        }
    }

    /// What stage 2 makes of an address.
    fn through(&mut self, ipa: u64) -> Stop<Pa> {
        let typed = Ipa::new(ipa).map_err(|_| End::StageTwo(ipa))?;
        (self.stage_two)(typed).ok_or(End::StageTwo(ipa))
    }

    fn out(&mut self, ipa: u64) -> Stop<Pa> {
        let pa = self.through(ipa)?;
        self.note(Step::Output { ipa, pa });
        Ok(pa)
    }

    fn context(&mut self, t: &Translate, substream: Option<SubstreamId>) -> Stop<Context> {
        let index = match (t.substream_bits, substream, t.default_substream) {
            (0, None, _) | (1.., None, DefaultSubstream::Substream0) => 0,
            (0, Some(_), _) => return fault(EventId::CBadSubstreamid),
            (_, None, DefaultSubstream::Terminate) => return fault(EventId::FStreamDisabled),
            (_, None, DefaultSubstream::Bypass) => return Ok(Context::Bypass),
            (bits, Some(substream), _) => {
                if substream.bits().checked_shr(bits.into()) != Some(0) {
                    return fault(EventId::CBadSubstreamid);
                }
                u64::from(substream.bits())
            }
        };
        let leaf_bits = match t.format {
            ContextFormat::Linear => {
                return Ok(Context::At(t.base.saturating_add(index.saturating_mul(64))));
            }
            ContextFormat::TwoLevel4K => 6_u32,
            ContextFormat::TwoLevel64K => 10,
        };
        let level1 = index.checked_shr(leaf_bits).unwrap_or(0);
        let at = t.base.saturating_add(level1.saturating_mul(8));
        let pa = self.through(at)?;
        let [descriptor] = words(self.memory, at).map_err(|_| End::Fault(EventId::FCdFetch))?;
        self.note(Step::ContextTable { at, pa, descriptor });
        if !bit(descriptor, 0) {
            return fault(EventId::CBadSubstreamid);
        }
        let leaf = index & !aligned(u64::MAX, leaf_bits);
        let table = aligned(
            descriptor & 0x000f_ffff_ffff_f000,
            leaf_bits.saturating_add(6),
        );
        Ok(Context::At(table.saturating_add(leaf.saturating_mul(64))))
    }

    fn half(&self, cd: &[u64; 4], address: u64) -> Stop<Half> {
        let [word0, ttb0, ttb1, _] = *cd;
        let (tsz, tg, root, off, ignores_top) = if bit(address, 55) {
            let tg = match field(word0, 22, 3) {
                1 => Some(14),
                2 => Some(12),
                3 => Some(16),
                _ => None,
            };
            (
                field(word0, 16, 0x3f),
                tg,
                ttb1,
                bit(word0, 30),
                bit(word0, 39),
            )
        } else {
            let tg = match field(word0, 6, 3) {
                0 => Some(12),
                1 => Some(16),
                2 => Some(14),
                _ => None,
            };
            (
                field(word0, 0, 0x3f),
                tg,
                ttb0,
                bit(word0, 14),
                bit(word0, 38),
            )
        };
        if off {
            return fault(EventId::FTranslation);
        }
        let granule = match tg {
            Some(12) if self.features.idr5.gran4k() => 12,
            Some(14) if self.features.idr5.gran16k() => 14,
            Some(16) if self.features.idr5.gran64k() => 16,
            _ => return fault(EventId::CBadCd),
        };
        let least = if granule == 16 && self.features.idr5.vax() == 1 {
            12
        } else {
            16
        };
        if !(least..=39).contains(&tsz) {
            return fault(EventId::CBadCd);
        }
        // All bits above the input size are alike; the top byte may be ignored.
        let bits = 64_u32.saturating_sub(tsz);
        let above = if ignores_top {
            address << 8 >> 8
        } else {
            address
        };
        let top = if bit(address, 55) {
            let ones = if ignores_top { u64::MAX >> 8 } else { u64::MAX };
            above ^ ones
        } else {
            above
        };
        if top.checked_shr(bits) != Some(0) {
            return fault(EventId::FTranslation);
        }
        Ok(Half {
            tsz,
            granule,
            root: root & 0x000f_ffff_ffff_fff0,
            no_hierarchy: bit(root, 1),
        })
    }

    fn descriptor(&mut self, at: u64, address: u64) -> Stop<([u64; 4], Half)> {
        let pa = self.through(at)?;
        let cd: [u64; 4] = words(self.memory, at).map_err(|_| End::Fault(EventId::FCdFetch))?;
        self.note(Step::Cd { at, pa, words: cd });
        let [word0, ..] = cd;
        let valid = bit(word0, 31);
        let is_aarch64 = bit(word0, 41);
        let big_endian = bit(word0, 15);
        let stalls = bit(word0, 44);
        let updates = bit(word0, 42) || bit(word0, 43);
        let terminates_silently = self.features.idr0.term_model() && !bit(word0, 46);
        if !valid || !is_aarch64 || big_endian || stalls || updates || terminates_silently {
            return fault(EventId::CBadCd);
        }
        let half = self.half(&cd, address)?;
        Ok((cd, half))
    }

    fn stage_one(&mut self, cd: &[u64; 4], half: Half, address: u64, access: Access) -> Stop<u64> {
        let [word0, ..] = *cd;
        let ips = match field(word0, 32, 7) {
            0 => 32_u32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            5 => 48,
            _ => 52,
        };
        let output = ips.min(self.features.output_bits().into());
        let beyond = |ipa: u64| ipa.checked_shr(output) != Some(0);
        let stride = half.granule.saturating_sub(3);
        let bits = 64_u32.saturating_sub(half.tsz);
        let levels = bits.saturating_sub(half.granule).div_ceil(stride.max(1));
        let mut level = 4_u32.saturating_sub(levels);
        // The root table is aligned to its size, of which only the top level's share is used.
        let mut table = half.root;
        let mut read_only = false;
        let input = address & !aligned(u64::MAX, bits);
        loop {
            if beyond(table) {
                return fault(EventId::FAddrSize);
            }
            let below = 3_u32.saturating_sub(level).saturating_mul(stride);
            let shift = half.granule.saturating_add(below);
            let index = input.checked_shr(shift).unwrap_or(0);
            let index = if level == 4_u32.saturating_sub(levels) {
                index
            } else {
                index & !aligned(u64::MAX, stride)
            };
            let at = table.saturating_add(index.saturating_mul(8));
            let pa = self.through(at)?;
            let [descriptor] =
                words(self.memory, at).map_err(|_| End::Fault(EventId::FWalkEabt))?;
            let [number, ..] = level.to_le_bytes();
            self.note(Step::Table {
                level: number,
                at,
                pa,
                descriptor,
            });
            let mut next = aligned(descriptor & ADDRESS, half.granule);
            if half.granule == 16 {
                // Bits 15:12 are address bits 51:48.
                next |= (descriptor >> 12 & 0xf) << 48;
            }
            match (descriptor & 3, level) {
                (3, 0..=2) => {
                    if !half.no_hierarchy && bit(descriptor, 62) {
                        read_only = true;
                    }
                    table = next;
                    level = level.saturating_add(1);
                }
                (3, _) | (1, 1 | 2) => {
                    let is_block = level < 3;
                    if is_block && half.granule != 12 && level != 2 {
                        return fault(EventId::FTranslation);
                    }
                    let base = aligned(next, shift);
                    if beyond(base) {
                        return fault(EventId::FAddrSize);
                    }
                    if !bit(descriptor, 10) && !bit(word0, 35) {
                        return fault(EventId::FAccess);
                    }
                    if access == Access::Write && (read_only || bit(descriptor, 7)) {
                        return fault(EventId::FPermission);
                    }
                    return Ok(base | input & !aligned(u64::MAX, shift));
                }
                _ => return fault(EventId::FTranslation),
            }
        }
    }

    fn follow(
        &mut self,
        smmu: &VSmmu,
        (stream, substream): (StreamId, Option<SubstreamId>),
        address: u64,
        access: Access,
    ) -> Stop<Pa> {
        let config = match smmu.while_off() {
            Some(config) => {
                self.note(Step::Off(config));
                config
            }
            None => {
                let found = smmu.table().find(self.memory, stream);
                let found = found.map_err(|missing| match missing {
                    Missing::StreamId => End::Fault(EventId::CBadStreamid),
                    Missing::Fetch(_) => End::Fault(EventId::FSteFetch),
                })?;
                if let Some((at, descriptor)) = found.level1 {
                    self.note(Step::StreamTable { at, descriptor });
                }
                let judged = found.ste.judge(self.features);
                self.note(Step::Ste {
                    at: found.at,
                    ste: found.ste,
                    judged,
                });
                judged.map_err(|_| End::Fault(EventId::CBadSte))?
            }
        };
        let translate = match config.stage_one {
            StageOne::Abort => return Err(End::Aborts),
            StageOne::Invalid => return fault(EventId::CBadSte),
            StageOne::Bypass => return self.out(address),
            StageOne::Translate(translate) => translate,
        };
        match self.context(&translate, substream)? {
            Context::Bypass => self.out(address),
            Context::At(at) => {
                let (cd, half) = self.descriptor(at, address)?;
                let ipa = self.stage_one(&cd, half, address, access)?;
                self.out(ipa)
            }
        }
    }
}

impl VSmmu {
    /// Follows an access of one of the guest's streams through the guest's tables as they are now.
    /// `stage_two` says where stage 2 puts a guest-physical address, for every table but the stream
    /// table, which the hardware never reads.
    ///
    /// It reads at most 8 places of the guest's memory.
    pub fn walk(
        &self,
        stream: (StreamId, Option<SubstreamId>),
        address: u64,
        access: Access,
        memory: &impl GuestMemory,
        stage_two: impl FnMut(Ipa) -> Option<Pa>,
    ) -> Walk {
        let mut walker = Walker {
            features: self.features(),
            memory,
            stage_two,
            steps: [None; MOST_STEPS],
            next: 0,
        };
        let end = match walker.follow(self, stream, address, access) {
            Ok(pa) => End::Reached(pa),
            Err(end) => end,
        };
        Walk {
            steps: walker.steps,
            end,
        }
    }
}
