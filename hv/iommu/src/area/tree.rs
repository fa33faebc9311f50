//! The areas of one address space, in order.
//!
//! A B+ tree in slabs of nodes: every operation is O(log n), and every growth happens in
//! [`AreaTree::reserve`], before anything is changed, so that it can be refused. Leaves keep the
//! last addresses, by which is searched, apart from the rest: a search then touches few cache lines. Inner
//! nodes know the largest hole below each child, which makes automatic placement O(log n) too.
//!
//! Changes mostly come in order, so the leaf of the last one stays *open*: its ancestors take it to
//! cover everything up to its neighbours and to have any hole, which is true whatever comes and goes
//! in it, and are told the truth when it is closed. In between a change touches that leaf alone.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "positions and node numbers come from the tree itself, never from a request; a wrong \
              one is a bug of this file and must stop here"
)]

mod node;
mod slabs;

use core::ops::ControlFlow;

use node::{FAN, Inner, LEAF, Leaf, Node, Summary};
use slabs::{Place, Slabs, place};

use crate::area::{Area, Flags};
use crate::budget::{Budget, OutOfMemory};

/// Levels of inner nodes. With nodes at least half full, 2^32 leaves need eight.
const MAX_HEIGHT: usize = 8;

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
    /// The leaf of the last change.
    open: Open,
}

/// The open leaf.
#[derive(Debug)]
struct Open {
    leaf: Place,
    /// The addresses between its neighbours. None at all when no leaf is open.
    low: u64,
    high: u64,
}

impl Default for Open {
    fn default() -> Self {
        Self {
            leaf: (0, 0),
            low: 1,
            high: 0,
        }
    }
}

impl Open {
    #[inline]
    fn covers(&self, address: u64) -> bool {
        self.low <= address && address <= self.high
    }

    /// What its parent takes it for.
    fn summary(&self) -> Summary {
        Summary {
            first: self.low,
            last: self.high,
            hole: u64::MAX,
        }
    }
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

    /// Makes room for two insertions.
    pub(crate) fn reserve_two(&mut self, budget: &mut Budget) -> Result<(), OutOfMemory> {
        budget.take()?;
        self.leaves.reserve(budget, 2)?;
        // The first may add a level.
        self.inners.reserve(budget, 2 * (self.height + 2))
    }

    /// The first area that ends at or after `address`.
    #[inline]
    pub(crate) fn at_or_after(&self, address: u64) -> Option<Area> {
        if self.len == 0 {
            return None;
        }
        let mut address = address;
        if self.open.covers(address) {
            let leaf = self.leaves.at(self.open.leaf);
            let at = leaf.before(address);
            if at < leaf.len() {
                return Some(leaf.get(at));
            }
            address = self.open.high.checked_add(1)?;
        }
        if address > self.summary.last {
            return None;
        }
        let mut node = self.root;
        for _ in 0..self.height {
            let inner = self.inners.get(node);
            let at = inner.before(address);
            if at >= inner.len {
                return None;
            }
            node = inner.children[at];
        }
        let leaf = self.leaves.get(node);
        let at = leaf.before(address);
        (at < leaf.len()).then(|| leaf.get(at))
    }

    /// The area that covers `address`.
    #[inline]
    pub(crate) fn find(&self, address: u64) -> Option<Area> {
        self.at_or_after(address).filter(|a| a.start <= address)
    }

    /// The first area that shares an address with `start..=last`.
    #[inline(always)]
    pub(crate) fn overlapping(&self, start: u64, last: u64) -> Option<Area> {
        if self.open.covers(start) && self.open.covers(last) {
            let leaf = self.leaves.at(self.open.leaf);
            let at = leaf.before_in_order(start);
            return (at < leaf.len() && leaf.rest[at].start <= last).then(|| leaf.get(at));
        }
        self.at_or_after(start).filter(|a| a.start <= last)
    }

    /// Opens the leaf that an area starting at `start` belongs to. The tree is not empty, and no
    /// leaf is open.
    fn open(&mut self, start: u64) {
        let (mut low, mut high) = (0, u64::MAX);
        let mut node = self.root;
        let mut path = [(0, 0); MAX_HEIGHT];
        for step in path.iter_mut().take(self.height) {
            let inner = self.inners.get(node);
            let at = inner.place(start);
            if let Some(before) = at.checked_sub(1) {
                low = inner.lasts[before] + 1;
            }
            if at + 1 < inner.len {
                high = inner.firsts[at + 1] - 1;
            }
            *step = (node, at);
            node = inner.children[at];
        }
        self.open = Open {
            leaf: place(node),
            low,
            high,
        };
        let mut summary = self.open.summary();
        for &(node, at) in path[..self.height].iter().rev() {
            let inner = self.inners.get_mut(node);
            inner.set(at, summary);
            summary = inner.ends(u64::MAX);
        }
        self.summary = summary;
    }

