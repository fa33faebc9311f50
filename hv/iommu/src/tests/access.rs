//! The hypervisor's own use of guest memory.

use hal::PhysMemory;
use hal::fake::FakeMemory;

use super::*;
use crate::{AccessId, Hold, Intent, MAX_PINS, MAX_POLLS, Pin, Revocation, Unmapping};

fn memory() -> FakeMemory {
    FakeMemory::new(pa(RAM), 64 * 4096)
}

impl Fixture {
    pub(crate) fn access(&mut self) -> AccessId {
        let access = self.core.create_access(VM).unwrap();
        self.core.attach_access(access, self.ioas).unwrap();
        access
    }

    pub(crate) fn pin(&mut self, access: AccessId, at: u64, bytes: u64) -> Result<Pin, Error> {
        let span = of(at, bytes);
        self.core.pin(access, span, Intent::Write, Hold::Revocable)
    }

    pub(crate) fn begin(&mut self, at: u64, bytes: u64) -> Revocation {
        match self.core.begin_unmap(self.ioas, of(at, bytes)).unwrap() {
            Unmapping::Waiting(revocation) => revocation,
            Unmapping::Done(_) => panic!("nothing was in the way"),
        }
    }
}

#[test]
fn an_access_reads_and_writes_what_devices_see() {
    let mut f = Fixture::new();
    let memory = memory();
    let access = f.access();
    f.map(AT, PAGE, PAGE).unwrap();
    f.core
        .write(access, iova(AT + 5), b"bulkhead", &memory)
        .unwrap();
    let mut seen = [0; 8];
    memory.read(pa(RAM + PAGE + 5), &mut seen).unwrap();
    assert_eq!(&seen, b"bulkhead");
    let mut back = [0; 4];
    f.core
        .read(access, iova(AT + 9), &mut back, &memory)
        .unwrap();
    assert_eq!(&back, b"head");
}

/// Every byte offset around an edge between areas, lengths 1 to 63.
fn rw_around(edge: u64) {
    let mut f = Fixture::new();
    let memory = memory();
    let access = f.access();
    // Neighbours in the space, apart in memory.
    f.map(AT, 8 * PAGE, PAGE).unwrap();
    f.map(AT + PAGE, 3 * PAGE, PAGE).unwrap();
    f.map(AT + 2 * PAGE, 5 * PAGE, PAGE).unwrap();
    for start in edge - 64..edge {
        for len in 1..64_usize {
            let pattern: Vec<u8> = (len..2 * len).map(|i| i.to_le_bytes()[0]).collect();
            f.core
                .write(access, iova(AT + start), &pattern, &memory)
                .unwrap();
            let mut back = alloc::vec![0; len];
            f.core
                .read(access, iova(AT + start), &mut back, &memory)
                .unwrap();
            assert_eq!(back, pattern);
            let mut one = [0];
            let last = start + len as u64 - 1;
            let found = f.core.translate(f.ioas, iova(AT + last)).unwrap();
            memory.read(found.pa, &mut one).unwrap();
            assert_eq!(one[0], pattern[len - 1]);
        }
    }
}

#[test]
fn every_offset_and_length_around_the_first_edge_is_copied() {
    rw_around(PAGE);
}

#[test]
fn every_offset_and_length_around_the_second_edge_is_copied() {
    rw_around(2 * PAGE);
}

#[test]
fn an_unaligned_access_within_a_page_is_copied() {
    rw_around(2048);
}

#[test]
fn a_copy_of_no_bytes_is_refused() {
    let mut f = Fixture::new();
    let access = f.access();
    f.map(AT, 0, PAGE).unwrap();
    let memory = memory();
    assert_eq!(
        refused(f.core.read(access, iova(AT), &mut [], &memory)),
        Error::Empty
    );
    assert_eq!(
        refused(f.core.write(access, iova(AT), &[], &memory)),
        Error::Empty
    );
}

#[test]
fn a_copy_past_the_end_of_the_space_overflows() {
    let mut f = Fixture::new();
    let access = f.access();
    f.map(u64::MAX - PAGE + 1, 0, PAGE).unwrap();
    let memory = memory();
    let at = iova(u64::MAX - 3);
    assert_eq!(
        refused(f.core.read(access, at, &mut [0; 5], &memory)),
        Error::Overflow
    );
    assert!(f.core.read(access, at, &mut [0; 4], &memory).is_ok());
}

