//! Address spaces alone: mapping, unmapping, allowed and reserved ranges.

use super::*;
use crate::mock::{APERTURE_LAST, SMALL_PAGE};
use crate::{Region, RegionKind};

#[test]
fn a_fresh_space_is_all_free() {
    let f = Fixture::new();
    let mut out = [of(0, 1); 2];
    let ranges = f.core.ranges(f.ioas, &mut out).unwrap();
    assert_eq!((ranges.count, ranges.alignment), (1, 1));
    assert_eq!(out[0], everything());
}

#[test]
fn ranges_report_how_many_entries_they_need() {
    let mut f = Fixture::new();
    let device = f.device_with_region(of(AT + (1 << 20), PAGE), RegionKind::Reserved);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    let mut one = [of(0, 1); 1];
    assert_eq!(
        refused(f.core.ranges(f.ioas, &mut one)),
        Error::BufferTooSmall { needed: 2 }
    );
    assert_eq!(one[0], of(AT, 1 << 20));
    let mut two = [of(0, 1); 2];
    let ranges = f.core.ranges(f.ioas, &mut two).unwrap();
    assert_eq!((ranges.count, ranges.alignment), (2, SMALL_PAGE));
    assert_eq!(two[1], upto(AT + (1 << 20) + PAGE, APERTURE_LAST));
    assert_eq!(
        refused(f.core.ranges(f.ioas, &mut [])),
        Error::BufferTooSmall { needed: 2 }
    );
}

impl Fixture {
    pub(crate) fn device_with_region(&mut self, span: Span<Iova>, kind: RegionKind) -> DeviceId {
        let group = self.group(SMMU);
        let source = self.source();
        let device = self
            .core
            .add_device(&DeviceDescription {
                reserved: &[Region { span, kind }],
                ..Self::describe(group, &[source])
            })
            .unwrap();
        self.core.bind(device, VM).unwrap();
        device
    }
}

#[test]
fn an_empty_mapping_is_refused() {
    let mut f = Fixture::new();
    assert_eq!(refused(f.map(AT, 0, 0)), Error::Empty);
    assert_eq!(refused(f.map_auto(0, 0)), Error::Empty);
}

#[test]
fn a_mapping_past_the_end_of_the_space_overflows() {
    let mut f = Fixture::new();
    assert_eq!(
        refused(f.map(u64::MAX - PAGE + 2, 0, PAGE)),
        Error::Overflow
    );
    assert_eq!(refused(f.map(u64::MAX, 0, 1)), Error::Overflow);
    assert_eq!(refused(f.map(0, 0, u64::MAX)), Error::Overflow);
    assert_eq!(refused(f.map(PAGE, u64::MAX, PAGE)), Error::Overflow);
    assert!(f.map(u64::MAX - PAGE + 1, 0, PAGE).is_ok());
}

#[test]
fn a_mapping_beyond_the_memory_object_is_refused() {
    let mut f = Fixture::new();
    let refusal = Error::OutsideMemory { bytes: RAM_BYTES };
    assert_eq!(refused(f.map(AT, RAM_BYTES, PAGE)), refusal);
    assert_eq!(refused(f.map(AT, RAM_BYTES - PAGE, 2 * PAGE)), refusal);
    assert!(f.map(AT, RAM_BYTES - PAGE, PAGE).is_ok());
}

#[test]
fn overlapping_mappings_are_refused_from_every_side() {
    let mut f = Fixture::new();
    f.map(AT + PAGE, 0, 2 * PAGE).unwrap();
    let refusal = Error::Overlaps {
        existing: of(AT + PAGE, 2 * PAGE),
    };
    for (at, pages) in [(1, 2), (0, 2), (2, 2), (0, 4), (1, 1), (2, 1)] {
        let result = f.map(AT + at * PAGE, 0, pages * PAGE);
        assert_eq!(refused(result), refusal, "{at} {pages}");
    }
    assert!(f.map(AT, 0, PAGE).is_ok());
    assert!(f.map(AT + 3 * PAGE, 0, PAGE).is_ok());
}

