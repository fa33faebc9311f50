//! Which pages a VM or its devices wrote, as hardware tracks it (`FEAT_HAFDBS`, an SMMU with
//! `IDR0.HTTU` = 2; `VTCR_EL2.HD` or `STE.S2HD` set by the caller).
//!
//! A leaf with the dirty modifier and without write permission is writable and clean: the first
//! write makes hardware set the permission, which is the dirty mark. Plain stores are enough here:
//! a leaf is rewritten only when hardware has nothing left to set in it.

use hal::{FrameAllocator, PhysMemory};
use types::{Address, PageSize, Span};

use crate::format::{Entry, mask};
use crate::stage2::{DIRTY_MODIFIER, WRITE};
use crate::table::{Run, input, page_size, pieces};
use crate::{Error, Invalidate, PageTable, Scope, Stage2, Stale};

/// The smallest size and the level, if there is but one, of leaves that changed.
type Changed = Option<(Run, u8, Option<u8>)>;

impl<A: Address, M: PhysMemory, F: FrameAllocator> PageTable<Stage2<A>, M, F> {
    /// Marks every writable leaf that touches `span` clean, and has hardware mark it at the first
    /// write. A block counts as a whole: map with small pages where that is too coarse.
    ///
    /// # Errors
    /// A bad range, or [`Error::Borrowed`] where another tree must be asked; nothing has changed then.
    pub fn track_dirty<I: Invalidate<A>>(
        &mut self,
        span: Span<A>,
        caches: &mut I,
    ) -> Result<(), Error<A>> {
        self.rewrite(span, caches, |_, leaf| {
            (leaf & WRITE != 0).then_some(leaf & !WRITE | DIRTY_MODIFIER)
        })
    }

    /// Tells `found` of every leaf in `span` that was written since it was last clean, and marks it
    /// clean again. When it returns, every later write marks anew.
    ///
    /// # Errors
    /// As [`PageTable::track_dirty`].
    pub fn take_dirty<I: Invalidate<A>>(
        &mut self,
        span: Span<A>,
        caches: &mut I,
        mut found: impl FnMut(A, PageSize),
    ) -> Result<(), Error<A>> {
        self.rewrite(span, caches, |(level, at), leaf| {
            let dirty = leaf & DIRTY_MODIFIER != 0 && leaf & WRITE != 0;
            if dirty {
                found(input::<Stage2<A>>(at), page_size(level));
            }
            dirty.then_some(leaf & !WRITE)
        })
    }

    /// Makes every leaf that [`PageTable::track_dirty`] changed plainly writable again.
    ///
    /// # Errors
    /// As [`PageTable::track_dirty`].
    pub fn untrack_dirty<I: Invalidate<A>>(
        &mut self,
        span: Span<A>,
        caches: &mut I,
    ) -> Result<(), Error<A>> {
        self.rewrite(span, caches, |_, leaf| {
            (leaf & DIRTY_MODIFIER != 0).then_some(leaf & !DIRTY_MODIFIER | WRITE)
        })
    }

    /// Offers every leaf, with its level and first address, to `edit`, and invalidates what changed.
    fn rewrite<I: Invalidate<A>>(
        &mut self,
        span: Span<A>,
        caches: &mut I,
        mut edit: impl FnMut((u8, u64), u64) -> Option<u64>,
    ) -> Result<(), Error<A>> {
        let run = self.run(span)?;
        let (root, level) = (self.root_bits(), self.geometry.root_level());
        self.check_own(root, level, run)?;
        let mut changed = None;
        self.rewrite_below(root, level, run, &mut edit, &mut changed)?;
        if let Some(((first, last), smallest, level)) = changed
            && let Some(span) = Span::new(input::<Stage2<A>>(first), input::<Stage2<A>>(last))
        {
            caches.publish();
            caches.invalidate(&Stale {
                span,
                stride: page_size(smallest),
                level,
                scope: Scope::Leaves,
            });
            caches.sync();
        }
        Ok(())
    }

    fn check_own(&self, table: u64, level: u8, run: Run) -> Result<(), Error<A>> {
        for piece in pieces(level, run) {
            if let Entry::Table(link) = self.entry(self.slot(table, level, piece.0), level)? {
                if link.borrowed {
                    let at = input::<Stage2<A>>(piece.0);
                    return Err(Error::Borrowed { at });
                }
                // Borrowed tables hang from level 1 at the lowest.
                if level == 0 {
                    self.check_own(link.table, 1, piece)?;
                }
            }
        }
        Ok(())
    }

    fn rewrite_below(
        &self,
        table: u64,
        level: u8,
        run: Run,
        edit: &mut impl FnMut((u8, u64), u64) -> Option<u64>,
        changed: &mut Changed,
    ) -> Result<(), Error<A>> {
        for piece in pieces(level, run) {
            let slot = self.slot(table, level, piece.0);
            match self.entry(slot, level)? {
                Entry::Invalid => {}
                Entry::Table(link) => {
                    self.rewrite_below(link.table, level + 1, piece, edit, changed)?;
                }
                Entry::Leaf(old) => {
                    let start = piece.0 & !mask(level);
                    let Some(new) = edit((level, start), old) else {
                        continue;
                    };
                    self.write(slot, new)?;
                    let last = start | mask(level);
                    *changed = Some(match *changed {
                        None => ((start, last), level, Some(level)),
                        // Ascending, and deeper levels have smaller leaves.
                        Some(((first, _), deepest, same)) => (
                            (first & !mask(deepest.max(level)), last),
                            deepest.max(level),
                            same.filter(|&same| same == level),
                        ),
                    });
                }
            }
        }
        Ok(())
    }
}
