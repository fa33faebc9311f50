//! A partition-scoped radix tree: what a guest's real addresses are, on POWER.
//!
//! One shape only, the one every implementation and QEMU accept for 52 bits: a root of 8,192 entries
//! (64 KiB, aligned so), then tables of 512, leaves of 1 GiB, 2 MiB and 4 KiB. The reference and
//! change bits are always set: a platform that leaves them to software would exit at every access.

use hal::{FrameAllocator, OutOfFrames, PhysMemory};
use types::{Ipa, Pa};

use crate::format::{Format, RadixFormat};
use crate::{Geometry, PageTable, Stage};

const EXECUTE: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const READ: u64 = 1 << 2;
const CHANGED: u64 = 1 << 7;
const MEMORY_SHIFT: u32 = 4;

/// Host radix: the entry describes a radix tree.
const HOST_RADIX: u64 = 1 << 63;
/// RTS = 21, in two fields: 52 = 31 + 21 bits are translated.
const TREE_SIZE: u64 = 2 << 61 | 5 << 5;
/// RPDS: log2 of the root's entries.
const ROOT_SIZE: u64 = 13;

/// A guest's memory on POWER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Radix {}

/// What a guest may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RadixAccess {
    /// Read.
    Read,
    /// Read and execute.
    ReadExecute,
    /// Read and write.
    ReadWrite,
    /// All three.
    ReadWriteExecute,
}

/// The storage attribute, ATT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RadixMemory {
    /// Memory.
    Normal,
    /// Memory with strong access order.
    StrongAccessOrder,
    /// Device registers: not cached, guarded, not idempotent.
    NonIdempotent,
    /// Not cached, idempotent.
    Tolerant,
}

/// Permissions and storage attribute of a piece of a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RadixAttributes {
    /// What may be done.
    pub access: RadixAccess,
    /// The storage attribute.
    pub memory: RadixMemory,
}

impl RadixAttributes {
    /// A guest's RAM.
    pub const RAM: Self = Self {
        access: RadixAccess::ReadWriteExecute,
        memory: RadixMemory::Normal,
    };
    /// Registers of a device that the guest owns.
    pub const DEVICE: Self = Self {
        access: RadixAccess::ReadWrite,
        memory: RadixMemory::NonIdempotent,
    };
}

impl Stage for Radix {
    type Input = Ipa;
    type Attributes = RadixAttributes;
    type Format = RadixFormat;

    const MAX_ROOT_TABLES: u64 = 16;
    /// Every change of a valid entry goes through an invalid one.
    const PERMISSIONS: u64 = 0;

    fn encode(attributes: RadixAttributes) -> u64 {
        let access = match attributes.access {
            RadixAccess::Read => READ,
            RadixAccess::ReadExecute => READ | EXECUTE,
            RadixAccess::ReadWrite => READ | WRITE,
            RadixAccess::ReadWriteExecute => READ | WRITE | EXECUTE,
        };
        let memory = match attributes.memory {
            RadixMemory::Normal => 0,
            RadixMemory::StrongAccessOrder => 1,
            RadixMemory::NonIdempotent => 2,
            RadixMemory::Tolerant => 3,
        };
        access | memory << MEMORY_SHIFT | CHANGED | RadixFormat::ACCESSED
    }

    fn decode(descriptor: u64) -> Option<RadixAttributes> {
        let bits = descriptor & (READ | WRITE | EXECUTE);
        let access = if bits == READ {
            RadixAccess::Read
        } else if bits == READ | EXECUTE {
            RadixAccess::ReadExecute
        } else if bits == READ | WRITE {
            RadixAccess::ReadWrite
        } else if bits == READ | WRITE | EXECUTE {
            RadixAccess::ReadWriteExecute
        } else {
            return None;
        };
        let memory = match descriptor >> MEMORY_SHIFT & 3 {
            0 => RadixMemory::Normal,
            1 => RadixMemory::StrongAccessOrder,
            2 => RadixMemory::NonIdempotent,
            _ => RadixMemory::Tolerant,
        };
        Some(RadixAttributes { access, memory })
    }
}

impl<M: PhysMemory, F: FrameAllocator> PageTable<Radix, M, F> {
    /// An empty tree for 52 bits of guest real addresses.
    ///
    /// # Errors
    /// [`OutOfFrames`] when there is no room for the root: 64 KiB in one block.
    pub fn new_radix(memory: M, frames: F) -> Result<Self, OutOfFrames> {
        Self::with_geometry(Geometry::RADIX, memory, frames)
    }

    /// The first doubleword of the partition-table entry that makes this the tree of a partition; in
    /// memory it is big-endian. The second names the guest's own process table.
    #[must_use]
    pub fn partition_entry(&self) -> u64 {
        partition_entry(self.root())
    }
}

fn partition_entry(root: Pa) -> u64 {
    HOST_RADIX | TREE_SIZE | root.bits() | ROOT_SIZE
}

#[cfg(test)]
mod tests {
    use types::Pa;

    use super::{Radix, RadixAccess, RadixAttributes, RadixMemory, partition_entry};
    use crate::Stage;

    #[test]
    fn attributes_have_the_bits_the_platform_checks() {
        assert_eq!(Radix::encode(RadixAttributes::RAM), 0x187);
        assert_eq!(Radix::encode(RadixAttributes::DEVICE), 0x1a6);
        for access in [
            RadixAccess::Read,
            RadixAccess::ReadExecute,
            RadixAccess::ReadWrite,
            RadixAccess::ReadWriteExecute,
        ] {
            for memory in [
                RadixMemory::Normal,
                RadixMemory::StrongAccessOrder,
                RadixMemory::NonIdempotent,
                RadixMemory::Tolerant,
            ] {
                let attributes = RadixAttributes { access, memory };
                let bits = Radix::encode(attributes);
                assert_eq!(bits & 0x180, 0x180, "reference and change");
                assert_eq!(Radix::decode(bits), Some(attributes));
            }
        }
        for odd in [0, 1, 2, 3] {
            assert_eq!(Radix::decode(odd), None);
        }
    }

    #[test]
    fn a_partition_entry_says_52_bits_and_8192_entries() {
        let entry = partition_entry(Pa::truncated(0x1234_0000));
        assert_eq!(entry, 0xc000_0000_1234_00ad);
    }
}
