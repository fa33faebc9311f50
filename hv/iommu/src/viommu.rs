//! A guest's own IOMMU: its device numbers, its stage 1, its invalidations.

use alloc::vec::Vec;

use types::{Asid, Span, SubstreamId};

use crate::area::span;
use crate::arena::{Arena, Id, Kind, Object};
use crate::backend::{Backend, StageOneInvalidation, UnitId, VaRange, VaScope};
use crate::codec::{CodecError, Declared};
use crate::domain::{DomainId, DomainKind};
use crate::event::EventQueueId;
use crate::group::{Coherence, Device, DeviceId, Sources};
use crate::nested::{Ats, NestedConfig, StageOne};
use crate::{Error, Feature, InvalidationRefusal, Iommu, OwnerId};

/// The name of a [`Viommu`].
pub type ViommuId = Id<Viommu>;
/// The name of a [`Vdevice`].
pub type VdeviceId = Id<Vdevice>;

/// How many invalidations one request may carry: a guest must not hold a CPU for longer.
pub const MAX_INVALIDATIONS: usize = 64;

/// The IOMMU that a guest sees in front of its devices behind one physical unit.
#[derive(Debug)]
pub struct Viommu {
    owner: OwnerId,
    unit: UnitId,
    parent: DomainId,
    /// By virtual id.
    vdevices: Vec<(u64, VdeviceId)>,
    pub(crate) queues: Vec<EventQueueId>,
    /// Nested domains.
    pub(crate) users: u32,
}

impl Object for Viommu {
    const KIND: Kind = Kind::Viommu;
}

impl Viommu {
    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> OwnerId {
        self.owner
    }

    /// The physical unit behind it.
    #[must_use]
    pub fn unit(&self) -> UnitId {
        self.unit
    }

    /// The stage 2 below it.
    #[must_use]
    pub fn parent(&self) -> DomainId {
        self.parent
    }
}

/// A device as the guest's IOMMU numbers it.
#[derive(Debug)]
pub struct Vdevice {
    viommu: ViommuId,
    /// None once the device was unbound: the number is kept, and reaches nothing.
    pub(crate) device: Option<DeviceId>,
    virtual_id: u64,
}

impl Object for Vdevice {
    const KIND: Kind = Kind::Vdevice;
}

impl Vdevice {
    /// The guest's IOMMU that it belongs to.
    #[must_use]
    pub fn viommu(&self) -> ViommuId {
        self.viommu
    }

    /// The device; `None` once it is gone.
    #[must_use]
    pub fn device(&self) -> Option<DeviceId> {
        self.device
    }

    /// The guest's number for it.
    #[must_use]
    pub fn virtual_id(&self) -> u64 {
        self.virtual_id
    }
}

/// An invalidation as a guest asks for it, decoded, with the guest's identities.
///
/// What it holds is aligned to eight bytes, so that a move of it is a few instructions where unaligned accesses are not to
/// be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum GuestInvalidation {
    /// All of its stage-1 translations.
    All,
    /// An address space's.
    Asid(Asid),
    /// A page's, of one address space or of all.
    Page {
        /// The address space; `None` for every one.
        asid: Option<Asid>,
        /// The virtual address.
        va: u64,
    },
    /// A range of pages', of one address space or of all.
    Range {
        /// The address space; `None` for every one.
        asid: Option<Asid>,
        /// The pages.
        range: VaRange,
    },
    /// A context descriptor's.
    Context {
        /// The device, by the guest's number.
        virtual_id: u64,
        /// The substream; `None` for all.
        substream: Option<SubstreamId>,
    },
    /// Those a device itself caches.
    Atc {
        /// The device, by the guest's number.
        virtual_id: u64,
        /// The addresses.
        start: u64,
        /// The last address, included.
        last: u64,
    },
}

impl GuestInvalidation {
    /// Bytes of the first version of the record.
    pub const LEAST: usize = 40;
    /// Bytes of the newest version.
    pub const KNOWN: usize = 40;

