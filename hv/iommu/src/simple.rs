//! For callers with one address space a VM: it comes with the first attachment.

use crate::attach::Target;
use crate::backend::Backend;
use crate::domain::DomainId;
use crate::group::DeviceId;
use crate::ioas::IoasId;
use crate::{Error, Iommu, OwnerId};

impl<B: Backend> Iommu<B> {
    /// The default address space of an owner.
    ///
    /// # Errors
    /// [`Error::NoDefault`].
    pub fn default_ioas(&self, owner: OwnerId) -> Result<IoasId, Error> {
        let mut defaults = self.defaults.iter();
        defaults
            .find(|(of, _)| *of == owner)
            .map(|(_, ioas)| *ioas)
            .ok_or(Error::NoDefault)
    }

    /// Makes an address space its owner's default. The one before stays, as any other.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::OtherOwner`], [`Error::OutOfMemory`].
    pub fn set_default_ioas(&mut self, owner: OwnerId, ioas: IoasId) -> Result<(), Error> {
        let space = self.ioas.need(ioas)?;
        if space.owner != owner {
            return Err(Error::OtherOwner {
                object: ioas.any(),
                owner: space.owner,
            });
        }
        match self.defaults.iter_mut().find(|(of, _)| *of == owner) {
            Some((_, known)) => *known = ioas,
            None => self.budget.push(&mut self.defaults, (owner, ioas))?,
        }
        Ok(())
    }

    /// Leaves an owner without a default. The address space stays.
    ///
    /// # Errors
    /// [`Error::NoDefault`].
    pub fn clear_default_ioas(&mut self, owner: OwnerId) -> Result<(), Error> {
        self.default_ioas(owner)?;
        self.defaults.retain(|(of, _)| *of != owner);
        Ok(())
    }

    /// Attaches a device to its owner's default address space, which is made if there is none.
    ///
    /// # Errors
    /// Those of [`Iommu::attach`]; an address space made for this is gone again then.
    pub fn attach_default(&mut self, device: DeviceId) -> Result<DomainId, Error> {
        let owner = self.devices.need(device)?.owner().ok_or(Error::NotBound)?;
        if let Ok(ioas) = self.default_ioas(owner) {
            return self.attach(device, Target::Ioas(ioas));
        }
        let ioas = self.create_ioas(owner)?;
        let attached = self
            .set_default_ioas(owner, ioas)
            .and_then(|()| self.attach(device, Target::Ioas(ioas)));
        if attached.is_err() {
            // Nothing but this attachment could depend on it.
            self.destroy_ioas(ioas)?;
        }
        attached
    }
}
