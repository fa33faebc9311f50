//! Requests executed for their sender, which sees its own objects and no others.

use types::{Iova, Span};

use super::{MAX_RANGES, RANGES_IN_REPLY, Request, Setting};
use crate::arena::{Id, Object, ObjectId};
use crate::attach::Target;
use crate::backend::{Backend, Window, WindowLimits};
use crate::codec::{CodecError, Declared};
use crate::event::Listener;
use crate::ioas::{HugePages, PeerToPeer};
use crate::map::{Copy, Map};
use crate::memory::MemoryId;
use crate::{
    Device, Domain, Error, EventQueue, GuestInvalidation, Ioas, Iommu, Memory, OwnerId, Vdevice,
    Viommu,
};

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    Done,
    /// Done; this object is the result.
    Object(ObjectId),
    /// Mapped here.
    Mapped(Span<Iova>),
    /// So many bytes, entries, or the value of an option.
    Value(u64),
    /// A window.
    Window(Window),
    /// What window could be had.
    Limits(WindowLimits),
    /// Ranges that nobody reserved.
    Ranges {
        /// How many there are.
        total: usize,
        /// What mappings must be a multiple of, in bytes.
        alignment: u64,
        /// The first of them, after those skipped.
        some: [Option<Span<Iova>>; RANGES_IN_REPLY],
    },
}

/// An object with an owner, for judging senders.
trait Owned: Object + Sized {
    fn owner_in<B: Backend>(core: &Iommu<B>, id: Id<Self>) -> Option<OwnerId>;
}

macro_rules! owned {
    ($($kind:ident in $arena:ident: $owner:expr;)*) => {$(
        impl Owned for $kind {
            fn owner_in<B: Backend>(core: &Iommu<B>, id: Id<Self>) -> Option<OwnerId> {
                let owner: fn(&Iommu<B>, &Self) -> Option<OwnerId> = $owner;
                owner(core, core.$arena.get(id)?)
            }
        }
    )*};
}

owned! {
    Ioas in ioas: |_, ioas| Some(ioas.owner());
    Domain in domains: |_, domain| Some(domain.owner());
    Device in devices: |_, device| device.owner();
    Viommu in viommus: |_, viommu| Some(viommu.owner());
    Vdevice in vdevices: |core, vdevice| {
        core.viommus.get(vdevice.viommu()).map(Viommu::owner)
    };
    EventQueue in queues: |_, queue| Some(queue.owner());
}

impl<B: Backend> Iommu<B> {
    /// The object of a sender with this number. Others' objects do not exist for it.
    fn own<T: Owned>(&self, owner: OwnerId, bits: u64) -> Result<Id<T>, Error> {
        let wrong = Error::WrongKind {
            bits,
            wanted: T::KIND,
        };
        let any = ObjectId::from_bits(bits).ok_or(wrong)?;
        let id = any.typed::<T>().ok_or(wrong)?;
        match T::owner_in(self, id) {
            Some(of) if of == owner => Ok(id),
            _ => Err(Error::NoSuchObject(any)),
        }
    }

    /// Memory that a sender has, or was granted.
    fn own_memory(&self, owner: OwnerId, bits: u64) -> Result<MemoryId, Error> {
        let wrong = Error::WrongKind {
            bits,
            wanted: Memory::KIND,
        };
        let any = ObjectId::from_bits(bits).ok_or(wrong)?;
        let id = any.typed::<Memory>().ok_or(wrong)?;
        self.memory
            .get(id)
            .and_then(|memory| memory.granted(owner))
            .map(|_| id)
            .ok_or(Error::NoSuchObject(any))
    }

    fn own_target(&self, owner: OwnerId, bits: u64) -> Result<Target, Error> {
        match self.own::<Ioas>(owner, bits) {
            Ok(ioas) => Ok(Target::Ioas(ioas)),
            Err(Error::WrongKind { .. }) => Ok(Target::Domain(self.own(owner, bits)?)),
            Err(error) => Err(error),
        }
    }

    fn destroy(&mut self, owner: OwnerId, bits: u64) -> Result<(), Error> {
        use crate::arena::Kind;
        let any = ObjectId::from_bits(bits).ok_or(Error::WrongKind {
            bits,
            wanted: Kind::Ioas,
        })?;
        match any.kind() {
            Kind::Ioas => self.destroy_ioas(self.own(owner, bits)?),
            Kind::Domain => self.destroy_domain(self.own(owner, bits)?),
            Kind::Viommu => self.destroy_viommu(self.own(owner, bits)?),
            Kind::Vdevice => self.destroy_vdevice(self.own(owner, bits)?),
            Kind::EventQueue => self.destroy_event_queue(self.own(owner, bits)?),
            // Memory, devices and accesses belong to whoever declared them: the hypervisor.
            Kind::Memory | Kind::Group | Kind::Device | Kind::Access => {
                Err(Error::PermissionDenied)
            }
        }
    }

