use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use types::{Pa, PageSize, StreamId};

use super::{bdf, scan, virt};
use crate::fake::{Below, FakeFunction, FakePci};
use crate::{
    BarKind, BridgeWindow, Defect, Error, FirmwarePlaces, GroupPolicy, HostBridge, PlacePolicy,
    Placement, Topology, Unplaced, Why, Window, WindowKind, groups, place, report,
};

const ROOT: Below = Below::Root(0);

fn placed(pci: &FakePci, host: &HostBridge, policy: PlacePolicy) -> (Topology, Placement) {
    let mut topology = scan(pci);
    let placement = place(pci, host, &mut topology, policy).unwrap();
    (topology, placement)
}

fn address(topology: &Topology, text: &str, bar: u8) -> Option<u64> {
    let function = topology.function(bdf(text)).unwrap();
    function.bar(bar).unwrap().place.map(|p| p.bus)
}

fn wide(size: u64) -> FakeFunction {
    FakeFunction::endpoint(1, 1, 0).bar(0, BarKind::Prefetchable64, size)
}

fn narrow(size: u64) -> FakeFunction {
    FakeFunction::endpoint(1, 1, 0).bar(0, BarKind::Memory32, size)
}

#[test]
fn bars_are_placed_largest_first_and_by_the_page() {
    let mut pci = FakePci::new();
    pci.add(ROOT, 1, 0, FakeFunction::nvme());
    pci.add(ROOT, 2, 0, narrow(16));
    pci.add(ROOT, 3, 0, narrow(256));
    pci.add(ROOT, 4, 0, FakeFunction::edu());
    let io = FakeFunction::endpoint(1, 1, 0)
        .bar(0, BarKind::Io, 32)
        .bar(1, BarKind::Io, 4);
    let io = pci.add(ROOT, 5, 0, io);
    let (topology, placement) = placed(&pci, &virt(), PlacePolicy::default());
    let at = |text, bar| address(&topology, text, bar).unwrap();
    assert_eq!(at("00:04.0", 0), 0x1000_0000);
    assert_eq!(at("00:01.0", 0), 0x1010_0000);
    assert_eq!(at("00:02.0", 0), 0x1010_4000);
    assert_eq!(at("00:03.0", 0), 0x1010_5000);
    assert_eq!((at("00:05.0", 0), at("00:05.0", 1)), (0x1000, 0x1020));
    let bar = topology.function(bdf("00:05.0")).unwrap().bars[0];
    assert_eq!(bar.place.unwrap().cpu, Pa::truncated(0x3eff_1000));
    assert_eq!((placement.placed, placement.kept), (6, 0));
    // The device decodes what it was given, and masters nothing.
    assert_eq!(pci.register(io, 4) & 7, 1);
    assert_eq!(pci.register(io, 0x10), 0x1001);
    assert!(!pci.ever_mastered());
    let mut again = topology.clone();
    let policy = PlacePolicy {
        isolation: PageSize::SIZE_64K,
        firmware: FirmwarePlaces::Replace,
    };
    place(&pci, &virt(), &mut again, policy).unwrap();
    assert_eq!(address(&again, "00:03.0", 0), Some(0x1012_0000));
}

#[test]
fn nothing_is_placed_at_bus_address_zero() {
    let mut host = virt();
    host.windows[1].bus = 0;
    let mut pci = FakePci::new();
    pci.add(ROOT, 1, 0, narrow(4096));
    let (topology, _) = placed(&pci, &host, PlacePolicy::default());
    let place = topology.functions()[0].bars[0].place.unwrap();
    assert_eq!((place.bus, place.cpu), (0x1000, Pa::truncated(0x1000_1000)));
}

