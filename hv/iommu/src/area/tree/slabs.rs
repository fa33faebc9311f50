//! Memory for nodes, taken before it is needed.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "positions and node numbers come from the tree itself, never from a request; a wrong \
              one is a bug of this file and must stop here"
)]

use alloc::vec::Vec;

use super::node::Node;
use crate::budget::{Budget, OutOfMemory};

/// Nodes in one of the first slabs.
const SLAB_SHIFT: u32 = 3;
/// Slabs of a size; those after them are twice as large. So there are few slabs, whose list a
/// lookup finds in the nearest cache, and at most an eighth of the nodes was never used.
const SAME_SHIFT: u32 = 3;

/// Where a node is: its slab, and where in that.
pub(super) type Place = (usize, usize);

/// Where a node is. Nodes never move.
#[inline]
pub(super) fn place(number: u32) -> Place {
    let number = number as usize;
    let unit = (number >> SLAB_SHIFT) + (1 << SAME_SHIFT);
    let doublings = unit.ilog2() - SAME_SHIFT;
    let slab = (doublings << SAME_SHIFT) as usize + (unit >> doublings) - (1 << SAME_SHIFT);
    let at = number & ((1 << SLAB_SHIFT) - 1) | (unit & ((1 << doublings) - 1)) << SLAB_SHIFT;
    (slab, at)
}

/// Nodes in a slab.
fn size(slab: usize) -> usize {
    1 << (SLAB_SHIFT as usize + (slab >> SAME_SHIFT))
}

/// Nodes by number, in slabs, so that growing never moves one.
#[derive(Debug)]
pub(super) struct Slabs<N> {
    pub(super) slabs: Vec<Vec<N>>,
    /// Numbers of unused nodes. Always has room for every node.
    pub(super) free: Vec<u32>,
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
    pub(super) fn reserve(&mut self, budget: &mut Budget, nodes: usize) -> Result<(), OutOfMemory> {
        while self.free.len() < nodes {
            let room = size(self.slabs.len());
            let first = u32::try_from(self.nodes()).map_err(|_| OutOfMemory)?;
            let all = self.nodes() + room;
            let after = u32::try_from(all).map_err(|_| OutOfMemory)?;
            // Room to free every node there will be, so that freeing needs no memory.
            let more = all - self.free.len();
            budget.reserve(&mut self.free, more)?;
            budget.reserve(&mut self.slabs, 1)?;
            let mut slab = budget.vec(room)?;
            slab.resize_with(room, || N::EMPTY);
            self.slabs.push(slab);
            self.free.extend((first..after).rev());
        }
        Ok(())
    }

    /// How many nodes there are, used and unused.
    pub(super) fn nodes(&self) -> usize {
        self.slabs.iter().map(Vec::len).sum()
    }

    #[expect(clippy::expect_used, reason = "reserve() was called before any change")]
    pub(super) fn take(&mut self) -> u32 {
        self.free.pop().expect("a node was reserved")
    }

    pub(super) fn give(&mut self, number: u32) {
        self.get_mut(number).clear();
        self.free.push(number);
    }

    #[inline]
    pub(super) fn at(&self, (slab, at): Place) -> &N {
        &self.slabs[slab][at]
    }

    #[inline]
    pub(super) fn at_mut(&mut self, (slab, at): Place) -> &mut N {
        &mut self.slabs[slab][at]
    }

    #[inline]
    pub(super) fn get(&self, number: u32) -> &N {
        self.at(place(number))
    }

    #[inline]
    pub(super) fn get_mut(&mut self, number: u32) -> &mut N {
        self.at_mut(place(number))
    }

    /// Runs `f` on two different nodes.
    pub(super) fn pair<R>(&mut self, a: u32, b: u32, f: impl FnOnce(&mut N, &mut N) -> R) -> R {
        let mut out = core::mem::replace(self.get_mut(a), N::EMPTY);
        let result = f(&mut out, self.get_mut(b));
        *self.get_mut(a) = out;
        result
    }

    pub(super) fn bytes(&self) -> usize {
        self.nodes() * size_of::<N>()
            + self.slabs.len() * size_of::<Vec<N>>()
            + self.free.capacity() * size_of::<u32>()
    }
}
