//! The life of a VM's objects with the n-th allocation failing, for every n: the step that failed
//! has changed nothing, is done again, and everything after it is as if nothing had been.
//! And the scenarios of [`fail_nth`](super::fail_nth) for what lists of areas and grids need.

use super::fail_nth::{scenario, state};
use super::nested::TRANSLATE;
use super::*;
use crate::mock::{DYNAMIC_WINDOW_BASE, check};
use crate::{
    AccessId, DomainId, DomainOptions, EventKind, Hold, Intent, Listener, NestedConfig, PeerToPeer,
    Pin, VdeviceId, ViommuId,
};

/// What the steps have made so far.
struct Life {
    f: Fixture,
    guest: Option<DeviceId>,
    ringing: Option<DeviceId>,
    pe: Option<DeviceId>,
    space: Option<IoasId>,
    other: Option<IoasId>,
    ram: Option<MemoryId>,
    bar: Option<MemoryId>,
    parent: Option<DomainId>,
    viommu: Option<ViommuId>,
    vdevice: Option<VdeviceId>,
    nested: [Option<DomainId>; 2],
    windowed: Option<DomainId>,
    access: Option<AccessId>,
    pins: Vec<Pin>,
}

impl Life {
    fn new() -> Self {
        let mut f = Fixture::new();
        let guest = f.nestable(SMMU);
        let group = f.group(SMMU);
        let ringing = DeviceDescription {
            msi: MsiRoute::Doorbell,
            ..Fixture::describe(group, &[30])
        };
        let ringing = f.core.add_device(&ringing).unwrap();
        f.core.bind(ringing, VM).unwrap();
        let pe = f.device(TCE);
        Self {
            f,
            guest: Some(guest),
            ringing: Some(ringing),
            pe: Some(pe),
            space: None,
            other: None,
            ram: None,
            bar: None,
            parent: None,
            viommu: None,
            vdevice: None,
            nested: [None; 2],
            windowed: None,
            access: None,
            pins: Vec::new(),
        }
    }

    fn map(&mut self, space: Option<IoasId>, at: Placement, offset: u64) -> Result<(), Error> {
        let request = Map {
            memory: self.ram.unwrap(),
            ..self.f.request(at, offset, PAGE)
        };
        self.f.core.map(space.unwrap(), &request).map(|_| ())
    }
}

fn keep<T>(slot: &mut Option<T>, made: Result<T, Error>) -> Result<(), Error> {
    *slot = Some(made?);
    Ok(())
}

type Step = fn(&mut Life) -> Result<(), Error>;

const STEPS: [Step; 30] = [
    |l| keep(&mut l.space, l.f.core.create_ioas(VM)),
    |l| keep(&mut l.other, l.f.core.create_ioas(VM)),
    |l| {
        let pieces = [extent(RAM, 64 * PAGE), extent(RAM + (1 << 30), 64 * PAGE)];
        keep(&mut l.ram, l.f.core.add_ram(VM, &pieces))
    },
    |l| {
        let guest = l.guest.unwrap();
        let bar = l.f.core.add_bar(guest, pa(1 << 40), 4 * PAGE, &[]);
        keep(&mut l.bar, bar)
    },
    |l| l.map(l.space, Placement::Fixed(iova(AT)), 0),
    |l| {
        let options = DomainOptions {
            nest_parent: true,
            dirty_tracking: true,
        };
        let domain =
            l.f.core
                .create_domain(l.guest.unwrap(), l.space.unwrap(), options);
        keep(&mut l.parent, domain)
    },
    |l| l.map(l.space, Placement::Auto, 70 * PAGE),
    |l| {
        let viommu = l.f.core.create_viommu(l.guest.unwrap(), l.parent.unwrap());
        keep(&mut l.viommu, viommu)
    },
    |l| {
        let vdevice =
            l.f.core
                .create_vdevice(l.viommu.unwrap(), l.guest.unwrap(), 9);
        keep(&mut l.vdevice, vdevice)
    },
    |l| {
        let nested =
            l.f.core
                .create_nested(l.viommu.unwrap(), NestedConfig::BYPASS);
        keep(&mut l.nested[0], nested)
    },
    |l| {
        let nested = l.f.core.create_nested(l.viommu.unwrap(), TRANSLATE);
        keep(&mut l.nested[1], nested)
    },
    |l| {
        let to = Target::Domain(l.nested[0].unwrap());
        l.f.core.attach(l.guest.unwrap(), to).map(|_| ())
    },
    |l| {
        let to = Target::Domain(l.nested[1].unwrap());
        l.f.core.replace(l.guest.unwrap(), to).map(|_| ())
    },
    |l| {
        let listener = Listener::Viommu(l.viommu.unwrap());
        let queue = l.f.core.create_event_queue(listener, EventKind::Fault, 8);
        queue.map(|_| ())
    },
    |l| {
        let to = Target::Ioas(l.space.unwrap());
        l.f.core.attach(l.ringing.unwrap(), to).map(|_| ())
    },
    |l| {
        let rung = l.f.core.map_doorbell(l.ringing.unwrap(), pa(1 << 30));
        rung.map(|_| ())
    },
    |l| {
        let page = iova(AT + 4096 * PAGE);
        let rung =
            l.f.core
                .map_doorbell_at(l.ringing.unwrap(), page, pa(2 << 30));
        rung.map(|_| ())
    },
    // Into three tables: the nest parent's, that of the device with doorbells, none of the PE.
    |l| l.map(l.space, Placement::Fixed(iova(AT + 8 * PAGE)), PAGE),
    |l| {
        let copy = Copy {
            from: l.space.unwrap(),
            span: of(AT + 8 * PAGE, PAGE),
            to: l.other.unwrap(),
            placement: Placement::Fixed(iova(AT)),
            permissions: Permissions::Read,
        };
        l.f.core.copy(&copy).map(|_| ())
    },
    |l| {
        let to = Target::Ioas(l.other.unwrap());
        l.f.core.replace(l.ringing.unwrap(), to).map(|_| ())
    },
    |l| keep(&mut l.access, l.f.core.create_access(VM)),
    |l| l.f.core.attach_access(l.access.unwrap(), l.space.unwrap()),
    |l| {
        let span = of(AT, 8);
        let pin =
            l.f.core
                .pin(l.access.unwrap(), span, Intent::Write, Hold::Hardware);
        l.pins.push(pin?);
        Ok(())
    },
    |l| l.f.core.allow(l.space.unwrap(), &[of(AT, 64 * PAGE)]),
    |l| l.f.core.set_default_ioas(VM, l.other.unwrap()),
    |l| {
        let options = DomainOptions::default();
        let domain = l.f.core.create_domain(l.pe.unwrap(), l.f.ioas, options);
        keep(&mut l.windowed, domain)
    },
    |l| {
        let page = types::PageSize::SIZE_4K;
        let window = l.f.core.create_window(l.windowed.unwrap(), page, 1 << 32);
        window.map(|_| ())
    },
    |l| {
        let to = Target::Domain(l.windowed.unwrap());
        l.f.core.attach(l.pe.unwrap(), to).map(|_| ())
    },
    |l| {
        let at = Placement::Fixed(iova(DYNAMIC_WINDOW_BASE));
        let request = l.f.request(at, 0, 4 * PAGE);
        l.f.core.map(l.f.ioas, &request).map(|_| ())
    },
    |l| {
        let at = iova(DYNAMIC_WINDOW_BASE + PAGE);
        l.f.core.split(l.f.ioas, at)
    },
];

