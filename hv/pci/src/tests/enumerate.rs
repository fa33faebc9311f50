use alloc::vec;
use alloc::vec::Vec;

use super::{bdf, found, probing, scan, virt};
use crate::fake::{Below, FakeFunction, FakePci};
use crate::{
    BarKind, BridgeBuses, BusNumbers, ConfigSpace, Defect, Extent, FoundMastering, FunctionReset,
    Header, InBar, LeftOn, PortType, ScanPolicy, enumerate,
};

const ROOT: Below = Below::Root(0);

#[test]
fn a_machine_with_no_pci_device_has_an_empty_topology() {
    let pci = FakePci::new();
    let topology = scan(&pci);
    assert!(topology.functions().is_empty());
    assert_eq!(topology.roots(), [0]);
    // Only the root bus was looked at, twice: once for bridges, once for functions.
    assert_eq!(pci.take_accesses(), 64);
}

#[test]
fn an_endpoint_is_described_and_left_as_it_was_but_silent() {
    let mut pci = FakePci::new();
    let nvme = FakeFunction::nvme()
        .assigned(0, 0x80_0001_0000)
        .command(0x0406)
        .rom(64 << 10);
    let id = pci.add(ROOT, 1, 0, nvme);
    let topology = scan(&pci);
    let function = topology.function(bdf("00:01.0")).unwrap();
    assert_eq!((function.vendor, function.device), (0x1b36, 0x0010));
    assert_eq!(function.class.name(), Some("nvme"));
    assert_eq!(function.header, Header::Endpoint);
    assert_eq!(function.found_mastering, FoundMastering::On);
    assert_eq!(function.rom, Some(64 << 10));
    let [bar] = function.bars[..] else { panic!() };
    assert_eq!((bar.index, bar.kind), (0, BarKind::Memory64));
    assert_eq!((bar.size, bar.found), (16 << 10, 0x80_0001_0000));
    let capabilities = &function.capabilities;
    let msix = capabilities.msix.unwrap();
    assert_eq!(msix.vectors, 65);
    assert_eq!((msix.table_bytes(), msix.pending_bytes()), (1040, 16));
    let place = |offset| InBar { bar: 0, offset };
    assert_eq!((msix.table, msix.pending), (place(0x2000), place(0x3000)));
    assert_eq!(capabilities.function_reset(), FunctionReset::Supported);
    let express = capabilities.express.unwrap();
    assert_eq!(express.port, PortType::IntegratedEndpoint);
    assert!(function.defects.is_empty(), "{:?}", function.defects);
    // Decoding is on again, mastering is not, and the BAR holds its address.
    assert_eq!(pci.register(id, 4) & 0x407, 0x402);
    assert_eq!(pci.register(id, 0x10), 0x0001_0004);
    assert_eq!(pci.register(id, 0x14), 0x80);
}

#[test]
fn every_kind_of_bar_is_sized() {
    let mut pci = FakePci::new();
    let device = FakeFunction::endpoint(1, 2, 0x02_0000)
        .bar(0, BarKind::Memory32, 16)
        .bar(1, BarKind::Io, 4)
        .bar(2, BarKind::Prefetchable64, 1 << 40)
        .bar(4, BarKind::Prefetchable32, 1 << 31)
        .bar(5, BarKind::Io, 256);
    pci.add(ROOT, 3, 0, device);
    let topology = scan(&pci);
    let bars = &topology.functions()[0].bars;
    let facts: Vec<_> = bars.iter().map(|b| (b.index, b.kind, b.size)).collect();
    assert_eq!(
        facts,
        [
            (0, BarKind::Memory32, 16),
            (1, BarKind::Io, 4),
            (2, BarKind::Prefetchable64, 1 << 40),
            (4, BarKind::Prefetchable32, 1 << 31),
            (5, BarKind::Io, 256),
        ]
    );
}

#[test]
fn an_io_bar_of_sixteen_bits_has_its_size() {
    let mut pci = FakePci::new();
    let device = FakeFunction::endpoint(1, 2, 0).with(0x10, 1, 0xffe0);
    pci.add(ROOT, 0, 0, device);
    let topology = scan(&pci);
    let bar = topology.functions()[0].bars[0];
    assert_eq!((bar.kind, bar.size), (BarKind::Io, 32));
}

