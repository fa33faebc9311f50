//! Adding translations.

use core::marker::PhantomData;

use hal::{FrameAllocator, NotMemory, PhysMemory};
use types::{Pa, PageSize, Span};

use crate::format::{self, Entry, Format, LAST, Link};
use crate::table::{Chain, Run, input, is_whole, page_size, pieces};
use crate::{Error, Invalidate, PageTable, Stage};

/// What every piece of one mapping has in common.
struct Mapping<F> {
    /// Output minus input, modulo 2^64.
    delta: u64,
    attributes: u64,
    largest: PageSize,
    _format: PhantomData<F>,
}

impl<F: Format> Mapping<F> {
    /// Whether one leaf at `level` can map the run.
    #[inline]
    fn fits(&self, level: u8, run: Run) -> bool {
        level == LAST
            || level > 0
                && is_whole(level, run)
                && run.0.wrapping_add(self.delta) & format::mask(level) == 0
                && page_size(level) <= self.largest
    }

    #[inline]
    fn leaf(&self, level: u8, at: u64) -> u64 {
        F::leaf(level, at.wrapping_add(self.delta), self.attributes)
    }

    /// Tables needed below one empty entry of `level` to map `run`.
    fn tables(&self, level: u8, run: Run) -> u64 {
        if self.fits(level, run) {
            0
        } else if level + 1 == LAST {
            1
        } else {
            1 + pieces(level + 1, run)
                .map(|piece| self.tables(level + 1, piece))
                .sum::<u64>()
        }
    }
}

impl<S: Stage, M: PhysMemory, F: FrameAllocator> PageTable<S, M, F> {
    /// Maps `span` to the memory that starts at `pa`, in the largest blocks that fit, up to 1 GiB.
    /// The span and `pa` are multiples of 4 KiB.
    ///
    /// # Errors
    /// Any [`Error`], with nothing changed: a bad range, something mapped already, no frames.
    pub fn map<I>(
        &mut self,
        span: Span<S::Input>,
        pa: Pa,
        attributes: S::Attributes,
        caches: &mut I,
    ) -> Result<(), Error<S::Input>>
    where
        I: Invalidate<S::Input>,
    {
        self.map_up_to(PageSize::SIZE_1G, span, pa, attributes, caches)
    }

    /// [`PageTable::map`] with blocks of at most `largest`.
    ///
    /// # Errors
    /// As [`PageTable::map`].
    pub fn map_up_to<I>(
        &mut self,
        largest: PageSize,
        span: Span<S::Input>,
        pa: Pa,
        attributes: S::Attributes,
        caches: &mut I,
    ) -> Result<(), Error<S::Input>>
    where
        I: Invalidate<S::Input>,
    {
        let run = self.run(span)?;
        if pa.bits() & PageSize::SIZE_4K.mask() != 0 {
            return Err(Error::Misaligned { value: pa.bits() });
        }
        // Both are below 2^56: the sum does not wrap.
        if (pa.bits() + (run.1 - run.0)) >> self.geometry.output_bits() != 0 {
            return Err(Error::OutputRange { pa });
        }
        let mapping = Mapping {
            delta: pa.bits().wrapping_sub(run.0),
            attributes: S::encode(attributes),
            largest,
            _format: PhantomData,
        };
        if !self.map_in_one(run, &mapping)? {
            self.map_anywhere(run, &mapping, caches)?;
        }
        caches.publish();
        Ok(())
    }

    /// Maps a run with whatever tables it takes.
    #[inline(never)]
    fn map_anywhere<I>(
        &self,
        run: Run,
        mapping: &Mapping<S::Format>,
        caches: &mut I,
    ) -> Result<(), Error<S::Input>>
    where
        I: Invalidate<S::Input>,
    {
        let level = self.geometry.root_level();
        let missing = self.missing(self.root_bits(), level, run, mapping)?;
        let mut spare = self.reserve(missing)?;
        self.fill(self.root_bits(), level, run, mapping, &mut spare, caches)?;
        debug_assert!(matches!(self.pop(&mut spare), Ok(None)));
        Ok(())
    }

