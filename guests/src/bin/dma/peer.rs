//! DMA of one device to the registers of another, of its own, and of what is not the guest's.
//!
//! `reach` says whether the guest's devices may reach the first one's BAR; `elsewhere` is an address of
//! registers that nobody here may.

use guests::edu::{Direction, Edu, REG_SCRATCH};
use guests::options::Options;
use guests::println;

use crate::memory::{self, SOURCE};
use crate::{Devices, Failure, Summary, Verdict};

const BEFORE: u32 = 0x1234_5678;
const SENT: u32 = 0x0bad_cafe;

pub(crate) fn run(options: &Options) -> Verdict {
    let may = options.number("reach").unwrap_or(0) != 0;
    let elsewhere = options.number("elsewhere");
    let mut devices = Devices::open()?;
    let pair = (devices.all.first(), devices.all.get(1));
    let (Some(&Some(first)), Some(&Some(second))) = pair else {
        return Err("it takes two devices".into());
    };
    check(first, second, may)?;
    println!("dma beat 1: from another device");
    check(first, first, may)?;
    println!("dma beat 2: from itself");
    // The other one's registers are nobody's but the CPUs'.
    check(second, first, false)?;
    println!("dma beat 3: to the device whose registers are not shown");
    // Where it was it is not any more.
    let old = first.base;
    let place = devices.all.iter_mut().flatten().next();
    place
        .ok_or("it takes two devices")?
        .move_to(crate::bar_address(crate::MOST_DEVICES))?;
    let moved = devices.first();
    check(moved, second, may)?;
    moved.set_scratch(BEFORE);
    send(second, (old + REG_SCRATCH) as u64)?;
    if moved.scratch() != BEFORE {
        return Err("a BAR is where it was before it moved".into());
    }
    println!("dma beat 4: moved");
    // What does not decode is not there.
    moved.function.command(guests::pci::BUS_MASTER);
    send(second, (moved.base + REG_SCRATCH) as u64)?;
    moved
        .function
        .command(guests::pci::BUS_MASTER | guests::pci::MEMORY_SPACE);
    if moved.scratch() != BEFORE {
        return Err("a BAR that does not decode was written".into());
    }
    if let Some(at) = elsewhere {
        send(second, at)?;
        send(moved, at)?;
    }
    Ok(Summary::new(&[
        ("devices", devices.count()),
        ("reach", may.into()),
        ("elsewhere", elsewhere.unwrap_or(0)),
    ]))
}

/// Four bytes to an address.
fn send(from: Edu, address: u64) -> Result<(), Failure> {
    memory::fill_with(SOURCE, 64, u64::from(SENT) << 32 | u64::from(SENT));
    from.transfer(Direction::Read, SOURCE, 0, 64)?;
    from.transfer(Direction::Write, address, 0, 4)?;
    Ok(())
}

/// Whether what a device sends to another one's register is there afterwards.
fn check(to: Edu, from: Edu, may: bool) -> Result<(), Failure> {
    to.set_scratch(BEFORE);
    send(from, (to.base + REG_SCRATCH) as u64)?;
    let wanted = if may { SENT } else { BEFORE };
    if to.scratch() == wanted {
        Ok(())
    } else {
        Err(Failure(
            "a device's register after a DMA to it: found, wanted, where",
            [to.scratch().into(), wanted.into(), to.base as u64],
        ))
    }
}
