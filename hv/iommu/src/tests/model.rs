//! Random sequences against a naive model: a map of intervals. After each step the tables are
//! walked: what every device can reach equals the model.

use alloc::collections::BTreeMap;
use alloc::vec;

use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::test_runner::Config;

use super::*;
use crate::mock::{APERTURE_LAST, Leaves, SMALL_PAGE, check};
use crate::{AccessId, Hold, Intent, Pin};

/// Where the naive model says an address leads.
#[derive(Clone, Copy, Debug)]
struct Interval {
    last: u64,
    offset: u64,
    permissions: Permissions,
}

#[derive(Clone, Debug, Default)]
struct Model {
    /// For each space, intervals by their first address.
    spaces: [BTreeMap<u64, Interval>; 2],
    /// For each device, its space.
    devices: [Option<usize>; 4],
    pins: Vec<(usize, u64, u64)>,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Map {
        space: usize,
        at: u64,
        offset: u64,
        len: u64,
        permissions: Permissions,
    },
    Auto {
        space: usize,
        offset: u64,
        len: u64,
    },
    Unmap {
        space: usize,
        at: u64,
        len: u64,
    },
    Everything {
        space: usize,
    },
    Copy {
        from: usize,
        at: u64,
        len: u64,
        to: usize,
        target: u64,
    },
    Attach {
        device: usize,
        space: usize,
    },
    Replace {
        device: usize,
        space: usize,
    },
    Detach {
        device: usize,
    },
    Pin {
        space: usize,
        at: u64,
        len: u64,
    },
    Unpin {
        at: usize,
    },
    Dma {
        device: usize,
        at: u64,
    },
    FailTables {
        after: u64,
    },
}

/// Places and lengths are in small pages.
fn op() -> impl Strategy<Value = Op> {
    let permissions = prop_oneof![
        Just(Permissions::Read),
        Just(Permissions::Write),
        Just(Permissions::ReadWrite)
    ];
    let (at, len) = (|| 0..48_u64, || 1..12_u64);
    prop_oneof![
        6 => (0..2_usize, at(), at(), len(), permissions).prop_map(
            |(space, at, offset, len, permissions)| Op::Map { space, at, offset, len, permissions }
        ),
        2 => (0..2_usize, at(), len()).prop_map(|(space, offset, len)| Op::Auto { space, offset, len }),
        4 => (0..2_usize, at(), 1..32_u64).prop_map(|(space, at, len)| Op::Unmap { space, at, len }),
        1 => (0..2_usize).prop_map(|space| Op::Everything { space }),
        2 => (0..2_usize, at(), len(), 0..2_usize, at()).prop_map(
            |(from, at, len, to, target)| Op::Copy { from, at, len, to, target }
        ),
        2 => (0..4_usize, 0..2_usize).prop_map(|(device, space)| Op::Attach { device, space }),
        2 => (0..4_usize, 0..2_usize).prop_map(|(device, space)| Op::Replace { device, space }),
        1 => (0..4_usize).prop_map(|device| Op::Detach { device }),
        2 => (0..2_usize, at(), len()).prop_map(|(space, at, len)| Op::Pin { space, at, len }),
        2 => any::<usize>().prop_map(|at| Op::Unpin { at }),
        4 => (0..4_usize, at()).prop_map(|(device, at)| Op::Dma { device, at }),
        1 => (0..8_u64).prop_map(|after| Op::FailTables { after }),
    ]
}

impl Model {
    fn overlap(&self, space: usize, at: u64, last: u64) -> bool {
        let before = self.spaces[space].range(..=last).next_back();
        before.is_some_and(|(_, interval)| interval.last >= at)
    }

    fn pinned(&self, space: usize, at: u64, last: u64) -> bool {
        let mut pins = self.pins.iter();
        pins.any(|(of, start, end)| *of == space && *start <= last && at <= *end)
    }