    /// Executes a request on behalf of a sender, which sees its own objects and no others.
    ///
    /// # Errors
    /// Those of the method that the request stands for; [`Error::WrongKind`] and
    /// [`Error::NoSuchObject`] for ids; [`Error::PermissionDenied`] for destroying what the
    /// hypervisor declared; [`Error::BadOption`].
    pub fn handle(&mut self, owner: OwnerId, request: &Request<'_>) -> Result<Reply, Error> {
        Ok(match *request {
            Request::Destroy { id } => {
                self.destroy(owner, id)?;
                Reply::Done
            }
            Request::CreateIoas => Reply::Object(self.create_ioas(owner)?.any()),
            Request::Allow { ioas, ranges } => {
                let ioas = self.own(owner, ioas)?;
                self.allow_records(ioas, ranges)?;
                Reply::Done
            }
            Request::Copy {
                from,
                to,
                start,
                bytes,
                place,
                permissions,
            } => {
                if bytes == 0 {
                    return Err(Error::Empty);
                }
                let span = Span::from_len(Iova::truncated(start), bytes).ok_or(Error::Overflow)?;
                let copy = Copy {
                    from: self.own(owner, from)?,
                    span,
                    to: self.own(owner, to)?,
                    placement: place,
                    permissions,
                };
                Reply::Mapped(self.copy(&copy)?)
            }
            Request::Ranges { ioas, skip } => self.some_ranges(self.own(owner, ioas)?, skip)?,
            Request::Map {
                ioas,
                memory,
                offset,
                bytes,
                place,
                permissions,
            } => {
                let ioas = self.own(owner, ioas)?;
                let map = Map {
                    placement: place,
                    memory: self.own_memory(owner, memory)?,
                    offset,
                    bytes,
                    permissions,
                };
                Reply::Mapped(self.map(ioas, &map)?)
            }
            Request::Unmap { ioas, start, bytes } => {
                let ioas = self.own(owner, ioas)?;
                let start = Iova::truncated(start);
                let span = if start == Iova::ZERO && bytes == u64::MAX {
                    crate::area::span(0, u64::MAX)
                } else if bytes == 0 {
                    return Err(Error::Empty);
                } else {
                    Span::from_len(start, bytes).ok_or(Error::Overflow)?
                };
                Reply::Value(self.unmap(ioas, span)?)
            }
            Request::GetOption { setting, object } => {
                Reply::Value(self.get_option(owner, setting, object)?)
            }
            Request::SetOption {
                setting,
                object,
                value,
            } => {
                self.set_option(owner, setting, object, value)?;
                Reply::Done
            }
            Request::GetDefault => Reply::Object(self.default_ioas(owner)?.any()),
            Request::SetDefault { ioas } => {
                self.set_default_ioas(owner, self.own(owner, ioas)?)?;
                Reply::Done
            }
            Request::ClearDefault => {
                self.clear_default_ioas(owner)?;
                Reply::Done
            }
            Request::CreateDomain {
                device,
                ioas,
                options,
            } => {
                let (device, ioas) = (self.own(owner, device)?, self.own(owner, ioas)?);
                Reply::Object(self.create_domain(device, ioas, options)?.any())
            }
            Request::SetDirtyTracking { domain, tracking } => {
                self.set_dirty_tracking(self.own(owner, domain)?, tracking)?;
                Reply::Done
            }
            Request::Attach { device, target: 0 } => {
                Reply::Object(self.attach_default(self.own(owner, device)?)?.any())
            }
            Request::Attach { device, target } => {
                let target = self.own_target(owner, target)?;
                Reply::Object(self.attach(self.own(owner, device)?, target)?.any())
            }
            Request::Replace { device, target } => {
                let target = self.own_target(owner, target)?;
                Reply::Object(self.replace(self.own(owner, device)?, target)?.any())
            }
            Request::Detach { device } => {
                self.detach(self.own(owner, device)?)?;
                Reply::Done
            }
            Request::CreateViommu { device, parent } => {
                let (device, parent) = (self.own(owner, device)?, self.own(owner, parent)?);
                Reply::Object(self.create_viommu(device, parent)?.any())
            }
            Request::CreateVdevice {
                viommu,
                device,
                virtual_id,
            } => {
                let (viommu, device) = (self.own(owner, viommu)?, self.own(owner, device)?);
                Reply::Object(self.create_vdevice(viommu, device, virtual_id)?.any())
            }
            Request::CreateNested { viommu, config } => {
                Reply::Object(self.create_nested(self.own(owner, viommu)?, config)?.any())
            }
            Request::Invalidate {
                viommu,
                each,
                count,
                records,
            } => {
                let viommu = self.own(owner, viommu)?;
                if each < GuestInvalidation::LEAST && count > 0 {
                    return Err(CodecError::TooShort {
                        declared: each,
                        least: GuestInvalidation::LEAST,
                    }
                    .into());
                }
                let handled = self.invalidate_records(viommu, (each, count), records)?;
                Reply::Value(u64::try_from(handled).unwrap_or(u64::MAX))
            }
            Request::CreateEventQueue {
                viommu,
                kind,
                depth,
            } => {
                let listener = Listener::Viommu(self.own(owner, viommu)?);
                Reply::Object(self.create_event_queue(listener, kind, depth)?.any())
            }
            Request::QueryWindow { domain } => {
                Reply::Limits(self.query_window(self.own(owner, domain)?)?)
            }
            Request::CreateWindow {
                domain,
                page,
                bytes,
            } => Reply::Window(self.create_window(self.own(owner, domain)?, page, bytes)?),
            Request::RemoveWindow { domain, base } => {
                self.remove_window(self.own(owner, domain)?, Iova::truncated(base))?;
                Reply::Done
            }
            Request::ResetWindows { domain } => {
                self.reset_windows(self.own(owner, domain)?)?;
                Reply::Done
            }
        })
    }

