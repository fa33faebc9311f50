//! What is done with sheets: opening them, showing pages, emptying them.

use core::ops::ControlFlow;

use types::{Iova, PageSize, Span};

use super::{MIXED, Page, Sheet, SheetId, low, release};
use crate::area::{Area, Flags, span};
use crate::backend::{Backend, BackendError, EntryPlace, PageRun, PageSizes, Run, TableId};
use crate::ioas::{Ioas, IoasId, Shown};
use crate::map::{Map, Placement, check_pages, show, undo, window_of};
use crate::memory::{Memory, MemoryId};
use crate::sparse::{Entry, Sparse};
use crate::split::one_run;
use crate::{Error, Iommu, OutOfMemory, Permissions};

/// Shows one page in the place of another, everywhere or nowhere. `Err` says whether the old one is
/// there again.
fn exchange<B: Backend>(
    backend: &mut B,
    domains: &[Shown],
    old: impl Fn() -> Option<Run>,
    new: &Run,
) -> Result<(), (BackendError, bool)> {
    for (at, shown) in domains.iter().enumerate() {
        let Err(error) = backend.exchange(shown.table, new) else {
            continue;
        };
        let mut restored = true;
        for earlier in domains.get(..at).unwrap_or_default() {
            restored &= old().is_some_and(|old| backend.exchange(earlier.table, &old).is_ok());
        }
        if !restored {
            for shown in domains {
                backend.unmap(shown.table, span_of(new));
                // Confirmed or not, the page does not serve anybody any more.
                let _ = backend.invalidate(shown.table, span_of(new));
            }
        }
        return Err((error, restored));
    }
    Ok(())
}

fn span_of(run: &Run) -> Span<Iova> {
    let start = run.iova.bits();
    span(start, start.saturating_add(run.bytes.saturating_sub(1)))
}

/// Shows pages in every table, or in none. An error with `true`: what was shown for a moment may be there.
#[inline]
fn show_all<B: Backend>(
    backend: &mut B,
    domains: &[Shown],
    leaves: PageSizes,
    memory: &Memory,
    area: Area,
) -> Result<(), (BackendError, bool)> {
    for (at, shown) in domains.iter().enumerate() {
        if let Err((error, seen)) = show(backend, shown.table, leaves, memory, area) {
            let earlier = domains.get(..at).unwrap_or_default();
            return Err(
                match undo(backend, earlier, shown.table, area.span(), seen) {
                    Ok(()) => (error, false),
                    Err(late) => (late, true),
                },
            );
        }
    }
    Ok(())
}

/// Whether a table has a window that can show a sheet.
fn check_window<B: Backend>(
    backend: &B,
    table: TableId,
    span: Span<Iova>,
    page: PageSize,
) -> Result<(), Error> {
    let window = window_of(backend.windows(table), span)?;
    if window.pages.contains(page) {
        Ok(())
    } else {
        Err(Error::Misaligned {
            value: page.bytes(),
            alignment: window.pages.smallest(),
        })
    }
}

impl<B: Backend> Iommu<B> {
    /// Makes `span` a sheet of pages of one size, none of which is shown. It goes with the window that it
    /// is (if it is less, whenever windows change and it is empty), or by [`Iommu::close_sheet`]. It takes
    /// 16 bytes for 512 pages now, and 4 KiB for those 512 as long as one of them is shown.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::Misaligned`] (also where a window has no pages of that size),
    /// [`Error::OutsideWindows`], [`Error::Reserved`], [`Error::Overlaps`] with an area or a sheet,
    /// [`Error::UnmapInProgress`], [`Error::OutOfMemory`].
    pub fn open_sheet(
        &mut self,
        id: IoasId,
        at: Span<Iova>,
        page: PageSize,
    ) -> Result<SheetId, Error> {
        let ioas = self.ioas.need_mut(id)?;
        let bytes = at.len().ok_or(Error::Overflow)?;
        for value in [at.start().bits(), bytes] {
            if value & page.mask() != 0 {
                let alignment = page.bytes();
                return Err(Error::Misaligned { value, alignment });
            }
        }
        for shown in &ioas.domains {
            check_window(&self.backend, shown.table, at, page)?;
        }
        if let Some(reserved) = ioas.reserved_overlap(at) {
            return Err(Error::Reserved { reserved });
        }
        let (start, last) = (at.start().bits(), at.last().bits());
        let area = ioas.areas.overlapping(start, last).map(Area::span);
        let mut sheets = ioas.sheets.iter().map(Sheet::span);
        if let Some(existing) = area.or_else(|| sheets.find(|other| other.overlaps(at))) {
            return Err(Error::Overlaps { existing });
        }
        ioas.closed(at)?;
        self.budget.take()?;
        let pages = Sparse::new(bytes >> page.shift())?;
        let index = ioas.sheets.reserve(&mut self.budget)?;
        let serial = self.next_serial;
        self.next_serial = serial.wrapping_add(1);
        if let Some(place) = ioas.sheets.places.get_mut(index) {
            *place = Some(Sheet {
                serial,
                span: at,
                page,
                window: usize::MAX,
                pages,
            });
        }
        if let Some(shown) = ioas.domains.first() {
            ioas.sheets.aim(self.backend.windows(shown.table));
        }
        Ok(SheetId { index, serial })
    }

