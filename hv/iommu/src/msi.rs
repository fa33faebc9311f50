//! Where a device's interrupts go: a window of bus addresses, and the doorbells in it.

use types::{Address, Iova, Pa, PageSize, Span};

use crate::area::{Permissions, span};
use crate::backend::{Backend, MemoryType, Run};
use crate::domain::{Domain, DomainId};
use crate::group::{DeviceId, GroupId, MsiRoute, RegionKind};
use crate::ioas::{Reserved, ReservedBy};
use crate::map::window_of;
use crate::{Error, Iommu, OwnerId, PAGE};

/// The granularity of windows: 1 MiB.
const GRANULE: u64 = 1 << 20;

/// The bus addresses that doorbells appear at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiWindow {
    start: u64,
    bytes: u64,
}

impl MsiWindow {
    /// 1 MiB at `0x0800_0000`.
    pub const DEFAULT: Self = Self {
        start: 0x0800_0000,
        bytes: GRANULE,
    };

    /// The addresses.
    #[must_use]
    pub fn span(self) -> Span<Iova> {
        span(
            self.start,
            self.start.saturating_add(self.bytes.saturating_sub(1)),
        )
    }
}

/// A doorbell's place in the windows that start at an address. It is kept as long as any group or
/// domain needs it, so that every domain of an owner shows a doorbell of a window at the same address. A page of
/// the caller's choosing ([`Iommu::map_doorbell_at`]) may be another doorbell's in another domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Doorbell {
    owner: OwnerId,
    window: u64,
    pa: Pa,
    page: u64,
}

impl Doorbell {
    pub(crate) fn iova(self) -> u64 {
        self.window.saturating_add(self.page.saturating_mul(PAGE))
    }

    pub(crate) fn span(self) -> Span<Iova> {
        let iova = self.iova();
        span(iova, iova.saturating_add(PAGE.saturating_sub(1)))
    }
}

impl<B: Backend> Iommu<B> {
    /// Where a device's interrupts go.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::NoMsiWindow`].
    pub fn msi_window(&self, device: DeviceId) -> Result<MsiWindow, Error> {
        let device = self.devices.need(device)?;
        if device.msi_route() != MsiRoute::Doorbell {
            return Err(Error::NoMsiWindow);
        }
        Ok(device.msi_window)
    }

    /// Says where the window shall start; it moves when its size is set.
    ///
    /// # Errors
    /// [`Error::NoMsiWindow`]; [`Error::AlreadyAttached`]: the window is frozen;
    /// [`Error::Misaligned`] to 1 MiB; [`Error::Overflow`] beyond the largest physical address,
    /// since a guest may use the window as one.
    pub fn set_msi_start(&mut self, device: DeviceId, start: u64) -> Result<(), Error> {
        self.msi_window(device)?;
        let device = self.devices.need_mut(device)?;
        if device.attached {
            return Err(Error::AlreadyAttached);
        }
        if start > Pa::MAX {
            return Err(Error::Overflow);
        }
        if start & (GRANULE.saturating_sub(1)) != 0 {
            return Err(Error::Misaligned {
                value: start,
                alignment: GRANULE,
            });
        }
        device.msi_start = Some(start);
        Ok(())
    }

    /// Sets the size in MiB, and with it the start given before. Zero goes back to
    /// [`MsiWindow::DEFAULT`], whatever the start.
    ///
    /// # Errors
    /// [`Error::NoMsiWindow`]; [`Error::AlreadyAttached`]; [`Error::StartFirst`];
    /// [`Error::Overflow`]; [`Error::WindowOverlaps`] a reserved region of the device, other than
    /// a relaxable one.
    pub fn set_msi_size(&mut self, device: DeviceId, mebibytes: u64) -> Result<(), Error> {
        self.msi_window(device)?;
        let device = self.devices.need_mut(device)?;
        if device.attached {
            return Err(Error::AlreadyAttached);
        }
        let window = if mebibytes == 0 {
            MsiWindow::DEFAULT
        } else {
            let start = device.msi_start.ok_or(Error::StartFirst)?;
            let bytes = mebibytes.checked_mul(GRANULE).ok_or(Error::Overflow)?;
            let last = start
                .checked_add(bytes.saturating_sub(1))
                .ok_or(Error::Overflow)?;
            if last > Pa::MAX {
                return Err(Error::Overflow);
            }
            MsiWindow { start, bytes }
        };
        let overlap = device.reserved.iter().find(|region| {
            region.kind != RegionKind::DirectRelaxable && region.span.overlaps(window.span())
        });
        if let Some(region) = overlap {
            return Err(Error::WindowOverlaps {
                region: region.span,
            });
        }
        device.msi_window = window;
        if mebibytes == 0 {
            device.msi_start = None;
        }
        Ok(())
    }

