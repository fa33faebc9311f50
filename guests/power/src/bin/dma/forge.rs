//! Messages that the device was not given, and more than anybody wants.
//!
//! A message is a write of a source's number to one address of the bus. No entry guards it: what
//! arrives is up to who listens. (Numbers that no source has are left out: QEMU 10 ends its own life.)

use power_guests::edu::{BUFFER, Direction, Edu};
use power_guests::options::Options;
use power_guests::tce::{self, READ};
use power_guests::{cpu, println, wait};

use crate::memory::{self, SOURCE};
use crate::{Failure, fail};

/// Where messages are written to.
const DOORBELL: u64 = 0x400_0000_0000;
/// Sources of the platform's own: events, hot plug, its terminal, a pin.
const PLATFORM: [u64; 4] = [0x1000, 0x1001, TERMINAL, 0x1204];
const TERMINAL: u64 = 0x1100;
const AT: u64 = 0x9000;

/// Writes a number, `bytes` of it, to the doorbell.
fn send(edu: Edu, number: u64, bytes: u64) {
    (SOURCE..SOURCE + BUFFER)
        .step_by(8)
        .for_each(|at| memory::write(at, number << 32 | number));
    edu.dma(Direction::Read, AT, 0, BUFFER);
    edu.dma(Direction::Write, DOORBELL, 0, bytes);
    wait::until(cpu::now() + cpu::ticks(1000));
}

pub(crate) fn run(edu: Edu, bridge: u64, options: Options) -> Result<(), Failure> {
    let times = options.number("times").unwrap_or(10);
    let delay = options.number("wait_us").unwrap_or(1_000_000);
    let Some(own) = edu.function.message() else {
        return fail("there is no message for the device", [0, 0]);
    };
    edu.raise();
    wait::take();
    if wait::came(own) != 1 {
        return fail("the device's message does not arrive", [own.into(), 0]);
    }
    if tce::put(tce::default_window(bridge), AT, SOURCE | READ) != 0 {
        return fail("an entry is refused", [SOURCE, 0]);
    }
    // The control: what is forged arrives, where it is one's own.
    send(edu, own.into(), 4);
    let control = wait::came(own);
    if control != 2 {
        return fail("a forged message of its own does not arrive", [control, 0]);
    }
    for number in PLATFORM {
        send(edu, number, 4);
    }
    wait::until(cpu::now() + cpu::ticks(delay));
    // The terminal's again and again: somebody may be typing.
    for _ in 0..times {
        send(edu, TERMINAL, BUFFER);
    }
    // The neighbour's is the other one of the first two.
    let other = if own == 0x1300 { 0x1301 } else { 0x1300 };
    for _ in 0..times {
        send(edu, other, BUFFER);
    }
    let strange = wait::strange(own);
    if strange != 0 || wait::came(own) != control {
        return fail(
            "a message of another's arrives here",
            [strange, wait::came(own)],
        );
    }
    println!(
        "dma verdict: forge ok: own={control} platform={} terminal={} others={} strange=0",
        PLATFORM.len(),
        times * BUFFER / 4,
        times * BUFFER / 4
    );
    Ok(())
}

/// Messages one after the other: the first half finds this CPU busy, the second asleep.
pub(crate) fn messages(edu: Edu, options: Options) -> Result<(), Failure> {
    let times = options.number("times").unwrap_or(100);
    let patience = cpu::ticks(options.number("patience_us").unwrap_or(10_000_000));
    let Some(own) = edu.function.message() else {
        return fail("there is no message for the device", [0, 0]);
    };
    let begun = cpu::now();
    for sent in 1..=times {
        edu.raise();
        let end = cpu::now() + patience;
        while wait::came(own) < sent && cpu::now() < end {
            if sent > times / 2 {
                wait::until(cpu::now() + cpu::ticks(100));
            } else {
                wait::take();
            }
        }
        if wait::came(own) != sent {
            return fail("so many of so many messages came", [wait::came(own), sent]);
        }
    }
    let ticks = (cpu::now() - begun) / times.max(1);
    println!("dma verdict: messages ok: came={times} ticks_each={ticks}");
    Ok(())
}

/// So many in a row that do not come: the device is muted.
const UNHEARD: u64 = 64;
/// Many times what a flood sends in its time.
const MOST_SENT: u64 = 20_000_000;

/// Sends messages without end, and counts what comes of them.
pub(crate) fn flood(edu: Edu, options: Options) -> Result<(), Failure> {
    let us = options.number("us").unwrap_or(200_000);
    let most = options.number("most").unwrap_or(6_000);
    let Some(own) = edu.function.message() else {
        return fail("there is no message for the device", [0, 0]);
    };
    let end = cpu::now() + cpu::ticks(us);
    let mut sent = 0_u64;
    let mut came = 0;
    let mut unheard = 0_u64;
    // The end is in a period that was full of them already, and not in one that has just begun.
    while cpu::now() < end || unheard < UNHEARD {
        edu.raise();
        wait::take();
        sent += 1;
        let heard = wait::came(own);
        unheard = if heard == came { unheard + 1 } else { 0 };
        came = heard;
        if sent > MOST_SENT {
            return fail(
                "a flood is not muted: so many came of so many",
                [came, sent],
            );
        }
    }
    wait::until(cpu::now() + cpu::ticks(50_000));
    let late = wait::came(own) - came;
    if came > most || came < most / 4 {
        return fail("so many messages came of so many sent", [came, sent]);
    }
    // The last period was full of them: one of the others is kept, no more.
    if late != 1 {
        return fail("so many messages came after their period", [late, sent]);
    }
    edu.raise();
    wait::take();
    if wait::came(own) != came + late + 1 {
        return fail("the device is not heard any more", [wait::came(own), came]);
    }
    println!("dma verdict: flood ok: sent={sent} came={came} late={late}");
    Ok(())
}
