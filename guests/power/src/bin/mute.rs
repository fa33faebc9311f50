//! A guest that must have no console: the tree describes none, and no call for one is answered.
//!
//! It can tell nobody, so its end does: it turns itself off when all is as it must be, and resets itself otherwise.
#![no_std]
#![no_main]

use power_guests::hcall::{GET_TERM_CHAR, PUT_TERM_CHAR, call};
use power_guests::options::Options;
use power_guests::{guest, rtas};

guest! { main: main, secondary: secondary }

fn main(options: Options) -> ! {
    const TERMINAL: u64 = 0x7100_0000;
    const H_PARAMETER: i64 = -4;
    let refused = [0, TERMINAL].into_iter().all(|unit| {
        let (put, _) = call(PUT_TERM_CHAR, [unit, 1, u64::from(b'!') << 56, 0]);
        let (get, _) = call(GET_TERM_CHAR, [unit, 0, 0, 0]);
        [put, get] == [H_PARAMETER; 2]
    });
    if !options.console() && refused {
        rtas::power_off()
    }
    rtas::reboot()
}

fn secondary(_: usize) -> ! {
    rtas::reboot()
}
