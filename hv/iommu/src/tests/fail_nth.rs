//! Every scenario with the n-th allocation failing, for every n: nothing leaks, nothing is half
//! done, and the same request succeeds afterwards.

use super::nested::{TRANSLATE, guest};
use super::*;
use crate::mock::{Leaves, check};
use crate::{
    Census, DomainOptions, EventKind, Hold, Intent, Listener, NestedConfig, PeerToPeer, Region,
    RegionKind,
};

/// What a request may not change when it fails.
#[derive(Debug, PartialEq)]
pub(super) struct State {
    census: Census,
    tables: Vec<(u32, Vec<(u64, Leaf)>)>,
    alignment: Vec<u64>,
    ranges: usize,
    bindings: Vec<crate::Binding>,
}

pub(super) fn state(f: &Fixture) -> State {
    let mock = f.core.backend();
    let mut tables = Vec::new();
    for table in 0..64 {
        let id = crate::TableId::new(table);
        let leaves = mock.walk(id).into_iter();
        tables.push((table, leaves.map(|(at, leaf)| (at.bits(), leaf)).collect()));
    }
    let endpoints = [SMMU, OTHER_SMMU, TCE]
        .into_iter()
        .flat_map(|unit| (0..40).map(move |source| Endpoint { unit, source }));
    State {
        census: f.census(),
        tables,
        alignment: f.core.alignment(f.ioas).into_iter().collect(),
        ranges: f
            .core
            .ranges(f.ioas, &mut [of(0, 1); 32])
            .map_or(0, |r| r.count),
        bindings: endpoints.map(|e| mock.binding(e)).collect(),
    }
}

/// Fails the n-th growth of the core, then of the tables, until the request succeeds.
pub(super) fn scenario<T>(
    setup: impl Fn() -> (Fixture, T),
    request: impl Fn(&mut Fixture, &T) -> Result<(), Error>,
) {
    for tables in [false, true] {
        let mut failures = 0;
        for n in 0.. {
            assert!(n < 10_000, "it never succeeds");
            let (mut f, context) = setup();
            let before = state(&f);
            if tables {
                f.core.backend_mut().fail_allocations_after(Some(n));
            } else {
                f.core.budget_mut().limit(Some(n));
            }
            let result = request(&mut f, &context);
            f.core.backend_mut().fail_allocations_after(None);
            f.core.budget_mut().limit(None);
            check(&f.core);
            match result {
                Ok(()) => break,
                Err(error) => assert!(error.is_out_of_memory(), "{error:?}"),
            }
            failures += 1;
            assert_eq!(
                state(&f),
                before,
                "the failure at {n} left something behind"
            );
            request(&mut f, &context).unwrap();
            check(&f.core);
        }
        // The negative control: something was there to fail.
        assert!(failures > 0 || tables);
    }
}

fn fresh() -> (Fixture, ()) {
    (Fixture::with_leaves(Leaves::Small), ())
}

#[test]
fn creating_a_space() {
    scenario(fresh, |f, ()| f.core.create_ioas(VM).map(|_| ()));
}

#[test]
fn declaring_ram() {
    scenario(fresh, |f, ()| {
        f.core
            .add_ram(VM, &[extent(0, PAGE), extent(1 << 20, PAGE)])
            .map(|_| ())
    });
}

#[test]
fn granting_ram() {
    scenario(fresh, |f, ()| {
        f.core.grant(f.ram, OTHER_VM, Permissions::Read)
    });
}

#[test]
fn declaring_a_group() {
    scenario(fresh, |f, ()| {
        f.core.add_group(SMMU, Residence::Free).map(|_| ())
    });
}

#[test]
fn declaring_a_device() {
    scenario(
        || {
            let mut f = Fixture::new();
            let group = f.group(SMMU);
            (f, group)
        },
        |f, group| {
            let description = DeviceDescription {
                aliases: &[8],
                reserved: &[Region {
                    span: of(AT, PAGE),
                    kind: RegionKind::Reserved,
                }],
                ..Fixture::describe(*group, &[7])
            };
            f.core.add_device(&description).map(|_| ())
        },
    );
}

