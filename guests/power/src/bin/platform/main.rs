//! A guest that asks for each hypercall and each run-time service by name, for what it does and what it refuses;
//! one that looks at its clocks; and one that gives up.
//!
//! The first word of the command line says what to do.
//!
//! | word | what |
//! |---|---|
//! | `calls` | each hypercall of docs/papr.md, then `platform verdict: calls ok=N failed=N`; with `wrong=1` one expectation is wrong |
//! | `services` | the same of run-time services; two CPUs |
//! | `clocks` | what VTB, PURR and SPURR say beside the time base, for `ms` (200) |
//! | `wakes` | two CPUs that end each other's waits by prods and interrupts, `rounds` (20000) times |
//! | `die` | `ibm,os-term` with words that are too long and unprintable; at the end of memory with `end=1`, nowhere with `end=2` |
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(unsafe_code, reason = "the guest has its memory to itself")]
#![expect(clippy::cast_possible_truncation, reason = "small numbers")]

mod calls;
mod clocks;
mod services;
mod wakes;

use power_guests::options::Options;
use power_guests::{cpu, guest, println, rtas};

guest! { main: main, secondary: second }

/// What a check expected, and what there was.
#[derive(Clone, Copy, Debug)]
struct Wrong(&'static str, i64);

type Check = (&'static str, fn() -> Result<(), Wrong>);

/// Ok, or what was there.
fn is(what: &'static str, expected: i64, found: i64) -> Result<(), Wrong> {
    if found == expected {
        Ok(())
    } else {
        Err(Wrong(what, found))
    }
}

/// As [`is`], of any condition.
fn holds(what: &'static str, condition: bool) -> Result<(), Wrong> {
    is(what, 1, condition.into())
}

/// Carries out checks, a line for each.
fn run(name: &str, checks: &[Check]) {
    let (mut ok, mut failed) = (0_u32, 0_u32);
    for (what, check) in checks {
        match check() {
            Ok(()) => {
                ok += 1;
                println!("platform ok: {what}");
            }
            Err(Wrong(why, found)) => {
                failed += 1;
                println!("platform FAILED: {what}: {why}: {found}");
            }
        }
    }
    println!("platform verdict: {name} ok={ok} failed={failed}");
}

fn second(argument: usize) -> ! {
    match argument {
        wakes::ARGUMENT => wakes::second(),
        life => services::second(life),
    }
}

fn main(options: Options) -> ! {
    cpu::set_decrementer(i64::from(i32::MAX));
    match options.command() {
        Some("calls") => {
            run("calls", &calls::CHECKS);
            if options.number("wrong") == Some(1) {
                run(
                    "wrong",
                    &[("the control", || is("an expectation that is wrong", -4, 0))],
                );
            }
        }
        Some("services") => run("services", &services::CHECKS),
        Some("wakes") => wakes::run(options),
        Some("clocks") => clocks::watch(options),
        Some("die") => services::die(options),
        _ => println!("platform FAILED: there is no such task"),
    }
    rtas::power_off()
}
