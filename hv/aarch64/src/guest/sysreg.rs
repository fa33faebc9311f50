//! Trapped system registers.

use armv8::{IdRegister, Shown};

use super::context::read_register;

/// What a trapped `MSR`, `MRS` or system instruction is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The register reads as this.
    Value(u64),
    /// Nothing happens.
    Ignored,
    /// An SGI is sent: the value written.
    SendSgi,
    /// An interrupt is deactivated: the value written.
    Deactivate,
    /// The register does not exist for the guest.
    Undefined,
}

/// op0, op1, CRn, CRm, op2, as one number in the order of the ISS without Rt and direction.
const fn encoding(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | crm << 1
}

/// All fields of the ISS but Rt and direction.
const REGISTER: u32 = 0x003f_fc1e;

const ICC_SGI1R: u32 = encoding(3, 0, 12, 11, 5);
const ICC_ASGI1R: u32 = encoding(3, 0, 12, 11, 6);
const ICC_SGI0R: u32 = encoding(3, 0, 12, 11, 7);
const ICC_DIR: u32 = encoding(3, 0, 12, 11, 1);
const ICC_SRE: u32 = encoding(3, 0, 12, 12, 5);
const ACTLR: u32 = encoding(3, 0, 1, 0, 1);
const DC_ISW: u32 = encoding(1, 0, 7, 6, 2);
const DC_CSW: u32 = encoding(1, 0, 7, 10, 2);
const DC_CISW: u32 = encoding(1, 0, 7, 14, 2);

/// Judges a trapped access.
pub(crate) fn judge(iss: u32, shown: Shown) -> Effect {
    let is_read = iss & 1 == 1;
    if let Some(register) = IdRegister::of(iss) {
        return match is_read {
            true => Effect::Value(register.shown(host_value(register), shown)),
            false => Effect::Undefined,
        };
    }
    match (iss & REGISTER, is_read) {
        (ICC_SGI1R, false) => Effect::SendSgi,
        // Group 0 and other-state SGIs: this GIC has neither.
        (ICC_SGI0R | ICC_ASGI1R, false) => Effect::Ignored,
        (ICC_DIR, false) => Effect::Deactivate,
        // There is no interface but the system registers: it traps where there is one in memory, too.
        (ICC_SRE, true) => Effect::Value(7),
        (ICC_SRE, false) => Effect::Ignored,
        (ACTLR, true) => Effect::Value(0),
        (ACTLR, false) => Effect::Ignored,
        // Memory is coherent for the guest whatever it does by set and way.
        (DC_ISW | DC_CSW | DC_CISW, false) => Effect::Ignored,
        _ => Effect::Undefined,
    }
}

macro_rules! id_registers {
    ($register:expr, $($crm:literal $op2:literal $name:literal;)*) => {
        match ($register.crm, $register.op2) {
            $(($crm, $op2) => read_register!($name),)*
            _ => 0,
        }
    };
}

/// What the CPU itself says.
fn host_value(register: IdRegister) -> u64 {
    id_registers! { register,
        1 0 "s3_0_c0_c1_0"; 1 1 "s3_0_c0_c1_1"; 1 2 "s3_0_c0_c1_2"; 1 3 "s3_0_c0_c1_3";
        1 4 "s3_0_c0_c1_4"; 1 5 "s3_0_c0_c1_5"; 1 6 "s3_0_c0_c1_6"; 1 7 "s3_0_c0_c1_7";
        2 0 "s3_0_c0_c2_0"; 2 1 "s3_0_c0_c2_1"; 2 2 "s3_0_c0_c2_2"; 2 3 "s3_0_c0_c2_3";
        2 4 "s3_0_c0_c2_4"; 2 5 "s3_0_c0_c2_5"; 2 6 "s3_0_c0_c2_6"; 2 7 "s3_0_c0_c2_7";
        3 0 "s3_0_c0_c3_0"; 3 1 "s3_0_c0_c3_1"; 3 2 "s3_0_c0_c3_2";
        3 4 "s3_0_c0_c3_4"; 3 5 "s3_0_c0_c3_5"; 3 6 "s3_0_c0_c3_6";
        4 0 "s3_0_c0_c4_0"; 4 1 "s3_0_c0_c4_1";
        5 0 "s3_0_c0_c5_0";
        6 0 "s3_0_c0_c6_0"; 6 1 "s3_0_c0_c6_1"; 6 2 "s3_0_c0_c6_2";
        7 0 "s3_0_c0_c7_0"; 7 1 "s3_0_c0_c7_1"; 7 2 "s3_0_c0_c7_2";
    }
}
