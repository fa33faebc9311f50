//! The SMMUv3 a guest sees, nested over the hypervisor's stage 2.
//!
//! Key types: [`VSmmu`], one per VM and physical SMMU; [`Features`], what it promises;
//! [`GuestMemory`] and [`Physical`], the two things it reaches for. Nothing a guest writes goes to
//! hardware as it is: a stream table entry becomes an [`iommu::NestedConfig`], a command becomes
//! an [`Invalidation`], both judged from one copy, and both name the guest's streams; the VM and
//! its devices are the integrator's to put in their place. Hardware reads the guest's context
//! descriptors and stage-1 tables by itself, through stage 2, so this crate never judges those
//! ([`VSmmu::walk`] shows them, and decides nothing). Nothing here knows of physical stream IDs,
//! VMIDs, physical addresses or interrupt controllers.
//!
//! The promises of the identification registers, what becomes of each command and event, and the
//! registers are tables in `docs/vsmmuv3.md`, which tests hold against the code: what is not listed
//! reads as zero, or is `CERROR_ILL`.
//!
//! # How the arch crate uses it
//!
//! 1. For each VM and SMMU: [`Features::derive`] from the physical [`smmuv3::Identity`] and the
//!    VM's [`Options`]; a [`VSmmu`]; a core `Viommu` over the VM's nest parent.
//! 2. For each device: a core `Vdevice` with the guest's stream ID, then [`VSmmu::add_stream`].
//! 3. A data abort in the register file (128 KiB) is [`VSmmu::read`] or [`VSmmu::write`], under the
//!    VM's lock. [`Outcome::interrupts`] become edges of the VM's SPIs; messages of the SMMU's own
//!    have gone by [`GuestMemory::send`] by then.
//! 4. While [`Outcome::work`] is [`Work::More`], [`VSmmu::run`] is called again: after the trap has
//!    returned and the vCPUs of others had their turn, not in a loop inside the trap. The vCPU that
//!    waits sees `CONS`, `CR0ACK` or `GBPA.UPDATE` stand still, as with slow hardware.
//! 5. [`Health::Broken`] ends the VM: the hardware did not confirm something. Its devices go to
//!    abort by the core.
//! 6. A hardware event of a nested stream goes to [`VSmmu::report`] with the guest's stream ID; what
//!    is [`Delivery::Filtered`] is the hypervisor's to log.
//! 7. A reset of the VM is [`VSmmu::reset`] until nothing is left to do, before its memory is
//!    written. The end of a VM does not go through this crate: the core takes the devices away.
//!
//! [`Physical`] over the core: `set_stream` is `Iommu::create_nested`, `Iommu::replace`, and
//! `Iommu::destroy_domain` of what was attached before (abort and bypass are nested configurations,
//! too); `invalidate` is [`Invalidation::for_core`] and `Iommu::invalidate_each`. The tests of
//! `hv/smmuv3` do it so (`tests/pair`).
//! On hardware whose stall model is not 1 the backend sets `STE.S1STALLD`, or a guest's context
//! descriptor could stall.
//!
//! # Cost
//!
//! A call does at most [`BUDGET`] units of work: a command is one, a stream that is read again
//! eight, a wait for the hardware eight, a message two. A command costs no allocation; only adding a stream does.
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

mod command;
mod entry;
mod events;
mod features;
mod memory;
mod physical;
mod registers;
#[cfg(test)]
mod tests;
mod vsmmu;
mod walk;

pub use entry::{BadSte, GuestSte};
pub use events::for_guest;
pub use features::{
    AtReset, Features, LEAST_QUEUE, MOST_QUEUE, MOST_STREAM_BITS, Messages, Options, SingleAddress,
    Unfit,
};
pub use memory::{GuestMemory, NotGuestMemory};
pub use physical::{BATCH, Failure, Invalidation, Physical, Refusal, VaRange};
pub use types::Width;
pub use vsmmu::{
    BUDGET, Counters, Delivery, Health, Interrupts, Line, MOST_STREAMS, Outcome, Stream,
    StreamError, VSmmu, Verdict, Work,
};
pub use walk::{Access, End, MOST_STEPS, Step, Walk};
