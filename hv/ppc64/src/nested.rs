//! Running guests: as partitions of a partition.

use crate::hcall::{self, FUNCTION, Hcall, SUCCESS};

/// Whether the platform lets this partition have partitions of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nested {
    /// By `H_ENTER_NESTED`.
    V1,
    /// Not at all.
    No,
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
            Self::Unclear(status) => write!(f, "H_SET_PARTITION_TABLE answers {status}"),
        }
    }
}

/// Asks by setting the partition table to none, which it is.
pub(crate) fn probe() -> Nested {
    // SAFETY: no table means no guest.
    match unsafe { hcall::call(Hcall::SetPartitionTable, [0; 4]) }.status {
        SUCCESS => Nested::V1,
        FUNCTION => Nested::No,
        status => Nested::Unclear(status),
    }
}
