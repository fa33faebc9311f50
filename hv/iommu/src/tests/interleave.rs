//! Every interleaving of what several CPUs may do between two takings of the core's lock.
//!
//! A CPU is a list of steps; a step is one lock point. The scheduler runs every order of the
//! steps of all CPUs, each from a fresh world. After each step the invariants hold, and a pin that
//! is held still shows the memory it showed when it was taken.

use alloc::boxed::Box;

use super::*;
use crate::mock::check;
use crate::{AccessId, Pin, Revocation, Unmapping};

struct World {
    f: Fixture,
    device: DeviceId,
    other: IoasId,
    access: AccessId,
    pin: Option<(Pin, Vec<Extent>)>,
    waiting: [Option<Revocation>; 2],
    /// What happened, to see that the orders differ.
    pinned: bool,
    unmapped: bool,
    refused: bool,
    destroyed: bool,
}

fn world() -> World {
    let mut f = Fixture::new();
    let device = f.attached(SMMU);
    f.map(AT, 0, PAGE).unwrap();
    f.map(AT + PAGE, PAGE, PAGE).unwrap();
    let other = f.core.create_ioas(VM).unwrap();
    let request = f.request(Placement::Fixed(iova(AT)), 9 * PAGE, PAGE);
    f.core.map(other, &request).unwrap();
    let access = f.access();
    World {
        f,
        device,
        other,
        access,
        pin: None,
        waiting: [None, None],
        pinned: false,
        unmapped: false,
        refused: false,
        destroyed: false,
    }
}

type Step = Box<dyn Fn(&mut World)>;
type Cpu = Vec<Step>;

impl World {
    fn holds(&mut self) {
        check(&self.f.core);
        if let Some((pin, extents)) = &self.pin {
            let mut now = Vec::new();
            self.f.core.pinned(pin, |extent| now.push(extent)).unwrap();
            assert_eq!(&now, extents, "pinned memory moved");
            assert!(self.f.core.memory(self.f.ram).is_ok());
        }
        // A device reaches the first space, the second, or nothing; both never, and never more.
        let seen = self.f.reads(self.device, AT);
        let shown = [Some(RAM), Some(RAM + 3 * PAGE), Some(RAM + 9 * PAGE), None];
        assert!(shown.contains(&seen), "{seen:x?}");
    }

    fn ended(&mut self, cpu: usize, result: Result<Unmapping, Error>) {
        match result {
            Ok(Unmapping::Done(bytes)) => self.unmapped |= bytes > 0,
            Ok(Unmapping::Waiting(again)) => self.waiting[cpu] = Some(again),
            Err(_) => self.refused = true,
        }
    }
}

/// Unmaps everything with patience for two polls, then gives up.
fn unmapper(cpu: usize) -> Cpu {
    let poll = move |w: &mut World| {
        if let Some(waiting) = w.waiting[cpu].take() {
            let result = w.f.core.poll_unmap(waiting);
            w.ended(cpu, result);
        }
    };
    alloc::vec![
        Box::new(move |w: &mut World| {
            let result = w.f.core.begin_unmap(w.f.ioas, of(AT, 2 * PAGE));
            w.ended(cpu, result);
        }),
        Box::new(poll),
        Box::new(poll),
        Box::new(move |w: &mut World| {
            if let Some(waiting) = w.waiting[cpu].take() {
                w.f.core.abort_unmap(waiting).unwrap();
            }
        }),
    ]
}

/// Pins, uses the memory without the lock, gives it back.
fn accessor() -> Cpu {
    alloc::vec![
        Box::new(|w: &mut World| {
            if let Ok(pin) = w.f.pin(w.access, AT + PAGE - 8, 16) {
                let mut extents = Vec::new();
                w.f.core
                    .pinned(&pin, |extent| extents.push(extent))
                    .unwrap();
                w.pin = Some((pin, extents));
                w.pinned = true;
            }
        }),
        // Here the copy happens; `holds` looks whether the memory is still there.
        Box::new(|_: &mut World| ()),
        Box::new(|w: &mut World| {
            if let Some((pin, _)) = w.pin.take() {
                w.f.core.unpin(pin).unwrap();
            }
        }),
    ]
}

/// Moves the device to the other space and back.
fn replacer() -> Cpu {
    alloc::vec![
        Box::new(|w: &mut World| {
            let _ = w.f.core.replace(w.device, Target::Ioas(w.other));
        }),
        Box::new(|w: &mut World| {
            let _ = w.f.core.replace(w.device, Target::Ioas(w.f.ioas));
        }),
    ]
}

/// Takes everything apart, as far as it is let.
fn destroyer() -> Cpu {
    alloc::vec![
        Box::new(|w: &mut World| {
            let _ = w.f.core.detach(w.device);
        }),
        Box::new(|w: &mut World| {
            let _ = w.f.core.detach_access(w.access);
        }),
        Box::new(|w: &mut World| {
            w.destroyed |= w.f.core.destroy_ioas(w.f.ioas).is_ok();
        }),
        Box::new(|w: &mut World| {
            // The other space still shows the memory.
            assert!(w.f.core.destroy_memory(w.f.ram).is_err());
        }),
    ]
}

