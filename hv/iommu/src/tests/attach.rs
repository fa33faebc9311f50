//! Attach, replace, detach.

use super::*;
use crate::{BackendError, Binding, DomainOptions, Region, RegionKind};

#[test]
fn a_device_reaches_nothing_before_it_is_attached() {
    let mut f = Fixture::new();
    f.map(AT, 0, PAGE).unwrap();
    let device = f.device(SMMU);
    assert_eq!(f.dma(device, AT, Dma::Read), Err(DmaFault::Aborted));
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    assert_eq!(f.reads(device, AT), Some(RAM));
}

#[test]
fn a_detached_device_reaches_nothing() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    f.map(AT, 0, PAGE).unwrap();
    f.core.detach(device).unwrap();
    assert_eq!(f.dma(device, AT, Dma::Read), Err(DmaFault::Aborted));
    assert_eq!((f.census().domains, f.core.backend().tables()), (0, 0));
}

#[test]
fn what_was_mapped_before_the_attachment_is_shown_exactly() {
    let mut f = Fixture::new();
    f.map(AT, 5 * PAGE, 3 * PAGE).unwrap();
    f.map(AT + 7 * PAGE, 0, PAGE).unwrap();
    let device = f.attached(SMMU);
    f.assert_shows(device, AT, 5 * PAGE, 3 * PAGE);
    f.assert_shows(device, AT + 7 * PAGE, 0, PAGE);
    assert_eq!(f.walk(device).len(), 8);
}

#[test]
fn devices_of_one_unit_share_the_domain_of_their_space() {
    let mut f = Fixture::new();
    let a = f.device(SMMU);
    let b = f.device(SMMU);
    let domain = f.core.attach(a, Target::Ioas(f.ioas)).unwrap();
    assert_eq!(f.core.attach(b, Target::Ioas(f.ioas)), Ok(domain));
    assert_eq!(f.core.backend().tables(), 1);
    f.core.detach(a).unwrap();
    assert_eq!(f.core.backend().tables(), 1);
    f.core.detach(b).unwrap();
    assert_eq!(f.core.backend().tables(), 0);
}

#[test]
fn devices_of_two_units_have_a_domain_each() {
    let mut f = Fixture::new();
    f.attached(SMMU);
    f.attached(OTHER_SMMU);
    assert_eq!(f.core.backend().tables(), 2);
}

#[test]
fn a_requested_domain_is_not_shared_unasked() {
    let mut f = Fixture::new();
    let a = f.device(SMMU);
    let own = f
        .core
        .create_domain(a, f.ioas, DomainOptions::default())
        .unwrap();
    let auto = f.core.attach(a, Target::Ioas(f.ioas)).unwrap();
    assert_ne!(own, auto);
    f.core.detach(a).unwrap();
    // It outlives its users, the other one does not.
    assert!(f.core.domain(auto).is_err());
    assert!(f.core.domain(own).is_ok());
    f.core.attach(a, Target::Domain(own)).unwrap();
    assert_eq!(
        refused(f.core.destroy_domain(own)),
        Error::Busy {
            object: own.any(),
            users: 1
        }
    );
    f.core.detach(a).unwrap();
    assert!(f.core.destroy_domain(own).is_ok());
}

#[test]
fn a_device_is_attached_once() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    let again = f.core.attach(device, Target::Ioas(f.ioas));
    assert_eq!(refused(again), Error::AlreadyAttached);
}

#[test]
fn an_unbound_device_is_not_attached() {
    let mut f = Fixture::new();
    let device = f.device(SMMU);
    f.core.unbind(device).unwrap();
    let attach = f.core.attach(device, Target::Ioas(f.ioas));
    assert_eq!(refused(attach), Error::NotBound);
}

#[test]
fn detach_and_replace_need_an_attached_device() {
    let mut f = Fixture::new();
    let device = f.device(SMMU);
    assert_eq!(refused(f.core.detach(device)), Error::NotAttached);
    let replace = f.core.replace(device, Target::Ioas(f.ioas));
    assert_eq!(refused(replace), Error::NotAttached);
}

#[test]
fn a_domain_of_another_unit_is_refused() {
    let mut f = Fixture::new();
    let a = f.device(SMMU);
    let b = f.device(OTHER_SMMU);
    let domain = f
        .core
        .create_domain(a, f.ioas, DomainOptions::default())
        .unwrap();
    let attach = f.core.attach(b, Target::Domain(domain));
    assert_eq!(refused(attach), Error::OtherUnit(SMMU));
}

