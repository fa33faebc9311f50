use alloc::string::ToString;
use alloc::vec::Vec;

use super::{bdf, scan, virt};
use crate::fake::{Below, FakeFunction, FakePci};
use crate::{
    BarKind, Defect, GroupPolicy, Obstacle, PlacePolicy, Reason, Topology, Wish, groups, obstacles,
    place,
};

const ROOT: Below = Below::Root(0);

/// An NVMe controller alone, and a switch without ACS with two `edu` behind it.
fn machine() -> Topology {
    let mut pci = FakePci::new();
    pci.add(ROOT, 1, 0, FakeFunction::nvme());
    let port = pci.add(ROOT, 2, 0, FakeFunction::root_port());
    let up = pci.add(Below::Bridge(port), 0, 0, FakeFunction::upstream());
    for device in 0..2 {
        let down = pci.add(Below::Bridge(up), device, 0, FakeFunction::downstream());
        pci.add(Below::Bridge(down), 0, 0, FakeFunction::edu());
    }
    pci.add(ROOT, 3, 0, FakeFunction::nvme().with(4, 4, 0));
    let huge = FakeFunction::endpoint(1, 1, 0).bar(0, BarKind::Memory64, 1 << 50);
    pci.add(ROOT, 4, 0, huge);
    let mut topology = scan(&pci);
    place(&pci, &virt(), &mut topology, PlacePolicy::default()).unwrap();
    topology
}

fn in_the_way(topology: &Topology, wishes: &[(&str, u32)]) -> Vec<Obstacle> {
    let groups = groups(topology, GroupPolicy::Acs);
    let wishes: Vec<_> = wishes
        .iter()
        .map(|&(text, vm)| Wish {
            function: bdf(text),
            vm,
        })
        .collect();
    obstacles(topology, &groups, &wishes)
}

#[test]
fn whole_groups_go_to_one_vm_and_their_bridges_to_nobody() {
    let topology = machine();
    assert_eq!(in_the_way(&topology, &[]), []);
    assert_eq!(in_the_way(&topology, &[("00:01.0", 0)]), []);
    let both = [("03:00.0", 1), ("04:00.0", 1), ("00:01.0", 0)];
    assert_eq!(in_the_way(&topology, &both), []);
}

#[test]
fn a_group_that_is_split_is_refused_with_what_is_in_the_way() {
    let topology = machine();
    let shared = |owner| Obstacle::Shared {
        function: bdf("03:00.0"),
        with: bdf("04:00.0"),
        owner,
        why: Some(Reason::Port { absent: 0x1d }),
    };
    assert_eq!(in_the_way(&topology, &[("03:00.0", 1)]), [shared(None)]);
    let split = in_the_way(&topology, &[("03:00.0", 1), ("04:00.0", 2)]);
    assert_eq!(split.len(), 2);
    assert_eq!(split[0], shared(Some(2)));
    assert_eq!(
        split[0].to_string(),
        "03:00.0: cannot be kept apart from 04:00.0, which goes to VM 2 (port without ACS (bits 0x1d))"
    );
}

#[test]
fn bridges_strangers_and_devices_that_do_not_obey_are_refused() {
    let topology = machine();
    let one = |text| in_the_way(&topology, &[(text, 0)]);
    assert_eq!(one("00:02.0"), [Obstacle::NotADevice(bdf("00:02.0"))]);
    assert_eq!(one("00:09.0"), [Obstacle::NotFound(bdf("00:09.0"))]);
    let function = bdf("00:03.0");
    let defect = Defect::BusMasterStuck;
    assert_eq!(one("00:03.0"), [Obstacle::Defective { function, defect }]);
    let function = bdf("00:04.0");
    assert_eq!(one("00:04.0"), [Obstacle::NotPlaced { function, bar: 0 }]);
    let twice = in_the_way(&topology, &[("00:01.0", 0), ("00:01.0", 1)]);
    assert_eq!(twice, [Obstacle::Twice(bdf("00:01.0"))]);
}
