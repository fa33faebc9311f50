//! Refused DMA without a pause, from all devices: thousands of events a second. Then messages without a
//! pause. Whoever owns the flood may suffer; the guest itself must come through.

use guests::edu::{AtTheEnd, BUFFER, Direction, Edu};
use guests::options::Options;
use guests::{cpu, println};

use crate::memory::{self, TARGET};
use crate::{Devices, Failure, Summary, Verdict, lpis, start_messages};

/// How long a flood is paid for, at most, in microseconds.
const REST_US: u64 = 1_100_000;
/// Nothing of a guest's is there.
const NOWHERE: u64 = 0x20_0000_0000;

pub(crate) fn run(options: &Options) -> Verdict {
    let rounds = options.number("rounds").unwrap_or(20);
    let messages = options.number("messages").unwrap_or(20_000);
    let at = options.number("at").unwrap_or(NOWHERE);
    let devices = Devices::open()?;
    // With an SMMU of the guest's own it is its stage 1 that refuses, and its event queue that is told.
    let mut smmu = match options.number("stage1").unwrap_or(0) {
        0 => None,
        _ => Some(crate::smmu::start(&devices)?),
    };
    let _its = start_messages(&devices)?;
    let (mut transfers, mut events, mut late_us) = (0, 0, 0);
    for round in 0..rounds {
        for (index, edu) in devices.iter().enumerate() {
            late_us = late_us.max(lateness_of_waiting(edu));
            edu.wait()?;
            let direction = if round % 2 == 0 {
                Direction::Read
            } else {
                Direction::Write
            };
            // Another page each time: nothing that remembers helps.
            let address = at + (round * 16 + index as u64) * BUFFER;
            edu.start(direction, address, 0, BUFFER, AtTheEnd::Silence);
            transfers += 1;
        }
        events += smmu.as_mut().map_or(0, |smmu| smmu.drain().0);
        if round % 10 == 0 {
            println!("dma beat {round}");
        }
    }
    for edu in devices.iter() {
        edu.wait()?;
    }
    if let Some(smmu) = &mut smmu {
        // A stream that floods may have to rest: what it does meanwhile is gone.
        cpu::sleep_us(REST_US);
        events += smmu.drain().0;
    }
    println!("dma beat {rounds}: now messages");
    cpu::unmask();
    let edu = devices.first();
    for number in 0..messages {
        edu.raise(1);
        if number % 5_000 == 0 {
            println!("dma beat {}", rounds + 1 + number / 5_000);
        }
    }
    cpu::sleep_us(10_000);
    edu.acknowledge(1);
    let arrived = lpis(0);
    // Messages of one event may become one; not all of them.
    if arrived == 0 {
        return Err(Failure("of all messages none arrived", [messages, 0, 0]));
    }
    // Each device still does what it is told.
    memory::fill_with(TARGET, BUFFER, 0);
    for (index, edu) in devices.iter().enumerate() {
        match &smmu {
            None => crate::probe::round_trip(edu, index as u64)?,
            Some(_) => crate::smmu::translated_round_trip(edu, index as u64)?,
        }
    }
    Ok(Summary::new(&[
        ("devices", devices.count()),
        ("transfers", transfers),
        ("messages", messages),
        ("arrived", arrived),
        ("late_us", late_us),
        ("events", events),
    ]))
}

/// Waits for a device, and says how late in microseconds the guest was awake at the worst: that is what others have
/// taken of its time.
fn lateness_of_waiting(edu: Edu) -> u64 {
    const NAP_US: u64 = 500;
    /// A device does not take longer, or [`Edu::wait`] says so.
    const NAPS: u64 = 2_000;
    let mut latest = 0;
    for _ in 0..NAPS {
        if !edu.is_busy() {
            break;
        }
        let due = cpu::now() + cpu::ticks(NAP_US);
        cpu::wait_until(due, || false);
        latest = latest.max(cpu::now().saturating_sub(due));
    }
    latest.saturating_mul(1_000_000) / cpu::frequency().max(1)
}
