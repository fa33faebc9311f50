//! The words every other crate speaks: addresses of each space, page sizes, device and table
//! identities.
//!
//! Key types: [`Pa`], [`Ipa`], [`Va`], [`Iova`] (and [`Span`] over any of them), [`PageSize`],
//! [`StreamId`], [`Bdf`], [`Vmid`], [`Liobn`]. Every crate depends on this one; it depends on none
//! of ours, and it must not know what any address is used for.
//!
//! There is deliberately no conversion between address spaces: only a stage-2 walk or the owner of
//! a frame may turn an [`Ipa`] into a [`Pa`], and only the arch crates turn a [`Pa`] into a pointer.
//!
//! And the one sort, [`sort_by_key`], which is small.
#![no_std]
#![forbid(unsafe_code)]

mod address;
mod ids;
mod page;
mod sort;
mod width;

pub use address::{Address, Iova, Ipa, Pa, Span, Va};
pub use ids::{Asid, Bdf, Liobn, PeNumber, StreamId, SubstreamId, Vmid};
pub use page::PageSize;
pub use sort::{sort, sort_by_key};
pub use width::Width;

/// A value that does not fit the type it was offered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:#x} is out of range for {kind}")]
pub struct OutOfRange {
    /// The type that refused the value.
    pub kind: &'static str,
    /// The refused value.
    pub value: u64,
}
