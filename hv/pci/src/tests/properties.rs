//! Random hierarchies: whatever is there, addresses are sound and groups partition the functions.

use alloc::vec::Vec;

use proptest::collection::vec;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use proptest::test_runner::TestCaseError;

use super::{probing, virt};
use crate::fake::{Below, FakeFunction, FakeId, FakePci};
use crate::{
    BarKind, Bridge, FirmwarePlaces, GroupPolicy, HostBridge, PlacePolicy, Placement, PortType,
    Topology, WindowKind, enumerate, groups, place, requesters,
};

/// One function to add: on which of the bridges so far, where, and what.
#[derive(Clone, Debug)]
struct Plan {
    parent: usize,
    device: u8,
    number: u8,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Bridge(Option<PortType>, Option<u16>),
    Device(Vec<(BarKind, u32)>, bool),
    /// A function that exists is seen here too.
    Echo(usize),
    /// Registers without sense.
    Noise(Vec<(u16, u32, u32)>),
}

fn what() -> impl Strategy<Value = What> {
    let port = prop_oneof![
        Just(None),
        Just(Some(PortType::RootPort)),
        Just(Some(PortType::Upstream)),
        Just(Some(PortType::Downstream)),
        Just(Some(PortType::ToConventional)),
    ];
    let acs = prop_oneof![Just(None), Just(Some(0x5f)), Just(Some(0x0c))];
    let kind = prop_oneof![
        Just(BarKind::Io),
        Just(BarKind::Memory32),
        Just(BarKind::Prefetchable32),
        Just(BarKind::Memory64),
        Just(BarKind::Prefetchable64),
    ];
    let bars = vec((kind, any::<u32>()), 0..4);
    prop_oneof![
        4 => (port, acs).prop_map(|(port, acs)| What::Bridge(port, acs)),
        1 => any::<usize>().prop_map(What::Echo),
        6 => (bars, any::<bool>()).prop_map(|(bars, multi)| What::Device(bars, multi)),
        1 => vec((1..64_u16, any::<u32>(), any::<u32>()), 0..40).prop_map(What::Noise),
    ]
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let plan = (any::<usize>(), 0..32_u8, 0..8_u8, what());
    let plan = plan.prop_map(|(parent, device, number, what)| Plan {
        parent,
        device,
        number: if device % 3 == 0 { number } else { 0 },
        what,
    });
    vec(plan, 0..40)
}

fn build(plans: &[Plan]) -> FakePci {
    let mut pci = FakePci::new();
    let mut bridges: Vec<Below> = Vec::from([Below::Root(0), Below::Root(0x80)]);
    let mut all: Vec<FakeId> = Vec::new();
    for plan in plans {
        let below = bridges[plan.parent % bridges.len()];
        let mut is_bridge = false;
        let function = match &plan.what {
            What::Bridge(port, acs) => {
                is_bridge = true;
                let bridge = FakeFunction::bridge(1, 1);
                let bridge = match port {
                    Some(port) => bridge.express(*port),
                    None => bridge,
                };
                match acs {
                    Some(bits) => bridge.acs(*bits),
                    None => bridge,
                }
            }
            What::Device(bars, multi) => {
                let mut device = FakeFunction::endpoint(2, 2, 0);
                let mut index = 0;
                for &(kind, log2) in bars {
                    let (least, most) = match kind {
                        BarKind::Io => (2, 8),
                        BarKind::Memory32 | BarKind::Prefetchable32 => (4, 31),
                        _ => (4, 45),
                    };
                    // Mostly small, sometimes larger than any window.
                    let log2 = least + (log2 % 100).min(log2 % 25) % (most - least + 1);
                    let slots = if kind.is_64_bit() { 2 } else { 1 };
                    if index + slots <= 6 {
                        device = device.bar(index, kind, 1 << log2);
                        index += slots;
                    }
                }
                if *multi {
                    device.multifunction()
                } else {
                    device
                }
            }
            What::Echo(which) => {
                if let Some(&id) = all.get(which % all.len().max(1)) {
                    pci.connect(below, plan.device, plan.number, id);
                }
                continue;
            }
            What::Noise(registers) => {
                let mut noise = FakeFunction::endpoint(3, 3, 0);
                for &(dword, value, mask) in registers {
                    noise.set(usize::from(dword) * 4, value, mask);
                }
                is_bridge = true;
                noise
            }
        };
        let id: FakeId = pci.add(below, plan.device, plan.number, function);
        all.push(id);
        if is_bridge {
            bridges.push(Below::Bridge(id));
        }
    }
    pci
}

fn inside(bridge: &Bridge, io: bool, first: u64, last: u64) -> bool {
    let windows = if io {
        [bridge.windows.io, None]
    } else {
        [bridge.windows.memory, bridge.windows.prefetchable]
    };
    let mut open = windows.into_iter().flatten();
    open.any(|w| w.first <= first && last <= w.last)
}

