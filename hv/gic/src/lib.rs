//! The physical GICv3, but for the CPU interface, which is system registers: lines, and LPIs, which an ITS makes of messages.
//!
//! Key types: [`Distributor`] and [`Redistributor`] (shared and private lines), [`Lpis`] (the tables
//! that redistributors read), [`Its`] (the command queue and the tables of one ITS), [`Target`] (a
//! redistributor, as an ITS names it). The arch crate has one [`Distributor`], one [`Lpis`], a
//! [`Redistributor`] for each CPU and an [`Its`] for each of the machine's; all are the hypervisor's
//! alone, and nothing a guest writes reaches any. The crate reaches hardware through [`hal::Mmio`] and memory through
//! [`hal::SharedMemory`]; it must not know what a VM is.
//!
//! Sections are those of IHI 0069.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod command;
mod distributor;
mod its;
mod lpis;
mod redistributor;
#[cfg(test)]
mod tests;

pub use command::Command;
pub use distributor::{Distributor, Trigger};
pub use its::{Its, TRANSLATER, Target};
pub use lpis::{Delivery, FIRST_LPI, LPIS, Lpis};
pub use redistributor::Redistributor;

use hal::{Clock, Mmio, NotMemory, OutOfFrames};

/// Of every line, the highest that the non-secure side of two security states can give.
const PRIORITY: u8 = 0x80;

/// How long a register may take to follow, in µs.
const TIMEOUT_US: u64 = 100_000;

/// Waits until all of some bits of the register at `at` are clear.
fn settle<M: Mmio>(
    mmio: &M,
    clock: &dyn Clock,
    (at, bits): (usize, u32),
    name: &'static str,
) -> Result<(), Error> {
    let end = clock.ticks().saturating_add(clock.ticks_of_us(TIMEOUT_US));
    while mmio.read32(at) & bits != 0 {
        if clock.ticks() > end {
            return Err(Error::Register(name));
        }
    }
    Ok(())
}

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
    /// The distributor has no such SPI.
    #[error("the distributor has no interrupt {0}")]
    Interrupt(u32),
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
