//! Policy of VMs: what they are doing and what follows when they end, who runs next on a core, who
//! has the terminal, and the monitor.
//!
//! Key types: [`Lifecycle`] (a VM's state, shared by the cores its vCPUs run on), [`Turns`] and
//! [`RunClock`] (time sharing and its account), [`Lodgers`] (when translations are to be forgotten), [`Terminal`] (the console of all VMs on one line; [`SharedTerminal`] is that on all CPUs),
//! [`Monitor`] (commands for whoever sits at it, carried out through [`Control`]), [`Faults`] (what is
//! told of DMA that was refused), [`Moderation`] (how often a device may interrupt), [`Guests`] (all VMs on
//! all cores: the loop that uses the others). Both binaries use them. Nothing here may know of an
//! architecture or touch hardware: what [`Guests`] needs of a machine, its clock too, it asks of [`Arch`]; to
//! the others times are arguments.
//!
//! What a guest prints is hostile input: it cannot make anything here panic, grow or take the
//! terminal from others.
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

mod console;
mod control;
mod exits;
mod faults;
mod guests;
mod launch;
mod lifecycle;
mod moderation;
mod monitor;
mod schedule;
mod tenant;

pub use console::{ESCAPE, LONGEST_LINE, Line, SharedTerminal, Terminal, Typed, Wire};
pub use exits::{ExitCause, ExitCounts};
pub use faults::{Faults, Noise, Records, RefusedDma, Telling};
pub use guests::{Arch, Arrival, CONSOLE_CORE, Core, Departure, Guests};
pub use launch::{LeftOut, Made, Placement, make_vms};
pub use lifecycle::{Ended, Ending, Lifecycle, Next, State, dependents, is_notable, rest_ticks};
pub use moderation::{Moderated, Moderation, Rate};
pub use monitor::{
    Activity, Argument, CommandError, Control, Frames, Iommu, Monitor, Plug, Refusal, Reply, Then,
    VcpuState, VmStatus, Walk,
};
pub use schedule::{DEFAULT_SLICE_US, Lodgers, RunClock, Turns, slice_us};
pub use tenant::{Registers, Slot, Tenant};
