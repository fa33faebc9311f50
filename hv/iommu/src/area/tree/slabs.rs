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

/// Nodes in a slab.
pub(super) const SLAB_SHIFT: u32 = 4;
pub(super) const SLAB: usize = 1 << SLAB_SHIFT;

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
    pub(super) fn take(&mut self) -> u32 {
        self.free.pop().expect("a node was reserved")
    }

    pub(super) fn give(&mut self, number: u32) {
        *self.get_mut(number) = N::EMPTY;
        self.free.push(number);
    }

    #[inline]
    pub(super) fn get(&self, number: u32) -> &N {
        let number = number as usize;
        &self.slabs[number >> SLAB_SHIFT][number & (SLAB - 1)]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, number: u32) -> &mut N {
        let number = number as usize;
        &mut self.slabs[number >> SLAB_SHIFT][number & (SLAB - 1)]
    }

    /// Runs `f` on two different nodes.
    pub(super) fn pair<R>(&mut self, a: u32, b: u32, f: impl FnOnce(&mut N, &mut N) -> R) -> R {
        let mut out = core::mem::replace(self.get_mut(a), N::EMPTY);
        let result = f(&mut out, self.get_mut(b));
        *self.get_mut(a) = out;
        result
    }

    pub(super) fn bytes(&self) -> usize {
        self.slabs.len() * (SLAB * size_of::<N>() + size_of::<Vec<N>>()) + self.free.capacity() * 4
    }
}
