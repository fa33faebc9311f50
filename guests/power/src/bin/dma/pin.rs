//! The device's interrupt pin, a level: it comes as long as it is up, not while it is served, masked or off.

use power_guests::edu::Edu;
use power_guests::options::Options;
use power_guests::pci::{MASTER, MEMORY, NO_PIN};
use power_guests::{cpu, hcall, println, rtas};

use crate::{Failure, fail};

const SET_XIVE: u32 = 0x200a;
const INT_OFF: u32 = 0x200c;
const INT_ON: u32 = 0x200d;

/// How long what must come is waited for, and what must not, in microseconds.
const COMES_US: u64 = 50_000;
const QUIET_US: u64 = 2_000;

/// The pin's source, which this CPU gets.
struct Pin {
    source: u32,
    came: u64,
}

impl Pin {
    fn open(options: Options) -> Result<Self, Failure> {
        let source = options.number("source").unwrap_or(0x1200) as u32;
        let [status] = rtas::service(0, SET_XIVE, &[source, 0, 5]);
        if status != 0 {
            return fail("the pin has no source", [source.into(), 0]);
        }
        // One pin is wired, and neither the machine's number nor another is known here.
        for other in [source + 1, source + 4, source + 8] {
            let [status] = rtas::service(0, SET_XIVE, &[other, 0, 5]);
            if status != -3 {
                return fail("there is another source", [other.into(), 0]);
            }
        }
        hcall::call(hcall::CPPR, [0xff, 0, 0, 0]);
        Ok(Self { source, came: 0 })
    }

    /// What `XIRR` gives within a time; 0 for nothing.
    fn wait(&mut self, us: u64) -> Result<u64, Failure> {
        let end = cpu::now() + cpu::ticks(us);
        while cpu::now() < end {
            let (_, accepted) = hcall::call(hcall::XIRR, [0; 4]);
            match accepted & 0xff_ffff {
                0 => {}
                source if source == u64::from(self.source) => {
                    self.came += 1;
                    return Ok(accepted);
                }
                other => return fail("an interrupt of another's came", [other, 0]),
            }
        }
        Ok(0)
    }

    fn comes(&mut self) -> Result<u64, Failure> {
        match self.wait(COMES_US)? {
            0 => fail("the pin is up, and no interrupt comes", [self.came, 0]),
            accepted => Ok(accepted),
        }
    }

    fn stays_quiet(&mut self, when: &'static str) -> Result<(), Failure> {
        match self.wait(QUIET_US)? {
            0 => Ok(()),
            accepted => fail(when, [accepted, self.came]),
        }
    }
}

fn end(accepted: u64) {
    hcall::call(hcall::EOI, [accepted, 0, 0, 0]);
}

pub(crate) fn run(edu: Edu, options: Options) -> Result<(), Failure> {
    let times = options.number("times").unwrap_or(20);
    let mut pin = Pin::open(options)?;
    pin.stays_quiet("an interrupt of before came")?;
    for _ in 0..times {
        edu.pin_up();
        let first = pin.comes()?;
        hcall::call(hcall::CPPR, [0xff, 0, 0, 0]);
        pin.stays_quiet("it came while it was served")?;
        end(first);
        // Up, so it comes again.
        let second = pin.comes()?;
        edu.pin_down();
        end(second);
        pin.stays_quiet("it came while it was down")?;
    }
    let [off] = rtas::service(0, INT_OFF, &[pin.source]);
    edu.pin_up();
    pin.stays_quiet("it came while it was masked")?;
    let [on] = rtas::service(0, INT_ON, &[pin.source]);
    let masked = pin.comes()?;
    edu.pin_down();
    end(masked);
    if [off, on] != [0, 0] {
        return fail("a mask is refused", [0, 0]);
    }
    edu.function.write(4, 2, MEMORY | MASTER | NO_PIN);
    edu.pin_up();
    pin.stays_quiet("it came while the device's pin was off")?;
    edu.function.write(4, 2, MEMORY | MASTER);
    let allowed = pin.comes()?;
    edu.pin_down();
    end(allowed);
    pin.stays_quiet("it came while it was down")?;
    println!(
        "dma verdict: pin ok: source={:#x} came={}",
        pin.source, pin.came
    );
    Ok(())
}

/// Never takes the pin down, and ends its interrupts as fast as it can.
pub(crate) fn storm(edu: Edu, options: Options) -> Result<(), Failure> {
    let us = options.number("us").unwrap_or(500_000);
    let mut pin = Pin::open(options)?;
    edu.pin_up();
    let stop = cpu::now() + cpu::ticks(us);
    while cpu::now() < stop {
        match pin.wait(COMES_US)? {
            0 => return fail("the pin is up, and no interrupt comes", [pin.came, 0]),
            accepted => end(accepted),
        }
        // Ends that nobody is owed change nothing.
        end(0xff00_0000 | u64::from(pin.source));
    }
    // 256 in 10 ms, and what a period may have begun with.
    let most = (us / 10_000 + 2) * 256;
    if pin.came > most || pin.came < 100 {
        return fail("so many interrupts came", [pin.came, most]);
    }
    let stormed = pin.came;
    edu.pin_down();
    while pin.wait(QUIET_US * 10)? != 0 {
        end(0xff00_0000 | u64::from(pin.source));
    }
    edu.pin_up();
    let last = pin.comes()?;
    edu.pin_down();
    end(last);
    println!("dma verdict: storm ok: came={stormed} most={most}");
    Ok(())
}

/// Says whether anything of an earlier life comes, sees that the pin works, and leaves it up and unserved until
/// it is stopped.
pub(crate) fn leave(edu: Edu, options: Options) -> Result<(), Failure> {
    let mut pin = Pin::open(options)?;
    pin.stays_quiet("an interrupt of before came")?;
    edu.pin_up();
    let first = pin.comes()?;
    end(first);
    let _ = pin.comes()?;
    println!("dma leave: the pin is up, its interrupt not ended");
    loop {
        let _ = pin.wait(QUIET_US);
    }
}
