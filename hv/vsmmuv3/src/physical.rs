//! What a guest's SMMU asks of the machine's.

use iommu::{GuestInvalidation, NestedConfig, VaScope};
use smmuv3::spec::{Depth, Range};
use types::{Asid, StreamId, SubstreamId};

/// The most invalidations that go out at once.
pub const BATCH: usize = 64;

/// Addresses of one invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VaRange {
    /// The first address; a multiple of the granule, or of 4 KiB when the range names none.
    pub va: u64,
    /// How far: legal in every combination of its fields. [`Range::LEAF`] is the one leaf that
    /// translates `va`, whatever its size.
    pub range: Range,
    /// Whether tables that lead to the leaves are meant, too.
    pub depth: Depth,
}

impl VaRange {
    /// The last address, included; `None` for [`Range::LEAF`], whose size nobody but the TLB knows.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        let shift = granule_shift(self.range.granule)?;
        let granules = u64::from(self.range.num)
            .saturating_add(1)
            .checked_shl(self.range.scale.into())?;
        let bytes = granules.checked_mul(1_u64.checked_shl(shift)?)?;
        Some(self.va.saturating_add(bytes.checked_sub(1)?))
    }
}

/// Log2 of the bytes of a granule by `TG`: 4, 16, 64 KiB.
pub(crate) const fn granule_shift(tg: u8) -> Option<u32> {
    match tg {
        1 => Some(12),
        2 => Some(14),
        3 => Some(16),
        _ => None,
    }
}

/// An invalidation that the guest asked for, judged. It names the guest's streams; the VM is the
/// caller's to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// All stage-1 translations of the VM.
    All,
    /// Those of an address space, global ones excepted.
    Asid(Asid),
    /// Those of a range in an address space, global ones included.
    Va {
        /// The address space.
        asid: Asid,
        /// The addresses.
        at: VaRange,
    },
    /// Those of a range in every address space.
    Vaa(VaRange),
    /// Cached context descriptors of a stream that translates.
    Context {
        /// The guest's stream.
        stream: StreamId,
        /// The substream; `None` for all.
        substream: Option<SubstreamId>,
    },
    /// What the device itself caches. Only for streams for which the guest turned ATS on.
    Atc {
        /// The guest's stream.
        stream: StreamId,
        /// The substream, when the request carried one.
        substream: Option<SubstreamId>,
        /// The first address.
        first: u64,
        /// The last address, included.
        last: u64,
    },
}

impl Invalidation {
    /// The same as a record of the IOMMU core. A substream of an ATC invalidation is left to the core,
    /// which has none.
    #[must_use]
    pub fn for_core(&self) -> GuestInvalidation {
        match *self {
            Self::All => GuestInvalidation::All,
            Self::Asid(asid) => GuestInvalidation::Asid(asid),
            Self::Va { asid, at } => at.for_core(Some(asid)),
            Self::Vaa(at) => at.for_core(None),
            Self::Context { stream, substream } => GuestInvalidation::Context {
                virtual_id: stream.bits().into(),
                substream,
            },
            Self::Atc {
                stream,
                first,
                last,
                ..
            } => GuestInvalidation::Atc {
                virtual_id: stream.bits().into(),
                start: first,
                last,
            },
        }
    }
}

impl VaRange {
    fn for_core(&self, asid: Option<Asid>) -> GuestInvalidation {
        let shift = granule_shift(self.range.granule).and_then(|shift| u8::try_from(shift).ok());
        match (shift, self.last()) {
            (Some(granule_shift), Some(last)) => GuestInvalidation::Range {
                asid,
                range: iommu::VaRange {
                    first: self.va,
                    last,
                    granule_shift,
                    level: self.range.level,
                    scope: match self.depth {
                        Depth::Leaf => VaScope::Leaves,
                        Depth::All => VaScope::Walks,
                    },
                },
            },
            _ if self.range.granule == 0 => GuestInvalidation::Page { asid, va: self.va },
            _ => GuestInvalidation::All,
        }
    }
}

