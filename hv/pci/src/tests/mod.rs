//! Tests of the whole way from configuration space to groups, against [`crate::fake`].

mod assign;
mod control;
mod enumerate;
mod groups;
mod guest;
mod place;
mod properties;

use alloc::vec::Vec;

use types::{Bdf, Pa};

use crate::fake::FakePci;
use crate::{
    BusNumbers, BusRange, ExtraRoots, HostBridge, ScanPolicy, Topology, Window, WindowKind,
    enumerate,
};

/// The windows of QEMU's `virt` machine.
fn virt() -> HostBridge {
    let window = |kind, bus, cpu, size| Window {
        kind,
        bus,
        cpu: Pa::truncated(cpu),
        size,
    };
    HostBridge {
        segment: 0,
        buses: BusRange::ALL,
        windows: Vec::from([
            window(WindowKind::Io, 0, 0x3eff_0000, 0x1_0000),
            window(WindowKind::Memory, 0x1000_0000, 0x1000_0000, 0x2eff_0000),
            window(
                WindowKind::Memory,
                0x80_0000_0000,
                0x80_0000_0000,
                0x80_0000_0000,
            ),
        ]),
    }
}

fn scan(pci: &FakePci) -> Topology {
    enumerate(pci, &virt(), ScanPolicy::default())
}

fn probing() -> ScanPolicy {
    ScanPolicy {
        buses: BusNumbers::Keep,
        extra_roots: ExtraRoots::Probe,
        ..ScanPolicy::default()
    }
}

fn bdf(text: &str) -> Bdf {
    let number = |part: &str| u8::from_str_radix(part, 16).unwrap();
    let (bus, rest) = text.split_once(':').unwrap();
    let (device, function) = rest.split_once('.').unwrap();
    Bdf::new(number(bus), number(device), number(function)).unwrap()
}

fn found(topology: &Topology) -> Vec<alloc::string::String> {
    use alloc::string::ToString;
    let functions = topology.functions().iter();
    functions.map(|f| f.bdf.to_string()).collect()
}