    /// Reads a record: kind u32 at 0 (0 all, 1 ASID, 2 page, 3 context, 4 ATC, 5 range), flags u32 at 4
    /// (bit 0: the ASID or substream is given), virtual id u64 at 8 (of a range: log2 of the granule in
    /// bits 7:0, level in bits 15:8, bit 16: leaves only), ASID or substream u32 at 16,
    /// reserved u32 at 20, first address u64 at 24, last address u64 at 32.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn decode(declared: usize, passed: &[u8]) -> Result<Self, CodecError> {
        let record = Declared::new(declared, passed, Self::LEAST, Self::KNOWN)?;
        let given = record.flags(4, 1)? != 0;
        record.reserved_u32(20)?;
        let tag = record.u32(16);
        let bad_tag = CodecError::BadValue {
            at: 16,
            value: tag.into(),
        };
        let asid = || {
            u16::try_from(tag)
                .map_err(|_| bad_tag)
                .and_then(|bits| Asid::new(bits).map_err(|_| bad_tag))
        };
        let (start, last) = (record.u64(24), record.u64(32));
        Ok(match record.u32(0) {
            0 => Self::All,
            1 => Self::Asid(asid()?),
            2 => Self::Page {
                asid: if given { Some(asid()?) } else { None },
                va: start,
            },
            3 => Self::Context {
                virtual_id: record.u64(8),
                substream: if given {
                    Some(SubstreamId::new(tag).map_err(|_| bad_tag)?)
                } else {
                    None
                },
            },
            4 if start <= last => Self::Atc {
                virtual_id: record.u64(8),
                start,
                last,
            },
            4 => {
                return Err(CodecError::BadValue {
                    at: 32,
                    value: last,
                });
            }
            5 => Self::Range {
                asid: if given { Some(asid()?) } else { None },
                range: VaRange::decode(record.u64(8), start, last)?,
            },
            other => {
                return Err(CodecError::Unsupported {
                    at: 0,
                    value: other.into(),
                });
            }
        })
    }
}

impl VaRange {
    /// From the shape word of a record and its addresses.
    fn decode(shape: u64, first: u64, last: u64) -> Result<Self, CodecError> {
        const LEAVES: u64 = 1 << 16;
        let [granule_shift, level, ..] = shape.to_le_bytes();
        let granule = match granule_shift {
            12 | 14 | 16 => 1_u64 << granule_shift,
            _ => 0,
        };
        if granule == 0 || level > 3 || shape >> 17 != 0 {
            return Err(CodecError::BadValue {
                at: 8,
                value: shape,
            });
        }
        let mask = granule.wrapping_sub(1);
        if first & mask != 0 {
            return Err(CodecError::BadValue {
                at: 24,
                value: first,
            });
        }
        if last & mask != mask || last < first {
            return Err(CodecError::BadValue {
                at: 32,
                value: last,
            });
        }
        Ok(Self {
            first,
            last,
            granule_shift,
            level,
            scope: match shape & LEAVES {
                0 => VaScope::Walks,
                _ => VaScope::Leaves,
            },
        })
    }
}

