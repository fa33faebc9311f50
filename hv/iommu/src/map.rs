//! Mapping, unmapping, copying, looking up.

use core::ops::ControlFlow;

use types::{Address, Iova, Pa, Span};

use crate::area::{Area, Flags, Permissions, span};
use crate::arena::Arena;
use crate::backend::{Backend, BackendError, MemoryType, PageSizes, Run, TableId, Window};
use crate::group::Path;
use crate::ioas::{Ioas, IoasId, PeerToPeer, Shown};
use crate::memory::{Extent, Memory, MemoryId};
use crate::{Error, Iommu};

/// Where a mapping goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Exactly here.
    Fixed(Iova),
    /// Wherever there is room.
    Auto,
}

/// A request to map.
#[derive(Clone, Copy, Debug)]
pub struct Map {
    /// Where.
    pub placement: Placement,
    /// What.
    pub memory: MemoryId,
    /// From which byte of it.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
    /// For what.
    pub permissions: Permissions,
}

/// A request to copy mappings from one address space to another.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    /// From where.
    pub from: IoasId,
    /// What; mapped throughout.
    pub span: Span<Iova>,
    /// To where.
    pub to: IoasId,
    /// At which address there.
    pub placement: Placement,
    /// For what; no more than what the source allows.
    pub permissions: Permissions,
}

/// The answer to [`Iommu::translate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Where the address leads.
    pub pa: Pa,
    /// For how many bytes the physical addresses go on without a break.
    pub bytes: u64,
    /// What is allowed.
    pub permissions: Permissions,
    /// How memory is accessed.
    pub memory: MemoryType,
}

/// The window that holds all of a range.
pub(crate) fn window_of(windows: &[Window], span: Span<Iova>) -> Result<&Window, Error> {
    windows
        .iter()
        .find(|window| window.span.contains_span(span))
        .ok_or(Error::OutsideWindows { span })
}

/// Shows an area in a table, all or nothing as far as the table goes.
///
/// Returns how many bytes from its start a device may have seen and cached when it fails.
#[inline(always)]
pub(crate) fn show<B: Backend>(
    backend: &mut B,
    table: TableId,
    leaves: PageSizes,
    memory: &Memory,
    area: Area,
) -> Result<(), (BackendError, u64)> {
    let (permissions, memory_type) = (area.flags.permissions(), memory.memory_type());
    let run = move |iova: u64, extent: Extent| Run {
        iova: Iova::truncated(iova),
        pa: extent.pa,
        bytes: extent.bytes,
        permissions,
        memory: memory_type,
        leaves,
    };
    // Nearly all memory objects are of one piece.
    match memory.only_run(area.offset, area.bytes()) {
        Some(extent) => backend
            .map(table, &run(area.start, extent))
            .map_err(|error| (error, 0)),
        None => {
            let what = (area.start, area.offset, area.bytes());
            show_scattered(backend, table, memory, what, &run)
        }
    }
}

#[inline(never)]
fn show_scattered<B: Backend>(
    backend: &mut B,
    table: TableId,
    memory: &Memory,
    (start, offset, bytes): (u64, u64, u64),
    run: &dyn Fn(u64, Extent) -> Run,
) -> Result<(), (BackendError, u64)> {
    let mut at = start;
    let mut failure = None;
    let result = memory.runs(offset, bytes, |extent| {
        backend.map(table, &run(at, extent)).map_err(|error| {
            failure = Some(error);
            Error::Backend(error)
        })?;
        at = at.saturating_add(extent.bytes);
        Ok(())
    });
    match (result, failure) {
        (Ok(()), _) => Ok(()),
        (Err(_), failure) => {
            let shown = at.saturating_sub(start);
            if let Some(last) = shown.checked_sub(1) {
                backend.unmap(table, span(start, start.saturating_add(last)));
            }
            Err((failure.unwrap_or(BackendError::Unsupported), shown))
        }
    }
}

/// Checks that pages of at least `floor` bytes can show an area.
#[inline]
pub(crate) fn check_pages(memory: &Memory, area: Area, floor: u64) -> Result<(), Error> {
    let mask = floor.saturating_sub(1);
    for value in [area.start, area.bytes(), area.offset] {
        if value & mask != 0 {
            return Err(Error::Misaligned {
                value,
                alignment: floor,
            });
        }
    }
    memory.runs(area.offset, area.bytes(), |extent| {
        if (extent.pa.bits() | extent.bytes) & mask == 0 {
            Ok(())
        } else {
            Err(Error::NotContiguous {
                pa: extent.pa,
                page: floor,
            })
        }
    })
}

