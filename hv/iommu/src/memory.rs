//! Memory objects: what areas show.

use alloc::vec::Vec;

use types::{Address, Pa, Span};

use crate::area::Permissions;
use crate::arena::{Id, Kind, Object};
use crate::backend::{Backend, MemoryType};
use crate::group::DeviceId;
use crate::ioas::IoasId;
use crate::{Error, Iommu, OwnerId, PAGE};

/// The name of a [`Memory`].
pub type MemoryId = Id<Memory>;

/// A physically contiguous piece of a memory object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it is.
    pub pa: Pa,
    /// Its length in bytes.
    pub bytes: u64,
}

/// An extent, with where in the object it begins.
#[derive(Clone, Copy, Debug)]
struct Piece {
    offset: u64,
    extent: Extent,
}

#[derive(Debug)]
enum Backing {
    /// Memory of a VM.
    Ram,
    /// The registers of a device.
    Bar {
        device: DeviceId,
        /// What device state the mappings follow.
        revoked: bool,
        /// The areas that show it, to revoke them.
        shown: Vec<(IoasId, u64)>,
    },
}

/// RAM of a VM, or a BAR.
///
/// It has an owner, and lives as long as any area shows it. RAM can be granted to other owners; a
/// BAR never, and it can be revoked: its areas stay, but show nothing until it is restored.
#[derive(Debug)]
pub struct Memory {
    owner: OwnerId,
    backing: Backing,
    pieces: Vec<Piece>,
    /// The piece that a page was last looked up in.
    hint: usize,
    bytes: u64,
    grants: Vec<(OwnerId, Permissions)>,
    /// Areas of all address spaces that show it.
    pub(crate) areas: u32,
}

impl Object for Memory {
    const KIND: Kind = Kind::Memory;
}

impl Memory {
    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> OwnerId {
        self.owner
    }

    /// Its size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How every mapping of it accesses memory.
    #[must_use]
    pub fn memory_type(&self) -> MemoryType {
        match self.backing {
            Backing::Ram => MemoryType::Normal,
            Backing::Bar { .. } => MemoryType::Device,
        }
    }

