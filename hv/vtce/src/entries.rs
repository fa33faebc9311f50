//! Entries of one window, and what is mapped for them: always together.

use iommu::{Backend, BackendError, Error, IoasId, Iommu, Map, Placement};
use tce::Tce;
use types::{Address, Span};

use crate::bridge::GuestWindow;
use crate::slot::{Place, Slots};
use crate::status::Status;

impl GuestWindow {
    /// Shows `count` pages of a memory object, contiguous there, in entries that are empty. `first` is
    /// the first entry as the guest wrote it.
    #[inline]
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
        let request = Map {
            placement: Placement::Fixed(self.at(index)),
            memory: place.memory,
            offset: place.offset,
            bytes: self.bytes(count),
            permissions: place.permissions,
        };
        if let Err(error) = core.map(ioas, &request) {
            self.entries.trim(index, count);
            return Err(error.into());
        }
        let bytes = self.page.bytes();
        let mut next = first.bits();
        self.entries.fill(index, count, |_| {
            let tce = Tce::from_bits(next);
            next = next.wrapping_add(bytes);
            tce
        });
        Ok(())
    }

    /// Empties `count` entries, as many of them as are not empty.
    pub(crate) fn clear<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        ioas: IoasId,
        index: u64,
        count: u64,
    ) -> Result<(), Status> {
        let end = index.saturating_add(count);
        let Some(first) = self.entries.live_in(index, count) else {
            return Ok(());
        };
        let from = self.at(first);
        let last = self.at(end.saturating_sub(1)).bits() | self.page.mask();
        // At most one area reaches in from either side; it is cut there.
        core.split(ioas, from)?;
        if let Some(after) = last.checked_add(1) {
            core.split(ioas, types::Iova::truncated(after))?;
        }
        let range = Span::new(from, types::Iova::truncated(last)).ok_or(Status::PARAMETER)?;
        core.unmap(ioas, range)?;
        self.entries.clear(first, end.saturating_sub(first));
        Ok(())
    }

    /// Puts one page in the place of another. A device finds the old or the new one, where the
    /// hardware has such a step; elsewhere it finds nothing for a moment.
    pub(crate) fn exchange<B: Backend>(
        &mut self,
        core: &mut Iommu<B>,
        ioas: IoasId,
        index: u64,
        new: Tce,
        place: Place,
        slots: &Slots,
    ) -> Result<(), Status> {
        let old = self.entries.get(index);
        if old == new {
            return Ok(());
        }
        let at = self.at(index);
        core.split(ioas, at)?;
        if let Some(after) = at.checked_add(self.page.bytes()) {
            core.split(ioas, after)?;
        }
        let request = Map {
            placement: Placement::Fixed(at),
            memory: place.memory,
            offset: place.offset,
            bytes: self.page.bytes(),
            permissions: place.permissions,
        };
        match core.exchange(ioas, &request) {
            Ok(()) => {
                self.entries.set(index, new);
                Ok(())
            }
            Err(Error::Backend(BackendError::Unsupported) | Error::DeviceMemory { .. }) => {
                self.clear(core, ioas, index, 1)?;
                let mapped = self.map(core, ioas, index, 1, new, place);
                if mapped.is_err()
                    && let Some(before) = slots.place(old, self.page)
                {
                    // Where not even that can be, the entry is empty: nothing gets through.
                    let _ = self.map(core, ioas, index, 1, old, before);
                }
                mapped
            }
            Err(error) => Err(error.into()),
        }
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
                self.exchange(core, ioas, at, tce, here, slots)?;
                at.saturating_add(1)
            };
        }
        Ok(())
    }
}
