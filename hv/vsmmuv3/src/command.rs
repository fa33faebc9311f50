//! What becomes of a guest's command: forwarded, emulated, or refused.

use iommu::{Ats, NestedConfig, StageOne};
use smmuv3::spec::command::Raw;
use smmuv3::spec::{Command, Completion, Depth, Range};
use types::{Asid, StreamId, SubstreamId};

use crate::features::{Features, SingleAddress};
use crate::physical::{Invalidation, VaRange, granule_shift};

/// A guest's command, judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// Nothing to do.
    Nothing,
    /// For the hardware, at the next `CMD_SYNC`.
    Invalidate(Invalidation),
    /// For the hardware, if the stream translates.
    Context {
        stream: StreamId,
        substream: Option<SubstreamId>,
    },
    /// For the device, if the stream has ATS on.
    Atc {
        stream: StreamId,
        substream: Option<SubstreamId>,
        first: u64,
        last: u64,
    },
    /// Entries of these streams are to be read again.
    Entries { first: u32, last: u32 },
    /// Everything before is to be complete.
    Sync(Completion),
}

/// `CERROR_ILL`. [IHI 0070 §7.1]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IllegalCommand;

/// Judges a command that was copied from the guest's queue.
pub(crate) fn judge(raw: Raw, features: &Features) -> Result<Judged, IllegalCommand> {
    let command = Command::decode(raw).map_err(|_| IllegalCommand)?;
    let two_stages = features.has_stage_two();
    Ok(match command {
        Command::PrefetchConfig(_) | Command::PrefetchAddress(_) => Judged::Nothing,
        Command::CfgiSte { sid, .. } => Judged::Entries {
            first: sid.bits(),
            last: sid.bits(),
        },
        Command::CfgiSteRange { sid, range } => {
            let low = match range {
                31.. => u32::MAX,
                range => 2_u32.wrapping_shl(range.into()).wrapping_sub(1),
            };
            Judged::Entries {
                first: sid & !low,
                last: sid | low,
            }
        }
        Command::CfgiCd { sid, ssid, .. } => Judged::Context {
            stream: sid,
            substream: Some(SubstreamId::new(ssid).map_err(|_| IllegalCommand)?),
        },
        Command::CfgiCdAll(sid) => Judged::Context {
            stream: sid,
            substream: None,
        },
        Command::TlbiNhAll(_) | Command::TlbiNsnhAll => Judged::Invalidate(Invalidation::All),
        Command::TlbiNhAsid(_, asid) => {
            Judged::Invalidate(Invalidation::Asid(narrow(asid, features)))
        }
        Command::TlbiNhVa {
            asid,
            va,
            range,
            depth,
            ..
        } => Judged::Invalidate(match by_address(va, range, depth, features) {
            Some(at) => Invalidation::Va {
                asid: narrow(asid, features),
                at,
            },
            None => Invalidation::All,
        }),
        Command::TlbiNhVaa {
            va, range, depth, ..
        } => Judged::Invalidate(match by_address(va, range, depth, features) {
            Some(at) => Invalidation::Vaa(at),
            None => Invalidation::All,
        }),
        Command::TlbiS12Vmall(_) | Command::TlbiS2Ipa { .. } if two_stages => {
            Judged::Invalidate(Invalidation::All)
        }
        Command::AtcInv {
            sid,
            ssid,
            address,
            size,
        } if features.ats() => {
            let (first, last) = atc_span(address, size);
            let substream = match ssid {
                Some(ssid) => Some(SubstreamId::new(ssid).map_err(|_| IllegalCommand)?),
                None => None,
            };
            Judged::Atc {
                stream: sid,
                substream,
                first,
                last,
            }
        }
        Command::Sync(completion) => Judged::Sync(completion),
        // What needs a stage 2 or ATS, which the guest was not told to have. And whatever else the
        // decoder comes to know.
        _ => return Err(IllegalCommand),
    })
}

