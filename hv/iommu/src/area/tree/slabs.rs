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

/// Bits of a number that say where in its slab a node is; those above say in which slab.
const AT_BITS: u32 = 24;

/// Where a node is. Nodes never move.
#[inline]
pub(super) fn place(number: u32) -> Place {
    let at = number & ((1 << AT_BITS) - 1);
    ((number >> AT_BITS) as usize, at as usize)
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
            let slabs = self.slabs.len();
            let room = size(slabs);
            let after = u32::try_from(room).map_err(|_| OutOfMemory)?;
            let slab_bits = u32::try_from(slabs).map_err(|_| OutOfMemory)?;
            if room > 1 << AT_BITS || slabs >> (u32::BITS - AT_BITS) != 0 {
                return Err(OutOfMemory);
            }
            let all = self.nodes() + room;
            // Room to free every node there will be, so that freeing needs no memory.
            let more = all - self.free.len();
            budget.reserve(&mut self.free, more)?;
            budget.reserve(&mut self.slabs, 1)?;
            let mut slab = budget.vec(room)?;
            slab.resize_with(room, || N::EMPTY);
            self.slabs.push(slab);
            let numbers = (0..after).rev().map(|at| slab_bits << AT_BITS | at);
            self.free.extend(numbers);
        }
        Ok(())
    }

    /// The numbers of all nodes, used and unused.
    #[cfg(test)]
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        let slabs = (0_u32..).zip(&self.slabs);
        slabs.flat_map(|(slab, nodes)| {
            (0_u32..)
                .zip(nodes)
                .map(move |(at, _)| slab << AT_BITS | at)
        })
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