#[test]
fn the_same_memory_can_be_mapped_twice() {
    let mut f = Fixture::new();
    f.map(AT, 0, PAGE).unwrap();
    f.map(AT + PAGE, 0, PAGE).unwrap();
    assert_eq!(f.census().areas, 2);
}

#[test]
fn unmapping_returns_the_bytes_it_removed() {
    let mut f = Fixture::new();
    f.map(AT, 0, 3 * PAGE).unwrap();
    f.map(AT + 8 * PAGE, 0, PAGE).unwrap();
    assert_eq!(f.unmap(AT, 16 * PAGE), Ok(4 * PAGE));
    assert_eq!(f.census().areas, 0);
}

#[test]
fn unmapping_nothing_is_refused() {
    let mut f = Fixture::new();
    assert_eq!(
        refused(f.unmap(AT, PAGE)),
        Error::NotMapped { at: iova(AT) }
    );
    f.map(AT, 0, PAGE).unwrap();
    f.unmap(AT, PAGE).unwrap();
    assert!(f.unmap(AT, PAGE).is_err());
}

#[test]
fn unmap_of_half_an_area_changes_nothing() {
    let mut f = Fixture::new();
    f.map(AT, 0, 2 * PAGE).unwrap();
    let refusal = Error::CutsArea {
        area: of(AT, 2 * PAGE),
    };
    assert_eq!(refused(f.unmap(AT, PAGE)), refusal);
    assert_eq!(refused(f.unmap(AT + PAGE, PAGE)), refusal);
    assert_eq!(refused(f.unmap(AT + PAGE, 4 * PAGE)), refusal);
    assert_eq!(f.census().areas, 1);
    assert_eq!(f.unmap(AT - PAGE, 4 * PAGE), Ok(2 * PAGE));
}

#[test]
fn an_unmap_that_cuts_its_last_area_keeps_the_earlier_ones() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    f.map(AT, 0, PAGE).unwrap();
    f.map(AT + 2 * PAGE, 2 * PAGE, 2 * PAGE).unwrap();
    assert_eq!(
        refused(f.unmap(AT, 3 * PAGE)),
        Error::CutsArea {
            area: of(AT + 2 * PAGE, 2 * PAGE)
        }
    );
    assert_eq!(f.reads(device, AT), Some(RAM));
}

/// Four areas of eight pages, sixteen pages apart, in the reach of a range.
fn unmap_fully_contained(first: u64, pages: u64) -> Result<u64, Error> {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    for i in 0..4 {
        f.map(AT + i * 16 * PAGE, 0, 8 * PAGE).unwrap();
    }
    let before = f.walk(device);
    let result = f.unmap(AT + first * PAGE, pages * PAGE);
    if result.is_err() {
        assert_eq!(f.walk(device), before);
    }
    result.map(|bytes| bytes / PAGE)
}

#[test]
fn a_range_inside_an_area_is_refused() {
    assert!(matches!(
        unmap_fully_contained(20, 2),
        Err(Error::CutsArea { .. })
    ));
}

#[test]
fn a_range_that_starts_inside_an_area_is_refused() {
    assert!(matches!(
        unmap_fully_contained(20, 40),
        Err(Error::CutsArea { .. })
    ));
}

#[test]
fn a_range_that_ends_inside_an_area_is_refused() {
    assert!(matches!(
        unmap_fully_contained(0, 20),
        Err(Error::CutsArea { .. })
    ));
}

#[test]
fn a_range_between_areas_is_refused() {
    assert!(matches!(
        unmap_fully_contained(9, 4),
        Err(Error::NotMapped { .. })
    ));
}

#[test]
fn a_range_around_the_middle_areas_removes_exactly_those() {
    assert_eq!(unmap_fully_contained(10, 36), Ok(16));
}

#[test]
fn a_range_around_all_areas_removes_all() {
    assert_eq!(unmap_fully_contained(0, 56), Ok(32));
}

