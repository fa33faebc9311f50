//! Entries of one window, and what is shown for them: always together.
//!
//! A page of RAM is one of the window's sheet, a page of a BAR an area.

use iommu::{Backend, BackendError, Error, IoasId, Iommu, Map, Placement};
use tce::Tce;
use types::{Iova, Span};

use crate::bridge::{GuestWindow, MOST_BAR_PAGES};
use crate::slot::{Place, Slots};
use crate::status::Status;

impl GuestWindow {
    #[inline]
    fn request(&self, index: u64, count: u64, place: Place) -> Map {
        Map {
            placement: Placement::Fixed(self.at(index)),
            memory: place.memory,
            offset: place.offset,
            bytes: self.bytes(count),
            permissions: place.permissions,
        }
    }

    /// Shows `count` pages of a memory object, contiguous there, in entries that are empty. `first` is
    /// the first entry as the guest wrote it.
    pub(crate) fn map<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        ioas: IoasId,
        index: u64,
        count: u64,
        first: Tce,
        place: Place,
    ) -> Result<(), Status> {
        self.entries.reserve(index, count)?;
        let request = self.request(index, count, place);
        let mapped = match core.put_pages(ioas, &request) {
            Err(Error::DeviceMemory { .. }) => self.map_bar(core, ioas, (index, count), place),
            other => other.map_err(Status::from),
        };
        if let Err(status) = mapped {
            self.entries.trim(index, count);
            return Err(status);
        }
        self.entries
            .fill_row(index, count, first, self.page.bytes());
        Ok(())
    }

    /// Shows pages of a BAR.
    #[cold]
    #[inline(never)]
    fn map_bar<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        ioas: IoasId,
        (index, count): (u64, u64),
        place: Place,
    ) -> Result<(), Status> {
        let pages = u32::try_from(count).unwrap_or(u32::MAX);
        let pages = self.bar_pages.saturating_add(pages);
        if pages > MOST_BAR_PAGES {
            return Err(Status::RESOURCE);
        }
        core.map(ioas, &self.request(index, count, place))?;
        self.bar_pages = pages;
        Ok(())
    }

    /// Empties `count` entries, as many of them as are not empty.
    #[inline(never)]
    pub(crate) fn clear<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        ioas: IoasId,
        index: u64,
        count: u64,
    ) -> Result<(), Status> {
        if self.entries.live_in(index, count).is_none() {
            return Ok(());
        }
        let from = self.at(index);
        let bytes = self.bytes(count);
        let range = Span::from_len(from, bytes).ok_or(Status::PARAMETER)?;
        if core.ioas(ioas)?.has_areas() {
            self.clear_areas(core, ioas, (index, count), range)?;
        }
        core.clear_pages(ioas, range)?;
        if count == 1 {
            self.entries.set(index, Tce::EMPTY);
        } else {
            self.entries.clear(index, count);
        }
        Ok(())
    }

    /// Empties an entry, if that is cheap; false where [`GuestWindow::clear`] has to be asked.
    #[inline(always)]
    pub(crate) fn clear_quickly<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        ioas: IoasId,
        index: u64,
    ) -> bool {
        match self.entries.slot(index) {
            Some(slot) if !slot.is_last() && core.clear_page(ioas, self.sheet, index) => {
                slot.clear();
                true
            }
            _ => false,
        }
    }

    /// Makes an empty entry lead to a page, if that is cheap; false where [`GuestWindow::put_one`] has to
    /// be asked.
    #[inline(always)]
    pub(crate) fn put_quickly<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        ioas: IoasId,
        (index, tce): (u64, Tce),
        place: Place,
    ) -> bool {
        let what = (place.memory, place.offset);
        match self.entries.slot(index) {
            Some(slot)
                if slot.get().is_empty()
                    && core.put_page(ioas, (self.sheet, index), what, place.permissions) =>
            {
                slot.fill(tce);
                true
            }
            _ => false,
        }
    }

    /// Empties the entries of a range, from `index` on, that show BARs.
    #[cold]
    fn clear_areas<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        ioas: IoasId,
        (index, count): (u64, u64),
        range: Span<Iova>,
    ) -> Result<(), Status> {
        // At most one area reaches in from either side; it is cut there.
        core.split(ioas, range.start())?;
        if let Some(after) = range.last().bits().checked_add(1) {
            core.split(ioas, Iova::truncated(after))?;
        }
        match core.unmap(ioas, range) {
            Ok(_) => {}
            Err(Error::NotMapped { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        // What shows something yet is a page.
        for at in index..index.saturating_add(count) {
            if !self.entries.get(at).is_empty() && core.page(ioas, self.at(at)).is_none() {
                self.entries.set(at, Tce::EMPTY);
                self.bar_pages = self.bar_pages.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// Makes one entry lead to a page. Where it led to another one a device finds the old or the new one,
    /// where the hardware has such a step; elsewhere, and for a BAR, it finds nothing for a moment.
    #[inline]
    pub(crate) fn put_one<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        ioas: IoasId,
        index: u64,
        tce: Tce,
        place: Place,
        slots: &Slots,
    ) -> Result<(), Status> {
        if self.put_quickly(core, ioas, (index, tce), place) {
            return Ok(());
        }
        self.put_with_care(core, ioas, (index, tce), place, slots)
    }

    #[inline(never)]
    fn put_with_care<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        ioas: IoasId,
        (index, tce): (u64, Tce),
        place: Place,
        slots: &Slots,
    ) -> Result<(), Status> {
        if self.entries.get(index).is_empty() {
            return self.map(core, ioas, index, 1, tce, place);
        }
        match core.put_pages(ioas, &self.request(index, 1, place)) {
            Ok(()) => {
                self.entries.set(index, tce);
                Ok(())
            }
            Err(error) => self.put_otherwise(core, ioas, (index, tce), place, slots, error),
        }
    }

    /// What cannot be done in one step, because of `error`.
    #[cold]
    fn put_otherwise<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        ioas: IoasId,
        (index, tce): (u64, Tce),
        place: Place,
        slots: &Slots,
        error: Error,
    ) -> Result<(), Status> {
        let old = self.entries.get(index);
        let in_two_steps = matches!(
            error,
            Error::DeviceMemory { .. }
                | Error::Overlaps { .. }
                | Error::Backend(BackendError::Unsupported)
        );
        if !in_two_steps {
            return Err(error.into());
        }
        if old == tce {
            return Ok(());
        }
        self.clear(core, ioas, index, 1)?;
        let mapped = self.map(core, ioas, index, 1, tce, place);
        if mapped.is_err()
            && let Some(before) = slots.place(old, self.page)
        {
            // Where not even that can be, the entry is empty: nothing gets through.
            let _ = self.map(core, ioas, index, 1, old, before);
        }
        mapped
    }

    /// Makes entries what they should be, `count` of them from `index` on, leading to pages that follow
    /// one another from `place` on. `first` is the first of them.
    pub(crate) fn put<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        ioas: IoasId,
        (index, count): (u64, u64),
        first: Tce,
        place: Place,
        slots: &Slots,
    ) -> Result<(), Status> {
        if count == 1 {
            return self.put_one(core, ioas, index, first, place, slots);
        }
        let end = index.saturating_add(count);
        let mut at = index;
        while at < end {
            let left = end.saturating_sub(at);
            let live = self.entries.live_in(at, left).unwrap_or(end);
            let skip = self.bytes(at.saturating_sub(index));
            let tce = Tce::from_bits(first.bits().wrapping_add(skip));
            let here = Place {
                offset: place.offset.wrapping_add(skip),
                ..place
            };
            at = if live > at {
                let empty = live.saturating_sub(at);
                self.map(core, ioas, at, empty, tce, here)?;
                live
            } else {
                self.put_one(core, ioas, at, tce, here, slots)?;
                at.saturating_add(1)
            };
        }
        Ok(())
    }
}
