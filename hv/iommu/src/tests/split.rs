//! Areas that are cut, and entries that are exchanged.

use std::collections::BTreeMap;

use proptest::prelude::{Just, Strategy, prop_oneof, proptest};

use super::*;
use crate::BackendError;

/// Devices behind TCE-like units, whose windows have one page size.
fn two_pes() -> (Fixture, DeviceId, DeviceId) {
    let mut f = Fixture::new();
    let one = f.attached(TCE);
    let other = f.device(TCE);
    let domain = f
        .core
        .create_domain(other, f.ioas, crate::DomainOptions::default())
        .unwrap();
    f.core.attach(other, Target::Domain(domain)).unwrap();
    (f, one, other)
}

fn swap(f: &mut Fixture, at: u64, offset: u64) -> Result<(), Error> {
    let request = f.request(Placement::Fixed(iova(at)), offset, PAGE);
    f.core.exchange(f.ioas, &request)
}

#[test]
fn a_cut_changes_nothing_but_what_can_be_unmapped() {
    let (mut f, one, other) = two_pes();
    f.map(0x10_0000, 0, 8 * PAGE).unwrap();
    let leaves = f.walk(one);
    let areas = f.census().areas;
    f.core.split(f.ioas, iova(0x10_0000 + 3 * PAGE)).unwrap();
    assert_eq!(f.census().areas, areas + 1);
    assert_eq!(
        (f.walk(one), f.walk(other)),
        (leaves.clone(), leaves.clone())
    );
    // Again, at an end, and where nothing is: nothing to do.
    for at in [3 * PAGE, 0, 8 * PAGE, 9 * PAGE] {
        f.core.split(f.ioas, iova(0x10_0000 + at)).unwrap();
    }
    assert_eq!(f.census().areas, areas + 1);
    assert_eq!(f.unmap(0x10_0000, 3 * PAGE), Ok(3 * PAGE));
    f.assert_shows(one, 0x10_0000 + 3 * PAGE, 3 * PAGE, 5 * PAGE);
    assert_eq!(f.reads(other, 0x10_0000), None);
    assert_eq!(
        f.core.destroy_memory(f.ram).unwrap_err(),
        Error::Busy {
            object: f.ram.any(),
            users: 1
        }
    );
    f.unmap(0x10_0000 + 3 * PAGE, 5 * PAGE).unwrap();
    f.core.destroy_memory(f.ram).unwrap();
}

#[test]
fn a_cut_that_would_split_an_entry_is_refused() {
    let mut f = Fixture::with_leaves(Leaves::SmallAndHuge);
    f.attached(SMMU);
    f.map(AT, 0, 4 << 20).unwrap();
    let alignment = crate::mock::HUGE_PAGE;
    assert_eq!(
        refused(f.core.split(f.ioas, iova(AT + PAGE))),
        Error::Misaligned {
            value: AT + PAGE,
            alignment
        }
    );
    f.core.split(f.ioas, iova(AT + alignment)).unwrap();
    let (mut f, ..) = two_pes();
    f.map(0, 0, 2 * PAGE).unwrap();
    assert_eq!(
        refused(f.core.split(f.ioas, iova(PAGE / 2))),
        Error::Misaligned {
            value: PAGE / 2,
            alignment: PAGE
        }
    );
}

#[test]
fn a_cut_without_memory_changes_nothing() {
    let (mut f, one, _) = two_pes();
    f.map(0, 0, 4 * PAGE).unwrap();
    let areas = f.census().areas;
    let mut growths = 0;
    loop {
        f.core.budget_mut().limit(Some(growths));
        let result = f.core.split(f.ioas, iova(PAGE));
        f.core.budget_mut().limit(None);
        if result.is_ok() {
            break;
        }
        assert_eq!(result, Err(Error::OutOfMemory));
        assert_eq!(f.census().areas, areas);
        growths += 1;
    }
    assert!(growths > 0);
    f.assert_shows(one, 0, 0, 4 * PAGE);
}

