//! The end: registers, backtrace, verdict, power-off.

use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use boot::Verdict;

use crate::console::{self, LastWords};
use crate::cpu::{self, Cpu};
use crate::{entry, rtas, smp, spr, vectors};

/// The number of the CPU that reports the end; no CPU has the largest number.
static REPORTER: AtomicU64 = AtomicU64::new(u64::MAX);

/// How often that CPU has begun a report.
static REPORTS: AtomicU32 = AtomicU32::new(0);

/// Prints the verdict and turns the machine off.
pub(crate) fn end(verdict: Verdict<'_>) -> ! {
    let verdict = if cpu::this().guard_is_whole() {
        verdict
    } else {
        Verdict::Fatal("stack overflow")
    };
    console::close();
    let _ = writeln!(LastWords, "{verdict}");
    rtas::power_off()
}

/// Begins the report of a fatal event. A second event while the first is being reported cuts the
/// report short. Another CPU's is left out: the two would only mix, and the first powers off.
pub(crate) fn begin() -> LastWords {
    let me = cpu::this().number();
    let first = REPORTER.compare_exchange(u64::MAX, me, Ordering::AcqRel, Ordering::Acquire);
    if first.is_err_and(|first| first != me) {
        smp::park()
    }
    match REPORTS.fetch_add(1, Ordering::AcqRel) {
        0 => {
            console::close();
            LastWords
        }
        1 => end(Verdict::Fatal("failed again while reporting a failure")),
        _ => vectors::stop_hard(),
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let gpr = spr::general_registers();
    let mut out = begin();
    let cpu = cpu::this();
    let _ = writeln!(
        out,
        "\nbulkhead: PANIC on CPU {} (server {}): {info}",
        cpu.number(),
        cpu.server()
    );
    let _ = registers(&mut out, &gpr);
    let _ = writeln!(
        out,
        "  msr {:#x} pvr {:#x} dar {:#x} dsisr {:#x}",
        spr::msr(),
        spr::pvr(),
        spr::dar(),
        spr::dsisr()
    );
    let _ = backtrace(&mut out, cpu, spr::stack_pointer(), None);
    end(Verdict::Fatal("panic"))
}

/// Prints the general registers, four a line.
pub(crate) fn registers(out: &mut impl Write, gpr: &[u64; 32]) -> core::fmt::Result {
    for (i, four) in gpr.chunks(4).enumerate() {
        write!(out, " ")?;
        for (j, value) in four.iter().enumerate() {
            write!(out, " r{:<2} {value:016x}", i * 4 + j)?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Prints the return addresses along the back chain from the frame at `frame`, and before them the
/// link register, which is where a function without a frame returns to.
pub(crate) fn backtrace(
    out: &mut LastWords,
    cpu: &Cpu,
    frame: u64,
    link: Option<u64>,
) -> core::fmt::Result {
    const DEPTH: usize = 32;
    writeln!(out, "  backtrace:")?;
    if let Some(link) = link.filter(|link| is_code(*link)) {
        writeln!(out, "    {link:#x} (link register)")?;
    }
    let mut frame = frame;
    for _ in 0..DEPTH {
        if !cpu.on_a_stack(frame) {
            return Ok(());
        }
        let next = word(frame);
        // Frames lie towards higher addresses; anything else is not a back chain.
        if next <= frame || !cpu.on_a_stack(next) {
            return Ok(());
        }
        // The callee keeps its return address in its caller's frame. [ELFv2 ABI §2.2.2]
        let address = word(next + 16);
        if is_code(address) {
            writeln!(out, "    {address:#x}")?;
        }
        frame = next;
    }
    writeln!(out, "    ...")
}

fn is_code(address: u64) -> bool {
    let (start, end) = entry::image();
    (start..end).contains(&address) && address.is_multiple_of(4)
}

fn word(address: u64) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "usize is 64 bits here")]
    let pointer = core::ptr::with_exposed_provenance::<u64>(address as usize);
    // SAFETY: the caller has found the address on one of this CPU's stacks.
    unsafe { pointer.read_volatile() }
}
