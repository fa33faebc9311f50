//! Attaching, replacing and detaching: what a group's devices can reach, switched as one.

use types::{Iova, Span};

use crate::backend::{Backend, BackendError, Binding};
use crate::domain::{DomainId, DomainKind, DomainOptions, Origin};
use crate::group::{Device, DeviceId, GroupId, MsiRoute, Path, RegionKind};
use crate::ioas::{IoasId, Reserved, ReservedBy};
use crate::{Error, Iommu};

/// What to attach a device to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// An address space: a suitable paging domain is found or made.
    Ioas(IoasId),
    /// This domain.
    Domain(DomainId),
}

impl<B: Backend> Iommu<B> {
    /// The address space that an attached device works in.
    pub(crate) fn ioas_of_device(&self, device: &Device) -> Option<IoasId> {
        if !device.attached {
            return None;
        }
        self.ioas_below(self.groups.get(device.group())?.domain?)
    }

    /// Attaches a bound device.
    ///
    /// The first device of a group switches every endpoint of the group; a further one has to name
    /// the same domain (or its address space).
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::AlreadyAttached`], [`Error::GroupElsewhere`],
    /// [`Error::OtherOwner`], [`Error::OtherUnit`], [`Error::ReservedCutsArea`],
    /// [`Error::ReservedCutsAllowed`], [`Error::PathNotTranslated`], [`Error::NoVirtualDevice`],
    /// those of [`Iommu::create_domain`], [`Error::OutOfMemory`], [`Error::Backend`].
    pub fn attach(&mut self, id: DeviceId, target: Target) -> Result<DomainId, Error> {
        let device = self.devices.need(id)?;
        device.owner().ok_or(Error::NotBound)?;
        if device.attached {
            return Err(Error::AlreadyAttached);
        }
        let group = device.group();
        if let Some(current) = self.groups.need(group)?.domain {
            let same = match target {
                Target::Domain(domain) => domain == current,
                Target::Ioas(ioas) => self.domains.need(current)?.ioas() == Some(ioas),
            };
            if !same {
                return Err(Error::GroupElsewhere(current.any()));
            }
            self.enter(id, current, None)?;
            return Ok(current);
        }
        self.resolve(id, target, |core, domain| {
            core.enter(id, domain, Some(group))
        })
    }

    /// Finds or makes the domain for a target and has `switch` go there.
    fn resolve(
        &mut self,
        device: DeviceId,
        target: Target,
        mut switch: impl FnMut(&mut Self, DomainId) -> Result<(), Error>,
    ) -> Result<DomainId, Error> {
        match target {
            Target::Domain(domain) => {
                self.check_domain(device, domain)?;
                switch(self, domain)?;
                Ok(domain)
            }
            Target::Ioas(ioas) => {
                let space = self.ioas.need(ioas)?;
                let master = self.devices.need(device)?;
                if master.owner() != Some(space.owner) {
                    return Err(Error::OtherOwner {
                        object: ioas.any(),
                        owner: space.owner,
                    });
                }
                let unit = master.unit();
                let mut at = 0_usize;
                // A table that does not suit the endpoint says so; any other refusal is final.
                while let Some(shown) = self.ioas.need(ioas)?.domains.get(at).copied() {
                    at = at.saturating_add(1);
                    let domain = self.domains.need(shown.domain)?;
                    let suits = domain.unit() == unit
                        && domain
                            .paging()
                            .is_some_and(|paging| paging.origin == Origin::Attachment);
                    if !suits {
                        continue;
                    }
                    match switch(self, shown.domain) {
                        Err(Error::Backend(BackendError::Incompatible)) => {}
                        Err(error) => return Err(error),
                        Ok(()) => return Ok(shown.domain),
                    }
                }
                let domain =
                    self.create_paging(device, ioas, DomainOptions::default(), Origin::Attachment)?;
                match switch(self, domain) {
                    Ok(()) => Ok(domain),
                    Err(error) => {
                        // Made for this attachment alone: it has no users.
                        let _ = self.destroy_domain(domain);
                        Err(error)
                    }
                }
            }
        }
    }

    /// What speaks against a device in a domain, apart from addresses.
    pub(crate) fn check_domain(&self, id: DeviceId, domain: DomainId) -> Result<(), Error> {
        let device = self.devices.need(id)?;
        let object = self.domains.need(domain)?;
        if Some(object.owner()) != device.owner() {
            return Err(Error::OtherOwner {
                object: domain.any(),
                owner: object.owner(),
            });
        }
        if object.unit() != device.unit() {
            return Err(Error::OtherUnit(object.unit()));
        }
        if let DomainKind::Nested { viommu, config, .. } = &object.kind {
            self.check_nested(id, *viommu, config)?;
        }
        Ok(())
    }

    /// Reserves in an address space what a device needs kept free. All or nothing.
    fn reserve_regions(&mut self, id: DeviceId, ioas: IoasId) -> Result<(), Error> {
        let device = self.devices.need(id)?;
        let space = self.ioas.need_mut(ioas)?;
        if space.bar_areas > 0 && device.path() != Path::Redirected {
            return Err(Error::PathNotTranslated { device: id.any() });
        }
        let window = (device.msi_route() == MsiRoute::Doorbell).then(|| device.msi_window.span());
        let group = self.groups.need(device.group())?;
        let pages = &self.msi_pages;
        let regions = || {
            let fixed = device.reserved.iter();
            let outside = move |page: &Span<Iova>| window.is_none_or(|w| !w.contains_span(*page));
            let doorbells = group.doorbells.iter().filter_map(|at| pages.get(*at));
            fixed
                .filter(|region| region.kind != RegionKind::DirectRelaxable)
                .map(|region| region.span)
                .chain(window)
                .chain(doorbells.map(|doorbell| doorbell.span()).filter(outside))
        };
        for region in regions() {
            space.may_reserve(region)?;
        }
        self.budget
            .reserve(&mut space.reserved, regions().count())?;
        for span in regions() {
            space.reserve(Reserved {
                span,
                by: ReservedBy::Device(id),
            });
        }
        Ok(())
    }

    fn unreserve_regions(&mut self, id: DeviceId, ioas: IoasId) {
        if let Some(space) = self.ioas.get_mut(ioas) {
            space.unreserve(ReservedBy::Device(id));
        }
    }

    /// Takes a device into a domain. The first of a group brings the group's endpoints.
    fn enter(
        &mut self,
        id: DeviceId,
        domain: DomainId,
        first: Option<GroupId>,
    ) -> Result<(), Error> {
        self.check_domain(id, domain)?;
        let ioas = self.ioas_below(domain);
        if let Some(ioas) = ioas {
            self.reserve_regions(id, ioas)?;
        }
        if let Some(group) = first
            && let Err(error) = self.switch(group, domain)
        {
            if let Some(ioas) = ioas {
                self.unreserve_regions(id, ioas);
            }
            return Err(error);
        }
        let device = self.devices.need_mut(id)?;
        device.attached = true;
        let group = self.groups.need_mut(device.group())?;
        group.attached = group.attached.saturating_add(1);
        Ok(())
    }

    /// Moves a group's endpoints to a domain, with the doorbells they need there first.
    fn switch(&mut self, group: GroupId, domain: DomainId) -> Result<(), Error> {
        if let Some(device) = self.configured(group) {
            return Err(Error::Busy {
                object: device.any(),
                users: 1,
            });
        }
        let object = self.groups.need(group)?;
        let old_domain = object.domain;
        let old = match old_domain {
            Some(old) => self.binding(old)?,
            None => Binding::Abort,
        };
        let new = self.binding(domain)?;
        let mut undo = None;
        if let Some(paging) = self.paging_below(domain) {
            let needed = self.budget.copy_of(&self.groups.need(group)?.doorbells)?;
            undo = Some((paging, self.paging_mut(paging)?.doorbells.len()));
            self.install_doorbells(paging, &needed)?;
        }
        if let Err(error) = self.install(group, &new, &old) {
            if let Some((paging, keep)) = undo {
                self.remove_doorbells(paging, keep);
            }
            return Err(error);
        }
        self.use_domain(domain);
        self.groups.need_mut(group)?.domain = Some(domain);
        if let Some(old) = old_domain {
            self.release_domain(old);
        }
        Ok(())
    }

    /// Installs a binding for all endpoints of a group, or leaves the old one for all.
    fn install(&mut self, group: GroupId, new: &Binding, old: &Binding) -> Result<(), Error> {
        let mut at = 0_usize;
        while let Some(endpoint) = self.endpoint_at(group, at) {
            let Err(error) = self.backend.install(endpoint, new) else {
                at = at.saturating_add(1);
                continue;
            };
            for earlier in 0..at {
                let Some(done) = self.endpoint_at(group, earlier) else {
                    break;
                };
                if self.backend.install(done, old).is_err() {
                    // The safe state is the one in which nothing gets through. A unit that does
                    // not even do that is broken, and its driver has to stop it.
                    let _ = self.backend.install(done, &Binding::Abort);
                    return Err(Error::Wedged { endpoint: done });
                }
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Moves an attached device, and all attached devices of its group with it, to another domain.
    ///
    /// Each endpoint goes from the old domain to the new one in one step of the backend. The same
    /// domain again is no change and succeeds.
    ///
    /// # Errors
    /// [`Error::NotAttached`] and those of [`Iommu::attach`]; everything is as before then.
    pub fn replace(&mut self, id: DeviceId, target: Target) -> Result<DomainId, Error> {
        let device = self.devices.need(id)?;
        if !device.attached {
            return Err(Error::NotAttached);
        }
        let group = device.group();
        let current = self.groups.need(group)?.domain.ok_or(Error::NotAttached)?;
        let same = match target {
            Target::Domain(domain) => domain == current,
            Target::Ioas(ioas) => self.domains.need(current)?.ioas() == Some(ioas),
        };
        if same {
            return Ok(current);
        }
        self.resolve(id, target, |core, domain| {
            core.move_group(group, current, domain)
        })
    }

    fn move_group(&mut self, group: GroupId, from: DomainId, to: DomainId) -> Result<(), Error> {
        let members = self.groups.need(group)?;
        let members = self.budget.copy_of(&members.devices)?;
        let attached = |core: &Self, id: &DeviceId| {
            core.devices.get(*id).is_some_and(|device| device.attached)
        };
        for id in members.iter().filter(|id| attached(self, id)) {
            self.check_domain(*id, to)?;
        }
        let (old, new) = (self.ioas_below(from), self.ioas_below(to));
        let moves = if old == new { None } else { new };
        if let Some(new) = moves {
            for (at, id) in members.iter().enumerate() {
                if !attached(self, id) {
                    continue;
                }
                if let Err(error) = self.reserve_regions(*id, new) {
                    for earlier in members.get(..at).unwrap_or_default() {
                        self.unreserve_regions(*earlier, new);
                    }
                    return Err(error);
                }
            }
        }
        let switched = self.switch(group, to);
        // What is reserved where no device of the group is: the new space after a failure, the
        // old one after the move.
        let left = if switched.is_ok() { old } else { moves };
        if old != new
            && let Some(left) = left
        {
            for id in &members {
                self.unreserve_regions(*id, left);
            }
        }
        switched
    }

    /// Detaches a device. The last one of a group puts the group's endpoints into abort.
    ///
    /// # Errors
    /// [`Error::NotAttached`]; [`Error::Backend`]: the device is still attached.
    pub fn detach(&mut self, id: DeviceId) -> Result<(), Error> {
        let device = self.devices.need(id)?;
        if !device.attached {
            return Err(Error::NotAttached);
        }
        let group_id = device.group();
        if device.own.is_some() {
            self.configure(id, None)?;
        }
        let group = self.groups.need(group_id)?;
        let domain = group.domain.ok_or(Error::NotAttached)?;
        let ioas = self.ioas_below(domain);
        if group.attached <= 1 {
            let old = self.binding(domain)?;
            self.install(group_id, &Binding::Abort, &old)?;
        }
        let device = self.devices.need_mut(id)?;
        device.attached = false;
        if let Some(ioas) = ioas {
            self.unreserve_regions(id, ioas);
        }
        let group = self.groups.need_mut(group_id)?;
        group.attached = group.attached.saturating_sub(1);
        if group.attached == 0 {
            group.domain = None;
            self.release_domain(domain);
        }
        Ok(())
    }
}
