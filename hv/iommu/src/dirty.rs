//! Which pages devices wrote to.

use types::{Iova, Span};

use crate::backend::{Backend, BackendError, DirtyRead, DirtyTracking};
use crate::domain::DomainId;
use crate::map::window_of;
use crate::{Error, Feature, Iommu};

impl<B: Backend> Iommu<B> {
    /// Starts or stops recording written pages. Starting forgets what was recorded before.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::NotPaging`]; [`Error::Unsupported`] when the domain was
    /// not made for it; [`Error::Backend`].
    pub fn set_dirty_tracking(
        &mut self,
        id: DomainId,
        tracking: DirtyTracking,
    ) -> Result<(), Error> {
        let paging = self
            .domains
            .need_mut(id)?
            .paging_mut()
            .ok_or(Error::NotPaging(id.any()))?;
        if !paging.options.dirty_tracking {
            return Err(Error::Unsupported(Feature::DirtyTracking));
        }
        self.backend.set_dirty_tracking(paging.table, tracking)?;
        paging.tracking = tracking;
        Ok(())
    }

    /// Sets, in `bitmap`, the bit of every page of `page` bytes in `span` that was written since
    /// it was last read with [`DirtyRead::Clear`]. Bit 0 of byte 0 is the first page; other bits
    /// are left as they are.
    ///
    /// `page` need not be a page of the table: smaller ones all get the news of the leaf they are
    /// in, larger ones that of all leaves in them.
    ///
    /// # Errors
    /// [`Error::NotPaging`], [`Error::NotTracking`]; [`Error::BadBitmap`] when `page` is no power
    /// of two or `span` is not made of whole pages and whole leaves of the smallest kind;
    /// [`Error::BufferTooSmall`] with the bytes needed; [`Error::OutsideWindows`];
    /// [`Error::Backend`]: bits may be set already, and after a time-out of a clearing read later
    /// writes may go unnoticed until the next one.
    pub fn read_dirty(
        &mut self,
        id: DomainId,
        span: Span<Iova>,
        page: u64,
        read: DirtyRead,
        bitmap: &mut [u8],
    ) -> Result<(), Error> {
        let domain = self.domains.need(id)?;
        let paging = domain.paging().ok_or(Error::NotPaging(id.any()))?;
        if paging.tracking == DirtyTracking::Off {
            return Err(Error::NotTracking);
        }
        let table = paging.table;
        let pages = window_of(self.backend.windows(table), span)?.pages;
        let mask = pages.smallest().max(page).saturating_sub(1);
        let (start, last) = (span.start().bits(), span.last().bits());
        if !page.is_power_of_two() || start & mask != 0 || last & mask != mask {
            return Err(Error::BadBitmap);
        }
        let shift = page.trailing_zeros();
        let index = |at: u64| at.saturating_sub(start).checked_shr(shift).unwrap_or(0);
        let needed = usize::try_from(index(last) / 8)
            .unwrap_or(usize::MAX)
            .saturating_add(1);
        if bitmap.len() < needed {
            return Err(Error::BufferTooSmall { needed });
        }
        let mut any = false;
        self.backend
            .read_dirty(table, span, read, &mut |leaf: Span<Iova>| {
                let Some(both) = leaf.intersection(span) else {
                    return;
                };
                any = true;
                for bit in index(both.start().bits())..=index(both.last().bits()) {
                    let byte = usize::try_from(bit / 8)
                        .ok()
                        .and_then(|at| bitmap.get_mut(at));
                    if let Some(byte) = byte {
                        *byte |= 1 << (bit & 7);
                    }
                }
            })?;
        if any && read == DirtyRead::Clear {
            // A cached translation that knows it is dirty would not say so again.
            self.backend
                .invalidate(table, span)
                .map_err(|_| BackendError::Timeout)?;
        }
        Ok(())
    }
}
