//! A neighbour with memory and a device of its own, which others must not touch.

use power_guests::edu::{BUFFER, Direction, Edu};
use power_guests::options::Options;
use power_guests::tce::{self, READ, WRITE};
use power_guests::{cpu, println, wait};

use crate::memory::{self, SOURCE, TARGET};
use crate::{Failure, fail};

/// Every so many beats there is a DMA.
const DMA_EVERY: u64 = 10;

pub(crate) fn run(edu: Edu, bridge: u64, options: Options) -> Result<(), Failure> {
    let beats = options.number("beats").unwrap_or(100);
    let period = cpu::ticks(options.number("period_us").unwrap_or(100_000));
    let end = options.memory();
    let window = tce::default_window(bridge);
    memory::plant(end);
    memory::fill(SOURCE, BUFFER, 2);
    for (at, page) in [(0x7000, SOURCE), (0x8000, TARGET)] {
        if tce::put(window, at, page | READ | WRITE) != 0 {
            return fail("an entry is refused", [page, 0]);
        }
    }
    let Some(source) = edu.function.message() else {
        return fail("there is no message for the device", [0, 0]);
    };
    println!("dma watch: source {source:#x}");
    let mut next = cpu::now();
    let (mut latest, mut forged) = (0, 0);
    for beat in 1..=beats {
        next += period;
        wait::until(next);
        latest = latest.max(cpu::now() - next);
        let before = wait::came(source);
        forged += before - (beat - 1) - forged;
        edu.raise();
        wait::take();
        let now = wait::came(source);
        if now == before {
            return fail("a message of the device is lost", [beat, now]);
        }
        forged += now - before - 1;
        if beat.is_multiple_of(DMA_EVERY) {
            memory::zero(TARGET, BUFFER);
            edu.dma(Direction::Read, 0x7000, 0, BUFFER);
            edu.dma(Direction::Write, 0x8000, 0, BUFFER);
            if let Some(at) = memory::differ(SOURCE, TARGET, BUFFER) {
                return fail("the device's DMA goes elsewhere", [at, beat]);
            }
        }
    }
    if let Some(at) = memory::trampled(end) {
        return fail("memory has changed", [at, memory::read(at)]);
    }
    let strange = wait::strange(source);
    if strange != 0 {
        return fail("interrupts of sources that are not its", [strange, 0]);
    }
    println!(
        "dma verdict: watch ok: beats={beats} latest_us={} memory_kib={} forged={forged}",
        latest * 1_000_000 / cpu::FREQUENCY,
        end >> 10
    );
    Ok(())
}
