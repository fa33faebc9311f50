//! The end: registers, backtrace, verdict, power-off.

use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use boot::Verdict;
use smccc::{Hvc, Smc, psci};

use crate::console::{self, LastWords};
use crate::image;

/// 0: PSCI by SMC, 1: by HVC.
static CONDUIT: AtomicU32 = AtomicU32::new(0);

/// How often a report of the end has begun, over all CPUs.
static REPORTS: AtomicU64 = AtomicU64::new(0);

/// PSCI calls go by HVC from now on: this is not EL2, so somebody else is there.
pub(crate) fn use_hvc() {
    CONDUIT.store(1, Ordering::Relaxed);
}

/// Turns the machine off.
pub(crate) fn power_off() -> ! {
    let _ = match CONDUIT.load(Ordering::Relaxed) {
        0 => psci::system_off::<Smc>(),
        _ => psci::system_off::<Hvc>(),
    };
    // A machine without PSCI cannot be turned off.
    park()
}

/// Stops this CPU for good.
pub(crate) fn park() -> ! {
    loop {
        aarch64_cpu::asm::wfi();
    }
}

/// Prints the verdict and turns the machine off.
pub(crate) fn end(verdict: Verdict<'_>) -> ! {
    console::close();
    let _ = writeln!(LastWords::new(), "{verdict}");
    power_off()
}

/// Begins the report of a fatal event. The first caller gets a console; a second event while the
/// first is being reported cuts the report short; another CPU's is left to the first.
pub(crate) fn begin() -> LastWords {
    match REPORTS.fetch_add(1, Ordering::AcqRel) {
        0 => {
            console::close();
            LastWords::new()
        }
        1 => end(Verdict::Fatal("failed again while reporting a failure")),
        _ => power_off(),
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut out = begin();
    let _ = writeln!(
        out,
        "\nbulkhead: PANIC on CPU {}: {info}",
        crate::cpu::index()
    );
    let _ = registers(&mut out);
    let _ = backtrace(&mut out, frame_pointer());
    end(Verdict::Fatal("panic"))
}

fn registers(out: &mut LastWords) -> core::fmt::Result {
    use aarch64_cpu::registers::{
        CurrentEL, HCR_EL2, MPIDR_EL1, Readable, SCTLR_EL2, SP, TTBR0_EL2, VBAR_EL2,
    };
    writeln!(
        out,
        "  el {} mpidr {:#x} sp {:#x}",
        CurrentEL.get() >> 2,
        MPIDR_EL1.get(),
        SP.get()
    )?;
    if CurrentEL.get() >> 2 == 2 {
        writeln!(
            out,
            "  sctlr_el2 {:#x} hcr_el2 {:#x} ttbr0_el2 {:#x} vbar_el2 {:#x}",
            SCTLR_EL2.get(),
            HCR_EL2.get(),
            TTBR0_EL2.get(),
            VBAR_EL2.get()
        )?;
    }
    Ok(())
}

fn frame_pointer() -> u64 {
    let fp: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, x29", out(reg) fp, options(nomem, nostack)) };
    fp
}

/// Prints the return addresses along the frame chain, as offsets into the image, which is how the
/// ELF file numbers its symbols.
pub(crate) fn backtrace(out: &mut LastWords, frame: u64) -> core::fmt::Result {
    const DEPTH: usize = 32;
    writeln!(out, "  backtrace (addresses; offsets into the image):")?;
    let mut frame = frame;
    for _ in 0..DEPTH {
        if !crate::cpu::on_a_stack(frame) || !frame.is_multiple_of(16) {
            return Ok(());
        }
        // SAFETY: the frame record lies on a mapped stack of ours.
        let [next, address] = unsafe { read_frame(frame) };
        let Some(offset) = image::offset(address) else {
            return Ok(());
        };
        writeln!(out, "    {address:#018x} +{offset:#x}")?;
        // Frames lie towards higher addresses; anything else is not a frame chain.
        if next <= frame {
            return Ok(());
        }
        frame = next;
    }
    Ok(())
}

/// # Safety
/// `frame` must be the address of 16 readable bytes.
unsafe fn read_frame(frame: u64) -> [u64; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "usize is 64 bits here")]
    let pointer = core::ptr::with_exposed_provenance::<[u64; 2]>(frame as usize);
    // SAFETY: passed on to the caller.
    unsafe { pointer.read_volatile() }
}
