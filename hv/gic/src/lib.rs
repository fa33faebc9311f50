//! The physical GICv3's message-signalled interrupts: LPIs, and the ITS that makes them of messages.
//!
//! Key types: [`Lpis`] (the tables that redistributors read), [`Its`] (the command queue and the
//! tables of one ITS), [`Target`] (a redistributor, as an ITS names it). The arch crate has one
//! [`Lpis`] and an [`Its`] for each of the machine's; both are the hypervisor's alone, and nothing a
//! guest writes reaches either. The crate reaches hardware through [`hal::Mmio`] and memory through
//! [`hal::SharedMemory`]; it must not know what a VM is.
//!
//! Sections are those of IHI 0069.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod command;
mod its;
mod lpis;
#[cfg(test)]
mod tests;

pub use command::Command;
pub use its::{Its, TRANSLATER, Target};
pub use lpis::{FIRST_LPI, LPIS, Lpis};

use hal::{NotMemory, OutOfFrames};

/// Whether what the hardware reads of memory comes from the CPUs' caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snoop {
    /// It does.
    Coherent,
    /// Memory has to be cleaned (RK3588; anything whose registers refuse the attributes).
    NonCoherent,
}

/// The hardware did not do as it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No memory for a table.
    #[error("no memory for its tables")]
    OutOfMemory,
    /// A table is not in memory: a bug.
    #[error("its tables are not in memory")]
    NotMemory,
    /// It has no physical LPIs.
    #[error("it has no LPIs")]
    NoLpis,
    /// It has not followed a register in time.
    #[error("{0} did not follow in time")]
    Register(&'static str),
    /// It did not carry out commands in time. Nothing is known of what it still routes.
    #[error("commands were not carried out in time")]
    Timeout,
    /// The queue has stalled at a command.
    #[error("it stalled at a command")]
    Stalled,
    /// The DeviceID is beyond what its table can have.
    #[error("DeviceID {0:#x} is beyond its device table")]
    DeviceId(u32),
    /// So many events are more than it can have for one device.
    #[error("{0} events are more than it has for a device")]
    Events(u32),
}

impl From<OutOfFrames> for Error {
    fn from(_: OutOfFrames) -> Self {
        Self::OutOfMemory
    }
}

impl From<NotMemory> for Error {
    fn from(_: NotMemory) -> Self {
        Self::NotMemory
    }
}

/// Bits of a memory attribute field set: inner cacheability and shareability.
/// Inner-shareable, read- and write-allocate, write-back; or non-cacheable.
const fn attributes(snoop: Snoop) -> (u64, u64) {
    match snoop {
        Snoop::Coherent => (7, 1),
        Snoop::NonCoherent => (1, 0),
    }
}