/// With 8-bit ASIDs the upper byte is RES0. [IHI 0070 §4.4.1]
fn narrow(asid: Asid, features: &Features) -> Asid {
    if features.idr0.asid16() {
        return asid;
    }
    Asid::new(asid.bits() & 0xff).unwrap_or(asid)
}

/// The addresses of a TLB invalidation, legal in every field for hardware; `None` where only an
/// invalidation of everything covers what was meant.
fn by_address(va: u64, range: Range, depth: Depth, features: &Features) -> Option<VaRange> {
    // Without range invalidation, TG, NUM, SCALE and TTL are RES0. [IHI 0070 §4.4.1.1]
    let shift = match granule_shift(range.granule) {
        Some(shift) if features.idr3.ril() => shift,
        _ => {
            return match features.options.single_address {
                SingleAddress::WholeLeaf => Some(VaRange {
                    va: va & !0xfff,
                    range: Range::LEAF,
                    depth,
                }),
                SingleAddress::FourKilobytes => None,
            };
        }
    };
    let granules = match range.granule {
        1 => features.idr5.gran4k(),
        2 => features.idr5.gran16k(),
        _ => features.idr5.gran64k(),
    };
    if !granules {
        return None;
    }
    // Level 1 leaves exist with the 4 KiB granule only: any level is the wider hint.
    let level = match (range.granule, range.level) {
        (1, level) => level,
        (_, level @ (2 | 3)) => level,
        _ => 0,
    };
    let mask = 1_u64.checked_shl(shift)?.wrapping_sub(1);
    let start = va & !mask;
    // From an address that is not aligned to a leaf of that level, what is invalidated is UNPREDICTABLE.
    let above = 3_u32.saturating_sub(level.into());
    let leaf = shift.saturating_add(shift.saturating_sub(3).saturating_mul(above));
    let level = if start.trailing_zeros() >= leaf {
        level
    } else {
        0
    };
    // NUM, SCALE and TTL all zero is reserved with a granule: two granules cover one.
    let num = if range.num == 0 && range.scale == 0 && level == 0 {
        1
    } else {
        range.num
    };
    let at = VaRange {
        va: start,
        range: Range {
            num,
            scale: range.scale,
            granule: range.granule,
            level,
        },
        depth,
    };
    // A misaligned start reaches one granule less far than meant, and a range that leaves the
    // address space means something else to every implementation.
    let last = at.last()?;
    let wraps = last == u64::MAX && start != 0;
    (start == va && !wraps).then_some(at)
}

/// The addresses of `CMD_ATC_INV`: 2^`size` pages of 4 KiB, aligned to that; 52 and more are all.
/// [IHI 0070 §4.5.1]
fn atc_span(address: u64, size: u8) -> (u64, u64) {
    match 0x1000_u64.checked_shl(size.into()) {
        Some(bytes) if bytes != 0 && size < 52 => {
            let low = bytes.wrapping_sub(1);
            (address & !low, address | low)
        }
        _ => (0, u64::MAX),
    }
}

/// The invalidation of a stream's context descriptors, where the stream has any.
pub(crate) fn context_of(
    live: &NestedConfig,
    stream: StreamId,
    substream: Option<SubstreamId>,
) -> Option<Invalidation> {
    let StageOne::Translate(translate) = live.stage_one else {
        return None;
    };
    // With one descriptor the substream is ignored. [IHI 0070 §4.3.4]
    let none = SubstreamId::new(0).ok();
    let substream = match (translate.substream_bits, substream) {
        (_, None) => None,
        (0, Some(_)) => none,
        (bits, Some(substream)) => {
            if substream.bits().checked_shr(bits.into()) != Some(0) {
                return None;
            }
            Some(substream)
        }
    };
    Some(Invalidation::Context { stream, substream })
}

/// Whether ATC invalidations are sent to a stream's device.
pub(crate) fn has_atc(live: &NestedConfig) -> bool {
    live.ats == Ats::On
}
