//! What redistributors read of LPIs: one configuration table, and a pending table each. [§5.1]

use hal::{Clock, FrameAllocator, Mmio, SharedMemory};
use types::{Address, Pa};

use crate::its::order_for;
use crate::redistributor::PENDING_WRITE;
use crate::{Error, Snoop, attributes, settle};

/// The first INTID that is an LPI.
pub const FIRST_LPI: u32 = 8192;
/// How many LPIs there are: INTIDs have 14 bits.
pub const LPIS: u32 = 8192;
/// `IDbits`: one less than the bits of an INTID.
const ID_BITS: u64 = 13;
/// A pending table has a bit for every INTID, on a 64 KiB boundary.
const PENDING_BYTES: usize = 1 << (ID_BITS + 1 - 3);
const PENDING_ORDER: u8 = 4;

const GICR_CTLR: usize = 0x00;
const GICR_TYPER: usize = 0x08;
const GICR_PROPBASER: usize = 0x70;
const GICR_PENDBASER: usize = 0x78;
const ENABLE_LPIS: u32 = 1;

/// Priority of every LPI of ours, and its enable bit: what a guest wants of an LPI is decided in its
/// own controller.
const ENABLED: u8 = 0xa0 | 1;
/// The same, kept out: it stays pending.
const DISABLED: u8 = 0xa0;

/// Whether an LPI comes to its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It comes.
    On,
    /// It becomes pending, and comes when it is on again.
    Off,
}

/// The tables of all LPIs of the machine.
#[derive(Debug)]
pub struct Lpis<P> {
    memory: P,
    table: Pa,
    snoop: Snoop,
}

impl<P: SharedMemory> Lpis<P> {
    /// Makes the configuration table: every LPI enabled, at one priority. An LPI without an event
    /// cannot come.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new<F: FrameAllocator>(memory: P, frames: &F, snoop: Snoop) -> Result<Self, Error> {
        let bytes = LPIS as usize;
        let table = frames.alloc_zeroed(order_for(bytes as u64))?;
        let line = [ENABLED; 64];
        for at in (0..bytes as u64).step_by(line.len()) {
            memory.write(table.checked_add(at).ok_or(Error::NotMemory)?, &line)?;
        }
        match snoop {
            Snoop::Coherent => memory.publish(),
            Snoop::NonCoherent => memory.clean_to_memory(table, bytes),
        }
        Ok(Self {
            memory,
            table,
            snoop,
        })
    }

    /// Turns an LPI on or off, the `place`th from [`FIRST_LPI`]. Redistributors may know it as it was until
    /// [`Its::invalidate_all`](crate::Its::invalidate_all).
    ///
    /// # Errors
    /// [`Error::NotMemory`]: there is no such LPI.
    pub fn set(&self, place: u32, delivery: Delivery) -> Result<(), Error> {
        let at = self.table.checked_add(place.into());
        let at = at.filter(|_| place < LPIS).ok_or(Error::NotMemory)?;
        let byte = match delivery {
            Delivery::On => ENABLED,
            Delivery::Off => DISABLED,
        };
        self.memory.write(at, &[byte])?;
        // A redistributor that cannot share does not snoop, whatever the platform says.
        self.memory.clean_to_memory(at, 1);
        Ok(())
    }

    /// Lets a redistributor have LPIs. `frame` is its first frame.
    ///
    /// # Errors
    /// [`Error::NoLpis`]; [`Error::OutOfMemory`]; [`Error::Register`] when it has LPIs on with tables
    /// from before us and does not let go of them (`GICR_CTLR.EnableLPIs` may be sticky).
    pub fn enable<M: Mmio, F: FrameAllocator>(
        &self,
        frame: &M,
        frames: &F,
        clock: &dyn Clock,
    ) -> Result<(), Error> {
        if frame.read64(GICR_TYPER) & 1 == 0 {
            return Err(Error::NoLpis);
        }
        let control = frame.read32(GICR_CTLR);
        if control & ENABLE_LPIS != 0 {
            frame.write32(GICR_CTLR, control & !ENABLE_LPIS);
            settle(frame, clock, PENDING_WRITE, "GICR_CTLR.RWP")?;
            if frame.read32(GICR_CTLR) & ENABLE_LPIS != 0 {
                return Err(Error::Register("GICR_CTLR.EnableLPIs"));
            }
        }
        let pending = frames.alloc_zeroed(PENDING_ORDER)?;
        self.memory.clean_to_memory(pending, PENDING_BYTES);
        let (cache, share) = attributes(self.snoop);
        let attributes = cache << 7 | share << 10;
        frame.write64(GICR_PROPBASER, self.table.bits() | attributes | ID_BITS);
        // PTZ: the table is zero.
        frame.write64(GICR_PENDBASER, 1 << 62 | pending.bits() | attributes);
        if frame.read64(GICR_PROPBASER) >> 10 & 3 == 0 && share != 0 {
            // It cannot share: then it cannot cache either, and the table has to be in memory.
            let (cache, share) = self::attributes(Snoop::NonCoherent);
            let attributes = cache << 7 | share << 10;
            self.memory.clean_to_memory(self.table, LPIS as usize);
            frame.write64(GICR_PROPBASER, self.table.bits() | attributes | ID_BITS);
            frame.write64(GICR_PENDBASER, 1 << 62 | pending.bits() | attributes);
        }
        frame.write32(GICR_CTLR, frame.read32(GICR_CTLR) | ENABLE_LPIS);
        self.memory.publish();
        Ok(())
    }
}
