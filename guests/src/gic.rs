//! The GICv3 as a guest drives it: one security state, affinity routing, Group 1.

use crate::{cpu, mmio, platform, write_register};

/// `GICD_CTLR`.
pub const GICD_CTLR: usize = 0x0000;
/// `GICD_TYPER`.
pub const GICD_TYPER: usize = 0x0004;
/// `GICD_ISENABLER1`: the first 32 SPIs.
pub const GICD_ISENABLER1: usize = 0x0104;
const GICR_WAKER: usize = 0x0014;
const GICR_IGROUPR0: usize = 0x1_0080;
const GICR_ISENABLER0: usize = 0x1_0100;
const GICR_IPRIORITYR: usize = 0x1_0400;
/// The polls of `GICR_WAKER` before it is taken to be awake.
const POLLS: u32 = 1000;

/// Turns the distributor on: affinity routing and Group 1.
pub fn start_distributor() {
    const ARE_AND_GROUP_1: u32 = 1 << 4 | 1 << 1;
    mmio::write32(platform::GICD + GICD_CTLR, ARE_AND_GROUP_1);
}

/// Makes this CPU take SGIs and private interrupts in `enabled`, all at one priority.
pub fn start_cpu(enabled: u32) {
    let frame = platform::GICR + cpu::index() * platform::GICR_STRIDE;
    mmio::write32(frame + GICR_WAKER, 0);
    for _ in 0..POLLS {
        if mmio::read32(frame + GICR_WAKER) & 1 << 2 == 0 {
            break;
        }
    }
    mmio::write32(frame + GICR_IGROUPR0, u32::MAX);
    for word in 0..8 {
        mmio::write32(frame + GICR_IPRIORITYR + 4 * word, 0xa0a0_a0a0);
    }
    mmio::write32(frame + GICR_ISENABLER0, enabled);
    write_register!("icc_sre_el1", 7);
    write_register!("icc_pmr_el1", 0xff);
    write_register!("icc_ctlr_el1", 0);
    write_register!("icc_igrpen1_el1", 1);
}

/// The highest pending interrupt, which becomes active; 1023 if there is none.
pub fn acknowledge() -> u32 {
    let intid = crate::read_register!("icc_iar1_el1");
    u32::try_from(intid & 0xff_ffff).unwrap_or(u32::MAX)
}

/// Ends an interrupt.
pub fn end(intid: u32) {
    write_register!("icc_eoir1_el1", u64::from(intid));
}

/// What to write to `ICC_SGI1R_EL1` for SGI `intid` to CPU `cpu` of the first sixteen.
/// [IHI 0069 §12.2.21]
pub const fn sgi(cpu: usize, intid: u64) -> u64 {
    intid << 24 | 1 << cpu
}
