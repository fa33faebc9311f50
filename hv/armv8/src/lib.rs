//! The Armv8-A CPU a guest sees, as pure rules: which features its identification registers show
//! ([`IdRegister`]), how an exception reaches it ([`Exception`]), how it turns CPUs on and off
//! ([`Psci`]).
//!
//! The Arm binary asks and obeys; nothing here touches a register. What a guest passes in (PSCI
//! arguments, addresses) is judged here and may be anything.
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

mod exception;
mod idregs;
mod psci;

pub use exception::{Cause, Exception, Origin, Taken};
pub use idregs::{IdRegister, Shown};
pub use psci::{Action, Power, Psci, Start};
