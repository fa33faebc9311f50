use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::ControlFlow;

use proptest::prelude::{any, proptest};
use proptest::test_runner::Config;

use super::grid::SLOTS;
use super::{AreaTree, Inner, LEAF, Leaf, Node};
use crate::area::{Area, Flags, Permissions};
use crate::budget::{Budget, OutOfMemory};

fn area(start: u64, last: u64) -> Area {
    Area {
        start,
        last,
        offset: start,
        memory: 0,
        flags: Flags::new(Permissions::Read),
    }
}

fn put(tree: &mut AreaTree, start: u64, last: u64) {
    tree.reserve(&mut Budget::unlimited()).unwrap();
    tree.insert(area(start, last));
}

fn check(tree: &mut AreaTree) {
    fn below(tree: &AreaTree, node: u32, height: usize, is_root: bool) -> (usize, super::Summary) {
        if height == 0 {
            let leaf = tree.leaves.get(node);
            assert!(!leaf.is_empty());
            return (leaf.len(), leaf.summary());
        }
        let inner = tree.inners.get(node);
        assert!(inner.len >= if is_root { 2 } else { 1 });
        let mut count = 0;
        for at in 0..inner.len {
            let (n, summary) = below(tree, inner.children[at], height - 1, false);
            assert_eq!(inner.child(at), summary);
            count += n;
        }
        (count, inner.summary())
    }
    tree.close();
    if tree.len > 0 {
        let (len, summary) = below(tree, tree.root, tree.height, true);
        assert_eq!((len, summary), (tree.len, tree.summary));
    } else {
        assert_eq!(tree.leaves.free.len(), tree.leaves.nodes());
        assert_eq!(tree.inners.free.len(), tree.inners.nodes());
    }
}

fn all(tree: &AreaTree) -> Vec<(u64, u64)> {
    let mut list = Vec::new();
    tree.visit(0, u64::MAX, |a| {
        list.push((a.start, a.last));
        ControlFlow::<()>::Continue(())
    });
    list
}

#[test]
fn areas_inserted_in_order_fill_their_leaves() {
    let mut tree = AreaTree::default();
    for i in 0..10_000 {
        put(&mut tree, i * 4096, i * 4096 + 4095);
    }
    check(&mut tree);
    let leaves = tree.leaves.nodes();
    assert!(leaves * SLOTS < 10_000 * 9 / 8 + 20 * SLOTS);
    assert!(tree.bytes() / 10_000 <= 12, "{}", tree.bytes() / 10_000);
    assert_eq!(grids(&tree), 10_000_usize.div_ceil(SLOTS));
}

#[test]
fn areas_that_differ_fill_lists() {
    let mut tree = AreaTree::default();
    for i in 0..10_000 {
        put(&mut tree, i * 4096, i * 4096 + 4095 - i % 2);
    }
    check(&mut tree);
    assert!(tree.leaves.nodes() * LEAF < 10_000 * 9 / 8 + 20 * LEAF);
    assert!(tree.bytes() / 10_000 <= 96, "{}", tree.bytes() / 10_000);
    assert_eq!(grids(&tree), 0);
}

#[test]
fn the_worst_filling_stays_under_ninety_six_bytes_an_area() {
    // Random insertion leaves leaves partly empty; the bound must hold there too.
    let mut tree = AreaTree::default();
    let mut x = 1_u64;
    let mut count = 0;
    while count < 50_000 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let start = (x >> 20) << 12;
        if tree.overlapping(start, start + 4095).is_none() {
            put(&mut tree, start, start + 4095);
            count += 1;
        }
    }
    check(&mut tree);
    assert!(tree.bytes() / count <= 96, "{}", tree.bytes() / count);
}

#[test]
fn a_descending_order_keeps_nodes_half_full() {
    let mut tree = AreaTree::default();
    put(&mut tree, 1 << 40, 1 << 40);
    for i in (0..20_000).rev() {
        put(&mut tree, i * 4096, i * 4096 + 4095);
    }
    check(&mut tree);
    assert!(tree.bytes() / 20_000 <= 96, "{}", tree.bytes() / 20_000);
}

#[test]
fn half_full_leaves_still_fit_the_bound() {
    let per_area = size_of::<Leaf>() / Leaf::MIN
        + size_of::<Inner>() / (Leaf::MIN * Inner::MIN)
        + 4 * size_of::<u32>() / Leaf::MIN;
    // An eighth of the nodes may not be used yet.
    assert!(per_area * 9 / 8 <= 96, "{per_area}");
}

