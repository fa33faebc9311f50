//! A guest with a device that masters the bus: QEMU's `edu` behind the host bridge `phb=N` (in
//! `slot=N` of `bus=N`, 0). It uses it, and tries to reach with it what is not its.
//!
//! The first word of the command line says what to do; each ends with one line, `dma verdict: NAME ok:
//! …` or `dma verdict: NAME FAILED: …`.
//!
//! | word | what |
//! |---|---|
//! | `sweep` | entries for all of the machine, in every kind of call; DMA to and from where no entry is, not for that, not any more, or another's; windows made and removed; `top` (8 GiB) ends the machine |
//! | `watch` | has memory and a device that others want, for `beats` (100) periods of `period_us` (100000); both must stay as they are |
//! | `forge` | messages with the numbers of others, by plain DMA, `times` (10) after `wait_us` (1000000) |
//! | `linger` | looks whether anything of an earlier life is there or comes; then writes entries, makes and removes windows, with a DMA under way, until it is stopped |
//! | `messages` | as many as `times` (100), one after the other, each of which must come within `patience_us` (10000000) |
//! | `flood` | messages without a pause for `us` (200000); more than `most` (6000) must not come |
//! | `pin` | the interrupt pin, `times` (20): comes while it is up and ended, not while it is served, masked or off |
//! | `storm` | a pin that is never taken down, for `us` (500000), its interrupts ended at once |
//! | `plug` | writes entries with a DMA under way until its host bridge is taken away, looks at what is left, waits until it is back, and begins again |
//! | `loads` | reads a register without a pause while its host bridge is taken away and given back, until it is stopped |
//! | `error` | injects errors into its own PE, by every way to say so, and looks what is stopped: registers, configuration space, DMA, messages |
//! | `assign` | how many messages it has, by calls right and wrong, beside a bridge and a device of many |
//! | `drain` | an entry in each 512 of its windows until one is refused, then many messages; keeps them until it is stopped |
//! | `peer` | registers of the `edu` behind host bridge `other` by DMA, if `granted`; of one behind `foreign`, which another VM has, none |
//! | `race` | with two CPUs: lists of entries by the second while the first removes the window that they go to, with a DMA to it under way |
//! | `orphan` | registers of the `edu` behind host bridge `other` by DMA, until that one is taken away, and when it is given back |
//! | `services` | services for windows and errors without a pause for `us` (1000000), right and wrong ones |
//! | `lists` | lists of entries without a pause, until it is stopped |
//! | `puts` | single entries without a pause for `us` (2000000), and the longest that one took |
//! | `leave` | looks whether an interrupt of an earlier life comes; leaves the pin up until it is stopped |
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "the guest has its memory to itself")]
#![expect(clippy::cast_possible_truncation, reason = "small numbers")]

mod assign;
mod connector;
mod drain;
mod error;
mod forge;
mod linger;
mod memory;
mod peer;
mod pin;
mod plug;
mod race;
mod services;
mod sweep;
mod turns;
mod watch;

use core::fmt;

use power_guests::edu::Edu;
use power_guests::options::Options;
use power_guests::pci::Function;
use power_guests::{cpu, guest, println, rtas};

guest! { main: main, secondary: secondary }

const NAMES: [&str; 20] = [
    "assign", "sweep", "watch", "forge", "messages", "flood", "linger", "pin", "storm", "leave",
    "plug", "error", "peer", "race", "orphan", "services", "lists", "puts", "drain", "loads",
];

/// Why a guest fails: what, and up to two numbers that show it.
#[derive(Clone, Copy, Debug)]
struct Failure(&'static str, [u64; 2]);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = self.1;
        write!(f, "{} ({a:#x} {b:#x})", self.0)
    }
}

impl From<&'static str> for Failure {
    fn from(what: &'static str) -> Self {
        Self(what, [0; 2])
    }
}

fn fail<T>(what: &'static str, numbers: [u64; 2]) -> Result<T, Failure> {
    Err(Failure(what, numbers))
}

fn main(options: Options) -> ! {
    cpu::set_decrementer(i64::from(i32::MAX));
    let bridge = options.number("phb").unwrap_or(0);
    // The tree lies in memory that tasks fill.
    let wanted = options.command();
    let mut names = NAMES.into_iter();
    let name = names.find(|name| wanted == Some(name)).unwrap_or("nothing");
    println!("dma start: {name}");
    let cell = |name| options.number(name).unwrap_or(0) as u32;
    let function = Function::new(bridge, cell("bus"), cell("slot"));
    let done = match Edu::open(function) {
        None => Err("there is no edu".into()),
        Some(edu) => match name {
            "sweep" => sweep::run(edu, bridge, options),
            "watch" => watch::run(edu, bridge, options),
            "forge" => forge::run(edu, bridge, options),
            "messages" => forge::messages(edu, options),
            "flood" => forge::flood(edu, options),
            "pin" => pin::run(edu, options),
            "storm" => pin::storm(edu, options),
            "leave" => pin::leave(edu, options),
            "assign" => assign::run(edu, bridge),
            "drain" => drain::run(bridge),
            "error" => error::run(edu, bridge),
            "plug" => plug::run(edu, bridge),
            "loads" => plug::loads(edu),
            "linger" => linger::run(edu, bridge),
            "peer" => peer::run(edu, bridge, options),
            "orphan" => peer::orphan(edu, bridge, options),
            "lists" => turns::lists(edu, bridge),
            "puts" => turns::puts(edu, bridge, options),
            "services" => services::run(edu, options),
            "race" => race::run(edu, bridge),
            _ => Err("there is no such task".into()),
        },
    };
    if let Err(failure) = done {
        println!("dma verdict: {name} FAILED: {failure}");
    }
    rtas::power_off()
}

fn secondary(_: usize) -> ! {
    race::lists()
}
