//! A guest whose host bridge is taken away in the middle of lists of entries and of a DMA, and given back.

use power_guests::edu::{BUFFER, Direction, Edu};
use power_guests::pci::{MASTER, MEMORY};
use power_guests::{cpu, hcall, println, rtas, tce};

use crate::connector;
use crate::linger::{COUNT, FROM, LISTS, RIGHTS, TO};
use crate::memory::{self, LIST, SOURCE, TARGET};
use crate::{Failure, fail};

const CHECK_EXCEPTION: u32 = 0x200e;
const GET_SENSOR: u32 = 0x201d;
const SET_XIVE: u32 = 0x200a;
/// What is in a connector.
const ENTITY: u32 = 9003;
/// The source of the events, and their bit.
const EVENTS: u32 = 0x1001;
const HOT_PLUG: u32 = 0x1000_0000;
/// Where logs go.
const LOG: u64 = LIST + 0x1000;
/// `H_PARAMETER`.
const PARAMETER: i64 = -4;
/// How long an event is waited for, in microseconds.
const EVENT_US: u64 = 100_000;

/// The host bridge's connector.
#[derive(Clone, Copy)]
struct Slot {
    connector: u32,
    window: u64,
}

impl Slot {
    fn is_present(self) -> Result<bool, Failure> {
        match rtas::service(0, GET_SENSOR, &[ENTITY, self.connector]) {
            [0, 1] => Ok(true),
            [0, 0] => Ok(false),
            [status, state] => fail("the sensor says", [status as u64, state as u64]),
        }
    }

    /// The event that tells of it: 1 added, 2 removed.
    fn event(self, action: u64) -> Result<(), Failure> {
        let end = cpu::now() + cpu::ticks(EVENT_US);
        loop {
            let (_, accepted) = hcall::call(hcall::XIRR, [0; 4]);
            let source = accepted & 0xff_ffff;
            if source == u64::from(EVENTS) {
                hcall::call(hcall::EOI, [accepted, 0, 0, 0]);
                break;
            }
            if source != 0 || cpu::now() > end {
                return fail("no event came", [source, action]);
            }
        }
        let cells = [0x500, EVENTS, HOT_PLUG, 0, LOG as u32, 2048];
        let [status] = rtas::service(0, CHECK_EXCEPTION, &cells);
        let log = u64::from_be(memory::read(LOG + 104));
        let wanted = 0x0300_0200_0000_0000 | action << 48 | u64::from(self.connector);
        if status != 0 || log != wanted {
            return fail("an event says something else", [log, wanted]);
        }
        let [status] = rtas::service(0, CHECK_EXCEPTION, &cells);
        if status != 1 {
            return fail("an event is told twice", [status as u64, 0]);
        }
        Ok(())
    }

    /// No entry of before.
    fn is_empty(self) -> Result<(), Failure> {
        for at in (0..LISTS * COUNT).step_by(61) {
            let found = tce::get(self.window, at << 12);
            if found != Ok(0) {
                return fail("an entry of before", [at, found.unwrap_or(u64::MAX)]);
            }
        }
        Ok(())
    }
}

pub(crate) fn run(edu: Edu, bridge: u64) -> Result<(), Failure> {
    let slot = Slot {
        connector: 0x4000_0000 | (bridge as u32) << 16,
        window: tce::default_window(bridge),
    };
    let [status] = rtas::service(0, SET_XIVE, &[EVENTS, 0, 5]);
    if status != 0
        || rtas::service::<2>(0, GET_SENSOR, &[ENTITY, slot.connector ^ 0x2_0000])[0] != -3
    {
        return fail("connectors are not as they should be", [status as u64, 0]);
    }
    connector::run(edu, bridge)?;
    println!("dma plug: connectors do what they should, and nothing else");
    hcall::call(hcall::CPPR, [0xff, 0, 0, 0]);
    let mut turn = 0_u64;
    loop {
        turn += 1;
        if !slot.is_present()? {
            return fail("the slot is empty", [turn, 0]);
        }
        edu.function.write(4, 2, MEMORY | MASTER);
        if !edu.answers() {
            return fail("the device does not answer", [turn, edu.identity().into()]);
        }
        edu.wait();
        slot.is_empty()?;
        if let Some(at) = (0..BUFFER)
            .step_by(8)
            .find(|at| memory::read(TARGET + at) != 0)
        {
            return fail("a DMA of before arrived", [at, memory::read(TARGET + at)]);
        }
        // The control: such a DMA arrives when it is let be.
        memory::fill(SOURCE, BUFFER, turn);
        for (at, page) in [(FROM, SOURCE), (TO, TARGET)] {
            let status = tce::put(slot.window, at, page | RIGHTS);
            if status != 0 {
                return fail("an entry is refused", [at, status.cast_unsigned()]);
            }
        }
        edu.dma(Direction::Read, FROM, 0, BUFFER);
        edu.dma(Direction::Write, TO, 0, BUFFER);
        if let Some(at) = memory::differ(SOURCE, TARGET, BUFFER) {
            return fail("DMA does not bring what is mapped", [at, turn]);
        }
        memory::zero(TARGET, BUFFER);
        for entry in 0..COUNT {
            let tce = (SOURCE + ((entry % 16) << 12)) | RIGHTS;
            memory::write(LIST + entry * 8, tce.to_be());
        }
        println!("dma plug: nothing is left of before, entries are being written ({turn})");
        let mut rounds = 0;
        while storm(edu, slot.window, rounds)? {
            rounds += 1;
        }
        gone(edu, slot)?;
        // Whatever was under way does not arrive.
        memory::zero(TARGET, BUFFER);
        println!("dma plug: the slot is empty after {rounds} rounds ({turn})");
        // Without taking interrupts, of which one is to come.
        while !slot.is_present()? {
            let next = cpu::now() + cpu::ticks(100);
            while cpu::now() < next {}
        }
        slot.event(1)?;
    }
}