    /// The whole intervals in a range; `None` when one is cut.
    fn whole(&self, space: usize, at: u64, last: u64) -> Option<Vec<u64>> {
        let intervals = self.spaces[space].iter();
        let touched: Vec<_> = intervals
            .filter(|(start, interval)| **start <= last && interval.last >= at)
            .collect();
        let whole = touched
            .iter()
            .all(|(start, interval)| **start >= at && interval.last <= last);
        whole.then(|| touched.into_iter().map(|(start, _)| *start).collect())
    }

    fn find(&self, space: usize, at: u64) -> Option<(u64, Interval)> {
        let (start, interval) = self.spaces[space].range(..=at).next_back()?;
        (interval.last >= at).then_some((*start, *interval))
    }

    /// What a space shows between two addresses, if there is no hole.
    fn pieces(&self, space: usize, at: u64, last: u64) -> Option<Vec<(u64, u64, Interval)>> {
        let mut pieces = Vec::new();
        let mut next = at;
        while next <= last {
            let (start, interval) = self.find(space, next)?;
            let end = interval.last.min(last);
            let offset = interval.offset + (next - start);
            pieces.push((next, end, Interval { offset, ..interval }));
            next = end + 1;
        }
        Some(pieces)
    }
}

struct Run {
    f: Fixture,
    spaces: [IoasId; 2],
    devices: Vec<DeviceId>,
    access: [AccessId; 2],
    pins: Vec<Pin>,
    model: Model,
}

fn start(leaves: Leaves) -> Run {
    let mut f = Fixture::with_leaves(leaves);
    let spaces = [f.ioas, f.core.create_ioas(VM).unwrap()];
    let group = f.group(SMMU);
    let devices = alloc::vec![
        f.device_in(group),
        f.device_in(group),
        f.device(OTHER_SMMU),
        f.device(SMMU)
    ];
    let access = spaces.map(|space| {
        let access = f.core.create_access(VM).unwrap();
        f.core.attach_access(access, space).unwrap();
        access
    });
    Run {
        f,
        spaces,
        devices,
        access,
        pins: Vec::new(),
        model: Model::default(),
    }
}

fn place(page: u64) -> u64 {
    AT + page * SMALL_PAGE
}

fn last(at: u64, pages: u64) -> u64 {
    place(at + pages) - 1
}

