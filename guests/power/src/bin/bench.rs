//! Measures what exits cost: `cargo xtask bench traps --board pseries`, and with the word `tce` what entries
//! of DMA windows do: `cargo xtask bench tce`.
//!
//! Everything is counted with the time base. Under QEMU's `-icount shift=0` an instruction takes a
//! nanosecond, the hypervisor's included, and what the platform below does takes none: so a figure is
//! the guest's and the hypervisor's own instructions, net of an empty measurement.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use power_guests::cage::{self, Left};
use power_guests::options::Options;
use power_guests::pci::Function;
use power_guests::{cpu, guest, hcall, println, rtas, tce};

guest! { main: main, secondary: secondary }

/// Measurements of each kind.
const RUNS: usize = 100;
/// Operations of each measurement: the time base is coarser than an instruction.
const BATCH: u64 = 32;
/// The first measurements fill the emulator's caches and are left out.
const WARM_UP: usize = 8;
/// A call that nobody knows.
const UNKNOWN: u64 = 0x3fc;
/// Ticks between setting the decrementer and its time: 250 Hz.
const PERIOD: u64 = cpu::FREQUENCY / 250;

fn main(options: Options) -> ! {
    println!("bench counter: {} Hz", cpu::FREQUENCY);
    cpu::set_decrementer(i64::from(i32::MAX));
    let _ = sample(0, || {});
    let empty = report("empty-loop", sample(0, || {}));
    report(
        "hcall-unknown",
        sample(empty, || ignore(hcall::call(UNKNOWN, [0; 4]))),
    );
    if options.command() == Some("tce") {
        translations(empty);
        direct(empty, options.memory());
        println!("bench end");
        rtas::power_off()
    }
    report(
        "hcall-cppr",
        sample(empty, || ignore(hcall::call(hcall::CPPR, [0xff, 0, 0, 0]))),
    );
    report(
        "hcall-xirr",
        sample(empty, || ignore(hcall::call(hcall::XIRR, [0; 4]))),
    );
    report("hcall-ipi-to-self", sample(empty, ipi));
    report(
        "rtas-unknown",
        sample(empty, || ignore(rtas::service::<1>(0, 0x2fff, &[]))),
    );
    report(
        "rtas-query-cpu",
        sample(empty, || ignore(rtas::service::<2>(0, 0x2005, &[0]))),
    );
    hcall::call(hcall::PROD, [0, 0, 0, 0]);
    report("prod-and-cede", sample(empty, prod_and_cede));
    report(
        "machine-check",
        sample(empty, || ignore(cage::run(nowhere, 1 << 40, 0))),
    );
    timer();
    println!("bench end");
    rtas::power_off()
}

/// What an operation gives is of no interest.
fn ignore<T>(_: T) {}

/// Two calls: a request, and its taking back.
fn ipi() {
    hcall::call(hcall::IPI, [0, 4, 0, 0]);
    hcall::call(hcall::IPI, [0, 0xff, 0, 0]);
}

/// Two calls: the second does not wait. It lets interrupts through, which nothing wants.
fn prod_and_cede() {
    hcall::call(hcall::PROD, [0; 4]);
    hcall::call(hcall::CEDE, [0; 4]);
    cpu::mask();
}

extern "C" fn nowhere(at: u64, _: u64) {
    let at = core::ptr::with_exposed_provenance::<u64>(usize::try_from(at).unwrap_or(0));
    #[expect(unsafe_code, reason = "a load that is meant to fail")]
    // SAFETY: nothing is there, and the cage brings the CPU back.
    let _ = unsafe { at.read_volatile() };
}

/// The default window's table of the VM's one host bridge.
const LIOBN: u64 = 0x8000_0000;
/// Entries of a list.
const LIST: usize = 512;
/// Memory that translations lead to.
const MEMORY: u64 = 0x10_0000;

#[repr(C, align(4096))]
struct List([AtomicU64; LIST]);

static IN_A_ROW: List = List([const { AtomicU64::new(0) }; LIST]);
static SCATTERED: List = List([const { AtomicU64::new(0) }; LIST]);

/// What entries of DMA windows cost, by each call. What writes is measured with what takes it back.
fn translations(empty: u64) {
    let tce = |page: u64| (MEMORY + (page << 12)) | 3;
    for (page, (row, scattered)) in (0..).zip(IN_A_ROW.0.iter().zip(&SCATTERED.0)) {
        row.store(tce(page).to_be(), Ordering::Relaxed);
        scattered.store(tce(page * 7 % 512).to_be(), Ordering::Relaxed);
    }
    let put = |at: u64, tce: u64| done(hcall::call(hcall::PUT_TCE, [LIOBN, at << 12, tce, 0]));
    let list = |at: u64, list: &'static List| {
        let address = core::ptr::from_ref(list).expose_provenance() as u64;
        done(hcall::call(
            hcall::PUT_TCE_INDIRECT,
            [LIOBN, at << 21, address, LIST as u64],
        ));
    };
    let stuff = |at: u64| {
        done(hcall::call(
            hcall::STUFF_TCE,
            [LIOBN, at << 21, 0, LIST as u64],
        ));
    };
    let [write, clear] = turns(empty, |n| put(n, tce(n * 7 % 512)), |n| put(n, 0));
    report("tce-put", write);
    report("tce-clear", clear);
    (0..BATCH).for_each(|n| put(n, tce(n)));
    let [exchange, _] = turns(empty, |n| put(n, tce(n + 1)), |n| put(n, tce(n)));
    report("tce-exchange", exchange);
    (0..BATCH).for_each(|n| put(n, 0));
    let [write, clear] = turns(empty, |n| list(n, &IN_A_ROW), stuff);
    report("tce-list", write);
    report("tce-stuff", clear);
    let [write, clear] = turns(empty, |n| list(n, &SCATTERED), stuff);
    report("tce-list-scattered", write);
    report("tce-stuff-scattered", clear);
}