#[test]
fn removing_everything_frees_every_node() {
    let mut tree = AreaTree::default();
    for i in 0..5_000_u64 {
        let at = i.wrapping_mul(2_654_435_761) % 5_000;
        if tree.find(at * 2).is_none() {
            put(&mut tree, at * 2, at * 2);
        }
    }
    for (start, _) in all(&tree) {
        assert!(tree.remove(start).is_some());
        assert!(tree.remove(start).is_none());
    }
    assert_eq!(tree.len(), 0);
    check(&mut tree);
    assert!(tree.find(0).is_none());
}

#[test]
fn a_refused_reservation_leaves_the_tree_alone() {
    let mut tree = AreaTree::default();
    let mut budget = Budget::unlimited();
    for i in 0..LEAF * 40 {
        for n in 0.. {
            budget.limit(Some(n));
            match tree.reserve(&mut budget) {
                Ok(()) => break,
                Err(OutOfMemory) => assert_eq!(tree.len(), i),
            }
        }
        let start = i as u64 * 10;
        tree.insert(area(start, start + 4));
        check(&mut tree);
    }
}

#[test]
fn the_ends_of_the_space_can_be_mapped() {
    let mut tree = AreaTree::default();
    put(&mut tree, 0, 0);
    put(&mut tree, u64::MAX, u64::MAX);
    check(&mut tree);
    assert_eq!(tree.find(u64::MAX).unwrap().start, u64::MAX);
    let hole = tree.holes((0, u64::MAX), 1, |a, b| Some((a, b)));
    assert_eq!(hole, Some((1, u64::MAX - 1)));
}

#[test]
fn flags_are_set_on_the_area_that_starts_there() {
    let mut tree = AreaTree::default();
    for i in 0..1000 {
        put(&mut tree, i * 2, i * 2);
    }
    tree.set_flags(500, Flags::new(Permissions::Read).stale());
    tree.set_flags(501, Flags::new(Permissions::Read).stale());
    let mut stale = Vec::new();
    tree.visit(0, u64::MAX, |a| {
        if a.flags.is_stale() {
            stale.push(a.start);
        }
        ControlFlow::<()>::Continue(())
    });
    assert_eq!(stale, [500]);
}

/// How many leaves in use are grids.
fn grids(tree: &AreaTree) -> usize {
    let free = |number: &u32| tree.leaves.free.contains(number);
    let leaves = tree.leaves.numbers().filter(|number| !free(number));
    leaves
        .filter(|number| tree.leaves.get(*number).is_grid())
        .count()
}

const PAGE: u64 = 4096;
const COUNT: u64 = SLOTS as u64;

fn page(at: u64, offset: u64) -> Area {
    Area {
        start: at * PAGE,
        last: at * PAGE + (PAGE - 1),
        offset,
        memory: 3,
        flags: Flags::new(Permissions::ReadWrite),
    }
}

/// A tree and what it must hold.
#[derive(Default)]
struct Both {
    tree: AreaTree,
    model: BTreeMap<u64, Area>,
}

impl Both {
    fn put(&mut self, area: Area) {
        assert!(self.tree.overlapping(area.start, area.last).is_none());
        self.tree.reserve(&mut Budget::unlimited()).unwrap();
        self.tree.insert(area);
        self.model.insert(area.start, area);
    }

    fn take(&mut self, start: u64) {
        assert_eq!(self.tree.remove(start), self.model.remove(&start));
    }

    fn exchange(&mut self, start: u64, offset: u64, memory: u32) {
        let Some(area) = self.model.get_mut(&start) else {
            return;
        };
        *area = Area {
            offset,
            memory,
            flags: Flags::new(Permissions::ReadWrite),
            ..*area
        };
        self.tree.reserve(&mut Budget::unlimited()).unwrap();
        self.tree.replace(*area);
    }

    fn mark(&mut self, start: u64) {
        let Some(area) = self.model.get_mut(&start) else {
            return;
        };
        area.flags = area.flags.stale();
        self.tree.set_flags(start, area.flags);
    }

    fn same(&mut self) {
        let mut list = Vec::new();
        self.tree.visit(0, u64::MAX, |area| {
            list.push(area);
            ControlFlow::<()>::Continue(())
        });
        assert!(list.iter().eq(self.model.values()));
        check(&mut self.tree);
        for area in self.model.values().step_by(7) {
            assert_eq!(self.tree.find(area.start), Some(*area));
            assert_eq!(self.tree.find(area.last), Some(*area));
        }
        assert_eq!(self.tree.len(), self.model.len());
        let leaves = self.tree.leaves.nodes() - self.tree.leaves.free.len();
        let inners = self.tree.inners.nodes() - self.tree.inners.free.len();
        let bytes = leaves * size_of::<Leaf>() + inners * size_of::<Inner>();
        assert!(bytes <= 84 * self.model.len() + 4 * size_of::<Leaf>());
    }
}

