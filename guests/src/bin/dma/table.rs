//! DMA to a table of MSI-X: who writes there decides what interrupts whom.
//!
//! With `at` it is the page of a table of somebody else's, by the machine's address: each device writes what would be
//! its first four vectors, to be sent to the doorbell with the number 0. Without, it is the table of a function of the
//! guest's own, and `reach` says whether DMA gets there; the guest looks.

use guests::edu::Direction;
use guests::options::Options;
use guests::platform::DOORBELL;
use guests::{mmio, println};

use crate::memory::{self, SOURCE};
use crate::{Devices, Failure, Summary, Verdict};

const ENTRY: u64 = 16;
const VECTORS: u64 = 4;
const PAGE: usize = 4096;
/// Where in an entry the number is that is sent.
const DATA: usize = 8;
const BEFORE: u32 = 0x11;
const SENT: u32 = 0x22;

pub(crate) fn run(options: &Options) -> Verdict {
    let devices = Devices::open()?;
    let Some(at) = options.number("at") else {
        return own(&devices, options.number("reach").unwrap_or(0) != 0);
    };
    for vector in 0..VECTORS {
        // Address, then number and no mask.
        memory::write(SOURCE + vector * ENTRY, DOORBELL as u64);
        memory::write(SOURCE + vector * ENTRY + 8, 0);
    }
    for edu in devices.iter() {
        edu.transfer(Direction::Read, SOURCE, 0, VECTORS * ENTRY)?;
        for word in (0..VECTORS * ENTRY).step_by(4) {
            edu.transfer(Direction::Write, at + word, word, 4)?;
        }
        println!("dma beat: {VECTORS} vectors at {at:#x}");
    }
    Ok(Summary::new(&[("devices", devices.count()), ("at", at)]))
}

fn own(devices: &Devices, may: bool) -> Verdict {
    let msix = crate::flood::find_table()?.ok_or("no function has MSI-X")?;
    if !may {
        for place in [msix.table, msix.pending] {
            touch(place & !(PAGE - 1));
        }
        println!("dma beat: pages with a table and pending bits, read and written at each width");
    }
    let number = msix.table + DATA;
    mmio::write32(number, BEFORE);
    memory::fill_with(SOURCE, 64, SENT.into());
    for edu in devices.iter() {
        edu.transfer(Direction::Read, SOURCE, 0, 64)?;
        edu.transfer(Direction::Write, number as u64, 0, 4)?;
    }
    let found = mmio::read32(number);
    let wanted = if may { SENT } else { BEFORE };
    if found != wanted {
        return Err(Failure(
            "a vector after DMA to it: found, wanted, where",
            [found.into(), wanted.into(), number as u64],
        ));
    }
    Ok(Summary::new(&[
        ("devices", devices.count()),
        ("reach", may.into()),
        ("vectors", msix.vectors as u64),
    ]))
}

/// Reads and writes a page of registers at each width, whatever the device takes.
fn touch(page: usize) {
    for at in (page..page + PAGE).step_by(8) {
        let _ = mmio::read8(at + 1);
        let _ = mmio::read16(at + 2);
        let _ = mmio::read32(at + 4);
        let _ = mmio::read64(at);
        mmio::write8(at + 1, 0);
        mmio::write16(at + 2, 0);
        mmio::write32(at + 4, 0);
        mmio::write64(at, 0);
    }
}
