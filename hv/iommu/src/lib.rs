//! The IOMMU core: one object model for SMMU and TCE, over a small [`Backend`].
//!
//! It decides what every device of the machine may reach, and nothing else: it touches no register
//! and no guest memory of its own accord. [`Iommu`] owns all objects; each has a typed id that
//! survives its object safely. Callers are the VM layer, the guest-facing IOMMUs (`vsmmuv3`,
//! `papr`) and the monitor; hardware is behind [`Backend`]. The crate must not know which
//! architecture it runs on.
//!
//! | object | what it is | what it keeps alive |
//! |---|---|---|
//! | [`Ioas`] | an IO address space: areas IOVA → memory object | its memory objects |
//! | [`Memory`] | RAM of a VM, or a BAR that can be revoked | (BAR) its device |
//! | [`Domain`] | what a group is attached to: paging, nested, identity, blocked | its `Ioas`; a nested one its [`Viommu`] |
//! | [`Group`], [`Device`] | what must stay together; a DMA master | — |
//! | [`Access`] | how the hypervisor touches guest memory | the `Ioas` it is attached to |
//! | [`Viommu`], [`Vdevice`] | a guest's IOMMU and its device numbers | the nest parent; the `Viommu` |
//! | [`EventQueue`] | a bounded queue of faults for one owner | the `Viommu` it serves |
//! | [`MsiWindow`] | where a device's interrupts go | — |
//!
//! Destroying an object that something depends on is refused with [`Error::Busy`] and changes
//! nothing.
//!
//! # Lock points
//!
//! Every public method of [`Iommu`] is one lock point: the caller holds the core's lock for the
//! length of one call and may drop it between any two. Nothing waits inside a call, apart from the
//! backend's bounded wait for an invalidation. What has to wait for others is a sequence of calls:
//! an unmapping under pins is [`Iommu::begin_unmap`], then [`Iommu::poll_unmap`] until it is done,
//! given up ([`Error::StillPinned`]) or taken back ([`Iommu::abort_unmap`]); copying guest memory
//! is [`Iommu::pin`], a copy without the lock, [`Iommu::unpin`]. Between begin and end of an
//! unmapping no new pin overlaps it, every other operation is either as if the unmapping had not
//! begun or is refused with [`Error::UnmapInProgress`]. The tests explore every interleaving.
//!
//! # Memory
//!
//! Everything a request can make grow is reserved through [`Budget`] before anything is changed;
//! lack of memory is [`Error::OutOfMemory`].
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]
extern crate alloc;
#[cfg(test)]
extern crate std;

mod access;
mod area;
mod arena;
mod attach;
mod backend;
mod budget;
mod codec;
mod configure;
#[cfg(any(test, feature = "mock"))]
pub mod conformance;
mod dirty;
mod domain;
mod error;
mod event;
mod group;
mod ioas;
mod map;
mod memory;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
mod msi;
mod nested;
mod place;
mod request;
mod revoke;
mod sheet;
mod simple;
mod sparse;
mod split;
#[cfg(test)]
mod tests;
mod viommu;
mod window;

use alloc::vec::Vec;

pub use access::{Access, AccessId, Hold, Intent, MAX_PINS, Pin};
pub use area::Permissions;
use arena::Arena;
pub use arena::{Id, Kind, Object, ObjectId};
pub use attach::Target;
pub use backend::{
    Backend, BackendError, Binding, Capabilities, DirtyRead, DirtyTracking, Endpoint, EntryPlace,
    MemoryType, PageRun, PageSizes, Partial, Run, StageOneInvalidation, TableId, TableOptions,
    UnitId, VaRange, VaScope, Window, WindowLimits,
};
pub use budget::{Budget, OutOfMemory};
pub use codec::{CodecError, Declared};
pub use domain::{Domain, DomainId, DomainOptions};
pub use error::{Error, Feature, InvalidationRefusal};
pub use event::{
    Event, EventData, EventKind, EventQueue, EventQueueId, Listener, MAX_DEPTH, PageRequest, Record,
};
pub use group::{
    Coherence, Device, DeviceDescription, DeviceId, Group, GroupId, MsiRoute, Path, Region,
    RegionKind, Residence, Sources,
};
pub use ioas::{HugePages, Ioas, IoasId, PeerToPeer, Ranges};
pub use map::{Copy, Map, Placement, Translation};
pub use memory::{Extent, Memory, MemoryId};
pub use msi::MsiWindow;
pub use nested::{Ats, ContextFormat, DefaultSubstream, NestedConfig, StageOne, Translate};
pub use request::{MAX_RANGES, Operation, RANGES_IN_REPLY, Reply, Request, Setting};
pub use revoke::{MAX_POLLS, Revocation, Unmapping};
pub use sheet::SheetId;
pub use sparse::{CHUNK, Entry, Slot, Sparse};
pub use viommu::{GuestInvalidation, MAX_INVALIDATIONS, Vdevice, VdeviceId, Viommu, ViommuId};