#[test]
fn a_copy_with_a_hole_copies_nothing() {
    let mut f = Fixture::new();
    let access = f.access();
    f.map(AT, 0, PAGE).unwrap();
    f.map(AT + 2 * PAGE, 2 * PAGE, PAGE).unwrap();
    let memory = memory();
    let bytes = alloc::vec![0xff; 3 * 4096];
    assert_eq!(
        refused(f.core.write(access, iova(AT), &bytes, &memory)),
        Error::NotMapped {
            at: iova(AT + PAGE)
        }
    );
    let mut first = [0; 1];
    memory.read(pa(RAM), &mut first).unwrap();
    assert_eq!(first, [0]);
    let mut buffer = alloc::vec![7; 4097];
    assert!(f.core.read(access, iova(AT), &mut buffer, &memory).is_err());
    assert!(buffer.iter().all(|byte| *byte == 7));
}

#[test]
fn permissions_hold_for_the_hypervisor_too() {
    let mut f = Fixture::new();
    let access = f.access();
    let memory = memory();
    for (at, permissions) in [(0, Permissions::Read), (PAGE, Permissions::Write)] {
        let request = Map {
            permissions,
            ..f.request(Placement::Fixed(iova(AT + at)), at, PAGE)
        };
        f.core.map(f.ioas, &request).unwrap();
    }
    let write = f.core.write(access, iova(AT), &[1], &memory);
    assert_eq!(refused(write), Error::PermissionDenied);
    let read = f.core.read(access, iova(AT + PAGE), &mut [0], &memory);
    assert_eq!(refused(read), Error::PermissionDenied);
    assert!(f.core.read(access, iova(AT), &mut [0], &memory).is_ok());
    assert!(f.core.write(access, iova(AT + PAGE), &[1], &memory).is_ok());
    // A write across both is refused for the first byte's sake, and writes none.
    let both = f.core.write(access, iova(AT + PAGE - 1), &[9, 9], &memory);
    assert_eq!(refused(both), Error::PermissionDenied);
}

#[test]
fn memory_that_is_not_there_is_reported() {
    let mut f = Fixture::new();
    let access = f.access();
    f.map(AT, 64 * PAGE, PAGE).unwrap();
    assert_eq!(
        refused(f.core.read(access, iova(AT), &mut [0], &memory())),
        Error::NoMemory {
            pa: pa(RAM + 64 * PAGE)
        }
    );
}

#[test]
fn a_detached_access_reaches_nothing() {
    let mut f = Fixture::new();
    let access = f.core.create_access(VM).unwrap();
    f.map(AT, 0, PAGE).unwrap();
    let memory = memory();
    assert_eq!(
        refused(f.core.read(access, iova(AT), &mut [0], &memory)),
        Error::Detached
    );
    assert_eq!(refused(f.pin(access, AT, 1)), Error::Detached);
    assert_eq!(refused(f.core.detach_access(access)), Error::Detached);
    f.core.attach_access(access, f.ioas).unwrap();
    assert!(f.core.read(access, iova(AT), &mut [0], &memory).is_ok());
}

#[test]
fn an_access_keeps_its_space_alive() {
    let mut f = Fixture::new();
    let access = f.access();
    assert!(matches!(
        f.core.destroy_ioas(f.ioas),
        Err(Error::Busy { users: 1, .. })
    ));
    f.core.detach_access(access).unwrap();
    assert!(f.core.destroy_ioas(f.ioas).is_ok());
    assert!(f.core.destroy_access(access).is_ok());
}

#[test]
fn an_access_moves_between_spaces_of_its_owner() {
    let mut f = Fixture::new();
    let access = f.access();
    f.map(AT, 0, PAGE).unwrap();
    let other = f.core.create_ioas(VM).unwrap();
    let theirs = f.core.create_ioas(OTHER_VM).unwrap();
    assert!(matches!(
        f.core.attach_access(access, theirs),
        Err(Error::OtherOwner { .. })
    ));
    let pin = f.pin(access, AT, 1).unwrap();
    assert!(matches!(
        f.core.attach_access(access, other),
        Err(Error::Busy { users: 1, .. })
    ));
    f.core.unpin(pin).unwrap();
    f.core.attach_access(access, other).unwrap();
    assert_eq!(
        refused(f.pin(access, AT, 1)),
        Error::NotMapped { at: iova(AT) }
    );
    assert!(f.core.destroy_ioas(f.ioas).is_ok());
}

// Pins.

