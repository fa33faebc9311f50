//! Interrupt pins as levels: kept off, left up, shared by two devices.

use core::sync::atomic::Ordering;

use guests::options::Options;
use guests::pci::{BUS_MASTER, INTERRUPT_DISABLE, MEMORY_SPACE};
use guests::{cpu, gic, println};

use crate::{Devices, Failure, Summary, TAKEN_IN, Verdict, shared};

pub(crate) fn run(options: &Options) -> Verdict {
    let intid = options.number("intid").unwrap_or(36);
    let intid = u32::try_from(intid).unwrap_or(u32::MAX);
    let held = options.number("hold").unwrap_or(20_000);
    let devices = Devices::open()?;
    for edu in devices.iter() {
        if edu.function.pin() == 0 {
            return Err("the device has no pin".into());
        }
        if let Some(msi) = edu.msi() {
            msi.disable();
        }
    }
    kept_off(&devices, intid)?;
    println!("dma beat 1: a pin that is off stays silent, and is heard when it is let out");
    let came = left_up(&devices, intid, held)?;
    println!("dma beat 2: a level that stays up came {came} times");
    let both = together(&devices, intid)?;
    println!("dma beat 3: the line is up as long as one of {both} is");
    Ok(Summary::new(&[
        ("devices", devices.count()),
        ("held", came),
        ("both", both),
    ]))
}

/// Whether it came so often within a second.
fn comes(intid: u32, wanted: u64) -> bool {
    cpu::wait_until(cpu::now() + cpu::ticks(1_000_000), || {
        shared(intid) >= wanted
    })
}

/// Lets the interrupt in, and it must not come.
fn is_silent(intid: u32) -> bool {
    let before = shared(intid);
    gic::enable_shared(intid, gic::Trigger::Level);
    cpu::unmask();
    cpu::sleep_us(10_000);
    cpu::mask();
    gic::disable_shared(intid);
    shared(intid) == before
}

fn kept_off(devices: &Devices, intid: u32) -> Result<(), Failure> {
    let edu = devices.first();
    let lets = MEMORY_SPACE | BUS_MASTER;
    edu.function.command(lets | INTERRUPT_DISABLE);
    edu.raise(2);
    if !is_silent(intid) {
        return Err("a pin interrupts that was turned off".into());
    }
    let before = shared(intid);
    gic::enable_shared(intid, gic::Trigger::Level);
    edu.function.command(lets);
    if !comes(intid, before + 1) {
        return Err("a pin that was let out does not interrupt".into());
    }
    // Taken back while it is up.
    edu.function.command(lets | INTERRUPT_DISABLE);
    if !is_silent(intid) {
        return Err("a pin interrupts that was turned off while it was up".into());
    }
    edu.acknowledge(2);
    edu.function.command(lets);
    if !is_silent(intid) {
        return Err("a pin interrupts without a reason".into());
    }
    Ok(())
}

/// The device keeps its pin up, whatever the handler does.
fn left_up(devices: &Devices, intid: u32, held: u64) -> Result<u64, Failure> {
    let edu = devices.first();
    let before = shared(intid);
    TAKEN_IN.store(before + held, Ordering::SeqCst);
    edu.raise(2);
    gic::enable_shared(intid, gic::Trigger::Level);
    // Each end lets it come again: nothing else runs here until there have been enough.
    let enough = comes(intid, before + held);
    edu.acknowledge(2);
    TAKEN_IN.store(0, Ordering::SeqCst);
    if !enough {
        return Err(Failure(
            "a level that stays up does not come again",
            [shared(intid) - before, held, 0],
        ));
    }
    if !is_silent(intid) {
        return Err("a level that went down comes again".into());
    }
    Ok(shared(intid) - before)
}

/// Two devices on one line.
fn together(devices: &Devices, intid: u32) -> Result<u64, Failure> {
    let mut pair = devices.iter();
    let (Some(one), Some(other)) = (pair.next(), pair.next()) else {
        return Ok(1);
    };
    let again = |wanted| {
        gic::enable_shared(intid, gic::Trigger::Level);
        comes(intid, wanted)
    };
    let before = shared(intid);
    one.raise(2);
    other.raise(4);
    let first = again(before + 1);
    one.acknowledge(2);
    let second = again(before + 2);
    other.acknowledge(4);
    if !first || !second || !is_silent(intid) {
        return Err(Failure(
            "two devices on a line: before, now",
            [before, shared(intid), 0],
        ));
    }
    Ok(2)
}
