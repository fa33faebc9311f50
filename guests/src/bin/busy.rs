//! A guest that only computes, and counts how far it comes in a window of time: what its share of a CPU is.
//!
//! Options: `windows=N` (default 5), `window_ms=N` (500). The windows follow each other without a gap.
#![no_std]
#![no_main]

use guests::exception::Frame;
use guests::options::Options;
use guests::{cpu, guest, println, psci};

guest! { main: main, secondary: secondary, exception: exception }

fn main(options: Options) -> ! {
    let windows = options.number("windows").unwrap_or(5);
    let window_ms = options.number("window_ms").unwrap_or(500).max(1);
    let ticks = cpu::frequency().saturating_mul(window_ms) / 1000;
    println!("busy start: {windows} windows of {window_ms} ms");
    let mut end = cpu::now();
    for window in 1..=windows {
        end = end.saturating_add(ticks);
        let mut iterations = 0_u64;
        while cpu::now() < end {
            iterations += 1;
        }
        println!("busy window {window}: {iterations} iterations");
    }
    println!("busy end: {windows} windows");
    psci::system_off()
}

fn secondary(_: usize) -> ! {
    panic!("the busy guest has one CPU")
}

fn exception(frame: &mut Frame) {
    panic!("{:?} at {:#x}", frame.kind(), frame.pc)
}