#[test]
fn bars_that_lie_are_defects_and_the_others_still_count() {
    let mut pci = FakePci::new();
    let device = FakeFunction::endpoint(1, 2, 0)
        .with(0x10, 0, 0xff0f_f000) // a gap
        .with(0x14, 2, 0xffff_f000) // a reserved type
        .bar(2, BarKind::Memory32, 4096)
        .with(0x24, 4, 0xffff_0000); // 64 bits in the last slot
    pci.add(ROOT, 0, 0, device);
    let topology = scan(&pci);
    let function = &topology.functions()[0];
    assert_eq!(
        function.defects,
        [
            Defect::BarMask {
                bar: 0,
                mask: 0xffff_ffff_ff0f_f000
            },
            Defect::BarType { bar: 1, bits: 2 },
            Defect::BarWithoutUpperHalf { bar: 5 },
        ]
    );
    assert_eq!(function.bars.len(), 1);
    assert_eq!(function.bars[0].index, 2);
}

#[test]
fn decoding_or_mastering_that_cannot_be_switched_off_is_a_defect() {
    let mut pci = FakePci::new();
    let stuck = FakeFunction::nvme().with(4, 6, 0);
    pci.add(ROOT, 0, 0, stuck);
    let topology = scan(&pci);
    let function = &topology.functions()[0];
    assert!(function.defects.contains(&Defect::BusMasterStuck));
    assert!(function.defects.contains(&Defect::DecodeStuck));
    assert!(function.bars.is_empty());
}

#[test]
fn functions_beyond_zero_exist_only_on_devices_that_say_so() {
    let mut pci = FakePci::new();
    pci.add(ROOT, 1, 0, FakeFunction::edu().multifunction());
    pci.add(ROOT, 1, 3, FakeFunction::edu());
    pci.add(ROOT, 2, 0, FakeFunction::edu());
    pci.add(ROOT, 2, 1, FakeFunction::edu());
    pci.add(ROOT, 3, 1, FakeFunction::edu());
    assert_eq!(found(&scan(&pci)), ["00:01.0", "00:01.3", "00:02.0"]);
}

#[test]
fn a_device_that_asks_for_patience_is_reported_and_left_out() {
    let mut pci = FakePci::new();
    pci.add(ROOT, 1, 0, FakeFunction::endpoint(0x0001, 0xffff, 0));
    let topology = scan(&pci);
    assert_eq!(topology.not_ready(), [bdf("00:01.0")]);
    assert!(topology.functions().is_empty());
}

#[test]
fn an_unknown_header_is_recorded_and_nothing_of_it_is_believed() {
    let mut pci = FakePci::new();
    let odd = FakeFunction::nvme().with(0x0c, 0x0055_0000, 0);
    pci.add(ROOT, 1, 0, odd);
    let topology = scan(&pci);
    let function = &topology.functions()[0];
    assert_eq!(function.header, Header::Unknown(0x55));
    assert_eq!(function.defects, [Defect::UnknownHeader { kind: 0x55 }]);
    assert!(function.bars.is_empty() && function.capabilities.list.is_empty());
}

