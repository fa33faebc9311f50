//! Taking an exception to a guest's EL1.

/// `PSTATE.M` and `nRW`: the mode field of an SPSR.
const MODE: u64 = 0x1f;
const EL1H: u64 = 0b0_0101;
const DAIF: u64 = 0xf << 6;
/// Exception class of a data abort from a lower level; +1 from the same.
const DATA_ABORT: u64 = 0x24;
/// Exception class of an instruction abort from a lower level; +1 from the same.
const INSTRUCTION_ABORT: u64 = 0x20;
/// Fault status: synchronous external abort, not on a table walk.
const EXTERNAL_ABORT: u64 = 0x10;
/// `ESR.IL`: the instruction is 32 bits long.
const IL: u64 = 1 << 25;

/// Where a guest was when the exception arose: from the low bits of `SPSR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// EL1 on `SP_EL0`.
    SameSp0,
    /// EL1 on `SP_EL1`.
    SameSpx,
    /// EL0, 64-bit.
    Lower64,
    /// EL0, 32-bit.
    Lower32,
}

impl Origin {
    /// The origin that a saved program status tells.
    #[must_use]
    pub const fn of(spsr: u64) -> Self {
        match spsr & MODE {
            0b0_0100 => Self::SameSp0,
            mode if mode & 0x10 != 0 => Self::Lower32,
            0b0_0000 => Self::Lower64,
            _ => Self::SameSpx,
        }
    }

    const fn vector(self) -> u64 {
        match self {
            Self::SameSp0 => 0x000,
            Self::SameSpx => 0x200,
            Self::Lower64 => 0x400,
            Self::Lower32 => 0x600,
        }
    }

    const fn is_lower(self) -> bool {
        matches!(self, Self::Lower64 | Self::Lower32)
    }
}

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The instruction is not there ("undefined").
    Undefined,
    /// A load or store was answered by nobody. `iss` is that of the trapped access, of which the
    /// write bit is kept.
    DataAbort {
        /// The virtual address.
        far: u64,
        /// The syndrome of the access as it reached EL2.
        iss: u64,
    },
    /// An instruction was fetched from where nobody answers.
    InstructionAbort {
        /// The virtual address.
        far: u64,
    },
}

/// An exception on its way to EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// What is to be told.
    pub cause: Cause,
    /// The guest's program counter: the instruction at fault.
    pub pc: u64,
    /// The guest's program status.
    pub spsr: u64,
    /// The guest's `VBAR_EL1`.
    pub vbar: u64,
    /// The guest's `SCTLR_EL1`.
    pub sctlr: u64,
}

/// The guest's state after the exception has been taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Where it goes on.
    pub pc: u64,
    /// With which program status.
    pub pstate: u64,
    /// `ELR_EL1`.
    pub elr: u64,
    /// `SPSR_EL1`.
    pub spsr: u64,
    /// `ESR_EL1`.
    pub esr: u64,
    /// `FAR_EL1`, if the exception sets it.
    pub far: Option<u64>,
}

impl Exception {
    /// What the architecture makes of it. [DDI 0487 `AArch64.TakeException`]
    #[must_use]
    pub const fn take(self) -> Taken {
        let origin = Origin::of(self.spsr);
        let same: u64 = if origin.is_lower() { 0 } else { 1 };
        let (esr, far) = match self.cause {
            Cause::Undefined => (IL, None),
            Cause::DataAbort { far, iss } => {
                let write = iss & 1 << 6;
                (
                    (DATA_ABORT | same) << 26 | IL | write | EXTERNAL_ABORT,
                    Some(far),
                )
            }
            Cause::InstructionAbort { far } => (
                (INSTRUCTION_ABORT | same) << 26 | IL | EXTERNAL_ABORT,
                Some(far),
            ),
        };
        Taken {
            pc: self.vbar.wrapping_add(origin.vector()),
            pstate: self.pstate(),
            elr: self.pc,
            spsr: self.spsr,
            esr,
            far,
        }
    }

    /// EL1 on its own stack, all masked; PAN set unless `SCTLR_EL1.SPAN`; SSBS as
    /// `SCTLR_EL1.DSSBS` says; DIT kept; condition flags kept; the rest clear.
    const fn pstate(self) -> u64 {
        const NZCV: u64 = 0xf << 28;
        const DIT: u64 = 1 << 24;
        const PAN: u64 = 1 << 22;
        const SSBS: u64 = 1 << 12;
        const SPAN: u64 = 1 << 23;
        const DSSBS: u64 = 1 << 44;
        // An AArch32 status has other bits in these places.
        let keep = match Origin::of(self.spsr) {
            Origin::Lower32 => NZCV,
            _ => NZCV | DIT | PAN,
        };
        let mut pstate = self.spsr & keep | DAIF | EL1H;
        if self.sctlr & SPAN == 0 {
            pstate |= PAN;
        }
        if self.sctlr & DSSBS != 0 {
            pstate |= SSBS;
        }
        pstate
    }
}

#[cfg(test)]
mod tests {
    use super::{Cause, Exception, Origin};

    const SPAN: u64 = 1 << 23;

    fn at(spsr: u64, cause: Cause) -> Exception {
        Exception {
            cause,
            pc: 0x1000,
            spsr,
            vbar: 0xffff_0000,
            sctlr: SPAN,
        }
    }

    #[test]
    fn the_vector_depends_on_where_the_guest_was() {
        for (spsr, offset) in [(0x3c4, 0), (0x3c5, 0x200), (0x0, 0x400), (0x10, 0x600)] {
            let taken = at(spsr, Cause::Undefined).take();
            assert_eq!(taken.pc, 0xffff_0000 + offset);
            assert_eq!(taken.elr, 0x1000);
            assert_eq!(taken.spsr, spsr);
            assert_eq!(taken.pstate & 0x3df, 0x3c5);
        }
    }

    #[test]
    fn an_undefined_instruction_has_class_zero_and_leaves_far_alone() {
        let taken = at(0x5, Cause::Undefined).take();
        assert_eq!((taken.esr, taken.far), (0x0200_0000, None));
    }

    #[test]
    fn an_abort_tells_level_direction_and_address() {
        let write = Cause::DataAbort {
            far: 0x77,
            iss: 0x9380_0047,
        };
        assert_eq!(at(0x5, write).take().esr, 0x9600_0050);
        assert_eq!(at(0x0, write).take().esr, 0x9200_0050);
        let read = Cause::DataAbort {
            far: 0x77,
            iss: 0x9380_0007,
        };
        assert_eq!(at(0x5, read).take().esr, 0x9600_0010);
        assert_eq!(at(0x5, read).take().far, Some(0x77));
        let fetch = Cause::InstructionAbort { far: 0x78 };
        assert_eq!(at(0x0, fetch).take().esr, 0x8200_0010);
        assert_eq!(at(0x5, fetch).take().esr, 0x8600_0010);
    }

    #[test]
    fn pan_follows_span_and_flags_survive() {
        let mut exception = at(0xf000_0000, Cause::Undefined);
        assert_eq!(exception.take().pstate, 0xf000_03c5);
        exception.sctlr = 0;
        assert_eq!(exception.take().pstate, 0xf040_03c5);
        exception.sctlr = SPAN | 1 << 44;
        assert_eq!(exception.take().pstate, 0xf000_13c5);
    }

    #[test]
    fn a_32_bit_mode_is_lower_whatever_its_other_bits() {
        for mode in 0x10..0x20 {
            assert_eq!(Origin::of(mode), Origin::Lower32);
        }
    }
}