    /// Whether it is a BAR that was revoked.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        matches!(self.backing, Backing::Bar { revoked: true, .. })
    }

    /// The device whose BAR it is.
    #[must_use]
    pub fn device(&self) -> Option<DeviceId> {
        match self.backing {
            Backing::Ram => None,
            Backing::Bar { device, .. } => Some(device),
        }
    }

    /// What an owner may do with it.
    pub(crate) fn granted(&self, owner: OwnerId) -> Option<Permissions> {
        if owner == self.owner {
            return Some(Permissions::ReadWrite);
        }
        let mut grants = self.grants.iter();
        grants.find(|(to, _)| *to == owner).map(|(_, what)| *what)
    }

    /// Visits the contiguous pieces of `bytes` bytes from `offset`, which lie in the object.
    #[inline(always)]
    pub(crate) fn runs(
        &self,
        offset: u64,
        bytes: u64,
        mut f: impl FnMut(Extent) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match self.only_run(offset, bytes) {
            Some(extent) => f(extent),
            None => self.scattered_runs(offset, bytes, &mut f),
        }
    }

    /// What [`Memory::runs`] visits, where the object is of one piece.
    #[inline(always)]
    pub(crate) fn only_run(&self, offset: u64, bytes: u64) -> Option<Extent> {
        let [whole] = self.pieces.as_slice() else {
            return None;
        };
        let end = offset.saturating_add(bytes);
        Some(Extent {
            pa: Pa::truncated(whole.extent.pa.bits().saturating_add(offset)),
            bytes: end.min(whole.extent.bytes).saturating_sub(offset),
        })
    }

    #[inline(never)]
    fn scattered_runs(
        &self,
        offset: u64,
        bytes: u64,
        f: &mut dyn FnMut(Extent) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let end = offset.saturating_add(bytes);
        let first = self
            .pieces
            .partition_point(|piece| piece.offset.saturating_add(piece.extent.bytes) <= offset);
        for piece in self.pieces.get(first..).unwrap_or_default() {
            if piece.offset >= end {
                break;
            }
            let skip = offset.saturating_sub(piece.offset);
            let from = piece.offset.max(offset);
            let to = end.min(piece.offset.saturating_add(piece.extent.bytes));
            f(Extent {
                pa: Pa::truncated(piece.extent.pa.bits().saturating_add(skip)),
                bytes: to.saturating_sub(from),
            })?;
        }
        Ok(())
    }

    /// The physical address of a page, if all of it is in the piece where it is expected.
    #[inline(always)]
    pub(crate) fn page(&self, offset: u64, page: types::PageSize) -> Option<Pa> {
        let piece = self.pieces.get(self.hint)?;
        let into = offset.wrapping_sub(piece.offset);
        // Of what is before the piece this is more than any has.
        let rest = piece.extent.bytes.wrapping_sub(into);
        if into < piece.extent.bytes && rest >= page.bytes() {
            let pa = piece.extent.pa.bits().wrapping_add(into);
            return Some(Pa::truncated(pa));
        }
        None
    }

    /// The next page is likely to be in the same piece as this offset.
    pub(crate) fn expect_near(&mut self, offset: u64) {
        self.hint = self.piece(offset);
    }

    /// The number of the piece that an offset is in.
    fn piece(&self, offset: u64) -> usize {
        self.pieces
            .partition_point(|piece| piece.offset.saturating_add(piece.extent.bytes) <= offset)
    }

    /// The physical address of an offset, and the contiguous bytes from there; `None` beyond the end.
    #[must_use]
    pub fn at(&self, offset: u64) -> Option<Extent> {
        let piece = self.pieces.get(self.piece(offset))?;
        let skip = offset.saturating_sub(piece.offset);
        Some(Extent {
            pa: Pa::truncated(piece.extent.pa.bits().saturating_add(skip)),
            bytes: piece.extent.bytes.saturating_sub(skip),
        })
    }

    pub(crate) fn shown(&self) -> &[(IoasId, u64)] {
        match &self.backing {
            Backing::Ram => &[],
            Backing::Bar { shown, .. } => shown,
        }
    }

    pub(crate) fn shown_mut(&mut self) -> Option<&mut Vec<(IoasId, u64)>> {
        match &mut self.backing {
            Backing::Ram => None,
            Backing::Bar { shown, .. } => Some(shown),
        }
    }

    pub(crate) fn set_revoked(&mut self) {
        if let Backing::Bar { revoked, .. } = &mut self.backing {
            *revoked = true;
        }
    }

    pub(crate) fn set_restored(&mut self) {
        if let Backing::Bar { revoked, .. } = &mut self.backing {
            *revoked = false;
        }
    }

    fn overlaps(&self, span: Span<Pa>) -> Option<Span<Pa>> {
        self.pieces
            .iter()
            .filter_map(|piece| Span::from_len(piece.extent.pa, piece.extent.bytes))
            .find(|other| other.overlaps(span))
    }
}

impl<B: Backend> Iommu<B> {
    /// Declares RAM of an owner, made of `extents` in order.
    ///
    /// The frames belong to the object until it is destroyed.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::Overflow`], [`Error::OutOfMemory`].
    pub fn add_ram(&mut self, owner: OwnerId, extents: &[Extent]) -> Result<MemoryId, Error> {
        let mut pieces = self.budget.vec(extents.len())?;
        let mut bytes = 0_u64;
        for extent in extents {
            if extent.bytes == 0 {
                return Err(Error::Empty);
            }
            Span::from_len(extent.pa, extent.bytes).ok_or(Error::Overflow)?;
            pieces.push(Piece {
                offset: bytes,
                extent: *extent,
            });
            bytes = bytes.checked_add(extent.bytes).ok_or(Error::Overflow)?;
        }
        if bytes == 0 {
            return Err(Error::Empty);
        }
        let memory = Memory {
            owner,
            backing: Backing::Ram,
            pieces,
            hint: 0,
            bytes,
            grants: Vec::new(),
            areas: 0,
        };
        Ok(self.memory.insert(&mut self.budget, memory)?)
    }

