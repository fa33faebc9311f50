//! Who may hold which device, and why not: the refusals (a) to (i).

use super::*;
use crate::PeerToPeer;

fn add(f: &mut Fixture, change: impl FnOnce(&mut DeviceDescription<'_>)) -> DeviceId {
    let group = f.group(SMMU);
    let source = f.source();
    let sources = [source];
    let mut description = Fixture::describe(group, &sources);
    change(&mut description);
    f.core.add_device(&description).unwrap()
}

#[test]
fn binding_claims_the_group_and_unbinding_frees_it() {
    let mut f = Fixture::new();
    let group = f.group(SMMU);
    let (a, b) = (f.device_in(group), f.device_in(group));
    assert_eq!(f.core.group(group).unwrap().owner(), Some(VM));
    f.core.unbind(a).unwrap();
    assert_eq!(f.core.group(group).unwrap().owner(), Some(VM));
    f.core.unbind(b).unwrap();
    assert_eq!(f.core.group(group).unwrap().owner(), None);
    assert_eq!(refused(f.core.unbind(b)), Error::NotBound);
    assert!(f.core.bind(a, OTHER_VM).is_ok());
}

#[test]
fn a_bound_device_is_not_bound_again() {
    let mut f = Fixture::new();
    let device = f.device(SMMU);
    assert_eq!(refused(f.core.bind(device, VM)), Error::AlreadyBound);
    assert_eq!(refused(f.core.bind(device, OTHER_VM)), Error::AlreadyBound);
}

#[test]
fn an_attached_device_is_not_unbound() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    assert_eq!(refused(f.core.unbind(device)), Error::AlreadyAttached);
    f.core.detach(device).unwrap();
    assert!(f.core.unbind(device).is_ok());
}

#[test]
fn a_bound_device_is_not_removed() {
    let mut f = Fixture::new();
    let device = f.device(SMMU);
    let group = f.core.device(device).unwrap().group();
    assert_eq!(refused(f.core.remove_device(device)), Error::AlreadyBound);
    assert!(matches!(
        f.core.remove_group(group),
        Err(Error::Busy { users: 1, .. })
    ));
    f.core.unbind(device).unwrap();
    f.core.remove_device(device).unwrap();
    assert!(f.core.remove_group(group).is_ok());
}

#[test]
fn a_device_does_not_join_or_leave_an_attached_group() {
    let mut f = Fixture::new();
    let group = f.group(SMMU);
    let a = f.device_in(group);
    let b = f.device_in(group);
    f.core.unbind(b).unwrap();
    f.core.attach(a, Target::Ioas(f.ioas)).unwrap();
    let late = f.core.add_device(&Fixture::describe(group, &[999]));
    assert_eq!(refused(late), Error::AlreadyAttached);
    assert_eq!(refused(f.core.remove_device(b)), Error::AlreadyAttached);
    f.core.detach(a).unwrap();
    assert!(f.core.remove_device(b).is_ok());
}

#[test]
fn a_group_needs_a_unit() {
    let mut f = Fixture::new();
    let nowhere = UnitId::new(77);
    assert_eq!(
        refused(f.core.add_group(nowhere, Residence::Free)),
        Error::NoSuchUnit(nowhere)
    );
}

// (a)

#[test]
fn a_group_with_a_member_elsewhere_is_refused() {
    let mut f = Fixture::new();
    let group = f.group(SMMU);
    f.device_in(group);
    let source = f.source();
    let second = f
        .core
        .add_device(&Fixture::describe(group, &[source]))
        .unwrap();
    assert_eq!(
        refused(f.core.bind(second, OTHER_VM)),
        Error::GroupHeld { holder: VM }
    );
    assert!(f.core.bind(second, VM).is_ok());
}

#[test]
fn a_group_the_hypervisor_uses_is_refused() {
    let mut f = Fixture::new();
    let group = f.core.add_group(SMMU, Residence::Hypervisor).unwrap();
    let device = f.core.add_device(&Fixture::describe(group, &[77])).unwrap();
    assert_eq!(
        refused(f.core.bind(device, VM)),
        Error::GroupHeld {
            holder: OwnerId::HYPERVISOR
        }
    );
    assert!(f.core.bind(device, OwnerId::HYPERVISOR).is_ok());
}