/// All of the guest's memory in a window with pages of 64 KiB, by lists, as Linux maps it.
fn direct(empty: u64, bytes: u64) {
    const PAGE: u64 = 0x1_0000;
    const STEP: usize = LIST << 16;
    let window = tce::create_window(Function::new(0, 0, 0), 16, bytes.ilog2());
    let (liobn, base) = match window {
        Ok(window) => window,
        Err(status) => panic!("no window: {status}"),
    };
    let list = core::ptr::from_ref(&IN_A_ROW).expose_provenance() as u64;
    let mut figures = [0; 3];
    for figure in &mut figures {
        let mut ticks = 0;
        for first in (0..bytes).step_by(STEP) {
            for (at, entry) in (0..).zip(&IN_A_ROW.0) {
                entry.store(((first + at * PAGE) | 3).to_be(), Ordering::Relaxed);
            }
            let before = cpu::now();
            done(hcall::call(
                hcall::PUT_TCE_INDIRECT,
                [liobn, base + first, list, LIST as u64],
            ));
            ticks += cpu::now() - before;
        }
        *figure = ticks * 1_000_000_000 / cpu::FREQUENCY;
        for first in (0..bytes).step_by(STEP) {
            done(hcall::call(
                hcall::STUFF_TCE,
                [liobn, base + first, 0, LIST as u64],
            ));
        }
    }
    figures.sort_unstable();
    let [least, median, most] = figures.map(|figure| figure.saturating_sub(empty));
    println!("bench tce-direct-2g: {median} instructions (min {least}, max {most}, 3 runs)");
}

fn done((status, _): (i64, u64)) {
    assert!(status == 0, "a call answers {status}");
}

/// Median, least and most of two operations that take turns, each with the number of the operation.
fn turns(empty: u64, one: impl Fn(u64), other: impl Fn(u64)) -> [[u64; 3]; 2] {
    let mut figures = [[0; RUNS]; 2];
    for run in 0..RUNS + WARM_UP {
        let times = [timed(empty, &one), timed(empty, &other)];
        let Some(at) = run.checked_sub(WARM_UP) else {
            continue;
        };
        for (figures, time) in figures.iter_mut().zip(times) {
            figures[at] = time;
        }
    }
    figures.map(|mut figures| {
        figures.sort_unstable();
        [figures[RUNS / 2], figures[0], figures[RUNS - 1]]
    })
}

/// Nanoseconds of an operation.
fn timed(empty: u64, operation: impl Fn(u64)) -> u64 {
    let before = cpu::now();
    for number in 0..BATCH {
        operation(number);
    }
    let ticks = cpu::now() - before;
    (ticks * 1_000_000_000 / cpu::FREQUENCY / BATCH).saturating_sub(empty)
}

/// How late the decrementer's interrupt comes, 250 times a second: in nanoseconds.
fn timer() {
    let (mut least, mut most, mut sum) = (u64::MAX, 0, 0);
    const TIMES: u64 = 50;
    for _ in 0..TIMES {
        let due = cpu::now().wrapping_add(PERIOD);
        let mut now = cpu::now();
        cpu::set_decrementer(due.wrapping_sub(now).cast_signed());
        while now < due {
            if cage::run(cede, 0, 0) != Left::Completed {
                now = cpu::now();
            }
        }
        let late = now.wrapping_sub(due) * 1000 / 512;
        (least, most, sum) = (least.min(late), most.max(late), sum + late);
        cpu::set_decrementer(i64::from(i32::MAX));
    }
    println!(
        "bench timer-late-ns: {} instructions (min {least}, max {most}, {TIMES} runs)",
        sum / TIMES
    );
}

extern "C" fn cede(_: u64, _: u64) {
    hcall::call(hcall::CEDE, [0; 4]);
}

/// Median, least and most of an operation in nanoseconds, which are instructions.
fn sample(empty: u64, operation: impl Fn()) -> [u64; 3] {
    let mut figures = [0; RUNS];
    for run in 0..RUNS + WARM_UP {
        let before = cpu::now();
        for _ in 0..BATCH {
            operation();
        }
        let ticks = cpu::now() - before;
        if let Some(figure) = run.checked_sub(WARM_UP).and_then(|at| figures.get_mut(at)) {
            *figure = (ticks * 1_000_000_000 / cpu::FREQUENCY / BATCH).saturating_sub(empty);
        }
    }
    figures.sort_unstable();
    [figures[RUNS / 2], figures[0], figures[RUNS - 1]]
}

fn report(name: &str, [median, least, most]: [u64; 3]) -> u64 {
    println!("bench {name}: {median} instructions (min {least}, max {most}, {RUNS} runs)");
    median
}

fn secondary(_: usize) -> ! {
    panic!("the bench has one CPU")
}
