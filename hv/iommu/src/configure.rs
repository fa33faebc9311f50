//! A guest's configuration for one device of a group that several share.
//!
//! A group has one domain, and what its devices reach of each other past the IOMMU makes no difference to that. A nested
//! configuration is the guest's word about a stream: it narrows what that stream reaches of the nest parent, which all
//! of the group have in common. So each device of a group may have its own, as long as no other sends with its
//! numbers.

use crate::backend::{Backend, Binding, Endpoint};
use crate::domain::{DomainId, DomainKind};
use crate::group::{DeviceId, GroupId};
use crate::{Error, Iommu};

impl<B: Backend> Iommu<B> {
    /// Has an attached device go by a nested domain over the nest parent that its group is attached to, or, with
    /// `None`, by the nest parent again. The group's other devices stay as they are; the group does not move before
    /// all go by its domain.
    ///
    /// The change is one step of the backend for each of the device's numbers; all or none.
    ///
    /// # Errors
    /// [`Error::NotAttached`]; [`Error::SourceInUse`]: another device of the group has one of its numbers;
    /// [`Error::OtherParent`]: the domain is not nested over the group's; those of [`Iommu::attach`],
    /// [`Error::Backend`].
    pub fn configure(&mut self, id: DeviceId, own: Option<DomainId>) -> Result<(), Error> {
        let device = self.devices.need(id)?;
        if !device.attached {
            return Err(Error::NotAttached);
        }
        let (group, unit, before) = (device.group(), device.unit(), device.own);
        let parent = self.groups.need(group)?.domain.ok_or(Error::NotAttached)?;
        if own == before {
            return Ok(());
        }
        if let Some(own) = own {
            self.check_domain(id, own)?;
            match &self.domains.need(own)?.kind {
                DomainKind::Nested { parent: over, .. } if *over == parent => {}
                _ => return Err(Error::OtherParent(own.any())),
            }
            self.check_sources(id, group)?;
        }
        let new = self.binding(own.unwrap_or(parent))?;
        let old = self.binding(before.unwrap_or(parent))?;
        let endpoint = |core: &Self, at: usize| {
            let source = core.devices.get(id)?.sources().nth(at)?;
            Some(Endpoint { unit, source })
        };
        let mut at = 0_usize;
        while let Some(next) = endpoint(self, at) {
            let Err(error) = self.backend.install(next, &new) else {
                at = at.saturating_add(1);
                continue;
            };
            for earlier in 0..at {
                let Some(earlier) = endpoint(self, earlier) else {
                    break;
                };
                if self.backend.install(earlier, &old).is_err() {
                    // As in a switch of the group: the safe state is abort.
                    let _ = self.backend.install(earlier, &Binding::Abort);
                    return Err(Error::Wedged { endpoint: earlier });
                }
            }
            return Err(error.into());
        }
        if let Some(own) = own {
            self.use_domain(own);
        }
        self.devices.need_mut(id)?.own = own;
        if let Some(before) = before {
            self.release_domain(before);
        }
        Ok(())
    }

    /// Whether a device's numbers are its alone in its group.
    fn check_sources(&self, id: DeviceId, group: GroupId) -> Result<(), Error> {
        let device = self.devices.need(id)?;
        for other in self
            .groups
            .need(group)?
            .devices
            .iter()
            .filter(|o| **o != id)
        {
            let theirs = self.devices.need(*other)?;
            let shared = device
                .sources()
                .find(|source| theirs.sources().any(|own| own == *source));
            if let Some(source) = shared {
                let unit = device.unit();
                return Err(Error::SourceInUse {
                    endpoint: Endpoint { unit, source },
                    by: other.any(),
                });
            }
        }
        Ok(())
    }

    /// The first device of a group that goes by a domain of its own.
    pub(crate) fn configured(&self, group: GroupId) -> Option<DeviceId> {
        let mut devices = self.groups.get(group)?.devices.iter();
        let own = |id: &&DeviceId| self.devices.get(**id).is_some_and(|d| d.own.is_some());
        devices.find(own).copied()
    }
}
