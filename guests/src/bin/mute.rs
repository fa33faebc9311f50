//! A guest that must have no console: the tree describes none, and none answers where it would be.
//!
//! It can tell nobody, so its end does: it turns itself off when all is as it must be, and resets itself otherwise.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use guests::exception::{Frame, Kind};
use guests::options::Options;
use guests::{guest, mmio, platform, psci, read_register};

guest! { main: main, secondary: secondary, exception: exception }

/// Data aborts so far.
static ABORTS: AtomicU64 = AtomicU64::new(0);

fn main(options: Options) -> ! {
    const UARTDR: usize = 0x00;
    const UARTFR: usize = 0x18;
    mmio::write8(platform::UART + UARTDR, b'!');
    let _ = mmio::read32(platform::UART + UARTFR);
    // What is next to it answers.
    let _ = mmio::read32(platform::RTC);
    if !options.console() && ABORTS.load(Ordering::Relaxed) == 2 {
        psci::system_off()
    }
    psci::system_reset()
}

fn secondary(_: usize) -> ! {
    psci::system_reset()
}

fn exception(frame: &mut Frame) {
    /// A data abort from the same exception level. [DDI 0487 D24.2.40]
    const DATA_ABORT: u64 = 0x25;
    if frame.kind() != Kind::Synchronous || read_register!("esr_el1") >> 26 != DATA_ABORT {
        psci::system_reset()
    }
    ABORTS.fetch_add(1, Ordering::Relaxed);
    frame.skip();
}