#[test]
fn a_pin_gives_physical_pieces() {
    let mut f = Fixture::new();
    let access = f.access();
    f.map(AT, 0, PAGE).unwrap();
    f.map(AT + PAGE, 7 * PAGE, PAGE).unwrap();
    let pin = f.pin(access, AT + PAGE - 16, 32).unwrap();
    let mut pieces = Vec::new();
    f.core.pinned(&pin, |piece| pieces.push(piece)).unwrap();
    assert_eq!(
        pieces,
        [extent(RAM + PAGE - 16, 16), extent(RAM + 7 * PAGE, 16)]
    );
    assert_eq!(pin.span(), of(AT + PAGE - 16, 32));
}

#[test]
fn a_pinned_area_is_not_unmapped_at_once() {
    let mut f = Fixture::new();
    let access = f.access();
    let device = f.attached(SMMU);
    f.map(AT, 0, 4 * PAGE).unwrap();
    let pin = f.pin(access, AT + PAGE, 16).unwrap();
    let refusal = Error::Pinned {
        pinned: of(AT + PAGE, 16),
    };
    assert_eq!(refused(f.unmap(AT, 4 * PAGE)), refusal);
    assert_eq!(refused(f.core.unmap(f.ioas, everything())), refusal);
    assert_eq!(f.reads(device, AT), Some(RAM));
    f.core.unpin(pin).unwrap();
    assert_eq!(f.unmap(AT, 4 * PAGE), Ok(4 * PAGE));
}

#[test]
fn pins_elsewhere_are_not_in_the_way() {
    let mut f = Fixture::new();
    let access = f.access();
    f.map(AT, 0, PAGE).unwrap();
    f.map(AT + PAGE, 0, PAGE).unwrap();
    let pin = f.pin(access, AT, 16).unwrap();
    assert_eq!(f.unmap(AT + PAGE, PAGE), Ok(PAGE));
    f.core.unpin(pin).unwrap();
}

#[test]
fn two_pins_of_one_range_both_count() {
    let mut f = Fixture::new();
    let (a, b) = (f.access(), f.access());
    f.map(AT, 0, PAGE).unwrap();
    let first = f.pin(a, AT, PAGE).unwrap();
    let second = f.pin(b, AT, PAGE).unwrap();
    f.core.unpin(first).unwrap();
    assert!(matches!(f.unmap(AT, PAGE), Err(Error::Pinned { .. })));
    f.core.unpin(second).unwrap();
    assert!(f.unmap(AT, PAGE).is_ok());
}

#[test]
fn a_domain_comes_and_goes_under_a_pin() {
    let mut f = Fixture::new();
    let access = f.access();
    f.map(AT, 0, PAGE).unwrap();
    let pin = f.pin(access, AT, PAGE).unwrap();
    let device = f.attached(SMMU);
    assert_eq!(f.reads(device, AT), Some(RAM));
    f.core.detach(device).unwrap();
    let mut pieces = 0;
    f.core.pinned(&pin, |_| pieces += 1).unwrap();
    assert_eq!(pieces, 1);
    f.core.unpin(pin).unwrap();
}

#[test]
fn an_access_is_not_destroyed_while_it_pins() {
    let mut f = Fixture::new();
    let access = f.access();
    f.map(AT, 0, PAGE).unwrap();
    let pin = f.pin(access, AT, 1).unwrap();
    assert_eq!(
        refused(f.core.destroy_access(access)),
        Error::Busy {
            object: access.any(),
            users: 1
        }
    );
    assert!(f.core.detach_access(access).is_err());
    f.core.unpin(pin).unwrap();
    assert!(f.core.destroy_access(access).is_ok());
    assert_eq!(f.census().pins, 0);
}

#[test]
fn a_pin_is_refused_where_a_copy_would_be() {
    let mut f = Fixture::new();
    let access = f.access();
    let request = Map {
        permissions: Permissions::Read,
        ..f.request(Placement::Fixed(iova(AT)), 0, PAGE)
    };
    f.core.map(f.ioas, &request).unwrap();
    assert_eq!(refused(f.pin(access, AT, 1)), Error::PermissionDenied);
    assert!(matches!(
        f.pin(access, AT + PAGE, 1),
        Err(Error::NotMapped { .. })
    ));
    let read = f
        .core
        .pin(access, of(AT, 1), Intent::Read, Hold::Revocable)
        .unwrap();
    f.core.unpin(read).unwrap();
}

