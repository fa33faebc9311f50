//! Two VMs that call for entries at the same time: one writes lists without a pause, the other single entries, each of
//! which must get its turn.

use power_guests::edu::Edu;
use power_guests::options::Options;
use power_guests::{cpu, println, tce};

use crate::linger::{COUNT, LISTS, RIGHTS};
use crate::memory::{self, LIST, SOURCE, TARGET};
use crate::{Failure, fail};

/// Lists of pages that do not follow one another, until it is stopped.
pub(crate) fn lists(_: Edu, bridge: u64) -> Result<(), Failure> {
    let window = tce::default_window(bridge);
    for entry in 0..COUNT {
        let tce = (SOURCE + ((entry * 7 % 16) << 12)) | RIGHTS;
        memory::write(LIST + entry * 8, tce.to_be());
    }
    println!("dma lists: begins");
    for round in 0_u64.. {
        let at = ((round % LISTS) * COUNT) << 12;
        let status = tce::put_list(window, at, LIST, COUNT);
        if status != 0 {
            return fail("a list is refused", [round, status.cast_unsigned()]);
        }
    }
    Ok(())
}

/// Single entries for `us` (2000000), with the longest that one took.
pub(crate) fn puts(_: Edu, bridge: u64, options: Options) -> Result<(), Failure> {
    let window = tce::default_window(bridge);
    let end = cpu::now() + cpu::ticks(options.number("us").unwrap_or(2_000_000));
    let (mut count, mut longest, mut all) = (0_u64, 0, 0);
    let mut before = cpu::now();
    while before < end {
        let tce = if count.is_multiple_of(2) {
            TARGET | RIGHTS
        } else {
            0
        };
        let status = tce::put(window, (count / 2 % 0x1000) << 12, tce);
        if status != 0 {
            return fail("an entry is refused", [count, status.cast_unsigned()]);
        }
        let now = cpu::now();
        longest = longest.max(now - before);
        all += now - before;
        before = now;
        count += 1;
    }
    let us = |ticks| ticks * 1_000_000 / cpu::FREQUENCY;
    println!(
        "dma verdict: puts ok: calls={count} longest_us={} average_ns={}",
        us(longest),
        us(all * 1000 / count)
    );
    Ok(())
}
