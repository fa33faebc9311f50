//! Any guest on any device: no panic, and nothing reaches the device but what clears error bits.

use std::vec;

use pci::fake::{Below, FakeFunction, FakePci};
use pci::vconfig::{GuestSegment, Pin, Seat, Siblings, Upstream, VirtualFunction, Width};
use pci::{BusRange, HostBridge, PlacePolicy, ScanPolicy, Window, WindowKind};
use types::{Bdf, Pa, PageSize};

/// The first two bytes say how many registers of the device come next, and where it is and whether its pin is
/// shown; six bytes are a register, and then an access each. Returns how many accesses there were.
pub(crate) fn exercise(bytes: &[u8]) -> usize {
    let Some((&[registers, port], rest)) = bytes.split_first_chunk() else {
        return 0;
    };
    let mut chunks = rest.chunks_exact(6);
    let mut device = FakeFunction::nvme().msi(3, 0x180);
    for _ in 0..registers {
        let Some(&[dword, a, b, c, d, _]) = chunks.next() else {
            break;
        };
        // Not the header's type, and not so that nothing is there.
        if !matches!(dword % 64, 0 | 3) {
            device.set(
                usize::from(dword % 64) * 4,
                u32::from_le_bytes([a, b, c, d]),
                0xffff_00ff,
            );
        }
    }
    let mut pci = FakePci::new();
    pci.add(Below::Root(0), 1, 0, device);
    let host = HostBridge {
        segment: 0,
        buses: BusRange::ALL,
        windows: vec![Window {
            kind: WindowKind::Memory,
            bus: 0x1000_0000,
            cpu: Pa::truncated(0x1000_0000),
            size: 0x3000_0000,
        }],
    };
    let mut topology = pci::enumerate(&pci, &host, ScanPolicy::default());
    let _ = pci::place(&pci, &host, &mut topology, PlacePolicy::default());
    let Some(function) = topology.functions().first() else {
        return 0;
    };
    let behind = port % 2 == 1;
    let seat = Seat {
        siblings: Siblings::None,
        upstream: if behind {
            Upstream::Port
        } else {
            Upstream::RootBus
        },
        page: PageSize::SIZE_4K,
        pin: if port & 2 == 0 {
            Pin::Hidden
        } else {
            Pin::Shown
        },
    };
    let Ok(function) = VirtualFunction::new(&pci, function, seat) else {
        return 0;
    };
    let mut segment = GuestSegment::new(BusRange::ALL);
    let at = |bus, device| Bdf::new(bus, device, 0).expect("in range");
    segment.add_port(at(0, 2), Siblings::None, 5).expect("free");
    let own = if behind { at(5, 0) } else { at(0, 3) };
    segment.add(own, function).expect("free");
    pci.take_writes();
    let mut accesses = 0;
    while let Some(&[offset, high, value, more, width, place]) = chunks.next() {
        accesses += 1;
        let width = [Width::Byte, Width::Half, Width::Word][usize::from(width % 3)];
        let bdf = [own, at(0, 2), at(0, 0), at(9, 9)][usize::from(place % 4)];
        let offset = u16::from_le_bytes([offset, high & 1]);
        let value = u32::from_le_bytes([value, more, value, more]);
        let _ = segment.read(&pci, bdf, offset, width);
        let _ = segment.write(&pci, bdf, offset, width, value);
        for bar in 0..6 {
            if let Some(address) = segment.mapping(own, bar) {
                assert_eq!(address % 4096, 0);
            }
        }
        for write in pci.take_writes() {
            assert_eq!(write.width, 2, "{write:x?}");
            assert!(write.value & !0xf90f == 0, "{write:x?}");
        }
    }

    accesses
}
