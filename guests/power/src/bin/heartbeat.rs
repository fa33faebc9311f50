//! A neighbour that notices when it is held up: a beat each period of its own time, and at the end
//! the longest gap.
//!
//! Options: `beats=N` (default 100), `period_us=N` (10000), `limit_us=N` (a beat that comes later than
//! this is missed; the period), `stall=N` (at beat N the guest itself sleeps through three beats: to
//! see that a miss is seen).
#![no_std]
#![no_main]

use power_guests::cage::{self, Left};
use power_guests::options::Options;
use power_guests::{cpu, guest, hcall, println, rtas};

guest! { main: main, secondary: secondary }

fn main(options: Options) -> ! {
    let beats = options.number("beats").unwrap_or(100);
    let period_us = options.number("period_us").unwrap_or(10_000).max(1);
    let limit_us = options.number("limit_us").unwrap_or(period_us);
    let stall = options.number("stall");
    let us_of_ticks = |ticks: u64| ticks.saturating_mul(1_000_000) / cpu::FREQUENCY;
    let period = cpu::ticks(period_us);
    let limit = cpu::ticks(limit_us);
    println!("heartbeat start: {beats} beats, period {period_us} us, limit {limit_us} us");
    let (mut longest_gap, mut latest, mut missed) = (0, 0, 0_u64);
    let mut before = cpu::now();
    let mut next = before.saturating_add(period);
    for beat in 1..=beats {
        if stall == Some(beat) {
            wait_until(next.saturating_add(period.saturating_mul(3)));
        }
        wait_until(next);
        let now = cpu::now();
        let late = now.saturating_sub(next);
        longest_gap = longest_gap.max(now.saturating_sub(before));
        latest = latest.max(late);
        if late >= limit {
            missed += 1;
        }
        println!("beat {beat}");
        before = now;
        // The schedule stays what it was: a beat that comes late does not excuse the next one.
        next = next.saturating_add(period);
    }
    println!(
        "heartbeat end: beats={beats} longest_gap_us={} latest_us={} missed={missed}",
        us_of_ticks(longest_gap),
        us_of_ticks(latest)
    );
    rtas::power_off()
}

fn wait_until(when: u64) {
    loop {
        let left = when.saturating_sub(cpu::now());
        if left == 0 {
            return;
        }
        cpu::set_decrementer(left.cast_signed());
        match cage::run(cede, 0, 0) {
            Left::Exception(0x900) | Left::Completed => {}
            Left::Exception(vector) => panic!("vector {vector:#x} at {:#x?}", cage::last(0)),
        }
        cpu::set_decrementer(i64::from(i32::MAX));
    }
}

extern "C" fn cede(_: u64, _: u64) {
    hcall::call(hcall::CEDE, [0; 4]);
}

fn secondary(_: usize) -> ! {
    panic!("the heartbeat has one CPU")
}