/// Unmaps the areas in a checked range, of which `first` is the first.
#[inline]
fn remove_from<B: Backend>(
    backend: &mut B,
    memories: &mut Arena<Memory>,
    (id, ioas): (IoasId, &mut Ioas),
    range: Span<Iova>,
    first: Area,
) -> Result<u64, Error> {
    let (start, last) = (range.start().bits(), range.last().bits());
    if !ioas.domains.is_empty() {
        let mut end = first.last;
        let mut clear = |area: Area| {
            for shown in &ioas.domains {
                backend.unmap(shown.table, area.span());
            }
            end = area.last;
            ControlFlow::<()>::Continue(())
        };
        if first.last >= last {
            let _ = clear(first);
        } else {
            ioas.areas.visit(start, last, clear);
        }
        let cleared = span(first.start, end);
        let mut outcome = Ok(());
        for shown in &ioas.domains {
            outcome = outcome.and(backend.invalidate(shown.table, cleared));
        }
        if let Err(error) = outcome {
            let mut next = Some(first);
            while let Some(area) = next.filter(|area| area.start <= last) {
                ioas.areas.set_flags(area.start, area.flags.stale());
                next = area
                    .last
                    .checked_add(1)
                    .and_then(|after| ioas.areas.at_or_after(after));
            }
            return Err(error.into());
        }
    }
    let mut bytes = first.bytes();
    forget(memories, ioas, id, first);
    let mut end = first.last;
    while end < last {
        let Some(area) = ioas.areas.at_or_after(end).filter(|a| a.start <= last) else {
            break;
        };
        bytes = bytes.saturating_add(area.bytes());
        end = area.last;
        forget(memories, ioas, id, area);
    }
    Ok(bytes)
}

/// Takes back what was shown of an area: in a table, `seen` bytes of it that are cleared again, and in
/// earlier ones. What was visible for a moment may be cached, and must be gone before the caller
/// hears that the mapping does not exist.
#[cold]
pub(crate) fn undo<B: Backend>(
    backend: &mut B,
    earlier: &[Shown],
    table: TableId,
    area: Span<Iova>,
    seen: u64,
) -> Result<(), BackendError> {
    let mut undone = Ok(());
    if let Some(seen) = Span::from_len(area.start(), seen) {
        undone = backend.invalidate(table, seen);
    }
    for earlier in earlier {
        backend.unmap(earlier.table, area);
        undone = undone.and(backend.invalidate(earlier.table, area));
    }
    undone
}

/// Takes an area out, which no table shows any more.
#[inline(always)]
fn forget(memories: &mut Arena<Memory>, ioas: &mut Ioas, id: IoasId, area: Area) {
    ioas.areas.remove(area.start);
    let Some(memory) = memories.at_mut(area.memory) else {
        return;
    };
    memory.areas = memory.areas.saturating_sub(1);
    if let Some(shown) = memory.shown_mut() {
        shown.retain(|known| *known != (id, area.start));
        ioas.bar_areas = ioas.bar_areas.saturating_sub(1);
    }
}

/// The area of a request that begins at `start`; it has been checked to end.
#[inline(always)]
fn new_area(start: u64, request: &Map) -> Area {
    Area {
        start,
        last: start.saturating_add(request.bytes.saturating_sub(1)),
        offset: request.offset,
        memory: request.memory.index(),
        flags: Flags::new(request.permissions),
    }
}

impl<B: Backend> Iommu<B> {
    /// The smallest page that any table needs for a range, in bytes.
    pub(crate) fn floor(&self, ioas: &Ioas, span: Span<Iova>) -> Result<u64, Error> {
        let mut floor = ioas.base_alignment();
        for shown in &ioas.domains {
            let window = window_of(self.backend.windows(shown.table), span)?;
            floor = floor.max(window.pages.smallest());
        }
        Ok(floor)
    }

