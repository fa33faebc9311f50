//! Running guests: as partitions of a partition.

mod check;
mod state;
mod switch;
mod vcpu;

use core::num::NonZeroU16;

use hal::{FrameAllocator, NotMemory, OutOfFrames, PhysMemory};
use types::{Address, Pa};

use crate::hcall::{self, FUNCTION, Hcall, SUCCESS};

pub(crate) use check::{LostSlice, check};
pub(crate) use vcpu::{
    Exit, GuestThread, Loaded, Location, MACHINE_CHECK, Order, Refused, SYSTEM_RESET, Vcpu, Vector,
    Watched, sleep,
};

/// Whether the platform lets this partition have partitions of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nested {
    /// By `H_ENTER_NESTED`.
    V1,
    /// Not at all.
    No,
    /// Offered, but it does not do what it should.
    Broken,
    /// The platform answers something else.
    Unclear(i64),
}

impl core::fmt::Display for Nested {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::V1 => write!(f, "guests run by H_ENTER_NESTED"),
            Self::No => write!(
                f,
                "not offered: guests cannot be run (QEMU: -M pseries,cap-nested-hv=on, POWER9 or \
                 later, threads=1)"
            ),
            Self::Broken => write!(f, "offered, but does not work"),
            Self::Unclear(status) => write!(f, "H_SET_PARTITION_TABLE answers {status}"),
        }
    }
}

/// Asks by setting the partition table to none, which it is.
pub(crate) fn probe() -> Nested {
    match set_table(0) {
        SUCCESS => Nested::V1,
        FUNCTION => Nested::No,
        status => Nested::Unclear(status),
    }
}

fn set_table(control: u64) -> i64 {
    // SAFETY: a table of ours, or none; it says which memory a guest has, and no guest runs now.
    unsafe { hcall::call(Hcall::SetPartitionTable, [control, 0, 0, 0]) }.status
}

/// No partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoTable {
    #[error("{0}")]
    Frames(#[from] OutOfFrames),
    #[error("{0}")]
    Memory(#[from] NotMemory),
    #[error("H_SET_PARTITION_TABLE answers {0}")]
    Refused(i64),
}

/// The table that says where each partition's tree is: 256 entries of two big-endian doublewords.
/// [Power ISA 3.1B Book III §6.7.5]
#[derive(Debug)]
pub(crate) struct PartitionTable<M> {
    memory: M,
    base: Pa,
}

/// Partitions that the table has room for. Number 0 is the hypervisor, the last one never has memory.
pub(crate) const PARTITIONS: u16 = 256;
const NO_PARTITION: u16 = PARTITIONS - 1;
/// Log2 of the table's size, less 12.
const TABLE_SIZE: u64 = 0;

impl<M: PhysMemory> PartitionTable<M> {
    /// An empty table, which the platform uses from now on.
    pub(crate) fn new(memory: M, frames: &impl FrameAllocator) -> Result<Self, NoTable> {
        let base = frames.alloc_zeroed(0)?;
        match set_table(base.bits() | TABLE_SIZE) {
            SUCCESS => Ok(Self { memory, base }),
            status => {
                frames.free(base, 0);
                Err(NoTable::Refused(status))
            }
        }
    }

    /// Gives a partition its tree, or none: `tree` is what the tree says of itself. `process` names
    /// the guest's own process table, or is zero.
    pub(crate) fn set(&self, lpid: NonZeroU16, tree: u64, process: u64) -> Result<(), NotMemory> {
        let outside = NotMemory {
            pa: self.base,
            bytes: 16,
        };
        if lpid.get() >= NO_PARTITION {
            return Err(outside);
        }
        let at = self
            .base
            .checked_add(16 * u64::from(lpid.get()))
            .ok_or(outside)?;
        self.memory
            .write_u64(at.checked_add(8).ok_or(outside)?, process.to_be())?;
        self.memory.write_u64(at, tree.to_be())
    }

    /// Ends the use of the table. No guest may be running.
    pub(crate) fn destroy(self, frames: &impl FrameAllocator) {
        set_table(0);
        frames.free(self.base, 0);
    }
}
