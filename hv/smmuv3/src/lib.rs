//! The Arm System MMU, architecture version 3.
//!
//! [`spec`] holds bits only: register offsets and the fields the manual gives them. [`Locked`] is a
//! physical SMMU that lets nothing pass, the first state the hypervisor puts each one in
//! (invariant 1). [`Smmu`] is one that translates what it was told to and aborts everything else;
//! [`SmmuBackend`] makes several of them the hardware of the IOMMU core ([`iommu::Backend`]). The crate reaches hardware through [`hal::Mmio`] alone, so that it runs on the
//! build host against fakes; it must not know where an SMMU was found.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod backend;
mod errata;
mod frames;
mod identity;
mod invalidation;
mod locked;
mod shared;
mod smmu;
pub mod spec;
mod stream;
#[cfg(test)]
mod tests;

pub use backend::{Platform, SmmuBackend};
pub use errata::Errata;
pub use identity::{Identity, Unusable};
pub use locked::{Error as LockError, Found, Locked};
pub use shared::Shared;
pub use smmu::{Drained, Error, SERVICE_FAILURE, Smmu};
