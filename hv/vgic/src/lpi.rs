//! The seam to a source of LPIs, which is an ITS.

use crate::{
    Kicks,
    bank::Readback,
    distributor::{Distributor, FIRST_SPI, Room, Taken},
    priority::level_of,
};

/// The first LPI's INTID.
pub const FIRST_LPI: u32 = 8192;

/// An LPI that is pending and enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lpi {
    /// Its INTID, [`FIRST_LPI`] or above.
    pub intid: u32,
    /// Its priority; only the upper five bits count.
    pub priority: u8,
}

/// Where a redistributor has its LPI tables, in guest memory: what the guest wrote, not judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LpiTables {
    /// `GICR_PROPBASER`.
    pub propbaser: u64,
    /// `GICR_PENDBASER`.
    pub pendbaser: u64,
}

/// Holds the pending state of LPIs: configuration and pending tables, behind an ITS.
///
/// All methods are called with the vCPU's lock held, so they must not call the
/// [`Vgic`](crate::Vgic) and should take constant time. When one becomes pending or enabled, or
/// its priority changes, the source says so with [`Vgic::post_lpis`](crate::Vgic::post_lpis).
pub trait LpiSource: Send + Sync {
    /// How many bits an INTID has, 14 to 16: LPIs are 8192 to `(1 << bits) - 1`.
    fn intid_bits(&self) -> u32 {
        16
    }

    /// `GICR_CTLR.EnableLPIs` of the vCPU was set, with its tables, or cleared.
    fn set_tables(&self, vcpu: usize, tables: Option<LpiTables>);

    /// The most urgent LPI that waits for the vCPU; the lowest number among equals.
    fn first(&self, vcpu: usize) -> Option<Lpi>;

    /// The LPI goes into a list register: it is not pending any more.
    fn take(&self, vcpu: usize, intid: u32);

    /// The LPI comes back from a list register, where the guest did not acknowledge it: it is
    /// pending again. (One that was acknowledged does not come back: an LPI has no active state.)
    ///
    /// Returns the vCPU to which it was moved meanwhile, if it was: that one is told.
    fn give_back(&self, vcpu: usize, intid: u32) -> Kicks;
}

/// All that interrupts for one vCPU come from besides the vCPU itself. What cannot have a part in
/// it is left out, so that no lock is taken for it.
pub(crate) struct Sources<'a> {
    pub(crate) vcpu: usize,
    /// `GICD_CTLR.EnableGrp1`: without it nothing is signalled.
    pub(crate) group1: bool,
    pub(crate) spis: Option<&'a mut Distributor>,
    pub(crate) lpis: Option<&'a dyn LpiSource>,
}

/// An interrupt that is not private to the vCPU.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shared {
    Spi(u32),
    Lpi(Lpi),
}

impl Sources<'_> {
    /// Nothing but the vCPU itself.
    pub(crate) const fn none(group1: bool) -> Self {
        Self {
            vcpu: 0,
            group1,
            spis: None,
            lpis: None,
        }
    }

    /// The most urgent one that waits to be signalled, with its level.
    pub(crate) fn first_pending(&self) -> Option<(u32, Shared)> {
        let spi = self
            .spis
            .as_deref()
            .and_then(|spis| spis.first_pending(self.vcpu));
        let lpi = self
            .lpis
            .filter(|_| self.group1)
            .and_then(|lpis| lpis.first(self.vcpu));
        match (spi, lpi) {
            (Some((level, _)), Some(lpi)) if level_of(lpi.priority) < level => {
                Some((level_of(lpi.priority), Shared::Lpi(lpi)))
            }
            (Some((level, spi)), _) => Some((level, Shared::Spi(spi))),
            (None, Some(lpi)) => Some((level_of(lpi.priority), Shared::Lpi(lpi))),
            (None, None) => None,
        }
    }

    /// The most urgent SPI that is active and in no list register.
    pub(crate) fn first_active(&self) -> Option<(u32, Shared)> {
        let (level, spi) = self.spis.as_deref()?.first_active(self.vcpu)?;
        Some((level, Shared::Spi(spi)))
    }

    /// Whether an SPI waits.
    pub(crate) fn has_spi(&self) -> bool {
        self.spis
            .as_deref()
            .is_some_and(|spis| spis.waiting(self.vcpu) != 0)
    }

    /// How many SPIs wait. LPIs are not counted: one that waits counts as all of them.
    pub(crate) fn waiting(&self) -> usize {
        let spis = self
            .spis
            .as_deref()
            .map_or(0, |spis| spis.waiting(self.vcpu));
        if self.has_lpi() { usize::MAX } else { spis }
    }

    /// Takes an SPI for a list register.
    pub(crate) fn take_spi(&mut self, spi: u32, room: Room) -> Option<Taken> {
        self.spis.as_deref_mut()?.take(spi, self.vcpu, room)
    }

    /// Takes an LPI for a list register.
    pub(crate) fn take_lpi(&self, lpi: Lpi) {
        if let Some(lpis) = self.lpis {
            lpis.take(self.vcpu, lpi.intid);
        }
    }

    /// Whether an LPI waits.
    pub(crate) fn has_lpi(&self) -> bool {
        self.lpis
            .is_some_and(|lpis| lpis.first(self.vcpu).is_some())
    }

    /// Takes an SPI or LPI back out of a list register.
    pub(crate) fn give_back(&mut self, intid: u32, lr: Readback) -> Kicks {
        if intid < FIRST_LPI {
            return match (self.spis.as_deref_mut(), intid.checked_sub(FIRST_SPI)) {
                (Some(spis), Some(spi)) => spis.give_back(spi, lr),
                _ => Kicks::NONE,
            };
        }
        match self.lpis {
            Some(lpis) if lr.pending => lpis.give_back(self.vcpu, intid),
            _ => Kicks::NONE,
        }
    }

    /// The guest ended an SPI that is in no list register.
    pub(crate) fn deactivate(&mut self, spi: u32) -> Kicks {
        self.spis
            .as_deref_mut()
            .map_or(Kicks::NONE, |spis| spis.deactivate(spi))
    }
}
