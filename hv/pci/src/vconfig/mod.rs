//! The configuration space a guest sees of a function it was given.
//!
//! Key types: [`GuestSegment`] (all functions of one guest, below its host bridge and root ports),
//! [`VirtualFunction`] (one function: reads, writes, what a write asks for as [`Effects`]),
//! [`MsixTable`] (the guest's copy of the table in a BAR), [`TABLE`] (what becomes of every field, the source of the page in the docs).
//! The guest never writes a device's configuration space: of all bits, only error bits that are
//! cleared by writing ones reach the device. What a guest writes elsewhere changes a copy, and the
//! caller is told what to do about it. Everything not in the table reads as zero.

mod effects;
mod function;
mod msix;
mod paint;
mod segment;
#[cfg(test)]
mod segment_tests;
mod synthetic;
mod table;
#[cfg(test)]
mod tests;

pub use effects::{Effects, MsiState, MsixState};
pub use function::{Seat, Siblings, Upstream, VirtualFunction, Width};
pub use msix::{MsixTable, MsixVector};
pub use paint::Refusal;
pub use segment::{Change, GuestSegment, SeatError};
pub use table::{Row, Structure, TABLE, Treatment};