#[test]
fn below_bridges_windows_open_for_what_is_there_and_no_more() {
    let mut pci = FakePci::new();
    let port = pci.add(ROOT, 1, 0, FakeFunction::root_port());
    let device = FakeFunction::nvme()
        .bar(2, BarKind::Prefetchable64, 1 << 30)
        .bar(4, BarKind::Io, 64);
    pci.add(Below::Bridge(port), 0, 0, device);
    let empty = pci.add(ROOT, 2, 0, FakeFunction::root_port());
    let (topology, placement) = placed(&pci, &virt(), PlacePolicy::default());
    assert_eq!(placement.unplaced, []);
    let windows = topology.functions()[0].bridge().unwrap().windows;
    let window = |first, last| Some(BridgeWindow { first, last });
    assert_eq!(windows.io, window(0x1000, 0x1fff));
    assert_eq!(windows.memory, window(0x1000_0000, 0x100f_ffff));
    assert_eq!(windows.prefetchable, window(0x80_0000_0000, 0x80_3fff_ffff));
    assert_eq!(pci.register(port, 0x20), 0x1000_1000);
    assert_eq!(pci.register(port, 0x24), 0x3ff1_0001);
    assert_eq!(pci.register(port, 0x28), 0x80);
    assert_eq!(pci.register(port, 0x1c) & 0xffff, 0x1111);
    assert_eq!(pci.register(port, 4) & 7, 3);
    // Base above limit: closed.
    assert_eq!(pci.register(empty, 0x20), 0x0000_fff0);
    assert_eq!(pci.register(empty, 0x1c) & 0xffff, 0x01f1);
    assert_eq!(pci.register(empty, 4) & 7, 0);
}

#[test]
fn equal_windows_are_placed_in_the_order_of_their_bridges() {
    let mut pci = FakePci::new();
    for device in 0..3 {
        let port = pci.add(ROOT, device, 0, FakeFunction::root_port());
        pci.add(Below::Bridge(port), 0, 0, narrow(4096));
    }
    let (topology, _) = placed(&pci, &virt(), PlacePolicy::default());
    let at = ["01:00.0", "02:00.0", "03:00.0"].map(|bdf| address(&topology, bdf, 0).unwrap());
    assert_eq!(at, [0x1000_0000, 0x1010_0000, 0x1020_0000]);
}

#[test]
fn a_bar_larger_than_every_window_is_reported_and_the_others_are_placed() {
    let mut pci = FakePci::new();
    let big = pci.add(ROOT, 1, 0, wide(1 << 40));
    pci.add(ROOT, 2, 0, FakeFunction::nvme());
    let port = pci.add(ROOT, 3, 0, FakeFunction::root_port());
    let mixed = wide(1 << 45).bar(2, BarKind::Memory32, 4096);
    pci.add(Below::Bridge(port), 0, 0, mixed);
    let (topology, placement) = placed(&pci, &virt(), PlacePolicy::default());
    let [first, second] = placement.unplaced[..] else {
        panic!("{placement:?}")
    };
    assert_eq!(
        first,
        Unplaced {
            bdf: bdf("00:01.0"),
            bar: 0,
            kind: BarKind::Prefetchable64,
            size: 1 << 40,
            why: Why::TooLarge { largest: 1 << 39 },
        }
    );
    assert_eq!((second.bdf, second.bar), (bdf("01:00.0"), 0));
    assert_eq!(
        format!("{first}"),
        "00:01.0 BAR0 pref64 1T not placed: larger than the largest window (512G)"
    );
    assert!(address(&topology, "00:02.0", 0).is_some());
    assert!(address(&topology, "01:00.0", 2).is_some());
    assert_eq!(pci.register(big, 4) & 7, 0, "it decodes nothing");
}

#[test]
fn when_windows_are_full_the_largest_gives_way() {
    let mut pci = FakePci::new();
    for device in 0..4 {
        pci.add(ROOT, device, 0, narrow(256 << 20));
    }
    pci.add(ROOT, 5, 0, narrow(1 << 20));
    let (topology, placement) = placed(&pci, &virt(), PlacePolicy::default());
    // 751 MiB from 256 MiB on have room for two aligned blocks of 256 MiB.
    let left: Vec<_> = placement.unplaced.iter().map(|u| (u.bdf, u.why)).collect();
    assert_eq!(
        left,
        [(bdf("00:02.0"), Why::NoRoom), (bdf("00:03.0"), Why::NoRoom)]
    );
    assert!(address(&topology, "00:05.0", 0).is_some());
}

