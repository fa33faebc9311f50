//! List registers and the other registers of the hypervisor's side of the virtual CPU interface.

use crate::bank::{AtEnd, Load};

/// The most list registers the architecture has [IHI 0069 §12.4].
pub const MAX_LIST_REGISTERS: usize = 16;

/// `ICH_HCR_EL2.En`.
pub(crate) const HCR_EN: u64 = 1 << 0;
/// `ICH_HCR_EL2.LRENPIE`: interrupt when the guest ends one that is in no list register.
pub(crate) const HCR_LRENPIE: u64 = 1 << 2;
/// `ICH_HCR_EL2.NPIE`: interrupt when no list register is pending.
pub(crate) const HCR_NPIE: u64 = 1 << 3;
/// `ICH_HCR_EL2.TDIR`: trap writes of `ICC_DIR_EL1`.
pub(crate) const HCR_TDIR: u64 = 1 << 14;

/// What the guest's deactivation of an interrupt brings about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Nothing.
    Quiet,
    /// A maintenance interrupt.
    Maintenance,
    /// The deactivation of a physical interrupt.
    Physical(u32),
}

impl From<AtEnd> for End {
    fn from(at_end: AtEnd) -> Self {
        match at_end {
            AtEnd::Nothing => Self::Quiet,
            AtEnd::Again => Self::Maintenance,
        }
    }
}

/// What an `ICH_LR<n>_EL2` holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct ListRegister(u64);

impl ListRegister {
    /// An unused list register.
    pub const INVALID: Self = Self(0);
    const PENDING: u64 = 1 << 62;
    const ACTIVE: u64 = 1 << 63;
    const HW: u64 = 1 << 61;
    const GROUP1: u64 = 1 << 60;
    const EOI: u64 = 1 << 41;

    /// The register read from hardware.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(crate) const fn new(intid: u32, priority: u8, load: Load, end: End) -> Self {
        let mut bits = intid as u64 | (priority as u64) << 48 | Self::GROUP1;
        if load.pending {
            bits |= Self::PENDING;
        }
        if load.active {
            bits |= Self::ACTIVE;
        }
        match end {
            End::Quiet => {}
            End::Maintenance => bits |= Self::EOI,
            End::Physical(intid) => bits |= Self::HW | (intid as u64 & 0x1fff) << 32,
        }
        Self(bits)
    }

    /// The register's value.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The virtual INTID.
    #[must_use]
    pub const fn intid(self) -> u32 {
        crate::bits::low(self.0)
    }

    /// The priority.
    #[must_use]
    pub const fn priority(self) -> u8 {
        let [.., priority, _] = self.0.to_le_bytes();
        priority
    }

    /// Whether the interrupt is pending, or pending and active.
    #[must_use]
    pub const fn is_pending(self) -> bool {
        self.0 & Self::PENDING != 0
    }

    /// Whether the interrupt is active, or pending and active.
    #[must_use]
    pub const fn is_active(self) -> bool {
        self.0 & Self::ACTIVE != 0
    }

    /// The physical INTID that a deactivation by the guest deactivates too.
    #[must_use]
    pub const fn physical(self) -> Option<u32> {
        if self.0 & Self::HW == 0 {
            None
        } else {
            Some(crate::bits::high(self.0) & 0x1fff)
        }
    }

    /// Whether the end of the interrupt raises a maintenance interrupt.
    #[must_use]
    pub const fn asks_for_maintenance(self) -> bool {
        self.0 & (Self::HW | Self::EOI) == Self::EOI
    }
}

/// What belongs in the list registers and `ICH_HCR_EL2` while a vCPU runs.
///
/// It lives in the vCPU's context. [`Vgic::flush`](crate::Vgic::flush) fills it, the arch code
/// writes [`LrImage::to_write`] and [`LrImage::hcr`] to the hardware; before
/// [`Vgic::sync`](crate::Vgic::sync) it reads the [`LrImage::live`] ones back into it.
#[derive(Clone, Debug)]
pub struct LrImage {
    pub(crate) registers: [ListRegister; MAX_LIST_REGISTERS],
    pub(crate) live: u8,
    pub(crate) write: u8,
    /// How many of the hardware's list registers a sync has made out of date.
    pub(crate) stale: u8,
    pub(crate) hcr: u64,
    pub(crate) deactivate: u32,
}