impl<B: Backend> Iommu<B> {
    /// Makes a guest's IOMMU over a nest parent, for devices behind the unit of `device`.
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::OtherOwner`], [`Error::NotANestParent`],
    /// [`Error::OtherUnit`], [`Error::OutOfMemory`].
    pub fn create_viommu(&mut self, device: DeviceId, parent: DomainId) -> Result<ViommuId, Error> {
        let device = self.devices.need(device)?;
        let owner = device.owner().ok_or(Error::NotBound)?;
        let domain = self.domains.need(parent)?;
        if domain.owner() != owner {
            return Err(Error::OtherOwner {
                object: parent.any(),
                owner: domain.owner(),
            });
        }
        if !domain.is_nest_parent() {
            return Err(Error::NotANestParent(parent.any()));
        }
        if domain.unit() != device.unit() {
            return Err(Error::OtherUnit(domain.unit()));
        }
        let viommu = Viommu {
            owner,
            unit: device.unit(),
            parent,
            vdevices: Vec::new(),
            queues: Vec::new(),
            users: 0,
        };
        let id = self.viommus.insert(&mut self.budget, viommu)?;
        self.use_domain(parent);
        Ok(id)
    }

    /// A guest's IOMMU.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`].
    pub fn viommu(&self, viommu: ViommuId) -> Result<&Viommu, Error> {
        self.viommus.need(viommu)
    }

    /// A guest's device.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`].
    pub fn vdevice(&self, vdevice: VdeviceId) -> Result<&Vdevice, Error> {
        self.vdevices.need(vdevice)
    }

    /// Gives up a guest's IOMMU that nothing depends on.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`]; [`Error::Busy`] while it has virtual devices, nested domains or
    /// event queues.
    pub fn destroy_viommu(&mut self, id: ViommuId) -> Result<(), Error> {
        let viommu = self.viommus.need(id)?;
        let lists = viommu.vdevices.len().saturating_add(viommu.queues.len());
        let users = viommu
            .users
            .saturating_add(u32::try_from(lists).unwrap_or(u32::MAX));
        if users > 0 {
            return Err(Error::Busy {
                object: id.any(),
                users,
            });
        }
        let parent = viommu.parent;
        self.viommus.remove(id);
        self.release_domain(parent);
        Ok(())
    }

    /// Gives a device the guest's number for it. Numbers and devices are one to one.
    ///
    /// # Errors
    /// [`Error::OtherOwner`], [`Error::OtherUnit`], [`Error::AlreadyVirtual`],
    /// [`Error::OutOfMemory`].
    pub fn create_vdevice(
        &mut self,
        viommu_id: ViommuId,
        device_id: DeviceId,
        virtual_id: u64,
    ) -> Result<VdeviceId, Error> {
        let viommu = self.viommus.need_mut(viommu_id)?;
        let device = self.devices.need_mut(device_id)?;
        if device.owner() != Some(viommu.owner) {
            return Err(Error::OtherOwner {
                object: viommu_id.any(),
                owner: viommu.owner,
            });
        }
        if device.unit() != viommu.unit {
            return Err(Error::OtherUnit(viommu.unit));
        }
        if let Some(known) = device.vdevice {
            return Err(Error::AlreadyVirtual(known.any()));
        }
        let place = viommu
            .vdevices
            .binary_search_by_key(&virtual_id, |(known, _)| *known);
        let at = match place {
            Ok(at) => {
                let known = viommu.vdevices.get(at).map(|(_, known)| known.any());
                return Err(Error::AlreadyVirtual(known.unwrap_or(viommu_id.any())));
            }
            Err(at) => at,
        };
        self.budget.reserve(&mut viommu.vdevices, 1)?;
        let vdevice = Vdevice {
            viommu: viommu_id,
            device: Some(device_id),
            virtual_id,
        };
        let id = self.vdevices.insert(&mut self.budget, vdevice)?;
        viommu.vdevices.insert(at, (virtual_id, id));
        device.vdevice = Some(id);
        Ok(id)
    }

    /// Takes a number away from a device.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`]; [`Error::Busy`] while the device is in a nested domain, whose
    /// events and invalidations need the number.
    pub fn destroy_vdevice(&mut self, id: VdeviceId) -> Result<(), Error> {
        let vdevice = self.vdevices.need(id)?;
        if let Some(device) = vdevice.device
            && self.is_nested(device)
        {
            return Err(Error::Busy {
                object: id.any(),
                users: 1,
            });
        }
        if let Some(device) = vdevice.device.and_then(|id| self.devices.get_mut(id)) {
            device.vdevice = None;
        }
        if let Some(viommu) = self.viommus.get_mut(vdevice.viommu) {
            viommu.vdevices.retain(|(_, known)| *known != id);
        }
        self.vdevices.remove(id);
        Ok(())
    }

    fn is_nested(&self, id: DeviceId) -> bool {
        let Some(device) = self.devices.get(id).filter(|device| device.attached) else {
            return false;
        };
        if device.own.is_some() {
            return true;
        }
        let domain = self.groups.get(device.group()).and_then(|g| g.domain);
        domain
            .and_then(|domain| self.domains.get(domain))
            .is_some_and(|domain| matches!(domain.kind, DomainKind::Nested { .. }))
    }

    /// The device that a guest's number stands for.
    ///
    /// # Errors
    /// [`Error::NoSuchVirtualId`], for a device that is gone too.
    pub fn device_of(&self, viommu: ViommuId, virtual_id: u64) -> Result<DeviceId, Error> {
        let numbers = Numbers {
            viommu: self.viommus.need(viommu)?,
            vdevices: &self.vdevices,
            devices: &self.devices,
        };
        let device = numbers.device(virtual_id);
        device.ok_or(Error::NoSuchVirtualId(virtual_id))
    }

    /// Makes a nested domain: a guest's stage 1, as configured, over the nest parent.
    ///
    /// A change of configuration is a new domain, [`Iommu::replace`], and the end of the old one.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::Unsupported`] (ATS without a way to invalidate),
    /// [`Error::OutOfMemory`].
    pub fn create_nested(
        &mut self,
        viommu_id: ViommuId,
        config: NestedConfig,
    ) -> Result<DomainId, Error> {
        let viommu = self.viommus.need_mut(viommu_id)?;
        let caps = self
            .backend
            .capabilities(viommu.unit)
            .ok_or(Error::NoSuchUnit(viommu.unit))?;
        if config.ats == Ats::On && !caps.atc_invalidation {
            return Err(Error::Unsupported(Feature::Ats));
        }
        let domain = crate::domain::Domain::nested(
            viommu.owner,
            viommu.unit,
            viommu_id,
            viommu.parent,
            config,
        );
        let id = self.domains.insert(&mut self.budget, domain)?;
        viommu.users = viommu.users.saturating_add(1);
        Ok(id)
    }

    /// What speaks against a device in a nested domain.
    pub(crate) fn check_nested(
        &self,
        id: DeviceId,
        viommu: ViommuId,
        config: &NestedConfig,
    ) -> Result<(), Error> {
        let device = self.devices.need(id)?;
        let caps = self
            .backend
            .capabilities(device.unit())
            .ok_or(Error::NoSuchUnit(device.unit()))?;
        if let StageOne::Translate(_) = config.stage_one {
            // The guest's attributes win over ours unless something stops them.
            if device.coherence() != Coherence::CoherentAlways && !caps.forces_coherence {
                return Err(Error::NotCoherent);
            }
            let known = device.vdevice.and_then(|id| self.vdevices.get(id));
            if known.is_none_or(|known| known.viommu != viommu) {
                return Err(Error::NoVirtualDevice);
            }
        }
        if config.ats == Ats::On && device.ats() == Ats::Off {
            return Err(Error::Unsupported(Feature::Ats));
        }
        Ok(())
    }

    /// Whether a device may be told to cache translations: only in a nested domain whose guest
    /// promised the invalidations, behind a unit that can send them.
    ///
    /// # Errors
    /// [`Error::NotAttached`]; [`Error::Unsupported`] with [`Feature::Ats`].
    pub fn check_ats(&self, id: DeviceId) -> Result<(), Error> {
        let device = self.devices.need(id)?;
        if !device.attached {
            return Err(Error::NotAttached);
        }
        let domain = device.own.or(self.groups.need(device.group())?.domain);
        let domain = self.domains.need(domain.ok_or(Error::NotAttached)?)?;
        match &domain.kind {
            DomainKind::Nested { config, .. } if config.ats == Ats::On => Ok(()),
            _ => Err(Error::Unsupported(Feature::Ats)),
        }
    }

    /// Executes a guest's invalidations in order, and returns how many that were.
    ///
    /// # Errors
    /// [`Error::TooManyEntries`] beyond [`MAX_INVALIDATIONS`], before anything is done;
    /// [`Error::InvalidationStopped`] with how many were done before the one that failed.
    pub fn invalidate(
        &mut self,
        id: ViommuId,
        entries: &[GuestInvalidation],
    ) -> Result<usize, Error> {
        if entries.len() > MAX_INVALIDATIONS {
            return Err(Error::TooManyEntries {
                limit: MAX_INVALIDATIONS,
            });
        }
        self.carry_out(id, entries.len(), entries.iter().copied().map(Ok))
    }

    /// As [`Iommu::invalidate`], of entries that are made as they are needed.
    ///
    /// # Errors
    /// Those of [`Iommu::invalidate`].
    pub fn invalidate_each(
        &mut self,
        id: ViommuId,
        entries: impl ExactSizeIterator<Item = GuestInvalidation>,
    ) -> Result<usize, Error> {
        if entries.len() > MAX_INVALIDATIONS {
            return Err(Error::TooManyEntries {
                limit: MAX_INVALIDATIONS,
            });
        }
        self.carry_out(id, entries.len(), entries.map(Ok))
    }

    /// Executes a guest's invalidations from records of `each` bytes, of which there are `count`.
    ///
    /// # Errors
    /// Those of [`Iommu::invalidate`]; [`Error::Codec`] when records are missing.
    pub fn invalidate_records(
        &mut self,
        id: ViommuId,
        (each, count): (usize, usize),
        records: &[u8],
    ) -> Result<usize, Error> {
        if count > MAX_INVALIDATIONS {
            return Err(Error::TooManyEntries {
                limit: MAX_INVALIDATIONS,
            });
        }
        self.viommus.need(id)?;
        let declared = each.checked_mul(count).ok_or(Error::Overflow)?;
        if declared > records.len() {
            return Err(CodecError::Missing {
                declared,
                passed: records.len(),
            }
            .into());
        }
        let entries = (0..count).map(|at| {
            let from = at.saturating_mul(each);
            let record = records.get(from..).unwrap_or_default();
            GuestInvalidation::decode(each, record).map_err(InvalidationRefusal::Codec)
        });
        self.carry_out(id, count, entries)
    }

    /// Hands entries to the backend, up to the first that is refused.
    fn carry_out(
        &mut self,
        id: ViommuId,
        count: usize,
        entries: impl Iterator<Item = Result<GuestInvalidation, InvalidationRefusal>>,
    ) -> Result<usize, Error> {
        let viommu = self.viommus.need(id)?;
        let table = self.domains.get(viommu.parent);
        let Some(table) = table.and_then(crate::domain::Domain::table) else {
            return Ok(count);
        };
        let mut list = List {
            numbers: Numbers {
                viommu,
                vdevices: &self.vdevices,
                devices: &self.devices,
            },
            entries,
            handled: 0,
            repeated: 0,
            next: Next::Entry,
        };
        let done = self.backend.invalidate_stage_one(table, &mut list);
        let (handled, repeated) = (list.handled, list.repeated);
        done.map_err(|partial| Error::InvalidationStopped {
            // Of entries that are one each; where it was told of more of them than it did, rather too few.
            handled: partial.done.saturating_sub(repeated),
            because: InvalidationRefusal::Backend(partial.because),
        })?;
        match list.next {
            Next::Refused(because) => Err(Error::InvalidationStopped { handled, because }),
            Next::Entry | Next::Again(..) => Ok(handled),
        }
    }
}

