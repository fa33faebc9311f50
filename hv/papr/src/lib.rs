//! The PAPR platform that a POWER guest sees: hypercalls, run-time services, XICS interrupts.
//!
//! Key types: [`Platform`], one per VM and shared by its vCPUs; [`Environment`], what it reaches for
//! beyond its own state (the guest's memory, a terminal, a clock, other vCPUs). The arch crate calls
//! [`Platform::hypercall`] with the registers of the vCPU that made a call and does what [`After`]
//! says. Nothing here knows how a guest is run, which thread a vCPU is on, or what is behind the
//! terminal.
//!
//! Everything that comes in is hostile: arguments, what is in the guest's memory, and when and from
//! where calls come. Memory is copied once and the copy is judged. Work per call is bounded: at most
//! a page is copied, and each source and vCPU is looked at a constant number of times.
//!
//! What is answered, and what is refused with which status, is a table in `docs/papr.md`; tests hold
//! it against the code. A call that is not there answers `H_FUNCTION`, a service that is not there
//! [`rtas` status −3](Platform).
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

mod area;
mod clock;
mod connector;
mod cpus;
mod environment;
mod event;
mod hcall;
mod memory;
mod platform;
mod rtas;
mod servers;
mod status;
mod term;
#[cfg(test)]
mod tests;
mod xics;

pub use clock::Date;
pub use connector::{
    CONFIGURE_CONNECTOR, ConnectorNodes, NOT_CONFIGURABLE, NodeBuilder, WORK_AREA,
};
pub use environment::{Environment, NotGuestMemory, Served};
pub use event::{Action, HOT_PLUG_SOURCE, HotPlug};
pub use hcall::{After, Ceded, End, Text};
pub use platform::{Characteristics, Config, Platform, Wake};
pub use rtas::{ENTRY_CODE, TOKENS};
pub use servers::{MOST_CPUS, Servers};
pub use status::Status;
pub use term::TERMINAL;
pub use xics::{Kind, Source, UnknownSource};

/// The groups of hypercalls that [`Platform`] serves, as `/rtas/ibm,hypertas-functions` names them.
/// [LoPAPR Table 187]
pub const HYPERTAS: &[&str] = &[
    "hcall-term",
    "hcall-interrupt",
    "hcall-vio",
    "hcall-splpar",
    "hcall-join",
    "hcall-set-mode",
    "hcall-sprg0",
    "hcall-copy",
    "hcall-debug",
];
