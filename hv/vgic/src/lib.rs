//! The GICv3 a guest sees: distributor, redistributors and list registers.
//!
//! Key types: [`Vgic`] (one a VM), [`LrImage`] and [`CpuContext`] (one each a vCPU), [`Kicks`]
//! (whom to interrupt). The arch crate calls it from its traps and before it enters a guest; it
//! knows nothing of registers of the CPU or of physical interrupts beyond their numbers.
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

mod affinity;
mod bank;
mod bits;
mod distributor;
mod error;
mod interface;
mod lr;
mod mailbox;
mod priority;
mod redistributor;
mod sgi;
mod vgic;
mod width;

pub use affinity::Affinity;
pub use error::Error;
pub use lr::{CpuContext, ListRegister, LrImage, MAX_LIST_REGISTERS};
pub use mailbox::Kicks;
pub use vgic::{Config, Level, Vgic};
pub use width::Width;

/// The most vCPUs of a VM.
pub const MAX_VCPUS: usize = 64;
/// The most SPIs: INTIDs 32 to 1019.
pub const MAX_SPIS: usize = 988;
/// Bytes of the distributor's frame.
pub const DISTRIBUTOR_BYTES: u64 = 0x1_0000;
/// Bytes of one vCPU's two redistributor frames; those of vCPU n + 1 follow those of vCPU n.
pub const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;