#[test]
fn buses_are_numbered_depth_first_through_ports_and_switches() {
    let mut pci = FakePci::new();
    let port = pci.add(ROOT, 1, 0, FakeFunction::root_port());
    let up = pci.add(Below::Bridge(port), 0, 0, FakeFunction::upstream());
    for device in 0..2 {
        let down = pci.add(Below::Bridge(up), device, 0, FakeFunction::downstream());
        pci.add(Below::Bridge(down), 0, 0, FakeFunction::edu());
    }
    let last = pci.add(ROOT, 2, 0, FakeFunction::root_port());
    pci.add(Below::Bridge(last), 0, 0, FakeFunction::nvme());
    let topology = scan(&pci);
    assert_eq!(
        found(&topology),
        [
            "00:01.0", "00:02.0", "01:00.0", "02:00.0", "02:01.0", "03:00.0", "04:00.0", "05:00.0"
        ]
    );
    let buses = |text| {
        topology
            .function(bdf(text))
            .unwrap()
            .bridge()
            .unwrap()
            .buses
    };
    let range = |secondary, subordinate| {
        Some(BridgeBuses {
            secondary,
            subordinate,
        })
    };
    assert_eq!(buses("00:01.0"), range(1, 4));
    assert_eq!(buses("01:00.0"), range(2, 4));
    assert_eq!(buses("02:01.0"), range(4, 4));
    assert_eq!(buses("00:02.0"), range(5, 5));
    let above: Vec<_> = topology
        .bridges_above(bdf("04:00.0"))
        .map(|f| f.bdf)
        .collect();
    assert_eq!(above, [bdf("02:01.0"), bdf("01:00.0"), bdf("00:01.0")]);
    assert_eq!(pci.register(port, 0x18) & 0xff_ffff, 0x04_0100);
    assert!(!pci.ever_mastered());
}

#[test]
fn a_pin_moves_on_by_the_device_number_at_each_bridge() {
    let mut pci = FakePci::new();
    let pin = |device: FakeFunction, pin: u32| device.with(0x3c, pin << 8, 0);
    let outer = pci.add(ROOT, 5, 0, FakeFunction::bridge(1, 1));
    let inner = pci.add(Below::Bridge(outer), 3, 0, FakeFunction::bridge(1, 1));
    pci.add(Below::Bridge(inner), 2, 0, pin(FakeFunction::edu(), 4));
    pci.add(ROOT, 6, 0, pin(FakeFunction::edu(), 2));
    pci.add(ROOT, 7, 0, pin(FakeFunction::edu(), 9));
    let topology = scan(&pci);
    // INTD of device 2 is INTB of device 3, which is INTA of the bridge at device 5.
    assert_eq!(topology.root_pin(bdf("02:02.0")), Some((bdf("00:05.0"), 1)));
    assert_eq!(topology.root_pin(bdf("00:06.0")), Some((bdf("00:06.0"), 2)));
    assert_eq!(topology.root_pin(bdf("00:07.0")), None);
    assert_eq!(topology.root_pin(bdf("00:08.0")), None);
}

#[test]
fn below_a_link_only_device_zero_is_looked_for() {
    let mut pci = FakePci::new();
    let port = pci.add(ROOT, 1, 0, FakeFunction::root_port());
    let nvme = pci.add(Below::Bridge(port), 0, 0, FakeFunction::nvme());
    // Hardware that ignores the device number shows the same function 32 times.
    for device in 1..32 {
        pci.connect(Below::Bridge(port), device, 0, nvme);
    }
    assert_eq!(found(&scan(&pci)), ["00:01.0", "01:00.0"]);
}

#[test]
fn bridges_eight_deep_are_followed_and_forty_deep_are_bounded() {
    for (depth, functions) in [(8, 9), (40, 33)] {
        let mut pci = FakePci::new();
        let mut below = ROOT;
        for _ in 0..depth {
            let bridge = pci.add(below, 0, 0, FakeFunction::bridge(1, 1));
            below = Below::Bridge(bridge);
        }
        pci.add(below, 0, 0, FakeFunction::edu());
        let topology = scan(&pci);
        assert_eq!(topology.functions().len(), functions);
        let deepest = topology.functions().last().unwrap();
        assert_eq!(deepest.bridge().is_some(), depth == 40);
        assert_eq!(deepest.defects.contains(&Defect::TooDeep), depth == 40);
    }
}

#[test]
fn a_bridge_that_shows_itself_below_itself_is_found_out() {
    let mut pci = FakePci::new();
    let port = pci.add(ROOT, 1, 0, FakeFunction::bridge(1, 1));
    pci.connect(Below::Bridge(port), 5, 0, port);
    pci.add(Below::Bridge(port), 6, 0, FakeFunction::edu());
    let topology = scan(&pci);
    assert_eq!(found(&topology), ["00:01.0", "01:05.0", "01:06.0"]);
    let twin = topology.function(bdf("01:05.0")).unwrap();
    assert_eq!(
        twin.defects,
        [Defect::BridgeLoop {
            with: bdf("00:01.0")
        }]
    );
    // The real one still leads to its bus.
    assert_eq!(pci.register(port, 0x18) & 0xff_ffff, 0x01_0100);
}