    /// Closes the open leaf, if one is: every node is as it says again.
    fn close(&mut self) {
        let Open { leaf, low, high } = core::mem::take(&mut self.open);
        if low > high || self.len == 0 {
            return;
        }
        self.leaves.at_mut(leaf).settle();
        self.summary = self.close_below(self.root, self.height, low);
        while self.height > 0 && self.inners.get(self.root).len == 1 {
            let old = self.root;
            self.root = self.inners.get(old).children[0];
            self.inners.give(old);
            self.height -= 1;
        }
    }

    fn close_below(&mut self, node: u32, height: usize, start: u64) -> Summary {
        if height == 0 {
            return self.leaves.get(node).summary();
        }
        let inner = self.inners.get(node);
        let at = inner.place(start);
        let child = inner.children[at];
        let summary = self.close_below(child, height - 1, start);
        let (len, least) = if height == 1 {
            (self.leaves.get(child).len(), Leaf::MIN)
        } else {
            (self.inners.get(child).len, Inner::MIN)
        };
        let inner = self.inners.get_mut(node);
        inner.set(at, summary);
        if len == 0 {
            inner.remove(at);
            if height == 1 {
                self.leaves.give(child);
            } else {
                self.inners.give(child);
            }
        } else if len < least {
            if height == 1 {
                rebalance(&mut self.leaves, inner, at);
            } else {
                self.rebalance_inner(node, at);
            }
        }
        self.inners.get(node).summary()
    }

    /// Adds an area that overlaps none. [`AreaTree::reserve`] was called.
    #[inline]
    pub(crate) fn insert(&mut self, area: Area) {
        if self.open.covers(area.start) {
            let leaf = self.leaves.at_mut(self.open.leaf);
            if leaf.has_room() {
                let at = leaf.before_in_order(area.start);
                leaf.insert(at, area);
                self.len += 1;
                return;
            }
        }
        self.insert_elsewhere(area);
    }

    #[inline(never)]
    fn insert_elsewhere(&mut self, area: Area) {
        if self.len == 0 {
            self.root = self.leaves.take();
            self.height = 0;
            self.leaves.get_mut(self.root).insert(0, area);
            self.len = 1;
            self.open(area.start);
            return;
        }
        self.close();
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
        self.open(area.start);
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
            if leaf.len() < LEAF {
                leaf.insert(at, area);
                return (leaf.summary_with(at, old), None);
            }
            let other = self.leaves.take();
            let cut = order.cut(LEAF);
            if cut == LEAF {
                let new = self.leaves.get_mut(other);
                new.insert(0, area);
                return (old, Some((other, new.summary())));
            }
            return self.leaves.pair(node, other, |leaf, new| {
                leaf.split_off(cut, new);
                if at > cut {
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
    #[inline]
    pub(crate) fn remove(&mut self, start: u64) -> Option<Area> {
        if self.len == 0 {
            return None;
        }
        if !self.open.covers(start) {
            self.close();
            self.open(start);
        }
        let leaf = self.leaves.at_mut(self.open.leaf);
        let at = leaf.before_in_order(start);
        if at >= leaf.len() || leaf.rest[at].start != start {
            return None;
        }
        let area = leaf.remove(at);
        self.len -= 1;
        if leaf.is_empty() {
            if self.len == 0 {
                // A root of one child does not outlive the closing of its last leaf but one.
                self.close_last();
            } else {
                self.close();
            }
        }
        Some(area)
    }

    /// Gives up the last leaf, and what inner nodes still lead to it.
    fn close_last(&mut self) {
        self.open = Open::default();
        let mut node = self.root;
        for _ in 0..self.height {
            let child = self.inners.get(node).children[0];
            self.inners.give(node);
            node = child;
        }
        self.leaves.give(node);
    }

    fn rebalance_inner(&mut self, node: u32, at: usize) {
        // The parent lives in the same slabs as its children: work on a copy of it.
        let mut parent = core::mem::replace(self.inners.get_mut(node), Inner::EMPTY);
        rebalance(&mut self.inners, &mut parent, at);
        *self.inners.get_mut(node) = parent;
    }

    /// The area that starts at `start`, to change in place.
    fn starting_at(&mut self, start: u64) -> Option<(&mut Leaf, usize)> {
        if self.len == 0 {
            return None;
        }
        let mut node = self.root;
        for _ in 0..self.height {
            let inner = self.inners.get(node);
            node = inner.children[inner.place(start)];
        }
        let leaf = self.leaves.get_mut(node);
        let at = leaf.before(start);
        (at < leaf.len() && leaf.rest[at].start == start).then_some((leaf, at))
    }

    /// Marks the area that starts at `start`.
    pub(crate) fn set_flags(&mut self, start: u64, flags: Flags) {
        if let Some((leaf, at)) = self.starting_at(start) {
            leaf.rest[at].flags = flags;
        }
    }

    /// Changes what the area with the same addresses shows.
    pub(crate) fn replace(&mut self, area: Area) {
        if let Some((leaf, at)) = self.starting_at(area.start) {
            let there = &mut leaf.rest[at];
            there.offset = area.offset;
            there.memory = area.memory;
            there.flags = area.flags;
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
            for at in leaf.before(start)..leaf.len() {
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
            for at in leaf.before(search.start)..leaf.len() {
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