// (b)

#[test]
fn peers_behind_an_open_switch_go_to_one_owner() {
    let mut f = Fixture::new();
    let a = add(&mut f, |d| d.path = Path::Open(7));
    let b = add(&mut f, |d| d.path = Path::Open(7));
    let elsewhere = add(&mut f, |d| d.path = Path::Open(8));
    f.core.bind(a, VM).unwrap();
    assert_eq!(
        refused(f.core.bind(b, OTHER_VM)),
        Error::PathNotIsolated { peer: a.any() }
    );
    assert!(f.core.bind(elsewhere, OTHER_VM).is_ok());
    assert!(f.core.bind(b, VM).is_ok());
}

#[test]
fn redirected_peers_may_go_to_different_owners() {
    let mut f = Fixture::new();
    let a = add(&mut f, |_| ());
    let b = add(&mut f, |_| ());
    f.core.bind(a, VM).unwrap();
    assert!(f.core.bind(b, OTHER_VM).is_ok());
}

// (c)

#[test]
fn devices_that_share_an_alias_go_to_one_owner() {
    let mut f = Fixture::new();
    let a = add(&mut f, |d| d.aliases = &[500]);
    let b = add(&mut f, |d| d.aliases = &[500]);
    f.core.bind(a, VM).unwrap();
    let endpoint = Endpoint {
        unit: SMMU,
        source: 500,
    };
    assert_eq!(
        refused(f.core.bind(b, OTHER_VM)),
        Error::AliasAcrossOwners {
            endpoint,
            by: a.any()
        }
    );
}

#[test]
fn a_device_whose_alias_is_anothers_source_is_refused() {
    let mut f = Fixture::new();
    let a = add(&mut f, |d| d.sources = &[600]);
    let b = add(&mut f, |d| d.aliases = &[600]);
    f.core.bind(a, VM).unwrap();
    assert!(matches!(
        f.core.bind(b, OTHER_VM),
        Err(Error::AliasAcrossOwners { .. })
    ));
}

#[test]
fn an_alias_within_a_group_is_installed_once() {
    let mut f = Fixture::new();
    let group = f.group(SMMU);
    let mut devices = Vec::new();
    for source in [41, 42] {
        let device = f
            .core
            .add_device(&DeviceDescription {
                aliases: &[40],
                ..Fixture::describe(group, &[source])
            })
            .unwrap();
        f.core.bind(device, VM).unwrap();
        devices.push(device);
    }
    f.core.attach(devices[0], Target::Ioas(f.ioas)).unwrap();
    let bound: Vec<_> = f
        .core
        .backend()
        .history()
        .iter()
        .map(|h| h.0.source)
        .collect();
    assert_eq!(bound, [41, 40, 42]);
}

// (e)

#[test]
fn a_device_with_a_shared_doorbell_is_refused() {
    let mut f = Fixture::new();
    let device = add(&mut f, |d| d.msi = MsiRoute::Shared);
    assert_eq!(refused(f.core.bind(device, VM)), Error::MsiNotIsolated);
    assert_eq!(f.core.device(device).unwrap().owner(), None);
}

// (f)

#[test]
fn a_reserved_region_over_ram_is_refused() {
    let mut f = Fixture::new();
    f.map(AT, 0, 16 * PAGE).unwrap();
    let device = f.device_with_region(of(AT + 4 * PAGE, PAGE), crate::RegionKind::Direct);
    assert!(matches!(
        f.core.attach(device, Target::Ioas(f.ioas)),
        Err(Error::ReservedCutsArea { .. })
    ));
}

// (h)

#[test]
fn a_device_that_nothing_makes_coherent_is_refused() {
    let mut f = Fixture::new();
    let device = add(&mut f, |d| d.coherence = Coherence::Incoherent);
    assert_eq!(refused(f.core.bind(device, VM)), Error::NotCoherent);
    let mock = f.core.backend_mut();
    mock.change(SMMU, |caps| caps.forces_coherence = true);
    assert!(f.core.bind(device, VM).is_ok());
}

