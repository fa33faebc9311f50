//! Two sides of one event queue: a guest whose devices fill it, and one that counts what it is told.

use guests::edu::{AtTheEnd, BUFFER, Direction};
use guests::options::Options;
use guests::smmu::{STE_ABORT, Smmu};
use guests::{cpu, println};

use crate::smmu::{self, C_BAD_STE, F_TRANSLATION, FEW, NOWHERE};
use crate::{Devices, Failure, Summary, Verdict};

/// Refused DMA of all devices for `rounds`: by entries that are not valid, or with `stage1` by tables that have
/// nothing there. Every few rounds the entries are written anew, as if that would have it heard again.
pub(crate) fn run(options: &Options) -> Verdict {
    let rounds = options.number("rounds").unwrap_or(40);
    let stage1 = options.number("stage1").unwrap_or(0) != 0;
    let devices = Devices::open()?;
    let mut smmu = smmu::start(&devices)?;
    let kind = if stage1 { F_TRANSLATION } else { C_BAD_STE };
    let (mut told, mut silent) = (0, 0);
    for round in 0..rounds {
        if round % 4 == 0 {
            for edu in devices.iter() {
                let stream = edu.function.0.into();
                smmu.set_stream(stream, STE_ABORT)?;
                if stage1 {
                    smmu.attach(stream)?;
                } else {
                    smmu.set_stream(stream, 0)?;
                }
            }
        }
        for edu in devices.iter() {
            edu.start(Direction::Read, NOWHERE, 0, BUFFER, AtTheEnd::Silence);
        }
        for edu in devices.iter() {
            edu.wait()?;
        }
        let count = take(&mut smmu, &devices, kind)?;
        told += count;
        silent += u64::from(count == 0);
        if round % 10 == 0 {
            println!("dma beat {round}: {told} records");
        }
    }
    // It was loud, and everything is as before when that is over.
    cpu::sleep_us(2_500_000);
    smmu.drain();
    for edu in devices.iter() {
        smmu.attach(edu.function.0.into())?;
    }
    let edu = devices.first();
    smmu::translated_round_trip(edu, 1)?;
    edu.transfer(Direction::Read, NOWHERE, 0, FEW)?;
    // An SMMU that does not interrupt is looked at now and then.
    cpu::sleep_us(20_000);
    let last = take(&mut smmu, &devices, F_TRANSLATION)?;
    if last == 0 {
        return Err("nothing is told after the flood".into());
    }
    Ok(Summary::new(&[
        ("rounds", rounds),
        ("told", told),
        ("silent", silent),
    ]))
}

/// Takes all records; every one must be of a device of ours and of this kind.
fn take(smmu: &mut Smmu, devices: &Devices, kind: u64) -> Result<u64, Failure> {
    cpu::sleep_us(5_000);
    let mut count = 0;
    // The queue holds 256; a device may still be at it.
    while count < 512 {
        let Some(event) = smmu.event() else { break };
        let mut ours = devices.iter();
        if event.kind() != kind || !ours.any(|edu| u64::from(edu.function.0) == event.stream()) {
            let words = [event.0[0], event.0[1], event.0[2]];
            return Err(Failure("an event of another kind or stream", words));
        }
        count += 1;
    }
    Ok(count)
}

/// Every `period_us` a refused DMA at an address of its own: each must be told, with nothing else. The control:
/// with `idle` there is none at that beat, which must be noticed.
pub(crate) fn watch(options: &Options) -> Verdict {
    let beats = options.number("beats").unwrap_or(30);
    let period_us = options.number("period_us").unwrap_or(200_000);
    let idle = options.number("idle");
    let devices = Devices::open()?;
    let mut smmu = smmu::start(&devices)?;
    let edu = devices.first();
    let mut records = 0;
    for beat in 1..=beats {
        let next = cpu::now() + cpu::ticks(period_us);
        let address = NOWHERE + beat * BUFFER;
        if idle != Some(beat) {
            edu.transfer(Direction::Write, address, 0, FEW)?;
        }
        cpu::wait_until(next, || false);
        let mut count = 0;
        while let Some(event) = smmu.event() {
            let is_right = event.kind() == F_TRANSLATION
                && event.stream() == u64::from(edu.function.0)
                && (address..address + FEW).contains(&event.address());
            if !is_right {
                let words = [event.0[0], event.0[1], event.0[2]];
                return Err(Failure("somebody else's event came, or an old one", words));
            }
            count += 1;
        }
        if count == 0 {
            return Err(Failure("a refused DMA left no event", [beat, 0, 0]));
        }
        records += count;
        println!("dma beat {beat}: {count}");
    }
    Ok(Summary::new(&[("beats", beats), ("records", records)]))
}
