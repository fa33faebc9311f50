//! The other CPUs: started by RTAS, each on stacks of its own.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use hal::{Clock, FrameAllocator, OutOfFrames};

use crate::console::TimeBase;
use crate::cpu::{self, Cpu};
use crate::hcall::{self, Hcall};
use crate::nested::Watched;
use crate::rtas::{self, Rtas};
use crate::{entry, guest, presentation, spr};

/// How long a CPU may take from `start-cpu` to its first Rust: the platform may have to schedule
/// it.
const START_TIMEOUT_US: u64 = 1_000_000;

/// CPUs that have reached Rust, the boot CPU with them.
static ONLINE: AtomicU64 = AtomicU64::new(1);

/// The others that have arrived, in this order.
static OTHERS: hal::Mutex<Vec<&'static Cpu>> = hal::Mutex::new(Vec::new());

/// The CPUs that have arrived, the boot CPU first.
pub(crate) fn cpus() -> Vec<&'static Cpu> {
    let mut all = Vec::from([&cpu::BOOT_CPU]);
    all.extend_from_slice(&OTHERS.lock());
    all
}

/// Why a CPU is not there.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("no stack: {0}")]
    Frames(#[from] OutOfFrames),
    #[error("start-cpu: {0}")]
    Rtas(#[from] rtas::Error),
    #[error("start-cpu agreed, but it never arrived")]
    Silent,
}

/// Starts CPU `number` (1 and up), which the platform calls `server`, and waits until it has
/// arrived.
pub(crate) fn start(
    number: u64,
    server: u32,
    rtas: &Rtas,
    frames: &impl FrameAllocator,
) -> Result<(), Failure> {
    let order = (cpu::STACKS / 4096).trailing_zeros();
    let stacks = frames.alloc_zeroed(u8::try_from(order).unwrap_or(u8::MAX))?;
    let cpu: &'static Cpu = Box::leak(Box::new(Cpu::new(number, server.into())));
    // SAFETY: the frames are this CPU's from now on and are never given back.
    unsafe { cpu.set_stacks(stacks.bits()) };
    // The heap and the code lie below 4 GiB, which is as far as RTAS reaches.
    let argument = core::ptr::from_ref(cpu).expose_provenance() as u64;
    let before = online();
    // SAFETY: the CPU comes to the entry code with its `Cpu`, as that code expects.
    unsafe { rtas.start_cpu(server, entry::secondary_address(), argument) }?;
    let deadline = TimeBase.ticks() + TimeBase.ticks_of_us(START_TIMEOUT_US);
    while online() == before {
        if TimeBase.ticks() > deadline {
            return Err(Failure::Silent);
        }
        hal::relax();
    }
    OTHERS.lock().push(cpu);
    Ok(())
}

/// How many CPUs have arrived.
pub(crate) fn online() -> u64 {
    ONLINE.load(Ordering::Acquire)
}

/// Whether other CPUs watch over the ends of slices. It says the same from when the last one is online.
pub(crate) fn watched() -> Watched {
    match online() {
        1 => Watched::ByNobody,
        _ => Watched::ByOthers,
    }
}

/// The first Rust of a secondary CPU: on its own stack, SPRG0 set.
pub(crate) extern "C" fn secondary(cpu: &'static Cpu) -> ! {
    // What this CPU does not have, the boot CPU has reported for all.
    let _ = hcall::watch_stores(cpu.guard());
    ONLINE.fetch_add(1, Ordering::AcqRel);
    loop {
        spr::set_decrementer(WATCH_TICKS);
        // SAFETY: gives the thread back to the platform until an interrupt. The call returns with
        // interrupts on; the decrementer's vector returns, and no other interrupt is let through.
        let _ = unsafe { hcall::call(Hcall::Cede, [0; 4]) };
        spr::interrupts_off();
        assert!(cpu.guard_is_whole(), "the stack has overflowed");
        guest::watch_others();
        if crate::RUNS_VMS {
            // It does not come back once there are VMs.
            guest::serve();
        }
    }
}

/// Before there are VMs, an idle CPU looks after the boot CPU as often as this: 20 ms.
const WATCH_TICKS: i64 = 10_240_000;
/// How late a guest may leave before that is no delay any more: 10 ms.
const GRACE_TICKS: u64 = 5_120_000;

/// Makes a guest leave whose slice has not ended when it should: the platform may lose the end.
pub(crate) fn watch(cpu: &Cpu) {
    if cpu.is_late(spr::timebase(), GRACE_TICKS) {
        presentation::kick(cpu);
    }
}

/// Stops this CPU for good, at the lowest priority, so that the other threads of its core get on.
pub(crate) fn park() -> ! {
    loop {
        // SAFETY: sets the thread's priority to very low.
        unsafe { asm!("or 31, 31, 31", options(nomem, nostack)) };
    }
}
