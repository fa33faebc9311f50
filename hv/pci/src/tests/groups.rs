use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::{bdf, scan};
use crate::fake::{Below, FakeFunction, FakeId, FakePci};
use crate::{GroupPolicy, PortType, Reason, Topology, groups, requesters};

const ROOT: Below = Below::Root(0);

fn members(topology: &Topology) -> Vec<Vec<String>> {
    let groups = groups(topology, GroupPolicy::Acs);
    let text = |group: &crate::Group| group.members.iter().map(|m| m.to_string()).collect();
    groups.iter().map(text).collect()
}

/// A switch below a root port, with two downstream ports and an `edu` below each.
fn switch(pci: &mut FakePci, ports: [FakeFunction; 2]) -> FakeId {
    let port = pci.add(ROOT, 1, 0, FakeFunction::root_port());
    let up = pci.add(Below::Bridge(port), 0, 0, FakeFunction::upstream());
    for (device, down) in (0..).zip(ports) {
        let down = pci.add(Below::Bridge(up), device, 0, down);
        pci.add(Below::Bridge(down), 0, 0, FakeFunction::edu());
    }
    up
}

#[test]
fn a_port_with_acs_separates_what_is_below_it_from_itself() {
    let mut pci = FakePci::new();
    let port = pci.add(ROOT, 1, 0, FakeFunction::root_port());
    pci.add(Below::Bridge(port), 0, 0, FakeFunction::nvme());
    pci.add(ROOT, 2, 0, FakeFunction::nvme());
    assert_eq!(
        members(&scan(&pci)),
        [vec!["00:01.0"], vec!["00:02.0"], vec!["01:00.0"]]
    );
}

#[test]
fn a_port_without_acs_joins_everything_below_it() {
    let mut pci = FakePci::new();
    for (device, capability) in [(1, None), (2, Some(0x0d))] {
        let port = FakeFunction::bridge(1, 1).express(PortType::RootPort);
        let port = match capability {
            Some(bits) => port.acs(bits),
            None => port,
        };
        let port = pci.add(ROOT, device, 0, port);
        pci.add(Below::Bridge(port), 0, 0, FakeFunction::nvme());
    }
    let topology = scan(&pci);
    assert_eq!(
        members(&topology),
        [vec!["00:01.0", "01:00.0"], vec!["00:02.0", "02:00.0"]]
    );
    let why: Vec<_> = groups(&topology, GroupPolicy::Acs)
        .iter()
        .map(|g| g.why[0].why)
        .collect();
    // Nothing on, and upstream forwarding alone missing.
    assert_eq!(
        why,
        [Reason::Port { absent: 0x1d }, Reason::Port { absent: 0x10 }]
    );
}

#[test]
fn a_port_through_which_translated_requests_go_directly_does_not_separate() {
    for (control, writable, apart) in [
        (0x5d, false, false),
        (0x5f, false, true),
        (0x5d, true, true),
    ] {
        let mut pci = FakePci::new();
        let port = FakeFunction::bridge(1, 1)
            .express(PortType::RootPort)
            .acs_on(0x5f, control);
        let mask = if writable { 0x5f << 16 } else { 0 };
        let bits = 0x5f | u32::from(control) << 16;
        let port = pci.add(ROOT, 1, 0, port.with(0x104, bits, mask));
        pci.add(Below::Bridge(port), 0, 0, FakeFunction::nvme());
        let topology = scan(&pci);
        assert_eq!(members(&topology).len(), if apart { 2 } else { 1 });
        if !apart {
            let all = groups(&topology, GroupPolicy::Acs);
            assert_eq!(all[0].why[0].why, Reason::Port { absent: 0x40 });
        }
    }
}

#[test]
fn a_switch_without_acs_is_one_group_from_its_upstream_port_down() {
    let mut pci = FakePci::new();
    switch(
        &mut pci,
        [FakeFunction::downstream(), FakeFunction::downstream()],
    );
    assert_eq!(
        members(&scan(&pci)),
        [
            vec!["00:01.0"],
            vec!["01:00.0", "02:00.0", "02:01.0", "03:00.0", "04:00.0"]
        ]
    );
}