/// Every placed BAR is aligned, inside all windows above it, and apart from all others; siblings'
/// windows are apart too.
fn sound(
    host: &HostBridge,
    topology: &Topology,
    placement: &Placement,
    page: u64,
) -> Result<(), TestCaseError> {
    let mut taken: Vec<(bool, u64, u64)> = Vec::new();
    let mut bars = 0;
    for function in topology.functions() {
        for bar in &function.bars {
            bars += 1;
            let Some(at) = bar.place else { continue };
            let io = bar.kind.is_io();
            let size = if io { bar.size } else { bar.size.max(page) };
            prop_assert!(at.bus != 0 && (!io || at.bus >= 0x1000));
            prop_assert_eq!(at.bus % size, 0);
            let last = at.bus + size - 1;
            prop_assert!(bar.kind.is_64_bit() || last <= u64::from(u32::MAX));
            let window = host.windows.iter().find(|w| {
                (w.kind == WindowKind::Io) == io && w.to_cpu(at.bus, size) == Some(at.cpu)
            });
            prop_assert!(window.is_some(), "{} {bar}", function.bdf);
            for above in topology.bridges_above(function.bdf) {
                let bridge = above.bridge().unwrap();
                prop_assert!(inside(bridge, io, at.bus, last), "{} {bar}", function.bdf);
            }
            taken.push((io, at.bus, last));
        }
    }
    taken.sort_unstable();
    for pair in taken.windows(2) {
        prop_assert!(pair[0].0 != pair[1].0 || pair[0].2 < pair[1].1, "{pair:x?}");
    }
    let mut windows = Vec::new();
    for function in topology.functions() {
        if let Some(bridge) = function.bridge() {
            let all = bridge.windows;
            let memory = [all.memory, all.prefetchable];
            windows.extend(all.io.map(|w| (function.parent, true, w.first, w.last)));
            for w in memory.into_iter().flatten() {
                windows.push((function.parent, false, w.first, w.last));
            }
        }
    }
    windows.sort_unstable();
    for pair in windows.windows(2) {
        let ((parent, io, _, last), (next_parent, next_io, first, _)) = (pair[0], pair[1]);
        prop_assert!((parent, io) != (next_parent, next_io) || last < first);
    }
    prop_assert_eq!(
        placement.kept + placement.placed + placement.unplaced.len(),
        bars
    );
    Ok(())
}

fn partition(topology: &Topology, policy: GroupPolicy) -> Result<(), TestCaseError> {
    let groups = groups(topology, policy);
    let mut members: Vec<_> = groups.iter().flat_map(|g| g.members.iter()).collect();
    prop_assert_eq!(members.len(), topology.functions().len());
    members.sort_unstable();
    members.dedup();
    prop_assert_eq!(members.len(), topology.functions().len());
    for group in &groups {
        // A tree of joins holds the members together, and no more joins than that.
        prop_assert_eq!(group.why.len() + 1, group.members.len());
        for &member in &group.members {
            for id in requesters(topology, member) {
                prop_assert!(group.contains(id) || group.aliases.contains(&id));
                let other = groups.iter().filter(|other| *other != group);
                let mut other = other.filter(|g| g.contains(id) || g.aliases.contains(&id));
                prop_assert!(other.next().is_none(), "two groups appear as {id}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_checks_notice_a_bar_in_the_wrong_place() {
    let mut pci = FakePci::new();
    let port = pci.add(Below::Root(0), 1, 0, FakeFunction::root_port());
    let device = || FakeFunction::endpoint(1, 1, 0).bar(0, BarKind::Memory32, 8192);
    pci.add(Below::Bridge(port), 0, 0, device());
    pci.add(Below::Root(0), 2, 0, device());
    let host = virt();
    let mut topology = enumerate(&pci, &host, probing());
    let placement = place(&pci, &host, &mut topology, PlacePolicy::default()).unwrap();
    let check = |topology: &Topology| sound(&host, topology, &placement, 4096);
    assert!(check(&topology).is_ok());
    // Functions: the port, the device on the root bus, the device below the port.
    let move_to = |function: usize, bus: u64| {
        let mut moved = topology.clone();
        let place = moved.functions_mut()[function].bars[0]
            .place
            .as_mut()
            .unwrap();
        place.bus = bus;
        place.cpu = types::Pa::truncated(bus);
        moved
    };
    let below = topology.functions()[2].bars[0].place.unwrap().bus;
    for (function, bus) in [
        (1, below),             // on another
        (1, below + 0x20_1000), // not aligned
        (1, 0x3eff_0000),       // outside the host's window
        (2, below + 0x10_0000), // outside the port's window
        (1, 0x80_0000_0000),    // above 4 GiB
    ] {
        assert!(
            check(&move_to(function, bus)).is_err(),
            "{function} {bus:#x}"
        );
    }
    assert!(check(&move_to(1, below + 0x40_0000)).is_ok());
}

proptest! {
    // A hierarchy is many functions, so fewer of them than usual.
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn random_hierarchies_are_placed_soundly(plans in plans(), large in any::<bool>()) {
        let pci = build(&plans);
        let isolation = if large { types::PageSize::SIZE_64K } else { types::PageSize::SIZE_4K };
        let policy = PlacePolicy { isolation, firmware: FirmwarePlaces::Keep };
        let host = virt();
        let mut topology = enumerate(&pci, &host, probing());
        prop_assert!(!pci.ever_mastered());
        let placement = place(&pci, &host, &mut topology, policy).unwrap();
        sound(&host, &topology, &placement, isolation.bytes())?;
        partition(&topology, GroupPolicy::Acs)?;
        partition(&topology, GroupPolicy::WholeHost)?;

        // What was placed is valid, so a second look keeps it all where it is.
        let mut again = enumerate(&pci, &host, probing());
        let second = place(&pci, &host, &mut again, policy).unwrap();
        sound(&host, &again, &second, isolation.bytes())?;
        if !plans.iter().any(|p| matches!(p.what, What::Noise(_) | What::Echo(_))) {
            prop_assert_eq!(again.functions().len(), topology.functions().len());
            if placement.unplaced.is_empty() {
                let places = |t: &Topology| -> Vec<_> {
                    let functions = t.functions().iter();
                    functions.flat_map(|f| f.bars.iter().map(|b| b.place)).collect()
                };
                prop_assert_eq!(places(&topology), places(&again));
                prop_assert_eq!(second.placed, 0);
            }
        }
    }
}