#[test]
fn what_is_being_unmapped_is_not_cut() {
    let (mut f, ..) = two_pes();
    f.map(0, 0, 4 * PAGE).unwrap();
    let access = f.core.create_access(VM).unwrap();
    f.core.attach_access(access, f.ioas).unwrap();
    let pin = f
        .core
        .pin(
            access,
            of(0, PAGE),
            crate::Intent::Read,
            crate::Hold::Revocable,
        )
        .unwrap();
    // Under a pin alone it is: the pin keeps its addresses, whatever the areas are.
    f.core.split(f.ioas, iova(2 * PAGE)).unwrap();
    let waiting = f.core.begin_unmap(f.ioas, of(0, 2 * PAGE)).unwrap();
    assert!(matches!(
        f.core.split(f.ioas, iova(PAGE)),
        Err(Error::UnmapInProgress { .. })
    ));
    assert!(matches!(swap(&mut f, 0, PAGE), Err(Error::CutsArea { .. })));
    f.core.unpin(pin).unwrap();
    let crate::Unmapping::Waiting(revocation) = waiting else {
        panic!("a pin is in the way");
    };
    assert_eq!(
        f.core.poll_unmap(revocation),
        Ok(crate::Unmapping::Done(2 * PAGE))
    );
}

#[test]
fn an_exchange_moves_every_device_at_once() {
    let (mut f, one, other) = two_pes();
    let second = f
        .core
        .add_ram(VM, &[extent(RAM + RAM_BYTES, 1 << 20)])
        .unwrap();
    f.map(0x5000, 0, PAGE).unwrap();
    let counts = f.core.backend().counts;
    let request = Map {
        placement: Placement::Fixed(iova(0x5000)),
        memory: second,
        offset: 3 * PAGE,
        bytes: PAGE,
        permissions: Permissions::Read,
    };
    f.core.exchange(f.ioas, &request).unwrap();
    for device in [one, other] {
        assert_eq!(f.reads(device, 0x5000), Some(RAM + RAM_BYTES + 3 * PAGE));
        assert_eq!(f.dma(device, 0x5000, Dma::Write), Err(DmaFault::Permission));
    }
    // Nothing was taken away in between, and the old memory is free.
    assert_eq!(f.core.backend().counts.unmaps, counts.unmaps);
    f.core.destroy_memory(f.ram).unwrap();
    assert!(f.core.destroy_memory(second).is_err());
    assert_eq!(
        f.core.translate(f.ioas, iova(0x5000)).unwrap().pa,
        pa(RAM + RAM_BYTES + 3 * PAGE)
    );
}

#[test]
fn an_exchange_wants_exactly_one_area() {
    let (mut f, one, _) = two_pes();
    assert_eq!(
        refused(swap(&mut f, 0x5000, 0)),
        Error::NotMapped { at: iova(0x5000) }
    );
    f.map(0x4000, 0, 2 * PAGE).unwrap();
    assert!(matches!(
        swap(&mut f, 0x5000, 0),
        Err(Error::CutsArea { .. })
    ));
    f.core.split(f.ioas, iova(0x5000)).unwrap();
    assert!(matches!(
        swap(&mut f, 0x5000, RAM_BYTES),
        Err(Error::OutsideMemory { .. })
    ));
    assert!(matches!(
        swap(&mut f, 0x5000, PAGE / 2),
        Err(Error::Misaligned { .. })
    ));
    f.core.grant(f.ram, OTHER_VM, Permissions::Read).unwrap();
    let foreign = f
        .core
        .add_ram(OTHER_VM, &[extent(RAM + RAM_BYTES, PAGE)])
        .unwrap();
    let mut request = f.request(Placement::Fixed(iova(0x5000)), 0, PAGE);
    request.memory = foreign;
    assert!(matches!(
        f.core.exchange(f.ioas, &request),
        Err(Error::OtherOwner { .. })
    ));
    f.core.grant(foreign, VM, Permissions::Read).unwrap();
    assert_eq!(
        f.core.exchange(f.ioas, &request),
        Err(Error::PermissionDenied)
    );
    f.assert_shows(one, 0x4000, 0, 2 * PAGE);
}

