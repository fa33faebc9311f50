//! The areas of one address space, in order.
//!
//! A B+ tree in slabs of nodes: every operation is O(log n), and every growth happens in
//! [`AreaTree::reserve`], before anything is changed, so that it can be refused. Inner nodes know
//! the largest hole below each child, which makes automatic placement O(log n) too.
//!
//! A leaf is a list of up to 63 areas, or a grid of up to 480 that are alike: of one size, of one memory
//! object, with the same permissions. An address space that is mapped page by page consists of grids,
//! and even with a million areas fits a near cache. Lists keep the last addresses, by which is
//! searched, apart from the rest.
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

mod grid;
mod leaf;
mod node;
mod slabs;

use core::ops::ControlFlow;

use leaf::{Cut, LEAF, Leaf};
use node::{FAN, Inner, Node, Summary};
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
    /// Whether there ever was a grid.
    grids: bool,
}

/// The open leaf.
#[derive(Debug)]
struct Open {
    leaf: Place,
    /// The addresses between its neighbours. None at all when no leaf is open.
    low: u64,
    high: u64,
    /// Whether something was taken out, so that nodes may be too empty.
    shrank: bool,
}

impl Default for Open {
    fn default() -> Self {
        Self {
            leaf: (0, 0),
            low: 1,
            high: 0,
            shrank: false,
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
        // A grid may have to be cut into three leaves.
        let cuts = if self.grids { 2 } else { 1 };
        if self.leaves.free.len() < cuts {
            self.leaves.reserve(budget, cuts)?;
        }
        let inners = cuts * (self.height + 1);
        if self.len >= LEAF && self.inners.free.len() < inners {
            self.inners.reserve(budget, inners)?;
        }
        Ok(())
    }

    /// Makes room for two insertions.
    pub(crate) fn reserve_two(&mut self, budget: &mut Budget) -> Result<(), OutOfMemory> {
        budget.take()?;
        // Each may cut a grid twice, and the first may add a level.
        self.leaves.reserve(budget, 4)?;
        self.inners.reserve(budget, 4 * (self.height + 2))
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
            if let Some(area) = leaf.first_from(address) {
                return Some(area);
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
        self.leaves.get(node).first_from(address)
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
            return leaf.overlapping(start, last);
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
            shrank: false,
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
        let Open {
            leaf,
            low,
            high,
            shrank,
        } = core::mem::take(&mut self.open);
        if low > high || self.len == 0 {
            return;
        }
        self.leaves.at_mut(leaf).settle();
        self.summary = self.close_below(self.root, self.height, low, shrank);
        while self.height > 0 && self.inners.get(self.root).len == 1 {
            let old = self.root;
            self.root = self.inners.get(old).children[0];
            self.inners.give(old);
            self.height -= 1;
        }
    }

    fn close_below(&mut self, node: u32, height: usize, start: u64, shrank: bool) -> Summary {
        if height == 0 {
            return self.leaves.get(node).summary();
        }
        let inner = self.inners.get(node);
        let at = inner.place(start);
        let child = inner.children[at];
        let summary = self.close_below(child, height - 1, start, shrank);
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
        } else if shrank && len < least {
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
            if leaf.add(area) {
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
            let added = self.leaves.get_mut(self.root).add(area);
            debug_assert!(added);
            self.len = 1;
            self.open(area.start);
            return;
        }
        self.close();
        // A grid in the middle of which the area comes is cut first, and then once more at its end.
        while let Cut::Again = self.insert_once(area) {}
        self.len += 1;
        self.open(area.start);
    }

    fn insert_once(&mut self, area: Area) -> Cut {
        // Areas mostly arrive in order. Splits at the very end leave full nodes behind; anywhere else
        // that would let a descending order make nodes of one.
        let order = if area.start > self.summary.last {
            Order::Append
        } else {
            Order::Amid
        };
        let (summary, split, cut) =
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
        cut
    }

    fn insert_below(
        &mut self,
        node: u32,
        height: usize,
        area: Area,
        (order, old): (Order, Summary),
    ) -> (Summary, Option<(u32, Summary)>, Cut) {
        if height == 0 {
            let leaf = self.leaves.get_mut(node);
            if leaf.add(area) {
                return (leaf.summary(), None, Cut::Done);
            }
            if leaf.condense(area) {
                self.grids = true;
                return (leaf.summary(), None, Cut::Done);
            }
            let other = self.leaves.take();
            return self.leaves.pair(node, other, |leaf, new| {
                let cut = leaf.cut(area, order.cut(LEAF), new);
                (leaf.summary(), Some((other, new.summary())), cut)
            });
        }
        let inner = self.inners.get(node);
        let mut at = inner.place(area.start);
        if height == 1
            && at + 1 < inner.len
            && self.leaves.get(inner.children[at]).is_passed_by(area)
        {
            // Its neighbour takes in what a grid cannot: otherwise each would get a leaf of its own.
            at += 1;
        }
        let (child, known) = (inner.children[at], inner.child(at));
        let (summary, split, cut) = self.insert_below(child, height - 1, area, (order, known));
        let inner = self.inners.get_mut(node);
        let Some((new_child, new_summary)) = split else {
            return (inner.update(at, summary, old), None, cut);
        };
        inner.set(at, summary);
        let at = at + 1;
        if inner.len < FAN {
            inner.insert(at, new_child, new_summary);
            return (inner.summary(), None, cut);
        }
        let other = self.inners.take();
        let keep = order.cut(FAN);
        self.inners.pair(node, other, |inner, new| {
            inner.split_off(keep, new);
            if at > keep || keep == FAN {
                new.insert(at - keep, new_child, new_summary);
            } else {
                inner.insert(at, new_child, new_summary);
            }
            (inner.summary(), Some((other, new.summary())), cut)
        })
    }

    /// Takes out the area that starts at `start`.
    // Not a call, see `Leaf::overlapping`: most callers know the area already.
    #[inline(always)]
    pub(crate) fn remove(&mut self, start: u64) -> Option<Area> {
        if !self.open.covers(start) {
            self.reopen(start)?;
        }
        let leaf = self.leaves.at_mut(self.open.leaf);
        let area = leaf.take(start)?;
        let is_empty = leaf.is_empty();
        self.open.shrank = true;
        self.len -= 1;
        if is_empty {
            self.close_empty();
        }
        Some(area)
    }

    #[inline(never)]
    fn reopen(&mut self, start: u64) -> Option<()> {
        self.close();
        (self.len > 0).then(|| self.open(start))
    }

    #[inline(never)]
    fn close_empty(&mut self) {
        if self.len > 0 {
            self.close();
        } else {
            // A root of one child does not outlive the closing of its last leaf but one.
            self.close_last();
        }
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

    /// The leaf that the area which starts at `start` is in.
    fn leaf_of(&mut self, start: u64) -> Option<&mut Leaf> {
        if self.len == 0 {
            return None;
        }
        let mut node = self.root;
        for _ in 0..self.height {
            let inner = self.inners.get(node);
            node = inner.children[inner.place(start)];
        }
        Some(self.leaves.get_mut(node))
    }

    /// Marks the area that starts at `start`.
    pub(crate) fn set_flags(&mut self, start: u64, flags: Flags) {
        if let Some(leaf) = self.leaf_of(start) {
            leaf.set_flags(start, flags);
        }
    }

    /// Changes what the area with the same addresses shows. [`AreaTree::reserve`] was called.
    pub(crate) fn replace(&mut self, area: Area) {
        let replaced = self
            .leaf_of(area.start)
            .is_none_or(|leaf| leaf.replace(area));
        if !replaced && self.remove(area.start).is_some() {
            self.insert(area);
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
            let stop = self.leaves.get(node).visit_from(start, |area| {
                if area.start > last {
                    return ControlFlow::Break(None);
                }
                match f(area) {
                    ControlFlow::Continue(()) => ControlFlow::Continue(()),
                    ControlFlow::Break(value) => ControlFlow::Break(Some(value)),
                }
            });
            return match stop {
                ControlFlow::Break(Some(value)) => ControlFlow::Break(value),
                _ => ControlFlow::Continue(()),
            };
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
            let stop = self.leaves.get(node).visit_from(search.start, |area| {
                if area.start > search.last {
                    return ControlFlow::Break(None);
                }
                if let Some(found) = search.until(Some(area.start)) {
                    return ControlFlow::Break(Some(found));
                }
                search.from = area.last.checked_add(1);
                ControlFlow::Continue(())
            });
            return match stop {
                ControlFlow::Break(found) => found,
                ControlFlow::Continue(()) => None,
            };
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
        // Both keep enough. A grid gives no more than a list can take.
        let enough = ((len_a + len_b) / 2).min(N::SHARE);
        children.pair(a, b, |a, b| {
            if len_a < len_b {
                b.give_front(enough - len_a, a);
            } else {
                a.give_back(enough - len_b, b);
            }
        });
        parent.set(right, children.get(b).summary());
    }
    parent.set(left, children.get(a).summary());
}

#[cfg(test)]
mod tests;