#[test]
fn pages_become_grids_in_any_order_of_coming() {
    type Order = fn(u64) -> u64;
    let orders: [(&str, Order); 3] = [
        ("ascending", |i| i),
        ("descending", |i| 4095 - i),
        ("scattered", |i| i * 1023 % 4096),
    ];
    for (name, order) in orders {
        for linear in [true, false] {
            let mut both = Both::default();
            for i in 0..4096 {
                let at = order(i);
                let offset = if linear { at } else { at * 517 % 4096 };
                both.put(page(at + 100, offset * PAGE));
            }
            both.same();
            let leaves = both.tree.leaves.nodes() - both.tree.leaves.free.len();
            assert!(grids(&both.tree) * 2 > leaves, "{name}: {leaves}");
            for i in 0..4096 {
                both.take((order(i) + 100) * PAGE);
                if i % 397 == 0 {
                    both.same();
                }
            }
            both.same();
        }
    }
}

#[test]
fn a_grid_that_is_taken_apart_is_a_list_again() {
    let mut both = Both::default();
    for at in 0..COUNT {
        both.put(page(at, at * PAGE));
    }
    assert_eq!(grids(&both.tree), 1);
    for at in (0..COUNT).filter(|at| at % 9 != 0) {
        both.take(at * PAGE);
    }
    both.same();
    assert_eq!(grids(&both.tree), 0);
}

#[test]
fn what_does_not_fit_a_grid_cuts_it() {
    // Wherever it comes, and why ever it does not fit.
    let base = page(0, 0);
    let others = [
        Area { memory: 4, ..base },
        Area {
            flags: Flags::new(Permissions::Read),
            ..base
        },
        Area { offset: 12, ..base },
        Area {
            offset: (1 << 32) * PAGE,
            ..base
        },
        Area {
            last: base.last - 1,
            ..base
        },
        Area {
            start: base.start + 1,
            ..base
        },
    ];
    for other in others {
        for hole in (0..COUNT).step_by(21).chain(1..3).chain(440..COUNT) {
            let mut both = Both::default();
            for at in (0..COUNT).filter(|at| *at != hole) {
                both.put(page(1000 + at, at * PAGE));
            }
            let at = (1000 + hole) * PAGE;
            both.put(Area {
                start: at + other.start,
                last: at + other.last,
                ..other
            });
            both.same();
            assert!(grids(&both.tree) > 0);
        }
    }
}

#[test]
fn what_grids_do_not_take_does_not_get_leaves_of_its_own() {
    let mut both = Both::default();
    // Grids with gaps between them, into which other areas come in descending order.
    for grid in 0..8 {
        for at in 0..400 {
            both.put(page(grid * 1000 + at, at * PAGE));
        }
    }
    for at in (0..8000).rev().filter(|at| at % 1000 >= 400) {
        both.put(Area {
            memory: 9,
            offset: at,
            ..page(at, 0)
        });
    }
    both.same();
}

#[test]
fn an_area_of_a_grid_can_show_something_else() {
    for (offset, memory) in [(7 * PAGE, 3), (7 * PAGE + 1, 3), (0, 4), (300 * PAGE, 3)] {
        let mut both = Both::default();
        for at in 0..COUNT {
            both.put(page(at, at * PAGE));
        }
        both.mark(300 * PAGE);
        both.exchange(300 * PAGE, offset, memory);
        both.same();
    }
}

#[test]
fn a_stale_area_of_a_grid_is_the_only_one() {
    let mut both = Both::default();
    for at in 0..COUNT {
        both.put(page(at, at * PAGE));
    }
    both.mark(70 * PAGE);
    both.same();
    for at in (0..COUNT).filter(|at| at % 9 != 7) {
        both.take(at * PAGE);
    }
    both.same();
    assert!(both.tree.find(70 * PAGE).unwrap().flags.is_stale());
    // Its place is taken by one that is not.
    both.take(70 * PAGE);
    both.put(page(70, 0));
    both.same();
}

#[test]
fn a_grid_can_lie_at_the_end_of_the_space() {
    let mut both = Both::default();
    let last = u64::MAX / PAGE;
    for at in (last - 300..=last).rev() {
        both.put(page(at, (last - at) * PAGE));
    }
    both.same();
    both.take(last * PAGE);
    both.take((last - 300) * PAGE);
    both.same();
}

