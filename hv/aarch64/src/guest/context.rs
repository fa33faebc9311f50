//! What a vCPU keeps in EL1 system registers and vector registers. Switched only when another vCPU
//! takes the core; an exit alone leaves it in place.

use core::arch::global_asm;

/// Reads a system register by name.
macro_rules! read {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reads a register of the guest's, which changes nothing.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack, nomem)) };
        value
    }};
}

/// Writes a system register by name.
macro_rules! write {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the register has no effect at EL2; it is the guest's.
        unsafe { core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack)) };
    }};
}

pub(crate) use {read as read_register, write as write_register};

macro_rules! context {
    ($($(#[$doc:meta])* $field:ident = $name:literal;)*) => {
        /// EL1 and EL0 system registers.
        #[derive(Clone, Debug, Default)]
        pub(crate) struct SystemContext {
            $($(#[$doc])* pub(crate) $field: u64,)*
        }

        impl SystemContext {
            /// Takes the registers from the core.
            pub(crate) fn save(&mut self) {
                $(self.$field = read!($name);)*
            }

            /// Puts the registers on the core.
            pub(crate) fn restore(&self) {
                $(write!($name, self.$field);)*
            }
        }
    };
}

context! {
    sctlr = "sctlr_el1";
    cpacr = "cpacr_el1";
    ttbr0 = "ttbr0_el1";
    ttbr1 = "ttbr1_el1";
    tcr = "tcr_el1";
    esr = "esr_el1";
    afsr0 = "afsr0_el1";
    afsr1 = "afsr1_el1";
    far = "far_el1";
    mair = "mair_el1";
    amair = "amair_el1";
    vbar = "vbar_el1";
    contextidr = "contextidr_el1";
    par = "par_el1";
    tpidr_el0 = "tpidr_el0";
    tpidrro_el0 = "tpidrro_el0";
    tpidr_el1 = "tpidr_el1";
    sp_el0 = "sp_el0";
    sp_el1 = "sp_el1";
    elr = "elr_el1";
    spsr = "spsr_el1";
    csselr = "csselr_el1";
    cntkctl = "cntkctl_el1";
    mdscr = "mdscr_el1";
    cntv_cval = "cntv_cval_el0";
    cntv_ctl = "cntv_ctl_el0";
}

macro_rules! keys {
    ($($field:ident = $name:literal;)*) => {
        /// Pointer authentication keys. [DDI 0487 D8.10]
        #[derive(Clone, Debug, Default)]
        pub(crate) struct Keys {
            $($field: u64,)*
        }

        impl Keys {
            /// Takes the keys from the core, which must have the feature.
            pub(crate) fn save(&mut self) {
                $(self.$field = read!($name);)*
            }

            /// Puts the keys on the core, which must have the feature.
            pub(crate) fn restore(&self) {
                $(write!($name, self.$field);)*
            }
        }
    };
}

keys! {
    apia_lo = "s3_0_c2_c1_0";
    apia_hi = "s3_0_c2_c1_1";
    apib_lo = "s3_0_c2_c1_2";
    apib_hi = "s3_0_c2_c1_3";
    apda_lo = "s3_0_c2_c2_0";
    apda_hi = "s3_0_c2_c2_1";
    apdb_lo = "s3_0_c2_c2_2";
    apdb_hi = "s3_0_c2_c2_3";
    apga_lo = "s3_0_c2_c3_0";
    apga_hi = "s3_0_c2_c3_1";
}

/// Floating-point and SIMD registers. The hypervisor itself uses none.
#[derive(Clone, Debug, Default)]
#[repr(C, align(16))]
pub(crate) struct VectorContext {
    q: [u128; 32],
    fpsr: u64,
    fpcr: u64,
}

macro_rules! all_vectors {
    ($op:literal) => {
        concat!(
            $op,
            " q0, q1, [x0]\n",
            $op,
            " q2, q3, [x0, #32]\n",
            $op,
            " q4, q5, [x0, #64]\n",
            $op,
            " q6, q7, [x0, #96]\n",
            $op,
            " q8, q9, [x0, #128]\n",
            $op,
            " q10, q11, [x0, #160]\n",
            $op,
            " q12, q13, [x0, #192]\n",
            $op,
            " q14, q15, [x0, #224]\n",
            $op,
            " q16, q17, [x0, #256]\n",
            $op,
            " q18, q19, [x0, #288]\n",
            $op,
            " q20, q21, [x0, #320]\n",
            $op,
            " q22, q23, [x0, #352]\n",
            $op,
            " q24, q25, [x0, #384]\n",
            $op,
            " q26, q27, [x0, #416]\n",
            $op,
            " q28, q29, [x0, #448]\n",
            $op,
            " q30, q31, [x0, #480]\n",
        )
    };
}

global_asm!(
    ".arch_extension fp",
    ".arch_extension simd",
    ".section .text.vectors_of_guests, \"ax\"",
    "save_vectors:",
    all_vectors!("stp"),
    "mrs x1, fpsr",
    "mrs x2, fpcr",
    "add x3, x0, #512",
    "stp x1, x2, [x3]",
    "ret",
    "restore_vectors:",
    all_vectors!("ldp"),
    "add x3, x0, #512",
    "ldp x1, x2, [x3]",
    "msr fpsr, x1",
    "msr fpcr, x2",
    "ret",
    ".arch_extension nosimd",
    ".arch_extension nofp",
);

unsafe extern "C" {
    fn save_vectors(context: *mut VectorContext);
    fn restore_vectors(context: *const VectorContext);
}

impl VectorContext {
    /// Takes the registers from the core.
    pub(crate) fn save(&mut self) {
        // SAFETY: stores into `self`, laid out as the assembly expects.
        unsafe { save_vectors(self) };
    }

    /// Puts the registers on the core.
    pub(crate) fn restore(&self) {
        // SAFETY: loads from `self`; the compiler uses no vector register.
        unsafe { restore_vectors(self) };
    }
}

/// The guest's vector register `n` while the vCPU is on the core.
pub(crate) fn read_vector(n: u8) -> u128 {
    let mut all = VectorContext::default();
    all.save();
    all.q.get(usize::from(n)).copied().unwrap_or(0)
}

/// Sets the guest's vector register `n` while the vCPU is on the core.
pub(crate) fn write_vector(n: u8, value: u128) {
    let mut all = VectorContext::default();
    all.save();
    if let Some(register) = all.q.get_mut(usize::from(n)) {
        *register = value;
    }
    all.restore();
}
