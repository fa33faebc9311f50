//! What both binaries do between their first instruction of Rust and the boot report.
//!
//! Key types: [`Frames`] (all free memory, as 4 KiB frames), [`Logger`] (levelled lines on a
//! console), [`Options`] (the boot arguments), [`Verdict`] (the line that ends every run; a
//! [`Guard`] keeps all others from looking like it). The arch crates call it; it must not know how a
//! machine is entered, nor what a VM is.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod devices;
mod frames;
mod logger;
mod options;
mod self_test;
mod taken;
mod verdict;

pub use devices::{Devices, devices};
pub use frames::{Frames, usable};
pub use logger::Logger;
pub use options::{Interrupts, Options, SelfTest, Snooping, Unknown};
pub use taken::Taken;
pub use verdict::{Guard, Verdict};
