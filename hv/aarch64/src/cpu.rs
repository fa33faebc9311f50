//! What each CPU has of its own.

use types::{Pa, Va};

use crate::image;

/// Size of a stack, and of the guard below it; stacks are aligned to twice that, so that bit 15 of
/// a good stack pointer is set. The vectors and the linker script rely on it.
pub(crate) const STACK_BYTES: u64 = 32 * 1024;

/// The window in which the stacks of secondary CPUs are mapped, each above its guard. It lies at
/// the top of the 48-bit space, above any physical address that is mapped to itself.
pub(crate) const STACK_WINDOW: u64 = 0xffff_0000_0000;

/// Most CPUs the hypervisor uses.
pub(crate) const MAX_CPUS: usize = 64;

/// One CPU's own data, reached through `TPIDR_EL2`.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Cpu {
    /// For exceptions that find the stack unusable. The vectors know its offset: 0.
    pub(crate) emergency_stack_top: u64,
    /// The number in the hypervisor, counted from 0 (the boot CPU).
    pub(crate) index: usize,
    /// Affinity fields of `MPIDR_EL1`.
    pub(crate) mpidr: u64,
}

/// The stack of secondary CPU `index` (from 1): bottom and top.
pub(crate) fn secondary_stack(index: usize) -> (Va, Va) {
    let block = STACK_WINDOW + (index as u64) * 2 * STACK_BYTES;
    (
        Va::truncated(block + STACK_BYTES),
        Va::truncated(block + 2 * STACK_BYTES),
    )
}

/// Whether the address lies on the boot CPU's stacks or in the window of the others.
pub(crate) fn on_a_stack(address: u64) -> bool {
    let boot = image::boot_guard().last().bits()..image::emergency_stack_top();
    let window = STACK_WINDOW..STACK_WINDOW + (MAX_CPUS as u64 + 1) * 2 * STACK_BYTES;
    boot.contains(&address) || (window.contains(&address) && address & STACK_BYTES != 0)
}

/// This CPU's number; 0 before it has one.
pub(crate) fn index() -> usize {
    use aarch64_cpu::registers::{CurrentEL, Readable, TPIDR_EL2};
    if CurrentEL.get() >> 2 != 2 {
        return 0;
    }
    #[expect(clippy::cast_possible_truncation, reason = "usize is 64 bits here")]
    let cpu = core::ptr::with_exposed_provenance::<Cpu>(TPIDR_EL2.get() as usize);
    // SAFETY: TPIDR_EL2 is zero or was set, by `adopt` or at a secondary's entry, to a `Cpu` that
    // lives for ever.
    unsafe { cpu.as_ref() }.map_or(0, |cpu| cpu.index)
}

/// Makes `cpu` this CPU's data.
pub(crate) fn adopt(cpu: &'static Cpu) {
    use aarch64_cpu::registers::{TPIDR_EL2, Writeable};
    TPIDR_EL2.set(core::ptr::from_ref(cpu).expose_provenance() as u64);
}

/// This CPU's affinity, as `MPIDR_EL1` has it and the device tree's `reg` names it.
pub(crate) fn mpidr() -> u64 {
    use aarch64_cpu::registers::{MPIDR_EL1, Readable};
    MPIDR_EL1.get() & 0xff_00ff_ffff
}

/// Where a `Pa` of the hypervisor's own is found: the map is the identity.
#[expect(clippy::cast_possible_truncation, reason = "usize is 64 bits here")]
pub(crate) fn identity(pa: Pa) -> usize {
    pa.bits() as usize
}
