//! Measures what exits cost: `cargo xtask bench traps`.
//!
//! Everything is counted with the virtual counter. On a machine that counts one tick for each
//! instruction executed, the hypervisor's included (QEMU's `max` CPU with `-icount shift=0`), the
//! figures are instructions; each is net of an empty measurement. With two CPUs on one host thread
//! the counter adds up what both execute: an SGI's way from one CPU to the other is the sender's
//! and the receiver's instructions, one after the other, with nothing overlapping as it would on
//! hardware.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "the guest reads and writes registers")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use guests::exception::{Frame, Kind};
use guests::options::Options;
use guests::platform::{GICD, UART, VIRTUAL_TIMER};
use guests::{cpu, gic, guest, println, psci, write_register};

guest! { main: main, secondary: secondary, exception: exception }

/// Measurements of each kind.
const RUNS: usize = 400;
/// The first ones fill the emulator's caches and are left out.
const WARM_UP: usize = 16;
/// An address with nothing at it.
const NOWHERE: usize = 0x0b00_0000;
/// A function identifier that nobody knows: vendor-specific hypervisor service 0xbeef.
const UNKNOWN_CALL: u64 = 0xc600_beef;
/// Between setting the timer and its time, in ticks.
const LEAD: u64 = 20_000;
/// Times the other CPU is given way before it counts as lost.
const PATIENCE: u32 = 1_000_000;

/// When the last exception reached its vector.
static ENTERED: AtomicU64 = AtomicU64::new(0);
/// SGIs that the second CPU has handled, and when it handled the last one.
static HANDLED: AtomicU64 = AtomicU64::new(0);
static HANDLED_AT: AtomicU64 = AtomicU64::new(0);
/// Whether the second CPU is ready for them.
static READY: AtomicU64 = AtomicU64::new(0);

const SGI_TO_SELF: u64 = 1;
const SGI_TO_OTHER: u64 = 2;

fn main(_: Options) -> ! {
    println!("bench counter: {} Hz", cpu::frequency());
    gic::start_distributor();
    gic::start_cpu(0xffff | 1 << VIRTUAL_TIMER);
    // Taken twice: the first takes the compiler's and the emulator's surprises.
    let _ = sample(0, empty);
    let empty = report("empty-loop", sample(0, empty));

    report("hvc-unknown", sample(empty, hvc));
    report("pl011-read", sample(empty, || read(UART + 0x18)));
    report("pl011-write", sample(empty, || write(UART + 0x44)));
    report("gicd-read", sample(empty, || read(GICD + gic::GICD_TYPER)));
    report(
        "gicd-read-isenabler",
        sample(empty, || read(GICD + gic::GICD_ISENABLER1)),
    );
    report("abort-injection", sample(empty, abort));
    report("sgi-to-self", sample(empty, sgi_to_self));
    report("timer-to-handler", sample(empty, timer_to_handler));
    report("wfi-wake-up", sample(empty, wfi));
    report("wfi-ready", sample(empty, wfi_ready));
    match cpu::start(1) {
        0 => {
            wait_for(&READY, 1);
            report("sgi-send", sample(empty, sgi_send));
            report("sgi-to-other", sample(empty, sgi_to_other));
            READY.store(2, Ordering::SeqCst);
            wait_for(&READY, 3);
            report("sgi-to-other-in-wfi", sample(empty, sgi_to_other));
        }
        status => println!("bench: CPU 1 does not start: {:#x}", status),
    }
    println!("bench end");
    psci::system_off()
}

/// Handles SGIs: first as a CPU that is busy, then as one that waits.
fn secondary(_: usize) -> ! {
    gic::start_cpu(0xffff);
    cpu::unmask();
    READY.store(1, Ordering::SeqCst);
    while READY.load(Ordering::SeqCst) == 1 {
        cpu::give_way();
    }
    READY.store(3, Ordering::SeqCst);
    loop {
        cpu::wait();
    }
}

fn exception(frame: &mut Frame) {
    match frame.kind() {
        Kind::Irq => {
            let intid = gic::acknowledge();
            if u64::from(intid) == SGI_TO_OTHER {
                HANDLED_AT.store(frame.entered, Ordering::SeqCst);
                HANDLED.fetch_add(1, Ordering::SeqCst);
            } else {
                ENTERED.store(frame.entered, Ordering::SeqCst);
            }
            if intid == VIRTUAL_TIMER {
                cpu::stop_timer();
            }
            gic::end(intid);
        }
        Kind::Synchronous => {
            ENTERED.store(frame.entered, Ordering::SeqCst);
            frame.skip();
        }
        kind => panic!("{kind:?} at {:#x}", frame.pc),
    }
}

fn wait_for(flag: &AtomicU64, value: u64) {
    for _ in 0..PATIENCE {
        if flag.load(Ordering::SeqCst) >= value {
            return;
        }
        cpu::give_way();
    }
    panic!(
        "the other CPU is lost: {} of {value}",
        flag.load(Ordering::SeqCst)
    );
}