/// A guest's entries with physical identities, up to the first that is refused.
struct List<'a, I> {
    numbers: Numbers<'a>,
    entries: I,
    /// Entries that were not refused.
    handled: usize,
    /// How many there were of further sources.
    repeated: usize,
    next: Next<'a>,
}

/// What comes next.
enum Next<'a> {
    Entry,
    /// The same invalidation for these further sources of its device: each has its own copy of what is invalidated.
    Again(StageOneInvalidation, Sources<'a>),
    /// Nothing: the next entry is refused.
    Refused(InvalidationRefusal),
}

impl<I: Iterator<Item = Result<GuestInvalidation, InvalidationRefusal>>> Iterator for List<'_, I> {
    type Item = StageOneInvalidation;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.next {
            Next::Entry => {}
            Next::Refused(_) => return None,
            Next::Again(what, sources) => match sources.next() {
                Some(source) => {
                    self.repeated = self.repeated.saturating_add(1);
                    return Some(of_source(*what, source));
                }
                None => self.next = Next::Entry,
            },
        }
        // By reference: what is moved out of a `Result` is copied byte by byte.
        let physical = match &self.entries.next()? {
            Ok(entry) => self.numbers.physical(entry, &mut self.next),
            Err(because) => Err(*because),
        };
        match physical {
            Ok(what) => {
                self.handled = self.handled.saturating_add(1);
                Some(what)
            }
            Err(because) => {
                self.next = Next::Refused(because);
                None
            }
        }
    }
}