#[test]
fn a_full_root_bus_of_huge_bars_is_settled_in_bounded_work() {
    let mut pci = FakePci::new();
    for device in 0..32 {
        for number in 0..8 {
            let huge = FakeFunction::endpoint(1, 1, 0)
                .bar(0, BarKind::Prefetchable64, 1 << 38)
                .bar(2, BarKind::Memory64, 1 << 37)
                .bar(4, BarKind::Memory64, 1 << 20)
                .multifunction();
            pci.add(ROOT, device, number, huge);
        }
    }
    let (_, placement) = placed(&pci, &virt(), PlacePolicy::default());
    // Two of 256 GiB fill the high window; 256 of 1 MiB fit low.
    assert_eq!((placement.placed, placement.unplaced.len()), (258, 510));
    assert!(placement.unplaced.iter().all(|u| u.why == Why::NoRoom));
}

#[test]
fn a_bar_that_can_go_high_makes_room_for_one_that_cannot() {
    let mut pci = FakePci::new();
    for device in 0..3 {
        // Small, not prefetchable: goes low by choice.
        let flexible = FakeFunction::endpoint(1, 1, 0).bar(0, BarKind::Memory64, 1 << 20);
        pci.add(ROOT, device, 0, flexible);
    }
    pci.add(ROOT, 5, 0, narrow(1 << 20));
    let mut host = virt();
    host.windows[1].size = 2 << 20;
    let (topology, placement) = placed(&pci, &host, PlacePolicy::default());
    assert_eq!(placement.unplaced, []);
    assert!(address(&topology, "00:05.0", 0).unwrap() < 1 << 32);
    let high = (0..3).filter(|d| address(&topology, &format!("00:0{d}.0"), 0).unwrap() >> 32 != 0);
    assert_eq!(high.count(), 2);
}

#[test]
fn without_a_window_of_its_kind_a_bar_says_so() {
    let mut host = virt();
    host.windows.remove(0);
    let mut pci = FakePci::new();
    pci.add(
        ROOT,
        1,
        0,
        FakeFunction::endpoint(1, 1, 0).bar(0, BarKind::Io, 16),
    );
    let no_io = FakeFunction::bridge(1, 1).with(0x1c, 0, 0);
    let bridge = pci.add(ROOT, 2, 0, no_io);
    let io = || FakeFunction::endpoint(1, 1, 0).bar(0, BarKind::Io, 16);
    pci.add(Below::Bridge(bridge), 0, 0, io());
    for (host, expected) in [(host, 2), (virt(), 1)] {
        let (_, placement) = placed(&pci, &host, PlacePolicy::default());
        assert_eq!(placement.unplaced.len(), expected);
        assert!(placement.unplaced.iter().all(|u| u.why == Why::NoWindow));
    }
}

#[test]
fn windows_for_prefetchable_memory_take_nothing_else() {
    let mut host = virt();
    host.windows[2].kind = WindowKind::Prefetchable;
    host.windows.remove(1);
    let mut pci = FakePci::new();
    pci.add(ROOT, 1, 0, wide(1 << 20));
    pci.add(ROOT, 2, 0, FakeFunction::nvme());
    let (topology, placement) = placed(&pci, &host, PlacePolicy::default());
    assert_eq!(address(&topology, "00:01.0", 0), Some(0x80_0000_0000));
    assert_eq!(placement.unplaced.len(), 1);
    assert_eq!(placement.unplaced[0].why, Why::NoWindow);
}