#[test]
fn a_domain_of_another_owner_is_refused() {
    let mut f = Fixture::new();
    let a = f.device(SMMU);
    let domain = f
        .core
        .create_domain(a, f.ioas, DomainOptions::default())
        .unwrap();
    let group = f.group(SMMU);
    let source = f.source();
    let theirs = f
        .core
        .add_device(&Fixture::describe(group, &[source]))
        .unwrap();
    f.core.bind(theirs, OTHER_VM).unwrap();
    for target in [Target::Domain(domain), Target::Ioas(f.ioas)] {
        assert!(matches!(
            f.core.attach(theirs, target),
            Err(Error::OtherOwner { owner: VM, .. })
        ));
    }
    assert!(matches!(
        f.core
            .create_domain(theirs, f.ioas, DomainOptions::default()),
        Err(Error::OtherOwner { owner: VM, .. })
    ));
}

// Groups.

#[test]
fn the_first_device_of_a_group_brings_all_its_sources() {
    let mut f = Fixture::new();
    let group = f.group(SMMU);
    let a = f.device_in(group);
    let b = f.device_in(group);
    f.map(AT, 0, PAGE).unwrap();
    f.core.attach(a, Target::Ioas(f.ioas)).unwrap();
    assert_eq!(f.reads(b, AT), Some(RAM));
    let installs = f.core.backend().counts.installs;
    f.core.attach(b, Target::Ioas(f.ioas)).unwrap();
    assert_eq!(f.core.backend().counts.installs, installs);
    f.core.detach(a).unwrap();
    assert_eq!(f.reads(a, AT), Some(RAM));
    f.core.detach(b).unwrap();
    assert_eq!((f.reads(a, AT), f.reads(b, AT)), (None, None));
}

#[test]
fn a_group_has_one_domain() {
    let mut f = Fixture::new();
    let group = f.group(SMMU);
    let (a, b) = (f.device_in(group), f.device_in(group));
    let domain = f.core.attach(a, Target::Ioas(f.ioas)).unwrap();
    let other = f.core.create_ioas(VM).unwrap();
    assert_eq!(
        refused(f.core.attach(b, Target::Ioas(other))),
        Error::GroupElsewhere(domain.any())
    );
    let made = f
        .core
        .create_domain(a, other, DomainOptions::default())
        .unwrap();
    assert_eq!(
        refused(f.core.attach(b, Target::Domain(made))),
        Error::GroupElsewhere(domain.any())
    );
}

#[test]
fn a_second_members_regions_are_reserved_too() {
    let mut f = Fixture::new();
    let group = f.group(SMMU);
    let a = f.device_in(group);
    let source = f.source();
    let region = Region {
        span: of(AT, PAGE),
        kind: RegionKind::Reserved,
    };
    let b = f
        .core
        .add_device(&DeviceDescription {
            reserved: &[region],
            ..Fixture::describe(group, &[source])
        })
        .unwrap();
    f.core.bind(b, VM).unwrap();
    f.core.attach(a, Target::Ioas(f.ioas)).unwrap();
    f.map(AT, 0, PAGE).unwrap();
    assert!(matches!(
        f.core.attach(b, Target::Ioas(f.ioas)),
        Err(Error::ReservedCutsArea { .. })
    ));
    assert!(!f.core.device(b).unwrap().is_attached());
    f.unmap(AT, PAGE).unwrap();
    f.core.attach(b, Target::Ioas(f.ioas)).unwrap();
    assert!(f.map(AT, 0, PAGE).is_err());
}

#[test]
fn a_group_moves_as_one() {
    let mut f = Fixture::new();
    let group = f.group(SMMU);
    let (a, b) = (f.device_in(group), f.device_in(group));
    f.core.attach(a, Target::Ioas(f.ioas)).unwrap();
    f.core.attach(b, Target::Ioas(f.ioas)).unwrap();
    let other = f.core.create_ioas(VM).unwrap();
    f.map(AT, 0, PAGE).unwrap();
    f.core.replace(a, Target::Ioas(other)).unwrap();
    assert_eq!((f.reads(a, AT), f.reads(b, AT)), (None, None));
    // The old domain had no other user.
    assert_eq!(f.core.backend().tables(), 1);
}

