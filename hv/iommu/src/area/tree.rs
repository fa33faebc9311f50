//! The areas of one address space, in order.
//!
//! A B+ tree in slabs of nodes: every operation is O(log n), and every growth happens in
//! [`AreaTree::reserve`], before anything is changed, so that it can be refused. Leaves keep the
//! last addresses, by which is searched, apart from the rest: a search then touches few cache lines. Inner
//! nodes know the largest hole below each child, which makes automatic placement O(log n) too.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "positions and node numbers come from the tree itself, never from a request; a wrong \
              one is a bug of this file and must stop here"
)]

use alloc::vec::Vec;
use core::ops::ControlFlow;

use crate::area::{Area, Flags};
use crate::budget::{Budget, OutOfMemory};

/// Areas in a leaf.
const LEAF: usize = 16;
/// Children of an inner node.
const FAN: usize = 32;
/// Nodes in a slab.
const SLAB_SHIFT: u32 = 4;
const SLAB: usize = 1 << SLAB_SHIFT;
/// Levels of inner nodes. With nodes at least half full, 2^32 leaves need eight.
const MAX_HEIGHT: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Rest {
    start: u64,
    offset: u64,
    memory: u32,
    flags: Flags,
}

const NO_REST: Rest = Rest {
    start: 0,
    offset: 0,
    memory: 0,
    flags: Flags(0),
};

#[derive(Clone, Debug)]
struct Leaf {
    lasts: [u64; LEAF],
    rest: [Rest; LEAF],
    len: usize,
}

/// What a parent knows of a child.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Summary {
    first: u64,
    last: u64,
    /// The largest hole between two areas below, in bytes.
    hole: u64,
}

const NO_SUMMARY: Summary = Summary {
    first: 0,
    last: 0,
    hole: 0,
};

#[derive(Clone, Debug)]
struct Inner {
    firsts: [u64; FAN],
    lasts: [u64; FAN],
    holes: [u64; FAN],
    children: [u32; FAN],
    len: usize,
}

trait Node {
    const EMPTY: Self;
    const MIN: usize;
    fn len(&self) -> usize;
    fn summary(&self) -> Summary;
    /// Moves the elements from `at` on to the end of `other`.
    fn split_off(&mut self, at: usize, other: &mut Self);
    /// Moves the first `count` elements to the end of `other`.
    fn give_front(&mut self, count: usize, other: &mut Self);
    /// Moves the last `count` elements to the front of `other`.
    fn give_back(&mut self, count: usize, other: &mut Self);
}

fn open<T: Copy>(array: &mut [T], len: usize, at: usize, count: usize) {
    array.copy_within(at..len, at + count);
}

impl Node for Leaf {
    const EMPTY: Self = Self {
        lasts: [0; LEAF],
        rest: [NO_REST; LEAF],
        len: 0,
    };
    const MIN: usize = LEAF / 2;

    fn len(&self) -> usize {
        self.len
    }

    fn summary(&self) -> Summary {
        if self.len == 0 {
            return NO_SUMMARY;
        }
        let mut hole = 0;
        for i in 1..self.len {
            hole = hole.max(self.rest[i].start - self.lasts[i - 1] - 1);
        }
        Summary {
            first: self.rest[0].start,
            last: self.lasts[self.len - 1],
            hole,
        }
    }

    fn split_off(&mut self, at: usize, other: &mut Self) {
        let count = self.len - at;
        let to = other.len..other.len + count;
        other.lasts[to.clone()].copy_from_slice(&self.lasts[at..self.len]);
        other.rest[to].copy_from_slice(&self.rest[at..self.len]);
        other.len += count;
        self.len = at;
    }

    fn give_front(&mut self, count: usize, other: &mut Self) {
        let to = other.len..other.len + count;
        other.lasts[to.clone()].copy_from_slice(&self.lasts[..count]);
        other.rest[to].copy_from_slice(&self.rest[..count]);
        other.len += count;
        self.lasts.copy_within(count..self.len, 0);
        self.rest.copy_within(count..self.len, 0);
        self.len -= count;
    }