#[test]
fn what_firmware_assigned_stays_when_it_is_valid() {
    let mut pci = FakePci::new();
    let port = FakeFunction::root_port()
        .numbers(0, 1, 1)
        .with(0x20, 0x2000_2000, 0xfff0_fff0);
    let port = pci.add(ROOT, 1, 0, port);
    let below = narrow(4096).assigned(0, 0x2000_4000);
    pci.add(Below::Bridge(port), 0, 0, below);
    pci.add(ROOT, 2, 0, narrow(4096).assigned(0, 0x1000_0000));
    pci.add(ROOT, 3, 0, narrow(4096).assigned(0, 0x5000_0000)); // outside
    pci.add(ROOT, 4, 0, narrow(4096).assigned(0, 0x1000_0000)); // taken
    pci.add(ROOT, 5, 0, narrow(256).assigned(0, 0x1000_8100)); // not on a page
    pci.add(ROOT, 6, 0, narrow(4096).assigned(0, 0x2000_8000)); // in the port's window
    pci.add(ROOT, 7, 0, narrow(4096)); // not assigned
    let (topology, placement) = placed(&pci, &virt(), PlacePolicy::default());
    let at = |text| address(&topology, text, 0).unwrap();
    assert_eq!(at("01:00.0"), 0x2000_4000);
    assert_eq!(at("00:02.0"), 0x1000_0000);
    assert_eq!(
        ["00:03.0", "00:04.0", "00:05.0", "00:06.0", "00:07.0"].map(at),
        [
            0x1000_1000,
            0x1000_2000,
            0x1000_3000,
            0x1000_4000,
            0x1000_5000
        ]
    );
    assert_eq!((placement.kept, placement.placed), (2, 5));
    let policy = PlacePolicy {
        firmware: FirmwarePlaces::Replace,
        ..PlacePolicy::default()
    };
    let (topology, placement) = placed(&pci, &virt(), policy);
    assert_eq!(placement.kept, 0);
    assert_eq!(address(&topology, "01:00.0", 0), Some(0x1000_0000));
}

#[test]
fn below_a_bridge_firmware_addresses_stay_all_or_none() {
    for (second, kept) in [(0x2000_5000, 2), (0x2000_4000, 0), (0x2010_0000, 0), (0, 0)] {
        let mut pci = FakePci::new();
        let port = FakeFunction::bridge(1, 1)
            .numbers(0, 1, 1)
            .with(0x20, 0x2000_2000, 0xfff0_fff0)
            .with(0x1c, 0x0000_01f1, 0xf0f0)
            .with(0x24, 0x0001_fff1, 0xfff0_fff0);
        let port = pci.add(ROOT, 1, 0, port);
        pci.add(
            Below::Bridge(port),
            0,
            0,
            narrow(4096).assigned(0, 0x2000_4000),
        );
        pci.add(Below::Bridge(port), 1, 0, narrow(4096).assigned(0, second));
        let (_, placement) = placed(&pci, &virt(), PlacePolicy::default());
        assert_eq!(placement.kept, kept, "{second:#x}");
        assert_eq!(placement.placed, 2 - kept);
    }
}

#[test]
fn registers_that_do_not_hold_are_found_out() {
    let mut pci = FakePci::new();
    // Takes sizing, but has a bit stuck at one.
    let stuck = narrow(4096).with(0x10, 0x0001_0000, 0xfffe_f000);
    let stuck = pci.add(ROOT, 1, 0, stuck);
    let bridge = FakeFunction::bridge(1, 1).with(0x20, 0, 0);
    let bridge = pci.add(ROOT, 2, 0, bridge);
    pci.add(Below::Bridge(bridge), 0, 0, narrow(4096));
    let (topology, placement) = placed(&pci, &virt(), PlacePolicy::default());
    let why: Vec<_> = placement.unplaced.iter().map(|u| u.why).collect();
    assert_eq!(
        why,
        [
            Why::DoesNotHold,
            Why::BridgeDoesNotHold {
                bridge: bdf("00:02.0")
            }
        ]
    );
    assert_eq!(placement.placed, 0);
    assert_eq!(
        topology.functions()[0].defects,
        [Defect::BarDoesNotHold { bar: 0 }]
    );
    assert_eq!(topology.functions()[1].defects, [Defect::WindowsDoNotHold]);
    assert_eq!(pci.register(stuck, 4) & 7, 0);
    assert_eq!(pci.register(bridge, 4) & 7, 0);
}

