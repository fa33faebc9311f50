//! Calls to the platform's hypervisor.

use core::arch::asm;

/// Call numbers [LoPAPR §14.5]; those from 0xf000 on are QEMU's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Hcall {
    GetTce = 0x1c,
    PutTce = 0x20,
    GetTermChar = 0x54,
    PutTermChar = 0x58,
    Eoi = 0x64,
    Cppr = 0x68,
    Ipi = 0x6c,
    Xirr = 0x74,
    Cede = 0xe0,
    StuffTce = 0x138,
    PutTceIndirect = 0x13c,
    GetCpuCharacteristics = 0x1c8,
    SetMode = 0x31c,
    IntGetSourceInfo = 0x3a8,
    IntSetSourceConfig = 0x3ac,
    IntSetQueueConfig = 0x3b8,
    IntEsb = 0x3c8,
    IntReset = 0x3d0,
    Rtas = 0xf000,
    VofClient = 0xf005,
    SetPartitionTable = 0xf800,
    EnterNested = 0xf804,
    TlbInvalidate = 0xf808,
}

/// What a call gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Zero for success; the meaning of others depends on the call.
    pub(crate) status: i64,
    /// r4 to r6.
    pub(crate) values: [u64; 3],
}

/// `H_FUNCTION`: the platform does not know the call.
pub(crate) const FUNCTION: i64 = -2;
/// `H_SUCCESS`.
pub(crate) const SUCCESS: i64 = 0;

/// Performs a call with up to four arguments.
///
/// # Safety
/// The call must not make the platform write to memory that is in use, nor change the CPU's state
/// in a way that this program does not expect.
#[inline(always)]
pub(crate) unsafe fn call(number: Hcall, arguments: [u64; 4]) -> Outcome {
    let (status, values);
    let [mut r4, mut r5, mut r6, r7] = arguments;
    // SAFETY: the registers that a call may change are named [LoPAPR §14.5.3]; the rest is the
    // caller's promise.
    unsafe {
        asm!(
            "sc 1",
            inout("r3") number as u64 => status,
            inout("r4") r4,
            inout("r5") r5,
            inout("r6") r6,
            inout("r7") r7 => _,
            out("r0") _,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
            out("r12") _,
            out("ctr") _,
            out("lr") _,
            out("xer") _,
            out("cr0") _,
            out("cr1") _,
            out("cr5") _,
            out("cr6") _,
            out("cr7") _,
        );
    }
    values = [r4, r5, r6];
    Outcome { status, values }
}

/// As [`call`], with five arguments.
///
/// # Safety
/// As [`call`].
pub(crate) unsafe fn call_with_five(number: Hcall, arguments: [u64; 5]) -> i64 {
    let status: i64;
    let [r4, r5, r6, r7, r8] = arguments;
    // SAFETY: as in `call`.
    unsafe {
        asm!(
            "sc 1",
            inout("r3") number as u64 => status,
            inout("r4") r4 => _,
            inout("r5") r5 => _,
            inout("r6") r6 => _,
            inout("r7") r7 => _,
            inout("r8") r8 => _,
            out("r0") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
            out("r12") _,
            out("ctr") _,
            out("lr") _,
            out("xer") _,
            out("cr0") _,
            out("cr1") _,
            out("cr5") _,
            out("cr6") _,
            out("cr7") _,
        );
    }
    status
}

/// Refusal of `H_SET_MODE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("H_SET_MODE resource {resource} answers {status}")]
pub(crate) struct ModeRefused {
    resource: u64,
    status: i64,
}

fn set_mode(flags: u64, resource: u64, values: [u64; 2]) -> Result<(), ModeRefused> {
    let [first, second] = values;
    // SAFETY: the resources used here change how interrupts arrive and which stores are watched,
    // both of which the callers below want.
    let outcome = unsafe { call(Hcall::SetMode, [flags, resource, first, second]) };
    match outcome.status {
        SUCCESS => Ok(()),
        status => Err(ModeRefused { resource, status }),
    }
}

/// Interrupts of every CPU arrive in little-endian mode from now on. [LoPAPR §14.5.4.3.8]
pub(crate) fn little_endian_interrupts() -> Result<(), ModeRefused> {
    set_mode(1, 4, [0, 0])
}

/// Every store of this CPU to the 512 bytes at `address`, a multiple of 512, becomes a data storage
/// interrupt from now on. [Power ISA 3.1B Book III §10.4]
pub(crate) fn watch_stores(address: u64) -> Result<(), ModeRefused> {
    const LENGTH_512: u64 = 63 << 10;
    const IGNORE_TRANSLATION: u64 = 1 << 3;
    const STORES: u64 = 1 << 6;
    const PRIVILEGED: u64 = 1 << 1;
    set_mode(
        0,
        2,
        [
            address,
            LENGTH_512 | STORES | IGNORE_TRANSLATION | PRIVILEGED,
        ],
    )
}

/// Nothing is watched on this CPU from now on.
pub(crate) fn watch_nothing() -> Result<(), ModeRefused> {
    set_mode(0, 2, [0, 0])
}