// Replace.

fn space_showing(f: &mut Fixture, offset: u64) -> IoasId {
    let ioas = f.core.create_ioas(VM).unwrap();
    let request = f.request(Placement::Fixed(iova(AT)), offset, PAGE);
    f.core.map(ioas, &request).unwrap();
    ioas
}

#[test]
fn replace_there_and_back_shows_each_space_in_turn() {
    let mut f = Fixture::new();
    let b = space_showing(&mut f, 9 * PAGE);
    let device = f.attached(SMMU);
    f.map(AT, 0, PAGE).unwrap();
    for _ in 0..3 {
        assert_eq!(f.reads(device, AT), Some(RAM));
        f.core.replace(device, Target::Ioas(b)).unwrap();
        assert_eq!(f.reads(device, AT), Some(RAM + 9 * PAGE));
        f.core.replace(device, Target::Ioas(f.ioas)).unwrap();
    }
    assert_eq!(f.core.backend().tables(), 1);
}

#[test]
fn replace_is_one_step_of_the_backend() {
    let mut f = Fixture::new();
    let b = space_showing(&mut f, 9 * PAGE);
    let device = f.attached(SMMU);
    let before = f.core.backend().history().len();
    f.core.replace(device, Target::Ioas(b)).unwrap();
    let steps = &f.core.backend().history()[before..];
    assert_eq!(steps.len(), 1);
    assert!(matches!(steps[0].1, Binding::Table(_)));
}

#[test]
fn replacing_a_domain_with_itself_does_nothing() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    let domain = f
        .core
        .group(f.core.device(device).unwrap().group())
        .unwrap()
        .domain()
        .unwrap();
    let installs = f.core.backend().counts.installs;
    assert_eq!(f.core.replace(device, Target::Domain(domain)), Ok(domain));
    assert_eq!(f.core.replace(device, Target::Ioas(f.ioas)), Ok(domain));
    assert_eq!(f.core.backend().counts.installs, installs);
}

#[test]
fn a_refused_replacement_leaves_the_old_space_live() {
    let mut f = Fixture::new();
    let region = of(AT, PAGE);
    let device = f.device_with_region(region, RegionKind::Reserved);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    f.map(AT + PAGE, PAGE, PAGE).unwrap();
    let b = space_showing(&mut f, 0);
    let before = f.census();
    assert!(matches!(
        f.core.replace(device, Target::Ioas(b)),
        Err(Error::ReservedCutsArea { .. })
    ));
    assert_eq!(f.reads(device, AT + PAGE), Some(RAM + PAGE));
    assert_eq!(f.census(), before);
    assert!(f.map(AT, 0, PAGE).is_err());
}

#[test]
fn reserved_regions_move_with_the_device() {
    let mut f = Fixture::new();
    let device = f.device_with_region(of(AT, PAGE), RegionKind::Reserved);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    let b = f.core.create_ioas(VM).unwrap();
    f.core.replace(device, Target::Ioas(b)).unwrap();
    assert!(f.map(AT, 0, PAGE).is_ok());
    let request = f.request(Placement::Fixed(iova(AT)), 0, PAGE);
    assert!(matches!(
        f.core.map(b, &request),
        Err(Error::Reserved { .. })
    ));
}

#[test]
fn a_failed_installation_moves_the_whole_group_back() {
    let mut f = Fixture::new();
    let group = f.group(SMMU);
    let (a, b) = (f.device_in(group), f.device_in(group));
    f.core.attach(a, Target::Ioas(f.ioas)).unwrap();
    f.map(AT, 0, PAGE).unwrap();
    let other = space_showing(&mut f, 9 * PAGE);
    let before = f.census();
    f.core.backend_mut().fail_install_after(Some(1));
    assert_eq!(
        refused(f.core.replace(a, Target::Ioas(other))),
        Error::Backend(BackendError::Timeout)
    );
    assert_eq!((f.reads(a, AT), f.reads(b, AT)), (Some(RAM), Some(RAM)));
    assert_eq!(f.census(), before);
}

