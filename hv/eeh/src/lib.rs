//! Enhanced error handling (EEH): what becomes of a partitionable endpoint (PE) whose devices go wrong.
//!
//! Key types: [`Pe`], one per host bridge of a guest, with its [`State`]; [`Service`], the run-time
//! services by which the guest asks and recovers; [`Effect`], what the caller has to do to the hardware.
//! An error ([`Pe::freeze`]) stops the PE: its registers read as all ones, its DMA reaches nothing, until
//! the guest has thawed or reset it. The platform below has no EEH for emulated host bridges, so all of
//! it is here; the crate touches no hardware and knows no device.
//!
//! # How it is used
//!
//! 1. A device's DMA finds no translation, a register does not answer, or a test injects an error:
//!    [`Pe::freeze`], with the time. Its [`Effect`] is carried out before the guest runs on.
//! 2. The guest reads all ones and asks ([`Service::ReadState`]).
//! 3. It thaws (registers first, DMA later) or resets. Each service gives an [`Effect`].
//! 4. An effect that cannot be carried out is [`Pe::fail`]: the PE is gone for good.
//!
//! Too many errors in an hour ([`Limits`]) end a PE, too, and so does a guest that says that an error is permanent:
//! until the VM starts again, or gets the host bridge again ([`Pe::restart`]).
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
#[cfg(test)]
extern crate alloc;
#[cfg(test)]
extern crate std;

mod inject;
mod log;
mod pe;
mod service;
#[cfg(test)]
mod tests;

pub use inject::{ERRORS, ErrorService, Injection, Victim, WORK_AREA, victim};
pub use log::LOG;
pub use pe::{Cause, Effect, Frozen, Limits, MOST_REMEMBERED, Pe, Reset, State};
pub use service::{Outcome, Service, log_buffer};
