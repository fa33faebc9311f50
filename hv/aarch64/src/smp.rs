//! Secondary CPUs: started by PSCI, each on a stack of its own.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

use hal::{Clock, FrameAllocator, OutOfFrames};
use smccc::{Smc, psci};
use types::{Pa, Span};

use crate::console::SystemCounter;
use crate::cpu::{self, Cpu, STACK_BYTES};
use crate::entry;
use crate::mmu::Map;

/// How long a CPU may take from `CPU_ON` to its first Rust: firmware may have to power a cluster.
const START_TIMEOUT_US: u64 = 1_000_000;

/// One bit for each CPU that has reached Rust.
static ONLINE: AtomicU64 = AtomicU64::new(1);

/// What a secondary reads before it has a map or a stack. The entry code knows the offsets.
#[repr(C, align(64))]
struct Start {
    ttbr: u64,
    stack_top: u64,
    cpu: u64,
    mair: u64,
    tcr: u64,
    sctlr: u64,
}

/// Why a CPU is not there.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failure {
    /// No memory for its stack.
    Frames(OutOfFrames),
    /// The stack could not be mapped.
    Map,
    /// Firmware refused.
    Psci(psci::Error),
    /// Firmware agreed, and nothing came.
    Silent,
}

impl core::fmt::Display for Failure {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Frames(error) => write!(f, "no stack: {error}"),
            Self::Map => write!(f, "its stack could not be mapped"),
            Self::Psci(error) => write!(f, "PSCI CPU_ON refused: {error}"),
            Self::Silent => write!(f, "PSCI CPU_ON succeeded, but it never arrived"),
        }
    }
}

/// Starts CPU `index` (1 and up) with affinity `mpidr` and waits until it has arrived.
pub(crate) fn start(
    index: usize,
    mpidr: u64,
    frames: &impl FrameAllocator,
    map: &mut Map,
) -> Result<(), Failure> {
    let order = (STACK_BYTES / 4096).trailing_zeros();
    let order = u8::try_from(order).unwrap_or(u8::MAX);
    let stack = frames.alloc_zeroed(order).map_err(Failure::Frames)?;
    let emergency = frames.alloc_zeroed(1).map_err(Failure::Frames)?;
    let span = Span::from_len(stack, STACK_BYTES).ok_or(Failure::Map)?;
    let (bottom, top) = cpu::secondary_stack(index);
    map.data_at(bottom, span).map_err(|_| Failure::Map)?;
    let emergency_stack_top = emergency.bits() + 2 * 4096;
    let cpu: &'static Cpu = Box::leak(Box::new(Cpu {
        emergency_stack_top,
        index,
        mpidr,
    }));
    let registers = map.registers();
    let start: &'static Start = Box::leak(Box::new(Start {
        ttbr: registers.ttbr,
        stack_top: top.bits(),
        cpu: core::ptr::from_ref(cpu).expose_provenance() as u64,
        mair: registers.mair,
        tcr: registers.tcr,
        sctlr: registers.sctlr,
    }));
    let start = core::ptr::from_ref(start).expose_provenance();
    clean(start);
    psci::cpu_on::<Smc>(mpidr, entry::secondary_address(), start as u64).map_err(Failure::Psci)?;
    let deadline = SystemCounter.ticks() + SystemCounter.ticks_of_us(START_TIMEOUT_US);
    while ONLINE.load(Ordering::Acquire) & 1 << index == 0 {
        if SystemCounter.ticks() > deadline {
            return Err(Failure::Silent);
        }
        hal::relax();
    }
    Ok(())
}

/// Writes the line at `address` back to memory: the CPU that reads it has its caches off.
fn clean(address: usize) {
    // SAFETY: cache maintenance by address changes no value.
    unsafe {
        core::arch::asm!("dc cvac, {}", "dsb sy", in(reg) address, options(nostack));
    };
}

/// How many CPUs have arrived.
pub(crate) fn online() -> u32 {
    ONLINE.load(Ordering::Acquire).count_ones()
}

/// The first Rust of a secondary CPU: MMU on, own stack, `TPIDR_EL2` set.
pub(crate) extern "C" fn secondary(cpu: &'static Cpu) -> ! {
    ONLINE.fetch_or(1 << cpu.index, Ordering::AcqRel);
    if crate::RUNS_VMS {
        crate::guest::serve(cpu.index)
    }
    crate::panic::park()
}

/// The boot CPU's data.
pub(crate) fn boot_cpu() -> &'static Cpu {
    Box::leak(Box::new(Cpu {
        emergency_stack_top: crate::image::emergency_stack_top(),
        index: 0,
        mpidr: cpu::mpidr(),
    }))
}

/// The emergency stacks' frames are part of RAM; only their addresses are kept.
const _: () = assert!(size_of::<Start>() <= 64 && size_of::<Pa>() == 8);
