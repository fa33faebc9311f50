//! A guest that goes in the middle of lists of entries and of a DMA. The next one that has the device, the
//! same VM's or another's, must find no entry of before, and see nothing arrive.

use power_guests::edu::{BUFFER, Direction, Edu};
use power_guests::tce::{self, READ, WRITE};
use power_guests::{cpu, println, wait};

use crate::memory::{self, LIST, SOURCE, TARGET};
use crate::{Failure, fail};

pub(crate) const RIGHTS: u64 = READ | WRITE;
pub(crate) const COUNT: u64 = 512;
/// Where lists go: so many, one after another.
pub(crate) const LISTS: u64 = 64;
pub(crate) const FROM: u64 = 0x1000_0000;
pub(crate) const TO: u64 = 0x1000_1000;
/// How long is looked, in microseconds.
const LOOK_US: u64 = 20_000;

pub(crate) fn run(edu: Edu, bridge: u64) -> Result<(), Failure> {
    let window = tce::default_window(bridge);
    if edu.is_busy() {
        return fail("the device still does what an earlier life told it", [0, 0]);
    }
    for at in (0..LISTS * COUNT).step_by(61) {
        match tce::get(window, at << 12) {
            Ok(0) => {}
            found => {
                return fail(
                    "an entry of an earlier life",
                    [at, found.unwrap_or(u64::MAX)],
                );
            }
        }
    }
    for (at, page) in [(FROM, SOURCE), (TO, TARGET)] {
        if tce::get(window, at) != Ok(0) || tce::put(window, at, page | RIGHTS) != 0 {
            return fail("an entry of an earlier life, or none of this", [at, 0]);
        }
    }
    let Some(source) = edu.function.message() else {
        return fail("there is no message for the device", [0, 0]);
    };
    wait::until(cpu::now() + cpu::ticks(LOOK_US));
    if wait::came(source) + wait::strange(source) != 0 {
        return fail("a message of an earlier life", [wait::came(source), 0]);
    }
    if let Some(at) = (0..BUFFER)
        .step_by(8)
        .find(|at| memory::read(TARGET + at) != 0)
    {
        return fail("a DMA of an earlier life", [at, memory::read(TARGET + at)]);
    }
    // The control: such a DMA arrives when it is let be.
    memory::fill(SOURCE, BUFFER, 3);
    edu.dma(Direction::Read, FROM, 0, BUFFER);
    edu.dma(Direction::Write, TO, 0, BUFFER);
    if let Some(at) = memory::differ(SOURCE, TARGET, BUFFER) {
        return fail("DMA does not bring what is mapped", [at, 0]);
    }
    for entry in 0..COUNT {
        let tce = (SOURCE + ((entry % 16) << 12)) | RIGHTS;
        memory::write(LIST + entry * 8, tce.to_be());
    }
    edu.start(Direction::Write, TO, 0, BUFFER);
    println!("dma linger: nothing is left of before, a DMA is under way");
    let mut round = 0;
    loop {
        storm(edu, window, round)?;
        round += 1;
    }
}

/// Entries by every call, and now and then a window of its own that goes with a DMA in it.
fn storm(edu: Edu, window: u64, round: u64) -> Result<(), Failure> {
    let at = ((round % LISTS) * COUNT) << 12;
    for (what, status) in [
        ("a list", tce::put_list(window, at, LIST, COUNT)),
        ("an exchange", tce::put(window, at, TARGET | RIGHTS)),
        ("an empty entry", tce::put(window, at + 0x7000, 0)),
    ] {
        if status != 0 {
            return fail(what, [round, status.cast_unsigned()]);
        }
    }
    // Half of the lists stay.
    if round.is_multiple_of(2) && tce::stuff(window, at, 0, COUNT) != 0 {
        return fail("entries do not go", [round, 0]);
    }
    if round.is_multiple_of(32) {
        let Ok((liobn, base)) = tce::create_window(edu.function, 16, 28) else {
            return fail("no window", [round, 0]);
        };
        let put = tce::put(liobn, base, TARGET | RIGHTS);
        if !edu.is_busy() {
            edu.start(Direction::Write, base, 0, BUFFER);
        }
        if put != 0 || tce::remove_window(liobn) != 0 {
            return fail("a window does not go", [round, 0]);
        }
    }
    Ok(())
}
