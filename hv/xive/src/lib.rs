//! How the hypervisor, itself a partition of a PAPR platform, takes interrupts: which interrupt controller it
//! agrees on with the platform, and the event queues of the one that is called XIVE.
//!
//! Key types: [`Support`], what the platform offers before anything is agreed on; [`Wish`], what the boot command
//! line asks for; [`Agreement`], what follows from the two; [`request`], the bytes by which it is asked for;
//! [`Cursor`], who reads an event queue; [`esb`], how a source is told what to do. The POWER binary makes the
//! calls; the crate touches no hardware.
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

mod agree;
pub mod esb;
mod queue;

pub use agree::{Agreement, NotOffered, REQUEST_BYTES, Support, Wish, request};
pub use queue::{Cursor, ENTRIES, QUEUE_BYTES};