#[test]
fn unmapping_everything_succeeds_on_an_empty_space() {
    let mut f = Fixture::new();
    assert_eq!(f.core.unmap(f.ioas, everything()), Ok(0));
    f.map(AT, 0, PAGE).unwrap();
    f.map(u64::MAX - PAGE + 1, 0, PAGE).unwrap();
    assert_eq!(f.core.unmap(f.ioas, everything()), Ok(2 * PAGE));
    assert_eq!(f.core.unmap(f.ioas, everything()), Ok(0));
}

#[test]
fn unmapping_reaches_every_domain() {
    let mut f = Fixture::new();
    let a = f.attached(SMMU);
    let b = f.attached(OTHER_SMMU);
    f.map(AT, 0, PAGE).unwrap();
    assert_eq!(f.reads(a, AT), Some(RAM));
    assert_eq!(f.reads(b, AT), Some(RAM));
    f.unmap(AT, PAGE).unwrap();
    assert_eq!(f.dma(a, AT, Dma::Read), Err(DmaFault::Translation));
    assert_eq!(f.dma(b, AT, Dma::Read), Err(DmaFault::Translation));
}

#[test]
fn cached_translations_are_gone_when_unmap_returns() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    f.map(AT, 0, PAGE).unwrap();
    // The negative control: without the invalidation the device would still get through.
    assert_eq!(f.reads(device, AT), Some(RAM));
    let table = f.core.backend().table_of(f.endpoint(device)).unwrap();
    let mut without = f.core.backend().clone();
    crate::Backend::unmap(&mut without, table, of(AT, PAGE));
    assert!(without.dma(f.endpoint(device), iova(AT), Dma::Read).is_ok());
    f.unmap(AT, PAGE).unwrap();
    assert_eq!(f.reads(device, AT), None);
}

#[test]
fn memory_stays_alive_until_an_invalidation_is_confirmed() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    f.map(AT, 0, PAGE).unwrap();
    f.core.backend_mut().fail_invalidations_after(Some(0));
    assert_eq!(
        refused(f.unmap(AT, PAGE)),
        Error::Backend(crate::BackendError::Timeout)
    );
    // Nobody is served, but the memory is not given back either.
    assert!(f.core.translate(f.ioas, iova(AT)).is_err());
    assert!(matches!(
        f.core.destroy_memory(f.ram),
        Err(Error::Busy { users: 1, .. })
    ));
    assert!(f.map(AT, 0, PAGE).is_err());
    f.core.backend_mut().fail_invalidations_after(None);
    assert_eq!(f.unmap(AT, PAGE), Ok(PAGE));
    assert_eq!(f.reads(device, AT), None);
    assert!(f.core.destroy_memory(f.ram).is_ok());
}

#[test]
fn memory_stays_alive_with_a_domain_that_a_device_may_still_go_through() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    let other = f.attached(OTHER_SMMU);
    f.map(AT, 0, PAGE).unwrap();
    let domain_of = |f: &Fixture, device| {
        let group = f.core.device(device).unwrap().group();
        f.core.group(group).unwrap().domain().unwrap()
    };
    let (domain, of_other) = (domain_of(&f, device), domain_of(&f, other));
    let table = f.core.domain(domain).unwrap().table().unwrap();
    f.core.backend_mut().lose(table);
    // The domains came with the attachments, and would go with them.
    f.core.detach(device).unwrap();
    f.core.detach(other).unwrap();
    assert!(f.core.domain(of_other).is_err());
    let late = Error::Backend(crate::BackendError::Timeout);
    assert_eq!(f.core.destroy_domain(domain).unwrap_err(), late);
    assert_eq!(refused(f.unmap(AT, PAGE)), late);
    assert!(matches!(
        f.core.destroy_memory(f.ram),
        Err(Error::Busy { users: 1, .. })
    ));
    assert!(f.core.destroy_ioas(f.ioas).is_err());
}