    /// Gives up a sheet.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::NotMapped`]; [`Error::Busy`] while a page of it is shown.
    pub fn close_sheet(&mut self, id: IoasId, sheet: SheetId) -> Result<(), Error> {
        let ioas = self.ioas.need_mut(id)?;
        let live = ioas.sheets.get_mut(sheet).map(|sheet| sheet.live());
        let live = live.ok_or(Error::NotMapped { at: Iova::ZERO })?;
        if live > 0 {
            return Err(Error::Busy {
                object: id.any(),
                users: low(live),
            });
        }
        ioas.sheets.retain(|other| other.serial != sheet.serial);
        Ok(())
    }

    /// Shows RAM in page `number` of a sheet, if that is cheap; false where [`Iommu::put_pages`] has to be
    /// asked, because it is not, because something is shown there, or because it is refused. Then nothing
    /// has changed. It is cheap where pages near it are of the same piece of memory.
    #[inline(always)]
    pub fn put_page(
        &mut self,
        id: IoasId,
        (sheet, number): (SheetId, u64),
        (memory, offset): (MemoryId, u64),
        permissions: Permissions,
    ) -> bool {
        self.put_quickly(id, (sheet, number), (memory, offset), permissions)
            .is_some()
    }

    #[inline(always)]
    fn put_quickly(
        &mut self,
        id: IoasId,
        (sheet, number): (SheetId, u64),
        (memory, offset): (MemoryId, u64),
        permissions: Permissions,
    ) -> Option<()> {
        let ioas = self.ioas.get_mut(id)?;
        let index = memory.index();
        let memory = self.memory.get_mut(memory)?;
        // Its owner may do anything with it.
        if memory.owner() != ioas.owner || memory.device().is_some() {
            return None;
        }
        if ioas.areas.len() > 0 || ioas.revoking.is_some() {
            return None;
        }
        let [shown] = ioas.domains.as_slice() else {
            return None;
        };
        let sheet = ioas.sheets.get_mut(sheet)?;
        let size = sheet.page;
        // Where it is in whole pages, so is the end.
        let pa = memory.page(offset, size)?;
        if (offset | pa.bits()) & size.mask() != 0 {
            return None;
        }
        let page = Page::new(index, offset >> size.shift(), permissions)?;
        let mut slot = sheet.pages.slot(number)?;
        if !slot.get().is_empty() {
            return None;
        }
        if *slot.tag() != index {
            let is_fresh = slot.live_in_chunk() == 0;
            *slot.tag() = if is_fresh { index } else { MIXED };
        }
        let at = EntryPlace {
            window: sheet.window,
            page: number,
        };
        let run = PageRun {
            pa,
            size,
            permissions,
        };
        if !self.backend.map_page(shown.table, at, run) {
            return None;
        }
        slot.fill(page);
        memory.areas = memory.areas.wrapping_add(1);
        Some(())
    }

    /// Empties page `number` of a sheet, if that is cheap; false where [`Iommu::clear_pages`] has to be
    /// asked, because it is not, because nothing is shown, or because the unit does not confirm.
    #[inline(always)]
    pub fn clear_page(&mut self, id: IoasId, sheet: SheetId, number: u64) -> bool {
        self.clear_quickly(id, sheet, number).is_some()
    }