    /// Declares a BAR of a device that its owner holds.
    ///
    /// `trapped` are ranges a guest must never reach directly: MSI-X tables, other devices'
    /// registers that share the bus page.
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::BarNotPageGranular`], [`Error::BarSharesPage`] (with a
    /// trapped range or with the BAR of another device), [`Error::OutOfMemory`].
    pub fn add_bar(
        &mut self,
        device: DeviceId,
        pa: Pa,
        bytes: u64,
        trapped: &[Span<Pa>],
    ) -> Result<MemoryId, Error> {
        let owner = self.devices.need(device)?.owner().ok_or(Error::NotBound)?;
        let span = Span::from_len(pa, bytes).ok_or(Error::Overflow)?;
        if (pa.bits() | bytes) & (PAGE.saturating_sub(1)) != 0 {
            return Err(Error::BarNotPageGranular { pa });
        }
        let page = types::PageSize::SIZE_4K;
        for with in trapped {
            let pages = Span::new(
                with.start().align_down(page),
                Pa::truncated(with.last().bits() | page.mask()),
            );
            if pages.is_some_and(|pages| pages.overlaps(span)) {
                return Err(Error::BarSharesPage { with: *with });
            }
        }
        for (_, other) in self.memory.iter() {
            if let Some(with) = other.overlaps(span) {
                return Err(Error::BarSharesPage { with });
            }
        }
        let mut pieces = self.budget.vec(1)?;
        pieces.push(Piece {
            offset: 0,
            extent: Extent { pa, bytes },
        });
        let memory = Memory {
            owner,
            backing: Backing::Bar {
                device,
                revoked: false,
                shown: Vec::new(),
            },
            pieces,
            hint: 0,
            bytes,
            grants: Vec::new(),
            areas: 0,
        };
        let id = self.memory.insert(&mut self.budget, memory)?;
        let device = self.devices.need_mut(device)?;
        device.users = device.users.saturating_add(1);
        Ok(id)
    }

    /// Where a BAR is mapped: the first of its areas.
    #[must_use]
    pub fn shown_at(&self, memory: MemoryId) -> Option<(IoasId, Span<types::Iova>)> {
        let (ioas, start) = self.memory.get(memory)?.shown().first().copied()?;
        let area = self.ioas.get(ioas)?.areas.find(start)?;
        Some((ioas, area.span()))
    }

    /// A memory object.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`].
    pub fn memory(&self, memory: MemoryId) -> Result<&Memory, Error> {
        self.memory.need(memory)
    }

    /// Lets another owner map RAM of this object. A further grant to the same owner replaces the
    /// first for what is mapped from then on.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`]-like refusals do not exist: a BAR is [`Error::PermissionDenied`].
    /// [`Error::OutOfMemory`].
    pub fn grant(&mut self, memory: MemoryId, to: OwnerId, what: Permissions) -> Result<(), Error> {
        let object = self.memory.need_mut(memory)?;
        if object.device().is_some() {
            return Err(Error::PermissionDenied);
        }
        match object.grants.iter_mut().find(|(owner, _)| *owner == to) {
            Some((_, old)) => *old = what,
            None => self.budget.push(&mut object.grants, (to, what))?,
        }
        Ok(())
    }

    /// Gives up a memory object that no area shows. From then on its frames are the caller's.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`], [`Error::Busy`].
    pub fn destroy_memory(&mut self, memory: MemoryId) -> Result<(), Error> {
        let object = self.memory.need(memory)?;
        if object.areas > 0 {
            return Err(Error::Busy {
                object: memory.any(),
                users: object.areas,
            });
        }
        if let Some(device) = object.device()
            && let Some(device) = self.devices.get_mut(device)
        {
            device.users = device.users.saturating_sub(1);
        }
        self.memory.remove(memory);
        Ok(())
    }
}