#[test]
fn a_stale_area_is_not_shown_to_a_new_domain() {
    let mut f = Fixture::new();
    f.attached(SMMU);
    f.map(AT, 0, PAGE).unwrap();
    f.core.backend_mut().fail_invalidations_after(Some(0));
    f.unmap(AT, PAGE).unwrap_err();
    f.core.backend_mut().fail_invalidations_after(None);
    let late = f.attached(OTHER_SMMU);
    assert_eq!(f.reads(late, AT), None);
}

#[test]
fn a_rollback_without_confirmation_keeps_the_memory_alive() {
    let mut f = Fixture::new();
    f.attached(SMMU);
    f.attached(OTHER_SMMU);
    f.core.backend_mut().fail_allocations_after(Some(3));
    f.core.backend_mut().fail_invalidations_after(Some(0));
    assert_eq!(
        refused(f.map(AT, 0, PAGE)),
        Error::Backend(crate::BackendError::Timeout)
    );
    assert!(matches!(
        f.core.destroy_memory(f.ram),
        Err(Error::Busy { .. })
    ));
    f.core.backend_mut().fail_allocations_after(None);
    f.core.backend_mut().fail_invalidations_after(None);
    f.unmap(AT, PAGE).unwrap();
    f.core.destroy_memory(f.ram).unwrap();
}

#[test]
fn areas_do_not_keep_their_space_alive() {
    let mut f = Fixture::new();
    f.map(AT, 0, PAGE).unwrap();
    f.map(AT + PAGE, 0, PAGE).unwrap();
    f.core.destroy_ioas(f.ioas).unwrap();
    f.core.destroy_memory(f.ram).unwrap();
    assert_eq!((f.census().ioas, f.census().areas), (0, 0));
}

#[test]
fn a_space_is_not_destroyed_under_a_domain() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    f.map(AT, 0, PAGE).unwrap();
    assert_eq!(
        refused(f.core.destroy_ioas(f.ioas)),
        Error::Busy {
            object: f.ioas.any(),
            users: 1
        }
    );
    assert_eq!(f.reads(device, AT), Some(RAM));
    f.core.detach(device).unwrap();
    assert!(f.core.destroy_ioas(f.ioas).is_ok());
}

#[test]
fn memory_is_not_destroyed_under_an_area() {
    let mut f = Fixture::new();
    f.map(AT, 0, PAGE).unwrap();
    assert_eq!(
        refused(f.core.destroy_memory(f.ram)),
        Error::Busy {
            object: f.ram.any(),
            users: 1
        }
    );
    f.unmap(AT, PAGE).unwrap();
    assert!(f.core.destroy_memory(f.ram).is_ok());
    assert_eq!(
        refused(f.core.destroy_memory(f.ram)),
        Error::NoSuchObject(f.ram.any())
    );
}

#[test]
fn a_dead_name_is_refused_everywhere() {
    let mut f = Fixture::new();
    let device = f.device(SMMU);
    let gone = f.core.create_ioas(VM).unwrap();
    f.core.destroy_ioas(gone).unwrap();
    let refusal = Error::NoSuchObject(gone.any());
    let request = f.request(Placement::Auto, 0, PAGE);
    assert_eq!(refused(f.core.map(gone, &request)), refusal);
    assert_eq!(refused(f.core.unmap(gone, everything())), refusal);
    assert_eq!(refused(f.core.destroy_ioas(gone)), refusal);
    assert_eq!(refused(f.core.allow(gone, &[])), refusal);
    assert_eq!(refused(f.core.ranges(gone, &mut [])), refusal);
    assert_eq!(refused(f.core.attach(device, Target::Ioas(gone))), refusal);
    assert_eq!(refused(f.core.translate(gone, iova(0))), refusal);
    // Its slot lives again, under another name.
    let new = f.core.create_ioas(VM).unwrap();
    assert_ne!(new, gone);
    assert_eq!(refused(f.core.destroy_ioas(gone)), refusal);
}