    /// Maps a run of free entries of one table, which is what most mappings are. Returns whether it
    /// was one.
    #[inline]
    fn map_in_one(&self, run: Run, mapping: &Mapping<S::Format>) -> Result<bool, Error<S::Input>> {
        let Some((table, level)) = self.table_of(run) else {
            return Ok(false);
        };
        let mask = format::mask(level);
        // Whole entries, of a size that may be used and at an output that has the alignment.
        let whole = run.0 & mask == 0 && run.1 & mask == mask;
        let first = (run.0, run.0 | mask);
        if !whole || !mapping.fits(level, first) {
            return Ok(false);
        }
        let mut slot = self.slot(table, level, run.0).bits();
        let end = slot + 8 * (((run.1 - run.0) >> format::shift(level)) + 1);
        while slot < end {
            if self.entry(Pa::truncated(slot), level)? != Entry::Invalid {
                return Ok(false);
            }
            slot += 8;
        }
        self.write_leaves(table, level, run, mapping.leaf(level, run.0))?;
        Ok(true)
    }

    /// Tables to be added below `table` to map `run`; refuses a run in which anything is mapped.
    fn missing(
        &self,
        table: u64,
        level: u8,
        run: Run,
        mapping: &Mapping<S::Format>,
    ) -> Result<u64, Error<S::Input>> {
        let mut missing = 0;
        for piece in pieces(level, run) {
            let at = || input::<S>(piece.0);
            missing += match self.entry(self.slot(table, level, piece.0), level)? {
                Entry::Invalid => mapping.tables(level, piece),
                Entry::Leaf(_) => return Err(Error::AlreadyMapped { at: at() }),
                Entry::Table(link) if link.borrowed => {
                    return Err(Error::Borrowed { at: at() });
                }
                Entry::Table(link) => self.missing(link.table, level + 1, piece, mapping)?,
            };
        }
        Ok(missing)
    }

    /// Maps `run` below `table`. [`PageTable::missing`] has found it free.
    fn fill<I>(
        &self,
        table: u64,
        level: u8,
        run: Run,
        mapping: &Mapping<S::Format>,
        spare: &mut Chain,
        caches: &mut I,
    ) -> Result<(), Error<S::Input>>
    where
        I: Invalidate<S::Input>,
    {
        // Nothing to be found at the last level: it is known to be free.
        if level == LAST {
            self.write_leaves(table, level, run, mapping.leaf(level, run.0))?;
            return Ok(());
        }
        for piece in pieces(level, run) {
            let slot = self.slot(table, level, piece.0);
            if let Entry::Table(link) = self.entry(slot, level)? {
                self.fill(link.table, level + 1, piece, mapping, spare, caches)?;
            } else if mapping.fits(level, piece) {
                self.write(slot, mapping.leaf(level, piece.0))?;
            } else {
                let new = self.build(level + 1, piece, mapping, spare)?;
                self.link(slot, new, caches)?;
            }
        }
        Ok(())
    }

    /// A table of `level` that maps `run` and that no walker knows yet.
    fn build(
        &self,
        level: u8,
        run: Run,
        mapping: &Mapping<S::Format>,
        spare: &mut Chain,
    ) -> Result<u64, Error<S::Input>> {
        let table = self.take(spare)?;
        if level == LAST {
            self.write_leaves(table, level, run, mapping.leaf(level, run.0))?;
            return Ok(table);
        }
        for piece in pieces(level, run) {
            let slot = self.slot(table, level, piece.0);
            let descriptor = if mapping.fits(level, piece) {
                mapping.leaf(level, piece.0)
            } else {
                let below = self.build(level + 1, piece, mapping, spare)?;
                S::Format::link(Link::to(below))
            };
            self.write(slot, descriptor)?;
        }
        Ok(table)
    }

    /// A table from the chain, which was counted beforehand.
    pub(crate) fn take(&self, spare: &mut Chain) -> Result<u64, NotMemory> {
        let table = self.pop(spare)?;
        debug_assert!(table.is_some(), "tables were miscounted");
        match table {
            Some(table) => Ok(table),
            None => Err(NotMemory {
                pa: self.root(),
                bytes: 0,
            }),
        }
    }
}
