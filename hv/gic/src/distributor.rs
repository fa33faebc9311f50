//! The distributor: shared peripheral interrupts, each routed to one CPU. [§12.9]

use hal::{Clock, Mmio};

use crate::{Error, PRIORITY, settle};

const CTLR: usize = 0x0;
const TYPER: usize = 0x4;
const IGROUPR: usize = 0x80;
const ISENABLER: usize = 0x100;
const ICENABLER: usize = 0x180;
const ICACTIVER: usize = 0x380;
const IPRIORITYR: usize = 0x400;
const ICFGR: usize = 0xc00;
const IROUTER: usize = 0x6000;

/// Both enables of groups that there are. Bit 1 is group 1 in either world: `EnableGrp1` where there is one security state,
/// `EnableGrp1A` to the non-secure side where there are two.
const GROUPS: u32 = 3;
const GROUP_1: u32 = 1 << 1;
/// `ARE`, or `ARE_NS` to the non-secure side of two.
const AFFINITY_ROUTING: u32 = 1 << 4;
/// `RWP`: a write is still on its way.
const PENDING_WRITE: u32 = 1 << 31;

/// The first INTID of a shared peripheral interrupt.
const FIRST_SPI: u32 = 32;
/// INTIDs from here to 1,023 are no interrupts.
const FIRST_SPECIAL: u32 = 1020;

/// What makes an interrupt pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Its line rising.
    Edge,
    /// Its line being high.
    Level,
}

/// The distributor of a GICv3. Its registers are 64 KiB.
#[derive(Debug)]
pub struct Distributor<M, C> {
    mmio: M,
    clock: C,
    /// INTIDs from here on it does not have.
    end: u32,
}

impl<M: Mmio, C: Clock> Distributor<M, C> {
    /// Starts it: affinity routing on, all SPIs of group 1, off, not active and by level, whatever firmware has left.
    ///
    /// # Errors
    /// [`Error::Register`], when it does not do as it is told in time.
    pub fn start(mmio: M, clock: C) -> Result<Self, Error> {
        let lines = (mmio.read32(TYPER) & 0x1f) + 1;
        let distributor = Self {
            end: (32 * lines).min(FIRST_SPECIAL),
            mmio,
            clock,
        };
        let mmio = &distributor.mmio;
        // Routing may change only while no group is on. [§12.9, `GICD_CTLR`]
        let control = mmio.read32(CTLR) & !(GROUPS | PENDING_WRITE);
        mmio.write32(CTLR, control);
        distributor.settle()?;
        mmio.write32(CTLR, control | AFFINITY_ROUTING);
        distributor.settle()?;
        for word in 1..lines as usize {
            mmio.write32(ICENABLER + 4 * word, u32::MAX);
        }
        distributor.settle()?;
        for word in 1..lines as usize {
            mmio.write32(ICACTIVER + 4 * word, u32::MAX);
            mmio.write32(IGROUPR + 4 * word, u32::MAX);
            for four in 8 * word..8 * (word + 1) {
                mmio.write32(IPRIORITYR + 4 * four, u32::from_le_bytes([PRIORITY; 4]));
            }
            for sixteen in 2 * word..2 * (word + 1) {
                mmio.write32(ICFGR + 4 * sixteen, 0);
            }
        }
        mmio.write32(CTLR, control | AFFINITY_ROUTING | GROUP_1);
        distributor.settle()?;
        Ok(distributor)
    }

    /// Turns an interrupt on, which goes to the CPU with this affinity (as `MPIDR_EL1` has it).
    ///
    /// # Errors
    /// [`Error::Interrupt`]; [`Error::Register`].
    pub fn listen(&self, intid: u32, trigger: Trigger, mpidr: u64) -> Result<(), Error> {
        self.route(intid, mpidr)?;
        let (at, bit) = place(ICFGR, intid, 2);
        let edge = 2 << bit;
        let old = self.mmio.read32(at);
        let new = match trigger {
            Trigger::Edge => old | edge,
            Trigger::Level => old & !edge,
        };
        if new != old {
            // It may change only while the interrupt is off. [§12.9, `GICD_ICFGR`]
            self.set_enabled(intid, false)?;
            self.settle()?;
            self.mmio.write32(at, new);
        }
        self.set_enabled(intid, true)
    }

    /// Has an interrupt go to the CPU with this affinity from now on.
    ///
    /// # Errors
    /// [`Error::Interrupt`].
    pub fn route(&self, intid: u32, mpidr: u64) -> Result<(), Error> {
        /// `Aff3` and `Aff2:0`; bit 31, which asks for any CPU, is none of it.
        const AFFINITY: u64 = 0xff_00ff_ffff;
        self.check(intid)?;
        self.mmio
            .write64(IROUTER + 8 * intid as usize, mpidr & AFFINITY);
        Ok(())
    }

    /// Turns an interrupt on or off, whose trigger and routing stay. One that is turned off may still come once.
    ///
    /// # Errors
    /// [`Error::Interrupt`].
    pub fn set_enabled(&self, intid: u32, enabled: bool) -> Result<(), Error> {
        self.check(intid)?;
        let (at, bit) = place(if enabled { ISENABLER } else { ICENABLER }, intid, 1);
        self.mmio.write32(at, 1 << bit);
        Ok(())
    }

    fn check(&self, intid: u32) -> Result<(), Error> {
        match (FIRST_SPI..self.end).contains(&intid) {
            true => Ok(()),
            false => Err(Error::Interrupt(intid)),
        }
    }

    fn settle(&self) -> Result<(), Error> {
        settle(
            &self.mmio,
            &self.clock,
            (CTLR, PENDING_WRITE),
            "GICD_CTLR.RWP",
        )
    }
}

/// The register that has an interrupt's field of so many bits, in bytes, and the field's first bit.
fn place(registers: usize, intid: u32, bits: u32) -> (usize, u32) {
    let bit = intid * bits;
    (registers + 4 * (bit / 32) as usize, bit % 32)
}