#[test]
fn the_number_of_areas_is_bounded() {
    let mut f = Fixture::new();
    f.core.limit_areas(f.ioas, 2).unwrap();
    f.map(AT, 0, PAGE).unwrap();
    f.map(AT + PAGE, 0, PAGE).unwrap();
    let refusal = Error::TooManyAreas { limit: 2 };
    assert_eq!(refused(f.map(AT + 2 * PAGE, 0, PAGE)), refusal);
    assert_eq!(
        refused(f.core.limit_areas(f.ioas, 1)),
        Error::TooManyAreas { limit: 1 }
    );
    f.unmap(AT, PAGE).unwrap();
    assert!(f.map(AT + 2 * PAGE, 0, PAGE).is_ok());
}

#[test]
fn translation_follows_the_area() {
    let mut f = Fixture::new();
    f.map(AT, 5 * PAGE, 2 * PAGE).unwrap();
    let found = f.core.translate(f.ioas, iova(AT + PAGE + 7)).unwrap();
    assert_eq!(found.pa.bits(), RAM + 6 * PAGE + 7);
    assert_eq!(found.bytes, PAGE - 7);
    assert_eq!(found.permissions, Permissions::ReadWrite);
    assert!(f.core.translate(f.ioas, iova(AT + 2 * PAGE)).is_err());
    assert!(f.core.translate(f.ioas, iova(AT - 1)).is_err());
    assert_eq!(f.core.area_at(f.ioas, iova(AT + 9)), Ok(of(AT, 2 * PAGE)));
}

// Allowed and reserved ranges.

#[test]
fn a_fixed_mapping_does_not_touch_reserved_addresses() {
    let mut f = Fixture::new();
    let reserved = of(AT + 4 * PAGE, 2 * PAGE);
    let device = f.device_with_region(reserved, RegionKind::Reserved);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    for (at, pages) in [(3, 2), (4, 1), (5, 1), (5, 2), (0, 8)] {
        assert_eq!(
            refused(f.map(AT + at * PAGE, 0, pages * PAGE)),
            Error::Reserved { reserved }
        );
    }
    assert!(f.map(AT, 0, 4 * PAGE).is_ok());
    assert!(f.map(AT + 6 * PAGE, 0, PAGE).is_ok());
}

#[test]
fn reserved_addresses_go_with_their_device() {
    let mut f = Fixture::new();
    let device = f.device_with_region(of(AT, PAGE), RegionKind::Direct);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    assert!(f.map(AT, 0, PAGE).is_err());
    f.core.detach(device).unwrap();
    assert!(f.map(AT, 0, PAGE).is_ok());
}

#[test]
fn an_attachment_that_would_reserve_a_mapping_is_refused() {
    let mut f = Fixture::new();
    f.map(AT, 0, 2 * PAGE).unwrap();
    let device = f.device_with_region(of(AT + PAGE, PAGE), RegionKind::Reserved);
    assert_eq!(
        refused(f.core.attach(device, Target::Ioas(f.ioas))),
        Error::ReservedCutsArea {
            reserved: of(AT + PAGE, PAGE),
            area: of(AT, 2 * PAGE)
        }
    );
    assert_eq!(f.census().domains, 0);
    f.unmap(AT, 2 * PAGE).unwrap();
    assert!(f.core.attach(device, Target::Ioas(f.ioas)).is_ok());
}

#[test]
fn a_relaxable_region_is_not_reserved() {
    let mut f = Fixture::new();
    let device = f.device_with_region(of(AT, PAGE), RegionKind::DirectRelaxable);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    assert!(f.map(AT, 0, PAGE).is_ok());
}

#[test]
fn allowed_first_then_an_attachment_that_cuts_it_is_refused() {
    let mut f = Fixture::new();
    f.core.allow(f.ioas, &[of(AT, 16 * PAGE)]).unwrap();
    let device = f.device_with_region(of(AT + PAGE, PAGE), RegionKind::Reserved);
    assert_eq!(
        refused(f.core.attach(device, Target::Ioas(f.ioas))),
        Error::ReservedCutsAllowed {
            reserved: of(AT + PAGE, PAGE),
            allowed: of(AT, 16 * PAGE)
        }
    );
    assert_eq!(f.core.backend().tables(), 0);
}