#[test]
fn one_port_without_acs_spoils_the_whole_switch_and_with_all_of_them_none() {
    let good = || FakeFunction::downstream().acs(0x5f);
    let mut pci = FakePci::new();
    switch(&mut pci, [good(), FakeFunction::downstream()]);
    let topology = scan(&pci);
    assert_eq!(members(&topology).len(), 2);
    let all = groups(&topology, GroupPolicy::Acs);
    let port = bdf("02:01.0");
    assert!(all[1].why.iter().any(|j| j.why == Reason::Switch { port }));

    let mut pci = FakePci::new();
    switch(&mut pci, [good(), good()]);
    assert!(members(&scan(&pci)).iter().all(|group| group.len() == 1));
}

#[test]
fn functions_of_a_device_are_one_group_unless_all_redirect() {
    let function = |acs: Option<u16>| {
        let function = FakeFunction::endpoint(1, 1, 0)
            .express(PortType::IntegratedEndpoint)
            .multifunction();
        match acs {
            Some(bits) => function.acs(bits),
            None => function,
        }
    };
    let mut pci = FakePci::new();
    for (device, acs) in [(1, None), (2, Some(0x0c)), (3, Some(0))] {
        pci.add(ROOT, device, 0, function(Some(0x0c)));
        pci.add(ROOT, device, 1, function(acs));
    }
    pci.add(ROOT, 4, 0, FakeFunction::edu().multifunction());
    pci.add(ROOT, 4, 1, FakeFunction::edu().multifunction());
    assert_eq!(
        members(&scan(&pci)),
        [
            vec!["00:01.0", "00:01.1"],
            vec!["00:02.0"],
            vec!["00:02.1"],
            vec!["00:03.0"],
            vec!["00:03.1"],
            vec!["00:04.0", "00:04.1"],
        ]
    );
}

#[test]
fn devices_behind_a_bridge_to_conventional_pci_share_its_requester_id() {
    let mut pci = FakePci::new();
    let port = pci.add(ROOT, 1, 0, FakeFunction::root_port());
    let bridge = FakeFunction::bridge(0x1b36, 0x000e).express(PortType::ToConventional);
    let bridge = pci.add(Below::Bridge(port), 0, 0, bridge);
    pci.add(Below::Bridge(bridge), 3, 0, FakeFunction::edu());
    let inner = pci.add(Below::Bridge(bridge), 4, 0, FakeFunction::bridge(1, 1));
    pci.add(Below::Bridge(inner), 5, 0, FakeFunction::edu());
    let topology = scan(&pci);
    let ids = |text| {
        let ids = requesters(&topology, bdf(text));
        ids.iter().map(|id| id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ids("02:03.0"), ["02:03.0", "02:00.0"]);
    assert_eq!(ids("03:05.0"), ["03:05.0", "02:04.0", "02:00.0"]);
    assert_eq!(ids("01:00.0"), ["01:00.0"]);
    let groups = groups(&topology, GroupPolicy::Acs);
    assert_eq!(groups.len(), 2);
    assert_eq!(groups[1].aliases, [bdf("02:00.0")]);
    assert_eq!(groups[1].members.len(), 4);
    assert!(groups[1].why.iter().all(|j| j.why == Reason::Conventional));
}

#[test]
fn the_whole_host_is_one_group_where_the_platform_says_so() {
    let mut pci = FakePci::new();
    for device in 0..3 {
        pci.add(ROOT, device, 0, FakeFunction::nvme());
    }
    let topology = scan(&pci);
    assert_eq!(groups(&topology, GroupPolicy::Acs).len(), 3);
    let whole = groups(&topology, GroupPolicy::WholeHost);
    assert_eq!(whole.len(), 1);
    assert_eq!(whole[0].members.len(), 3);
    assert_eq!(whole[0].why.len(), 2);
    let none = scan(&FakePci::new());
    assert!(groups(&none, GroupPolicy::WholeHost).is_empty());
}