    /// Makes a doorbell reachable for an attached device and returns the bus address to program
    /// into it. From then on every domain the device's group moves to shows the doorbell too.
    ///
    /// Doorbells in different pages get successive pages of the window.
    ///
    /// # Errors
    /// [`Error::NotAttached`], [`Error::NoMsiWindow`], [`Error::NotPaging`] (the device is in an
    /// identity or blocked domain), [`Error::WindowFull`], [`Error::OutsideWindows`],
    /// [`Error::OutOfMemory`], [`Error::Backend`].
    pub fn map_doorbell(&mut self, id: DeviceId, doorbell: Pa) -> Result<Iova, Error> {
        let window = self.msi_window(id)?;
        self.show(id, window, doorbell)
    }

    /// Makes a doorbell reachable for an attached device at a page of the caller's choosing, outside
    /// of any window: where the guest believes its own interrupt controller's page is. Otherwise as
    /// [`Iommu::map_doorbell`]; a doorbell can be shown at several places, and in domains that have tables of their
    /// own the page can lead to a doorbell each. A group does not move to a domain where it leads elsewhere.
    ///
    /// # Errors
    /// Those of [`Iommu::map_doorbell`], of which [`Error::WindowFull`] says that the page leads to another doorbell in
    /// the device's domain; [`Error::Misaligned`] to 4 KiB; [`Error::ReservedCutsArea`] or
    /// [`Error::ReservedCutsAllowed`]: something of the device's address space is there.
    pub fn map_doorbell_at(
        &mut self,
        id: DeviceId,
        page: Iova,
        doorbell: Pa,
    ) -> Result<Iova, Error> {
        self.msi_window(id)?;
        let start = page.bits();
        if start & (PAGE.saturating_sub(1)) != 0 {
            return Err(Error::Misaligned {
                value: start,
                alignment: PAGE,
            });
        }
        let window = MsiWindow { start, bytes: PAGE };
        let ioas = self.ioas_of_device(self.devices.need(id)?);
        let ioas = ioas.ok_or(Error::NotAttached)?;
        let by = ReservedBy::Device(id);
        let space = self.ioas.need_mut(ioas)?;
        let page = Reserved {
            span: window.span(),
            by,
        };
        if space.reserved.contains(&page) {
            return self.show(id, window, doorbell);
        }
        space.may_reserve(page.span)?;
        self.budget.reserve(&mut space.reserved, 1)?;
        let shown = self.show(id, window, doorbell)?;
        self.ioas.need_mut(ioas)?.reserve(page);
        Ok(shown)
    }

    fn show(&mut self, id: DeviceId, window: MsiWindow, doorbell: Pa) -> Result<Iova, Error> {
        let device = self.devices.need(id)?;
        if !device.attached {
            return Err(Error::NotAttached);
        }
        let owner = device.owner().ok_or(Error::NotBound)?;
        let group_id = device.group();
        let current = self
            .groups
            .need(group_id)?
            .domain
            .ok_or(Error::NotAttached)?;
        let paging = self
            .paging_below(current)
            .ok_or(Error::NotPaging(current.any()))?;
        let page = PageSize::SIZE_4K;
        let pa = doorbell.align_down(page);
        let within = doorbell.bits().saturating_sub(pa.bits());
        let same = |known: &Doorbell| known.owner == owner && known.window == window.start;
        let known = self
            .msi_pages
            .iter()
            .position(|known| same(known) && known.pa == pa);
        let (at, place, old) = match known.and_then(|at| Some((at, *self.msi_pages.get(at)?))) {
            Some((at, known)) => (at, known, None),
            None => {
                // Pages and list entries that nobody needs any more are taken again. A page of the
                // caller's choosing has to be free here alone.
                let in_use = |at: usize| match window.bytes {
                    PAGE => self.doorbell_met(at, group_id, paging),
                    _ => self.doorbell_in_use(at),
                };
                let live = |page: u64| {
                    let mut all = self.msi_pages.iter().enumerate();
                    all.any(|(at, d)| same(d) && d.page == page && in_use(at))
                };
                let mut page = 0_u64;
                while live(page) {
                    page = page.saturating_add(1);
                }
                let new = Doorbell {
                    owner,
                    window: window.start,
                    pa,
                    page,
                };
                let count = self.msi_pages.len();
                let at = (0..count).find(|at| !self.doorbell_in_use(*at));
                let at = match at {
                    Some(at) => at,
                    None => {
                        self.budget.push(&mut self.msi_pages, new)?;
                        count
                    }
                };
                let slot = self.msi_pages.get_mut(at);
                let old = slot.map(|slot| core::mem::replace(slot, new));
                (at, new, old)
            }
        };
        let result = self.show_doorbell(group_id, paging, window, at, place);
        if let (Err(_), Some(old)) = (&result, old)
            && let Some(slot) = self.msi_pages.get_mut(at)
        {
            *slot = old;
        }
        result?;
        Ok(Iova::truncated(place.iova().saturating_add(within)))
    }