    /// What speaks against mapping this memory in this address space at all.
    pub(crate) fn may_map(
        &self,
        ioas: &Ioas,
        id: MemoryId,
        memory: &Memory,
        permissions: Permissions,
    ) -> Result<(), Error> {
        let granted = memory.granted(ioas.owner).ok_or(Error::OtherOwner {
            object: id.any(),
            owner: memory.owner(),
        })?;
        if !granted.covers(permissions) {
            return Err(Error::PermissionDenied);
        }
        let Some(device) = memory.device() else {
            return Ok(());
        };
        if ioas.peer_to_peer == PeerToPeer::Disabled {
            return Err(Error::PeerToPeerDisabled);
        }
        if memory.is_revoked() {
            return Err(Error::Revoked);
        }
        // Both ends must go through the IOMMU: the device that is reached, and all that reach it.
        if self.devices.need(device)?.path() != Path::Redirected {
            return Err(Error::PathNotTranslated {
                device: device.any(),
            });
        }
        for (id, device) in self.devices.iter() {
            if device.path() != Path::Redirected
                && self
                    .ioas_of_device(device)
                    .and_then(|at| self.ioas.get(at))
                    .is_some_and(|at| core::ptr::eq(at, ioas))
            {
                return Err(Error::PathNotTranslated { device: id.any() });
            }
        }
        Ok(())
    }

    /// Maps memory for every device attached to the address space, or for none.
    ///
    /// # Errors
    /// In this order: [`Error::NoSuchObject`], [`Error::OtherOwner`],
    /// [`Error::PermissionDenied`], for BARs [`Error::PeerToPeerDisabled`], [`Error::Revoked`],
    /// [`Error::PathNotTranslated`]; [`Error::Empty`], [`Error::Overflow`],
    /// [`Error::OutsideMemory`], [`Error::Reserved`], [`Error::OutsideWindows`],
    /// [`Error::Misaligned`], [`Error::NotContiguous`], [`Error::Overlaps`], [`Error::NoSpace`],
    /// [`Error::UnmapInProgress`], [`Error::TooManyAreas`], [`Error::OutOfMemory`],
    /// [`Error::Backend`].
    ///
    /// Only when the backend does not confirm the rollback of a mapping it failed to make
    /// ([`BackendError::Timeout`]) a useless area remains; it can be unmapped.
    pub fn map(&mut self, id: IoasId, request: &Map) -> Result<Span<Iova>, Error> {
        let ioas = self.ioas.need(id)?;
        let memory = self.memory.need(request.memory)?;
        self.may_map(ioas, request.memory, memory, request.permissions)?;
        let start = self.check_area(ioas, memory, request)?;
        self.insert_area(id, new_area(start, request))
    }

    /// Where the area that a request asks for begins, checked against everything but the backend.
    #[inline(always)]
    fn check_area(&self, ioas: &Ioas, memory: &Memory, request: &Map) -> Result<u64, Error> {
        let bytes_less_one = request.bytes.checked_sub(1).ok_or(Error::Empty)?;
        if request.bytes == u64::MAX
            || request.placement == Placement::Fixed(Iova::truncated(u64::MAX))
        {
            return Err(Error::Overflow);
        }
        let end = request
            .offset
            .checked_add(request.bytes)
            .ok_or(Error::Overflow)?;
        if let Placement::Fixed(start) = request.placement {
            start.checked_add(bytes_less_one).ok_or(Error::Overflow)?;
        }
        if end > memory.bytes() {
            return Err(Error::OutsideMemory {
                bytes: memory.bytes(),
            });
        }
        let start = match request.placement {
            Placement::Fixed(start) => start.bits(),
            // Which places are free does not follow from areas alone.
            Placement::Auto if !ioas.sheets.is_empty() => {
                let bytes = request.bytes;
                return Err(Error::NoSpace { bytes });
            }
            Placement::Auto => self.place(ioas, memory, request.offset, request.bytes)?,
        };
        let last = start.checked_add(bytes_less_one).ok_or(Error::Overflow)?;
        let area = new_area(start, request);
        if let Some(reserved) = ioas.reserved_overlap(area.span()) {
            return Err(Error::Reserved { reserved });
        }
        check_pages(memory, area, self.floor(ioas, area.span())?)?;
        ioas.closed(area.span())?;
        if let Some(existing) = ioas.areas.overlapping(start, last) {
            return Err(Error::Overlaps {
                existing: existing.span(),
            });
        }
        if let Some(existing) = ioas.page_in(area.span()) {
            return Err(Error::Overlaps { existing });
        }
        if u32::try_from(ioas.areas.len()).map_or(true, |len| len >= ioas.max_areas) {
            return Err(Error::TooManyAreas {
                limit: ioas.max_areas,
            });
        }
        Ok(start)
    }

