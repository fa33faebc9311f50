//! The guest's DMA windows.

use crate::hcall::{GET_TCE, PUT_TCE, PUT_TCE_INDIRECT, STUFF_TCE, call};
use crate::pci::Function;
use crate::rtas;

/// The rights of an entry.
pub const READ: u64 = 1;
/// See [`READ`].
pub const WRITE: u64 = 2;

/// The default window of a host bridge of the guest's, by its number in the machine.
pub const fn default_window(bridge: u64) -> u64 {
    0x8000_0000 | bridge << 8
}

/// Writes an entry; the status.
pub fn put(liobn: u64, at: u64, tce: u64) -> i64 {
    call(PUT_TCE, [liobn, at, tce, 0]).0
}

/// Reads an entry.
pub fn get(liobn: u64, at: u64) -> Result<u64, i64> {
    match call(GET_TCE, [liobn, at, 0, 0]) {
        (0, tce) => Ok(tce),
        (status, _) => Err(status),
    }
}

/// Writes entries from a list in memory.
pub fn put_list(liobn: u64, at: u64, list: u64, count: u64) -> i64 {
    call(PUT_TCE_INDIRECT, [liobn, at, list, count]).0
}

/// Writes the same to several entries.
pub fn stuff(liobn: u64, at: u64, tce: u64, count: u64) -> i64 {
    call(STUFF_TCE, [liobn, at, tce, count]).0
}

/// Makes a window: its LIOBN and its first bus address.
pub fn create_window(of: Function, page_shift: u32, shift: u32) -> Result<(u64, u64), i32> {
    let [_, high, low] = of.name();
    let [status, liobn, above, below] =
        rtas::service(0, 0x2027, &[0, high, low, page_shift, shift]);
    let cell = |cell: i32| u64::from(cell.cast_unsigned());
    match status {
        0 => Ok((cell(liobn), cell(above) << 32 | cell(below))),
        status => Err(status),
    }
}

/// Removes a window, for as often as it says that it is busy.
pub fn remove_window(liobn: u64) -> i32 {
    for _ in 0..10_000 {
        let [status] = rtas::service(0, 0x2028, &[liobn as u32]);
        if status != -2 {
            return status;
        }
    }
    -2
}
