//! How far a guest comes in windows of time, while its devices flood or while another's do: what its share of a CPU is.
//!
//! For `flood` windows its devices make faults of stage 1 without a pause while it computes, for `idle` windows more
//! while it sleeps. For the rest of its `windows` (of `window_ms` each) it computes. With `refused=1` its first device
//! writes where nothing is, once in each window: what is told of that must not drown in what others do.
//!
//! With `messages=N` a second CPU has the first device send messages without a pause for the first `N` windows. They are
//! the first CPU's, to which some must come in each window. Where CPUs share a host thread they take turns at each step
//! with `turns=1`.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guests::edu::{AtTheEnd, BUFFER, Direction};
use guests::options::Options;
use guests::smmu::Smmu;
use guests::{cpu, println, psci};

use crate::{Devices, Failure, ROLE, ROLE_MESSENGER, Summary, Verdict, lpis, start_messages};

/// Windows that are counted.
const MOST: usize = 16;
/// Nothing of a guest's is there: what floods, and what is told of.
const NOWHERE: u64 = 0x20_0000_0000;
const TOLD: u64 = 0x30_0000_0000;
/// How often devices are looked after, in microseconds.
const LOOK_US: u64 = 2_000;
/// Rounds of a step: about a microsecond.
const ROUNDS: u32 = 400;

/// The second CPU is to stop, and how many messages it has had sent.
static ENOUGH: AtomicBool = AtomicBool::new(false);
static RAISED: AtomicU64 = AtomicU64::new(0);

/// Has messages sent.
pub(crate) fn second_cpu() -> ! {
    if let Ok(devices) = Devices::open() {
        let edu = devices.first();
        while !ENOUGH.load(Ordering::Relaxed) {
            edu.raise(1);
            RAISED.fetch_add(1, Ordering::Relaxed);
            cpu::give_way();
        }
    }
    loop {
        psci::hvc(psci::CPU_OFF, [0; 3]);
    }
}

pub(crate) fn run(options: &Options) -> Verdict {
    let number = |name| options.number(name).unwrap_or(0);
    let windows = options.number("windows").unwrap_or(12).min(MOST as u64);
    let (flood, idle, refused) = (number("flood"), number("idle"), number("refused"));
    let window = cpu::ticks(options.number("window_ms").unwrap_or(1_000).max(1) * 1_000);
    let devices = Devices::open()?;
    let mut source = match flood + idle {
        0 => None,
        _ => Some(Flood {
            smmu: crate::smmu::start(&devices)?,
            devices,
            transfers: 0,
            events: 0,
        }),
    };
    let (messages, turns) = (number("messages"), number("turns") != 0);
    if messages != 0 {
        start_messages(&devices)?;
        ROLE.store(ROLE_MESSENGER, Ordering::SeqCst);
        if cpu::start(1) != 0 {
            return Err("there is no second CPU".into());
        }
    }
    let mut counts = [0_u64; MOST];
    let start = cpu::now();
    println!("dma beat 0");
    for (at, count) in (0..windows).zip(&mut counts) {
        if refused != 0 {
            let edu = devices.first();
            edu.wait()?;
            let page = TOLD + (at + 1) * BUFFER;
            edu.start(Direction::Write, page, 0, 64, AtTheEnd::Silence);
        }
        let end = start.saturating_add(window.saturating_mul(at + 1));
        let floods = at < flood + idle;
        let before = lpis(0);
        ENOUGH.store(at >= messages, Ordering::Relaxed);
        while cpu::now() < end {
            if let (true, Some(source)) = (floods, &mut source) {
                source.keep();
            }
            let next = end.min(cpu::now().saturating_add(cpu::ticks(LOOK_US)));
            if floods && at >= flood {
                cpu::wait_until(next, || false);
            } else {
                *count += compute(next, turns);
            }
            cpu::unmask();
            cpu::mask();
        }
        if at < messages && lpis(0) == before {
            return Err(Failure("no message came in a window", [at + 1, before, 0]));
        }
    }
    // Not before: a line takes time of whoever writes it.
    for (at, count) in (1..=windows).zip(&counts) {
        println!("dma window {at}: {count} steps");
    }
    let (transfers, events) = source.map_or((0, 0), |source| (source.transfers, source.events));
    Ok(Summary::new(&[
        ("windows", windows),
        ("transfers", transfers),
        ("events", events),
        ("messages", RAISED.load(Ordering::Relaxed)),
    ]))
}

/// Steps until then, by the clock: a CPU that was away counts nothing meanwhile.
#[inline(never)]
fn compute(until: u64, turns: bool) -> u64 {
    let mut steps = 0;
    while cpu::now() < until {
        // To read the clock is dear where instructions are counted.
        for _ in 0..ROUNDS {
            core::hint::black_box(());
        }
        steps += 1;
        if turns {
            cpu::give_way();
        }
    }
    steps
}

/// Devices that flood.
struct Flood {
    devices: Devices,
    smmu: Smmu,
    transfers: u64,
    events: u64,
}

impl Flood {
    /// Has each device that is done reach for another page, and takes what was told.
    fn keep(&mut self) {
        for edu in self.devices.iter().filter(|edu| !edu.is_busy()) {
            let page = NOWHERE + self.transfers % 0x1000 * BUFFER;
            edu.start(Direction::Write, page, 0, BUFFER, AtTheEnd::Silence);
            self.transfers += 1;
        }
        self.events += self.smmu.drain().0;
    }
}
