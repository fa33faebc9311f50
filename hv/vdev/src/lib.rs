//! The small devices a guest sees, and what its trapped accesses mean.
//!
//! Key types: [`Pl011`] (console), [`Pl031`] (clock), both plain register models that return what
//! the outside must do ([`Effects`]); [`mmio`] turns the syndrome of a data abort, or the
//! instruction that caused it, into an [`mmio::Access`]. The crate of VMs owns the models and
//! carries out the effects; nothing here knows of guest memory, interrupt controllers or time.
//!
//! Everything a guest can put into a register or an instruction is taken: nothing here panics,
//! indexes or computes unchecked, and each access costs a bounded, small number of steps.
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

pub mod mmio;
mod pl011;
mod pl031;

pub use pl011::{FIFO_DEPTH, Pl011};
pub use pl031::Pl031;
pub use types::Width;

/// A level-sensitive interrupt line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// The device asks for service.
    Asserted,
    /// It does not.
    Released,
}

/// What an access asks of the world outside the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Effects {
    /// The interrupt line's new state, when it changed.
    pub line: Option<Line>,
    /// A byte the guest sent.
    pub transmitted: Option<u8>,
}

/// The interrupt line of a device, and what was last said of it.
#[derive(Clone, Copy, Debug, Default)]
struct Wire {
    asserted: bool,
}

impl Wire {
    /// Sets the line; returns its state when that is news.
    fn drive(&mut self, asserted: bool) -> Option<Line> {
        let changed = self.asserted != asserted;
        self.asserted = asserted;
        changed.then(|| self.line())
    }

    fn line(self) -> Line {
        if self.asserted {
            Line::Asserted
        } else {
            Line::Released
        }
    }
}

/// Reads the part of a 32-bit register that starts at `offset` into it: narrow accesses to odd
/// offsets see the bytes that are there.
fn lanes(register: u32, offset: u64, width: Width) -> u64 {
    let shift = match offset & 3 {
        0 => 0,
        1 => 8,
        2 => 16,
        _ => 24,
    };
    u64::from(register).wrapping_shr(shift) & width.mask()
}

/// One byte of a PrimeCell's identification registers, which lie at 0xfe0 to 0xffc.
fn identification(ids: [u8; 8], offset: u64) -> Option<u32> {
    let index = offset.checked_sub(0xfe0)?.wrapping_shr(2);
    ids.get(usize::try_from(index).ok()?)
        .map(|id| u32::from(*id))
}
