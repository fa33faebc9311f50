//! Taking memory away from those who use it: unmapping under pins, and BARs before a reset.

use types::{Iova, Span};

use crate::access::Hold;
use crate::area::Area;
use crate::backend::{Backend, BackendError};
use crate::group::DeviceId;
use crate::ioas::{Ioas, IoasId};
use crate::map::{show, window_of};
use crate::memory::MemoryId;
use crate::{Error, Iommu};

/// How often the holders of pins are given a chance before an unmapping gives up.
pub const MAX_POLLS: u32 = 100;

#[derive(Debug)]
pub(crate) struct Revoking {
    pub(crate) span: Span<Iova>,
    serial: u64,
    polls: u32,
}

/// An unmapping that waits for pins. It ends with [`Iommu::poll_unmap`] or
/// [`Iommu::abort_unmap`]; until then nobody else can begin one in the same address space.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the range is closed to new pins until the unmapping ends"]
pub struct Revocation {
    ioas: IoasId,
    serial: u64,
}

/// How far an unmapping is.
#[derive(Debug, PartialEq, Eq)]
pub enum Unmapping {
    /// Done; so many bytes were unmapped.
    Done(u64),
    /// Pins are in the way. Their holders see it in [`Iommu::is_wanted`].
    Waiting(Revocation),
}

impl Ioas {
    /// The first pin in a range that an unmapping has to wait for.
    pub(crate) fn pinned_in(&self, range: Span<Iova>) -> Option<Span<Iova>> {
        let mut pins = self.pins.iter();
        pins.find(|pin| pin.span.overlaps(range))
            .map(|pin| pin.span)
    }

    /// What is being unmapped, where it touches a range.
    pub(crate) fn closed(&self, range: Span<Iova>) -> Result<(), Error> {
        match &self.revoking {
            Some(revoking) if revoking.span.overlaps(range) => Err(Error::UnmapInProgress {
                span: revoking.span,
            }),
            _ => Ok(()),
        }
    }
}

impl<B: Backend> Iommu<B> {
    /// Begins to unmap the whole areas in a range. Without pins in the range that is all of it.
    ///
    /// From now on nothing in the range can be pinned, copied by the hypervisor or mapped; devices
    /// reach it as before.
    ///
    /// # Errors
    /// Those of [`Iommu::unmap`]; [`Error::Pinned`] only by hardware, which does not give way;
    /// [`Error::UnmapInProgress`] when one is waiting in this address space.
    pub fn begin_unmap(&mut self, id: IoasId, range: Span<Iova>) -> Result<Unmapping, Error> {
        let space = self.ioas.need(id)?;
        Self::whole_areas(space, range)?;
        if let Some(revoking) = &space.revoking {
            return Err(Error::UnmapInProgress {
                span: revoking.span,
            });
        }
        let mut pins = space.pins.iter();
        if let Some(pin) = pins.find(|pin| pin.hold == Hold::Hardware && pin.span.overlaps(range)) {
            return Err(Error::Pinned { pinned: pin.span });
        }
        if space.pinned_in(range).is_none() {
            return Ok(Unmapping::Done(self.remove_areas(id, range)?));
        }
        let serial = self.next_serial;
        self.next_serial = serial.wrapping_add(1);
        self.ioas.need_mut(id)?.revoking = Some(Revoking {
            span: range,
            serial,
            polls: 0,
        });
        Ok(Unmapping::Waiting(Revocation { ioas: id, serial }))
    }

    /// Looks whether the pins are gone, and unmaps if they are.
    ///
    /// # Errors
    /// [`Error::StillPinned`] after [`MAX_POLLS`] polls and [`Error::Backend`]: the unmapping has
    /// ended, and everything is mapped as before (for the backend, see [`Iommu::unmap`]).
    /// [`Error::NoUnmapInProgress`].
    pub fn poll_unmap(&mut self, revocation: Revocation) -> Result<Unmapping, Error> {
        let space = self
            .ioas
            .get_mut(revocation.ioas)
            .ok_or(Error::NoUnmapInProgress)?;
        let span = match &mut space.revoking {
            Some(revoking) if revoking.serial == revocation.serial => {
                revoking.polls = revoking.polls.saturating_add(1);
                revoking.span
            }
            _ => return Err(Error::NoUnmapInProgress),
        };
        if space.pinned_in(span).is_none() {
            space.revoking = None;
            return Ok(Unmapping::Done(self.remove_areas(revocation.ioas, span)?));
        }
        let polls = space.revoking.as_ref().map_or(0, |revoking| revoking.polls);
        if polls >= MAX_POLLS {
            space.revoking = None;
            return Err(Error::StillPinned { polls });
        }
        Ok(Unmapping::Waiting(revocation))
    }

