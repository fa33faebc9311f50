//! Which features a guest is shown.
//!
//! Every field is hidden unless it is named here, so that a CPU newer than this table shows nothing
//! that the hypervisor would have to switch and does not. [DDI 0487 D19.2]

/// An identification register, by the encoding of its `MRS`: op0 = 3, op1 = 0, CRn = 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRegister {
    /// `CRm`, 1 to 7.
    pub crm: u8,
    /// `op2`.
    pub op2: u8,
}

/// What the machine and the VM allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Most bits of a physical address of the guest.
    pub ipa_bits: u8,
}

/// A field that is shown as it is, up to a highest value.
#[derive(Clone, Copy, Debug)]
struct Field {
    shift: u32,
    most: u64,
    /// Signed fields: 0b1111 means "not there" and is passed.
    signed: bool,
}

const fn upto(shift: u32, most: u64) -> Field {
    Field {
        shift,
        most,
        signed: false,
    }
}

const fn signed(shift: u32, most: u64) -> Field {
    Field {
        shift,
        most,
        signed: true,
    }
}

/// `ID_AA64PFR0_EL1`: EL0 and EL1 (with 32-bit EL0 if the CPU has it), floating point, SIMD, the
/// GIC's system registers, DIT, CSV2 (without `SCXTNUM`), CSV3. Hidden: EL2, EL3, RAS, SVE, MPAM,
/// AMU, RME.
const PFR0: &[Field] = &[
    upto(0, 2),
    upto(4, 1),
    signed(16, 1),
    signed(20, 1),
    upto(24, 1),
    upto(48, 1),
    upto(56, 1),
    upto(60, 1),
];

/// `ID_AA64PFR1_EL1`: BTI, SSBS. Hidden: MTE, SME, RNDR trap, NMI, GCS.
const PFR1: &[Field] = &[upto(0, 1), upto(4, 2)];

/// `ID_AA64DFR0_EL1`: the debug architecture, breakpoints, watchpoints and context breakpoints.
/// Hidden: PMU, trace, statistical profiling, double lock, MTPMU, branch record buffer.
const DFR0: &[Field] = &[upto(0, 8), upto(12, 15), upto(20, 15), upto(28, 15)];

/// `ID_AA64ISAR0_EL1`: all instructions without state of their own. Hidden: TME; TLB maintenance by
/// range and outer shareable is shown.
const ISAR0: &[Field] = &[
    upto(4, 2),
    upto(8, 1),
    upto(12, 2),
    upto(16, 1),
    upto(20, 3),
    upto(28, 1),
    upto(32, 1),
    upto(36, 1),
    upto(40, 1),
    upto(44, 1),
    upto(48, 1),
    upto(52, 2),
    upto(56, 2),
    upto(60, 1),
];

/// `ID_AA64ISAR1_EL1`: DPB, pointer authentication (both algorithms), JSCVT, FCMA, LRCPC, FRINTTS,
/// SB, SPECRES, BF16, DGH, I8MM. Hidden: XS, LS64.
const ISAR1: &[Field] = &[
    upto(0, 2),
    upto(4, 5),
    upto(8, 5),
    upto(12, 1),
    upto(16, 1),
    upto(20, 2),
    upto(24, 1),
    upto(28, 1),
    upto(32, 1),
    upto(36, 1),
    upto(40, 1),
    upto(44, 1),
    upto(48, 1),
    upto(52, 1),
];

/// `ID_AA64ISAR2_EL1`: WFxT hidden (its trap differs), RPRES, the third pointer authentication
/// algorithm. Hidden: MOPS, BC and what came later.
const ISAR2: &[Field] = &[upto(4, 1), upto(8, 1), upto(12, 5)];

/// `ID_AA64MMFR0_EL1`: address size (cut to the VM's), ASIDs, endianness, granules without their
/// 52-bit forms. Hidden: fine-grained traps, ECV, and the stage-2 granule fields.
const MMFR0: &[Field] = &[
    upto(4, 2),
    upto(8, 1),
    upto(12, 1),
    upto(16, 1),
    upto(20, 1),
    signed(24, 0),
    signed(28, 0),
];

/// `ID_AA64MMFR1_EL1`: hardware access flag and dirty state, HPDS, PAN, ETS, AFP, nTLBPA. Hidden:
/// VMID bits, VHE, LORs, XNX, TWED, HCX and what came later.
const MMFR1: &[Field] = &[
    upto(0, 2),
    upto(12, 2),
    upto(20, 3),
    upto(36, 1),
    upto(44, 1),
    upto(48, 1),
];

/// `ID_AA64MMFR2_EL1`: CnP, UAO, LSM, IESB hidden with RAS, virtual address range, CCIDX, small
/// tables, unaligned atomicity, IDST, TTL, BBM, E0PD. Hidden: nested virtualisation, FWB, EVT.
const MMFR2: &[Field] = &[
    upto(0, 1),
    upto(4, 1),
    upto(8, 1),
    upto(16, 1),
    upto(20, 1),
    upto(28, 1),
    upto(32, 1),
    upto(36, 1),
    upto(48, 1),
    upto(52, 2),
    upto(60, 1),
];

