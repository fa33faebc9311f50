//! The DMA windows a POWER guest sees: TCE hypercalls and DDW services on virtual LIOBNs.
//!
//! Key types: [`Dma`], one per VM, with a [`Bridge`] for each host bridge it has; [`Slot`], what of the
//! guest's memory devices may reach; [`GuestMemory`], how lists of entries are read. The guest's
//! platform (`papr`) passes hypercalls to [`Dma::hypercall`] and services to [`Dma::service`], both with
//! the IOMMU core, which the caller holds locked for the length of the call.
//!
//! An entry that a guest asks for is judged here: its window, its place, its page (whole, in one
//! contiguous piece of the guest's memory), its rights. What becomes of it is the core's: a mapping of a
//! memory object, which keeps the memory alive until the entry is cleared. What the guest wrote is kept
//! beside it, so that it can be read back and audited ([`Dma::audit`]). Nothing here knows a real LIOBN
//! or a physical address.
//!
//! What is answered is a table in `docs/tce.md`.
//!
//! # Bounds
//!
//! A hypercall touches at most [`tce::LIST`] entries, a service at most [`MOST_CLEARED`]; where more is
//! to be done a service answers "busy" (−2), and the guest calls again. Memory grows with live entries
//! and with the size of windows, which is bounded by [`Policy`].
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
#[cfg(test)]
extern crate std;

mod audit;
mod bridge;
mod entries;
mod function;
mod hypercall;
mod list;
mod service;
mod slot;
mod status;
#[cfg(test)]
mod tests;

pub use audit::Wrong;
pub use bridge::{Bridge, BridgeOptions, Dma, GuestWindow, Policy, Progress, Properties, Refusal};
pub use function::{
    COMMAND_MASTER, COMMAND_MEMORY, Change, Controls, FunctionCall, FunctionRequest,
    FunctionService, Mastering, Role,
};
pub use hypercall::{Answer, HYPERCALLS, HYPERTAS};
pub use service::{MOST_CLEARED, Outcome, Service};
pub use slot::{GuestMemory, NotMemory, Slot};
pub use status::Status;