#[test]
fn mapping_without_a_domain() {
    scenario(fresh, |f, ()| f.map(AT, 0, 4 * PAGE).map(|_| ()));
}

#[test]
fn mapping_into_one_domain() {
    scenario(
        || {
            let mut f = Fixture::new();
            f.attached(SMMU);
            (f, ())
        },
        |f, ()| f.map(AT, 0, 4 * PAGE).map(|_| ()),
    );
}

#[test]
fn mapping_into_two_domains() {
    scenario(
        || {
            let mut f = Fixture::new();
            f.attached(SMMU);
            f.attached(OTHER_SMMU);
            f.map(AT + 64 * PAGE, 0, PAGE).unwrap();
            (f, ())
        },
        |f, ()| f.map(AT, 0, 4 * PAGE).map(|_| ()),
    );
}

#[test]
fn mapping_scattered_memory_into_two_domains() {
    scenario(
        || {
            let mut f = Fixture::new();
            f.attached(SMMU);
            f.attached(OTHER_SMMU);
            let pieces = [
                extent(0, PAGE),
                extent(1 << 20, PAGE),
                extent(4 << 20, PAGE),
            ];
            f.ram = f.core.add_ram(VM, &pieces).unwrap();
            (f, ())
        },
        |f, ()| f.map(AT, 0, 3 * PAGE).map(|_| ()),
    );
}

#[test]
fn mapping_the_hundredth_area() {
    scenario(
        || {
            let mut f = Fixture::new();
            f.attached(SMMU);
            for i in 0..272 {
                f.map(AT + 2 * i * PAGE, 0, PAGE).unwrap();
            }
            (f, ())
        },
        |f, ()| f.map(AT + PAGE, 0, PAGE).map(|_| ()),
    );
}

#[test]
fn replacing_the_allowed_list() {
    scenario(fresh, |f, ()| f.core.allow(f.ioas, &[of(AT, PAGE)]));
}

#[test]
fn copying_several_areas() {
    scenario(
        || {
            let mut f = Fixture::new();
            f.map(AT, 0, PAGE).unwrap();
            f.map(AT + PAGE, 5 * PAGE, PAGE).unwrap();
            f.map(AT + 2 * PAGE, 9 * PAGE, PAGE).unwrap();
            f.attached(SMMU);
            (f, ())
        },
        |f, ()| f.copy_to(f.ioas, of(AT, 3 * PAGE), AT + 16 * PAGE),
    );
}

fn mapped_and_bound() -> (Fixture, DeviceId) {
    let mut f = Fixture::new();
    f.map(AT, 0, 3 * PAGE).unwrap();
    f.map(AT + 8 * PAGE, 0, PAGE).unwrap();
    let device = f.device_with_region(of(AT + 32 * PAGE, PAGE), RegionKind::Reserved);
    (f, device)
}

#[test]
fn attaching_the_first_device() {
    scenario(mapped_and_bound, |f, device| {
        f.core.attach(*device, Target::Ioas(f.ioas)).map(|_| ())
    });
}

#[test]
fn attaching_to_the_default_space() {
    scenario(mapped_and_bound, |f, device| {
        f.core.attach_default(*device).map(|_| ())
    });
}

#[test]
fn attaching_the_second_device_of_a_group() {
    scenario(
        || {
            let mut f = Fixture::new();
            let group = f.group(SMMU);
            let (a, b) = (f.device_in(group), f.device_in(group));
            f.core.attach(a, Target::Ioas(f.ioas)).unwrap();
            (f, b)
        },
        |f, device| f.core.attach(*device, Target::Ioas(f.ioas)).map(|_| ()),
    );
}

#[test]
fn creating_a_domain() {
    scenario(mapped_and_bound, |f, device| {
        f.core
            .create_domain(*device, f.ioas, DomainOptions::default())
            .map(|_| ())
    });
}

#[test]
fn creating_a_blocked_domain() {
    scenario(mapped_and_bound, |f, device| {
        f.core.create_blocked(*device).map(|_| ())
    });
}

