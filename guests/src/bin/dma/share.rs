//! How far a guest comes in windows of time, while its devices flood or while another's do: what its share of a CPU is.
//!
//! For `flood` windows its devices make faults of stage 1 without a pause while it computes, for `idle` windows more
//! while it sleeps. For the rest of its `windows` (of `window_ms` each) it computes. With `refused=1` its first device
//! writes where nothing is, once in each window: what is told of that must not drown in what others do.

use guests::edu::{AtTheEnd, BUFFER, Direction};
use guests::options::Options;
use guests::smmu::Smmu;
use guests::{cpu, println};

use crate::{Devices, Summary, Verdict};

/// Windows that are counted.
const MOST: usize = 16;
/// Nothing of a guest's is there: what floods, and what is told of.
const NOWHERE: u64 = 0x20_0000_0000;
const TOLD: u64 = 0x30_0000_0000;
/// How often devices are looked after, in microseconds.
const LOOK_US: u64 = 2_000;
/// Rounds of a step: about a microsecond.
const ROUNDS: u32 = 400;

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
        while cpu::now() < end {
            if let (true, Some(source)) = (floods, &mut source) {
                source.keep();
            }
            let next = end.min(cpu::now().saturating_add(cpu::ticks(LOOK_US)));
            if floods && at >= flood {
                cpu::wait_until(next, || false);
            } else {
                *count += compute(next);
            }
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
    ]))
}

/// Steps until then, by the clock: a CPU that was away counts nothing meanwhile.
#[inline(never)]
fn compute(until: u64) -> u64 {
    let mut steps = 0;
    while cpu::now() < until {
        // To read the clock is dear where instructions are counted.
        for _ in 0..ROUNDS {
            core::hint::black_box(());
        }
        steps += 1;
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