fn model_holes(
    model: impl Iterator<Item = (u64, u64)>,
    (start, last): (u64, u64),
    bytes: u64,
) -> Vec<(u64, u64)> {
    let mut list = Vec::new();
    let mut from = start;
    for (s, l) in model.chain([(last + 1, u64::MAX)]) {
        if s > from {
            let end = (s - 1).min(last);
            if end >= from && end - from + 1 >= bytes {
                list.push((from, end));
            }
        }
        if l == u64::MAX || l >= last {
            break;
        }
        from = from.max(l + 1);
    }
    list
}

proptest! {
    #[test]
    fn the_tree_is_an_ordered_map(ops in proptest::collection::vec(any::<(u8, u16, u8)>(), 1..1500)) {
        let mut tree = AreaTree::default();
        let mut model = BTreeMap::new();
        for (i, (op, at, len)) in ops.into_iter().enumerate() {
            let start = u64::from(at % 4096) * 16;
            let last = start + u64::from(len);
            if op < 160 {
                let free = model.range(..=last).next_back().is_none_or(|(_, &l)| l < start);
                assert_eq!(free, tree.overlapping(start, last).is_none());
                if free {
                    put(&mut tree, start, last);
                    model.insert(start, last);
                }
            } else {
                let victim = model.range(start..).next().map(|(&s, _)| s);
                if let Some(victim) = victim {
                    model.remove(&victim);
                    assert_eq!(tree.remove(victim).map(|a| a.start), Some(victim));
                }
            }
            if i % 64 == 0 {
                check(&mut tree);
            }
            let bounds = (start.saturating_sub(300), last + 700);
            let bytes = u64::from(len) / 2 + 1;
            let mut holes = Vec::new();
            tree.holes(bounds, bytes, |a, b| { holes.push((a, b)); None::<()> });
            let near = model.range(bounds.0.saturating_sub(u64::from(u8::MAX))..=bounds.1);
            let near = near.map(|(&start, &last)| (start, last));
            assert_eq!(holes, model_holes(near, bounds, bytes));
        }
        check(&mut tree);
        assert_eq!(all(&tree), model.into_iter().collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(Config::with_cases(64))]
    #[test]
    fn grids_and_lists_are_an_ordered_map(ops in proptest::collection::vec(any::<(u8, u16, u8)>(), 1..400)) {
        // Runs of pages come and go; now and then something that is not like them.
        let mut both = Both::default();
        for (op, at, count) in ops {
            let (at, count) = (u64::from(at % 4096), u64::from(count));
            match op {
                0..80 => for at in at..at + count {
                    let (start, last) = (at * PAGE, at * PAGE + (PAGE - 1));
                    if both.tree.overlapping(start, last).is_none() {
                        let offset = if op < 40 { at } else { at * 7 % 4096 };
                        both.put(page(at, offset * PAGE));
                    }
                },
                80..110 => for at in (at..at + count).rev() {
                    if both.tree.find(at * PAGE).is_none() && both.tree.find(at * PAGE + 4095).is_none()
                        && both.tree.overlapping(at * PAGE, at * PAGE + 4095).is_none() {
                        both.put(page(at, at * PAGE));
                    }
                },
                110..150 => {
                    let (start, last) = (at * PAGE + 16, at * PAGE + 16 + count);
                    if both.tree.overlapping(start, last).is_none() {
                        both.put(Area { start, last, memory: u32::from(op), ..page(0, count) });
                    }
                }
                150..155 => both.mark(at * PAGE),
                155..160 => for at in at..at + count.min(9) {
                    both.exchange(at * PAGE, u64::from(op) * PAGE + count % 2, u32::from(op % 2) + 3);
                },
                160..230 => {
                    let from = at * PAGE..(at + count) * PAGE;
                    let gone: Vec<u64> = both.model.range(from).map(|(&at, _)| at).collect();
                    for start in gone {
                        both.take(start);
                    }
                }
                _ => {
                    let from = at * PAGE..(at + count) * PAGE;
                    let gone: Vec<u64> = both.model.range(from).map(|(&at, _)| at).collect();
                    for start in gone.into_iter().rev().step_by(2) {
                        both.take(start);
                    }
                }
            }
            if op % 8 == 0 {
                both.same();
            }
            let bounds = (at * PAGE, (at + 600) * PAGE);
            // No area is longer than a page.
            let near = both.model.range(bounds.0.saturating_sub(PAGE)..=bounds.1);
            let near = near.map(|(_, area)| (area.start, area.last));
            let mut holes = Vec::new();
            both.tree.holes(bounds, count * 64 + 1, |a, b| { holes.push((a, b)); None::<()> });
            assert_eq!(holes, model_holes(near, bounds, count * 64 + 1));
        }
        both.same();
    }
}