#[test]
fn impossible_windows_are_refused_before_anything_is_written() {
    let mut pci = FakePci::new();
    pci.add(ROOT, 1, 0, FakeFunction::nvme());
    let mut topology = scan(&pci);
    let mut host = virt();
    host.windows[1].size = 0;
    let refuse = |host: &HostBridge, topology: &mut Topology| {
        pci.take_accesses();
        let error = place(&pci, host, topology, PlacePolicy::default()).unwrap_err();
        assert_eq!(pci.take_accesses(), 0);
        error
    };
    let window = host.windows[1];
    assert_eq!(refuse(&host, &mut topology), Error::BadWindow { window });
    host.windows[1] = Window {
        size: u64::MAX,
        ..window
    };
    assert!(matches!(
        refuse(&host, &mut topology),
        Error::BadWindow { .. }
    ));
    host.windows[1] = virt().windows[1];
    host.windows[2].bus = 0x2000_0000;
    assert!(matches!(
        refuse(&host, &mut topology),
        Error::WindowsOverlap { .. }
    ));
}

fn lines(pci: &FakePci) -> Vec<String> {
    let (topology, placement) = placed(pci, &virt(), PlacePolicy::default());
    let groups = groups(&topology, GroupPolicy::Acs);
    let mut lines = Vec::new();
    report(
        &topology,
        &placement,
        &groups,
        &|bdf| StreamId::new(bdf.bits().into()).ok(),
        &mut |line| lines.push(format!("{line}")),
    );
    lines
}

#[test]
fn the_report_is_one_line_a_fact() {
    let mut pci = FakePci::new();
    pci.add(ROOT, 1, 0, FakeFunction::nvme().command(4));
    let port = pci.add(ROOT, 2, 0, FakeFunction::root_port());
    let bridge = FakeFunction::bridge(0x1b36, 0x000e).express(crate::PortType::ToConventional);
    let bridge = pci.add(Below::Bridge(port), 0, 0, bridge);
    pci.add(Below::Bridge(bridge), 3, 0, FakeFunction::edu());
    pci.add(
        ROOT,
        4,
        0,
        wide(1 << 40).loop_to(0x30).with(0x04, 0x0010_0000, 7),
    );
    assert_eq!(
        lines(&pci),
        [
            "segment 0000 buses 00-ff: 5 functions in 4 groups, 2 BARs placed, 0 kept, 1 not placed",
            "00:01.0 1b36:0010 class 01.08.02 nvme BAR0 mem64 16K @0x10100000 msix 65 flr group 0 sid 0x8",
            "00:01.0 was mastering the bus: stopped",
            "00:02.0 1b36:000c class 06.04.00 root-port bus 01-02 mem 0x10000000-0x100fffff acs group 1 sid 0x10",
            "00:04.0 0001:0001 class 00.00.00 BAR0 pref64 1T not placed group 2 sid 0x20",
            "00:04.0 defect: no capability at 0x30",
            "01:00.0 1b36:000e class 06.04.00 pcie-to-pci bus 02-02 mem 0x10000000-0x100fffff group 3 sid 0x100",
            "02:03.0 1234:11e8 class 00.ff.00 BAR0 mem32 1M @0x10000000 msi 1 group 3 sid 0x218",
            "00:04.0 BAR0 pref64 1T not placed: larger than the largest window (512G)",
            "group 3 joins 02:03.0 with 01:00.0: bridge of conventional PCI",
            "group 3 also appears as 02:00.0 sid 0x200",
        ]
    );
}

#[test]
fn a_machine_with_no_pci_device_says_so() {
    assert_eq!(
        lines(&FakePci::new()),
        [
            "segment 0000 buses 00-ff: 0 functions in 0 groups, 0 BARs placed, 0 kept, 0 not placed",
            "segment 0000 has no PCI device",
        ]
    );
}
