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
const GICD_IGROUPR: usize = 0x0080;
const GICD_ISENABLER: usize = 0x0100;
const GICD_ICENABLER: usize = 0x0180;
/// `GICD_IPRIORITYR`: a byte an interrupt.
pub const GICD_IPRIORITYR: usize = 0x0400;
const GICD_ICFGR: usize = 0x0c00;
const GICD_IROUTER: usize = 0x6000;
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

/// How a shared interrupt tells that it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// As long as the wire is up.
    Level,
    /// Once, when it goes up.
    Edge,
}

/// Lets a shared interrupt in, to CPU 0. `intid` is 32 to 1019.
pub fn enable_shared(intid: u32, trigger: Trigger) {
    let (intid, word) = (intid as usize, 4 * (intid as usize / 32));
    let group = platform::GICD + GICD_IGROUPR + word;
    mmio::write32(group, mmio::read32(group) | 1 << (intid % 32));
    mmio::write8(platform::GICD + GICD_IPRIORITYR + intid, 0xa0);
    let config = platform::GICD + GICD_ICFGR + 4 * (intid / 16);
    let edge = 2 << (2 * (intid % 16));
    let others = mmio::read32(config) & !edge;
    mmio::write32(
        config,
        if trigger == Trigger::Edge {
            others | edge
        } else {
            others
        },
    );
    mmio::write64(platform::GICD + GICD_IROUTER + 8 * intid, 0);
    mmio::write32(platform::GICD + GICD_ISENABLER + word, 1 << (intid % 32));
}

/// Keeps a shared interrupt out.
pub fn disable_shared(intid: u32) {
    let word = 4 * (intid as usize / 32);
    mmio::write32(platform::GICD + GICD_ICENABLER + word, 1 << (intid % 32));
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
