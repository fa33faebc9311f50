//! What registers that count time say beside the time base.
//!
//! A register that says no more than the time base is always the same number of ticks from it, however long
//! others had the thread meanwhile.

use core::arch::asm;

use power_guests::cpu;
use power_guests::options::Options;
use power_guests::println;

/// By how much a register can be from the time base: greater than all of these, less than all of those.
#[derive(Clone, Copy)]
struct Distance {
    least: i64,
    most: i64,
}

impl Distance {
    const ANY: Self = Self {
        least: i64::MIN,
        most: i64::MAX,
    };

    /// It was read between two looks at the time base.
    fn narrow(&mut self, [before, value, after]: [u64; 3]) {
        let from = |time: u64| value.wrapping_sub(time).cast_signed();
        self.least = self.least.max(from(after));
        self.most = self.most.min(from(before));
    }

    /// One distance explains everything that was seen.
    fn name(self) -> &'static str {
        if self.least <= self.most {
            "the-time-base"
        } else {
            "its-own"
        }
    }
}

macro_rules! between {
    ($number:literal) => {{
        let (before, value, after): (u64, u64, u64);
        // SAFETY: reads registers.
        unsafe {
            asm!(
                "mftb {0}",
                concat!("mfspr {1}, ", $number),
                "mftb {2}",
                out(reg) before, out(reg) value, out(reg) after,
                options(nomem, nostack),
            );
        }
        [before, value, after]
    }};
}

pub(crate) fn watch(options: Options) {
    let end = cpu::now() + cpu::ticks(options.number("ms").unwrap_or(200) * 1000);
    let [mut vtb, mut purr, mut spurr, mut control] = [Distance::ANY; 4];
    let (mut samples, mut longest, mut last) = (0_u64, 0, cpu::now());
    while cpu::now() < end {
        samples += 1;
        vtb.narrow(between!(849));
        purr.narrow(between!(309));
        spurr.narrow(between!(308));
        // What would be a register that stands still while others have the thread.
        let [before, ..] = between!(849);
        control.narrow([before, samples * 100, before]);
        longest = longest.max(before - last);
        last = before;
    }
    println!(
        "platform verdict: clocks vtb={} purr={} spurr={} ic={} control={} away_us={}",
        vtb.name(),
        purr.name(),
        spurr.name(),
        between!(848)[1],
        control.name(),
        longest / cpu::ticks(1)
    );
}
