//! The Arm binary: entry at EL2, vectors, system registers, and the glue from hardware to the pure
//! crates. One image for every Arm board: what a machine has is read from its device tree.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "this crate is where the hardware is touched")]

extern crate alloc;

mod console;
mod cpu;
mod early;
mod entry;
mod exception;
mod image;
mod memory;
mod panic;
mod smp;

use boot::{Logger, Verdict};
use dtoolkit::fdt::Fdt;
use types::{Pa, Span};

fn run(fdt: Span<Pa>) -> ! {
    // SAFETY: x
    let blob = unsafe { early::blob(fdt) };
    memory::start_heap();
    let f = Fdt::new(blob).unwrap();
    let uart = console::find(f).unwrap();
    unsafe { console::start(uart) };
    static LOGGER: Logger<console::Pl011, console::SystemCounter> =
        Logger::new(console::Pl011, console::SystemCounter, 0);
    log::set_logger(&LOGGER).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    log::info!("hello");
    let options =
        boot::Options::parse(f.chosen().unwrap().bootargs().unwrap().unwrap_or(""), |u| {
            log::warn!("{u:?}")
        });
    if options.self_test.is_some() {
        unsafe { (0x0 as *const u8).read_volatile() };
        panic!("test");
    }
    panic::end(Verdict::Good("nothing to run"))
}