impl Run {
    /// The space that a group's first two devices are held to.
    fn group_space(&self, device: usize) -> Option<usize> {
        let members: &[usize] = if device < 2 { &[0, 1] } else { &[device][..0] };
        let mut others = members.iter().filter(|member| **member != device);
        others.find_map(|member| self.model.devices[*member])
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Map {
                space,
                at,
                offset,
                len,
                permissions,
            } => {
                let request = Map {
                    permissions,
                    ..self.f.request(
                        Placement::Fixed(iova(place(at))),
                        offset * SMALL_PAGE,
                        len * SMALL_PAGE,
                    )
                };
                let result = self.f.core.map(self.spaces[space], &request);
                if self.model.overlap(space, place(at), last(at, len)) {
                    assert!(matches!(result, Err(Error::Overlaps { .. })));
                } else if self.fits(result.map(|_| ())) {
                    self.insert(space, place(at), last(at, len), offset, permissions);
                }
            }
            Op::Auto { space, offset, len } => {
                let request =
                    self.f
                        .request(Placement::Auto, offset * SMALL_PAGE, len * SMALL_PAGE);
                let result = self.f.core.map(self.spaces[space], &request);
                if self.fits(result.map(|_| ())) {
                    let span = result.unwrap();
                    let (first, end) = (span.start().bits(), span.last().bits());
                    assert!(first > 0 && end < u64::MAX - PAGE);
                    assert!(!self.model.overlap(space, first, end));
                    if self.model.devices.contains(&Some(space)) {
                        assert!(first >= AT && end <= APERTURE_LAST);
                    }
                    self.insert(space, first, end, offset, Permissions::ReadWrite);
                }
            }
            Op::Unmap { space, at, len } => self.unmap(space, place(at), last(at, len)),
            Op::Everything { space } => self.unmap(space, 0, u64::MAX),
            Op::Copy {
                from,
                at,
                len,
                to,
                target,
            } => self.copy(from, at, len, to, target),
            Op::Attach { device, space } => {
                let target = Target::Ioas(self.spaces[space]);
                let result = self.f.core.attach(self.devices[device], target);
                let group = self.group_space(device);
                if self.model.devices[device].is_some() {
                    assert_eq!(refused(result), Error::AlreadyAttached);
                } else if group.is_some_and(|held| held != space) {
                    assert!(matches!(result, Err(Error::GroupElsewhere(_))));
                } else if !self.suits(space) {
                    assert!(result.is_err());
                } else if self.fits(result.map(|_| ())) {
                    self.model.devices[device] = Some(space);
                }
            }
            Op::Replace { device, space } => {
                let target = Target::Ioas(self.spaces[space]);
                let result = self.f.core.replace(self.devices[device], target);
                match self.model.devices[device] {
                    None => assert_eq!(refused(result), Error::NotAttached),
                    Some(now) if now == space => assert!(result.is_ok()),
                    Some(_) if !self.suits(space) => assert!(result.is_err()),
                    Some(_) => {
                        let held = if device < 2 { 0..2 } else { device..device + 1 };
                        let moved = self.fits(result.map(|_| ()));
                        for member in held.filter(|_| moved) {
                            if self.model.devices[member].is_some() {
                                self.model.devices[member] = Some(space);
                            }
                        }
                    }
                }
            }
            Op::Detach { device } => {
                let result = self.f.core.detach(self.devices[device]);
                assert_eq!(result.is_ok(), self.model.devices[device].is_some());
                self.model.devices[device] = None;
            }
            Op::Pin { space, at, len } => {
                let span = upto(place(at), last(at, len));
                let pin = self
                    .f
                    .core
                    .pin(self.access[space], span, Intent::Write, Hold::Revocable);
                let pieces = self.model.pieces(space, place(at), last(at, len));
                let may = pieces.is_some_and(|pieces| {
                    pieces.iter().all(|(_, _, i)| i.permissions.allows_write())
                });
                assert_eq!(pin.is_ok(), may);
                if let Ok(pin) = pin {
                    self.pins.push(pin);
                    self.model.pins.push((space, place(at), last(at, len)));
                }
            }
            Op::Unpin { at } => {
                if !self.pins.is_empty() {
                    let at = at % self.pins.len();
                    self.f.core.unpin(self.pins.remove(at)).unwrap();
                    self.model.pins.remove(at);
                }
            }
            Op::Dma { device, at } => {
                // Fills the translation cache; what it gives is compared below.
                let _ = self.f.dma(self.devices[device], place(at), Dma::Write);
            }
            Op::FailTables { after } => {
                self.f
                    .core
                    .backend_mut()
                    .fail_allocations_after(Some(after));
            }
        }
    }

    /// Whether a request that the model has nothing against went through; if not, tables failed.
    fn fits(&mut self, result: Result<(), Error>) -> bool {
        if let Err(error) = result {
            assert!(error.is_out_of_memory(), "{error:?}");
            self.f.core.backend_mut().fail_allocations_after(None);
            return false;
        }
        true
    }

    fn suits(&self, space: usize) -> bool {
        let intervals = self.model.spaces[space].iter();
        intervals
            .into_iter()
            .all(|(start, interval)| *start >= AT && interval.last <= APERTURE_LAST)
    }

    fn insert(&mut self, space: usize, at: u64, last: u64, offset: u64, permissions: Permissions) {
        let interval = Interval {
            last,
            offset: offset * SMALL_PAGE,
            permissions,
        };
        self.model.spaces[space].insert(at, interval);
    }

    fn unmap(&mut self, space: usize, at: u64, last: u64) {
        let result = self.f.core.unmap(self.spaces[space], upto(at, last));
        let everything = at == 0;
        match self.model.whole(space, at, last) {
            None => assert!(matches!(result, Err(Error::CutsArea { .. }))),
            Some(found) if found.is_empty() && !everything => {
                assert!(matches!(result, Err(Error::NotMapped { .. })));
            }
            Some(_) if self.model.pinned(space, at, last) => {
                assert!(matches!(result, Err(Error::Pinned { .. })));
            }
            Some(found) => {
                let bytes: u64 = found
                    .iter()
                    .map(|start| self.model.spaces[space][start].last - start + 1)
                    .sum();
                assert_eq!(result, Ok(bytes));
                for start in found {
                    self.model.spaces[space].remove(&start);
                }
            }
        }
    }

    fn copy(&mut self, from: usize, at: u64, len: u64, to: usize, target: u64) {
        let request = Copy {
            from: self.spaces[from],
            span: upto(place(at), last(at, len)),
            to: self.spaces[to],
            placement: Placement::Fixed(iova(place(target))),
            permissions: Permissions::Read,
        };
        let result = self.f.core.copy(&request).map(|_| ());
        let pieces = self.model.pieces(from, place(at), last(at, len));
        let Some(pieces) = pieces else {
            assert!(result.is_err());
            return;
        };
        let readable = pieces.iter().all(|(_, _, i)| i.permissions.allows_read());
        if !readable || self.model.overlap(to, place(target), last(target, len)) {
            assert!(result.is_err());
        } else if self.fits(result) {
            let shift = |address: u64| address - place(at) + place(target);
            for (start, end, interval) in pieces {
                let piece = Interval {
                    last: shift(end),
                    permissions: Permissions::Read,
                    ..interval
                };
                self.model.spaces[to].insert(shift(start), piece);
            }
        }
    }

    /// What every device can reach equals the model: by walking the tables, and by DMA through
    /// whatever is cached.
    fn compare(&mut self) {
        check(&self.f.core);
        for index in 0..self.devices.len() {
            let device = self.devices[index];
            let reached = self.model.devices[index].or(self.group_space(index));
            let mut expected = Vec::new();
            let mut walked = Vec::new();
            if let Some(space) = reached {
                for (start, interval) in &self.model.spaces[space] {
                    for page in (*start..=interval.last).step_by(2048) {
                        let pa = RAM + interval.offset + (page - start);
                        expected.push((page, pa, interval.permissions));
                    }
                }
                for (at, leaf) in self.f.walk(device) {
                    for page in (0..leaf.bytes).step_by(2048) {
                        walked.push((at + page, leaf.pa.bits() + page, leaf.permissions));
                    }
                }
            } else {
                let endpoint = self.f.endpoint(device);
                assert_eq!(
                    self.f.core.backend().binding(endpoint),
                    crate::Binding::Abort
                );
            }
            assert_eq!(walked, expected);
            for page in (0..64).map(place) {
                let found = reached.and_then(|space| self.model.find(space, page));
                for access in [Dma::Read, Dma::Write] {
                    let expected = found
                        .filter(|(_, interval)| access.allowed_by(interval.permissions))
                        .map(|(start, interval)| RAM + interval.offset + (page - start));
                    assert_eq!(self.f.dma(device, page, access).ok(), expected);
                }
            }
        }
    }
}

fn run(leaves: Leaves, ops: &[Op]) {
    let mut run = start(leaves);
    for op in ops {
        run.step(*op);
        run.compare();
    }
}

proptest! {
    #![proptest_config(Config { cases: 96, failure_persistence: None, ..Config::default() })]

    #[test]
    fn what_devices_reach_equals_the_model(ops in proptest::collection::vec(op(), 1..80)) {
        run(Leaves::Small, &ops);
    }

    #[test]
    fn what_devices_reach_equals_the_model_with_huge_pages(
        ops in proptest::collection::vec(op(), 1..40)
    ) {
        run(Leaves::SmallAndHuge, &ops);
    }
}