    /// Shows a checked area in every table and records it.
    fn insert_area(&mut self, id: IoasId, area: Area) -> Result<Span<Iova>, Error> {
        let ioas = self.ioas.need_mut(id)?;
        let Some(memory) = self.memory.at_mut(area.memory) else {
            return Err(Error::NoSuchObject(id.any()));
        };
        ioas.areas.reserve(&mut self.budget)?;
        let is_bar = match memory.shown_mut() {
            Some(shown) => {
                self.budget.reserve(shown, 1)?;
                true
            }
            None => false,
        };
        let mut timeout = None;
        for (at, shown) in ioas.domains.iter().enumerate() {
            let window = window_of(self.backend.windows(shown.table), area.span())?;
            let leaves = ioas.leaves(window);
            if let Err((error, seen)) = show(&mut self.backend, shown.table, leaves, memory, area) {
                let earlier = ioas.domains.get(..at).unwrap_or_default();
                match undo(&mut self.backend, earlier, shown.table, area.span(), seen) {
                    Ok(()) => return Err(error.into()),
                    Err(late) => timeout = Some(late),
                }
                break;
            }
        }
        let flags = match timeout {
            None => area.flags,
            // A device may still reach the memory: keep it alive under a useless area.
            Some(_) => area.flags.stale(),
        };
        ioas.areas.insert(Area { flags, ..area });
        memory.areas = memory.areas.saturating_add(1);
        if is_bar {
            ioas.bar_areas = ioas.bar_areas.saturating_add(1);
            if let Some(shown) = memory.shown_mut() {
                shown.push((id, area.start));
            }
        }
        match timeout {
            None => Ok(area.span()),
            Some(timeout) => Err(timeout.into()),
        }
    }

    /// Checks that a range consists of whole areas, and returns the first.
    #[inline]
    pub(crate) fn whole_areas(ioas: &Ioas, range: Span<Iova>) -> Result<Option<Area>, Error> {
        let (start, last) = (range.start().bits(), range.last().bits());
        let everything = start == 0 && last == u64::MAX;
        let Some(first) = ioas.areas.overlapping(start, last) else {
            return if everything {
                Ok(None)
            } else {
                Err(Error::NotMapped { at: range.start() })
            };
        };
        if first.start < start || first.last > last {
            return Err(Error::CutsArea { area: first.span() });
        }
        if first.last == last {
            return Ok(Some(first));
        }
        if let Some(end) = ioas.areas.find(last)
            && end.last > last
        {
            return Err(Error::CutsArea { area: end.span() });
        }
        Ok(Some(first))
    }

    /// Unmaps the whole areas in a range, for every device, and returns how many bytes that were.
    /// The range `0..=u64::MAX` unmaps everything and succeeds on an empty address space.
    ///
    /// When this returns, no device can reach the memory through these areas any more, caches
    /// included.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::NotMapped`], [`Error::CutsArea`], [`Error::Pinned`],
    /// [`Error::UnmapInProgress`]: nothing changed. [`Error::Backend`]: the unit did not confirm
    /// the invalidation; the areas remain and keep their memory, but serve nobody. Unmap again.
    pub fn unmap(&mut self, id: IoasId, range: Span<Iova>) -> Result<u64, Error> {
        let ioas = self.ioas.need_mut(id)?;
        let first = Self::whole_areas(ioas, range)?;
        ioas.closed(range)?;
        if let Some(pinned) = ioas.pinned_in(range) {
            return Err(Error::Pinned { pinned });
        }
        match first {
            Some(first) => remove_from(
                &mut self.backend,
                &mut self.memory,
                (id, ioas),
                range,
                first,
            ),
            None => Ok(0),
        }
    }

    /// Unmaps the areas in a checked range.
    pub(crate) fn remove_areas(&mut self, id: IoasId, range: Span<Iova>) -> Result<u64, Error> {
        let (start, last) = (range.start().bits(), range.last().bits());
        let ioas = self.ioas.need_mut(id)?;
        match ioas.areas.overlapping(start, last) {
            Some(first) => remove_from(
                &mut self.backend,
                &mut self.memory,
                (id, ioas),
                range,
                first,
            ),
            None => Ok(0),
        }
    }

