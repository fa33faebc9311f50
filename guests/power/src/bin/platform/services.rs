//! Run-time services.

use core::sync::atomic::{AtomicU32, Ordering};

use power_guests::options::Options;
use power_guests::rtas::{self, service};
use power_guests::{cpu, println};

use crate::{Check, Wrong, holds, is};

const PARAMETER: i32 = -3;
const TERMINAL: u32 = 0x1100;
/// Memory that nothing depends on.
const BUFFER: u32 = 0x100_0000;

pub(crate) const CHECKS: [Check; 12] = [
    ("display-character", display_character),
    ("get-time-of-day", get_time_of_day),
    ("set-time-of-day", set_time_of_day),
    ("query-cpu-stopped-state", query_cpu),
    ("start-cpu, stop-self", start_and_stop),
    ("ibm,get-system-parameter", get_parameter),
    ("ibm,set-system-parameter", set_parameter),
    ("ibm,set-xive, ibm,get-xive", xive),
    ("ibm,int-off, ibm,int-on", off_and_on),
    ("check-exception", || {
        let [status] = service(0, 0x200e, &[0x500, 0, 0xffff_ffff, 0, BUFFER, 64]);
        is("nothing has happened", 1, status.into())
    }),
    ("event-scan", || {
        let [status] = service(0, 0x200f, &[0xffff_ffff, 0, BUFFER, 64]);
        is("nothing has happened", 1, status.into())
    }),
    ("unknown services", unknown),
];

fn answer(token: u32, arguments: &[u32]) -> i64 {
    let [status] = service(0, token, arguments);
    status.into()
}

fn display_character() -> Result<(), Wrong> {
    for character in b"shown\n" {
        is("status", 0, answer(0x2000, &[u32::from(*character)]))?;
    }
    Ok(())
}

fn now() -> Result<[i32; 8], Wrong> {
    let answer: [i32; 8] = service(0, 0x2001, &[]);
    is("get-time-of-day", 0, answer[0].into())?;
    Ok(answer)
}

fn get_time_of_day() -> Result<(), Wrong> {
    let [_, year, month, day, hour, minute, second, nanosecond] = now()?;
    holds("a year of ours", (2024..2200).contains(&year))?;
    holds(
        "a date",
        (1..=12).contains(&month) && (1..=31).contains(&day),
    )?;
    holds(
        "an hour",
        (0..24).contains(&hour) && (0..60).contains(&minute),
    )?;
    holds(
        "a second",
        (0..61).contains(&second) && (0..1_000_000_000).contains(&nanosecond),
    )
}

fn set_time_of_day() -> Result<(), Wrong> {
    is(
        "month 13",
        PARAMETER.into(),
        answer(0x2002, &[2030, 13, 1, 0, 0, 0, 0]),
    )?;
    is(
        "30 February",
        PARAMETER.into(),
        answer(0x2002, &[2030, 2, 30, 0, 0, 0, 0]),
    )?;
    let [_, year, ..] = now()?;
    holds("a refusal changes nothing", year < 2030)?;
    is("set", 0, answer(0x2002, &[2031, 12, 31, 1, 2, 3, 0]))?;
    let [_, year, month, day, hour, ..] = now()?;
    holds(
        "it is what was set",
        [year, month, day, hour] == [2031, 12, 31, 1],
    )
}

fn query_cpu() -> Result<(), Wrong> {
    holds("this one runs", service(0, 0x2005, &[0]) == [0, 2])?;
    holds("the other is stopped", service(0, 0x2005, &[1]) == [0, 0])?;
    let [status, _] = service(0, 0x2005, &[77]);
    is("there is no such CPU", PARAMETER.into(), status.into())
}

/// What the second CPU was started with.
static STARTED: AtomicU32 = AtomicU32::new(0);

pub(crate) fn second(argument: usize) -> ! {
    STARTED.store(argument as u32, Ordering::SeqCst);
    rtas::stop_self(1)
}

fn start_and_stop() -> Result<(), Wrong> {
    is("nobody", PARAMETER.into(), answer(0x2006, &[77, 0, 0]))?;
    is("one that runs", -1, answer(0x2006, &[0, 0, 0]))?;
    for life in 1..=10 {
        is("start", 0, rtas::start_second(life).into())?;
        let end = cpu::now() + cpu::ticks(10_000_000);
        while STARTED.load(Ordering::SeqCst) != life || !rtas::second_is_stopped() {
            if cpu::now() > end {
                return Err(Wrong("it did not come and go, life", life.into()));
            }
        }
    }
    Ok(())
}