impl LrImage {
    /// Nothing in any list register, the interface on.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            registers: [ListRegister::INVALID; MAX_LIST_REGISTERS],
            live: 0,
            write: 0,
            stale: 0,
            hcr: HCR_EN,
            deactivate: 0,
        }
    }

    /// How many list registers, from 0 on, the guest may have changed.
    #[must_use]
    pub const fn live_count(&self) -> usize {
        self.live as usize
    }

    /// The list registers in use, from 0 on. To be written when a vCPU comes onto a core whose
    /// other list registers are zero.
    #[must_use]
    pub fn live(&self) -> &[ListRegister] {
        self.registers.get(..self.live_count()).unwrap_or(&[])
    }

    /// The list registers to read back, from 0 on.
    pub fn live_mut(&mut self) -> &mut [ListRegister] {
        let live = self.live_count();
        self.registers.get_mut(..live).unwrap_or(&mut [])
    }

    /// The list registers to write after a flush, from 0 on: those in use, and those that were and
    /// are not any more.
    #[must_use]
    pub fn to_write(&self) -> &[ListRegister] {
        self.registers.get(..self.write.into()).unwrap_or(&[])
    }

    /// One list register.
    #[must_use]
    pub fn register(&self, index: usize) -> ListRegister {
        let register = self.registers.get(index).copied();
        register.unwrap_or(ListRegister::INVALID)
    }

    /// The value for `ICH_HCR_EL2`: `En`, and what maintenance interrupts and traps are needed.
    /// `EOIcount` in it is zero.
    #[must_use]
    pub const fn hcr(&self) -> u64 {
        self.hcr
    }

    /// Whether `EOIcount` can be non-zero when the guest stops, so that `ICH_HCR_EL2` has to be read
    /// back with [`LrImage::set_hcr`].
    #[must_use]
    pub const fn counts_eois(&self) -> bool {
        self.hcr & HCR_LRENPIE != 0
    }

    /// Takes over an `ICH_HCR_EL2` read from hardware, for its `EOIcount`.
    pub const fn set_hcr(&mut self, hcr: u64) {
        self.hcr = hcr;
    }

    /// Hardware PPIs (bit n is INTID n) whose physical interrupt the arch code has to deactivate
    /// now, on this core, because they ended without the guest deactivating them.
    #[must_use]
    pub const fn to_deactivate(&self) -> u32 {
        self.deactivate
    }

    pub(crate) const fn eoi_count(&self) -> u32 {
        (crate::bits::low(self.hcr) >> 27) & 0x1f
    }
}

impl Default for LrImage {
    fn default() -> Self {
        Self::new()
    }
}

/// The rest of a vCPU's interface, which the arch code saves and restores when another vCPU takes
/// the core. All zero is the state at reset (the hardware raises binary points to its least).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuContext {
    /// `ICH_VMCR_EL2`: what the guest wrote to `ICC_PMR_EL1`, `ICC_BPR<n>_EL1`, `ICC_CTLR_EL1`
    /// and `ICC_IGRPEN<n>_EL1`.
    pub vmcr: u64,
    /// `ICH_AP0R<n>_EL2`; with five preemption bits only the first exists.
    pub ap0r: [u32; 4],
    /// `ICH_AP1R<n>_EL2`; with five preemption bits only the first exists.
    pub ap1r: [u32; 4],
}

impl CpuContext {
    /// The lowest priority value that would not be signalled now: the guest's mask and its running
    /// priority; 0 with group 1 off.
    #[must_use]
    pub(crate) fn threshold(&self) -> u8 {
        if self.vmcr & 2 == 0 {
            return 0;
        }
        let [_, _, _, mask, ..] = self.vmcr.to_le_bytes();
        let active = self.ap0r[0] | self.ap1r[0];
        if active == 0 {
            return mask;
        }
        let [running, ..] = active.trailing_zeros().wrapping_shl(3).to_le_bytes();
        mask.min(running)
    }
}
