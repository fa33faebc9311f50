//! A guest that goes in the middle of a DMA. The next one at the same place must not see it arrive.
//!
//! Each life looks first: memory that the last life's DMA was to write must be, and stay, zero. Then it
//! starts such a DMA, and goes. Restarted without end, it never gives a verdict if all is well: it says
//! `dma linger: …` each time.

use guests::edu::{AtTheEnd, BUFFER, Direction};
use guests::options::Options;
use guests::{cpu, println, psci};

use crate::memory::{self, SOURCE, TARGET};
use crate::{Devices, Failure, Verdict};

/// Longer than a DMA takes, in microseconds.
const LONG: u64 = 150_000;

pub(crate) fn run(options: &Options) -> Verdict {
    let after_us = options.number("after_us").unwrap_or(50_000);
    // What another life, or another VM's, may have left under way arrives meanwhile.
    cpu::sleep_us(LONG);
    let words = (0..BUFFER).step_by(8);
    if let Some(at) = words
        .map(|at| TARGET + at)
        .find(|&at| memory::read(at) != 0)
    {
        return Err(Failure(
            "a DMA of an earlier life has arrived",
            [at, memory::read(at), 0],
        ));
    }
    let devices = Devices::open()?;
    memory::fill(SOURCE, BUFFER, 5);
    for edu in devices.iter() {
        if edu.is_busy() {
            return Err("a device still does what an earlier life told it".into());
        }
        edu.transfer(Direction::Read, SOURCE, 0, BUFFER)?;
    }
    // The control: such a DMA arrives if it is let be.
    let edu = devices.first();
    edu.transfer(Direction::Write, TARGET + BUFFER, 0, BUFFER)?;
    if let Some(at) = memory::differs(SOURCE, TARGET + BUFFER, BUFFER) {
        return Err(Failure(
            "a DMA that was let be did not arrive",
            [at, memory::read(at), 0],
        ));
    }
    for edu in devices.iter() {
        edu.start(Direction::Write, TARGET, 0, BUFFER, AtTheEnd::Silence);
    }
    cpu::sleep_us(after_us);
    let is_early = memory::read(TARGET) == 0;
    println!(
        "dma linger: nothing came of before, {} DMAs under way: {}",
        devices.count(),
        if is_early { "going" } else { "late" }
    );
    if options.number("reset").unwrap_or(0) != 0 {
        psci::system_reset()
    } else {
        psci::system_off()
    }
}