/// The numbers that a guest gave its devices.
struct Numbers<'a> {
    viommu: &'a Viommu,
    vdevices: &'a Arena<Vdevice>,
    devices: &'a Arena<Device>,
}

/// The same invalidation for another source of its device.
#[cold]
fn of_source(what: StageOneInvalidation, source: u32) -> StageOneInvalidation {
    match what {
        StageOneInvalidation::Context { substream, .. } => {
            StageOneInvalidation::Context { source, substream }
        }
        StageOneInvalidation::Atc { span, .. } => StageOneInvalidation::Atc { source, span },
        StageOneInvalidation::All
        | StageOneInvalidation::Asid(_)
        | StageOneInvalidation::Page { .. }
        | StageOneInvalidation::Range { .. } => what,
    }
}

/// An invalidation for the device's first source.
fn of_first_source<'a>(
    device: &'a Device,
    next: &mut Next<'a>,
    of: impl Fn(u32) -> StageOneInvalidation,
) -> StageOneInvalidation {
    let mut sources = device.sources();
    let first = of(sources.next().unwrap_or(0));
    if sources.size_hint().0 > 0 {
        *next = Next::Again(first, sources);
    }
    first
}

impl<'a> Numbers<'a> {
    /// The device that a number stands for.
    fn device(&self, virtual_id: u64) -> Option<DeviceId> {
        let vdevices = &self.viommu.vdevices;
        let at = vdevices.binary_search_by_key(&virtual_id, |(known, _)| *known);
        let (_, id) = vdevices.get(at.ok()?)?;
        self.vdevices.get(*id)?.device
    }

