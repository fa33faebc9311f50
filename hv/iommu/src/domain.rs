//! Domains: what a group of devices is attached to.

use alloc::vec::Vec;
use core::ops::ControlFlow;

use types::{Iova, Span};

use crate::area::span;
use crate::arena::{Id, Kind, Object};
use crate::backend::{
    Backend, BackendError, Binding, DirtyTracking, Endpoint, TableId, TableOptions, UnitId,
};
use crate::group::DeviceId;
use crate::ioas::{IoasId, Reserved, ReservedBy, Shown};
use crate::map::{check_pages, show, window_of};
use crate::nested::NestedConfig;
use crate::viommu::ViommuId;
use crate::{Error, Feature, Iommu, OwnerId};

/// The name of a [`Domain`].
pub type DomainId = Id<Domain>;

/// What a paging domain shall be able to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainOptions {
    /// A guest's stage 1 may be put on top.
    pub nest_parent: bool,
    /// Written pages can be recorded.
    pub dirty_tracking: bool,
}

/// Who made a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An attachment to an address space. It goes with its last group.
    Attachment,
    /// A request. It stays until it is destroyed.
    Request,
}

/// A table that shows an address space.
#[derive(Debug)]
pub(crate) struct Paging {
    pub(crate) ioas: IoasId,
    pub(crate) table: TableId,
    pub(crate) origin: Origin,
    pub(crate) options: DomainOptions,
    pub(crate) tracking: DirtyTracking,
    /// Doorbells it shows, by position in the list of all.
    pub(crate) doorbells: Vec<usize>,
}

#[derive(Debug)]
pub(crate) enum DomainKind {
    Paging(Paging),
    /// A guest's stage 1 on a nest parent.
    Nested {
        viommu: ViommuId,
        parent: DomainId,
        config: NestedConfig,
    },
    Identity,
    Blocked,
}

/// What a group is attached to: a paging domain (stage 2, or TCE tables), a nested one (a guest's
/// stage 1 over a nest parent), identity, or blocked.
#[derive(Debug)]
pub struct Domain {
    owner: OwnerId,
    unit: UnitId,
    pub(crate) kind: DomainKind,
    /// Groups attached, nested domains and virtual IOMMUs on top.
    pub(crate) users: u32,
}

impl Object for Domain {
    const KIND: Kind = Kind::Domain;
}

impl Domain {
    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> OwnerId {
        self.owner
    }

    /// The unit it is for.
    #[must_use]
    pub fn unit(&self) -> UnitId {
        self.unit
    }

    /// The address space that a paging domain shows.
    #[must_use]
    pub fn ioas(&self) -> Option<IoasId> {
        self.paging().map(|paging| paging.ioas)
    }

    /// The table of a paging domain.
    #[must_use]
    pub fn table(&self) -> Option<TableId> {
        self.paging().map(|paging| paging.table)
    }

    /// Whether a guest's stage 1 may be put on it.
    #[must_use]
    pub fn is_nest_parent(&self) -> bool {
        self.paging()
            .is_some_and(|paging| paging.options.nest_parent)
    }

    pub(crate) fn nested(
        owner: OwnerId,
        unit: UnitId,
        viommu: ViommuId,
        parent: DomainId,
        config: NestedConfig,
    ) -> Self {
        Self {
            owner,
            unit,
            kind: DomainKind::Nested {
                viommu,
                parent,
                config,
            },
            users: 0,
        }
    }

    pub(crate) fn paging(&self) -> Option<&Paging> {
        match &self.kind {
            DomainKind::Paging(paging) => Some(paging),
            _ => None,
        }
    }

    pub(crate) fn paging_mut(&mut self) -> Option<&mut Paging> {
        match &mut self.kind {
            DomainKind::Paging(paging) => Some(paging),
            _ => None,
        }
    }
}

impl<B: Backend> Iommu<B> {
    /// A domain.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`].
    pub fn domain(&self, domain: DomainId) -> Result<&Domain, Error> {
        self.domains.need(domain)
    }

    /// The paging domain that a domain is or sits on.
    #[must_use]
    pub fn paging_below(&self, domain: DomainId) -> Option<DomainId> {
        match self.domains.get(domain)?.kind {
            DomainKind::Paging(_) => Some(domain),
            DomainKind::Nested { parent, .. } => Some(parent),
            DomainKind::Identity | DomainKind::Blocked => None,
        }
    }

    /// The address space behind a domain.
    pub(crate) fn ioas_below(&self, domain: DomainId) -> Option<IoasId> {
        self.domains.get(self.paging_below(domain)?)?.ioas()
    }