// (i)

#[test]
fn a_source_beyond_the_units_reach_is_refused() {
    let mut f = Fixture::new();
    let group = f.group(SMMU);
    let endpoint = Endpoint {
        unit: SMMU,
        source: 1 << 16,
    };
    assert_eq!(
        refused(f.core.add_device(&Fixture::describe(group, &[1 << 16]))),
        Error::SourceOutOfRange { endpoint }
    );
    let mut alias = Fixture::describe(group, &[5]);
    alias.aliases = &[1 << 16];
    assert_eq!(
        refused(f.core.add_device(&alias)),
        Error::SourceOutOfRange { endpoint }
    );
    assert!(
        f.core
            .add_device(&Fixture::describe(group, &[0xffff]))
            .is_ok()
    );
}

#[test]
fn a_source_is_one_devices() {
    let mut f = Fixture::new();
    let group = f.group(SMMU);
    let first = f.core.add_device(&Fixture::describe(group, &[9])).unwrap();
    assert_eq!(
        refused(f.core.add_device(&Fixture::describe(group, &[8, 9]))),
        Error::SourceInUse {
            endpoint: Endpoint {
                unit: SMMU,
                source: 9
            },
            by: first.any()
        }
    );
    // Units number their masters independently.
    let other = f.group(OTHER_SMMU);
    assert!(f.core.add_device(&Fixture::describe(other, &[9])).is_ok());
}

#[test]
fn a_source_that_is_bound_in_another_group_is_refused_even_to_its_owner() {
    let mut f = Fixture::new();
    let a = add(&mut f, |d| d.aliases = &[500]);
    let b = add(&mut f, |d| d.aliases = &[500]);
    f.core.bind(a, VM).unwrap();
    assert!(matches!(f.core.bind(b, VM), Err(Error::SourceInUse { .. })));
    f.core.unbind(a).unwrap();
    assert!(f.core.bind(b, VM).is_ok());
}

#[test]
fn objects_of_two_owners_are_not_joined() {
    let mut f = Fixture::new();
    let theirs = f.core.add_ram(OTHER_VM, &[extent(1 << 32, PAGE)]).unwrap();
    let request = Map {
        memory: theirs,
        ..f.request(Placement::Auto, 0, PAGE)
    };
    assert_eq!(
        refused(f.core.map(f.ioas, &request)),
        Error::OtherOwner {
            object: theirs.any(),
            owner: OTHER_VM
        }
    );
    f.core.grant(theirs, VM, Permissions::ReadWrite).unwrap();
    assert!(f.core.map(f.ioas, &request).is_ok());
}

#[test]
fn a_grant_can_be_narrowed_for_what_comes_after() {
    let mut f = Fixture::new();
    let theirs = f.core.add_ram(OTHER_VM, &[extent(1 << 32, PAGE)]).unwrap();
    f.core.grant(theirs, VM, Permissions::ReadWrite).unwrap();
    f.core.grant(theirs, VM, Permissions::Read).unwrap();
    let request = Map {
        memory: theirs,
        ..f.request(Placement::Auto, 0, PAGE)
    };
    assert_eq!(
        refused(f.core.map(f.ioas, &request)),
        Error::PermissionDenied
    );
}

#[test]
fn memory_without_bytes_is_refused() {
    let mut f = Fixture::new();
    assert_eq!(refused(f.core.add_ram(VM, &[])), Error::Empty);
    assert_eq!(refused(f.core.add_ram(VM, &[extent(0, 0)])), Error::Empty);
    assert_eq!(
        refused(f.core.add_ram(VM, &[extent(Pa::MAX, 2)])),
        Error::Overflow
    );
    assert_eq!(f.core.ioas(f.ioas).map(|i| i.is_empty()), Ok(true));
    assert_eq!(
        f.core.set_peer_to_peer(f.ioas, PeerToPeer::Disabled),
        Ok(())
    );
}
