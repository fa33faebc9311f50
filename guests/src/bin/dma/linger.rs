//! A guest that goes in the middle of a DMA that is to interrupt. The next one that has the device, the
//! same VM's or another's, must see neither arrive.
//!
//! Each life looks first, with the device's message routed: memory that the last life's DMA was to write
//! must be, and stay, zero, and no message may come. Then it starts such a DMA, and goes. Started
//! without end, it never gives a verdict if all is well: it says `dma linger: …` each time.

use core::sync::atomic::Ordering;

use guests::edu::{AtTheEnd, BUFFER, Direction};
use guests::its::command;
use guests::options::Options;
use guests::{cpu, println, psci};

use crate::memory::{self, SOURCE, TARGET};
use crate::{Devices, Failure, RECEIVED, Verdict, await_lpis, lpis, start_messages};

/// Longer than a DMA takes, in microseconds.
const LONG: u64 = 150_000;

pub(crate) fn run(options: &Options) -> Verdict {
    let after_us = options.number("after_us").unwrap_or(50_000);
    let look_us = options.number("look_us").unwrap_or(LONG);
    let devices = Devices::open()?;
    let mut its = start_messages(&devices)?;
    for edu in devices.iter() {
        if edu.is_busy() {
            return Err("a device still does what an earlier life told it".into());
        }
    }
    // What another life, or another VM's, may have left under way arrives meanwhile.
    cpu::unmask();
    cpu::sleep_us(look_us);
    cpu::mask();
    let messages: u64 = (0..crate::LPIS).map(lpis).sum();
    if messages + RECEIVED.strange.load(Ordering::SeqCst) > 0 {
        return Err(Failure(
            "a message of an earlier life has arrived",
            [messages, 0, 0],
        ));
    }
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
    memory::fill(SOURCE, BUFFER, 5);
    for edu in devices.iter() {
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
    // And so does a message.
    let before = lpis(0);
    let function = edu.function.0.into();
    its.run(&[command::about(command::INT, function, 0)])?;
    await_lpis(0, before + 1)?;
    edu.raise(1);
    await_lpis(0, before + 2)?;
    edu.acknowledge(u32::MAX);
    for edu in devices.iter() {
        edu.start(Direction::Write, TARGET, 0, BUFFER, AtTheEnd::Interrupt);
    }
    println!(
        "dma linger: nothing came of before, {} DMAs under way",
        devices.count()
    );
    cpu::sleep_us(after_us);
    if memory::read(TARGET) != 0 {
        println!("dma linger: too late, it has arrived");
    }
    if options.number("reset").unwrap_or(0) != 0 {
        psci::system_reset()
    } else {
        psci::system_off()
    }
}