#[test]
fn replacing_the_space_of_a_group() {
    scenario(
        || {
            let mut f = Fixture::new();
            let group = f.group(SMMU);
            let (a, b) = (f.device_in(group), f.device_in(group));
            f.core.attach(a, Target::Ioas(f.ioas)).unwrap();
            f.core.attach(b, Target::Ioas(f.ioas)).unwrap();
            f.map(AT, 0, PAGE).unwrap();
            let other = f.core.create_ioas(VM).unwrap();
            let request = f.request(Placement::Fixed(iova(AT)), 9 * PAGE, 3 * PAGE);
            f.core.map(other, &request).unwrap();
            (f, (a, other))
        },
        |f, (device, other)| f.core.replace(*device, Target::Ioas(*other)).map(|_| ()),
    );
}

fn ringing() -> (Fixture, DeviceId) {
    let mut f = Fixture::new();
    let group = f.group(SMMU);
    let device = f
        .core
        .add_device(&DeviceDescription {
            msi: MsiRoute::Doorbell,
            ..Fixture::describe(group, &[30])
        })
        .unwrap();
    f.core.bind(device, VM).unwrap();
    f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    (f, device)
}

#[test]
fn mapping_a_doorbell() {
    scenario(ringing, |f, device| {
        f.core.map_doorbell(*device, pa(1 << 30)).map(|_| ())
    });
}

#[test]
fn replacing_under_doorbells() {
    scenario(
        || {
            let (mut f, device) = ringing();
            f.core.map_doorbell(device, pa(1 << 30)).unwrap();
            f.core.map_doorbell(device, pa(2 << 30)).unwrap();
            let other = f.core.create_ioas(VM).unwrap();
            (f, (device, other))
        },
        |f, (device, other)| f.core.replace(*device, Target::Ioas(*other)).map(|_| ()),
    );
}

#[test]
fn creating_and_attaching_an_access() {
    scenario(fresh, |f, ()| f.core.create_access(VM).map(|_| ()));
}

#[test]
fn pinning() {
    scenario(
        || {
            let mut f = Fixture::new();
            f.map(AT, 0, PAGE).unwrap();
            let access = f.access();
            (f, access)
        },
        |f, access| {
            let pin = f
                .core
                .pin(*access, of(AT, 8), Intent::Read, Hold::Revocable)?;
            f.core.unpin(pin)
        },
    );
}

#[test]
fn creating_a_guest_iommu() {
    scenario(
        || {
            let g = guest();
            (g.f, (g.device, g.parent))
        },
        |f, (device, parent)| f.core.create_viommu(*device, *parent).map(|_| ()),
    );
}

#[test]
fn numbering_a_device() {
    scenario(
        || {
            let g = guest();
            (g.f, (g.viommu, g.device))
        },
        |f, (viommu, device)| f.core.create_vdevice(*viommu, *device, 7).map(|_| ()),
    );
}

#[test]
fn creating_a_nested_domain() {
    scenario(
        || {
            let g = guest();
            (g.f, g.viommu)
        },
        |f, viommu| {
            f.core
                .create_nested(*viommu, NestedConfig::BYPASS)
                .map(|_| ())
        },
    );
}

#[test]
fn replacing_a_nested_domain() {
    scenario(
        || {
            let mut g = guest();
            g.f.core.create_vdevice(g.viommu, g.device, 7).unwrap();
            let bypass = g.f.core.create_nested(g.viommu, NestedConfig::BYPASS);
            let next = g.f.core.create_nested(g.viommu, TRANSLATE).unwrap();
            let bypass = Target::Domain(bypass.unwrap());
            g.f.core.attach(g.device, bypass).unwrap();
            (g.f, (g.device, next))
        },
        |f, (device, next)| f.core.replace(*device, Target::Domain(*next)).map(|_| ()),
    );
}

#[test]
fn creating_an_event_queue() {
    scenario(
        || {
            let g = guest();
            (g.f, g.viommu)
        },
        |f, viommu| {
            let listener = Listener::Viommu(*viommu);
            f.core
                .create_event_queue(listener, EventKind::Fault, 16)
                .map(|_| ())
        },
    );
}