    fn give_back(&mut self, count: usize, other: &mut Self) {
        let from = self.len - count..self.len;
        open(&mut other.lasts, other.len, 0, count);
        open(&mut other.rest, other.len, 0, count);
        other.lasts[..count].copy_from_slice(&self.lasts[from.clone()]);
        other.rest[..count].copy_from_slice(&self.rest[from]);
        other.len += count;
        self.len -= count;
    }
}

impl Leaf {
    fn get(&self, at: usize) -> Area {
        let rest = self.rest[at];
        Area {
            start: rest.start,
            last: self.lasts[at],
            offset: rest.offset,
            memory: rest.memory,
            flags: rest.flags,
        }
    }

    fn insert(&mut self, at: usize, area: Area) {
        open(&mut self.lasts, self.len, at, 1);
        open(&mut self.rest, self.len, at, 1);
        self.lasts[at] = area.last;
        self.rest[at] = Rest {
            start: area.start,
            offset: area.offset,
            memory: area.memory,
            flags: area.flags,
        };
        self.len += 1;
    }

    fn remove(&mut self, at: usize) -> Area {
        let area = self.get(at);
        self.lasts.copy_within(at + 1..self.len, at);
        self.rest.copy_within(at + 1..self.len, at);
        self.len -= 1;
        area
    }

    /// The number of areas that end before `address`.
    #[inline]
    fn before(&self, address: u64) -> usize {
        self.lasts[..self.len].partition_point(|last| *last < address)
    }

    /// The hole in front of an area, which is not the first.
    fn hole(&self, at: usize) -> u64 {
        self.rest[at].start - self.lasts[at - 1] - 1
    }

    /// The summary after an insertion at `at`, from the one before.
    fn summary_with(&self, at: usize, old: Summary) -> Summary {
        let mut hole = old.hole;
        let (front, back) = (at > 0, at + 1 < self.len);
        if front && back {
            let split = self.rest[at + 1].start - self.lasts[at - 1] - 1;
            if split == hole {
                return self.summary();
            }
        } else if front {
            hole = hole.max(self.hole(at));
        } else if back {
            hole = hole.max(self.hole(at + 1));
        }
        Summary {
            first: self.rest[0].start,
            last: self.lasts[self.len - 1],
            hole,
        }
    }

    /// The summary after a removal at `at`, from the one before.
    fn summary_without(&self, at: usize, gone: Area, old: Summary) -> Summary {
        if self.len == 0 {
            return NO_SUMMARY;
        }
        let mut hole = old.hole;
        if at > 0 && at < self.len {
            hole = hole.max(self.hole(at));
        } else {
            let edge = if at == 0 {
                self.rest[0].start - gone.last - 1
            } else {
                gone.start - self.lasts[at - 1] - 1
            };
            if edge == hole {
                return self.summary();
            }
        }
        Summary {
            first: self.rest[0].start,
            last: self.lasts[self.len - 1],
            hole,
        }
    }
}

impl Node for Inner {
    const EMPTY: Self = Self {
        firsts: [0; FAN],
        lasts: [0; FAN],
        holes: [0; FAN],
        children: [0; FAN],
        len: 0,
    };
    const MIN: usize = FAN / 2;

    fn len(&self) -> usize {
        self.len
    }

    fn summary(&self) -> Summary {
        if self.len == 0 {
            return NO_SUMMARY;
        }
        let mut hole = self.holes[0];
        for i in 1..self.len {
            hole = hole
                .max(self.holes[i])
                .max(self.firsts[i] - self.lasts[i - 1] - 1);
        }
        Summary {
            first: self.firsts[0],
            last: self.lasts[self.len - 1],
            hole,
        }
    }