impl IdRegister {
    /// The register that an ISS of a trapped `MRS` names, if it is one of these.
    /// [DDI 0487 D19.2.40, "ISS encoding for an exception from MSR, MRS, or System instruction"]
    #[must_use]
    pub fn of(iss: u32) -> Option<Self> {
        let field = |shift: u32, bits: u32| {
            iss.checked_shr(shift).unwrap_or(0) & (1_u32 << bits).wrapping_sub(1)
        };
        let small = |value: u32| value.to_le_bytes()[0];
        let register = Self {
            crm: small(field(1, 4)),
            op2: small(field(17, 3)),
        };
        (field(20, 2) == 3
            && field(14, 3) == 0
            && field(10, 4) == 0
            && (1..=7).contains(&register.crm))
        .then_some(register)
    }

    /// What a guest reads, where the CPU says `host`.
    #[must_use]
    pub fn shown(self, host: u64, shown: Shown) -> u64 {
        let fields = match (self.crm, self.op2) {
            // The 32-bit registers describe what EL0 may use in AArch32 state; only the PMU is
            // taken out, to agree with the 64-bit view.
            (1, 2) => return host & !(0xf << 24),
            (1..=2, 0..=7) | (3, 0..=2 | 4..=6) => return host,
            (4, 0) => PFR0,
            (4, 1) => PFR1,
            (5, 0) => DFR0,
            (6, 0) => ISAR0,
            (6, 1) => ISAR1,
            (6, 2) => ISAR2,
            (7, 0) => {
                let most = address_size(shown.ipa_bits);
                return pick(host, MMFR0) | (host & 0xf).min(most);
            }
            (7, 1) => MMFR1,
            (7, 2) => MMFR2,
            _ => return 0,
        };
        pick(host, fields)
    }
}

/// The `PARange` encoding for at most `bits` bits.
const fn address_size(bits: u8) -> u64 {
    match bits {
        0..=35 => 0,
        36..=39 => 1,
        40..=41 => 2,
        42..=43 => 3,
        44..=47 => 4,
        _ => 5,
    }
}

fn pick(host: u64, fields: &[Field]) -> u64 {
    fields.iter().fold(0, |value, field| {
        let is = host >> field.shift & 0xf;
        let absent = field.signed && is >= 8;
        value | (if absent { is } else { is.min(field.most) }) << field.shift
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{IdRegister, Shown};

    const SHOWN: Shown = Shown { ipa_bits: 40 };

    fn register(crm: u8, op2: u8) -> IdRegister {
        IdRegister { crm, op2 }
    }

    #[test]
    fn a_guest_sees_no_el2_no_el3_no_sve_and_no_ras() {
        // All fields at their highest.
        let value = register(4, 0).shown(0x1111_1111_1111_2222, SHOWN);
        assert_eq!(value & 0xf, 2);
        assert_eq!(value >> 4 & 0xf, 1);
        assert_eq!(value >> 8 & 0xff, 0, "EL2, EL3");
        assert_eq!(value >> 28 & 0xfff, 0, "RAS, SVE, SEL2");
        assert_eq!(value >> 40 & 0xff, 0, "MPAM, AMU");
    }

    #[test]
    fn floating_point_that_is_absent_stays_absent() {
        assert_eq!(register(4, 0).shown(0x00ff_0011, SHOWN), 0x00ff_0011);
    }

    #[test]
    fn the_address_size_is_cut_to_the_vms() {
        assert_eq!(register(7, 0).shown(0x6, SHOWN) & 0xf, 2);
        assert_eq!(register(7, 0).shown(0x1, SHOWN) & 0xf, 1);
        assert_eq!(register(7, 0).shown(0x6, Shown { ipa_bits: 48 }) & 0xf, 5);
    }

    #[test]
    fn the_pmu_is_hidden_in_both_views() {
        assert_eq!(register(5, 0).shown(0xf00f_0f0f_0f6f, SHOWN) >> 8 & 0xf, 0);
        assert_eq!(register(1, 2).shown(0x0600_0006, SHOWN), 0x6);
    }

    #[test]
    fn unknown_registers_read_as_zero() {
        for (crm, op2) in [
            (4, 2),
            (4, 4),
            (4, 5),
            (5, 1),
            (5, 4),
            (6, 3),
            (7, 3),
            (7, 4),
            (7, 7),
        ] {
            assert_eq!(register(crm, op2).shown(u64::MAX, SHOWN), 0, "{crm} {op2}");
        }
    }

    #[test]
    fn the_syndrome_of_an_id_register_read_names_it() {
        // mrs x0, id_aa64mmfr2_el1: op0 3, op1 0, CRn 0, CRm 7, op2 2, read
        let iss = 3 << 20 | 2 << 17 | 7 << 1 | 1;
        assert_eq!(IdRegister::of(iss), Some(register(7, 2)));
        // mrs x0, midr_el1 (CRm 0) and actlr_el1 (CRn 1) are not among them.
        assert_eq!(IdRegister::of(3 << 20 | 1), None);
        assert_eq!(IdRegister::of(3 << 20 | 1 << 17 | 1 << 10 | 1), None);
    }

    proptest! {
        #[test]
        fn nothing_is_shown_that_the_cpu_does_not_have(crm in 1_u8..8, op2 in 0_u8..8, host in any::<u64>()) {
            let shown = register(crm, op2).shown(host, SHOWN);
            for shift in (0..64).step_by(4) {
                let (is, was) = (shown >> shift & 0xf, host >> shift & 0xf);
                assert!(is <= was, "field at {shift}: {is} of {was}");
            }
        }
    }
}
