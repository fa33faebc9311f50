//! The configuration space a guest sees of a function it was given.
//!
//! Key types: [`GuestSegment`] (all functions of one guest, below its host bridge and root ports),
//! [`VirtualFunction`] (one function: reads, writes, what a write asks for as [`Effects`]),
//! [`MsixTable`] (the guest's copy of the table in a BAR), [`TABLE`] (what becomes of every field, the source of the page in the docs).
//! The guest never writes a device's configuration space: of all bits, only error bits that are
//! cleared by writing ones reach the device. What a guest writes elsewhere changes a copy, and the
//! caller is told what to do about it. Everything not in the table reads as zero.
//!
//! What the caller does about each of the [`Effects`], first what takes something away:
//!
//! * [`Effects::RESET`]: [`set_mastering`](crate::set_mastering) to denied, BARs unmapped, messages
//!   unrouted; then [`Reset::function`](crate::Reset::function), or for [`Change::Below`]
//!   [`Reset::bus`](crate::Reset::bus) where all of the physical bus is the guest's; when it is
//!   done, [`VirtualFunction::reset`] and [`MsixTable::reset`].
//! * [`Effects::MASTERING`]: asks [`GuestSegment::mastering`] and passes the answer on.
//! * [`Effects::MAPPING`]: compares [`GuestSegment::mapping`] of every BAR with what is mapped;
//!   addresses outside the guest's windows, or on top of something else, count as none. The pages
//!   of [`VirtualFunction::trapped`] are left out.
//! * [`Effects::MSI`], [`Effects::MSIX`], [`Effects::INTX`]: routes what the state asks for, by
//!   [`Msi`](crate::Msi), [`MsiX`](crate::MsiX) and [`set_pin`](crate::set_pin), with addresses of
//!   its own.

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
pub use function::{Pin, Seat, Siblings, Upstream, VirtualFunction, Width};
pub use msix::{MsixTable, MsixVector};
pub use paint::Refusal;
pub use segment::{Change, GuestSegment, SeatError};
pub use table::{Row, Structure, TABLE, Treatment};
