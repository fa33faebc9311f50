//! The connectors of a host bridge by name: what they say, what they do, and what is refused.

use power_guests::edu::Edu;
use power_guests::{cpu, rtas};

use crate::memory::{self, LIST};
use crate::{Failure, fail};

const SET_INDICATOR: u32 = 0x201a;
const SET_POWER: u32 = 0x201b;
const GET_POWER: u32 = 0x201c;
const GET_SENSOR: u32 = 0x201d;
const CONFIGURE: u32 = 0x201e;
const ISOLATION: u32 = 9001;
const LAMP: u32 = 9002;
/// What is in a connector, as a sensor; whether it is usable, as an indicator.
const ENTITY: u32 = 9003;
const PARAMETER: i32 = -3;
/// Call again in 100 ms.
const LATER: i32 = 9902;
const NOT_CONFIGURABLE: i32 = -9003;
/// How long resets are waited for, in microseconds.
const RESETS_US: u64 = 3_000_000;
/// A work area.
const AREA: u64 = LIST + 0x4000;

fn set(indicator: u32, connector: u32, value: u32) -> i32 {
    let [status] = rtas::service(0, SET_INDICATOR, &[indicator, connector, value]);
    status
}

fn configure(area: u64, second: u32) -> i32 {
    let [status] = rtas::service(0, CONFIGURE, &[area as u32, second]);
    status
}

/// Begins a walk, or goes on somewhere.
fn begin(connector: u32, place: u32) {
    memory::write(
        AREA,
        (u64::from(connector) << 32 | u64::from(place)).to_be(),
    );
}

fn is(what: &'static str, found: i32, wanted: i32) -> Result<(), Failure> {
    if found == wanted {
        Ok(())
    } else {
        fail(what, [found as u64, wanted as u64])
    }
}

/// All of it, with the device not in use.
pub(crate) fn run(edu: Edu, bridge: u64) -> Result<(), Failure> {
    let slot = 0x4000_0000 | (bridge as u32) << 16;
    let logical = 0x2000_0000 | bridge as u32;
    let none = logical ^ 0x40;
    let sensor = |connector| {
        let [status, state]: [i32; 2] = rtas::service(0, GET_SENSOR, &[ENTITY, connector]);
        if status == 0 { state } else { status }
    };
    for connector in [slot, logical] {
        is("the sensor of what is there", sensor(connector), 1)?;
        is("a lamp", set(LAMP, connector, 3), 0)?;
        is("a lamp's value", set(LAMP, connector, 4), PARAMETER)?;
        is("isolation's value", set(ISOLATION, connector, 2), PARAMETER)?;
        is("not isolated yet", set(ENTITY, connector, 0), PARAMETER)?;
        is("exchange", set(ENTITY, connector, 2), PARAMETER)?;
        is("recover", set(ENTITY, connector, 3), PARAMETER)?;
        is("an indicator", set(9009, connector, 0), PARAMETER)?;
        is("it is united", set(ISOLATION, connector, 1), 0)?;
    }
    is("no connector's sensor", sensor(none), PARAMETER)?;
    for indicator in [ISOLATION, LAMP, ENTITY] {
        is("no connector", set(indicator, none, 0), PARAMETER)?;
    }
    is("a slot is usable", set(ENTITY, slot, 1), PARAMETER)?;
    let power = |token, cells: &[u32]| rtas::service::<2>(0, token, cells);
    if power(GET_POWER, &[u32::MAX]) != [0, 100] || power(SET_POWER, &[u32::MAX, 0]) != [0, 100] {
        return fail("the power domain", [0, 0]);
    }
    is("no domain", power(GET_POWER, &[5])[0], PARAMETER)?;

    walk(logical, bridge)?;
    for (what, connector, second) in [
        ("a slot's nodes", slot, 0),
        ("nobody's nodes", none, 0),
        ("another page", logical, 0x1000),
    ] {
        begin(connector, 0);
        is(what, configure(AREA, second), PARAMETER)?;
    }
    begin(logical, 0x7fff_ffff);
    is("a place that is none", configure(AREA, 0), PARAMETER)?;
    // An area that ends behind the memory, and one that is none.
    is("half an area", configure(0x1ff_f800, 0), PARAMETER)?;
    is("no area", configure(0xffff_f000, 0), PARAMETER)?;

    is("isolated", set(ISOLATION, logical, 0), 0)?;
    if edu.identity() != u32::MAX {
        return fail("an isolated device answers", [edu.identity().into(), 0]);
    }
    is("given up", set(ENTITY, logical, 0), 0)?;
    is("given up again", set(ENTITY, logical, 0), 0)?;
    is("the sensor of what is given up", sensor(logical), 2)?;
    is("its card", sensor(slot), 1)?;
    is(
        "united while given up",
        set(ISOLATION, logical, 1),
        PARAMETER,
    )?;
    is("the slot, too", set(ISOLATION, slot, 1), PARAMETER)?;
    begin(logical, 0);
    is("nodes given up", configure(AREA, 0), NOT_CONFIGURABLE)?;
    is("taken again", set(ENTITY, logical, 1), 0)?;
    begin(logical, 0);
    is("nodes isolated", configure(AREA, 0), NOT_CONFIGURABLE)?;
    let end = cpu::now() + cpu::ticks(RESETS_US);
    loop {
        match set(ISOLATION, logical, 1) {
            0 => break,
            LATER if cpu::now() < end => {}
            status => return fail("it does not come back", [status as u64, 0]),
        }
    }
    is("the sensor", sensor(logical), 1)?;
    walk(logical, bridge)
}

/// Asks for all nodes: the first is the host bridge's, and there is one for each device.
fn walk(logical: u32, bridge: u64) -> Result<(), Failure> {
    let mut counts = [0_u64; 5];
    begin(logical, 0);
    for step in 0..1000 {
        let status = configure(AREA, 0);
        match status {
            0 => {
                let [_, siblings, children, properties, _] = counts;
                // The host bridge, the bridge behind it, the device.
                if siblings + children != 3 || properties < 30 {
                    return fail("nodes and properties", [siblings + children, properties]);
                }
                return Ok(());
            }
            1..=4 => counts[status as usize] += 1,
            _ => return fail("a step of the nodes", [step, status as u64]),
        }
        if step == 0 {
            let at = u64::from_be(memory::read(AREA + 8)) >> 32;
            let name = u64::from_be(memory::read((AREA + at + 4) & !7));
            // "pci@800000020000001", of which the middle is looked at.
            if status != 2 || name != u64::from_be_bytes(*b"80000002") {
                return fail("the first node", [name, at]);
            }
        }
    }
    fail("the nodes do not end", [bridge, 0])
}
