//! A guest that only computes, and counts how far it comes in a window of time: what its share of a CPU is.
//!
//! Options: `windows=N` (default 5), `window_ms=N` (500), `cpus=N` (1). The windows follow each other without a
//! gap. Of several CPUs all compute, and the first counts how far all have come.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use guests::exception::Frame;
use guests::options::Options;
use guests::{cpu, guest, println, psci};

guest! { main: main, secondary: secondary, exception: exception }

/// Windows that are counted.
const MOST: usize = 16;

/// How far each CPU has come in each window.
static ITERATIONS: [[AtomicU64; cpu::MAX_CPUS]; MOST] =
    [const { [const { AtomicU64::new(0) }; cpu::MAX_CPUS] }; MOST];
/// When the first window begins, and the ticks of one.
static START: AtomicU64 = AtomicU64::new(0);
static TICKS: AtomicU64 = AtomicU64::new(1);

/// Computes until the window is over, by the clock: a CPU that was away counts nothing meanwhile. The same
/// code for all CPUs, so that their steps are alike.
#[inline(never)]
fn compute(cpu: usize, last: u64) {
    let (start, ticks) = (START.load(Ordering::Relaxed), TICKS.load(Ordering::Relaxed));
    loop {
        let window = (cpu::now() - start).checked_div(ticks).unwrap_or(u64::MAX);
        if window > last {
            return;
        }
        let row = usize::try_from(window)
            .ok()
            .and_then(|at| ITERATIONS.get(at));
        if let Some(count) = row.and_then(|row| row.get(cpu)) {
            count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }
}

fn main(options: Options) -> ! {
    let windows = options.number("windows").unwrap_or(5).min(MOST as u64);
    let window_ms = options.number("window_ms").unwrap_or(500).max(1);
    let ticks = cpu::frequency().saturating_mul(window_ms) / 1000;
    TICKS.store(ticks, Ordering::Relaxed);
    START.store(cpu::now(), Ordering::Relaxed);
    for cpu in 1..options.number("cpus").unwrap_or(1) {
        let status = cpu::start(usize::try_from(cpu).unwrap_or(usize::MAX));
        assert_eq!(status, 0, "CPU {cpu} does not start");
    }
    println!("busy start: {windows} windows of {window_ms} ms");
    for (window, row) in (0..windows).zip(&ITERATIONS) {
        compute(0, window);
        let iterations: u64 = row.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        println!("busy window {}: {iterations} iterations", window + 1);
    }
    println!("busy end: {windows} windows");
    psci::system_off()
}

fn secondary(cpu: usize) -> ! {
    compute(cpu, u64::MAX - 1);
    psci::system_off()
}

fn exception(frame: &mut Frame) {
    panic!("{:?} at {:#x}", frame.kind(), frame.pc)
}
