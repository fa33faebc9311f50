//! Devices, and the groups of them that cannot be told apart or kept apart.

use alloc::vec::Vec;
use core::iter::{Chain, Copied};
use core::slice::Iter;

use types::{Iova, Span};

use crate::arena::{Id, Kind, Object, ObjectId};
use crate::backend::{Backend, Endpoint, UnitId};
use crate::domain::DomainId;
use crate::msi::MsiWindow;
use crate::{Error, Iommu, OwnerId};

/// The name of a [`Group`].
pub type GroupId = Id<Group>;
/// The name of a [`Device`].
pub type DeviceId = Id<Device>;

/// Whether DMA of a device is coherent with the CPUs' caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coherence {
    /// As long as its tables say cacheable.
    Coherent,
    /// Always, whatever stage 1 says (CANWBS in the IORT).
    CoherentAlways,
    /// Not by itself.
    Incoherent,
}

/// How a device's transactions to its peers travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Every bridge on the way redirects them to the IOMMU (ACS SV, RR, CR, UF).
    Redirected,
    /// Devices with the same number reach each other without the IOMMU.
    Open(u32),
}

/// How a device's interrupts are told from others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsiRoute {
    /// The doorbell knows who writes to it (ITS), and is reached through the device's table.
    Doorbell,
    /// The host bridge takes them out before translation and checks them (POWER).
    Checked,
    /// Anyone who can write to the doorbell can raise any interrupt (`GICv2m`).
    Shared,
}

/// Why a device needs addresses kept free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegionKind {
    /// Firmware has it use them, mapped one to one.
    Direct,
    /// Firmware does, but they can be taken over.
    DirectRelaxable,
    /// They mean something else on its bus.
    Reserved,
    /// Writes there are interrupts, in hardware.
    Msi,
}

/// Addresses that a device needs kept free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The addresses.
    pub span: Span<Iova>,
    /// Why.
    pub kind: RegionKind,
}

/// Where a group's devices are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residence {
    /// They can be given away.
    Free,
    /// The hypervisor uses one of them itself.
    Hypervisor,
}

/// What the platform knows of a device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceDescription<'a> {
    /// The group it cannot leave.
    pub group: GroupId,
    /// Its own source IDs; nobody else's.
    pub sources: &'a [u32],
    /// Source IDs that its DMA may also carry, and that of others (behind a PCIe-to-PCI bridge).
    pub aliases: &'a [u32],
    /// Addresses it needs kept free.
    pub reserved: &'a [Region],
    /// How it reaches its peers.
    pub path: Path,
    /// How its interrupts travel.
    pub msi: MsiRoute,
    /// Whether its DMA is coherent.
    pub coherence: Coherence,
    /// Whether it can cache translations (ATS).
    pub ats: crate::nested::Ats,
}

/// A group of devices: assigned, attached and switched as one.
#[derive(Debug)]
pub struct Group {
    unit: UnitId,
    residence: Residence,
    pub(crate) devices: Vec<DeviceId>,
    /// Every source of its devices, once.
    pub(crate) sources: Vec<u32>,
    owner: Option<OwnerId>,
    /// Bound devices.
    bound: u32,
    pub(crate) domain: Option<DomainId>,
    /// Attached devices.
    pub(crate) attached: u32,
    /// Doorbells its interrupts need, by position in the list of all.
    pub(crate) doorbells: Vec<usize>,
}

impl Object for Group {
    const KIND: Kind = Kind::Group;
}

impl Group {
    /// The unit in front of it.
    #[must_use]
    pub fn unit(&self) -> UnitId {
        self.unit
    }

    /// Who holds it.
    #[must_use]
    pub fn owner(&self) -> Option<OwnerId> {
        self.owner
    }

    /// What it is attached to.
    #[must_use]
    pub fn domain(&self) -> Option<DomainId> {
        self.domain
    }
}