#[test]
fn reserved_first_then_allowing_it_is_refused() {
    let mut f = Fixture::new();
    let device = f.device_with_region(of(AT + PAGE, PAGE), RegionKind::Reserved);
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    assert_eq!(
        refused(f.core.allow(f.ioas, &[of(AT, 16 * PAGE)])),
        Error::ReservedCutsAllowed {
            reserved: of(AT + PAGE, PAGE),
            allowed: of(AT, 16 * PAGE)
        }
    );
    assert!(
        f.core
            .allow(f.ioas, &[of(AT, PAGE), of(AT + 2 * PAGE, PAGE)])
            .is_ok()
    );
}

#[test]
fn what_was_allowed_before_an_aperture_must_lie_in_it() {
    let mut f = Fixture::new();
    f.core.allow(f.ioas, &[of(0, PAGE)]).unwrap();
    let device = f.device(SMMU);
    assert!(matches!(
        f.core.attach(device, Target::Ioas(f.ioas)),
        Err(Error::ReservedCutsAllowed { .. })
    ));
    f.core.allow(f.ioas, &[]).unwrap();
    assert!(f.core.attach(device, Target::Ioas(f.ioas)).is_ok());
}

#[test]
fn allowed_ranges_must_not_overlap_each_other() {
    let mut f = Fixture::new();
    f.core.allow(f.ioas, &[of(AT, PAGE)]).unwrap();
    let overlapping = [of(AT + PAGE, 2 * PAGE), of(AT, 2 * PAGE)];
    assert_eq!(
        refused(f.core.allow(f.ioas, &overlapping)),
        Error::BadRanges { at: 1 }
    );
    // The old list is still in force.
    assert_eq!(f.map_auto(0, PAGE), Ok(AT));
    assert!(matches!(f.map_auto(0, PAGE), Err(Error::NoSpace { .. })));
}

#[test]
fn a_new_list_replaces_the_whole_old_one() {
    let mut f = Fixture::new();
    f.core.allow(f.ioas, &[of(AT, PAGE)]).unwrap();
    f.core.allow(f.ioas, &[of(AT + 64 * PAGE, PAGE)]).unwrap();
    assert_eq!(f.map_auto(0, PAGE), Ok(AT + 64 * PAGE));
    assert!(f.map_auto(0, PAGE).is_err());
    f.core.allow(f.ioas, &[]).unwrap();
    assert!(f.map_auto(0, PAGE).is_ok());
}

#[test]
fn the_allowed_list_guides_placement_but_does_not_forbid_fixed_addresses() {
    let mut f = Fixture::new();
    f.core.allow(f.ioas, &[of(AT, PAGE)]).unwrap();
    assert!(f.map(AT + 64 * PAGE, 0, PAGE).is_ok());
}

#[test]
fn the_gaps_of_a_domains_windows_are_reserved_while_it_exists() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    let mut out = [of(0, 1); 1];
    f.core.ranges(f.ioas, &mut out).unwrap();
    assert_eq!(out[0], upto(AT, APERTURE_LAST));
    assert!(matches!(f.map(0, 0, PAGE), Err(Error::Reserved { .. })));
    assert!(matches!(
        f.map(APERTURE_LAST + 1, 0, PAGE),
        Err(Error::Reserved { .. })
    ));
    f.core.detach(device).unwrap();
    assert!(f.map(0, 0, PAGE).is_ok());
}

#[test]
fn a_mapping_outside_the_windows_keeps_a_domain_out() {
    let mut f = Fixture::new();
    f.map(AT - PAGE, 0, PAGE).unwrap();
    let device = f.device(SMMU);
    assert!(matches!(
        f.core.attach(device, Target::Ioas(f.ioas)),
        Err(Error::ReservedCutsArea { .. })
    ));
    assert_eq!(f.core.backend().tables(), 0);
    assert_eq!(f.core.alignment(f.ioas), Ok(1));
}