#[test]
fn a_bridge_that_does_not_hold_bus_numbers_is_not_followed() {
    let mut pci = FakePci::new();
    let stuck = FakeFunction::bridge(1, 1).with(0x18, 0x0009_0900, 0);
    let bridge = pci.add(ROOT, 1, 0, stuck);
    pci.add(Below::Bridge(bridge), 0, 0, FakeFunction::edu());
    pci.add(ROOT, 2, 0, FakeFunction::edu());
    let policy = ScanPolicy {
        buses: BusNumbers::Assign,
        ..probing()
    };
    let topology = enumerate(&pci, &virt(), policy);
    assert_eq!(found(&topology), ["00:01.0", "00:02.0"]);
    assert_eq!(topology.roots(), [0], "bus 9 is no root bus");
    let defects = &topology.functions()[0].defects;
    assert_eq!(*defects, [Defect::BusNumbersDoNotHold]);
}

#[test]
fn capability_lists_that_loop_or_lead_nowhere_end() {
    let mut pci = FakePci::new();
    pci.add(ROOT, 0, 0, FakeFunction::nvme().loop_to(0x40));
    pci.add(ROOT, 1, 0, FakeFunction::nvme().loop_to(0x3c));
    pci.add(
        ROOT,
        2,
        0,
        FakeFunction::nvme().loop_to(0xfc).with(0xfc, 0x10, 0),
    );
    let topology = scan(&pci);
    let defects = |device: usize| topology.functions()[device].defects.clone();
    assert_eq!(defects(0), [Defect::CapabilityLoop { at: 0x40 }]);
    assert_eq!(defects(1), [Defect::CapabilityPointer { at: 0x3c }]);
    let [Defect::CapabilityTruncated { at: 0xfc, .. }] = defects(2)[..] else {
        panic!("{:?}", defects(2));
    };
    // What came before the lie still counts.
    assert!(
        topology
            .functions()
            .iter()
            .all(|f| f.capabilities.msix.is_some())
    );
}

#[test]
fn extended_lists_that_loop_end_and_conventional_devices_have_none() {
    let mut looped = FakeFunction::root_port();
    let at = looped.add_extended(0x000f, 8);
    looped.set(at, 0x0001_000f | 0x100 << 20, 0);
    let mut pci = FakePci::new();
    pci.add(ROOT, 1, 0, looped);
    pci.add(ROOT, 2, 0, FakeFunction::edu().acs(0x5f));
    let topology = scan(&pci);
    let [port, edu] = topology.functions() else {
        panic!()
    };
    assert_eq!(port.defects, [Defect::CapabilityLoop { at: 0x100 }]);
    assert_eq!(port.capabilities.ats, Some(at.try_into().unwrap()));
    assert_eq!(edu.capabilities.acs, None);
    pci.set_extent(Extent::Conventional);
    let topology = scan(&pci);
    assert_eq!(topology.functions()[0].capabilities.acs, None);
}

#[test]
fn isolation_bits_are_switched_on_where_they_are_offered() {
    let mut pci = FakePci::new();
    let port = pci.add(ROOT, 1, 0, FakeFunction::root_port());
    let fixed = FakeFunction::bridge(1, 1)
        .express(PortType::RootPort)
        .acs(0x1d);
    let fixed = pci.add(ROOT, 2, 0, fixed.with(0x104, 0x1d, 0));
    let topology = scan(&pci);
    assert_eq!(
        topology.functions()[0].capabilities.acs.unwrap().control,
        0x1f
    );
    assert_eq!(pci.register(port, 0x104) >> 16, 0x1f);
    assert_eq!(
        topology.functions()[1].defects,
        [Defect::AcsDoesNotHold { missing: 0x1d }]
    );
    assert_eq!(pci.register(fixed, 0x104) >> 16, 0);
}

