//! Copying between address spaces.

use super::*;
use crate::mock::SMALL_PAGE;

fn two_spaces() -> (Fixture, IoasId) {
    let mut f = Fixture::new();
    let to = f.core.create_ioas(VM).unwrap();
    (f, to)
}

#[test]
fn a_copy_shows_the_same_memory() {
    let (mut f, to) = two_spaces();
    f.map(AT, 3 * PAGE, 2 * PAGE).unwrap();
    f.copy_to(to, of(AT, 2 * PAGE), AT + 8 * PAGE).unwrap();
    let there = f.core.translate(to, iova(AT + 9 * PAGE)).unwrap();
    assert_eq!(there.pa.bits(), RAM + 4 * PAGE);
}

#[test]
fn copy_and_source_are_unmapped_on_their_own() {
    let (mut f, to) = two_spaces();
    f.map(AT, 0, PAGE).unwrap();
    f.copy_to(to, of(AT, PAGE), AT).unwrap();
    f.unmap(AT, PAGE).unwrap();
    assert!(f.core.translate(to, iova(AT)).is_ok());
    assert!(matches!(
        f.core.destroy_memory(f.ram),
        Err(Error::Busy { users: 1, .. })
    ));
    f.core.unmap(to, of(AT, PAGE)).unwrap();
    assert!(f.core.destroy_memory(f.ram).is_ok());
}

#[test]
fn part_of_an_area_can_be_copied() {
    let (mut f, to) = two_spaces();
    f.map(AT, 0, 8 * PAGE).unwrap();
    f.copy_to(to, of(AT + 2 * PAGE, 3 * PAGE), AT).unwrap();
    let there = f.core.translate(to, iova(AT)).unwrap();
    assert_eq!((there.pa.bits(), there.bytes), (RAM + 2 * PAGE, 3 * PAGE));
}

#[test]
fn a_copy_may_span_areas_but_no_hole() {
    let (mut f, to) = two_spaces();
    f.map(AT, 0, 2 * PAGE).unwrap();
    f.map(AT + 2 * PAGE, 32 * PAGE, 2 * PAGE).unwrap();
    f.map(AT + 5 * PAGE, 0, PAGE).unwrap();
    f.copy_to(to, of(AT + PAGE, 2 * PAGE), AT).unwrap();
    let second = f.core.translate(to, iova(AT + PAGE)).unwrap();
    assert_eq!(second.pa.bits(), RAM + 32 * PAGE);
    assert_eq!(
        refused(f.copy_to(to, of(AT + 3 * PAGE, 3 * PAGE), AT + 16 * PAGE)),
        Error::NotMapped {
            at: iova(AT + 4 * PAGE)
        }
    );
    assert_eq!(
        refused(f.copy_to(to, of(AT + 5 * PAGE, 2 * PAGE), AT + 16 * PAGE)),
        Error::NotMapped {
            at: iova(AT + 6 * PAGE)
        }
    );
    assert_eq!(f.core.ioas(to).unwrap().len(), 2);
}

#[test]
fn a_copy_of_nothing_is_refused() {
    let (mut f, to) = two_spaces();
    assert_eq!(
        refused(f.copy_to(to, of(AT, PAGE), AT)),
        Error::NotMapped { at: iova(AT) }
    );
}

#[test]
fn a_copy_onto_a_mapping_is_refused_whole() {
    let (mut f, to) = two_spaces();
    f.map(AT, 0, PAGE).unwrap();
    f.map(AT + PAGE, PAGE, PAGE).unwrap();
    f.copy_to(to, of(AT, PAGE), AT + 9 * PAGE).unwrap();
    assert!(matches!(
        f.copy_to(to, of(AT, 2 * PAGE), AT + 8 * PAGE),
        Err(Error::Overlaps { .. })
    ));
    assert_eq!(f.core.ioas(to).unwrap().len(), 1);
}

#[test]
fn a_copy_allows_no_more_than_its_source() {
    let (mut f, to) = two_spaces();
    let mut request = f.request(Placement::Fixed(iova(AT)), 0, PAGE);
    request.permissions = Permissions::Read;
    f.core.map(f.ioas, &request).unwrap();
    assert_eq!(
        refused(f.copy_to(to, of(AT, PAGE), AT)),
        Error::PermissionDenied
    );
    let copy = Copy {
        from: f.ioas,
        span: of(AT, PAGE),
        to,
        placement: Placement::Auto,
        permissions: Permissions::Read,
    };
    let span = f.core.copy(&copy).unwrap();
    let there = f.core.translate(to, span.start()).unwrap();
    assert_eq!(there.permissions, Permissions::Read);
}

#[test]
fn a_copy_within_one_space_is_a_second_mapping() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    f.map(AT, 0, 2 * PAGE).unwrap();
    f.copy_to(f.ioas, of(AT, 2 * PAGE), AT + 4 * PAGE).unwrap();
    f.assert_shows(device, AT, 0, 2 * PAGE);
    f.assert_shows(device, AT + 4 * PAGE, 0, 2 * PAGE);
}

#[test]
fn copies_of_every_alignment_show_the_right_pages() {
    let (mut f, to) = two_spaces();
    let device = f.device(SMMU);
    f.core.attach(device, Target::Ioas(to)).unwrap();
    let page = SMALL_PAGE;
    f.map(AT, 0, 8 * page).unwrap();
    for start in 0..8 {
        for end in start + 1..=8 {
            let span = of(AT + start * page, (end - start) * page);
            f.copy_to(to, span, AT + 64 * page).unwrap();
            f.assert_shows(device, AT + 64 * page, start * page, (end - start) * page);
            f.core.unmap(to, everything()).unwrap();
            assert_eq!(f.walk(device), []);
        }
    }
}

#[test]
fn copies_swept_over_a_target_with_a_hole_fit_only_the_hole() {
    let (mut f, to) = two_spaces();
    f.map(AT, 0, 8 * PAGE).unwrap();
    f.copy_to(to, of(AT, 4 * PAGE), AT).unwrap();
    f.copy_to(to, of(AT, 4 * PAGE), AT + 8 * PAGE).unwrap();
    for at in 1..=11 {
        let result = f.copy_to(to, of(AT, 4 * PAGE), AT + at * PAGE);
        assert_eq!(result.is_ok(), at == 4, "{at}");
    }
}

#[test]
fn a_misaligned_copy_for_a_device_is_refused() {
    let (mut f, to) = two_spaces();
    f.map(AT, 0, PAGE).unwrap();
    let device = f.device(SMMU);
    f.core.attach(device, Target::Ioas(to)).unwrap();
    assert!(matches!(
        f.copy_to(to, of(AT, SMALL_PAGE / 2), AT),
        Err(Error::Misaligned { .. })
    ));
    assert!(f.copy_to(to, of(AT, SMALL_PAGE), AT).is_ok());
}

#[test]
fn a_copy_to_another_owner_needs_a_grant() {
    let mut f = Fixture::new();
    let to = f.core.create_ioas(OTHER_VM).unwrap();
    f.map(AT, 0, PAGE).unwrap();
    assert_eq!(
        refused(f.copy_to(to, of(AT, PAGE), AT)),
        Error::OtherOwner {
            object: f.ram.any(),
            owner: VM
        }
    );
    f.core.grant(f.ram, OTHER_VM, Permissions::Read).unwrap();
    assert_eq!(
        refused(f.copy_to(to, of(AT, PAGE), AT)),
        Error::PermissionDenied
    );
    f.core
        .grant(f.ram, OTHER_VM, Permissions::ReadWrite)
        .unwrap();
    assert!(f.copy_to(to, of(AT, PAGE), AT).is_ok());
}
