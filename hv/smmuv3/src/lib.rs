//! The Arm System MMU, architecture version 3.
//!
//! [`spec`] holds bits only: register offsets and the fields the manual gives them. [`Locked`] is a
//! physical SMMU that lets nothing pass, the first state the hypervisor puts each one in
//! (invariant 1). The crate reaches hardware through [`hal::Mmio`] alone, so that it runs on the
//! build host against fakes; it must not know where an SMMU was found.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate alloc;

mod identity;
mod locked;
pub mod spec;

pub use identity::{Identity, Unusable};
pub use locked::{Error, Locked};
