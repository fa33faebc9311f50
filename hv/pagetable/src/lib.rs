//! Translation tables: of VMSAv8-64 with the 4 KiB granule, the hypervisor's own map (EL2 stage 1)
//! and the stage 2 of a VM, for the CPU and for its devices; of POWER, the partition-scoped radix
//! tree of a guest.
//!
//! Key types: [`PageTable`] over a [`Stage`] ([`El2`], [`Stage2`] or [`Radix`]), [`Geometry`],
//! [`Leaf`], [`Fault`], and [`Invalidate`], by which the caller says how its translation caches are emptied.
//! The arch crate uses it for its own map and for VMs, the SMMU driver for device tables. It must
//! not know what is mapped, who owns a frame that is mapped, or which TLB stands behind a call.
//!
//! # Rules it keeps
//! * [`PageTable::map`] uses the largest blocks that fit, refuses to map over anything, and either
//!   maps all or changes nothing: every table it needs is allocated before the first write.
//! * [`PageTable::unmap`] and [`PageTable::protect`] split a block by *break-before-make*
//!   [DDI 0487 D8]: the old entry is made invalid, the caches are told and have answered, and
//!   only then is the new entry written. A walker sees the old translation, none, or the new one.
//!   In the gap it takes a translation fault: a handler that finds the address mapped once it holds
//!   the tree's lock returns and lets the access run again.
//! * A change of permissions alone (same output, size and memory type) is written in place and
//!   invalidated afterwards, which the architecture allows.
//! * Tables are given back to the allocator only after [`Invalidate::sync`].
//! * Sub-tables may be shared with a second tree ([`PageTable::share_subtree`]); they belong to the
//!   tree that made them, and neither tree can be destroyed while they are shared.
//!
//! Tables are in the byte order their walkers want, whatever the CPU's. An SMMU that does not snoop is
//! served by a [`hal::PhysMemory`] that cleans each word it writes.
//!
//! A tree has no lock: whoever owns it holds one around every call that takes `&mut self`. A walk
//! needs only that tables are not freed under it, that is, a shared lock.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate alloc;

mod change;
mod dirty;
mod format;
mod geometry;
mod invalidate;
mod map;
mod radix;
mod share;
mod stage1;
mod stage2;
mod table;

pub use format::{Entry, Format, Link, RadixFormat, Vmsav8};
pub use geometry::{BadGeometry, Geometry, OutputSize};
pub use invalidate::{Invalidate, NotLive, Scope, Stale};
pub use radix::{Radix, RadixAccess, RadixAttributes, RadixMemory};
pub use stage1::{El2, El2Access, El2Attributes, El2Memory, MAIR_EL2};
pub use stage2::{Execute, Stage2, Stage2Access, Stage2Attributes, Stage2Memory, vtcr};
pub use table::{Fault, FaultKind, Leaf, Leaves, PageTable};

use hal::{NotMemory, OutOfFrames};
use types::{Address, Pa};

/// What kind of translation a tree describes: the type of its input addresses and how attributes
/// are encoded in a leaf.
pub trait Stage: Copy + Eq + core::fmt::Debug {
    /// The space translated from.
    type Input: Address;
    /// Permissions and memory type of a leaf.
    type Attributes: Copy + Eq + core::fmt::Debug;
    /// How its descriptors are written.
    type Format: Format;

    /// Tables that may stand side by side as the root.
    const MAX_ROOT_TABLES: u64;
    /// Bits of a leaf that may change while it is valid, without break-before-make.
    const PERMISSIONS: u64;

    /// The attribute bits of a leaf, without address and type.
    fn encode(attributes: Self::Attributes) -> u64;

    /// The attributes of a leaf; `None` for an encoding this crate never writes.
    fn decode(descriptor: u64) -> Option<Self::Attributes>;
}

/// A refused change. The tree translates as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error<A: Address> {
    /// An address or the end of a range is not on a 4 KiB boundary.
    #[error("{value:#x} is not on a page boundary")]
    Misaligned {
        /// The address, or the first address after the range.
        value: u64,
    },
    /// The range leaves the space the tree translates.
    #[error("{last} is beyond the input space of the table")]
    InputRange {
        /// The last address of the range.
        last: A,
    },
    /// The output leaves the physical address space.
    #[error("output of the range that starts at {pa} is beyond physical memory")]
    OutputRange {
        /// The first output address.
        pa: Pa,
    },
    /// Something is mapped there already.
    #[error("{at} is mapped already")]
    AlreadyMapped {
        /// The first address in the range that is mapped.
        at: A,
    },
    /// Nothing is mapped there.
    #[error("{at} is not mapped")]
    NotMapped {
        /// The first address in the range that is not.
        at: A,
    },
    /// The sub-table belongs to another tree, and is changed there.
    #[error("the table for {at} is borrowed")]
    Borrowed {
        /// The first address in the range that it covers.
        at: A,
    },
    /// The sub-table is in use by another tree.
    #[error("the table for {at} is shared")]
    Shared {
        /// The first address in the range that it covers.
        at: A,
    },
    /// No frame for a table.
    #[error(transparent)]
    OutOfFrames(#[from] OutOfFrames),
    /// A table lies outside memory: a bug, and the one error that may leave a change half done.
    #[error(transparent)]
    NotMemory(#[from] NotMemory),
}
