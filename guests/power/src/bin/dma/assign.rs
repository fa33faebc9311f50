//! How many messages a device has: asked for and refused, changed and counted; and a bridge, which has none.

use power_guests::edu::Edu;
use power_guests::pci::{Function, MASTER, MEMORY};
use power_guests::{cpu, println, rtas, wait};

use crate::{Failure, fail};

const SOURCE: u32 = 0x2018;
const CHANGE_MSI: u32 = 0x2019;
const SET_RESET: u32 = 0x2023;
/// How long a reset may take, in microseconds.
const RESET_US: u64 = 3_000_000;
/// What `CHANGE_MSI` does.
const QUERY: u32 = 0;
const CHANGE: u32 = 1;
const DEFAULT: u32 = 2;
pub(crate) const MSIX: u32 = 4;
/// What it says a device has.
const MSI_KIND: i32 = 1;
const MSIX_KIND: i32 = 2;
/// More messages than a VM has sources for.
pub(crate) const MANY: u32 = 200;
/// How long a message is waited for, in microseconds.
const PATIENCE_US: u64 = 100_000;

pub(crate) fn change(function: Function, how: u32, count: u32) -> [i32; 4] {
    let [at, high, low] = function.name();
    rtas::service(0, CHANGE_MSI, &[at, high, low, how, count, 1])
}

fn source(function: Function, number: u32) -> [i32; 3] {
    let [at, high, low] = function.name();
    rtas::service(0, SOURCE, &[at, high, low, number])
}

/// Whether a message comes when there is a reason for one.
fn comes(edu: Edu, source: u32) -> bool {
    let before = wait::came(source);
    edu.raise();
    wait::until(cpu::now() + cpu::ticks(PATIENCE_US));
    wait::came(source) == before + 1
}

/// The device is behind a bridge at 00:00.0, beside one at 00:02.0 that may have many messages.
pub(crate) fn run(edu: Edu, phb: u64) -> Result<(), Failure> {
    let Some(its) = edu.function.message() else {
        return fail("there is no message for the device", [0, 0]);
    };
    if !comes(edu, its) {
        return fail("no message comes", [its.into(), 0]);
    }
    // What is refused, and what only asks, changes nothing.
    for (how, count, status) in [(9, 1, -3), (u32::MAX, 1, -3), (MSIX, 1, -3), (QUERY, 0, 0)] {
        let [found, assigned, _, kind] = change(edu.function, how, count);
        if found != status || status == 0 && [assigned, kind] != [1, MSI_KIND] {
            return fail("a change is not refused", [how.into(), found as u64]);
        }
        if source(edu.function, 0)[..2] != [0, its.cast_signed()] || !comes(edu, its) {
            return fail(
                "a message is lost by a call that changes none",
                [how.into(), 0],
            );
        }
    }
    // A bridge forwards, whatever its guest writes, and interrupts nobody.
    let bridge = Function::new(phb, 0, 0);
    if change(bridge, CHANGE, 1)[0] != -3 {
        return fail("a bridge has a message", [0, 0]);
    }
    let written = bridge.write(4, 2, 0);
    if written != 0 || bridge.read(4, 2).1 & MEMORY == 0 || !edu.answers() {
        return fail("a bridge does not forward", [bridge.read(4, 2).1.into(), 0]);
    }
    // As many as there are sources for, each of which is one.
    let other = Function::new(phb, 0, 2);
    let [status, count, _, kind] = change(other, MSIX, MANY);
    if status != 0 || kind != MSIX_KIND || !(64..128).contains(&count) {
        return fail("many messages are not some", [status as u64, count as u64]);
    }
    let strange = |number: &u32| {
        let [status, source, _] = source(other, *number);
        let is_its = (0x1300..0x1380).contains(&source) && source != its.cast_signed();
        status != 0 || !is_its
    };
    if let Some(number) = (0..count as u32).find(strange) {
        return fail("a message has no source", [number.into(), count as u64]);
    }
    if change(other, QUERY, 0) != [0, count, 0, MSIX_KIND] || !comes(edu, its) {
        return fail("they are not what they were said to be", [count as u64, 0]);
    }
    // A reset of the PE takes none away: the guest need not ask again.
    let [at, high, low] = edu.function.name();
    let reset = |kind| rtas::service::<1>(0, SET_RESET, &[at, high, low, kind]) == [0];
    if !reset(1) || edu.answers() {
        return fail("it is not reset", [0, 0]);
    }
    let end = cpu::now() + cpu::ticks(RESET_US);
    while !reset(0) && cpu::now() < end {
        wait::until(cpu::now() + cpu::ticks(PATIENCE_US));
    }
    edu.function.write(4, 2, MEMORY | MASTER);
    if !edu.answers() || !comes(edu, its) || source(edu.function, 0)[1] != its.cast_signed() {
        return fail("a message does not outlive a reset", [its.into(), 0]);
    }
    // Back to none.
    if change(edu.function, DEFAULT, 7)[..2] != [0, 0] || change(edu.function, QUERY, 0)[1] != 0 {
        return fail("messages do not go", [0, 0]);
    }
    if comes(edu, its) || change(other, MSIX, 0)[..2] != [0, 0] {
        return fail("a message comes that is none", [0, 0]);
    }
    println!("dma verdict: assign ok: messages={count}");
    Ok(())
}