    /// An invalidation with physical identities: of the device's first source. What is left to do for the others is
    /// put into `next`.
    fn physical(
        &self,
        entry: &GuestInvalidation,
        next: &mut Next<'a>,
    ) -> Result<StageOneInvalidation, InvalidationRefusal> {
        let device = |virtual_id| {
            let device = self.device(virtual_id).and_then(|id| self.devices.get(id));
            device.ok_or(InvalidationRefusal::NoSuchVirtualId(virtual_id))
        };
        Ok(match *entry {
            GuestInvalidation::All => StageOneInvalidation::All,
            GuestInvalidation::Asid(asid) => StageOneInvalidation::Asid(asid),
            GuestInvalidation::Page { asid, va } => StageOneInvalidation::Page { asid, va },
            GuestInvalidation::Range { asid, range } => StageOneInvalidation::Range { asid, range },
            GuestInvalidation::Context {
                virtual_id,
                substream,
            } => {
                let of = |source| StageOneInvalidation::Context { source, substream };
                of_first_source(device(virtual_id)?, next, of)
            }
            GuestInvalidation::Atc {
                virtual_id,
                start,
                last,
            } => {
                let device = device(virtual_id)?;
                if device.ats() == Ats::Off {
                    return Err(InvalidationRefusal::AtsUnsupported);
                }
                let span: Span<_> = span(start, last);
                of_first_source(device, next, |source| StageOneInvalidation::Atc {
                    source,
                    span,
                })
            }
        })
    }
}
