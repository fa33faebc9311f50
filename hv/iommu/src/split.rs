//! Changing part of what is mapped, page by page: for guests whose own calls know pages only.

use types::{Iova, Span};

use crate::area::Area;
use crate::backend::{Backend, Run};
use crate::ioas::{Ioas, IoasId};
use crate::map::{Map, Placement, check_pages, window_of};
use crate::memory::Memory;
use crate::{Error, Iommu};

impl<B: Backend> Iommu<B> {
    /// Cuts the area that `at` lies in, so that one begins there. Nobody's access changes: the two
    /// areas show together what the one did. Where nothing is mapped, or an area begins there
    /// already, nothing is done.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::UnmapInProgress`], [`Error::TooManyAreas`],
    /// [`Error::OutOfMemory`]; [`Error::Misaligned`] when a table may show the bytes on both sides
    /// by one entry. That is known not to be where all pages of a window have one size.
    pub fn split(&mut self, id: IoasId, at: Iova) -> Result<(), Error> {
        let ioas = self.ioas.need(id)?;
        let Some(area) = ioas.areas.find(at.bits()) else {
            return Ok(());
        };
        if area.start == at.bits() {
            return Ok(());
        }
        ioas.closed(area.span())?;
        let base = ioas.base_alignment();
        let mut alignment = base;
        for shown in &ioas.domains {
            let window = window_of(self.backend.windows(shown.table), area.span())?;
            // The largest page there may be one of.
            let largest = window.pages.bits().checked_ilog2().unwrap_or(0);
            alignment = alignment.max(1_u64.checked_shl(largest).unwrap_or(u64::MAX));
        }
        let into = at.bits().wrapping_sub(area.start);
        for value in [at.bits(), area.start, area.offset.wrapping_add(into)] {
            if value & alignment.wrapping_sub(1) != 0 {
                return Err(Error::Misaligned { value, alignment });
            }
        }
        if u32::try_from(ioas.areas.len()).map_or(true, |len| len >= ioas.max_areas) {
            return Err(Error::TooManyAreas {
                limit: ioas.max_areas,
            });
        }
        let ioas = self.ioas.need_mut(id)?;
        ioas.areas.reserve_two(&mut self.budget)?;
        if let Some(memory) = self.memory.at_mut(area.memory) {
            if let Some(shown) = memory.shown_mut() {
                self.budget.reserve(shown, 1)?;
                shown.push((id, at.bits()));
                ioas.bar_areas = ioas.bar_areas.saturating_add(1);
            }
            memory.areas = memory.areas.saturating_add(1);
        }
        ioas.areas.remove(area.start);
        ioas.areas.insert(Area {
            last: at.bits().wrapping_sub(1),
            ..area
        });
        ioas.areas.insert(Area {
            start: at.bits(),
            offset: area.offset.wrapping_add(into),
            ..area
        });
        Ok(())
    }

