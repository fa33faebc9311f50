//! TCE tables: how POWER's host bridges translate a device's addresses.
//!
//! [`Tce`] is the format of one entry. [`PaprBackend`] makes the host bridges of a PAPR platform the
//! hardware of the IOMMU core ([`iommu::Backend`]): their tables are the platform's, reached by the
//! calls of [`Platform`]. What the platform holds is known here entry by entry ([`Entries`]), so that
//! every live entry can be audited against it. [`ioda::IodaBackend`] is for host bridges without a platform
//! below, whose tables are in our own memory. The crate makes no call itself: the arch crate
//! implements [`Platform`]. It must not know which VM a table is for.
//!
//! The platform validates nothing: an entry with any address is accepted. What is written here was
//! checked by the core, which gives physical addresses of memory objects only.
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

mod entry;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod ioda;
mod papr;
mod platform;
#[cfg(test)]
mod tests;

pub use entry::Tce;
pub use papr::{AuditPlace, AuditScope, Broken, Ddw, Discrepancy, HostBridge, PaprBackend};
pub use platform::{
    Created, HcallError, LIST, Limits, MOST_STUFFED, Multi, Platform, RtasError, WindowSpec,
};

pub use iommu::{CHUNK, OutOfMemory};

/// What a window holds, entry by entry.
pub type Entries = iommu::Sparse<Tce>;
