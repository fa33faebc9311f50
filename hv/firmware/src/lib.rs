//! What a guest's firmware would have left in memory.
//!
//! Key types: [`GuestPlatform`] (a guest's machine, described once), [`Payload`] (what it starts
//! with), [`plan`] and the [`Layout`] it returns: bytes, where they go, and the entry registers.
//! [`dt`] writes the device tree, [`acpi`] the EFI and ACPI tables, [`kernel`] reads kernel files.
//! The crate of VMs calls it when it builds one; it must not know how guest memory is reached, nor
//! what devices really are behind the addresses.
//!
//! Kernel files are untrusted, so nothing here panics, indexes or computes unchecked.
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

pub mod acpi;
pub mod dt;
pub mod kernel;
mod layout;
mod platform;

pub use kernel::{KernelError, KernelFormat};
pub use layout::{Entry, FirmwareError, FirmwareKind, Item, Layout, Payload, Placement, plan};
pub use platform::{
    Conduit, DISTRIBUTOR_BYTES, DevicePath, Gic, GuestPlatform, ITS_BYTES, MAX_CPUS,
    MAX_MEMORY_SPANS, MAX_SMMUS, Mpidr, PRIMECELL_BYTES, PciHost, PciWindow, Peripheral,
    PlatformError, REDISTRIBUTOR_BYTES, Remapping, Rmr, SMMU_BYTES, Seed, Smmu, Spi, WindowKind,
    map,
};