    pub(crate) fn paging_mut(&mut self, domain: DomainId) -> Result<&mut Paging, Error> {
        self.domains
            .need_mut(domain)?
            .paging_mut()
            .ok_or(Error::NotPaging(domain.any()))
    }

    /// What a backend installs for a domain.
    pub(crate) fn binding(&self, domain: DomainId) -> Result<Binding, Error> {
        Ok(match &self.domains.need(domain)?.kind {
            DomainKind::Paging(paging) => Binding::Table(paging.table),
            DomainKind::Nested { parent, config, .. } => Binding::Nested {
                parent: self
                    .domains
                    .need(*parent)?
                    .table()
                    .ok_or(Error::NotPaging(parent.any()))?,
                config: *config,
            },
            DomainKind::Identity => Binding::Identity,
            DomainKind::Blocked => Binding::Abort,
        })
    }

    /// Makes a paging domain for a device's unit and shows the address space in it.
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::OtherOwner`], [`Error::Unsupported`];
    /// [`Error::ReservedCutsArea`] or [`Error::ReservedCutsAllowed`] when the windows leave out
    /// what is mapped or promised; [`Error::Misaligned`], [`Error::NotContiguous`],
    /// [`Error::OutsideWindows`] when its pages cannot show what is mapped;
    /// [`Error::OutOfMemory`], [`Error::Backend`].
    pub fn create_domain(
        &mut self,
        device: DeviceId,
        ioas: IoasId,
        options: DomainOptions,
    ) -> Result<DomainId, Error> {
        self.create_paging(device, ioas, options, Origin::Request)
    }

    pub(crate) fn create_paging(
        &mut self,
        device: DeviceId,
        ioas: IoasId,
        options: DomainOptions,
        origin: Origin,
    ) -> Result<DomainId, Error> {
        let master = self.devices.need(device)?;
        let owner = master.owner().ok_or(Error::NotBound)?;
        let space = self.ioas.need(ioas)?;
        if space.owner != owner {
            return Err(Error::OtherOwner {
                object: ioas.any(),
                owner: space.owner,
            });
        }
        let unit = master.unit();
        let caps = self
            .backend
            .capabilities(unit)
            .ok_or(Error::NoSuchUnit(unit))?;
        if options.nest_parent && !caps.nesting {
            return Err(Error::Unsupported(Feature::Nesting));
        }
        if options.dirty_tracking && !caps.dirty {
            return Err(Error::Unsupported(Feature::DirtyTracking));
        }
        let endpoint = Endpoint {
            unit,
            source: master.sources().next().unwrap_or(0),
        };
        let table = self.backend.create_table(
            endpoint,
            TableOptions {
                nest_parent: options.nest_parent,
                dirty: options.dirty_tracking,
            },
        )?;
        let result = self.populate(ioas, table).and_then(|gaps| {
            let space = self.ioas.need_mut(ioas)?;
            self.budget.reserve(&mut space.reserved, gaps)?;
            self.budget.reserve(&mut space.domains, 1)?;
            let paging = Paging {
                ioas,
                table,
                origin,
                options,
                tracking: DirtyTracking::Off,
                doorbells: Vec::new(),
            };
            Ok(self.domains.insert(
                &mut self.budget,
                Domain {
                    owner,
                    unit,
                    kind: DomainKind::Paging(paging),
                    users: 0,
                },
            )?)
        });
        let domain = match result {
            Ok(domain) => domain,
            Err(error) => {
                // No endpoint was ever bound to it, so nothing of it is cached.
                self.backend.destroy_table(table);
                return Err(error);
            }
        };
        let space = self.ioas.need_mut(ioas)?;
        for_each_gap(self.backend.windows(table), |gap| {
            space.reserve(Reserved {
                span: gap,
                by: ReservedBy::Domain(domain),
            });
            Ok(())
        })?;
        space.domains.push(Shown { domain, table });
        if let Some(shown) = space.domains.first() {
            space.sheets.aim(self.backend.windows(shown.table));
        }
        space.users = space.users.saturating_add(1);
        Ok(domain)
    }

    /// Shows an address space in a new table, and counts the gaps between its windows.
    fn populate(&mut self, ioas: IoasId, table: TableId) -> Result<usize, Error> {
        let space = self.ioas.need(ioas)?;
        let mut gaps = 0_usize;
        for_each_gap(self.backend.windows(table), |gap| {
            gaps = gaps.saturating_add(1);
            space.may_reserve(gap)
        })?;
        let (backend, memories) = (&mut self.backend, &self.memory);
        let refused = space.areas.visit(0, u64::MAX, |area| {
            let Some(memory) = memories.at(area.memory) else {
                return ControlFlow::Continue(());
            };
            let mut add = || {
                let window = window_of(backend.windows(table), area.span())?;
                check_pages(memory, area, window.pages.smallest())?;
                if area.flags.is_stale() || memory.is_revoked() {
                    return Ok(());
                }
                let leaves = space.leaves(window);
                show(backend, table, leaves, memory, area)
                    .map_err(|(error, _)| Error::Backend(error))
            };
            match add() {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => ControlFlow::Break(error),
            }
        });
        match refused {
            Some(error) => Err(error),
            None => self.show_sheets(ioas, table).map(|()| gaps),
        }
    }

    /// Makes a domain in which nothing gets through.
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::OutOfMemory`].
    pub fn create_blocked(&mut self, device: DeviceId) -> Result<DomainId, Error> {
        self.create_plain(device, DomainKind::Blocked)
    }

    /// Makes a domain without translation, for a device that the hypervisor itself holds.
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::IdentityForbidden`], [`Error::OutOfMemory`].
    pub fn create_identity(&mut self, device: DeviceId) -> Result<DomainId, Error> {
        match self.devices.need(device)?.owner() {
            Some(OwnerId::HYPERVISOR) => self.create_plain(device, DomainKind::Identity),
            Some(_) => Err(Error::IdentityForbidden),
            None => Err(Error::NotBound),
        }
    }

    pub(crate) fn create_plain(
        &mut self,
        device: DeviceId,
        kind: DomainKind,
    ) -> Result<DomainId, Error> {
        let device = self.devices.need(device)?;
        let domain = Domain {
            owner: device.owner().ok_or(Error::NotBound)?,
            unit: device.unit(),
            kind,
            users: 0,
        };
        Ok(self.domains.insert(&mut self.budget, domain)?)
    }

    /// Gives up a domain that nothing is attached to and nothing sits on.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::Busy`]. [`Error::Backend`]: the unit did not confirm that devices that were
    /// attached to it are done with it. It stays, for ever, and with it the memory that it shows.
    pub fn destroy_domain(&mut self, id: DomainId) -> Result<(), Error> {
        let domain = self.domains.need(id)?;
        if domain.users > 0 {
            return Err(Error::Busy {
                object: id.any(),
                users: domain.users,
            });
        }
        if let Some(paging) = domain.paging()
            && !self.backend.is_sure(paging.table)
        {
            return Err(BackendError::Timeout.into());
        }
        let Some(domain) = self.domains.remove(id) else {
            return Ok(());
        };
        match domain.kind {
            DomainKind::Paging(paging) => {
                if let Some(ioas) = self.ioas.get_mut(paging.ioas) {
                    ioas.domains.retain(|shown| shown.domain != id);
                    if let Some(shown) = ioas.domains.first() {
                        ioas.sheets.aim(self.backend.windows(shown.table));
                    }
                    ioas.unreserve(ReservedBy::Domain(id));
                    ioas.users = ioas.users.saturating_sub(1);
                }
                self.backend.destroy_table(paging.table);
            }
            DomainKind::Nested { viommu, .. } => {
                if let Some(viommu) = self.viommus.get_mut(viommu) {
                    viommu.users = viommu.users.saturating_sub(1);
                }
            }
            DomainKind::Identity | DomainKind::Blocked => {}
        }
        Ok(())
    }

    /// One user less. A domain that an attachment made goes with its last one.
    pub(crate) fn release_domain(&mut self, id: DomainId) {
        let Some(domain) = self.domains.get_mut(id) else {
            return;
        };
        domain.users = domain.users.saturating_sub(1);
        let made_by_attachment = domain
            .paging()
            .is_some_and(|paging| paging.origin == Origin::Attachment);
        if domain.users == 0 && made_by_attachment {
            // It has no users. What is not known to be over stays.
            let _ = self.destroy_domain(id);
        }
    }

    pub(crate) fn use_domain(&mut self, id: DomainId) {
        if let Some(domain) = self.domains.get_mut(id) {
            domain.users = domain.users.saturating_add(1);
        }
    }
}

/// Visits the addresses that no window holds.
pub(crate) fn for_each_gap(
    windows: &[crate::backend::Window],
    mut f: impl FnMut(Span<Iova>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut from = Some(0_u64);
    for window in windows {
        let start = from.unwrap_or(u64::MAX);
        if let Some(before) = window.span.start().bits().checked_sub(1)
            && start <= before
        {
            f(span(start, before))?;
        }
        from = window.span.last().bits().checked_add(1);
    }
    match from {
        Some(start) => f(span(start, u64::MAX)),
        None => Ok(()),
    }
}
