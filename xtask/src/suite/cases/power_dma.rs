//! Tests of DMA on POWER, with a guest of our own that has QEMU's `edu` do anything.
//!
//! Time is counted in instructions, as on Arm. Each `edu` is behind a host bridge of its own: the board's
//! first one has the disk.

use std::time::Duration;

use super::{Bundle, Case};
use crate::qemu::Time;

const BOARD: &str = "pseries";

/// A VM with the guest of this file: its name, its task, its CPU, its host bridge.
macro_rules! vm {
    ($name:literal, $task:literal, $cpu:literal, $bridge:literal) => {
        concat!(
            "[[vm]]\nname = \"",
            $name,
            "\"\nmemory = \"32M\"\npin = [",
            $cpu,
            "]\n",
            "kernel = \"guest:dma\"\nkernel_format = \"elf\"\nrestart = \"never\"\n",
            "append = \"",
            $task,
            " phb=",
            $bridge,
            "\"\n",
            "devices = [ { host = \"phb:80000002000000",
            $bridge,
            "\" } ]\n"
        )
    };
}

pub(super) fn cases() -> Vec<Case> {
    vec![sweep(), forge(), flood()]
}

/// The guest as a VM, with devices behind host bridges 1 and 2.
fn case(name: &str, bundle: Bundle) -> Case {
    let mut case = Case::new(BOARD, name).bundle(bundle);
    for bridge in 1..=2 {
        case = case.args(&[
            "-device",
            &format!("spapr-pci-host-bridge,index={bridge},id=p{bridge}"),
            "-device",
            &format!("edu,dma_mask=0xffffffffffffffff,bus=p{bridge}.0"),
        ]);
    }
    case.vary.time = Time::Instructions;
    case.forbids.push("FAILED|unasked".to_owned());
    case.timeout = Duration::from_secs(600);
    case
}

/// With what it may reach as the control, and a neighbour that looks at its own.
fn sweep() -> Case {
    case(
        "entries and DMA to everywhere reach a VM's own memory only",
        Bundle::Manifest(concat!(
            vm!("watch", "watch beats=180", "1", "2"),
            vm!("sweep", "sweep", "0", "1"),
        )),
    )
    .expect(&[
        r"dma verdict: sweep ok: control=4096 entries_refused=\d{5} reads_refused=4\d writes_refused=4\d",
        r"dma verdict: watch ok: beats=180 latest_us=\d+ memory_kib=32768 forged=0",
        "verdict 0: all VMs are off",
    ])
}

/// What this platform lets a device do to others is an interrupt more, so often and no more.
fn forge() -> Case {
    case(
        "forged messages reach a device's own VM, or are an interrupt more for their owner",
        Bundle::Manifest(concat!(
            vm!("watch", "watch beats=80", "1", "2"),
            vm!("forge", "forge times=10", "0", "1"),
        )),
    )
    .expect(&[
        "dma verdict: forge ok: own=2 platform=4 others=10240 strange=0",
        // At least once each time; what comes at once is one.
        r"dma verdict: watch ok: beats=80 latest_us=\d+ memory_kib=32768 forged=[12]\d(\D|$)",
        "verdict 0: all VMs are off",
    ])
}

/// A device that interrupts without end is heard 256 times in 10 ms, and nothing of the last is lost.
fn flood() -> Case {
    case(
        "a device that floods with messages is moderated, and heard again",
        Bundle::Manifest(concat!(
            vm!("watch", "watch beats=30", "1", "2"),
            vm!("flood", "flood", "0", "1"),
        )),
    )
    .expect(&[
        r"dma verdict: flood ok: sent=\d{5,} came=[45]\d{3} late=1",
        "dma verdict: watch ok: .* forged=0",
        "verdict 0: all VMs are off",
    ])
}