#[test]
fn translated_requests_are_blocked_at_ports_and_go_nowhere_directly() {
    let mut pci = FakePci::new();
    // Firmware let requests that say they are translated go from device to device.
    let port = FakeFunction::bridge(1, 1)
        .express(PortType::RootPort)
        .acs_on(0x5f, 0x40);
    let port = pci.add(ROOT, 1, 0, port);
    // One that cannot block them, and a function of a device, which has no such control.
    let plain = FakeFunction::bridge(1, 1)
        .express(PortType::RootPort)
        .acs(0x5d);
    let plain = pci.add(ROOT, 2, 0, plain);
    let end = FakeFunction::endpoint(1, 1, 0)
        .express(PortType::Endpoint)
        .acs_on(0x4c, 0x40);
    let end = pci.add(Below::Bridge(port), 0, 0, end);
    let topology = scan(&pci);
    assert_eq!(pci.register(port, 0x104) >> 16, 0x1f);
    assert_eq!(pci.register(plain, 0x104) >> 16, 0x1d);
    assert_eq!(pci.register(end, 0x104) >> 16, 0x0c);
    assert!(topology.functions().iter().all(|f| f.defects.is_empty()));
}

#[test]
fn what_was_left_on_is_switched_off_and_said() {
    let build = |writable: u32| {
        let mut device = FakeFunction::nvme().msi(0, 0x80);
        let msix = 0x40;
        device.bytes_mut()[msix + 3] |= 0x80;
        let msi = 0x88;
        assert_eq!(device.bytes_mut()[msi], 5);
        device.bytes_mut()[msi + 2] |= 1;
        for (id, offset, bits) in [(0xf, 4, 0x8000_0000), (0x13, 4, 1), (0x1b, 4, 1 << 16)] {
            let at = device.add_extended(id, 16);
            device.set(at + offset, bits, u32::MAX);
        }
        let sriov = device.add_extended(0x10, 64);
        device.set(sriov + 8, 0x19, writable);
        device
    };
    let mut pci = FakePci::new();
    let id = pci.add(ROOT, 1, 0, build(u32::MAX));
    pci.add(ROOT, 2, 0, build(0));
    let topology = scan(&pci);
    let all = [
        LeftOn::Msi,
        LeftOn::MsiX,
        LeftOn::Ats,
        LeftOn::Pri,
        LeftOn::Pasid,
        LeftOn::VirtualFunctions,
    ];
    let [function, stuck] = topology.functions() else {
        panic!()
    };
    assert_eq!(function.left_on, all);
    assert_eq!(function.defects, []);
    assert_eq!(pci.register(id, 0x40) & 0x8000_0000, 0);
    assert_eq!(pci.register(id, 0x88) & 0x1_0000, 0);
    let sriov = usize::from(function.capabilities.sriov.unwrap());
    assert_eq!(pci.register(id, sriov + 8), 0x10);
    let stays = Defect::StaysOn(LeftOn::VirtualFunctions);
    assert_eq!(stuck.defects, [stays]);
    // Nothing is left of it for the next one.
    assert!(scan(&pci).functions()[0].left_on.is_empty());
}

#[test]
fn msix_outside_its_bars_is_no_msix() {
    let mut pci = FakePci::new();
    let device = |table, pending| {
        FakeFunction::endpoint(1, 1, 0)
            .bar(0, BarKind::Memory32, 4096)
            .bar(1, BarKind::Io, 256)
            .bar(2, BarKind::Memory32, 64)
            .msix(256, table, pending)
    };
    pci.add(ROOT, 0, 0, device((0, 0), (2, 0x08)));
    pci.add(ROOT, 1, 0, device((0, 8), (0, 0)));
    pci.add(ROOT, 2, 0, device((1, 0), (0, 0)));
    pci.add(ROOT, 3, 0, device((0, 0), (7, 0)));
    let topology = scan(&pci);
    // 256 entries need all 4096 bytes.
    let has: Vec<_> = topology
        .functions()
        .iter()
        .map(|f| (f.capabilities.msix.is_some(), f.defects.len()))
        .collect();
    assert_eq!(has, [(true, 0), (false, 1), (false, 1), (false, 1)]);
}

