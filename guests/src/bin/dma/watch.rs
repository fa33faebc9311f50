//! A neighbour: memory with a pattern, devices with a mark, and a clock. All must stay as they are.
//!
//! The controls: at beat `attack` the guest has its own device write where the pattern is, at beat
//! `interrupt` it has it send a message. Every `refused` beats it has it write where nothing is: what is told
//! of that must not drown in what others do.

use core::sync::atomic::Ordering;

use guests::edu::{AtTheEnd, BUFFER, Direction};
use guests::options::Options;
use guests::pci::Function;
use guests::platform::RAM;
use guests::{cpu, edu, println};

use crate::memory::{self, FREE};
use crate::{Devices, Failure, RECEIVED, Summary, Verdict, lpis, start_messages};

const MARK: u32 = 0x0dd5_0a7e;
const SALT: u64 = 4711;
/// Nothing of a guest's is there.
const NOWHERE: u64 = 0x30_0000_0000;

pub(crate) fn run(options: &Options) -> Verdict {
    let beats = options.number("beats").unwrap_or(100);
    let period_us = options.number("period_us").unwrap_or(100_000);
    let attack = options.number("attack");
    let interrupt = options.number("interrupt");
    let refused = options.number("refused").unwrap_or(u64::MAX);
    let limit_us = options.number("limit_us").unwrap_or(period_us);
    let bytes = (RAM as u64 + options.memory()).saturating_sub(FREE);
    memory::fill(FREE, bytes, SALT);
    // It need not have any.
    let devices = match Function::with_ids(edu::IDS).next() {
        Some(_) => Devices::open()?,
        None => Devices::default(),
    };
    for edu in devices.iter() {
        edu.set_scratch(MARK);
    }
    let _its = match devices.count() {
        0 => None,
        _ => Some(start_messages(&devices)?),
    };
    // Until it is told to do something it does nothing.
    let mut quiet_until = u64::MAX;
    let (mut missed, mut longest_us) = (0, 0);
    let mut next = cpu::now() + cpu::ticks(period_us);
    for beat in 1..=beats {
        cpu::wait_until(next, || false);
        cpu::unmask();
        cpu::mask();
        let late_us =
            cpu::now().saturating_sub(next).saturating_mul(1_000_000) / cpu::frequency().max(1);
        longest_us = longest_us.max(late_us);
        missed += u64::from(late_us >= limit_us);
        println!("dma beat {beat}");
        for edu in devices.iter() {
            if edu.scratch() != MARK || edu.is_busy() && beat < quiet_until {
                return Err(Failure(
                    "somebody was at the device",
                    [edu.scratch().into(), beat, 0],
                ));
            }
        }
        let strange = RECEIVED.strange.load(Ordering::SeqCst);
        let messages: u64 = (0..crate::LPIS).map(lpis).sum();
        if strange + messages > 0 {
            return Err(Failure(
                "somebody else's message came",
                [messages, strange, beat],
            ));
        }
        if interrupt == Some(beat) {
            devices.first().raise(1);
        }
        if beat % refused == 0 {
            let at = NOWHERE + beat * BUFFER;
            devices
                .first()
                .start(Direction::Write, at, 0, 64, AtTheEnd::Silence);
            quiet_until = 0;
        }
        if attack == Some(beat) {
            let at = FREE + bytes / 2;
            devices.first().transfer(Direction::Write, at, 0, 64)?;
        }
        // A part of memory each time, all of it at the end.
        let part = (bytes / BUFFER).max(1);
        let at = FREE + (beat % part) * BUFFER;
        if let Some(at) = memory::spoilt(at, BUFFER.min(bytes), SALT) {
            return Err(Failure(
                "somebody was at the memory",
                [at, memory::read(at), beat],
            ));
        }
        // The schedule stays what it was.
        next += cpu::ticks(period_us);
    }
    if let Some(at) = memory::spoilt(FREE, bytes, SALT) {
        return Err(Failure(
            "somebody was at the memory",
            [at, memory::read(at), 0],
        ));
    }
    if missed > 0 {
        return Err(Failure(
            "beats were missed: how many, the latest in us",
            [missed, longest_us, 0],
        ));
    }
    Ok(Summary::new(&[
        ("beats", beats),
        ("latest_us", longest_us),
        ("memory_kib", bytes >> 10),
        ("devices", devices.count()),
    ]))
}