    /// Replaces what one area shows, in one step: a device that uses it finds the old memory or the
    /// new, never nothing. When this returns, no device reaches the old memory through it any more.
    ///
    /// # Errors
    /// Those of [`Iommu::map`], [`Error::Overlaps`] and [`Error::NoSpace`] apart;
    /// [`Error::NotMapped`], [`Error::CutsArea`] unless exactly one area is there;
    /// [`Error::Pinned`]; [`Error::DeviceMemory`] when either is a BAR; [`Error::Backend`] with
    /// [`BackendError::Unsupported`](crate::BackendError::Unsupported) where the hardware has no such
    /// step. The area is then as before.
    ///
    /// Only where several tables show the area, and one of them neither takes the new memory nor
    /// gives up what it has, the area serves nobody from then on, as after an unmapping that was not
    /// confirmed ([`Iommu::unmap`]), and both memory objects stay alive.
    pub fn exchange(&mut self, id: IoasId, request: &Map) -> Result<(), Error> {
        let ioas = self.ioas.need(id)?;
        let memory = self.memory.need(request.memory)?;
        self.may_map(ioas, request.memory, memory, request.permissions)?;
        let (old, new) = self.exchanged(ioas, memory, request)?;
        let ioas = self.ioas.need_mut(id)?;
        // What the area shows then may not go with what its neighbours show.
        ioas.areas.reserve(&mut self.budget)?;
        let not_mapped = Error::NotMapped {
            at: old.span().start(),
        };
        let from = self.memory.at(old.memory).ok_or(not_mapped)?;
        let to = self.memory.at(new.memory).ok_or(not_mapped)?;
        let mut failure = None;
        for (at, shown) in ioas.domains.iter().enumerate() {
            let window = window_of(self.backend.windows(shown.table), new.span())?;
            let leaves = ioas.leaves(window);
            let done = one_run(to, new, leaves).map(|run| self.backend.exchange(shown.table, &run));
            if let Err(error) = done.map_or(Err(not_mapped), |done| done.map_err(Error::from)) {
                failure = Some((at, error));
                break;
            }
        }
        let Some((at, error)) = failure else {
            if let Some(memory) = self.memory.at_mut(old.memory) {
                memory.areas = memory.areas.saturating_sub(1);
            }
            if let Some(memory) = self.memory.at_mut(new.memory) {
                memory.areas = memory.areas.saturating_add(1);
            }
            ioas.areas.replace(new);
            return Ok(());
        };
        let mut restored = true;
        for earlier in ioas.domains.get(..at).unwrap_or_default() {
            let window = window_of(self.backend.windows(earlier.table), old.span())?;
            let run = one_run(from, old, ioas.leaves(window));
            restored &= run.is_some_and(|run| self.backend.exchange(earlier.table, &run).is_ok());
        }
        if !restored {
            for shown in &ioas.domains {
                self.backend.unmap(shown.table, old.span());
                // Confirmed or not, the area does not serve anybody any more.
                let _ = self.backend.invalidate(shown.table, old.span());
            }
            ioas.areas.set_flags(old.start, old.flags.stale());
            // Nobody knows that it cannot be reached.
            if let Some(memory) = self.memory.at_mut(new.memory) {
                memory.areas = memory.areas.saturating_add(1);
            }
        }
        Err(error)
    }

    /// The area that a request replaces, and what by, checked against everything but the backend.
    fn exchanged(
        &self,
        ioas: &Ioas,
        memory: &Memory,
        request: &Map,
    ) -> Result<(Area, Area), Error> {
        let Placement::Fixed(start) = request.placement else {
            return Err(Error::Empty);
        };
        let span = Span::from_len(start, request.bytes).ok_or(Error::Overflow)?;
        let end = request
            .offset
            .checked_add(request.bytes)
            .ok_or(Error::Overflow)?;
        if end > memory.bytes() {
            return Err(Error::OutsideMemory {
                bytes: memory.bytes(),
            });
        }
        let not_mapped = Error::NotMapped { at: start };
        let old = ioas.areas.find(start.bits()).ok_or(not_mapped)?;
        if old.span() != span {
            return Err(Error::CutsArea { area: old.span() });
        }
        if old.flags.is_stale() {
            return Err(not_mapped);
        }
        ioas.closed(span)?;
        if let Some(pinned) = ioas.pinned_in(span) {
            return Err(Error::Pinned { pinned });
        }
        let is_bar = self
            .memory
            .at(old.memory)
            .is_none_or(|old| old.device().is_some());
        if is_bar || memory.device().is_some() {
            return Err(Error::DeviceMemory { area: span });
        }
        let new = Area {
            offset: request.offset,
            memory: request.memory.index(),
            flags: crate::area::Flags::new(request.permissions),
            ..old
        };
        check_pages(memory, new, self.floor(ioas, span)?)?;
        Ok((old, new))
    }
}

/// An area that is contiguous in memory, as a run.
pub(crate) fn one_run(memory: &Memory, area: Area, leaves: crate::PageSizes) -> Option<Run> {
    let extent = memory.at(area.offset)?;
    (extent.bytes >= area.bytes()).then_some(Run {
        iova: area.span().start(),
        pa: extent.pa,
        bytes: area.bytes(),
        permissions: area.flags.permissions(),
        memory: memory.memory_type(),
        leaves,
    })
}