/// What a register is read over.
const MARK: u64 = 0x5555_0000_5555;
/// What a device reads as that is away.
const ONES: u32 = u32::MAX;

/// Reads a register without a pause, while the device is taken away and given back: whenever that is, what is
/// read is the device's, or all ones.
pub(crate) fn loads(edu: Edu) -> Result<(), Failure> {
    let its = edu.identity();
    for turn in 0_u64.. {
        println!("dma loads: the device answers ({turn})");
        for wanted in [ONES, its] {
            loop {
                match edu.identity_over(MARK) {
                    Some(value) if value == wanted => break,
                    Some(value) if value == its || value == ONES => {}
                    Some(value) => return fail("a register reads as", [value.into(), turn]),
                    None => return fail("a load is left out", [turn, 0]),
                }
            }
            if wanted == ONES {
                println!("dma loads: nothing answers ({turn})");
            } else {
                edu.function.write(4, 2, MEMORY | MASTER);
            }
        }
    }
    Ok(())
}

/// What is to be found of a device that was taken away: nothing, and nothing breaks.
fn gone(edu: Edu, slot: Slot) -> Result<(), Failure> {
    if slot.is_present()? {
        return fail("an entry is refused, and the slot is not empty", [0, 0]);
    }
    slot.event(2)?;
    if edu.identity() != u32::MAX {
        return fail("a device that is away answers", [edu.identity().into(), 0]);
    }
    // Lost.
    edu.raise();
    let (status, value) = edu.function.read(0, 4);
    if status != -1 || value != u32::MAX {
        return fail(
            "its configuration space answers",
            [status as u64, value.into()],
        );
    }
    if edu.function.write(4, 2, MASTER) != -1 || edu.function.message().is_some() {
        return fail("it takes orders", [0, 0]);
    }
    if tce::put(slot.window, FROM, SOURCE | RIGHTS) != PARAMETER
        || tce::get(slot.window, FROM) != Err(PARAMETER)
        || tce::create_window(edu.function, 16, 28).is_ok()
    {
        return fail("it has a window", [0, 0]);
    }
    // Its PE is gone for good.
    let [at, high, low] = edu.function.name();
    let state = rtas::service::<4>(0, 0x2022, &[at, high, low]);
    if state != [0, 5, 1, 0] {
        return fail("its PE is in state", [state[1] as u64, state[0] as u64]);
    }
    Ok(())
}

/// Entries by every call, with a DMA under way; false when there is no window any more.
fn storm(edu: Edu, window: u64, round: u64) -> Result<bool, Failure> {
    let at = ((round % LISTS) * COUNT) << 12;
    if round.is_multiple_of(16) && !edu.is_busy() {
        edu.start(Direction::Write, TO, 0, 8);
    }
    for (what, status) in [
        ("a list", tce::put_list(window, at, LIST, COUNT)),
        ("an exchange", tce::put(window, at, TARGET | RIGHTS)),
        ("an empty entry", tce::put(window, at + 0x7000, 0)),
    ] {
        match status {
            0 => {}
            PARAMETER => return Ok(false),
            status => return fail(what, [round, status.cast_unsigned()]),
        }
    }
    // Half of the lists stay.
    if round.is_multiple_of(2) {
        match tce::stuff(window, at, 0, COUNT) {
            0 => {}
            PARAMETER => return Ok(false),
            status => return fail("entries do not go", [round, status.cast_unsigned()]),
        }
    }
    Ok(true)
}