    /// Whether a group that is in a domain needs a doorbell, or the domain shows it.
    fn doorbell_met(&self, at: usize, group: GroupId, domain: DomainId) -> bool {
        let group = self.groups.get(group);
        let paging = self.domains.get(domain).and_then(Domain::paging);
        group.is_some_and(|group| group.doorbells.contains(&at))
            || paging.is_some_and(|paging| paging.doorbells.contains(&at))
    }

    fn doorbell_in_use(&self, at: usize) -> bool {
        let mut groups = self.groups.iter();
        let mut domains = self.domains.iter();
        groups.any(|(_, group)| group.doorbells.contains(&at))
            || domains.any(|(_, domain)| {
                let paging = domain.paging();
                paging.is_some_and(|paging| paging.doorbells.contains(&at))
            })
    }

    fn show_doorbell(
        &mut self,
        group: GroupId,
        paging: DomainId,
        window: MsiWindow,
        at: usize,
        place: Doorbell,
    ) -> Result<(), Error> {
        // Another device's window may be larger: the place must be in this one's.
        if !window.span().contains_span(place.span()) {
            return Err(Error::WindowFull);
        }
        let object = self.groups.need_mut(group)?;
        self.budget.reserve(&mut object.doorbells, 1)?;
        self.install_doorbell(paging, at)?;
        let object = self.groups.need_mut(group)?;
        if !object.doorbells.contains(&at) {
            object.doorbells.push(at);
        }
        Ok(())
    }

    /// Shows a doorbell in a paging domain; tells whether it was not there before.
    pub(crate) fn install_doorbell(&mut self, domain: DomainId, at: usize) -> Result<bool, Error> {
        let Some(doorbell) = self.msi_pages.get(at).copied() else {
            return Ok(false);
        };
        let paging = self.paging_mut(domain)?;
        if paging.doorbells.contains(&at) {
            return Ok(false);
        }
        let table = paging.table;
        let page = doorbell.span();
        let shown = self.domains.get(domain).and_then(Domain::paging);
        let leads_elsewhere = |other: &usize| {
            let other = self.msi_pages.get(*other);
            other.is_some_and(|other| other.span() == page)
        };
        if shown.is_some_and(|paging| paging.doorbells.iter().any(leads_elsewhere)) {
            return Err(Error::WindowFull);
        }
        let pages = window_of(self.backend.windows(table), page)?.pages;
        if pages.smallest() > PAGE {
            return Err(Error::NotContiguous {
                pa: doorbell.pa,
                page: pages.smallest(),
            });
        }
        let domain = self
            .domains
            .need_mut(domain)?
            .paging_mut()
            .ok_or(Error::NotPaging(domain.any()))?;
        self.budget.reserve(&mut domain.doorbells, 1)?;
        self.backend.map(
            table,
            &Run {
                iova: page.start(),
                pa: doorbell.pa,
                bytes: PAGE,
                permissions: Permissions::ReadWrite,
                memory: MemoryType::Device,
                leaves: pages.up_to(PAGE),
            },
        )?;
        domain.doorbells.push(at);
        Ok(true)
    }

    /// Shows what a group needs in a domain it is about to enter. All or nothing.
    pub(crate) fn install_doorbells(
        &mut self,
        domain: DomainId,
        needed: &[usize],
    ) -> Result<(), Error> {
        let before = self.paging_mut(domain)?.doorbells.len();
        for at in needed {
            if let Err(error) = self.install_doorbell(domain, *at) {
                self.remove_doorbells(domain, before);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes back the doorbells that a domain shows since it showed `keep` of them. Nothing that
    /// is attached needs them, and a domain that a device is attached to shows them to devices of
    /// the same owner only, so a lost invalidation lets nobody reach anything new.
    pub(crate) fn remove_doorbells(&mut self, domain: DomainId, keep: usize) {
        loop {
            let Ok(paging) = self.paging_mut(domain) else {
                return;
            };
            if paging.doorbells.len() <= keep {
                return;
            }
            let (table, at) = (paging.table, paging.doorbells.pop());
            if let Some(doorbell) = at.and_then(|at| self.msi_pages.get(at)) {
                let page = doorbell.span();
                self.backend.unmap(table, page);
                let _ = self.backend.invalidate(table, page);
            }
        }
    }
}