/// The source IDs that a device's DMA may carry.
pub type Sources<'a> = Copied<Chain<Iter<'a, u32>, Iter<'a, u32>>>;

/// A DMA master.
#[derive(Debug)]
pub struct Device {
    group: GroupId,
    unit: UnitId,
    sources: Vec<u32>,
    aliases: Vec<u32>,
    pub(crate) reserved: Vec<Region>,
    path: Path,
    msi: MsiRoute,
    coherence: Coherence,
    ats: crate::nested::Ats,
    owner: Option<OwnerId>,
    pub(crate) attached: bool,
    /// A nested domain that it goes by instead of its group's.
    pub(crate) own: Option<crate::domain::DomainId>,
    pub(crate) msi_window: MsiWindow,
    pub(crate) msi_start: Option<u64>,
    /// The guest's number for it.
    pub(crate) vdevice: Option<crate::viommu::VdeviceId>,
    /// BARs that depend on it.
    pub(crate) users: u32,
}

impl Object for Device {
    const KIND: Kind = Kind::Device;
}

impl Device {
    /// Its group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The unit in front of it.
    #[must_use]
    pub fn unit(&self) -> UnitId {
        self.unit
    }

    /// Who has it bound.
    #[must_use]
    pub fn owner(&self) -> Option<OwnerId> {
        self.owner
    }

    /// Whether its DMA goes through its group's domain.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.attached
    }

    /// How it reaches its peers.
    #[must_use]
    pub fn path(&self) -> Path {
        self.path
    }

    /// How its interrupts travel.
    #[must_use]
    pub fn msi_route(&self) -> MsiRoute {
        self.msi
    }

    /// Whether its DMA is coherent.
    #[must_use]
    pub fn coherence(&self) -> Coherence {
        self.coherence
    }

    /// Whether it can cache translations.
    #[must_use]
    pub fn ats(&self) -> crate::nested::Ats {
        self.ats
    }

    /// The guest's number for it.
    #[must_use]
    pub fn vdevice(&self) -> Option<crate::viommu::VdeviceId> {
        self.vdevice
    }

    /// Its source IDs, the shared ones last.
    pub fn sources(&self) -> Sources<'_> {
        self.sources.iter().chain(&self.aliases).copied()
    }

    fn shares_source(&self, other: &Self) -> Option<Endpoint> {
        if self.unit != other.unit {
            return None;
        }
        let source = self
            .sources()
            .find(|source| other.sources().any(|s| s == *source))?;
        Some(Endpoint {
            unit: self.unit,
            source,
        })
    }
}

impl<B: Backend> Iommu<B> {
    /// Declares a group behind a unit.
    ///
    /// # Errors
    /// [`Error::NoSuchUnit`], [`Error::OutOfMemory`].
    pub fn add_group(&mut self, unit: UnitId, residence: Residence) -> Result<GroupId, Error> {
        self.backend
            .capabilities(unit)
            .ok_or(Error::NoSuchUnit(unit))?;
        let group = Group {
            unit,
            residence,
            devices: Vec::new(),
            sources: Vec::new(),
            owner: None,
            bound: 0,
            domain: None,
            attached: 0,
            doorbells: Vec::new(),
        };
        Ok(self.groups.insert(&mut self.budget, group)?)
    }

    /// Gives up a group without devices.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::Busy`].
    pub fn remove_group(&mut self, group: GroupId) -> Result<(), Error> {
        let object = self.groups.need(group)?;
        if !object.devices.is_empty() {
            return Err(Error::Busy {
                object: group.any(),
                users: u32::try_from(object.devices.len()).unwrap_or(u32::MAX),
            });
        }
        self.groups.remove(group);
        Ok(())
    }

