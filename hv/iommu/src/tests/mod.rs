//! Behaviour of the whole core over the mock.

mod access;
mod address_space;
mod attach;
mod bars;
mod config;
mod configure;
mod conformance;
mod copy;
mod corpus;
mod dirty;
mod events;
mod fail_life;
mod fail_nth;
mod huge;
mod interleave;
mod model;
mod msi;
mod nested;
mod owners;
mod page;
mod pages;
mod placement;
mod requests;
mod sheets;
mod split;
mod windows;
mod world;

use alloc::vec::Vec;

use types::{Iova, Pa, Span};

use crate::mock::{APERTURE_START, Dma, DmaFault, Leaf, Leaves, Mock};
use crate::{
    Ats, Census, Coherence, Copy, DeviceDescription, DeviceId, Endpoint, Error, Extent, GroupId,
    IoasId, Iommu, Map, MemoryId, MsiRoute, OwnerId, Path, Permissions, Placement, Residence,
    Target, UnitId,
};

pub(super) const SMMU: UnitId = UnitId::new(0);
pub(super) const OTHER_SMMU: UnitId = UnitId::new(1);
pub(super) const TCE: UnitId = UnitId::new(2);
pub(super) const VM: OwnerId = OwnerId::new(1);
pub(super) const OTHER_VM: OwnerId = OwnerId::new(2);
pub(super) const PAGE: u64 = crate::PAGE;
/// Where the RAM of the test VM is.
pub(super) const RAM: u64 = 0x80_0000_0000;
pub(super) const RAM_BYTES: u64 = 1 << 30;
/// A mapped-nothing place inside the mock's window.
pub(super) const AT: u64 = APERTURE_START;

pub(super) fn iova(at: u64) -> Iova {
    Iova::truncated(at)
}

pub(super) fn pa(at: u64) -> Pa {
    Pa::truncated(at)
}

pub(super) fn of(start: u64, bytes: u64) -> Span<Iova> {
    Span::from_len(iova(start), bytes).unwrap()
}

pub(super) fn upto(start: u64, last: u64) -> Span<Iova> {
    Span::new(iova(start), iova(last)).unwrap()
}

pub(super) fn everything() -> Span<Iova> {
    upto(0, u64::MAX)
}

pub(super) fn extent(at: u64, bytes: u64) -> Extent {
    Extent { pa: pa(at), bytes }
}