    #[inline(always)]
    fn clear_quickly(&mut self, id: IoasId, sheet: SheetId, number: u64) -> Option<()> {
        let ioas = self.ioas.get_mut(id)?;
        if ioas.areas.len() > 0 || ioas.revoking.is_some() {
            return None;
        }
        let [shown] = ioas.domains.as_slice() else {
            return None;
        };
        let sheet = ioas.sheets.get_mut(sheet)?;
        let at = EntryPlace {
            window: sheet.window,
            page: number,
        };
        let slot = sheet.pages.slot(number)?;
        let page = slot.get();
        if slot.is_last() || page.is_empty() || page.is_stale() {
            return None;
        }
        let memory = self.memory.at_mut(page.memory())?;
        if !self.backend.unmap_page(shown.table, at) {
            return None;
        }
        slot.clear();
        memory.areas = memory.areas.wrapping_sub(1);
        Some(())
    }

    /// Shows RAM in pages of a sheet, which follow one another there as in the memory object: in pages that
    /// show nothing; or, if it is one page, in the place of what that shows, in one step: a device that
    /// uses it finds the old memory or the new.
    ///
    /// # Errors
    /// Those of [`Iommu::map`]; [`Error::DeviceMemory`] for a BAR; [`Error::NotMapped`] where there is no
    /// sheet, and for a page that is stale; [`Error::Overlaps`] with an area, or with a page where they
    /// are several; [`Error::Backend`] with [`BackendError::Unsupported`] where the hardware cannot
    /// exchange. Everything is as before then, except as for [`Iommu::map`] and [`Iommu::exchange`].
    #[inline]
    pub fn put_pages(&mut self, id: IoasId, request: &Map) -> Result<(), Error> {
        let ioas = self.ioas.need_mut(id)?;
        let memory = self.memory.need_mut(request.memory)?;
        let granted = memory.granted(ioas.owner).ok_or(Error::OtherOwner {
            object: request.memory.any(),
            owner: memory.owner(),
        })?;
        if !granted.covers(request.permissions) {
            return Err(Error::PermissionDenied);
        }
        let Placement::Fixed(start) = request.placement else {
            return Err(Error::NoSpace {
                bytes: request.bytes,
            });
        };
        let less_one = request.bytes.checked_sub(1).ok_or(Error::Empty)?;
        let last = start.bits().checked_add(less_one).ok_or(Error::Overflow)?;
        let end = request.offset.checked_add(request.bytes);
        if end.ok_or(Error::Overflow)? > memory.bytes() {
            return Err(Error::OutsideMemory {
                bytes: memory.bytes(),
            });
        }
        let range = span(start.bits(), last);
        if memory.device().is_some() {
            return Err(Error::DeviceMemory { area: range });
        }
        ioas.closed(range)?;
        if ioas.areas.len() > 0
            && let Some(area) = ioas.areas.overlapping(start.bits(), last)
        {
            return Err(Error::Overlaps {
                existing: area.span(),
            });
        }
        let Ioas {
            sheets, domains, ..
        } = ioas;
        let mut sheets = sheets.iter_mut();
        let sheet = sheets
            .find(|sheet| sheet.span.contains_span(range))
            .ok_or(Error::NotMapped { at: start })?;
        let size = sheet.page;
        let area = Area {
            start: start.bits(),
            last,
            offset: request.offset,
            memory: request.memory.index(),
            flags: Flags::new(request.permissions),
        };
        check_pages(memory, area, size.bytes())?;
        memory.expect_near(request.offset);
        let number = request.offset >> size.shift();
        let page = Page::new(area.memory, number, request.permissions).ok_or(OutOfMemory)?;
        let what = sheet.range(range);
        let old = if what.count == 1 {
            sheet.pages.get(what.first)
        } else if let Some(existing) = sheet.first_in(range) {
            return Err(Error::Overlaps { existing });
        } else {
            Page::default()
        };
        if !old.is_empty() {
            return self.put_over(id, area, page);
        }
        sheet.reserve(what, &mut self.budget)?;
        let leaves = PageSizes::of(size);
        match show_all(&mut self.backend, domains, leaves, memory, area) {
            Ok(()) => {
                sheet.record(what, page, memory);
                Ok(())
            }
            Err((error, false)) => {
                sheet.pages.trim(what.first, what.count);
                Err(error.into())
            }
            Err((error, true)) => {
                sheet.record(what, Page(page.0 | Page::STALE), memory);
                Err(error.into())
            }
        }
    }

