//! Huge pages on and off.

use super::*;
use crate::HugePages;
use crate::mock::{HUGE_PAGE, Leaves, SMALL_PAGE};

#[test]
fn an_aligned_mapping_uses_huge_leaves() {
    let mut f = Fixture::with_leaves(Leaves::SmallAndHuge);
    let device = f.attached(SMMU);
    f.map(AT, 0, 2 * HUGE_PAGE + SMALL_PAGE).unwrap();
    let sizes: Vec<_> = f.walk(device).iter().map(|(_, l)| l.bytes).collect();
    assert_eq!(sizes, [HUGE_PAGE, HUGE_PAGE, SMALL_PAGE]);
}

#[test]
fn without_huge_pages_every_leaf_is_small() {
    let mut f = Fixture::with_leaves(Leaves::SmallAndHuge);
    let device = f.attached(SMMU);
    f.core.set_huge_pages(f.ioas, HugePages::Off).unwrap();
    f.map(AT, 0, HUGE_PAGE).unwrap();
    assert_eq!(f.walk(device).len() as u64, HUGE_PAGE / SMALL_PAGE);
    assert_eq!(f.core.alignment(f.ioas), Ok(PAGE));
    assert!(matches!(
        f.map(AT + HUGE_PAGE, 0, SMALL_PAGE),
        Err(Error::Misaligned { .. })
    ));
}

#[test]
fn huge_pages_cannot_go_while_a_domain_shows_them() {
    let mut f = Fixture::with_leaves(Leaves::SmallAndHuge);
    let device = f.attached(SMMU);
    f.map(AT, 0, HUGE_PAGE).unwrap();
    let refusal = f.core.set_huge_pages(f.ioas, HugePages::Off);
    assert_eq!(refused(refusal), Error::HugePagesInUse);
    assert_eq!(f.core.ioas(f.ioas).unwrap().huge_pages(), HugePages::On);
    f.core.detach(device).unwrap();
    assert!(f.core.set_huge_pages(f.ioas, HugePages::Off).is_ok());
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    assert_eq!(f.walk(device).len() as u64, HUGE_PAGE / SMALL_PAGE);
}

#[test]
fn huge_pages_can_go_under_a_domain_that_shows_nothing() {
    let mut f = Fixture::with_leaves(Leaves::SmallAndHuge);
    f.attached(SMMU);
    assert!(f.core.set_huge_pages(f.ioas, HugePages::Off).is_ok());
}

#[test]
fn huge_pages_cannot_go_over_mappings_that_are_no_pages() {
    let mut f = Fixture::new();
    f.map(AT, 0, SMALL_PAGE).unwrap();
    assert_eq!(
        refused(f.core.set_huge_pages(f.ioas, HugePages::Off)),
        Error::Misaligned {
            value: AT,
            alignment: PAGE
        }
    );
    // Nothing half done: the old alignment still holds.
    assert_eq!(f.core.alignment(f.ioas), Ok(1));
    assert!(f.map(AT + SMALL_PAGE, 0, SMALL_PAGE).is_ok());
}

#[test]
fn huge_pages_can_come_back_at_any_time() {
    let mut f = Fixture::with_leaves(Leaves::SmallAndHuge);
    let device = f.attached(SMMU);
    f.core.set_huge_pages(f.ioas, HugePages::Off).unwrap();
    f.map(AT, 0, HUGE_PAGE).unwrap();
    f.core.set_huge_pages(f.ioas, HugePages::On).unwrap();
    f.map(AT + HUGE_PAGE, 0, HUGE_PAGE).unwrap();
    let count = f.walk(device).len() as u64;
    assert_eq!(count, HUGE_PAGE / SMALL_PAGE + 1);
    assert_eq!(f.core.unmap(f.ioas, everything()), Ok(2 * HUGE_PAGE));
    assert_eq!(f.walk(device), []);
}

#[test]
fn neighbouring_areas_never_share_a_huge_leaf() {
    let mut f = Fixture::with_leaves(Leaves::SmallAndHuge);
    let device = f.attached(SMMU);
    let half = HUGE_PAGE / 2;
    f.map(AT, 0, half).unwrap();
    f.map(AT + half, half, half).unwrap();
    // The mock would stop a split; and the other half stays.
    f.unmap(AT, half).unwrap();
    f.assert_shows(device, AT + half, half, half);
}

#[test]
fn a_window_with_one_large_page_keeps_it_without_huge_pages() {
    let mut f = Fixture::new();
    let windows = [crate::Window {
        span: of(0, 1 << 30),
        pages: crate::PageSizes::new(&[types::PageSize::SIZE_64K]),
    }];
    f.core.backend_mut().set_windows(TCE, &windows);
    let device = f.attached(TCE);
    f.core.set_huge_pages(f.ioas, HugePages::Off).unwrap();
    f.map(0, 0, 128 << 10).unwrap();
    assert_eq!(f.walk(device).len(), 2);
}
