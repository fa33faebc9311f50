//! As many entries that have nothing to do with each other as there may be, and then as many messages.

use power_guests::pci::Function;
use power_guests::{cpu, println, tce, wait};

use crate::assign::{MANY, MSIX, change};
use crate::linger::RIGHTS;
use crate::memory::TARGET;
use crate::{Failure, fail};

/// Entries that the hypervisor keeps together.
const CHUNK: u64 = 512;
/// What lack of memory is called.
const RESOURCE: i64 = -16;
/// Log2 of the bytes of the default window, and of its own.
const DEFAULT_SHIFT: u32 = 30;
const OWN_SHIFT: u32 = 32;
/// How long it waits between looks, in microseconds.
const WAIT_US: u64 = 100_000;

/// One entry in each chunk of a window, until one is refused: how many were not, and the last status.
fn spread(liobn: u64, base: u64, shift: u32) -> (u64, i64) {
    for chunk in 0..1 << (shift - 12) >> CHUNK.trailing_zeros() {
        let status = tce::put(liobn, base + ((chunk * CHUNK) << 12), TARGET | RIGHTS);
        if status != 0 {
            return (chunk, status);
        }
    }
    (1 << (shift - 12) >> CHUNK.trailing_zeros(), 0)
}

/// The device with many messages is at 00:02.0.
pub(crate) fn run(phb: u64) -> Result<(), Failure> {
    let other = Function::new(phb, 0, 2);
    let default = tce::default_window(phb);
    let own = match tce::create_window(other, 12, OWN_SHIFT) {
        Ok(window) => window,
        Err(status) => return fail("no window", [u64::from(status.cast_unsigned()), 0]),
    };
    let (first, mut status) = spread(default, 0, DEFAULT_SHIFT);
    let mut second = 0;
    if status == 0 {
        (second, status) = spread(own.0, own.1, OWN_SHIFT);
    }
    if status != RESOURCE {
        return fail("entries are not refused", [first + second, status as u64]);
    }
    // An entry in a chunk that is there is no more of them, and one that goes makes room for another.
    let same = tce::put(default, 1 << 12, TARGET | RIGHTS);
    let beyond = own.1 + (((second + 1) * CHUNK) << 12);
    let gone = [
        tce::put(own.0, own.1, 0),
        tce::put(own.0, beyond, TARGET | RIGHTS),
    ];
    if same != 0 || gone != [0, 0] {
        return fail(
            "an entry is refused for others",
            [same as u64, gone[1] as u64],
        );
    }
    let [status, count, ..] = change(other, MSIX, MANY);
    if status != 0 || count < 64 {
        return fail("many messages are not some", [status as u64, count as u64]);
    }
    println!("dma drain: {} chunks, {count} messages", first + second);
    loop {
        wait::until(cpu::now() + cpu::ticks(WAIT_US));
    }
}
