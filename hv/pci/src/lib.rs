//! PCI: configuration access, enumeration, BAR placement, capabilities and isolation groups.
//!
//! Key types: [`ConfigSpace`] (one host bridge's registers, [`Ecam`] being one), [`HostBridge`]
//! (what the firmware's tables say), [`Topology`] and [`Function`] (what [`enumerate`] found),
//! [`Placement`] (what [`place`] did), [`Group`] (what [`groups`] says cannot be told apart or kept
//! apart). The binaries call them in this order, before any IOMMU is open: after enumeration no
//! function masters the bus. Later, [`set_mastering`], [`Reset`], [`Msi`] and [`MsiX`] tell devices what
//! to do, and [`vconfig`] is what a guest sees of one.
//!
//! Configuration space is input that may lie: a lie becomes a [`Defect`] of its function, never a
//! hang or a panic. This crate must not know how firmware describes host bridges or interrupts,
//! nor who a device is given to: [`obstacles`] only says what cannot be.
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

// What the fuzz targets share with the tests names the crate as they do.
#[cfg(test)]
extern crate self as pci;
#[cfg(test)]
extern crate std;

mod assign;
mod capability;
mod config;
mod control;
mod defect;
mod error;
#[cfg(any(feature = "fake", test))]
pub mod fake;
mod function;
mod group;
mod host;
mod keep;
mod layout;
mod order;
mod place;
mod probe;
mod program;
mod region;
mod regs;
mod report;
mod reset;
mod scan;
#[cfg(test)]
mod tests;
mod topology;
pub mod vconfig;

pub use assign::{Obstacle, Wish, obstacles};
pub use capability::{
    Acs, AdvancedFeatures, Capabilities, Capability, CapabilityId, Express, FunctionReset, InBar,
    Msi, MsiX, PortType,
};
pub use config::{ConfigSpace, Ecam, Extent};
pub use control::{Message, MsixMode, Permission, set_mastering, set_pin, wants_pin};
pub use defect::Defect;
pub use error::Error;
pub use function::{
    Bar, BarKind, BarPlace, Bridge, BridgeBuses, BridgeWindow, BridgeWindows, Class,
    FoundMastering, Function, Header, LeftOn, WindowWidth,
};
pub use group::{Group, GroupPolicy, Join, Reason, groups, requesters};
pub use host::{BusRange, HostBridge, Window, WindowKind};
pub use place::{FirmwarePlaces, PlacePolicy, Placement, Unplaced, Why, place};
pub use report::{Bytes, report};
pub use reset::{Progress, Reset};
pub use scan::{BusNumbers, ExtraRoots, MAX_DEPTH, ScanPolicy, enumerate};
pub use topology::Topology;