fn with_bar() -> (Fixture, (DeviceId, MemoryId)) {
    let mut f = Fixture::new();
    let device = f.device(SMMU);
    let bar = f.core.add_bar(device, pa(1 << 40), 4 * PAGE, &[]).unwrap();
    f.core
        .set_peer_to_peer(f.ioas, PeerToPeer::Enabled)
        .unwrap();
    f.attached(SMMU);
    f.attached(OTHER_SMMU);
    (f, (device, bar))
}

#[test]
fn declaring_a_bar() {
    scenario(
        || {
            let mut f = Fixture::new();
            let device = f.device(SMMU);
            (f, device)
        },
        |f, device| f.core.add_bar(*device, pa(1 << 40), PAGE, &[]).map(|_| ()),
    );
}

#[test]
fn mapping_a_bar() {
    scenario(with_bar, |f, (_, bar)| {
        let request = Map {
            memory: *bar,
            ..f.request(Placement::Fixed(iova(AT)), 0, 4 * PAGE)
        };
        f.core.map(f.ioas, &request).map(|_| ())
    });
}

#[test]
fn restoring_a_bar_after_a_reset() {
    // Restoring takes table memory alone, so there is nothing of the core's to fail.
    for n in 0.. {
        let (mut f, (device, bar)) = with_bar();
        let request = Map {
            memory: bar,
            ..f.request(Placement::Fixed(iova(AT)), 0, 4 * PAGE)
        };
        f.core.map(f.ioas, &request).unwrap();
        f.core.begin_reset(device).unwrap();
        let before = state(&f);
        f.core.backend_mut().fail_allocations_after(Some(n));
        let result = f.core.end_reset(device);
        f.core.backend_mut().fail_allocations_after(None);
        check(&f.core);
        if result.is_ok() {
            assert!(n > 0);
            break;
        }
        assert_eq!(state(&f), before);
        f.core.end_reset(device).unwrap();
    }
}

fn windowed() -> (Fixture, crate::DomainId) {
    let mut f = Fixture::new();
    let device = f.device(TCE);
    let domain = f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    (f, domain)
}

#[test]
fn creating_a_window() {
    scenario(windowed, |f, domain| {
        f.core
            .create_window(*domain, types::PageSize::SIZE_64K, 1 << 32)
            .map(|_| ())
    });
}

#[test]
fn removing_a_window() {
    scenario(windowed, |f, domain| f.core.remove_window(*domain, iova(0)));
}

#[test]
fn resetting_windows() {
    scenario(
        || {
            let (mut f, domain) = windowed();
            f.core.remove_window(domain, iova(0)).unwrap();
            (f, domain)
        },
        |f, domain| f.core.reset_windows(*domain),
    );
}

#[test]
fn setting_the_default_space() {
    scenario(fresh, |f, ()| f.core.set_default_ioas(VM, f.ioas));
}

#[test]
fn what_takes_things_away_needs_no_memory() {
    let (mut f, device) = ringing();
    f.core.map_doorbell(device, pa(1 << 30)).unwrap();
    f.map(AT, 0, PAGE).unwrap();
    let access = f.access();
    let pin = f.pin(access, AT, 8).unwrap();
    let other = f.core.create_ioas(VM).unwrap();
    f.core.budget_mut().limit(Some(0));
    f.core.backend_mut().fail_allocations_after(Some(0));
    let waiting = f.begin(AT, PAGE);
    f.core.unpin(pin).unwrap();
    assert_eq!(f.core.poll_unmap(waiting), Ok(crate::Unmapping::Done(PAGE)));
    f.core.destroy_access(access).unwrap();
    f.core.detach(device).unwrap();
    f.core.unbind(device).unwrap();
    f.core.remove_device(device).unwrap();
    f.core.destroy_ioas(other).unwrap();
    f.core.destroy_ioas(f.ioas).unwrap();
    f.core.destroy_memory(f.ram).unwrap();
    check(&f.core);
}
