//! Automatic placement.

use super::*;
use crate::mock::APERTURE_LAST;
use crate::{HugePages, RegionKind};

#[test]
fn placement_never_chooses_the_first_page() {
    let mut f = Fixture::new();
    assert_eq!(f.map_auto(0, PAGE), Ok(PAGE));
    assert_eq!(f.map_auto(PAGE, PAGE), Ok(2 * PAGE));
}

#[test]
fn placement_never_chooses_the_last_page() {
    let mut f = Fixture::new();
    f.core
        .allow(f.ioas, &[upto(u64::MAX - 2 * PAGE + 1, u64::MAX)])
        .unwrap();
    assert_eq!(f.map_auto(0, PAGE), Ok(u64::MAX - 2 * PAGE + 1));
    assert_eq!(refused(f.map_auto(0, PAGE)), Error::NoSpace { bytes: PAGE });
}

/// Where the first mapping of `bytes` bytes goes, when memory is aligned enough.
fn aligned(bytes: u64) -> u64 {
    let mut f = Fixture::new();
    let at = f.map_auto(0, bytes).unwrap();
    assert_ne!(at, 0);
    1 << at.trailing_zeros()
}

#[test]
fn one_page_is_aligned_to_a_page() {
    assert_eq!(aligned(PAGE), PAGE);
}

#[test]
fn three_pages_are_aligned_to_four() {
    assert_eq!(aligned(3 * PAGE), 4 * PAGE);
}

#[test]
fn two_mebibytes_are_aligned_to_two_mebibytes() {
    assert_eq!(aligned(2 << 20), 2 << 20);
}

#[test]
fn five_mebibytes_are_aligned_to_eight() {
    assert_eq!(aligned(5 << 20), 8 << 20);
}

#[test]
fn alignment_is_no_better_than_that_of_the_memory() {
    let mut f = Fixture::new();
    assert_eq!(f.map_auto(PAGE, 2 << 20), Ok(PAGE));
    let at = f.map_auto(64 << 10, 2 << 20).unwrap();
    assert_eq!(at % (64 << 10), 0);
    assert_ne!(at % (2 << 20), 0);
}

#[test]
fn alignment_is_no_better_than_a_page_that_exists() {
    let mut f = Fixture::with_leaves(crate::mock::Leaves::SmallAndHuge);
    f.attached(SMMU);
    f.map(AT, 0, PAGE).unwrap();
    // 1 MiB is the largest page, so 8 MiB need no more.
    assert_eq!(f.map_auto(0, 8 << 20), Ok(AT + (1 << 20)));
}

#[test]
fn without_huge_pages_a_page_is_alignment_enough() {
    let mut f = Fixture::new();
    f.core.set_huge_pages(f.ioas, HugePages::Off).unwrap();
    assert_eq!(f.map_auto(0, 2 << 20), Ok(PAGE));
}

#[test]
fn placement_avoids_mappings_and_fills_holes() {
    let mut f = Fixture::new();
    f.core.allow(f.ioas, &[of(AT, 8 * PAGE)]).unwrap();
    for i in [0, 2, 3, 6] {
        f.map(AT + i * PAGE, 0, PAGE).unwrap();
    }
    assert_eq!(f.map_auto(0, 2 * PAGE), Ok(AT + 4 * PAGE));
    assert_eq!(f.map_auto(0, PAGE), Ok(AT + PAGE));
    assert_eq!(f.map_auto(0, PAGE), Ok(AT + 7 * PAGE));
    assert_eq!(refused(f.map_auto(0, PAGE)), Error::NoSpace { bytes: PAGE });
}

#[test]
fn placement_avoids_reserved_addresses() {
    let mut f = Fixture::new();
    let device = f.device_with_region(of(AT, 3 * PAGE), RegionKind::Reserved);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    assert_eq!(f.map_auto(0, PAGE), Ok(AT + 3 * PAGE));
    assert_eq!(f.map_auto(0, 4 * PAGE), Ok(AT + 4 * PAGE));
}

#[test]
fn placement_keeps_to_the_windows() {
    let mut f = Fixture::new();
    f.attached(SMMU);
    assert_eq!(f.map_auto(0, PAGE), Ok(AT));
    let rest = APERTURE_LAST + 1 - AT;
    f.ram = f.core.add_ram(VM, &[extent(RAM << 1, rest)]).unwrap();
    assert_eq!(refused(f.map_auto(0, rest)), Error::NoSpace { bytes: rest });
    f.unmap(AT, PAGE).unwrap();
    assert_eq!(f.map_auto(0, rest), Ok(AT));
}

#[test]
fn placement_chooses_the_window_whose_pages_suit() {
    let mut f = Fixture::new();
    let pages = |size| crate::PageSizes::new(&[size]);
    let windows = [
        crate::Window {
            span: of(0, 1 << 20),
            pages: pages(types::PageSize::SIZE_64K),
        },
        crate::Window {
            span: of(1 << 59, 1 << 20),
            pages: pages(types::PageSize::SIZE_4K),
        },
    ];
    f.core.backend_mut().set_windows(TCE, &windows);
    f.attached(TCE);
    assert_eq!(f.map_auto(0, PAGE), Ok(1 << 59));
    assert_eq!(f.map_auto(0, 64 << 10), Ok(64 << 10));
    assert_eq!(f.core.alignment(f.ioas), Ok(64 << 10));
}

#[test]
fn a_length_no_page_divides_is_misaligned() {
    let mut f = Fixture::new();
    f.attached(SMMU);
    let refusal = |value| Error::Misaligned {
        value,
        alignment: 2048,
    };
    assert_eq!(refused(f.map_auto(0, PAGE + 1)), refusal(PAGE + 1));
    assert_eq!(refused(f.map_auto(1, PAGE)), refusal(1));
}

#[test]
fn without_a_domain_any_length_can_be_placed() {
    let mut f = Fixture::new();
    let at = f.map_auto(7, 13).unwrap();
    assert_eq!(
        f.core.translate(f.ioas, iova(at)).unwrap().pa.bits(),
        RAM + 7
    );
}

#[test]
fn a_hole_is_found_among_ten_thousand_areas() {
    let mut f = Fixture::new();
    f.core.allow(f.ioas, &[of(AT, 10_000 * PAGE)]).unwrap();
    for i in 0..10_000 {
        f.map(AT + i * PAGE, 0, PAGE).unwrap();
    }
    assert!(f.map_auto(0, PAGE).is_err());
    f.unmap(AT + 7_777 * PAGE, PAGE).unwrap();
    assert_eq!(f.map_auto(0, PAGE), Ok(AT + 7_777 * PAGE));
}
