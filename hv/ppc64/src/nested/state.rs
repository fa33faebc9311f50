//! What `H_ENTER_NESTED` reads and writes: in the byte order of the platform's host, which is ours.
//! [LoPAPR has it not; Linux Documentation/arch/powerpc/kvm-nested.rst, "version 1"]

/// The layout below: version 2.
pub(super) const VERSION: u64 = 2;

/// The state of a guest CPU that only a hypervisor sees. Aligned so that it lies in one page.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(256))]
pub(crate) struct HvState {
    pub(super) version: u64,
    pub(super) lpid: u32,
    pub(super) vcpu_token: u32,
    pub(super) lpcr: u64,
    pub(super) pcr: u64,
    pub(super) amor: u64,
    pub(super) dpdes: u64,
    pub(super) hfscr: u64,
    pub(super) tb_offset: i64,
    pub(super) dawr0: u64,
    pub(super) dawrx0: u64,
    pub(super) ciabr: u64,
    pub(super) hdec_expiry: u64,
    pub(super) purr: u64,
    pub(super) spurr: u64,
    pub(super) ic: u64,
    pub(super) vtb: u64,
    pub(super) hdar: u64,
    pub(super) hdsisr: u64,
    pub(super) heir: u64,
    pub(super) asdr: u64,
    pub(super) srr0: u64,
    pub(super) srr1: u64,
    pub(super) sprg: [u64; 4],
    pub(super) pidr: u64,
    pub(super) cfar: u64,
    pub(super) ppr: u64,
    pub(super) dawr1: u64,
    pub(super) dawrx1: u64,
}

/// The general state of a guest CPU. The fields behind `ccr` are neither read nor written.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(512))]
pub(crate) struct Registers {
    pub(crate) gpr: [u64; 32],
    pub(crate) nip: u64,
    pub(crate) msr: u64,
    pub(super) orig_gpr3: u64,
    pub(crate) ctr: u64,
    pub(crate) link: u64,
    pub(crate) xer: u64,
    pub(crate) ccr: u64,
    pub(super) unused: [u64; 5],
}

const _: () = assert!(core::mem::offset_of!(HvState, hdec_expiry) == 88);
const _: () = assert!(core::mem::offset_of!(HvState, srr0) == 160);
const _: () = assert!(core::mem::offset_of!(HvState, dawrx1) == 240);
const _: () = assert!(size_of::<HvState>() == 256);
const _: () = assert!(core::mem::offset_of!(Registers, ccr) == 304);
const _: () = assert!(core::mem::offset_of!(Registers, unused) == 312);