    /// Shows a page, checked, in the place of the one that is there.
    fn put_over(&mut self, id: IoasId, area: Area, new: Page) -> Result<(), Error> {
        let at = Iova::truncated(area.start);
        let ioas = self.ioas.need_mut(id)?;
        let Ioas {
            sheets, domains, ..
        } = ioas;
        let mut sheets = sheets.iter_mut();
        let not_mapped = Error::NotMapped { at };
        let sheet = sheets
            .find(|sheet| sheet.span.contains(at))
            .ok_or(not_mapped)?;
        let what = sheet.range(area.span());
        let old = sheet.pages.get(what.first);
        if old.is_stale() {
            return Err(not_mapped);
        }
        if old == new {
            return Ok(());
        }
        let old_area = sheet.area(at, old);
        let leaves = PageSizes::of(sheet.page);
        let run = |memory: Option<&Memory>, area: Area| one_run(memory?, area, leaves);
        let to = run(self.memory.at(area.memory), area).ok_or(not_mapped)?;
        let from = self.memory.at(old_area.memory);
        let done = exchange(&mut self.backend, domains, || run(from, old_area), &to);
        let Err((error, restored)) = done else {
            if old.memory() != new.memory() {
                release(&mut self.memory, old.memory(), 1);
                if let Some(memory) = self.memory.at_mut(area.memory) {
                    memory.areas = memory.areas.saturating_add(1);
                }
                sheet.mix(what.first);
            }
            sheet.pages.set(what.first, new);
            return Ok(());
        };
        if !restored {
            sheet.pages.set(what.first, Page(old.0 | Page::STALE));
            // Nobody knows that it cannot be reached.
            if let Some(memory) = self.memory.at_mut(area.memory) {
                memory.areas = memory.areas.saturating_add(1);
            }
        }
        Err(error.into())
    }

    /// Empties the pages of a sheet in a range, as many of them as show something; gives how many. When
    /// this returns, no device can reach memory through them any more.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::NotMapped`] unless the range is whole pages of one sheet,
    /// [`Error::UnmapInProgress`]: nothing changed. [`Error::Backend`]: the unit did not confirm; the
    /// pages keep their memory, but serve nobody. Clear them again.
    #[inline]
    pub fn clear_pages(&mut self, id: IoasId, range: Span<Iova>) -> Result<u64, Error> {
        let ioas = self.ioas.need_mut(id)?;
        ioas.closed(range)?;
        let Ioas {
            sheets, domains, ..
        } = ioas;
        let not_mapped = Error::NotMapped { at: range.start() };
        let mut sheets = sheets.iter_mut();
        let sheet = sheets
            .find(|sheet| sheet.span.contains_span(range))
            .ok_or(not_mapped)?;
        let ends = range.start().bits() | range.last().bits().wrapping_add(1);
        if ends & sheet.page.mask() != 0 {
            return Err(not_mapped);
        }
        let all = sheet.range(range);
        if sheet.pages.live_in(all.first, all.count).is_none() {
            return Ok(0);
        }
        let mut outcome = Ok(());
        for shown in &*domains {
            self.backend.unmap(shown.table, range);
        }
        for shown in &*domains {
            outcome = outcome.and(self.backend.invalidate(shown.table, range));
        }
        if let Err(error) = outcome {
            sheet
                .pages
                .change(all.first, all.count, |page| Page(page.0 | Page::STALE));
            return Err(error.into());
        }
        Ok(sheet.forget(all, &mut self.memory))
    }

    /// The page of a sheet that is shown at an address.
    #[must_use]
    pub fn page(&self, id: IoasId, at: Iova) -> Option<Span<Iova>> {
        self.ioas.get(id)?.page_at(at).map(Area::span)
    }

    /// Shows the pages of sheets in a new table.
    pub(crate) fn show_sheets(&mut self, id: IoasId, table: TableId) -> Result<(), Error> {
        let ioas = self.ioas.need(id)?;
        let (backend, memories) = (&mut self.backend, &self.memory);
        for sheet in ioas.sheets.iter() {
            check_window(backend, table, sheet.span, sheet.page)?;
            let leaves = PageSizes::of(sheet.page);
            let failed = sheet.visit(|area| {
                let memory = memories.at(area.memory).filter(|_| !area.flags.is_stale());
                match memory.map(|memory| show(backend, table, leaves, memory, area)) {
                    Some(Err((error, _))) => ControlFlow::Break(error),
                    _ => ControlFlow::Continue(()),
                }
            });
            if let Some(error) = failed {
                return Err(error.into());
            }
        }
        Ok(())
    }
}
