//! How one core tells another that a vCPU has something to do, without a lock.

use core::sync::atomic::{AtomicU32, Ordering};

/// Private interrupts or list registers want another look.
pub(crate) const REFILL: u32 = 1 << 16;
/// The SPIs meant for this vCPU want another look.
pub(crate) const SPIS: u32 = 1 << 17;
/// The LPIs for this vCPU want another look.
pub(crate) const LPIS: u32 = 1 << 18;
/// The vCPU itself has yet to look at everything before it enters the guest. Nobody was kicked for
/// this, so it keeps nobody from being kicked.
pub(crate) const OWED: u32 = 1 << 19;
/// The SGIs of a mailbox.
const SGIS: u32 = 0xffff;

/// What others have for a vCPU: a bit for each SGI, and reasons to fill its list registers anew.
#[derive(Debug, Default)]
pub(crate) struct Mailbox(AtomicU32);

impl Mailbox {
    /// Adds `bits`. Says whether a kick is needed: when there is mail already, its vCPU has been
    /// kicked for that and will empty the box before it enters the guest.
    pub(crate) fn post(&self, bits: u32) -> bool {
        self.0.fetch_or(bits, Ordering::AcqRel) & !OWED == 0
    }

    /// Takes everything, but owes to look at it all again.
    pub(crate) fn postpone(&self) -> u32 {
        self.0.swap(OWED, Ordering::AcqRel)
    }

    /// Takes everything.
    pub(crate) fn take(&self) -> u32 {
        self.0.swap(0, Ordering::AcqRel)
    }

    /// Takes the SGIs and leaves a reason to fill the list registers in their place.
    pub(crate) fn take_sgis(&self) -> u32 {
        if self.0.load(Ordering::Acquire) & SGIS == 0 {
            return 0;
        }
        self.0.fetch_or(REFILL, Ordering::AcqRel);
        self.0.fetch_and(!SGIS, Ordering::AcqRel) & SGIS
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

/// vCPUs that must leave the guest (or wake up) and fill their list registers before they go on.
///
/// The caller's own vCPU may be among them; it needs no interrupt, it asks
/// [`needs_flush`](crate::Vgic::needs_flush) before it enters the guest anyway. A kick must not be
/// lost: until the vCPU has flushed, no second one is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "a vCPU that is not kicked sees its interrupts late"]
pub struct Kicks(u64);

impl Kicks {
    /// Nobody.
    pub const NONE: Self = Self(0);

    /// One vCPU.
    pub const fn of(vcpu: u32) -> Self {
        if vcpu < u64::BITS {
            Self(1_u64.wrapping_shl(vcpu))
        } else {
            Self(0)
        }
    }

    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The set as bits: bit n is vCPU n.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether nobody is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the vCPU is in it.
    #[must_use]
    pub const fn contains(self, vcpu: u32) -> bool {
        self.0 & Self::of(vcpu).0 != 0
    }

    /// The set without a vCPU, mostly the caller's own.
    pub const fn without(self, vcpu: u32) -> Self {
        Self(self.0 & !Self::of(vcpu).0)
    }

    /// The members of both.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Iterator for Kicks {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.0 == 0 {
            return None;
        }
        let vcpu = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        Some(vcpu)
    }
}
