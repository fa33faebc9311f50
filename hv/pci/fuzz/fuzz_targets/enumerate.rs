//! Any registers behind any bridges: no panic, no hang, nobody masters the bus, groups partition.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pci::fake::{Below, FakeFunction, FakeId, FakePci};
use pci::{
    BusRange, ExtraRoots, GroupPolicy, HostBridge, PlacePolicy, ScanPolicy, Window, WindowKind,
};
use types::Pa;

fuzz_target!(|bytes: &[u8]| {
    let mut pci = FakePci::new();
    let mut all: Vec<FakeId> = Vec::new();
    let mut chunks = bytes.chunks_exact(8);
    // A function: where, what it begins as, and how many registers of it are overwritten.
    while let Some(&[parent, device, number, kind, registers, ..]) = chunks.next() {
        let below = match usize::from(parent) % (all.len() + 1) {
            0 => Below::Root(0),
            n => Below::Bridge(all[n - 1]),
        };
        if kind % 8 == 7 && !all.is_empty() {
            pci.connect(
                below,
                device % 32,
                number % 8,
                all[usize::from(registers) % all.len()],
            );
            continue;
        }
        let mut function = match kind % 8 {
            0 => FakeFunction::bridge(1, 1),
            1 => FakeFunction::root_port(),
            2 => FakeFunction::upstream(),
            3 => FakeFunction::downstream(),
            4 => FakeFunction::nvme(),
            5 => FakeFunction::edu(),
            _ => FakeFunction::endpoint(1, 1, 0),
        };
        for _ in 0..registers % 16 {
            let Some(&[a, b, c, d, mask, high, dword, page]) = chunks.next() else {
                break;
            };
            let at = (usize::from(page % 2) << 8 | usize::from(dword)) << 2 & 0xffc;
            let mask = u32::from_le_bytes([mask, high, mask, high]);
            function.set(at, u32::from_le_bytes([a, b, c, d]), mask);
        }
        all.push(pci.add(below, device % 32, number % 8, function));
        if all.len() > 24 {
            break;
        }
    }
    let window = |kind, bus, size| Window {
        kind,
        bus,
        cpu: Pa::truncated(bus),
        size,
    };
    let host = HostBridge {
        segment: 0,
        buses: BusRange::ALL,
        windows: vec![
            window(WindowKind::Io, 0, 0x1_0000),
            window(WindowKind::Memory, 0x1000_0000, 0x3000_0000),
            window(WindowKind::Prefetchable, 1 << 39, 1 << 39),
        ],
    };
    let policy = ScanPolicy {
        extra_roots: ExtraRoots::Ignore,
        max_functions: 256,
        ..ScanPolicy::default()
    };
    let mut topology = pci::enumerate(&pci, &host, policy);
    let placement = pci::place(&pci, &host, &mut topology, PlacePolicy::default());
    let placement = placement.expect("the windows are sound");
    assert!(!pci.ever_mastered());
    let groups = pci::groups(&topology, GroupPolicy::Acs);
    let members: usize = groups.iter().map(|group| group.members.len()).sum();
    assert_eq!(members, topology.functions().len());
    pci::report(&topology, &placement, &groups, &|_| None, &mut |line| {
        let _ = line.to_string();
    });
});
