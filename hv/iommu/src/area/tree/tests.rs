use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::ControlFlow;

use proptest::prelude::{any, proptest};

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
    assert!(leaves * LEAF < 10_000 * 9 / 8 + 20 * LEAF);
    assert!(tree.bytes() / 10_000 <= 96, "{}", tree.bytes() / 10_000);
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

fn model_holes(
    model: &BTreeMap<u64, u64>,
    (start, last): (u64, u64),
    bytes: u64,
) -> Vec<(u64, u64)> {
    let mut list = Vec::new();
    let mut from = start;
    for (&s, &l) in model.iter().chain([(&(last + 1), &u64::MAX)]) {
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
            assert_eq!(holes, model_holes(&model, bounds, bytes));
        }
        check(&mut tree);
        assert_eq!(all(&tree), model.into_iter().collect::<Vec<_>>());
    }
}
