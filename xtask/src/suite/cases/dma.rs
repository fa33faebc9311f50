//! Tests of devices that master the bus, with a guest of our own that has QEMU's `edu` do anything.
//!
//! Time is counted in instructions: a DMA of an `edu` takes 100 ms of the machine's time, which is then
//! nothing but a jump of its clock.

use std::time::Duration;

use super::{Case, End, Ground};
use crate::board::Smmu;
use crate::qemu::Time;

const BOARD: &str = "virt";

pub(super) fn cases() -> Vec<Case> {
    bare()
}

/// That many `edu`s, from 00:02.0 on, which reach any address.
fn devices(mut case: Case, count: u32) -> Case {
    for slot in 2..2 + count {
        let device = format!("edu,dma_mask=0xffffffffffffffff,addr={slot:02x}.0");
        case = case.args(&["-device", &device]);
    }
    case
}

/// The guest alone, on the machine without a hypervisor: what it takes for granted is so, and what it is
/// to find out where it must not be is found.
fn bare() -> Vec<Case> {
    let alone = |name: &str, append, smmu, verdict| {
        let mut case = devices(Case::new(BOARD, name), 2).expect(&[verdict]);
        case.ground = Ground::Bare {
            guest: "dma",
            append,
            smmu,
        };
        case.end = End::Expected;
        case.vary.time = Time::Instructions;
        // Its device tree is at 128 MiB then.
        case.vary.memory = Some("256M".to_owned());
        case.forbids = vec!["^guest: ".to_owned()];
        case.timeout = Duration::from_secs(300);
        case
    };
    vec![
        alone(
            "without a hypervisor, an edu copies and interrupts by message and wire",
            "probe intx=37",
            Smmu::Gone,
            "dma verdict: probe ok: devices=2 bar=1048576 moved=2 lpis=[0-9]+ intx=2",
        ),
        // The control of every sweep: 64 MiB count as the guest's, the machine has more.
        alone(
            "without a hypervisor, a sweep of DMA reaches what is not the guest's",
            "sweep own=0x4000000 gentle=1",
            Smmu::Gone,
            r"dma verdict: sweep FAILED: a read reached what is not the guest's \(0x441ff000 ",
        ),
        // The control of every neighbour.
        alone(
            "without a hypervisor, DMA to a neighbour's memory is noticed by it",
            "watch beats=10 attack=5",
            Smmu::Gone,
            "dma verdict: watch FAILED: somebody was at the memory",
        ),
        alone(
            "without a hypervisor, configuration space at random is survived",
            "config-fuzz ops=100000 seed=1",
            Smmu::Gone,
            "dma verdict: config-fuzz ok: seed=1 ",
        ),
        alone(
            "without a hypervisor, an ITS under fire works again",
            "its-flood ops=5000 seed=1",
            Smmu::Gone,
            "dma verdict: its-flood ok: seed=1 ops=5000 ",
        ),
        alone(
            "without a hypervisor, stage 1 of an SMMU decides and tells faults",
            "smmu",
            Smmu::Kept,
            "dma verdict: smmu ok: events=[1-9]",
        ),
        alone(
            "without a hypervisor, an SMMU under fire works again",
            "smmu-hostile ops=5000 seed=1",
            Smmu::Kept,
            "dma verdict: smmu-hostile ok: seed=1 ops=5000 at_once=1048576 ",
        ),
    ]
}
