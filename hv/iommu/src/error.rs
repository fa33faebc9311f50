//! Why a request is refused. A refusal changes nothing, unless its variant says otherwise.

use types::{Iova, Pa, Span};

use crate::OwnerId;
use crate::arena::{Kind, ObjectId};
use crate::backend::{BackendError, Endpoint, UnitId};
use crate::budget::OutOfMemory;
use crate::codec::CodecError;
use crate::group::RegionKind;

/// Every refusal of the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    // Objects.
    /// The id names nothing (any more), or nothing of this owner.
    #[error("{0} does not exist")]
    NoSuchObject(ObjectId),
    /// The number is no id, or names another kind of object than is needed.
    #[error("{bits:#x} does not name a {wanted:?}")]
    WrongKind {
        /// The number.
        bits: u64,
        /// What was needed.
        wanted: Kind,
    },
    /// Something depends on the object.
    #[error("{object} is in use by {users}")]
    Busy {
        /// The object.
        object: ObjectId,
        /// How many depend on it.
        users: u32,
    },
    /// Two objects of different owners are to be joined.
    #[error("{object} belongs to {owner:?}")]
    OtherOwner {
        /// The object that does not fit.
        object: ObjectId,
        /// Whose it is.
        owner: OwnerId,
    },
    /// The core's memory could not grow.
    #[error("out of memory")]
    OutOfMemory,
    /// The backend refused or failed.
    #[error("the backend failed: {0}")]
    Backend(#[from] BackendError),
    /// A record was not understood.
    #[error("bad request: {0}")]
    Codec(#[from] CodecError),
    /// There is no such IOMMU.
    #[error("no unit {0}")]
    NoSuchUnit(UnitId),
    /// An array of the caller's is too small.
    #[error("{needed} entries are needed")]
    BufferTooSmall {
        /// How many it must hold.
        needed: usize,
    },

    // Address spaces.
    /// Zero bytes were asked for.
    #[error("an empty range")]
    Empty,
    /// The end of the range is past the end of the space, or the last byte of the space is asked
    /// for by length.
    #[error("the range overflows")]
    Overflow,
    /// A range ends before it starts, or a list overlaps itself.
    #[error("the list of ranges is malformed at entry {at}")]
    BadRanges {
        /// The first bad entry.
        at: usize,
    },
    /// An address, offset or length is not a multiple of what the address space needs.
    #[error("{value:#x} is not a multiple of {alignment:#x}")]
    Misaligned {
        /// The value.
        value: u64,
        /// What it must be a multiple of, in bytes.
        alignment: u64,
    },
    /// Part of the range is mapped already.
    #[error("{existing} is mapped there")]
    Overlaps {
        /// The first area in the way.
        existing: Span<Iova>,
    },
    /// The range touches reserved addresses.
    #[error("{reserved} is reserved")]
    Reserved {
        /// The reserved range.
        reserved: Span<Iova>,
    },
    /// No free range is large enough.
    #[error("no free range of {bytes:#x} bytes")]
    NoSpace {
        /// What was asked for.
        bytes: u64,
    },
    /// The unmapping or copying would cut an area in two.
    #[error("{area} would be cut")]
    CutsArea {
        /// The area.
        area: Span<Iova>,
    },
    /// Nothing is mapped there, or a hole is in the range.
    #[error("{at} is not mapped")]
    NotMapped {
        /// The first address without a mapping.
        at: Iova,
    },
    /// The range is not within the memory object.
    #[error("the memory object has {bytes:#x} bytes")]
    OutsideMemory {
        /// The object's size.
        bytes: u64,
    },
    /// A page of the IOMMU would cover memory that is not contiguous or not aligned to the page.
    #[error("a page of {page:#x} bytes cannot show memory at {pa}")]
    NotContiguous {
        /// Where the memory is.
        pa: Pa,
        /// The smallest page of the window.
        page: u64,
    },
    /// No window holds the whole range.
    #[error("{span} is not within one window")]
    OutsideWindows {
        /// The range.
        span: Span<Iova>,
    },
    /// More is asked for than was granted.
    #[error("permission denied")]
    PermissionDenied,
    /// The address space has as many areas as it may.
    #[error("more than {limit} areas")]
    TooManyAreas {
        /// The limit.
        limit: u32,
    },
    /// Reserved addresses would cut into what was promised as allowed, or the other way round.
    #[error("{reserved} is reserved and {allowed} allowed")]
    ReservedCutsAllowed {
        /// The reserved range.
        reserved: Span<Iova>,
        /// The allowed range.
        allowed: Span<Iova>,
    },
    /// Reserved addresses would cover an existing mapping.
    #[error("{reserved} would be reserved, but {area} is mapped")]
    ReservedCutsArea {
        /// The reserved range.
        reserved: Span<Iova>,
        /// The area.
        area: Span<Iova>,
    },
    /// Huge pages cannot be switched off while a domain shows mappings.
    #[error("huge pages are in use")]
    HugePagesInUse,

    // Pins and revocation.
    /// The hypervisor is using the range; unmap it in steps, see
    /// [`Iommu::begin_unmap`](crate::Iommu::begin_unmap).
    #[error("{pinned} is pinned")]
    Pinned {
        /// The first pin in the way.
        pinned: Span<Iova>,
    },
    /// A holder did not let go in as many polls as it is given. The mapping stays.
    #[error("still pinned after {polls} polls")]
    StillPinned {
        /// Polls made.
        polls: u32,
    },
    /// The range is being unmapped.
    #[error("{span} is being unmapped")]
    UnmapInProgress {
        /// What is being unmapped.
        span: Span<Iova>,
    },
    /// No such unmapping is in progress.
    #[error("no unmapping in progress")]
    NoUnmapInProgress,
    /// The access object is not attached to an address space.
    #[error("the access is detached")]
    Detached,
    /// There is no such pin.
    #[error("no such pin")]
    NoSuchPin,
    /// An address space has as many pins as it may.
    #[error("more than {limit} pins")]
    TooManyPins {
        /// The limit.
        limit: usize,
    },
    /// The area shows a device's registers, which the core never touches.
    #[error("{area} is device memory")]
    DeviceMemory {
        /// The area.
        area: Span<Iova>,
    },
    /// Memory did not answer where a memory object says there is some.
    #[error("no memory at {pa}")]
    NoMemory {
        /// The physical address.
        pa: Pa,
    },

    // Devices and groups.
    /// The source is beyond what the unit can tell apart.
    #[error("source {endpoint} is out of range")]
    SourceOutOfRange {
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// Another device has the source, or is bound with it.
    #[error("source {endpoint} is in use by {by}")]
    SourceInUse {
        /// The endpoint.
        endpoint: Endpoint,
        /// Who has it.
        by: ObjectId,
    },
    /// A source of the device also stands for a device of another owner.
    #[error("source {endpoint} is an alias of {by}, which another owner has")]
    AliasAcrossOwners {
        /// The endpoint.
        endpoint: Endpoint,
        /// The other device.
        by: ObjectId,
    },
    /// Another member of the group is in other hands.
    #[error("the group is held by {holder:?}")]
    GroupHeld {
        /// By whom.
        holder: OwnerId,
    },
    /// A device that this one can reach behind the IOMMU's back is in other hands.
    #[error("{peer} can be reached without translation")]
    PathNotIsolated {
        /// The device.
        peer: ObjectId,
    },
    /// Writes of the device could forge interrupts of others.
    #[error("message-signalled interrupts are not isolated")]
    MsiNotIsolated,
    /// DMA would not be coherent and nothing can force it to be.
    #[error("the device is not coherent")]
    NotCoherent,
    /// The device is bound already.
    #[error("the device is bound")]
    AlreadyBound,
    /// The device is not bound.
    #[error("the device is not bound")]
    NotBound,
    /// The device is attached already.
    #[error("the device is attached")]
    AlreadyAttached,
    /// The device is not attached.
    #[error("the device is not attached")]
    NotAttached,
    /// Another member of the group is attached to another domain.
    #[error("the group is attached to {0}")]
    GroupElsewhere(ObjectId),
    /// The domain belongs to another unit.
    #[error("the domain belongs to unit {0}")]
    OtherUnit(UnitId),
    /// The unit or device lacks what was asked for.
    #[error("{0:?} is not supported")]
    Unsupported(Feature),
    /// Only the hypervisor's own devices may bypass translation.
    #[error("identity is not for guests")]
    IdentityForbidden,
    /// A nested domain was asked for on something that is no nest parent.
    #[error("{0} is no nest parent")]
    NotANestParent(ObjectId),
    /// A domain is not nested over the one that the device's group is attached to.
    #[error("{0} is not nested over the group's domain")]
    OtherParent(ObjectId),
    /// The domain kind cannot do this.
    #[error("{0} is no paging domain")]
    NotPaging(ObjectId),
    /// The rollback of a failed switch failed too; the device is left in abort, which is the safe
    /// state, not the old one.
    #[error("{endpoint} could not be restored and is in abort")]
    Wedged {
        /// The endpoint.
        endpoint: Endpoint,
    },

    // MSI windows and reserved regions.
    /// The device describes reserved regions that cannot be together.
    #[error("reserved region {span} ({kind:?}) contradicts the others")]
    BadRegion {
        /// The region.
        span: Span<Iova>,
        /// Its kind.
        kind: RegionKind,
    },
    /// The window's size is set before its start.
    #[error("the start of the window comes before its size")]
    StartFirst,
    /// The window overlaps a reserved region of the device.
    #[error("the window overlaps {region}")]
    WindowOverlaps {
        /// The region.
        region: Span<Iova>,
    },
    /// The window holds as many doorbell pages as fit.
    #[error("the window is full")]
    WindowFull,
    /// The device has no window for interrupts.
    #[error("the device has no window for interrupts")]
    NoMsiWindow,

    // Device memory.
    /// A BAR is not made of whole pages.
    #[error("the BAR at {pa} is not made of whole pages")]
    BarNotPageGranular {
        /// Its address.
        pa: Pa,
    },
    /// A page of a BAR also holds something else.
    #[error("the BAR shares {with} with something else")]
    BarSharesPage {
        /// The other range.
        with: Span<Pa>,
    },
    /// Peer-to-peer was not asked for in this address space.
    #[error("peer-to-peer is not enabled")]
    PeerToPeerDisabled,
    /// The path between two peers is not translated.
    #[error("the path of {device} is not translated")]
    PathNotTranslated {
        /// The device whose path it is.
        device: ObjectId,
    },
    /// The BAR was revoked, because its device is being reset.
    #[error("the memory was revoked")]
    Revoked,

    // Nesting and events.
    /// The device has a virtual device already, or the virtual id is taken.
    #[error("{0} exists already")]
    AlreadyVirtual(ObjectId),
    /// Translation by a guest needs a virtual device first.
    #[error("the device has no virtual id")]
    NoVirtualDevice,
    /// No virtual device has this id.
    #[error("no virtual device {0:#x}")]
    NoSuchVirtualId(u64),
    /// Invalidations stopped at an entry.
    #[error("entry {handled} of the invalidations failed")]
    InvalidationStopped {
        /// How many were done before it.
        handled: usize,
        /// Why it stopped.
        because: InvalidationRefusal,
    },
    /// More entries in one request than the core handles at once.
    #[error("more than {limit} entries")]
    TooManyEntries {
        /// The limit.
        limit: usize,
    },
    /// A queue of this kind exists already.
    #[error("{0} exists already")]
    QueueExists(ObjectId),
    /// A queue's depth is zero or beyond the bound.
    #[error("a depth of {depth} is not within 1..={limit}")]
    BadDepth {
        /// What was asked for.
        depth: u32,
        /// The most.
        limit: u32,
    },
    /// Nobody listens to events of this kind.
    #[error("no queue takes the event")]
    NoQueue,

    // Dirty tracking, options.
    /// A page size or range for dirty bits does not fit.
    #[error("the range or page size of the dirty bitmap is not usable")]
    BadBitmap,
    /// Dirty tracking is off.
    #[error("dirty tracking is off")]
    NotTracking,
    /// An option has no such value.
    #[error("the option has no value {0:#x}")]
    BadOption(u64),
    /// The owner has no default address space.
    #[error("no default address space")]
    NoDefault,
}

/// Why one invalidation of a list was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidationRefusal {
    /// Its virtual device does not exist.
    NoSuchVirtualId(u64),
    /// The record was not understood.
    Codec(CodecError),
    /// The device or unit has no translation cache to invalidate.
    AtsUnsupported,
    /// The backend failed.
    Backend(BackendError),
}

/// Something a unit or device may be unable to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// A guest's stage 1.
    Nesting,
    /// Recording written pages.
    DirtyTracking,
    /// Translation caches in devices.
    Ats,
    /// Creating and removing windows.
    DynamicWindows,
    /// The combination of options.
    Combination,
}

impl From<OutOfMemory> for Error {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl Error {
    /// Whether memory was lacking, the core's or the backend's: worth trying again later.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        matches!(
            self,
            Self::OutOfMemory | Self::Backend(BackendError::OutOfMemory)
        )
    }
}
