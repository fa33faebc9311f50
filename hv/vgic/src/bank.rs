//! The state of 32 interrupts: the private ones of a vCPU, or one register's worth of SPIs.

/// What the guest configured and what is the case, a bit an interrupt.
///
/// An interrupt in a list register is *held*: its pending and active state live in the list
/// register, `latch` and `active` here are what came in addition since, and the two `drop` sets say
/// what the guest took back since. Folding the list register brings it all together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bank {
    /// `IGROUPR`: group 1.
    pub(crate) group1: u32,
    /// `ISENABLER`.
    pub(crate) enabled: u32,
    /// `ICFGR`: edge-triggered.
    pub(crate) edge: u32,
    /// The input lines.
    pub(crate) line: u32,
    /// An edge was seen, or software set pending.
    pub(crate) latch: u32,
    /// Active and not in a list register.
    pub(crate) active: u32,
    /// In a list register.
    pub(crate) held: u32,
    /// The state in list registers, as last written or read.
    held_pending: u32,
    held_active: u32,
    /// What the guest took back since.
    drop_pending: u32,
    drop_active: u32,
}

/// Whether the hypervisor has to know when the guest deactivates an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtEnd {
    /// No: nothing is left to do.
    Nothing,
    /// Yes: it is pending again then.
    Again,
}

/// What to put in a list register for an interrupt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Pending state.
    pub(crate) pending: bool,
    /// Active state.
    pub(crate) active: bool,
    /// The pending state came from the latch, so it goes back there when it was not taken.
    pub(crate) from_latch: bool,
}

/// What a list register said about an interrupt when it was read back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Readback {
    /// Pending state.
    pub(crate) pending: bool,
    /// Active state.
    pub(crate) active: bool,
    /// [`Load::from_latch`] of the load.
    pub(crate) from_latch: bool,
}

impl Bank {
    /// Everything off; the interrupts of `edge` are edge-triggered.
    pub(crate) fn with_edges(edge: u32) -> Self {
        Self {
            edge,
            ..Self::default()
        }
    }

    /// Pending, list registers apart.
    pub(crate) const fn pending(&self) -> u32 {
        self.latch | (self.line & !self.edge)
    }

    /// Pending as the guest reads it.
    pub(crate) const fn shown_pending(&self) -> u32 {
        self.pending() | (self.held_pending & !self.drop_pending)
    }

    /// Active as the guest reads it.
    pub(crate) const fn shown_active(&self) -> u32 {
        self.active | (self.held_active & !self.drop_active)
    }

    /// Could be signalled: pending, of group 1, enabled, not active, not in a list register.
    pub(crate) const fn deliverable(&self) -> u32 {
        self.pending() & self.enabled & self.group1 & !self.active & !self.held
    }

    /// Moves the input lines of `mask`.
    pub(crate) const fn raise(&mut self, mask: u32) {
        self.latch |= mask & self.edge & !self.line;
        self.line |= mask;
    }

    /// Lowers the input lines of `mask`.
    pub(crate) const fn lower(&mut self, mask: u32) {
        self.line &= !mask;
    }

    /// `ISPENDR`.
    pub(crate) const fn set_pending(&mut self, mask: u32) {
        self.latch |= mask;
    }

    /// `ICPENDR`.
    pub(crate) const fn clear_pending(&mut self, mask: u32) {
        self.latch &= !mask;
        self.drop_pending |= mask & self.held;
    }

    /// `ISACTIVER`.
    pub(crate) const fn set_active(&mut self, mask: u32) {
        self.active |= mask;
    }

    /// `ICACTIVER`.
    pub(crate) const fn clear_active(&mut self, mask: u32) {
        self.active &= !mask;
        self.drop_active |= mask & self.held;
    }

    /// Takes the interrupt `bit` into a list register. `signalled` says whether its pending state
    /// may go along (enabled, and meant for this vCPU).
    #[inline]
    pub(crate) const fn load(&mut self, bit: u32, signalled: bool) -> Load {
        let active = self.active & bit != 0;
        // A level-sensitive interrupt is not put in as pending and active: whether it is pending
        // again is decided by its line when it is deactivated, not by what the line was before.
        let pending = signalled && self.pending() & bit != 0 && !(active && self.edge & bit == 0);
        let from_latch = pending && self.latch & bit != 0;
        self.held |= bit;
        self.active &= !bit;
        self.drop_pending &= !bit;
        self.drop_active &= !bit;
        if pending {
            self.latch &= !bit;
            self.held_pending |= bit;
        } else {
            self.held_pending &= !bit;
        }
        if active {
            self.held_active |= bit;
        } else {
            self.held_active &= !bit;
        }
        Load {
            pending,
            active,
            from_latch,
        }
    }

    /// Takes the interrupt `bit`, which is neither pending nor active, into a list register as pending by its line. If it
    /// is in one already, the guest has ended it there.
    #[inline]
    pub(crate) const fn load_line(&mut self, bit: u32) {
        self.held |= bit;
        self.held_pending |= bit;
        self.held_active &= !bit;
        self.drop_pending &= !bit;
        self.drop_active &= !bit;
    }

    /// What the end of the interrupt `bit`, loaded now, is to bring about.
    pub(crate) const fn at_end(&self, bit: u32) -> AtEnd {
        if self.pending() & bit == 0 {
            AtEnd::Nothing
        } else {
            AtEnd::Again
        }
    }

    /// Takes the interrupt `bit` out of its list register again.
    #[inline]
    pub(crate) const fn fold(&mut self, bit: u32, lr: Readback) {
        if lr.pending && lr.from_latch && self.drop_pending & bit == 0 {
            self.latch |= bit;
        }
        if lr.active && self.drop_active & bit == 0 {
            self.active |= bit;
        }
        self.held &= !bit;
        self.held_pending &= !bit;
        self.held_active &= !bit;
        self.drop_pending &= !bit;
        self.drop_active &= !bit;
    }
}
