//! Refused DMA without a pause, from all devices: thousands of events a second. Then messages without a
//! pause. Whoever owns the flood may suffer; the guest itself must come through.

use guests::edu::{AtTheEnd, BUFFER, Direction};
use guests::options::Options;
use guests::{cpu, println};

use crate::memory::{self, TARGET};
use crate::{Devices, Failure, Summary, Verdict, lpis, start_messages};

/// Nothing of a guest's is there.
const NOWHERE: u64 = 0x20_0000_0000;

pub(crate) fn run(options: &Options) -> Verdict {
    let rounds = options.number("rounds").unwrap_or(20);
    let messages = options.number("messages").unwrap_or(20_000);
    let at = options.number("at").unwrap_or(NOWHERE);
    let devices = Devices::open()?;
    let _its = start_messages(&devices)?;
    let mut transfers = 0;
    for round in 0..rounds {
        for (index, edu) in devices.iter().enumerate() {
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
        if round % 10 == 0 {
            println!("dma beat {round}");
        }
    }
    for edu in devices.iter() {
        edu.wait()?;
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
        crate::probe::round_trip(edu, index as u64)?;
    }
    Ok(Summary::new(&[
        ("devices", devices.count()),
        ("transfers", transfers),
        ("messages", messages),
        ("arrived", arrived),
    ]))
}
