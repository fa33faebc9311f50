//! How the hypervisor itself touches guest memory: copied, never referenced.

use core::ops::ControlFlow;

use hal::PhysMemory;
use types::{Iova, Pa, Span};

use crate::arena::{Id, Kind, Object};
use crate::backend::{Backend, MemoryType};
use crate::ioas::{Ioas, IoasId};
use crate::memory::Extent;
use crate::{Error, Iommu, OwnerId};

/// The name of an [`Access`].
pub type AccessId = Id<Access>;

/// How many pins an address space may have: each one is looked at by every unmapping.
pub const MAX_PINS: usize = 256;

/// A party of the hypervisor that touches the memory behind an address space.
#[derive(Debug)]
pub struct Access {
    owner: OwnerId,
    ioas: Option<IoasId>,
}

impl Object for Access {
    const KIND: Kind = Kind::Access;
}

impl Access {
    /// For whom it works.
    #[must_use]
    pub fn owner(&self) -> OwnerId {
        self.owner
    }

    /// Where it works.
    #[must_use]
    pub fn ioas(&self) -> Option<IoasId> {
        self.ioas
    }
}

/// What pinned memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// It will be read.
    Read,
    /// It will be written (and read).
    Write,
}

/// Whether a pin gives way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The holder looks at [`Iommu::is_wanted`] and unpins when asked to.
    Revocable,
    /// Hardware uses the memory by physical address (a queue): physically contiguous, and no
    /// unmapping as long as the pin lasts.
    Hardware,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct PinRecord {
    access: AccessId,
    serial: u64,
    pub(crate) span: Span<Iova>,
    pub(crate) hold: Hold,
}

/// Guest memory that stays where it is until [`Iommu::unpin`].
///
/// It is a token: it cannot be copied, and it gives physical addresses, not references.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "memory stays pinned until the pin is given back"]
pub struct Pin {
    access: AccessId,
    ioas: IoasId,
    serial: u64,
    span: Span<Iova>,
}

impl Pin {
    /// What is pinned.
    #[must_use]
    pub fn span(&self) -> Span<Iova> {
        self.span
    }
}

