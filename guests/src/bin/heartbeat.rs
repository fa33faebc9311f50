//! A neighbour that notices when it is held up: a beat each period of its own time, and at the end
//! the longest gap.
//!
//! Options: `beats=N` (default 100), `period_us=N` (10000), `limit_us=N` (a beat that comes later than
//! this is missed; the period), `stall=N` (at beat N the guest itself sleeps through three beats: to
//! see that a miss is seen).
#![no_std]
#![no_main]

use guests::exception::{Frame, Kind};
use guests::options::Options;
use guests::platform::VIRTUAL_TIMER;
use guests::{cpu, gic, guest, println, psci};

guest! { main: main, secondary: secondary, exception: exception }

fn main(options: Options) -> ! {
    let beats = options.number("beats").unwrap_or(100);
    let period_us = options.number("period_us").unwrap_or(10_000).max(1);
    let limit_us = options.number("limit_us").unwrap_or(period_us);
    let stall = options.number("stall");
    let us_of_ticks = |ticks: u64| ticks.saturating_mul(1_000_000) / cpu::frequency().max(1);
    let period = cpu::ticks(period_us).max(1);
    let limit = cpu::ticks(limit_us);

    gic::start_distributor();
    gic::start_cpu(1 << VIRTUAL_TIMER);
    println!("heartbeat start: {beats} beats, period {period_us} us, limit {limit_us} us");
    let (mut longest_gap, mut latest, mut missed) = (0, 0, 0_u64);
    let mut before = cpu::now();
    let mut next = before.saturating_add(period);
    for beat in 1..=beats {
        if stall == Some(beat) {
            cpu::wait_until(next.saturating_add(period.saturating_mul(3)), || false);
        }
        cpu::wait_until(next, || false);
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
    psci::system_off()
}

fn secondary(_: usize) -> ! {
    panic!("the heartbeat has one CPU")
}

fn exception(frame: &mut Frame) {
    let intid = gic::acknowledge();
    match (frame.kind(), intid) {
        (Kind::Irq, VIRTUAL_TIMER) => {
            cpu::stop_timer();
            gic::end(intid);
        }
        // It was withdrawn meanwhile.
        (Kind::Irq, 1020..) => {}
        (kind, _) => panic!("{kind:?}, interrupt {intid}, at {:#x}", frame.pc),
    }
}