    /// Shows what is mapped in one address space in another one as well.
    ///
    /// The copy shares the memory objects, not the areas: each side is unmapped on its own.
    ///
    /// # Errors
    /// Those of [`Iommu::map`] for the destination; [`Error::NotMapped`] when the source has a
    /// hole; [`Error::PermissionDenied`] when more is asked for than the source allows.
    pub fn copy(&mut self, request: &Copy) -> Result<Span<Iova>, Error> {
        let source = self.ioas.need(request.from)?;
        self.ioas.need(request.to)?;
        let bytes = request.span.len().ok_or(Error::Overflow)?;
        let start = request.span.start().bits();
        // First pass: the source must be mapped throughout, and allow what is asked for.
        let mut at = Some(start);
        let mut pieces = 0_usize;
        let refused = source
            .areas
            .visit(start, request.span.last().bits(), |area| {
                if at.is_none_or(|at| area.start > at) || area.flags.is_stale() {
                    return ControlFlow::Break(None);
                }
                if !area.flags.permissions().covers(request.permissions) {
                    return ControlFlow::Break(Some(Error::PermissionDenied));
                }
                pieces = pieces.saturating_add(1);
                at = area.last.checked_add(1);
                ControlFlow::Continue(())
            });
        let hole = |at: Option<u64>| Error::NotMapped {
            at: Iova::truncated(at.unwrap_or(start)),
        };
        match refused {
            Some(Some(error)) => return Err(error),
            Some(None) => return Err(hole(at)),
            None => {}
        }
        if at.is_some_and(|at| at <= request.span.last().bits()) {
            return Err(hole(at));
        }
        // Second pass: one request per source area, taken down before anything changes.
        let mut requests = self.budget.vec(pieces)?;
        let source = self.ioas.need(request.from)?;
        source
            .areas
            .visit(start, request.span.last().bits(), |area| {
                let from = area.start.max(start);
                let to = area.last.min(request.span.last().bits());
                if let Some(memory) = self.memory.id_at(area.memory) {
                    requests.push((
                        memory,
                        area.offset.saturating_add(from.saturating_sub(area.start)),
                        to.saturating_sub(from).saturating_add(1),
                    ));
                }
                ControlFlow::<()>::Continue(())
            });
        let (first, offset, _) = requests.first().copied().ok_or(hole(None))?;
        let target = match request.placement {
            Placement::Fixed(iova) => iova,
            Placement::Auto => {
                let to = self.ioas.need(request.to)?;
                let memory = self.memory.need(first)?;
                Iova::truncated(self.place(to, memory, offset, bytes)?)
            }
        };
        let whole = Span::from_len(target, bytes).ok_or(Error::Overflow)?;
        let mut done = 0_u64;
        for (memory, offset, bytes) in requests {
            let placed = target.checked_add(done).ok_or(Error::Overflow)?;
            let piece = Map {
                placement: Placement::Fixed(placed),
                memory,
                offset,
                bytes,
                permissions: request.permissions,
            };
            if let Err(error) = self.map(request.to, &piece) {
                if let Some(mapped) = Span::from_len(target, done) {
                    self.remove_areas(request.to, mapped)?;
                }
                return Err(error);
            }
            done = done.saturating_add(bytes);
        }
        Ok(whole)
    }

    /// Where an address of an address space leads.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::NotMapped`], [`Error::Revoked`].
    #[inline]
    pub fn translate(&self, ioas: IoasId, iova: Iova) -> Result<Translation, Error> {
        let ioas = self.ioas.need(ioas)?;
        let not_mapped = Error::NotMapped { at: iova };
        let area = ioas.page_at(iova);
        let area = area
            .or_else(|| ioas.areas.find(iova.bits()))
            .ok_or(not_mapped)?;
        if area.flags.is_stale() {
            return Err(not_mapped);
        }
        let memory = self.memory.at(area.memory).ok_or(not_mapped)?;
        if memory.is_revoked() {
            return Err(Error::Revoked);
        }
        let into = iova.bits().saturating_sub(area.start);
        let extent = memory
            .at(area.offset.saturating_add(into))
            .ok_or(not_mapped)?;
        Ok(Translation {
            pa: extent.pa,
            bytes: extent.bytes.min(area.bytes().saturating_sub(into)),
            permissions: area.flags.permissions(),
            memory: memory.memory_type(),
        })
    }

    /// The area at an address: what span it covers. For callers that unmap what they find.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::NotMapped`].
    pub fn area_at(&self, ioas: IoasId, iova: Iova) -> Result<Span<Iova>, Error> {
        let ioas = self.ioas.need(ioas)?;
        let area = ioas.areas.find(iova.bits());
        area.map(Area::span).ok_or(Error::NotMapped { at: iova })
    }
}