/// Measurements, sorted.
struct Sample([u64; RUNS]);

/// Measures: `work` returns the ticks that one time took, from which `empty` are taken off.
fn sample(empty: u64, work: impl Fn() -> u64) -> Sample {
    let mut times = [0; RUNS];
    for _ in 0..WARM_UP {
        work();
    }
    for time in &mut times {
        *time = work().saturating_sub(empty);
    }
    times.sort_unstable();
    Sample(times)
}

/// Prints a row; returns the median.
fn report(name: &str, Sample(times): Sample) -> u64 {
    let median = times[RUNS / 2];
    let (least, most) = (times[0], times[RUNS - 1]);
    println!("bench {name}: {median} instructions (min {least}, max {most}, {RUNS} runs)");
    median
}

/// Ticks between two readings of the counter with `$instructions` between them.
macro_rules! ticks {
    ($($line:literal,)* ; $($operand:tt)*) => {{
        let (before, after): (u64, u64);
        // SAFETY: reads the counter around one harmless access of the guest's.
        unsafe {
            asm!(
                "isb",
                "mrs {before}, cntvct_el0",
                $($line,)*
                "isb",
                "mrs {after}, cntvct_el0",
                before = out(reg) before,
                after = out(reg) after,
                $($operand)*
            );
        }
        (before, after)
    }};
}

fn difference((before, after): (u64, u64)) -> u64 {
    after.wrapping_sub(before)
}

/// From a time until the exception that followed.
fn until_entered(before: u64) -> u64 {
    ENTERED.load(Ordering::SeqCst).wrapping_sub(before)
}

fn empty() -> u64 {
    difference(ticks!(; options(nostack)))
}

fn hvc() -> u64 {
    difference(
        ticks!("hvc #0",; inout("x0") UNKNOWN_CALL => _, out("x1") _, out("x2") _, out("x3") _),
    )
}

fn read(address: usize) -> u64 {
    difference(ticks!("ldr {value:w}, [{address}]",; address = in(reg) address, value = out(reg) _))
}

fn write(address: usize) -> u64 {
    difference(ticks!("str wzr, [{address}]",; address = in(reg) address))
}

/// From a read of an address with nothing at it to the vector.
fn abort() -> u64 {
    let (before, _) =
        ticks!("ldr {value:w}, [{address}]",; address = in(reg) NOWHERE, value = out(reg) _);
    until_entered(before)
}

/// From the write of the register to the vector.
fn sgi_to_self() -> u64 {
    ENTERED.store(0, Ordering::SeqCst);
    cpu::unmask();
    let value = gic::sgi(cpu::index(), SGI_TO_SELF);
    let (before, _) = ticks!("msr icc_sgi1r_el1, {value}",; value = in(reg) value);
    while ENTERED.load(Ordering::SeqCst) == 0 {}
    cpu::mask();
    until_entered(before)
}

/// The sender's part: the write of the register alone, to the other CPU.
fn sgi_send() -> u64 {
    let handled = HANDLED.load(Ordering::SeqCst);
    let value = gic::sgi(1, SGI_TO_OTHER);
    let times = ticks!("msr icc_sgi1r_el1, {value}",; value = in(reg) value);
    wait_for(&HANDLED, handled + 1);
    difference(times)
}

/// From the write of the register on this CPU to the vector on the other.
fn sgi_to_other() -> u64 {
    let handled = HANDLED.load(Ordering::SeqCst);
    let value = gic::sgi(1, SGI_TO_OTHER);
    let (before, _) = ticks!("msr icc_sgi1r_el1, {value}",; value = in(reg) value);
    wait_for(&HANDLED, handled + 1);
    // The other CPU goes on to where it waits.
    for _ in 0..4 {
        cpu::give_way();
    }
    HANDLED_AT.load(Ordering::SeqCst).wrapping_sub(before)
}

/// From the timer's time to the vector.
fn timer_to_handler() -> u64 {
    ENTERED.store(0, Ordering::SeqCst);
    let at = cpu::now() + LEAD;
    cpu::set_timer(at);
    cpu::unmask();
    while ENTERED.load(Ordering::SeqCst) == 0 {}
    cpu::mask();
    until_entered(at)
}

/// From the timer's time to the instruction behind WFI, with interrupts masked.
fn wfi() -> u64 {
    let at = cpu::now() + LEAD;
    cpu::set_timer(at);
    let (_, after) = ticks!("wfi",; options(nostack));
    write_register!("cntv_ctl_el0", 0);
    // Drained, so that the next one is a new interrupt.
    cpu::unmask();
    cpu::mask();
    after.wrapping_sub(at)
}

/// WFI that has nothing to wait for: an interrupt is pending, and masked.
fn wfi_ready() -> u64 {
    cpu::set_timer(0);
    let times = ticks!("wfi",; options(nostack));
    write_register!("cntv_ctl_el0", 0);
    cpu::unmask();
    cpu::mask();
    difference(times)
}
