//! The device works: registers, BAR, DMA, MSI, INTx.

use guests::edu::{AtTheEnd, BUFFER, DMA_DONE, Direction};
use guests::options::Options;
use guests::{cpu, gic, println};

use crate::memory::{self, SOURCE, TARGET};
use crate::{
    Devices, Failure, Summary, Verdict, await_lpis, bar_address, lpis, shared, start_messages,
};

/// A hole in the middle of the target, for a DMA of part of a page.
const PART: u64 = 0x100;

pub(crate) fn run(options: &Options) -> Verdict {
    let mut devices = Devices::open()?;
    println!("dma beat 1: {} devices", devices.count());
    let (mut bytes, mut moved) = (0, 0);
    for (index, place) in devices.all.iter_mut().enumerate() {
        let Some(edu) = place else { break };
        edu.function.command(0);
        bytes = edu.function.bar(0).bytes;
        // To the other end of what the devices use, and it answers there.
        edu.move_to(bar_address(index + crate::MOST_DEVICES))?;
        if !edu.is_there() {
            return Err("a moved device does not answer".into());
        }
        moved += 1;
        let factorial = edu.factorial(6)?;
        if factorial != 720 {
            return Err(Failure("the factorial of 6", [factorial.into(), 0, 0]));
        }
    }
    println!("dma beat 2: BARs of {bytes} bytes sized and moved, registers answer");
    for (index, edu) in devices.iter().enumerate() {
        round_trip(edu, index as u64)?;
    }
    println!("dma beat 3: data went out and back");
    let mut its = start_messages(&devices)?;
    for (index, edu) in devices.iter().enumerate() {
        let before = lpis(index);
        edu.raise(1);
        await_lpis(index, before + 1)?;
        edu.acknowledge(1);
        // The end of a DMA is told, too.
        edu.start(Direction::Read, SOURCE, 0, 64, AtTheEnd::Interrupt);
        await_lpis(index, before + 2)?;
        if edu.raised() != DMA_DONE {
            return Err(Failure(
                "a message, and not by the DMA",
                [edu.raised().into(), 0, 0],
            ));
        }
        edu.acknowledge(DMA_DONE);
    }
    println!("dma beat 4: messages arrive");
    moves_and_discards(&devices, &mut its)?;
    println!("dma beat 5: DISCARD and the LPI's own mask hold");
    let wires = match options.number("intx") {
        Some(intid) => wire(&devices, u32::try_from(intid).unwrap_or(u32::MAX))?,
        None => 0,
    };
    Ok(Summary::new(&[
        ("devices", devices.count()),
        ("bar", bytes),
        ("moved", moved),
        ("lpis", (0..crate::MOST_DEVICES).map(lpis).sum()),
        ("intx", wires),
    ]))
}

/// A page out of memory and back to another one, and a part of it alone.
pub(crate) fn round_trip(edu: guests::edu::Edu, salt: u64) -> Result<(), Failure> {
    memory::fill(SOURCE, BUFFER, salt + 1);
    memory::fill_with(TARGET, BUFFER, 0);
    edu.transfer(Direction::Read, SOURCE, 0, BUFFER)?;
    edu.transfer(Direction::Write, TARGET, 0, BUFFER)?;
    if let Some(at) = memory::differs(SOURCE, TARGET, BUFFER) {
        return Err(Failure(
            "data went out and did not come back",
            [at, memory::read(at), 0],
        ));
    }
    memory::fill_with(TARGET, BUFFER, 0);
    edu.transfer(Direction::Write, TARGET + PART, PART, PART)?;
    let part_is_there = memory::differs(SOURCE + PART, TARGET + PART, PART).is_none();
    let rest_is_not = memory::read(TARGET + PART - 8) == 0 && memory::read(TARGET + 2 * PART) == 0;
    if part_is_there && rest_is_not {
        Ok(())
    } else {
        Err("a DMA of part of a page wrote something else".into())
    }
}

/// A message whose event was discarded, or whose LPI is not enabled, does not arrive; then it does.
fn moves_and_discards(devices: &Devices, its: &mut guests::its::Its) -> Result<(), Failure> {
    use guests::its::{FIRST_LPI, command};
    let edu = devices.first();
    let device = u32::from(edu.function.0);
    let before = lpis(0);
    its.run(&[command::about(command::DISCARD, device, 0)])?;
    edu.raise(1);
    edu.acknowledge(1);
    cpu::sleep_us(10_000);
    if lpis(0) != before {
        return Err("a message arrived although its event was discarded".into());
    }
    its.configure(FIRST_LPI, false);
    its.run(&[
        command::mapti(device, 0, FIRST_LPI, 0),
        command::about(command::INV, device, 0),
    ])?;
    edu.raise(1);
    edu.acknowledge(1);
    cpu::sleep_us(10_000);
    if lpis(0) != before {
        return Err("a message arrived although its LPI is not enabled".into());
    }
    // It is pending, and comes once it may.
    its.configure(FIRST_LPI, true);
    its.run(&[command::about(command::INV, device, 0)])?;
    await_lpis(0, before + 1)?;
    its.run(&[
        command::movi(device, 0, 0),
        command::about(command::INT, device, 0),
    ])?;
    await_lpis(0, before + 2)
}

/// INTx of the first device: a level, until it is acknowledged.
fn wire(devices: &Devices, intid: u32) -> Result<u64, Failure> {
    let edu = devices.first();
    if edu.function.pin() == 0 {
        return Err("an interrupt line is described, and the device has no pin".into());
    }
    if let Some(msi) = edu.msi() {
        msi.disable();
    }
    let before = shared(intid);
    gic::enable_shared(intid, gic::Trigger::Level);
    edu.raise(2);
    let second = |wanted| {
        cpu::wait_until(cpu::now() + cpu::ticks(1_000_000), || {
            shared(intid) == wanted
        })
    };
    if !second(before + 1) {
        return Err("INTx does not arrive".into());
    }
    // Still up: let in again, it comes again.
    gic::enable_shared(intid, gic::Trigger::Level);
    if !second(before + 2) {
        return Err("INTx is not a level".into());
    }
    edu.acknowledge(2);
    gic::enable_shared(intid, gic::Trigger::Level);
    cpu::sleep_us(10_000);
    gic::disable_shared(intid);
    if shared(intid) != before + 2 {
        return Err("INTx stays although it was acknowledged".into());
    }
    Ok(shared(intid) - before)
}