    fn split_off(&mut self, at: usize, other: &mut Self) {
        let count = self.len - at;
        let to = other.len..other.len + count;
        other.firsts[to.clone()].copy_from_slice(&self.firsts[at..self.len]);
        other.lasts[to.clone()].copy_from_slice(&self.lasts[at..self.len]);
        other.holes[to.clone()].copy_from_slice(&self.holes[at..self.len]);
        other.children[to].copy_from_slice(&self.children[at..self.len]);
        other.len += count;
        self.len = at;
    }

    fn give_front(&mut self, count: usize, other: &mut Self) {
        let to = other.len..other.len + count;
        other.firsts[to.clone()].copy_from_slice(&self.firsts[..count]);
        other.lasts[to.clone()].copy_from_slice(&self.lasts[..count]);
        other.holes[to.clone()].copy_from_slice(&self.holes[..count]);
        other.children[to].copy_from_slice(&self.children[..count]);
        other.len += count;
        for _ in 0..count {
            self.remove(0);
        }
    }

    fn give_back(&mut self, count: usize, other: &mut Self) {
        for _ in 0..count {
            let at = self.len - 1;
            let (child, summary) = (self.children[at], self.child(at));
            self.len -= 1;
            other.insert(0, child, summary);
        }
    }
}

impl Inner {
    fn child(&self, at: usize) -> Summary {
        Summary {
            first: self.firsts[at],
            last: self.lasts[at],
            hole: self.holes[at],
        }
    }

    fn set(&mut self, at: usize, summary: Summary) {
        self.firsts[at] = summary.first;
        self.lasts[at] = summary.last;
        self.holes[at] = summary.hole;
    }

    fn insert(&mut self, at: usize, child: u32, summary: Summary) {
        open(&mut self.firsts, self.len, at, 1);
        open(&mut self.lasts, self.len, at, 1);
        open(&mut self.holes, self.len, at, 1);
        open(&mut self.children, self.len, at, 1);
        self.children[at] = child;
        self.set(at, summary);
        self.len += 1;
    }

    fn remove(&mut self, at: usize) {
        self.firsts.copy_within(at + 1..self.len, at);
        self.lasts.copy_within(at + 1..self.len, at);
        self.holes.copy_within(at + 1..self.len, at);
        self.children.copy_within(at + 1..self.len, at);
        self.len -= 1;
    }

    /// The largest hole in and beside a child.
    fn around(&self, at: usize) -> u64 {
        let mut hole = self.holes[at];
        if at > 0 {
            hole = hole.max(self.firsts[at] - self.lasts[at - 1] - 1);
        }
        if at + 1 < self.len {
            hole = hole.max(self.firsts[at + 1] - self.lasts[at] - 1);
        }
        hole
    }

    /// Updates what is known of a child, and returns the summary, from the one before.
    fn update(&mut self, at: usize, child: Summary, old: Summary) -> Summary {
        let before = self.around(at);
        self.set(at, child);
        let after = self.around(at);
        let hole = if after >= old.hole {
            after
        } else if before < old.hole {
            old.hole
        } else {
            return self.summary();
        };
        Summary {
            first: self.firsts[0],
            last: self.lasts[self.len - 1],
            hole,
        }
    }

    /// The child that an area starting at `start` belongs to.
    fn place(&self, start: u64) -> usize {
        // Both ends are where areas come and go in order.
        if self.len < 2 || self.firsts[1] > start {
            return 0;
        }
        if self.firsts[self.len - 1] <= start {
            return self.len - 1;
        }
        self.firsts[..self.len]
            .partition_point(|first| *first <= start)
            .saturating_sub(1)
    }

    /// The number of children that end before `address`.
    #[inline]
    fn before(&self, address: u64) -> usize {
        self.lasts[..self.len].partition_point(|last| *last < address)
    }
}

/// Nodes by number, in slabs, so that growing never moves one.
#[derive(Debug)]
struct Slabs<N> {
    slabs: Vec<Vec<N>>,
    /// Numbers of unused nodes. Always has room for every node.
    free: Vec<u32>,
}

