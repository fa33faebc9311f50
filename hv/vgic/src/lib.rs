//! The GICv3 a guest sees: distributor, redistributors and list registers.
//!
//! Key types: [`Vgic`] (one a VM), [`LrImage`] and [`CpuContext`] (one each a vCPU), [`Kicks`]
//! (whom to interrupt), [`LpiSource`] (the seam to an ITS), [`its::Vits`] (the ITS). The arch crate calls it from its traps
//! and before it enters a guest. It knows nothing of how registers of the CPU are accessed
//! or of physical interrupts beyond the numbers of PPIs. Guests use their CPU
//! interface (`ICC_*_EL1`) without traps; only what generates SGIs traps.
//!
//! # How the arch crate uses it
//!
//! * After each trap or interrupt, before it enters the guest again, with interrupts masked: if
//!   [`Vgic::needs_flush`], or if a maintenance interrupt was taken, it reads the list registers
//!   in [`LrImage::live_mut`] back, calls [`Vgic::flush`], and writes [`LrImage::to_write`] and
//!   [`LrImage::hcr`]. Otherwise the list registers stay as they are.
//! * Before an access for which [`Vgic::wants_sync`], before the vCPU leaves its core and before it
//!   waits for an interrupt ([`Vgic::has_interrupt`]): it reads them back and calls
//!   [`Vgic::sync`].
//! * For every vCPU in the [`Kicks`] that a call returns, other than its own: it makes that vCPU's
//!   core leave the guest, or the vCPU runnable.
//! * Locks are spin locks: whoever calls must not be interrupted by somebody who calls as well.
//!
//! # What the guest is told
//!
//! With 256 SPIs and two vCPUs, without an [`LpiSource`]; of redistributors the last one. What is
//! not listed reads as zero.
//!
//! | register | bits | field | value | meaning |
//! |---|---|---|---|---|
//! | `GICD_CTLR` | 4 | `ARE` | 1 | fixed: no legacy operation |
//! | `GICD_CTLR` | 6 | `DS` | 1 | fixed: one security state |
//! | `GICD_TYPER` | 4:0 | `ITLinesNumber` | 8 | words of SPIs |
//! | `GICD_TYPER` | 23:19 | `IDbits` | 9 | ten bits of INTID (with LPIs [`LpiSource::intid_bits`], and `LPIS` set) |
//! | `GICD_TYPER` | 24 | `A3V` | 1 | as [`Config::a3v`] |
//! | `GICD_TYPER` | 25 | `No1N` | 0 | an SPI may go to any vCPU that is awake |
//! | `GICD_TYPER` | 26 | `RSS` | 0 | set when an `Aff0` is above 15 |
//! | `GICD_IIDR` | 31:24 | `ProductID` | 0x42 | no implementer code: Bulkhead has none |
//! | `GICD_TYPER2` | all | | 0 | nothing of GICv4.1 |
//! | `GICD_PIDR2` | 7:4 | `ArchRev` | 3 | GICv3 |
//! | `GICR_CTLR` | all | | 0 | no LPIs (with them: `CES`, and `EnableLPIs` works) |
//! | `GICR_IIDR` | 31:24 | `ProductID` | 0x42 | as `GICD_IIDR` |
//! | `GICR_TYPER` | 0 | `PLPIS` | 0 | set with LPIs |
//! | `GICR_TYPER` | 4 | `Last` | 1 | the last redistributor |
//! | `GICR_TYPER` | 23:8 | `Processor_Number` | 1 | the vCPU |
//! | `GICR_TYPER` | 31:27 | `PPInum` | 0 | 16 PPIs |
//! | `GICR_TYPER` | 63:32 | `Affinity_Value` | 1 | as [`Config::affinities`] |
//! | `GICR_WAKER` | 1 | `ProcessorSleep` | 1 | at reset; the guest clears it |
//! | `GICR_WAKER` | 2 | `ChildrenAsleep` | 1 | follows `ProcessorSleep` at once |
//! | `GICR_PIDR2` | 7:4 | `ArchRev` | 3 | GICv3 |
//!
//! * Priorities have five bits. There are no message-based SPIs, no extended ranges, no NMIs.
//! * Only group 1 is ever signalled. `IGROUPR` is kept, as with `GICD_CTLR.DS` set it must be, but
//!   `EnableGrp0` is fixed to zero: an interrupt in group 0, where all are at reset, stays
//!   pending. `ICC_SGI0R_EL1` and `ICC_ASGI1R_EL1` therefore generate nothing.
//! * PPIs that stand for physical ones ([`Config::hardware_ppis`]) are level-sensitive for good.
//! * `GICR_WAKER` does its handshake and decides who may get 1-of-N SPIs. A vCPU whose guest never
//!   woke its redistributor gets its own interrupts all the same, as guests are used to from
//!   emulators and from firmware that woke it for them.
//! * Registers answer at the widths the architecture gives them, and read as zero and ignore writes
//!   at others, as all reserved offsets do.
//!
//! # What is exact
//!
//! While a vCPU runs, the list registers hold the truth about up to 16 of its interrupts.
//! * Of a vCPU's own interrupts everything is exact: it syncs before it looks.
//! * `ISPENDR` and `ISACTIVER` of interrupts that another running vCPU has in its list registers
//!   show them as they were when those were filled. Whoever needs the present state asks for it
//!   first, by [`Vgic::request_sync`].
//! * Writes of such state are never lost: what was set is added, what was cleared is taken away
//!   when the other vCPU, which is kicked for it, folds its list registers. A guest that clears the
//!   active state of an interrupt in the moment in which another vCPU acknowledges it may hit
//!   the acknowledged one, as it may on hardware.
//! * Interrupts that have no list register wait in software, and the hardware asks for them: by
//!   `NPIE` when the pending ones in list registers are used up, by `LRENPIE` when the guest ends
//!   an active one that has none. The latter says only how many ends there were: they are taken to
//!   be of the most urgent ones, which is right for handlers that nest as priorities make them
//!   nest. Writes of `ICC_DIR_EL1` name theirs and are trapped for that time
//!   ([`Vgic::deactivate`]).
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

mod affinity;
mod bank;
mod bits;
mod distributor;
mod error;
mod interface;
pub mod its;
mod lpi;
mod lr;
mod mailbox;
mod priority;
mod redistributor;
mod sgi;
mod vgic;

pub use affinity::Affinity;
pub use error::Error;
pub use lpi::{FIRST_LPI, Lpi, LpiSource, LpiTables};
pub use lr::{CpuContext, ListRegister, LrImage, MAX_LIST_REGISTERS};
pub use mailbox::Kicks;
pub use types::Width;
pub use vgic::{Config, Level, Vgic};

/// The most vCPUs of a VM.
pub const MAX_VCPUS: usize = 64;
/// The most SPIs: INTIDs 32 to 1019.
pub const MAX_SPIS: usize = 988;
/// Bytes of the distributor's frame.
pub const DISTRIBUTOR_BYTES: u64 = 0x1_0000;
/// Bytes of one vCPU's two redistributor frames; those of vCPU n + 1 follow those of vCPU n.
pub const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;