#[test]
fn an_exchange_that_the_second_table_refuses_leaves_the_first_as_it_was() {
    let (mut f, one, other) = two_pes();
    f.map(0x5000, 0, PAGE).unwrap();
    for passing in [0, 1] {
        f.core.backend_mut().fail_exchanges_after(Some(passing));
        let result = swap(&mut f, 0x5000, 4 * PAGE);
        f.core.backend_mut().fail_exchanges_after(None);
        assert_eq!(result, Err(Error::Backend(BackendError::Unsupported)));
        if passing == 0 {
            f.assert_shows(one, 0x5000, 0, PAGE);
            f.assert_shows(other, 0x5000, 0, PAGE);
        }
    }
    // The first took it and would not give it back: nobody has anything, and all stays alive.
    assert_eq!(f.reads(one, 0x5000), None);
    assert_eq!(f.reads(other, 0x5000), None);
    assert!(f.core.translate(f.ioas, iova(0x5000)).is_err());
    f.unmap(0x5000, PAGE).unwrap();
    assert!(f.core.destroy_memory(f.ram).is_err());
}

#[test]
fn where_there_is_no_such_step_nothing_changes() {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    f.map(AT, 0, PAGE).unwrap();
    assert_eq!(
        refused(swap(&mut f, AT, 4 * PAGE)),
        Error::Backend(BackendError::Unsupported)
    );
    f.assert_shows(device, AT, 0, PAGE);
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Map(u64, u64, u64),
    Cut(u64),
    Clear(u64, u64),
    Swap(u64, u64),
}

fn op() -> impl Strategy<Value = Op> {
    let page = || 0..64_u64;
    prop_oneof![
        3 => (page(), 1..12_u64, 0..1000_u64).prop_map(|(at, pages, from)| Op::Map(at, pages, from)),
        3 => page().prop_map(Op::Cut),
        3 => (page(), 1..24_u64).prop_map(|(at, pages)| Op::Clear(at, pages)),
        2 => (page(), 0..1000_u64).prop_map(|(at, from)| Op::Swap(at, from)),
        1 => Just(Op::Cut(u64::MAX >> 12)),
    ]
}

proptest! {
    /// Cut at both ends, any range of pages can be unmapped: the space is a map of pages.
    #[test]
    fn cut_spaces_are_maps_of_pages(ops in proptest::collection::vec(op(), 1..60)) {
        let (mut f, one, other) = two_pes();
        let mut model: BTreeMap<u64, u64> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Map(at, pages, from) => {
                    let free = model.range(at..at + pages).next().is_none();
                    let done = f.map(at * PAGE, from * PAGE, pages * PAGE).is_ok();
                    assert_eq!(done, free);
                    if done {
                        model.extend((0..pages).map(|n| (at + n, from + n)));
                    }
                }
                Op::Cut(at) => f.core.split(f.ioas, iova(at << 12)).unwrap(),
                Op::Clear(at, pages) => {
                    for end in [at, at + pages] {
                        f.core.split(f.ioas, iova(end * PAGE)).unwrap();
                    }
                    let there = model.range(at..at + pages).count() as u64;
                    match f.unmap(at * PAGE, pages * PAGE) {
                        Ok(bytes) => assert_eq!(bytes, there * PAGE),
                        Err(_) => assert_eq!(there, 0),
                    }
                    model.retain(|page, _| !(at..at + pages).contains(page));
                }
                Op::Swap(at, from) => {
                    for end in [at, at + 1] {
                        f.core.split(f.ioas, iova(end * PAGE)).unwrap();
                    }
                    let done = swap(&mut f, at * PAGE, from * PAGE).is_ok();
                    assert_eq!(done, model.contains_key(&at));
                    if done {
                        model.insert(at, from);
                    }
                }
            }
            for device in [one, other] {
                let found: BTreeMap<u64, u64> = f
                    .walk(device)
                    .into_iter()
                    .map(|(at, leaf)| (at / PAGE, (leaf.pa.bits() - RAM) / PAGE))
                    .collect();
                assert_eq!(found, model);
            }
            crate::mock::check(&f.core);
        }
    }
}