#[test]
fn the_number_of_pins_is_bounded() {
    let mut f = Fixture::new();
    let access = f.access();
    f.map(AT, 0, PAGE).unwrap();
    let pins: Vec<_> = (0..MAX_PINS)
        .map(|_| f.pin(access, AT, 1).unwrap())
        .collect();
    assert_eq!(
        refused(f.pin(access, AT, 1)),
        Error::TooManyPins { limit: MAX_PINS }
    );
    for pin in pins {
        f.core.unpin(pin).unwrap();
    }
    assert_eq!(f.census().pins, 0);
}

#[test]
fn hardware_pins_need_one_physical_piece_and_never_give_way() {
    let mut f = Fixture::new();
    let access = f.access();
    f.map(AT, 0, PAGE).unwrap();
    f.map(AT + PAGE, PAGE, PAGE).unwrap();
    f.map(AT + 2 * PAGE, 9 * PAGE, PAGE).unwrap();
    let scattered = of(AT + PAGE, 2 * PAGE);
    assert!(matches!(
        f.core.pin(access, scattered, Intent::Write, Hold::Hardware),
        Err(Error::NotContiguous { .. })
    ));
    let queue = f
        .core
        .pin(access, of(AT, 2 * PAGE), Intent::Write, Hold::Hardware)
        .unwrap();
    let refusal = Error::Pinned {
        pinned: of(AT, 2 * PAGE),
    };
    assert_eq!(
        refused(f.core.begin_unmap(f.ioas, of(AT, 2 * PAGE))),
        refusal
    );
    assert_eq!(refused(f.unmap(AT, PAGE)), refusal);
    f.core.unpin(queue).unwrap();
    assert!(f.unmap(AT, 2 * PAGE).is_ok());
}

// Revocation.

#[test]
fn beginning_to_unmap_without_pins_unmaps() {
    let mut f = Fixture::new();
    f.map(AT, 0, PAGE).unwrap();
    assert_eq!(
        f.core.begin_unmap(f.ioas, of(AT, PAGE)),
        Ok(Unmapping::Done(PAGE))
    );
    assert_eq!(
        f.core.begin_unmap(f.ioas, everything()),
        Ok(Unmapping::Done(0))
    );
}

#[test]
fn an_unmapping_ends_when_the_last_pin_is_given_back() {
    let mut f = Fixture::new();
    let access = f.access();
    let device = f.attached(SMMU);
    f.map(AT, 0, PAGE).unwrap();
    let pin = f.pin(access, AT, 8).unwrap();
    assert!(!f.core.is_wanted(&pin));
    let revocation = f.begin(AT, PAGE);
    assert!(f.core.is_wanted(&pin));
    let Ok(Unmapping::Waiting(revocation)) = f.core.poll_unmap(revocation) else {
        panic!("it is pinned");
    };
    assert_eq!(f.reads(device, AT), Some(RAM));
    f.core.unpin(pin).unwrap();
    assert_eq!(f.core.poll_unmap(revocation), Ok(Unmapping::Done(PAGE)));
    assert_eq!(f.reads(device, AT), None);
}

#[test]
fn a_holder_that_does_not_let_go_keeps_its_memory() {
    let mut f = Fixture::new();
    let access = f.access();
    f.map(AT, 0, PAGE).unwrap();
    let pin = f.pin(access, AT, 8).unwrap();
    let mut revocation = f.begin(AT, PAGE);
    let mut polls = 0;
    let refusal = loop {
        match f.core.poll_unmap(revocation) {
            Ok(Unmapping::Waiting(again)) => revocation = again,
            Ok(Unmapping::Done(_)) => panic!("it is pinned"),
            Err(error) => break error,
        }
        polls += 1;
    };
    assert_eq!(polls, MAX_POLLS - 1);
    assert_eq!(refusal, Error::StillPinned { polls: MAX_POLLS });
    // As before: pins work, and so does another attempt.
    let second = f.pin(access, AT, 8).unwrap();
    f.core.unpin(second).unwrap();
    f.core.unpin(pin).unwrap();
    assert_eq!(f.unmap(AT, PAGE), Ok(PAGE));
}