/// Maps into the hole that an unmapping leaves, at a fixed and at a chosen place.
fn mapper() -> Cpu {
    alloc::vec![
        Box::new(|w: &mut World| {
            let _ = w.f.map(AT, 0, PAGE);
        }),
        Box::new(|w: &mut World| {
            let _ = w.f.map_auto(3 * PAGE, PAGE);
        }),
    ]
}

/// Runs every order and returns how many there are.
fn explore(cpus: &dyn Fn() -> Vec<Cpu>, end: &mut dyn FnMut(&World)) -> usize {
    let lens: Vec<usize> = cpus().iter().map(Vec::len).collect();
    let total: usize = lens.iter().sum();
    // The order at hand, as CPU numbers; orders follow each other as permutations do.
    let mut order: Vec<usize> = lens
        .iter()
        .enumerate()
        .flat_map(|(cpu, len)| core::iter::repeat_n(cpu, *len))
        .collect();
    assert_eq!(order.len(), total);
    let cpus = cpus();
    let mut count = 0;
    loop {
        let mut w = world();
        let mut at = alloc::vec![0; lens.len()];
        for cpu in &order {
            cpus[*cpu][at[*cpu]](&mut w);
            at[*cpu] += 1;
            w.holds();
        }
        end(&w);
        count += 1;
        // The next permutation.
        let Some(pivot) = order.windows(2).rposition(|pair| pair[0] < pair[1]) else {
            return count;
        };
        let swap = order.iter().rposition(|cpu| *cpu > order[pivot]).unwrap();
        order.swap(pivot, swap);
        order[pivot + 1..].reverse();
    }
}

/// The number of orders of CPUs with these numbers of steps.
fn orders(steps: &[usize]) -> usize {
    let factorial = |n: usize| (1..=n).product::<usize>();
    factorial(steps.iter().sum()) / steps.iter().map(|n| factorial(*n)).product::<usize>()
}

#[test]
fn unmap_access_and_replace_in_every_order() {
    let mut outcomes = std::collections::BTreeSet::new();
    let count = explore(
        &|| alloc::vec![unmapper(0), accessor(), replacer()],
        &mut |w| {
            assert!(w.waiting[0].is_none() && w.pin.is_none());
            outcomes.insert((w.pinned, w.unmapped));
        },
    );
    assert_eq!(count, orders(&[4, 3, 2]));
    // The accessor loses, the unmapper loses, both get what they want.
    let all = [(false, true), (true, false), (true, true)];
    assert!(outcomes.into_iter().eq(all));
}

#[test]
fn unmap_access_and_destroy_in_every_order() {
    let mut outcomes = std::collections::BTreeSet::new();
    let count = explore(
        &|| alloc::vec![unmapper(0), accessor(), destroyer()],
        &mut |w| {
            assert!(w.pin.is_none());
            outcomes.insert((w.pinned, w.destroyed));
        },
    );
    assert_eq!(count, orders(&[4, 3, 4]));
    assert!(outcomes.contains(&(false, true)));
    assert!(outcomes.contains(&(true, true)));
    assert!(outcomes.contains(&(true, false)));
}

#[test]
fn access_replace_and_destroy_in_every_order() {
    let count = explore(
        &|| alloc::vec![accessor(), replacer(), destroyer()],
        &mut |w| assert!(!w.unmapped),
    );
    assert_eq!(count, orders(&[3, 2, 4]));
}

#[test]
fn unmap_replace_and_destroy_in_every_order() {
    let count = explore(
        &|| alloc::vec![unmapper(0), replacer(), destroyer()],
        &mut |w| assert!(w.waiting[0].is_none()),
    );
    assert_eq!(count, orders(&[4, 2, 4]));
}

#[test]
fn two_unmappings_and_an_access_in_every_order() {
    let mut refused = 0;
    let count = explore(
        &|| alloc::vec![unmapper(0), unmapper(1), accessor()],
        &mut |w| {
            refused += usize::from(w.refused);
            let space = w.f.core.ioas(w.f.ioas).unwrap();
            assert_eq!(space.is_empty(), w.unmapped);
        },
    );
    assert_eq!(count, orders(&[4, 4, 3]));
    assert!(refused > 0);
}

#[test]
fn unmap_access_and_map_in_every_order() {
    let count = explore(
        &|| alloc::vec![unmapper(0), accessor(), mapper()],
        &mut |w| {
            // What was mapped after the unmapping is still there.
            let space = w.f.core.ioas(w.f.ioas).unwrap();
            assert!(!space.is_empty() || w.unmapped);
        },
    );
    assert_eq!(count, orders(&[4, 3, 2]));
}

#[test]
fn the_scheduler_finds_a_rule_that_is_broken() {
    // The negative control: a step that gives memory up without asking is caught in some order.
    let broken: Cpu = alloc::vec![Box::new(|w: &mut World| {
        let table = w.f.core.backend().table_of(w.f.endpoint(w.device));
        if let (Some(table), Some(_)) = (table, &w.pin) {
            crate::Backend::unmap(w.f.core.backend_mut(), table, of(AT, PAGE));
        }
    })];
    let broken = std::rc::Rc::new(broken);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let step = broken.clone();
        explore(
            &move || {
                let step = step.clone();
                let cpu: Cpu = alloc::vec![Box::new(move |w: &mut World| step[0](w))];
                alloc::vec![accessor(), cpu]
            },
            &mut |_| (),
        )
    }));
    std::panic::set_hook(hook);
    assert!(caught.is_err());
}