    /// Declares a device. It is in abort until it is attached.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::SourceOutOfRange`], [`Error::SourceInUse`],
    /// [`Error::BadRegion`] (a hardware MSI region beside a doorbell that needs a window),
    /// [`Error::AlreadyAttached`] when the group is attached, [`Error::OutOfMemory`].
    pub fn add_device(&mut self, description: &DeviceDescription<'_>) -> Result<DeviceId, Error> {
        let group = self.groups.need(description.group)?;
        let unit = group.unit;
        if group.domain.is_some() {
            // Its sources would have to be switched behind the holder's back.
            return Err(Error::AlreadyAttached);
        }
        let bits = self
            .backend
            .capabilities(unit)
            .ok_or(Error::NoSuchUnit(unit))?
            .source_bits;
        for source in description.sources.iter().chain(description.aliases) {
            let endpoint = Endpoint {
                unit,
                source: *source,
            };
            if source.checked_shr(bits.into()).unwrap_or(0) != 0 {
                return Err(Error::SourceOutOfRange { endpoint });
            }
        }
        for (id, other) in self.devices.iter().filter(|(_, other)| other.unit == unit) {
            let mine = description.sources.iter();
            if let Some(source) = mine.copied().find(|s| other.sources.contains(s)) {
                return Err(Error::SourceInUse {
                    endpoint: Endpoint { unit, source },
                    by: id.any(),
                });
            }
        }
        if description.msi == MsiRoute::Doorbell
            && let Some(region) = description
                .reserved
                .iter()
                .find(|region| region.kind == RegionKind::Msi)
        {
            return Err(Error::BadRegion {
                span: region.span,
                kind: region.kind,
            });
        }
        let device = Device {
            group: description.group,
            unit,
            sources: self.budget.copy_of(description.sources)?,
            aliases: self.budget.copy_of(description.aliases)?,
            reserved: self.budget.copy_of(description.reserved)?,
            path: description.path,
            msi: description.msi,
            coherence: description.coherence,
            ats: description.ats,
            owner: None,
            attached: false,
            own: None,
            msi_window: MsiWindow::DEFAULT,
            msi_start: None,
            vdevice: None,
            users: 0,
        };
        let group = self.groups.need_mut(description.group)?;
        self.budget.reserve(&mut group.devices, 1)?;
        // Taken now, so that detaching never needs memory.
        let sources = device.sources().count();
        self.budget.reserve(&mut group.sources, sources)?;
        let id = self.devices.insert(&mut self.budget, device)?;
        group.devices.push(id);
        for source in self.devices.need(id)?.sources() {
            if !group.sources.contains(&source) {
                group.sources.push(source);
            }
        }
        Ok(id)
    }

    /// A device.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`].
    pub fn device(&self, device: DeviceId) -> Result<&Device, Error> {
        self.devices.need(device)
    }

    /// A group.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`].
    pub fn group(&self, group: GroupId) -> Result<&Group, Error> {
        self.groups.need(group)
    }

