//! Windows of a domain: what a platform with TCE tables can add and take away (DDW).

use types::{Iova, PageSize};

use crate::backend::{Backend, BackendError, Window, WindowLimits};
use crate::domain::{DomainId, for_each_gap};
use crate::ioas::{IoasId, Reserved, ReservedBy};
use crate::{Error, Feature, Iommu};

/// The most entries of a window. Platforms count them in 32 bits, and one is known to fail badly
/// beyond this.
const MAX_ENTRIES: u64 = 1 << 31;

impl<B: Backend> Iommu<B> {
    fn dynamic(&self, id: DomainId) -> Result<(crate::TableId, IoasId), Error> {
        let domain = self.domains.need(id)?;
        let paging = domain.paging().ok_or(Error::NotPaging(id.any()))?;
        let caps = self
            .backend
            .capabilities(domain.unit())
            .ok_or(Error::NoSuchUnit(domain.unit()))?;
        if !caps.dynamic_windows {
            return Err(Error::Unsupported(Feature::DynamicWindows));
        }
        Ok((paging.table, paging.ioas))
    }

    /// The windows of a paging domain, ordered by address.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::NotPaging`].
    pub fn windows(&self, id: DomainId) -> Result<&[Window], Error> {
        let table = self.domains.need(id)?.table();
        Ok(self
            .backend
            .windows(table.ok_or(Error::NotPaging(id.any()))?))
    }

    /// What further window could be had.
    ///
    /// # Errors
    /// [`Error::NotPaging`], [`Error::Unsupported`].
    pub fn query_window(&self, id: DomainId) -> Result<WindowLimits, Error> {
        let (table, _) = self.dynamic(id)?;
        Ok(self.backend.window_limits(table))
    }

    /// Adds a window; the platform chooses where. Its addresses are free to map from then on.
    ///
    /// # Errors
    /// [`Error::NotPaging`], [`Error::Unsupported`], [`Error::OutOfMemory`], [`Error::Backend`]
    /// with [`BackendError::NoWindow`] or [`BackendError::BadWindow`].
    pub fn create_window(
        &mut self,
        id: DomainId,
        page: PageSize,
        bytes: u64,
    ) -> Result<Window, Error> {
        let (table, ioas) = self.dynamic(id)?;
        if !bytes.is_power_of_two() || bytes >> page.shift() > MAX_ENTRIES {
            return Err(BackendError::BadWindow.into());
        }
        self.reserve_gaps(table, ioas)?;
        let window = self.backend.create_window(table, page, bytes)?;
        self.update_gaps(id, table, ioas);
        Ok(window)
    }

    /// Takes away the window that starts at `base`. Its addresses are reserved from then on.
    ///
    /// # Errors
    /// [`Error::NotPaging`], [`Error::Unsupported`]; [`Error::Backend`] with
    /// [`BackendError::NoWindow`]; [`Error::ReservedCutsArea`] or
    /// [`Error::ReservedCutsAllowed`] while something in it is mapped or promised;
    /// [`Error::WindowOverlaps`] while a doorbell is in it.
    pub fn remove_window(&mut self, id: DomainId, base: Iova) -> Result<(), Error> {
        let (table, ioas) = self.dynamic(id)?;
        let mut windows = self.backend.windows(table).iter();
        let window = windows
            .find(|window| window.span.start() == base)
            .ok_or(BackendError::NoWindow)?;
        self.ioas.need(ioas)?.may_lose(window.span)?;
        self.no_doorbells(id, Some(*window))?;
        self.reserve_gaps(table, ioas)?;
        self.backend.remove_window(table, base)?;
        self.update_gaps(id, table, ioas);
        Ok(())
    }

    /// Puts the windows back to what the platform starts with.
    ///
    /// # Errors
    /// [`Error::NotPaging`], [`Error::Unsupported`]; [`Error::Busy`] while anything is mapped or
    /// promised in the address space, since the old windows go with their entries;
    /// [`Error::WindowOverlaps`] while a doorbell is mapped; [`Error::Backend`].
    pub fn reset_windows(&mut self, id: DomainId) -> Result<(), Error> {
        let (table, ioas) = self.dynamic(id)?;
        let space = self.ioas.need(ioas)?;
        let pages = usize::try_from(space.pages()).unwrap_or(usize::MAX);
        let used = space.areas.len().saturating_add(space.allowed.len());
        let used = used.saturating_add(pages);
        if used > 0 {
            return Err(Error::Busy {
                object: ioas.any(),
                users: u32::try_from(used).unwrap_or(u32::MAX),
            });
        }
        self.no_doorbells(id, None)?;
        self.reserve_gaps(table, ioas)?;
        self.backend.reset_windows(table)?;
        self.update_gaps(id, table, ioas);
        Ok(())
    }

    fn no_doorbells(&self, id: DomainId, window: Option<Window>) -> Result<(), Error> {
        let paging = self.domains.need(id)?.paging();
        for at in paging.map_or(&[][..], |paging| &paging.doorbells) {
            let Some(doorbell) = self.msi_pages.get(*at) else {
                continue;
            };
            let page = crate::area::span(doorbell.iova(), doorbell.iova());
            if window.is_none_or(|window| window.span.overlaps(page)) {
                return Err(Error::WindowOverlaps { region: page });
            }
        }
        Ok(())
    }

    /// Room for the gaps of one window more than there are, and of those the platform starts with.
    fn reserve_gaps(&mut self, table: crate::TableId, ioas: IoasId) -> Result<(), Error> {
        let gaps = self.backend.windows(table).len().saturating_add(4);
        let space = self.ioas.need_mut(ioas)?;
        Ok(self.budget.reserve(&mut space.reserved, gaps)?)
    }

    fn update_gaps(&mut self, id: DomainId, table: crate::TableId, ioas: IoasId) {
        let Some(space) = self.ioas.get_mut(ioas) else {
            return;
        };
        let by = ReservedBy::Domain(id);
        space.unreserve(by);
        let windows = self.backend.windows(table);
        space.sheets.retain(|sheet| {
            let is_of = |window: &Window| {
                window.span == sheet.span() && window.pages.contains(sheet.page())
            };
            sheet.live() > 0 || windows.iter().any(is_of)
        });
        if let Some(shown) = space.domains.first() {
            space.sheets.aim(self.backend.windows(shown.table));
        }
        let _ = for_each_gap(self.backend.windows(table), |span| {
            space.reserve(Reserved { span, by });
            Ok(())
        });
    }
}