    /// Takes an unmapping back: everything is mapped as before.
    ///
    /// # Errors
    /// [`Error::NoUnmapInProgress`].
    pub fn abort_unmap(&mut self, revocation: Revocation) -> Result<(), Error> {
        let space = self
            .ioas
            .get_mut(revocation.ioas)
            .ok_or(Error::NoUnmapInProgress)?;
        match &space.revoking {
            Some(revoking) if revoking.serial == revocation.serial => {
                space.revoking = None;
                Ok(())
            }
            _ => Err(Error::NoUnmapInProgress),
        }
    }

    fn area_of(&self, ioas: IoasId, start: u64) -> Option<(&Ioas, Area)> {
        let space = self.ioas.get(ioas)?;
        Some((space, space.areas.find(start)?))
    }

    /// Makes a BAR unreachable for every device, before its own device is reset, loses power or
    /// goes away. The areas stay, and show nothing.
    ///
    /// # Errors
    /// [`Error::PermissionDenied`] for RAM, which has other ways. [`Error::Backend`]: the unit did
    /// not confirm; the BAR counts as revoked, but a device may still reach it. Revoke again.
    pub fn revoke(&mut self, id: MemoryId) -> Result<(), Error> {
        let memory = self.memory.need_mut(id)?;
        memory.device().ok_or(Error::PermissionDenied)?;
        memory.set_revoked();
        let memory = self.memory.need(id)?;
        let mut outcome = Ok(());
        for (ioas, start) in memory.shown() {
            let Some((space, area)) = self.ioas.get(*ioas).and_then(|space| {
                let area = space.areas.find(*start)?;
                Some((space, area))
            }) else {
                continue;
            };
            for shown in &space.domains {
                self.backend.unmap(shown.table, area.span());
                outcome = outcome.and(self.backend.invalidate(shown.table, area.span()));
            }
        }
        outcome.map_err(Error::Backend)
    }

    /// Shows a revoked BAR again where it was mapped. All or nothing.
    ///
    /// # Errors
    /// [`Error::PermissionDenied`] for RAM; [`Error::Backend`]: it is still revoked.
    pub fn restore(&mut self, id: MemoryId) -> Result<(), Error> {
        let memory = self.memory.need(id)?;
        memory.device().ok_or(Error::PermissionDenied)?;
        if !memory.is_revoked() {
            return Ok(());
        }
        match self.show_everywhere(id) {
            Ok(()) => {
                self.memory.need_mut(id)?.set_restored();
                Ok(())
            }
            Err(error) => {
                // Back to what it was: revoked, in every table.
                self.revoke(id)?;
                Err(error.into())
            }
        }
    }

    fn show_everywhere(&mut self, id: MemoryId) -> Result<(), BackendError> {
        let mut at = 0_usize;
        while let Some((ioas, start)) = self
            .memory
            .get(id)
            .and_then(|memory| memory.shown().get(at).copied())
        {
            at = at.saturating_add(1);
            let Some((_, area)) = self.area_of(ioas, start) else {
                continue;
            };
            if area.flags.is_stale() {
                continue;
            }
            let (Some(space), Some(memory)) = (self.ioas.get(ioas), self.memory.get(id)) else {
                continue;
            };
            for shown in &space.domains {
                let Ok(window) = window_of(self.backend.windows(shown.table), area.span()) else {
                    continue;
                };
                let leaves = space.leaves(window);
                show(&mut self.backend, shown.table, leaves, memory, area)
                    .map_err(|(error, _)| error)?;
            }
        }
        Ok(())
    }

    /// Revokes every BAR of a device: the first step of its reset.
    ///
    /// # Errors
    /// Those of [`Iommu::revoke`]; all BARs were tried.
    pub fn begin_reset(&mut self, device: DeviceId) -> Result<(), Error> {
        self.devices.need(device)?;
        let mut outcome = Ok(());
        let mut at = 0_u32;
        while let Some(id) = self.next_bar(device, &mut at) {
            outcome = outcome.and(self.revoke(id));
        }
        outcome
    }

    /// Shows every BAR of a device again: the last step of its reset.
    ///
    /// # Errors
    /// Those of [`Iommu::restore`] for the first BAR that fails; those after it stay revoked.
    pub fn end_reset(&mut self, device: DeviceId) -> Result<(), Error> {
        self.devices.need(device)?;
        let mut at = 0_u32;
        while let Some(id) = self.next_bar(device, &mut at) {
            self.restore(id)?;
        }
        Ok(())
    }

    fn next_bar(&self, device: DeviceId, at: &mut u32) -> Option<MemoryId> {
        let mut bars = self
            .memory
            .iter()
            .filter(|(id, memory)| id.index() >= *at && memory.device() == Some(device));
        let (id, _) = bars.next()?;
        *at = id.index().saturating_add(1);
        Some(id)
    }
}