/// What all steps lead to, when nothing fails.
fn whole() -> Life {
    let mut life = Life::new();
    for step in STEPS {
        step(&mut life).unwrap();
    }
    life
}

fn live(fail: impl Fn(&mut Fixture, Option<u64>)) -> u64 {
    let end = whole();
    let reached = end.f.walk(end.guest.unwrap());
    for n in 0.. {
        assert!(n < 10_000, "it never succeeds");
        let mut life = Life::new();
        fail(&mut life.f, Some(n));
        let mut failed = false;
        for step in STEPS {
            let before = state(&life.f);
            match step(&mut life) {
                Ok(()) => {}
                Err(error) => {
                    assert!(error.is_out_of_memory() && !failed, "{error:?}");
                    fail(&mut life.f, None);
                    assert_eq!(state(&life.f), before, "the failure at {n} left something");
                    step(&mut life).unwrap();
                    failed = true;
                }
            }
            check(&life.f.core);
        }
        assert_eq!(life.f.census(), end.f.census());
        assert_eq!(life.f.walk(life.guest.unwrap()), reached);
        if !failed {
            return n;
        }
    }
    unreachable!()
}

#[test]
fn a_life_in_which_the_core_once_gets_no_memory() {
    let failures = live(|f, n| f.core.budget_mut().limit(n));
    assert!(failures >= STEPS.len() as u64, "{failures}");
}

#[test]
fn a_life_in_which_the_tables_once_get_no_memory() {
    let failures = live(|f, n| f.core.backend_mut().fail_allocations_after(n));
    assert!(failures > 10, "{failures}");
}

/// A space of pages, in a row with a hole, which are kept as a grid.
fn pages() -> (Fixture, ()) {
    let mut f = Fixture::new();
    for at in (0..400).filter(|at| *at != 200) {
        f.map(AT + at * PAGE, at * PAGE, PAGE).unwrap();
    }
    (f, ())
}

#[test]
fn cutting_a_grid() {
    // What comes into the hole is of another size, so the pages on both sides part.
    scenario(pages, |f, ()| {
        f.map(AT + 200 * PAGE, 9 * PAGE, PAGE / 2).map(|_| ())
    });
}

#[test]
fn cutting_a_page_of_a_grid() {
    scenario(pages, |f, ()| {
        f.core.split(f.ioas, iova(AT + 100 * PAGE + 2048))
    });
}

#[test]
fn exchanging_a_page_of_a_grid() {
    scenario(
        || {
            let mut f = Fixture::new();
            let pe = f.device(TCE);
            f.core.attach(pe, Target::Ioas(f.ioas)).unwrap();
            for at in 0..400 {
                f.map(at * PAGE, at * PAGE, PAGE).unwrap();
            }
            (f, ())
        },
        |f, ()| {
            let request = Map {
                permissions: Permissions::Read,
                ..f.request(Placement::Fixed(iova(200 * PAGE)), 0, PAGE)
            };
            f.core.exchange(f.ioas, &request)
        },
    );
}

#[test]
fn mapping_at_a_chosen_place() {
    scenario(pages, |f, ()| f.map_auto(0, 16 * PAGE).map(|_| ()));
}

#[test]
fn copying_to_a_chosen_place() {
    scenario(pages, |f, ()| {
        let request = Copy {
            from: f.ioas,
            span: of(AT, 5 * PAGE),
            to: f.ioas,
            placement: Placement::Auto,
            permissions: Permissions::Read,
        };
        f.core.copy(&request).map(|_| ())
    });
}

#[test]
fn letting_bars_in_needs_no_memory() {
    let mut f = Fixture::new();
    f.core.budget_mut().limit(Some(0));
    f.core
        .set_peer_to_peer(f.ioas, PeerToPeer::Enabled)
        .unwrap();
}