impl<B: Backend> Iommu<B> {
    /// Makes an access that is attached to nothing yet.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn create_access(&mut self, owner: OwnerId) -> Result<AccessId, Error> {
        let access = Access { owner, ioas: None };
        Ok(self.accesses.insert(&mut self.budget, access)?)
    }

    /// An access.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`].
    pub fn access(&self, access: AccessId) -> Result<&Access, Error> {
        self.accesses.need(access)
    }

    /// Gives up an access without pins.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`]; [`Error::Busy`] while it pins.
    pub fn destroy_access(&mut self, id: AccessId) -> Result<(), Error> {
        self.leave(id)?;
        self.accesses.remove(id);
        Ok(())
    }

    fn pins_of(&self, id: AccessId, ioas: IoasId) -> u32 {
        let Some(space) = self.ioas.get(ioas) else {
            return 0;
        };
        let pins = space.pins.iter().filter(|pin| pin.access == id).count();
        u32::try_from(pins).unwrap_or(u32::MAX)
    }

    fn leave(&mut self, id: AccessId) -> Result<(), Error> {
        let Some(ioas) = self.accesses.need(id)?.ioas else {
            return Ok(());
        };
        let users = self.pins_of(id, ioas);
        if users > 0 {
            return Err(Error::Busy {
                object: id.any(),
                users,
            });
        }
        if let Some(space) = self.ioas.get_mut(ioas) {
            space.users = space.users.saturating_sub(1);
        }
        self.accesses.need_mut(id)?.ioas = None;
        Ok(())
    }

    /// Attaches an access to an address space, or moves it there from another one.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::OtherOwner`]; [`Error::Busy`] while it pins where it is.
    pub fn attach_access(&mut self, id: AccessId, ioas: IoasId) -> Result<(), Error> {
        let access = self.accesses.need(id)?;
        let space = self.ioas.need(ioas)?;
        if space.owner != access.owner {
            return Err(Error::OtherOwner {
                object: ioas.any(),
                owner: space.owner,
            });
        }
        if access.ioas == Some(ioas) {
            return Ok(());
        }
        self.leave(id)?;
        let space = self.ioas.need_mut(ioas)?;
        space.users = space.users.saturating_add(1);
        self.accesses.need_mut(id)?.ioas = Some(ioas);
        Ok(())
    }

    /// Detaches an access.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::Detached`]; [`Error::Busy`] while it pins.
    pub fn detach_access(&mut self, id: AccessId) -> Result<(), Error> {
        self.accesses.need(id)?.ioas.ok_or(Error::Detached)?;
        self.leave(id)
    }

    fn space_of(&self, id: AccessId) -> Result<(IoasId, &Ioas), Error> {
        let ioas = self.accesses.need(id)?.ioas.ok_or(Error::Detached)?;
        Ok((ioas, self.ioas.need(ioas)?))
    }

    /// Visits the physical pieces of a range, after checking that all of it may be used.
    fn pieces(
        &self,
        space: &Ioas,
        span: Span<Iova>,
        intent: Intent,
        mut f: impl FnMut(Extent) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (start, last) = (span.start().bits(), span.last().bits());
        if let Some(revoking) = &space.revoking
            && revoking.span.overlaps(span)
        {
            return Err(Error::UnmapInProgress {
                span: revoking.span,
            });
        }
        let mut next = Some(start);
        let refused = space.areas.visit(start, last, |area| {
            let hole = Error::NotMapped {
                at: Iova::truncated(next.unwrap_or(start)),
            };
            if next.is_none_or(|next| area.start > next) || area.flags.is_stale() {
                return ControlFlow::Break(hole);
            }
            let Some(memory) = self.memory.at(area.memory) else {
                return ControlFlow::Break(hole);
            };
            if memory.memory_type() == MemoryType::Device {
                return ControlFlow::Break(Error::DeviceMemory { area: area.span() });
            }
            let permissions = area.flags.permissions();
            let allowed = match intent {
                Intent::Read => permissions.allows_read(),
                Intent::Write => permissions.allows_write(),
            };
            if !allowed {
                return ControlFlow::Break(Error::PermissionDenied);
            }
            let from = area.start.max(start);
            let to = area.last.min(last);
            let offset = area.offset.saturating_add(from.saturating_sub(area.start));
            let bytes = to.saturating_sub(from).saturating_add(1);
            next = area.last.checked_add(1);
            match memory.runs(offset, bytes, &mut f) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => ControlFlow::Break(error),
            }
        });
        match (refused, next) {
            (Some(error), _) => Err(error),
            (None, Some(next)) if next <= last => Err(Error::NotMapped {
                at: Iova::truncated(next),
            }),
            (None, _) => Ok(()),
        }
    }

    fn span_of(iova: Iova, bytes: usize) -> Result<Span<Iova>, Error> {
        let bytes = u64::try_from(bytes).map_err(|_| Error::Overflow)?;
        if bytes == 0 {
            return Err(Error::Empty);
        }
        Span::from_len(iova, bytes).ok_or(Error::Overflow)
    }

    /// Copies `buffer.len()` bytes from an address of the access's space. All or nothing.
    ///
    /// # Errors
    /// [`Error::Detached`], [`Error::Empty`], [`Error::Overflow`], [`Error::NotMapped`],
    /// [`Error::PermissionDenied`], [`Error::DeviceMemory`], [`Error::UnmapInProgress`],
    /// [`Error::NoMemory`].
    pub fn read(
        &self,
        id: AccessId,
        iova: Iova,
        buffer: &mut [u8],
        memory: &impl PhysMemory,
    ) -> Result<(), Error> {
        let (_, space) = self.space_of(id)?;
        let span = Self::span_of(iova, buffer.len())?;
        // Judged whole before the first byte is copied.
        self.pieces(space, span, Intent::Read, |_| Ok(()))?;
        let mut rest = buffer;
        self.pieces(space, span, Intent::Read, |piece| {
            let bytes = usize::try_from(piece.bytes).unwrap_or(usize::MAX);
            let (now, later) = core::mem::take(&mut rest)
                .split_at_mut_checked(bytes)
                .ok_or(Error::Overflow)?;
            rest = later;
            memory
                .read(piece.pa, now)
                .map_err(|_| Error::NoMemory { pa: piece.pa })
        })
    }

    /// Copies bytes to an address of the access's space. It writes nothing unless all of it may
    /// be written.
    ///
    /// # Errors
    /// Those of [`Iommu::read`]. After [`Error::NoMemory`], which says that the description of the
    /// machine is wrong, part may be written.
    pub fn write(
        &self,
        id: AccessId,
        iova: Iova,
        bytes: &[u8],
        memory: &impl PhysMemory,
    ) -> Result<(), Error> {
        let (_, space) = self.space_of(id)?;
        let span = Self::span_of(iova, bytes.len())?;
        self.pieces(space, span, Intent::Write, |_| Ok(()))?;
        let mut rest = bytes;
        self.pieces(space, span, Intent::Write, |piece| {
            let bytes = usize::try_from(piece.bytes).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_checked(bytes).ok_or(Error::Overflow)?;
            rest = later;
            memory
                .write(piece.pa, now)
                .map_err(|_| Error::NoMemory { pa: piece.pa })
        })
    }

    /// Pins a range: until [`Iommu::unpin`] it stays mapped to the same memory.
    ///
    /// # Errors
    /// Those of [`Iommu::read`]; [`Error::TooManyPins`]; [`Error::NotContiguous`] for
    /// [`Hold::Hardware`]; [`Error::OutOfMemory`].
    pub fn pin(
        &mut self,
        id: AccessId,
        span: Span<Iova>,
        intent: Intent,
        hold: Hold,
    ) -> Result<Pin, Error> {
        let (ioas, space) = self.space_of(id)?;
        let mut next: Option<Pa> = None;
        self.pieces(space, span, intent, |piece| {
            use types::Address;
            if hold == Hold::Hardware && next.is_some_and(|next| next != piece.pa) {
                return Err(Error::NotContiguous {
                    pa: piece.pa,
                    page: span.len().unwrap_or(u64::MAX),
                });
            }
            next = piece.pa.checked_add(piece.bytes);
            Ok(())
        })?;
        if space.pins.len() >= MAX_PINS {
            return Err(Error::TooManyPins { limit: MAX_PINS });
        }
        let serial = self.next_serial;
        let space = self.ioas.need_mut(ioas)?;
        self.budget.push(
            &mut space.pins,
            PinRecord {
                access: id,
                serial,
                span,
                hold,
            },
        )?;
        self.next_serial = serial.wrapping_add(1);
        Ok(Pin {
            access: id,
            ioas,
            serial,
            span,
        })
    }

    /// Visits the physical pieces of pinned memory, in order.
    ///
    /// # Errors
    /// [`Error::NoSuchPin`].
    pub fn pinned(&self, pin: &Pin, mut f: impl FnMut(Extent)) -> Result<(), Error> {
        let space = self.ioas.get(pin.ioas).ok_or(Error::NoSuchPin)?;
        let mut pins = space.pins.iter();
        pins.find(|known| known.serial == pin.serial)
            .ok_or(Error::NoSuchPin)?;
        let (start, last) = (pin.span.start().bits(), pin.span.last().bits());
        let result = space.areas.visit(start, last, |area| {
            let from = area.start.max(start);
            let to = area.last.min(last);
            let offset = area.offset.saturating_add(from.saturating_sub(area.start));
            let bytes = to.saturating_sub(from).saturating_add(1);
            let runs = self.memory.at(area.memory).map(|memory| {
                memory.runs(offset, bytes, |piece| {
                    f(piece);
                    Ok(())
                })
            });
            match runs {
                Some(Err(error)) => ControlFlow::Break(error),
                _ => ControlFlow::Continue(()),
            }
        });
        result.map_or(Ok(()), Err)
    }

    /// Whether somebody waits for the pin to be given back.
    #[must_use]
    pub fn is_wanted(&self, pin: &Pin) -> bool {
        self.ioas
            .get(pin.ioas)
            .and_then(|space| space.revoking.as_ref())
            .is_some_and(|revoking| revoking.span.overlaps(pin.span))
    }

    /// Gives a pin back.
    ///
    /// # Errors
    /// [`Error::NoSuchPin`] when it is not known, which is a bug of the caller.
    pub fn unpin(&mut self, pin: Pin) -> Result<(), Error> {
        let space = self.ioas.get_mut(pin.ioas).ok_or(Error::NoSuchPin)?;
        let at = space
            .pins
            .iter()
            .position(|known| known.serial == pin.serial)
            .ok_or(Error::NoSuchPin)?;
        space.pins.swap_remove(at);
        Ok(())
    }
}
