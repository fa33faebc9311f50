//! A redistributor: a CPU's private interrupts. [§12.11]

use hal::{Clock, Mmio};

use crate::{Error, PRIORITY, settle};

const CTLR: usize = 0x0;
const WAKER: usize = 0x14;
/// The second frame, of the private interrupts.
const PRIVATE: usize = 0x1_0000;
const IGROUPR0: usize = PRIVATE + 0x80;
const ISENABLER0: usize = PRIVATE + 0x100;
const ICENABLER0: usize = PRIVATE + 0x180;
const ISACTIVER0: usize = PRIVATE + 0x300;
const ICACTIVER0: usize = PRIVATE + 0x380;
const IPRIORITYR: usize = PRIVATE + 0x400;
const ICFGR1: usize = PRIVATE + 0xc04;

const PROCESSOR_SLEEP: u32 = 1 << 1;
const CHILDREN_ASLEEP: u32 = 1 << 2;

/// `GICR_CTLR.RWP`: a write is still on its way.
pub(crate) const PENDING_WRITE: (usize, u32) = (CTLR, 1 << 3);

/// A redistributor's two frames of 64 KiB.
#[derive(Clone, Copy, Debug)]
pub struct Redistributor<M>(M);

impl<M: Mmio> Redistributor<M> {
    /// Starts it: awake, its private interrupts of group 1, not active and by level, and on of them those with a bit in
    /// `enabled`. It may be asleep, or awake as firmware left it; where there are two security states, sleep is the secure
    /// side's affair, and the register is zero to us. [§12.11, `GICR_WAKER`]
    ///
    /// # Errors
    /// [`Error::Register`], when it does not do as it is told in time.
    pub fn start(mmio: M, enabled: u32, clock: &dyn Clock) -> Result<Self, Error> {
        let waker = mmio.read32(WAKER);
        if waker & (PROCESSOR_SLEEP | CHILDREN_ASLEEP) != 0 {
            mmio.write32(WAKER, waker & !PROCESSOR_SLEEP);
            let asleep = (WAKER, CHILDREN_ASLEEP);
            settle(&mmio, clock, asleep, "GICR_WAKER.ChildrenAsleep")?;
        }
        mmio.write32(ICENABLER0, u32::MAX);
        settle(&mmio, clock, PENDING_WRITE, "GICR_CTLR.RWP")?;
        mmio.write32(ICACTIVER0, u32::MAX);
        mmio.write32(IGROUPR0, u32::MAX);
        for four in 0..8 {
            mmio.write32(IPRIORITYR + 4 * four, u32::from_le_bytes([PRIORITY; 4]));
        }
        mmio.write32(ICFGR1, 0);
        mmio.write32(ISENABLER0, enabled);
        Ok(Self(mmio))
    }

    /// Makes private interrupts active, those with a bit in `intids`.
    pub fn set_active(&self, intids: u32) {
        if intids != 0 {
            self.0.write32(ISACTIVER0, intids);
        }
    }
}