#[test]
fn a_failed_first_installation_leaves_the_group_in_abort() {
    let mut f = Fixture::new();
    let group = f.group(SMMU);
    let (a, b) = (f.device_in(group), f.device_in(group));
    f.map(AT, 0, PAGE).unwrap();
    f.core.backend_mut().fail_install_after(Some(1));
    assert!(f.core.attach(a, Target::Ioas(f.ioas)).is_err());
    assert_eq!(f.dma(a, AT, Dma::Read), Err(DmaFault::Aborted));
    assert_eq!(f.dma(b, AT, Dma::Read), Err(DmaFault::Aborted));
    assert_eq!(f.census().domains, 0);
    assert!(f.core.attach(a, Target::Ioas(f.ioas)).is_ok());
}

#[test]
fn a_failed_detachment_leaves_the_device_attached() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    f.map(AT, 0, PAGE).unwrap();
    f.core.backend_mut().fail_install_after(Some(0));
    assert!(f.core.detach(device).is_err());
    assert_eq!(f.reads(device, AT), Some(RAM));
    assert!(f.core.detach(device).is_ok());
}

#[test]
fn a_domain_can_be_replaced_by_blocked_and_back() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    f.map(AT, 0, PAGE).unwrap();
    let blocked = f.core.create_blocked(device).unwrap();
    f.core.replace(device, Target::Domain(blocked)).unwrap();
    assert_eq!(f.dma(device, AT, Dma::Read), Err(DmaFault::Aborted));
    f.core.replace(device, Target::Ioas(f.ioas)).unwrap();
    assert_eq!(f.reads(device, AT), Some(RAM));
    assert!(f.core.destroy_domain(blocked).is_ok());
}

#[test]
fn identity_is_for_the_hypervisor_alone() {
    let mut f = Fixture::new();
    let device = f.device(SMMU);
    assert_eq!(
        refused(f.core.create_identity(device)),
        Error::IdentityForbidden
    );
    f.core.unbind(device).unwrap();
    assert_eq!(refused(f.core.create_identity(device)), Error::NotBound);
    f.core.bind(device, OwnerId::HYPERVISOR).unwrap();
    let identity = f.core.create_identity(device).unwrap();
    f.core.attach(device, Target::Domain(identity)).unwrap();
    assert_eq!(f.reads(device, 0x1234), Some(0x1234));
}

#[test]
fn two_groups_may_share_windows() {
    let mut f = Fixture::new();
    let a = f.device(TCE);
    let b = f.device(TCE);
    let domain = f.core.attach(a, Target::Ioas(f.ioas)).unwrap();
    f.core.attach(b, Target::Domain(domain)).unwrap();
    f.map(0, 0, PAGE).unwrap();
    assert_eq!(f.reads(a, 0), f.reads(b, 0));
    f.core.detach(a).unwrap();
    assert_eq!(f.reads(b, 0), Some(RAM));
}

#[test]
fn a_table_that_does_not_suit_an_endpoint_is_not_the_last_word() {
    let mut f = Fixture::new();
    let sharing = crate::mock::Sharing::Own;
    f.core.backend_mut().set_sharing(TCE, sharing);
    let (a, b) = (f.device(TCE), f.device(TCE));
    f.map(0, 0, PAGE).unwrap();
    let first = f.core.attach(a, Target::Ioas(f.ioas)).unwrap();
    // Asked for by name it is refused, asked for by address space another one is made.
    assert_eq!(
        refused(f.core.attach(b, Target::Domain(first))),
        Error::Backend(BackendError::Incompatible)
    );
    let second = f.core.attach(b, Target::Ioas(f.ioas)).unwrap();
    assert_ne!(first, second);
    assert_eq!((f.reads(a, 0), f.reads(b, 0)), (Some(RAM), Some(RAM)));
    crate::mock::check(&f.core);
}

#[test]
fn mapping_reaches_domains_of_every_kind_of_unit() {
    let mut f = Fixture::new();
    let a = f.attached(SMMU);
    let b = f.attached(TCE);
    f.map(AT, 0, PAGE).unwrap();
    assert_eq!((f.reads(a, AT), f.reads(b, AT)), (Some(RAM), Some(RAM)));
    // Each side's addresses are what both can translate.
    assert!(matches!(f.map(0, 0, PAGE), Err(Error::Reserved { .. })));
    assert_eq!(f.core.alignment(f.ioas), Ok(PAGE));
}