/// A stream was not switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Resources or policy do not allow it. What was live before still is.
    #[error("the configuration is not to be had")]
    Refused,
    /// The hardware did not confirm: what is live is not known.
    #[error("the hardware did not confirm the switch")]
    Failed,
}

/// Invalidations were not all done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A device did not answer an ATC invalidation. Everything else was done.
    #[error("a device did not answer an ATC invalidation")]
    AtcTimeout,
    /// The hardware did not confirm: old translations may be live.
    #[error("the hardware did not confirm the invalidations")]
    Failed,
}

/// The machine's side of one guest SMMU: its integrator implements it over the IOMMU core.
///
/// Both methods return when the hardware is done, within the bounded wait of its driver.
pub trait Physical {
    /// Switches one of the guest's streams. A device sees the old or the new configuration, and
    /// when this returns only the new. Going to [`NestedConfig::ABORT`] is never [`Refusal::Refused`]. To
    /// [`NestedConfig::INVALID`] the stream aborts, and the hardware records each access as `C_BAD_STE`, unless it floods.
    ///
    /// # Errors
    /// [`Refusal`].
    fn set_stream(&mut self, stream: StreamId, config: &NestedConfig) -> Result<(), Refusal>;

    /// Carries at most [`BATCH`] invalidations out, and waits once.
    ///
    /// # Errors
    /// [`Failure`].
    fn invalidate(&mut self, batch: &[Invalidation]) -> Result<(), Failure>;
}

impl<T: Physical + ?Sized> Physical for &mut T {
    fn set_stream(&mut self, stream: StreamId, config: &NestedConfig) -> Result<(), Refusal> {
        (**self).set_stream(stream, config)
    }

    fn invalidate(&mut self, batch: &[Invalidation]) -> Result<(), Failure> {
        (**self).invalidate(batch)
    }
}

/// Invalidations that wait for the guest's next `CMD_SYNC`.
#[derive(Debug)]
pub(crate) struct Batch {
    entries: [Invalidation; BATCH],
    len: usize,
    /// All translations go, and no context descriptor since: by the old one of those new ones can be made until then.
    all: bool,
}

impl Batch {
    pub(crate) const fn new() -> Self {
        Self {
            entries: [Invalidation::All; BATCH],
            len: 0,
            all: false,
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len >= BATCH
    }

    /// Adds an entry, unless all translations go anyway or it repeats the one before.
    pub(crate) fn push(&mut self, entry: Invalidation) {
        match entry {
            Invalidation::All
            | Invalidation::Asid(_)
            | Invalidation::Va { .. }
            | Invalidation::Vaa(_)
                if self.all =>
            {
                return;
            }
            Invalidation::All => self.all = true,
            Invalidation::Context { .. } => self.all = false,
            _ => {}
        }
        if self.entries().last() == Some(&entry) {
            return;
        }
        if let Some(slot) = self.entries.get_mut(self.len) {
            *slot = entry;
            self.len = self.len.saturating_add(1);
        }
    }

    /// Drops what names a stream that is the guest's no more.
    pub(crate) fn drop_stream(&mut self, gone: StreamId) {
        let names = |entry: &Invalidation| match entry {
            Invalidation::Context { stream, .. } | Invalidation::Atc { stream, .. } => {
                *stream == gone
            }
            Invalidation::All
            | Invalidation::Asid(_)
            | Invalidation::Va { .. }
            | Invalidation::Vaa(_) => false,
        };
        let old = core::mem::replace(self, Self::new());
        for entry in old.entries().iter().filter(|entry| !names(entry)) {
            self.push(*entry);
        }
    }

    pub(crate) fn entries(&self) -> &[Invalidation] {
        self.entries.get(..self.len).unwrap_or_default()
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
        self.all = false;
    }
}