#[test]
fn firmware_bus_numbers_are_kept_when_all_are_consistent() {
    let build = |inner: [u8; 3]| {
        let mut pci = FakePci::new();
        let [primary, secondary, subordinate] = inner;
        let outer = pci.add(
            ROOT,
            1,
            0,
            FakeFunction::bridge(1, 1).numbers(0, 0x10, 0x1f),
        );
        let bridge = FakeFunction::bridge(1, 1).numbers(primary, secondary, subordinate);
        let inner = pci.add(Below::Bridge(outer), 3, 0, bridge);
        pci.add(Below::Bridge(inner), 4, 0, FakeFunction::edu());
        pci
    };
    let topology = scan(&build([0x10, 0x18, 0x1f]));
    assert_eq!(found(&topology), ["00:01.0", "10:03.0", "18:04.0"]);
    for wrong in [
        [0, 0x18, 0x1f],
        [0x10, 0x18, 0x20],
        [0x10, 0x10, 0x1f],
        [0x10, 0x1f, 0x18],
    ] {
        let topology = scan(&build(wrong));
        assert_eq!(
            found(&topology),
            ["00:01.0", "01:03.0", "02:04.0"],
            "{wrong:x?}"
        );
    }
    let policy = ScanPolicy {
        buses: BusNumbers::Assign,
        ..ScanPolicy::default()
    };
    let topology = enumerate(&build([0x10, 0x18, 0x1f]), &virt(), policy);
    assert_eq!(found(&topology), ["00:01.0", "01:03.0", "02:04.0"]);
}

#[test]
fn root_buses_that_nothing_names_are_found_when_asked_for() {
    let mut pci = FakePci::new();
    let port = pci.add(ROOT, 1, 0, FakeFunction::root_port());
    pci.add(Below::Bridge(port), 0, 0, FakeFunction::nvme());
    let other = pci.add(Below::Root(64), 0, 0, FakeFunction::root_port());
    pci.add(Below::Bridge(other), 0, 0, FakeFunction::nvme());
    assert_eq!(found(&scan(&pci)), ["00:01.0", "01:00.0"]);
    pci.take_accesses();
    let without = {
        scan(&pci);
        pci.take_accesses()
    };
    let topology = enumerate(&pci, &virt(), probing());
    assert_eq!(topology.roots(), [0, 64]);
    assert_eq!(
        found(&topology),
        ["00:01.0", "01:00.0", "40:00.0", "41:00.0"]
    );
    let extra = pci.take_accesses() - without;
    assert!((8_000..9_000).contains(&extra), "{extra}");
}

#[test]
fn a_root_bus_takes_numbers_only_up_to_the_next_one() {
    let mut pci = FakePci::new();
    for device in 0..3 {
        pci.add(ROOT, device, 0, FakeFunction::root_port());
    }
    pci.add(Below::Root(3), 0, 0, FakeFunction::edu());
    let topology = enumerate(&pci, &virt(), probing());
    let last = topology.function(bdf("00:02.0")).unwrap();
    assert_eq!(last.defects, [Defect::NoBusNumber]);
    assert_eq!(topology.roots(), [0, 3]);
}

#[test]
fn functions_beyond_the_bound_are_silenced_and_counted() {
    let mut pci = FakePci::new();
    let mut ids = vec![];
    for device in 0..32 {
        for number in 0..8 {
            let edu = FakeFunction::edu().multifunction().command(4);
            ids.push(pci.add(ROOT, device, number, edu));
        }
    }
    let policy = ScanPolicy {
        max_functions: 10,
        ..ScanPolicy::default()
    };
    let topology = enumerate(&pci, &virt(), policy);
    assert_eq!((topology.functions().len(), topology.ignored()), (10, 246));
    assert!(ids.iter().all(|&id| pci.register(id, 4) & 4 == 0));
    let all = enumerate(&pci, &virt(), ScanPolicy::default());
    assert_eq!((all.functions().len(), all.ignored()), (256, 0));
    assert_eq!(pci.read32(bdf("1f:1f.7"), 0), u32::MAX);
}