/// The CPU's smallest page, in bytes: the unit of automatic placement and of BARs.
pub const PAGE: u64 = 4096;

/// Who holds objects: the hypervisor, or a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerId(u32);

impl OwnerId {
    /// The hypervisor itself.
    pub const HYPERVISOR: Self = Self(0);

    /// The owner with this number; 0 is the hypervisor.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// All objects of the machine, and the rules between them.
#[derive(Debug)]
pub struct Iommu<B> {
    backend: B,
    budget: Budget,
    ioas: Arena<Ioas>,
    memory: Arena<Memory>,
    domains: Arena<Domain>,
    groups: Arena<Group>,
    devices: Arena<Device>,
    accesses: Arena<Access>,
    viommus: Arena<Viommu>,
    vdevices: Arena<Vdevice>,
    queues: Arena<EventQueue>,
    msi_pages: Vec<msi::Doorbell>,
    defaults: Vec<(OwnerId, IoasId)>,
    /// Tells pins and unmappings apart.
    next_serial: u64,
}

/// How many objects of each kind there are, for the monitor and for tests that look for leaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Census {
    /// Address spaces.
    pub ioas: usize,
    /// Memory objects.
    pub memory: usize,
    /// Areas of all address spaces.
    pub areas: usize,
    /// Pages of all sheets.
    pub pages: u64,
    /// Domains.
    pub domains: usize,
    /// Groups.
    pub groups: usize,
    /// Devices.
    pub devices: usize,
    /// Accesses.
    pub accesses: usize,
    /// Pins of all address spaces.
    pub pins: usize,
    /// Guests' IOMMUs.
    pub viommus: usize,
    /// Guests' devices.
    pub vdevices: usize,
    /// Event queues.
    pub queues: usize,
}

impl<B: Backend> Iommu<B> {
    /// Nothing yet, over a backend.
    #[must_use]
    pub fn new(backend: B) -> Self {
        Self {
            backend,
            budget: Budget::unlimited(),
            ioas: Arena::default(),
            memory: Arena::default(),
            domains: Arena::default(),
            groups: Arena::default(),
            devices: Arena::default(),
            accesses: Arena::default(),
            viommus: Arena::default(),
            vdevices: Arena::default(),
            queues: Arena::default(),
            msi_pages: Vec::new(),
            defaults: Vec::new(),
            next_serial: 0,
        }
    }

    /// The backend.
    #[must_use]
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The backend, for what is not the core's business (a driver's interrupts, a mock's faults).
    /// Mappings and bindings must not be changed behind the core's back.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// The budget that every growth of the core's own memory is taken from.
    pub fn budget_mut(&mut self) -> &mut Budget {
        &mut self.budget
    }

    /// Counts the objects.
    #[must_use]
    pub fn census(&self) -> Census {
        Census {
            ioas: self.ioas.len(),
            memory: self.memory.len(),
            areas: self.ioas.iter().map(|(_, ioas)| ioas.areas.len()).sum(),
            pages: self.ioas.iter().map(|(_, ioas)| ioas.pages()).sum(),
            domains: self.domains.len(),
            groups: self.groups.len(),
            devices: self.devices.len(),
            accesses: self.accesses.len(),
            pins: self.ioas.iter().map(|(_, ioas)| ioas.pins.len()).sum(),
            viommus: self.viommus.len(),
            vdevices: self.vdevices.len(),
            queues: self.queues.len(),
        }
    }
}