#[test]
fn nothing_new_enters_a_range_that_is_being_unmapped() {
    let mut f = Fixture::new();
    let access = f.access();
    let memory = memory();
    f.map(AT, 0, PAGE).unwrap();
    f.map(AT + 2 * PAGE, 0, PAGE).unwrap();
    let pin = f.pin(access, AT, 8).unwrap();
    let revocation = f.begin(AT, 3 * PAGE);
    let refusal = Error::UnmapInProgress {
        span: of(AT, 3 * PAGE),
    };
    assert_eq!(refused(f.pin(access, AT + 2 * PAGE, 1)), refusal);
    assert_eq!(
        refused(f.core.read(access, iova(AT), &mut [0], &memory)),
        refusal
    );
    assert_eq!(
        refused(f.core.write(access, iova(AT), &[0], &memory)),
        refusal
    );
    assert_eq!(refused(f.map(AT + PAGE, 0, PAGE)), refusal);
    assert_eq!(refused(f.unmap(AT + 2 * PAGE, PAGE)), refusal);
    assert_eq!(
        refused(f.core.begin_unmap(f.ioas, of(AT + 2 * PAGE, PAGE))),
        refusal
    );
    // Outside everything goes on.
    f.map(AT + 8 * PAGE, 0, PAGE).unwrap();
    let outside = f.pin(access, AT + 8 * PAGE, 1).unwrap();
    f.core.unpin(outside).unwrap();
    assert_eq!(f.unmap(AT + 8 * PAGE, PAGE), Ok(PAGE));
    f.core.abort_unmap(revocation).unwrap();
    f.core.unpin(pin).unwrap();
    assert_eq!(f.unmap(AT, 3 * PAGE), Ok(2 * PAGE));
}

#[test]
fn automatic_placement_avoids_holes_in_what_is_being_unmapped() {
    let mut f = Fixture::new();
    let access = f.access();
    f.core.allow(f.ioas, &[of(AT, 8 * PAGE)]).unwrap();
    f.map(AT, 0, PAGE).unwrap();
    f.map(AT + 2 * PAGE, 0, PAGE).unwrap();
    let pin = f.pin(access, AT, 8).unwrap();
    let revocation = f.begin(AT, 3 * PAGE);
    assert_eq!(f.map_auto(0, PAGE), Ok(AT + 3 * PAGE));
    f.core.abort_unmap(revocation).unwrap();
    assert_eq!(f.map_auto(0, PAGE), Ok(AT + PAGE));
    f.core.unpin(pin).unwrap();
}

#[test]
fn an_aborted_unmapping_leaves_everything_as_before() {
    let mut f = Fixture::new();
    let access = f.access();
    let device = f.attached(SMMU);
    f.map(AT, 0, PAGE).unwrap();
    let pin = f.pin(access, AT, 8).unwrap();
    let revocation = f.begin(AT, PAGE);
    f.core.abort_unmap(revocation).unwrap();
    assert!(!f.core.is_wanted(&pin));
    assert_eq!(f.reads(device, AT), Some(RAM));
    let second = f.pin(access, AT, 8).unwrap();
    f.core.unpin(second).unwrap();
    f.core.unpin(pin).unwrap();
}

#[test]
fn an_unmapping_under_pins_still_contains_whole_areas() {
    let mut f = Fixture::new();
    let access = f.access();
    f.map(AT, 0, 2 * PAGE).unwrap();
    let pin = f.pin(access, AT, 8).unwrap();
    assert!(matches!(
        f.core.begin_unmap(f.ioas, of(AT, PAGE)),
        Err(Error::CutsArea { .. })
    ));
    f.core.unpin(pin).unwrap();
}

#[test]
fn a_space_is_not_destroyed_while_it_is_being_unmapped() {
    // Found by the exploration of interleavings.
    let mut f = Fixture::new();
    let access = f.access();
    f.map(AT, 0, PAGE).unwrap();
    let pin = f.pin(access, AT, 8).unwrap();
    let revocation = f.begin(AT, PAGE);
    f.core.unpin(pin).unwrap();
    f.core.destroy_access(access).unwrap();
    assert!(matches!(
        f.core.destroy_ioas(f.ioas),
        Err(Error::Busy { users: 1, .. })
    ));
    assert_eq!(f.core.poll_unmap(revocation), Ok(Unmapping::Done(PAGE)));
    assert!(f.core.destroy_ioas(f.ioas).is_ok());
}

#[test]
fn memory_is_not_given_back_under_a_pin() {
    let mut f = Fixture::new();
    let access = f.access();
    f.map(AT, 0, PAGE).unwrap();
    let pin = f.pin(access, AT, 8).unwrap();
    let revocation = f.begin(AT, PAGE);
    assert!(matches!(
        f.core.destroy_memory(f.ram),
        Err(Error::Busy { .. })
    ));
    f.core.unpin(pin).unwrap();
    assert_eq!(f.core.poll_unmap(revocation), Ok(Unmapping::Done(PAGE)));
    assert!(f.core.destroy_memory(f.ram).is_ok());
}