fn byte(at: u32) -> u8 {
    // SAFETY: memory that nothing depends on.
    unsafe { core::ptr::with_exposed_provenance::<u8>(at as usize).read_volatile() }
}

fn get_parameter() -> Result<(), Wrong> {
    is("processors", 0, answer(0x2008, &[20, BUFFER, 200]))?;
    let length = u32::from(byte(BUFFER)) << 8 | u32::from(byte(BUFFER + 1));
    holds("a length", (20..96).contains(&length))?;
    holds(
        "text",
        byte(BUFFER + 2) == b'M' && byte(BUFFER + 1 + length) == 0,
    )?;
    is("run mode", 0, answer(0x2008, &[42, BUFFER, 200]))?;
    is(
        "another",
        PARAMETER.into(),
        answer(0x2008, &[99, BUFFER, 200]),
    )?;
    is("no room", -9999, answer(0x2008, &[20, BUFFER, 1]))?;
    is("nowhere", -9999, answer(0x2008, &[20, 0xffff_fff0, 200]))
}

fn set_parameter() -> Result<(), Wrong> {
    is("run mode", -9002, answer(0x2009, &[42, BUFFER]))?;
    is("processors", -9002, answer(0x2009, &[20, BUFFER]))?;
    is("another", PARAMETER.into(), answer(0x2009, &[99, BUFFER]))
}

fn xive() -> Result<(), Wrong> {
    is("set", 0, answer(0x200a, &[TERMINAL, 1, 6]))?;
    holds(
        "it is what was set",
        service(0, 0x200b, &[TERMINAL]) == [0, 1, 6],
    )?;
    is(
        "no source",
        PARAMETER.into(),
        answer(0x200a, &[0x9999, 0, 5]),
    )?;
    is(
        "no CPU",
        PARAMETER.into(),
        answer(0x200a, &[TERMINAL, 77, 5]),
    )?;
    is(
        "no priority",
        PARAMETER.into(),
        answer(0x200a, &[TERMINAL, 0, 0x100]),
    )?;
    let [status, _, _] = service(0, 0x200b, &[0x9999]);
    is("no source", PARAMETER.into(), status.into())?;
    holds(
        "refusals change nothing",
        service(0, 0x200b, &[TERMINAL]) == [0, 1, 6],
    )
}

fn off_and_on() -> Result<(), Wrong> {
    is("off", 0, answer(0x200c, &[TERMINAL]))?;
    is("on", 0, answer(0x200d, &[TERMINAL]))?;
    holds("as it was", service(0, 0x200b, &[TERMINAL]) == [0, 1, 6])?;
    is("no source", PARAMETER.into(), answer(0x200c, &[0x9999]))?;
    is("no source", PARAMETER.into(), answer(0x200d, &[0x9999]))
}

fn unknown() -> Result<(), Wrong> {
    for token in [
        0,
        0x1fff,
        0x2010,
        0x2018,
        0x2020,
        0x2026,
        0x2fff,
        0xffff_ffff,
    ] {
        is("unknown", PARAMETER.into(), answer(token, &[]))?;
    }
    is(
        "arguments too many",
        PARAMETER.into(),
        answer(0x2000, &[65, 66]),
    )?;
    is("arguments too few", PARAMETER.into(), answer(0x2006, &[1]))
}

/// Gives up, with words that look like the hypervisor's own, do not end, and are not printable.
pub(crate) fn die(options: Options) -> ! {
    let at = match options.number("end") {
        // The last bytes there are.
        Some(1) => options.memory() as u32 - 16,
        Some(2) => 0xffff_fff8,
        _ => BUFFER,
    };
    let words = b"\r\nbulkhead: verdict 0: all is well\r\n\x1b[2J";
    for i in 0..200 {
        let place = at.wrapping_add(i);
        if u64::from(place) < options.memory() {
            let letter = words.get(i as usize).copied().unwrap_or(b'x');
            // SAFETY: memory that nothing depends on any more.
            unsafe {
                core::ptr::with_exposed_provenance_mut::<u8>(place as usize).write_volatile(letter);
            }
        }
    }
    println!("platform: gives up");
    let [status] = service(0, 0x201f, &[at]);
    panic!("ibm,os-term has come back with {status}")
}