    /// Forgets a device that is not bound (hot unplug).
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::AlreadyBound`], [`Error::Busy`];
    /// [`Error::AlreadyAttached`] while another member of the group is attached.
    pub fn remove_device(&mut self, device: DeviceId) -> Result<(), Error> {
        let object = self.devices.need(device)?;
        if object.owner.is_some() {
            return Err(Error::AlreadyBound);
        }
        if object.users > 0 {
            return Err(Error::Busy {
                object: device.any(),
                users: object.users,
            });
        }
        if let Some(group) = self.groups.get_mut(object.group) {
            if group.domain.is_some() {
                return Err(Error::AlreadyAttached);
            }
            group.devices.retain(|member| *member != device);
            let devices = &self.devices;
            let members = &group.devices;
            group.sources.retain(|source| {
                members.iter().any(|member| {
                    let mut of_member = devices.get(*member).into_iter().flat_map(Device::sources);
                    of_member.any(|other| other == *source)
                })
            });
        }
        self.devices.remove(device);
        Ok(())
    }

    /// Claims a device, and with it its group, for an owner.
    ///
    /// # Errors
    /// [`Error::AlreadyBound`]; [`Error::GroupHeld`] (another member is elsewhere, or the
    /// hypervisor uses it); [`Error::MsiNotIsolated`]; [`Error::NotCoherent`];
    /// [`Error::PathNotIsolated`] (a device of another owner can be reached without translation);
    /// [`Error::AliasAcrossOwners`], [`Error::SourceInUse`] (a source also stands for a device of
    /// another group that is bound).
    pub fn bind(&mut self, id: DeviceId, owner: OwnerId) -> Result<(), Error> {
        let device = self.devices.need(id)?;
        let group = self.groups.need(device.group)?;
        if device.owner.is_some() {
            return Err(Error::AlreadyBound);
        }
        if group.residence == Residence::Hypervisor && owner != OwnerId::HYPERVISOR {
            return Err(Error::GroupHeld {
                holder: OwnerId::HYPERVISOR,
            });
        }
        if let Some(holder) = group.owner
            && holder != owner
        {
            return Err(Error::GroupHeld { holder });
        }
        if device.msi == MsiRoute::Shared {
            return Err(Error::MsiNotIsolated);
        }
        let caps = self
            .backend
            .capabilities(device.unit)
            .ok_or(Error::NoSuchUnit(device.unit))?;
        if device.coherence == Coherence::Incoherent && !caps.forces_coherence {
            return Err(Error::NotCoherent);
        }
        for (other_id, other) in self.devices.iter() {
            let Some(holder) = other.owner else { continue };
            if let (Path::Open(a), Path::Open(b)) = (device.path, other.path)
                && a == b
                && holder != owner
            {
                return Err(Error::PathNotIsolated {
                    peer: other_id.any(),
                });
            }
            if other.group != device.group
                && let Some(endpoint) = device.shares_source(other)
            {
                let by: ObjectId = other_id.any();
                return Err(if holder == owner {
                    Error::SourceInUse { endpoint, by }
                } else {
                    Error::AliasAcrossOwners { endpoint, by }
                });
            }
        }
        let group_id = device.group;
        self.devices.need_mut(id)?.owner = Some(owner);
        let group = self.groups.need_mut(group_id)?;
        group.owner = Some(owner);
        group.bound = group.bound.saturating_add(1);
        Ok(())
    }

    /// Gives a device back. The last one of a group frees the group.
    ///
    /// A virtual device that stands for it remains, as a name that reaches nothing.
    ///
    /// # Errors
    /// [`Error::NotBound`]; [`Error::AlreadyAttached`] while it is attached; [`Error::Busy`]
    /// while a BAR of it is a memory object.
    pub fn unbind(&mut self, id: DeviceId) -> Result<(), Error> {
        let device = self.devices.need(id)?;
        if device.owner.is_none() {
            return Err(Error::NotBound);
        }
        if device.attached {
            return Err(Error::AlreadyAttached);
        }
        if device.users > 0 {
            return Err(Error::Busy {
                object: id.any(),
                users: device.users,
            });
        }
        let group_id = device.group;
        let device = self.devices.need_mut(id)?;
        device.owner = None;
        // The window is the owner's choice, not the device's property.
        device.msi_window = MsiWindow::DEFAULT;
        device.msi_start = None;
        let vdevice = device.vdevice.take();
        if let Some(vdevice) = vdevice.and_then(|id| self.vdevices.get_mut(id)) {
            vdevice.device = None;
        }
        let group = self.groups.need_mut(group_id)?;
        group.bound = group.bound.saturating_sub(1);
        if group.bound == 0 {
            group.owner = None;
            group.doorbells.clear();
        }
        Ok(())
    }

    /// The endpoint of a group at a position.
    pub(crate) fn endpoint_at(&self, group: GroupId, at: usize) -> Option<Endpoint> {
        let group = self.groups.get(group)?;
        Some(Endpoint {
            unit: group.unit,
            source: *group.sources.get(at)?,
        })
    }
}
