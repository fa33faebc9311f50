//! Two CPUs that wake each other, over and over, out of `H_CEDE`: no wake-up gets lost, whenever it comes.

use core::sync::atomic::{AtomicU64, Ordering};

use power_guests::cage::{self, Left};
use power_guests::options::Options;
use power_guests::{cpu, hcall, println, rtas};

/// With what the second CPU is started for this.
pub(crate) const ARGUMENT: usize = 2000;
/// A wait that nobody has ended after this is one whose end got lost. (A CPU of the machine's may lose its turn for long.)
const LOST_US: u64 = 5_000_000;
/// Who waits spins first for as long as this at most, so that what wakes it comes before its wait, in it and after it.
const SPIN_TICKS: u64 = cpu::ticks(20);

/// Every so many rounds a CPU waits only when it has been sent the round: what wakes it came while it did not wait, and
/// where both are on one CPU of the machine's while the other one had that. It must end the next wait all the same.
const LATE: u64 = 128;

/// As many rounds as are played.
static ROUNDS: AtomicU64 = AtomicU64::new(0);
/// The last round that each CPU was sent.
static SENT: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static LOST: AtomicU64 = AtomicU64::new(0);
static WAITS: AtomicU64 = AtomicU64::new(0);

/// Wakes a CPU, in one of two ways.
fn wake(other: u64, by_prod: bool) {
    if by_prod {
        hcall::call(hcall::PROD, [other, 0, 0, 0]);
    } else {
        hcall::call(hcall::IPI, [other, 4, 0, 0]);
    }
}

extern "C" fn cede(_: u64, _: u64) {
    hcall::call(hcall::CEDE, [0; 4]);
}

/// Takes back what another CPU has asked for.
fn take(this: u64) {
    let (_, accepted) = hcall::call(hcall::XIRR, [0; 4]);
    if accepted & 0xff_ffff != 0 {
        hcall::call(hcall::IPI, [this, 0xff, 0, 0]);
        hcall::call(hcall::EOI, [accepted, 0, 0, 0]);
    }
}

/// Waits until the CPU has been sent the round.
fn wait_for(this: usize, round: u64) {
    let spin_until = cpu::now() + round.wrapping_mul(0x9e37_79b9) % SPIN_TICKS;
    while cpu::now() < spin_until {}
    if round.is_multiple_of(LATE) {
        while SENT[this].load(Ordering::SeqCst) < round {}
        wait(this);
    }
    while SENT[this].load(Ordering::SeqCst) < round {
        wait(this);
    }
}

/// Waits once, until something ends it.
fn wait(this: usize) {
    cpu::set_decrementer(cpu::ticks(LOST_US).cast_signed());
    WAITS.fetch_add(1, Ordering::Relaxed);
    match cage::run(cede, 0, 0) {
        Left::Completed => {}
        Left::Exception(0x500) => take(this as u64),
        // Where there was a prod or an interrupt it would have come before.
        Left::Exception(0x900) => {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Left::Exception(vector) => panic!("vector {vector:#x} at {:#x?}", cage::last(this)),
    }
    cpu::set_decrementer(i64::from(i32::MAX));
}

/// The rounds of one CPU. It is `this` one's turn first when it is 0.
fn play(this: usize, rounds: u64) {
    hcall::call(hcall::CPPR, [0xff, 0, 0, 0]);
    let other = 1 - this;
    for round in 1..=rounds {
        if this == 1 {
            wait_for(this, round);
        }
        SENT[other].store(round, Ordering::SeqCst);
        wake(other as u64, (round + this as u64).is_multiple_of(3));
        if this == 0 {
            wait_for(this, round);
        }
    }
}

pub(crate) fn second() -> ! {
    cage::enter_cpu(1);
    cpu::set_decrementer(i64::from(i32::MAX));
    play(1, ROUNDS.load(Ordering::SeqCst));
    rtas::stop_self(1)
}

pub(crate) fn run(options: Options) {
    let rounds = options.number("rounds").unwrap_or(20_000);
    ROUNDS.store(rounds, Ordering::SeqCst);
    if rtas::start_second(ARGUMENT as u32) != 0 {
        println!("platform FAILED: the second CPU does not start");
        return;
    }
    play(0, rounds);
    println!(
        "platform verdict: wakes rounds={rounds} waits={} lost={}",
        WAITS.load(Ordering::Relaxed),
        LOST.load(Ordering::Relaxed)
    );
}