impl<N> Default for Slabs<N> {
    fn default() -> Self {
        Self {
            slabs: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<N: Node> Slabs<N> {
    fn reserve(&mut self, budget: &mut Budget, nodes: usize) -> Result<(), OutOfMemory> {
        while self.free.len() < nodes {
            let first = u32::try_from(self.slabs.len() << SLAB_SHIFT).map_err(|_| OutOfMemory)?;
            first.checked_add(1 << SLAB_SHIFT).ok_or(OutOfMemory)?;
            // Room to free every node there will be, so that freeing needs no memory.
            let all = (self.slabs.len() + 1) << SLAB_SHIFT;
            let more = all - self.free.len();
            budget.reserve(&mut self.free, more)?;
            budget.reserve(&mut self.slabs, 1)?;
            let mut slab = budget.vec(SLAB)?;
            slab.resize_with(SLAB, || N::EMPTY);
            self.slabs.push(slab);
            self.free.extend((first..first + (1 << SLAB_SHIFT)).rev());
        }
        Ok(())
    }

    #[expect(clippy::expect_used, reason = "reserve() was called before any change")]
    fn take(&mut self) -> u32 {
        self.free.pop().expect("a node was reserved")
    }

    fn give(&mut self, number: u32) {
        *self.get_mut(number) = N::EMPTY;
        self.free.push(number);
    }

    #[inline]
    fn get(&self, number: u32) -> &N {
        let number = number as usize;
        &self.slabs[number >> SLAB_SHIFT][number & (SLAB - 1)]
    }

    #[inline]
    fn get_mut(&mut self, number: u32) -> &mut N {
        let number = number as usize;
        &mut self.slabs[number >> SLAB_SHIFT][number & (SLAB - 1)]
    }

    /// Runs `f` on two different nodes.
    fn pair<R>(&mut self, a: u32, b: u32, f: impl FnOnce(&mut N, &mut N) -> R) -> R {
        let mut out = core::mem::replace(self.get_mut(a), N::EMPTY);
        let result = f(&mut out, self.get_mut(b));
        *self.get_mut(a) = out;
        result
    }

    fn bytes(&self) -> usize {
        self.slabs.len() * (SLAB * size_of::<N>() + size_of::<Vec<N>>()) + self.free.capacity() * 4
    }
}

/// Where an insertion lands.
#[derive(Clone, Copy)]
enum Order {
    /// After every other area.
    Append,
    /// Before some area.
    Amid,
}

impl Order {
    /// How much of a full node stays when it is split.
    fn cut(self, capacity: usize) -> usize {
        match self {
            Self::Append => capacity,
            Self::Amid => capacity / 2,
        }
    }
}

/// The areas of one address space, ordered, without overlap.
#[derive(Debug, Default)]
pub(crate) struct AreaTree {
    leaves: Slabs<Leaf>,
    inners: Slabs<Inner>,
    root: u32,
    /// Levels of inner nodes above the leaves; meaningless while empty.
    height: usize,
    len: usize,
    /// Of the root; meaningless while empty.
    summary: Summary,
    /// The leaf of the last change: the next one is often beside it. Any leaf in use will do, and an
    /// unused one is empty, so this never goes stale.
    finger: u32,
}

impl AreaTree {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The memory the nodes take, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.leaves.bytes() + self.inners.bytes()
    }

    /// Makes room for one insertion.
    pub(crate) fn reserve(&mut self, budget: &mut Budget) -> Result<(), OutOfMemory> {
        budget.take()?;
        if self.leaves.free.is_empty() {
            self.leaves.reserve(budget, 1)?;
        }
        if self.len >= LEAF && self.inners.free.len() <= self.height {
            self.inners.reserve(budget, self.height + 1)?;
        }
        Ok(())
    }

    /// The first area that ends at or after `address`.
    #[inline]
    pub(crate) fn at_or_after(&self, address: u64) -> Option<Area> {
        if self.len == 0 || address > self.summary.last {
            return None;
        }
        let near = self.leaves.get(self.finger);
        if near.len > 0 && near.rest[0].start <= address && address <= near.lasts[near.len - 1] {
            return Some(near.get(near.before(address)));
        }
        let mut node = self.root;
        for _ in 0..self.height {
            let inner = self.inners.get(node);
            let at = inner.before(address);
            if at == inner.len {
                return None;
            }
            node = inner.children[at];
        }
        let leaf = self.leaves.get(node);
        let at = leaf.before(address);
        (at < leaf.len).then(|| leaf.get(at))
    }

    /// The area that covers `address`.
    #[inline]
    pub(crate) fn find(&self, address: u64) -> Option<Area> {
        self.at_or_after(address).filter(|a| a.start <= address)
    }

    /// The first area that shares an address with `start..=last`.
    #[inline]
    pub(crate) fn overlapping(&self, start: u64, last: u64) -> Option<Area> {
        self.at_or_after(start).filter(|a| a.start <= last)
    }

    /// Adds an area that overlaps none. [`AreaTree::reserve`] was called.
    pub(crate) fn insert(&mut self, area: Area) {
        if self.len == 0 {
            self.root = self.leaves.take();
            self.height = 0;
            let leaf = self.leaves.get_mut(self.root);
            leaf.insert(0, area);
            self.summary = leaf.summary();
            self.len = 1;
            return;
        }
        // Areas mostly arrive in order. Splits at the very end leave full nodes behind; anywhere else
        // that would let a descending order make nodes of one.
        let order = if area.start > self.summary.last {
            Order::Append
        } else {
            Order::Amid
        };
        let (summary, split) =
            self.insert_below(self.root, self.height, area, (order, self.summary));
        self.summary = summary;
        if let Some((child, other)) = split {
            let root = self.inners.take();
            let old = self.root;
            let inner = self.inners.get_mut(root);
            inner.insert(0, old, summary);
            inner.insert(1, child, other);
            self.summary = inner.summary();
            self.root = root;
            self.height += 1;
            assert!(self.height <= MAX_HEIGHT, "the tree is out of balance");
        }
        self.len += 1;
    }

    fn insert_below(
        &mut self,
        node: u32,
        height: usize,
        area: Area,
        (order, old): (Order, Summary),
    ) -> (Summary, Option<(u32, Summary)>) {
        if height == 0 {
            let leaf = self.leaves.get_mut(node);
            let at = leaf.before(area.start);
            self.finger = node;
            if leaf.len < LEAF {
                leaf.insert(at, area);
                return (leaf.summary_with(at, old), None);
            }
            let other = self.leaves.take();
            let cut = order.cut(LEAF);
            return self.leaves.pair(node, other, |leaf, new| {
                leaf.split_off(cut, new);
                if at > cut || cut == LEAF {
                    new.insert(at - cut, area);
                } else {
                    leaf.insert(at, area);
                }
                (leaf.summary(), Some((other, new.summary())))
            });
        }
        let inner = self.inners.get(node);
        let at = inner.place(area.start);
        let (child, known) = (inner.children[at], inner.child(at));
        let (summary, split) = self.insert_below(child, height - 1, area, (order, known));
        let inner = self.inners.get_mut(node);
        let Some((new_child, new_summary)) = split else {
            return (inner.update(at, summary, old), None);
        };
        inner.set(at, summary);
        let at = at + 1;
        if inner.len < FAN {
            inner.insert(at, new_child, new_summary);
            return (inner.summary(), None);
        }
        let other = self.inners.take();
        let cut = order.cut(FAN);
        self.inners.pair(node, other, |inner, new| {
            inner.split_off(cut, new);
            if at > cut || cut == FAN {
                new.insert(at - cut, new_child, new_summary);
            } else {
                inner.insert(at, new_child, new_summary);
            }
            (inner.summary(), Some((other, new.summary())))
        })
    }

    /// Takes out the area that starts at `start`.
    pub(crate) fn remove(&mut self, start: u64) -> Option<Area> {
        if self.len == 0 {
            return None;
        }
        let (area, summary) = self.remove_below(self.root, self.height, start, self.summary)?;
        self.summary = summary;
        self.len -= 1;
        if self.len == 0 {
            let root = self.root;
            if self.height == 0 {
                self.leaves.give(root);
            }
            return Some(area);
        }
        while self.height > 0 && self.inners.get(self.root).len == 1 {
            let old = self.root;
            self.root = self.inners.get(old).children[0];
            self.inners.give(old);
            self.height -= 1;
        }
        Some(area)
    }

    fn remove_below(
        &mut self,
        node: u32,
        height: usize,
        start: u64,
        old: Summary,
    ) -> Option<(Area, Summary)> {
        if height == 0 {
            let leaf = self.leaves.get_mut(node);
            let at = leaf.before(start);
            if at >= leaf.len || leaf.rest[at].start != start {
                return None;
            }
            let area = leaf.remove(at);
            self.finger = node;
            return Some((area, leaf.summary_without(at, area, old)));
        }
        let inner = self.inners.get(node);
        let at = inner.place(start);
        let (child, known) = (inner.children[at], inner.child(at));
        let (area, summary) = self.remove_below(child, height - 1, start, known)?;
        let (len, least) = if height == 1 {
            (self.leaves.get(child).len, Leaf::MIN)
        } else {
            (self.inners.get(child).len, Inner::MIN)
        };
        let inner = self.inners.get_mut(node);
        if len >= least {
            return Some((area, inner.update(at, summary, old)));
        }
        inner.set(at, summary);
        if height == 1 {
            rebalance(&mut self.leaves, inner, at);
        } else {
            self.rebalance_inner(node, at);
        }
        Some((area, self.inners.get(node).summary()))
    }

    fn rebalance_inner(&mut self, node: u32, at: usize) {
        // The parent lives in the same slabs as its children: work on a copy of it.
        let mut parent = core::mem::replace(self.inners.get_mut(node), Inner::EMPTY);
        rebalance(&mut self.inners, &mut parent, at);
        *self.inners.get_mut(node) = parent;
    }

    /// Marks the area that starts at `start`.
    pub(crate) fn set_flags(&mut self, start: u64, flags: Flags) {
        if self.len == 0 {
            return;
        }
        let mut node = self.root;
        for _ in 0..self.height {
            let inner = self.inners.get(node);
            node = inner.children[inner.place(start)];
        }
        let leaf = self.leaves.get_mut(node);
        let at = leaf.before(start);
        if at < leaf.len && leaf.rest[at].start == start {
            leaf.rest[at].flags = flags;
        }
    }

    /// Visits, in order, the areas that share an address with `start..=last`.
    pub(crate) fn visit<B>(
        &self,
        start: u64,
        last: u64,
        mut f: impl FnMut(Area) -> ControlFlow<B>,
    ) -> Option<B> {
        if self.len == 0 {
            return None;
        }
        match self.visit_below(self.root, self.height, start, last, &mut f) {
            ControlFlow::Break(value) => Some(value),
            ControlFlow::Continue(()) => None,
        }
    }

    fn visit_below<B>(
        &self,
        node: u32,
        height: usize,
        start: u64,
        last: u64,
        f: &mut impl FnMut(Area) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        if height == 0 {
            let leaf = self.leaves.get(node);
            for at in leaf.before(start)..leaf.len {
                if leaf.rest[at].start > last {
                    break;
                }
                f(leaf.get(at))?;
            }
            return ControlFlow::Continue(());
        }
        let inner = self.inners.get(node);
        for at in inner.before(start)..inner.len {
            if inner.firsts[at] > last {
                break;
            }
            self.visit_below(inner.children[at], height - 1, start, last, f)?;
        }
        ControlFlow::Continue(())
    }

    /// Visits, in order, the holes of at least `bytes` bytes in `start..=last`, cut to that span,
    /// until `f` takes an address in one. Subtrees without such a hole are not entered.
    pub(crate) fn holes<B>(
        &self,
        (start, last): (u64, u64),
        bytes: u64,
        mut f: impl FnMut(u64, u64) -> Option<B>,
    ) -> Option<B> {
        let mut search = Holes {
            start,
            last,
            bytes,
            from: Some(start),
            f: &mut f,
        };
        if self.len > 0
            && let Some(found) = self.holes_below(self.root, self.height, &mut search)
        {
            return Some(found);
        }
        search.until(None)
    }

    fn holes_below<B, F: FnMut(u64, u64) -> Option<B>>(
        &self,
        node: u32,
        height: usize,
        search: &mut Holes<'_, F>,
    ) -> Option<B> {
        if height == 0 {
            let leaf = self.leaves.get(node);
            for at in leaf.before(search.start)..leaf.len {
                if leaf.rest[at].start > search.last {
                    break;
                }
                if let Some(found) = search.until(Some(leaf.rest[at].start)) {
                    return Some(found);
                }
                search.from = leaf.lasts[at].checked_add(1);
            }
            return None;
        }
        let inner = self.inners.get(node);
        for at in inner.before(search.start)..inner.len {
            let child = inner.child(at);
            if child.first > search.last {
                break;
            }
            // The hole in front of the child may begin in front of the search.
            if child.hole >= search.bytes || child.first < search.start {
                if let Some(found) = self.holes_below(inner.children[at], height - 1, search) {
                    return Some(found);
                }
            } else {
                if let Some(found) = search.until(Some(child.first)) {
                    return Some(found);
                }
                search.from = child.last.checked_add(1);
            }
        }
        None
    }
}

struct Holes<'f, F> {
    start: u64,
    last: u64,
    bytes: u64,
    /// Where the hole at hand begins; `None` past the end of the space.
    from: Option<u64>,
    f: &'f mut F,
}

impl<F> Holes<'_, F> {
    /// Offers the hole that ends before `next` (or at the end of the search).
    fn until<B>(&mut self, next: Option<u64>) -> Option<B>
    where
        F: FnMut(u64, u64) -> Option<B>,
    {
        let from = self.from?.max(self.start);
        let last = match next {
            Some(next) => next.checked_sub(1)?.min(self.last),
            None => self.last,
        };
        let bytes_less_one = last.checked_sub(from)?;
        if bytes_less_one >= self.bytes.saturating_sub(1) {
            (self.f)(from, last)
        } else {
            None
        }
    }
}

/// After a removal below child `at` of `parent`: keeps the children at least half full.
fn rebalance<N: Node>(children: &mut Slabs<N>, parent: &mut Inner, at: usize) {
    let child = parent.children[at];
    if children.get(child).len() >= N::MIN || parent.len == 1 {
        if children.get(child).len() == 0 {
            children.give(child);
            parent.remove(at);
        }
        return;
    }
    let (left, right) = if at + 1 < parent.len {
        (at, at + 1)
    } else {
        (at - 1, at)
    };
    let (a, b) = (parent.children[left], parent.children[right]);
    let (len_a, len_b) = (children.get(a).len(), children.get(b).len());
    if len_a + len_b < 2 * N::MIN {
        children.pair(a, b, |a, b| b.give_front(len_b, a));
        children.give(b);
        parent.remove(right);
    } else {
        // Both keep at least half.
        let half = (len_a + len_b) / 2;
        children.pair(a, b, |a, b| {
            if len_a < half {
                b.give_front(half - len_a, a);
            } else {
                a.give_back(len_a - half, b);
            }
        });
        parent.set(right, children.get(b).summary());
    }
    parent.set(left, children.get(a).summary());
}

#[cfg(test)]
mod tests;