/// A core with one VM that has RAM and an address space.
pub(super) struct Fixture {
    pub(super) core: Iommu<Mock>,
    pub(super) ioas: IoasId,
    pub(super) ram: MemoryId,
    next_source: u32,
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self::with_leaves(Leaves::Small)
    }

    pub(super) fn with_leaves(leaves: Leaves) -> Self {
        let mock = Mock::new()
            .with_smmu(SMMU, leaves)
            .with_smmu(OTHER_SMMU, leaves)
            .with_tce(TCE);
        let mut core = Iommu::new(mock);
        let ioas = core.create_ioas(VM).unwrap();
        let ram = core.add_ram(VM, &[extent(RAM, RAM_BYTES)]).unwrap();
        Self {
            core,
            ioas,
            ram,
            next_source: 1,
        }
    }

    pub(super) fn group(&mut self, unit: UnitId) -> GroupId {
        self.core.add_group(unit, Residence::Free).unwrap()
    }

    /// A description that nothing speaks against.
    pub(super) fn describe(group: GroupId, sources: &[u32]) -> DeviceDescription<'_> {
        DeviceDescription {
            group,
            sources,
            aliases: &[],
            reserved: &[],
            path: Path::Redirected,
            msi: MsiRoute::Checked,
            coherence: Coherence::Coherent,
            ats: Ats::On,
        }
    }

    pub(super) fn source(&mut self) -> u32 {
        self.next_source += 1;
        self.next_source
    }

    pub(super) fn device_in(&mut self, group: GroupId) -> DeviceId {
        let source = self.source();
        let device = self
            .core
            .add_device(&Self::describe(group, &[source]))
            .unwrap();
        self.core.bind(device, VM).unwrap();
        device
    }

    /// A bound device in a group of its own.
    pub(super) fn device(&mut self, unit: UnitId) -> DeviceId {
        let group = self.group(unit);
        self.device_in(group)
    }

    /// A device attached to the address space.
    pub(super) fn attached(&mut self, unit: UnitId) -> DeviceId {
        let device = self.device(unit);
        self.core.attach(device, Target::Ioas(self.ioas)).unwrap();
        device
    }

    pub(super) fn endpoint(&self, device: DeviceId) -> Endpoint {
        let device = self.core.device(device).unwrap();
        Endpoint {
            unit: device.unit(),
            source: device.sources().next().unwrap(),
        }
    }

    pub(super) fn request(&self, at: Placement, offset: u64, bytes: u64) -> Map {
        Map {
            placement: at,
            memory: self.ram,
            offset,
            bytes,
            permissions: Permissions::ReadWrite,
        }
    }

    pub(super) fn map(&mut self, at: u64, offset: u64, bytes: u64) -> Result<Span<Iova>, Error> {
        let request = self.request(Placement::Fixed(iova(at)), offset, bytes);
        self.core.map(self.ioas, &request)
    }

    pub(super) fn map_auto(&mut self, offset: u64, bytes: u64) -> Result<u64, Error> {
        let request = self.request(Placement::Auto, offset, bytes);
        let span = self.core.map(self.ioas, &request)?;
        assert_eq!(span.len(), Some(bytes));
        Ok(span.start().bits())
    }

    pub(super) fn unmap(&mut self, at: u64, bytes: u64) -> Result<u64, Error> {
        self.core.unmap(self.ioas, of(at, bytes))
    }

    pub(super) fn copy_to(&mut self, to: IoasId, span: Span<Iova>, at: u64) -> Result<(), Error> {
        let request = Copy {
            from: self.ioas,
            span,
            to,
            placement: Placement::Fixed(iova(at)),
            permissions: Permissions::ReadWrite,
        };
        self.core.copy(&request).map(|_| ())
    }

    pub(super) fn dma(&mut self, device: DeviceId, at: u64, access: Dma) -> Result<u64, DmaFault> {
        let endpoint = self.endpoint(device);
        let mock = self.core.backend_mut();
        mock.dma(endpoint, iova(at), access)
            .map(|(pa, _)| pa.bits())
    }

    pub(super) fn reads(&mut self, device: DeviceId, at: u64) -> Option<u64> {
        self.dma(device, at, Dma::Read).ok()
    }

    /// The leaves below a device.
    pub(super) fn walk(&self, device: DeviceId) -> Vec<(u64, Leaf)> {
        let mock = self.core.backend();
        let table = mock.table_of(self.endpoint(device)).unwrap();
        let leaves = mock.walk(table).into_iter();
        leaves.map(|(at, leaf)| (at.bits(), leaf)).collect()
    }

    /// Asserts that a device sees exactly `offset..` of RAM at `at`, for `bytes`, and not a byte
    /// more on either side.
    pub(super) fn assert_shows(&self, device: DeviceId, at: u64, offset: u64, bytes: u64) {
        let mut expected = at;
        let leaves = self.walk(device);
        for (start, leaf) in leaves
            .iter()
            .filter(|(start, leaf)| start + leaf.bytes > at && *start < at + bytes)
        {
            assert_eq!(*start, expected);
            assert_eq!(leaf.pa.bits(), RAM + offset + (start - at));
            expected += leaf.bytes;
        }
        assert_eq!(expected, at + bytes);
    }

    pub(super) fn census(&self) -> Census {
        self.core.census()
    }
}

/// The error a result must be.
#[track_caller]
pub(super) fn refused<T: core::fmt::Debug>(result: Result<T, Error>) -> Error {
    result.unwrap_err()
}