    fn allow_records(&mut self, ioas: Id<Ioas>, records: &[u8]) -> Result<(), Error> {
        let count = records.len() / 16;
        if count > MAX_RANGES {
            return Err(Error::TooManyEntries { limit: MAX_RANGES });
        }
        let mut ranges = self.budget.vec(count)?;
        for (at, record) in records.chunks_exact(16).enumerate() {
            let record = Declared::new(16, record, 16, 16)?;
            let (start, last) = (record.u64(0), record.u64(8));
            let range = Span::new(Iova::truncated(start), Iova::truncated(last));
            ranges.push(range.ok_or(Error::BadRanges { at })?);
        }
        self.allow(ioas, &ranges)
    }

    fn some_ranges(&self, ioas: Id<Ioas>, skip: u32) -> Result<Reply, Error> {
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let mut some = [None; RANGES_IN_REPLY];
        let mut total = 0_usize;
        self.ioas.need(ioas)?.unreserved(|start, last| {
            let slot = total.checked_sub(skip).and_then(|at| some.get_mut(at));
            if let Some(slot) = slot {
                *slot = Some(crate::area::span(start, last));
            }
            total = total.saturating_add(1);
            core::ops::ControlFlow::<()>::Continue(())
        });
        Ok(Reply::Ranges {
            total,
            alignment: self.alignment(ioas)?,
            some,
        })
    }

    fn get_option(&self, owner: OwnerId, setting: Setting, object: u64) -> Result<u64, Error> {
        Ok(match setting {
            Setting::HugePages => {
                let ioas = self.ioas.need(self.own(owner, object)?)?;
                u64::from(ioas.huge_pages == HugePages::On)
            }
            Setting::PeerToPeer => {
                let ioas = self.ioas.need(self.own(owner, object)?)?;
                u64::from(ioas.peer_to_peer == PeerToPeer::Enabled)
            }
            Setting::MsiStart => {
                let window = self.msi_window(self.own(owner, object)?)?;
                window.span().start().bits()
            }
            Setting::MsiSize => {
                let window = self.msi_window(self.own(owner, object)?)?;
                window.span().len().unwrap_or(0) >> 20
            }
        })
    }

    fn set_option(
        &mut self,
        owner: OwnerId,
        setting: Setting,
        object: u64,
        value: u64,
    ) -> Result<(), Error> {
        match (setting, value) {
            (Setting::HugePages, 0) => {
                self.set_huge_pages(self.own(owner, object)?, HugePages::Off)
            }
            (Setting::HugePages, 1) => self.set_huge_pages(self.own(owner, object)?, HugePages::On),
            (Setting::PeerToPeer, 0) => {
                self.set_peer_to_peer(self.own(owner, object)?, PeerToPeer::Disabled)
            }
            (Setting::PeerToPeer, 1) => {
                self.set_peer_to_peer(self.own(owner, object)?, PeerToPeer::Enabled)
            }
            (Setting::HugePages | Setting::PeerToPeer, value) => Err(Error::BadOption(value)),
            (Setting::MsiStart, start) => self.set_msi_start(self.own(owner, object)?, start),
            (Setting::MsiSize, size) => self.set_msi_size(self.own(owner, object)?, size),
        }
    }
}
