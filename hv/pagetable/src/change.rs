//! Removing translations and changing their attributes: break, invalidate, make.

use hal::{FrameAllocator, OutOfFrames, PhysMemory};
use types::{Pa, PageSize, Span};

use crate::format::{self, ENTRIES, Entry, Format, LAST, Link};
use crate::table::{Chain, Run, input, is_whole, page_size, pieces};
use crate::{Error, Invalidate, PageTable, Scope, Stage, Stale};

/// What happens to every leaf in a range.
#[derive(Clone, Copy)]
enum Edit {
    Remove,
    /// The new attribute bits.
    Set(u64),
}

impl Edit {
    /// The descriptor in place of this leaf.
    fn apply<F: Format>(self, level: u8, old: u64) -> u64 {
        match self {
            Self::Remove => 0,
            Self::Set(attributes) => F::leaf(level, old, attributes),
        }
    }
}

/// A table that is to be linked in place of a block, once no cache holds the block.
#[derive(Clone, Copy)]
struct Replacement {
    slot: Pa,
    table: u64,
    /// The level of the table.
    level: u8,
}

/// A change under way.
#[derive(Default)]
struct Change {
    /// Tables that will stand in place of blocks that the range covers in part: one at each end.
    tables: [Option<Replacement>; 2],
    /// What must be invalidated: the run, the shift of the smallest leaf, the level.
    stale: Option<(Run, u8, Option<u8>)>,
    tables_went: bool,
    /// Leaves wait, invalid, for their new attributes.
    parked: bool,
    freed: Chain,
    bytes: u64,
}

impl Change {
    /// A leaf of `level` that may be cached is no longer what it was.
    fn note(&mut self, level: u8, run: Run) {
        let mask = format::mask(level);
        let (first, last) = (run.0 & !mask, run.1 | mask);
        let shift = format::shift(level);
        self.stale = Some(match self.stale {
            None => ((first, last), shift, Some(level)),
            Some((old, smallest, same)) => (
                (old.0.min(first), old.1.max(last)),
                smallest.min(shift),
                same.filter(|&same| same == level),
            ),
        });
    }

    /// The table that led to `at` goes. It has an address among the stale ones, for the walk caches,
    /// even if no leaf went with it.
    fn note_table(&mut self, at: u64) {
        self.tables_went = true;
        match &mut self.stale {
            None => self.note(LAST, (at, at)),
            Some(((first, last), smallest, _)) => {
                let mask = (1 << *smallest) - 1;
                *first = (*first).min(at & !mask);
                *last = (*last).max(at | mask);
            }
        }
    }
}

impl<S: Stage, M: PhysMemory, F: FrameAllocator> PageTable<S, M, F> {
    /// Removes what is mapped in `span`, which may have holes. Returns the bytes that were mapped.
    /// When it returns, no cache holds a translation of the span.
    ///
    /// # Errors
    /// Any [`Error`], with nothing changed. Frames are needed only where the span covers a block in
    /// part: at most two tables an end.
    pub fn unmap<I>(&mut self, span: Span<S::Input>, caches: &mut I) -> Result<u64, Error<S::Input>>
    where
        I: Invalidate<S::Input>,
    {
        let run = self.run(span)?;
        if let Some(bytes) = self.unmap_in_one(span, run, caches)? {
            return Ok(bytes);
        }
        self.change(span, Edit::Remove, caches)
    }

    /// Removes whole leaves of one table that stays in use, which is what most unmappings do. `None`
    /// when it is something else; then nothing has changed.
    #[inline]
    fn unmap_in_one<I>(
        &self,
        span: Span<S::Input>,
        run: Run,
        caches: &mut I,
    ) -> Result<Option<u64>, Error<S::Input>>
    where
        I: Invalidate<S::Input>,
    {
        let Some((table, level)) = self.table_of(run) else {
            return Ok(None);
        };
        let mask = format::mask(level);
        let whole = run.0 & mask == 0 && run.1 & mask == mask;
        // The root is never given back.
        let is_root = level == self.geometry.root_level();
        if !whole || !(is_root || self.is_used_outside(table, level, run)?) {
            return Ok(None);
        }
        let first = self.slot(table, level, run.0).bits();
        let end = first + 8 * (((run.1 - run.0) >> format::shift(level)) + 1);
        let mut leaves = 0;
        let mut slot = first;
        while slot < end {
            match self.entry(Pa::truncated(slot), level)? {
                Entry::Leaf(_) => leaves += 1,
                Entry::Invalid => {}
                Entry::Table(_) => return Ok(None),
            }
            slot += 8;
        }
        if leaves == 0 {
            return Ok(Some(0));
        }
        let mut slot = first;
        while slot < end {
            self.write(Pa::truncated(slot), 0)?;
            slot += 8;
        }
        caches.publish();
        caches.invalidate(&Stale {
            span,
            stride: page_size(level),
            level: Some(level),
            scope: Scope::Leaves,
        });
        caches.sync();
        Ok(Some(leaves << format::shift(level)))
    }

    /// Gives all of `span`, every page of which is mapped, other attributes. When it returns, no
    /// cache holds the old ones.
    ///
    /// # Errors
    /// Any [`Error`], with nothing changed: [`Error::NotMapped`] when there is a hole.
    pub fn protect<I>(
        &mut self,
        span: Span<S::Input>,
        attributes: S::Attributes,
        caches: &mut I,
    ) -> Result<(), Error<S::Input>>
    where
        I: Invalidate<S::Input>,
    {
        self.change(span, Edit::Set(S::encode(attributes)), caches)?;
        Ok(())
    }

    #[inline(never)]
    fn change<I>(
        &mut self,
        span: Span<S::Input>,
        edit: Edit,
        caches: &mut I,
    ) -> Result<u64, Error<S::Input>>
    where
        I: Invalidate<S::Input>,
    {
        let run = self.run(span)?;
        let (root, level) = (self.root_bits(), self.geometry.root_level());
        let mut change = Change::default();
        // Everything that can fail comes before the first write to the tree.
        if let Err(error) = self.prepare(root, level, run, edit, &mut change) {
            for new in change.tables.into_iter().flatten() {
                self.discard(new.table, new.level);
            }
            return Err(error);
        }
        self.break_entries(root, level, run, edit, &mut change)?;
        self.settle(&change, caches);
        if change.parked {
            self.unpark(root, level, run, edit)?;
        }
        for new in change.tables.into_iter().flatten() {
            self.link(new.slot, new.table, caches)?;
        }
        if change.parked || change.tables.iter().any(Option::is_some) {
            caches.publish();
        }
        self.free_chain(change.freed)?;
        Ok(change.bytes)
    }

    /// Checks the run and builds the tables that will replace blocks it covers in part.
    fn prepare(
        &self,
        table: u64,
        level: u8,
        run: Run,
        edit: Edit,
        change: &mut Change,
    ) -> Result<(), Error<S::Input>> {
        let removing = matches!(edit, Edit::Remove);
        if removing && level == LAST {
            return Ok(());
        }
        for piece in pieces(level, run) {
            let at = || input::<S>(piece.0);
            let slot = self.slot(table, level, piece.0);
            match self.entry(slot, level)? {
                Entry::Invalid if removing => {}
                Entry::Invalid => return Err(Error::NotMapped { at: at() }),
                Entry::Table(link) if link.borrowed => {
                    return Err(Error::Borrowed { at: at() });
                }
                Entry::Table(link) => {
                    self.prepare(link.table, level + 1, piece, edit, change)?;
                }
                Entry::Leaf(_) if is_whole(level, piece) => {}
                Entry::Leaf(old) => {
                    let table = self.split(level, old, piece.0, Some((piece, edit)))?;
                    let level = level + 1;
                    // A contiguous run covers at most two blocks in part, one at each end.
                    let [first, second] = &mut change.tables;
                    let free = if first.is_none() { first } else { second };
                    debug_assert!(free.is_none());
                    *free = Some(Replacement { slot, table, level });
                }
            }
        }
        Ok(())
    }

    /// The table of `level + 1` that translates as the block `old` of `level`, which maps `at`, does,
    /// but for a run to which an edit is applied.
    fn split(
        &self,
        level: u8,
        old: u64,
        at: u64,
        edit: Option<(Run, Edit)>,
    ) -> Result<u64, OutOfFrames> {
        let table = self.new_table()?;
        let start = at & !format::mask(level);
        let whole = (start, start | format::mask(level));
        let level = level + 1;
        match self.write_split(table, level, old, whole, edit) {
            Ok(()) => Ok(table),
            Err(out) => {
                self.discard(table, level);
                Err(out)
            }
        }
    }

    /// Fills the table of [`PageTable::split`]; what it links is freed with it on failure.
    fn write_split(
        &self,
        table: u64,
        level: u8,
        old: u64,
        whole: Run,
        edit: Option<(Run, Edit)>,
    ) -> Result<(), OutOfFrames> {
        // A frame just allocated is memory; were it not, the block keeps its translation.
        let out = |_| OutOfFrames { frames: 1 };
        let same = |at: u64| {
            let output = (old & S::Format::ADDRESS) + (at - whole.0);
            S::Format::leaf(level, output, old & !S::Format::ADDRESS)
        };
        self.write_leaves(table, level, whole, same(whole.0))
            .map_err(out)?;
        let Some((run, edit)) = edit else {
            return Ok(());
        };
        for piece in pieces(level, run) {
            let same = same(piece.0 & !format::mask(level));
            let descriptor = if is_whole(level, piece) {
                edit.apply::<S::Format>(level, same)
            } else {
                let below = self.split(level, same, piece.0, Some((piece, edit)))?;
                S::Format::link(Link::to(below))
            };
            self.write(self.slot(table, level, piece.0), descriptor)
                .map_err(out)?;
        }
        Ok(())
    }

    /// Puts a table in place of the block `old` of `level` at `slot`, which maps `at`. It translates
    /// the same.
    pub(crate) fn unfold<I>(
        &self,
        slot: Pa,
        level: u8,
        old: u64,
        at: u64,
        caches: &mut I,
    ) -> Result<(), Error<S::Input>>
    where
        I: Invalidate<S::Input>,
    {
        let table = self.split(level, old, at, None)?;
        let mut change = Change::default();
        self.write(slot, 0)?;
        change.note(level, (at, at));
        self.settle(&change, caches);
        self.link(slot, table, caches)?;
        caches.publish();
        Ok(())
    }

    /// Frees a table that was never linked, and those below.
    fn discard(&self, table: u64, level: u8) {
        let whole = (0, (ENTRIES << format::shift(level)) - 1);
        self.free_tables(table, level, whole);
        self.frames.free(Pa::truncated(table), 0);
    }

    /// Makes entries invalid, or, where that is allowed, changes them in place. Returns whether
    /// an entry of the run stays in use.
    fn break_entries(
        &self,
        table: u64,
        level: u8,
        run: Run,
        edit: Edit,
        change: &mut Change,
    ) -> Result<bool, Error<S::Input>> {
        let mut stays = false;
        for piece in pieces(level, run) {
            let slot = self.slot(table, level, piece.0);
            match self.entry(slot, level)? {
                Entry::Invalid => {}
                Entry::Table(link) => {
                    let below = level + 1;
                    let used = self.break_entries(link.table, below, piece, edit, change)?
                        || link.shares > 0
                        || matches!(edit, Edit::Set(_))
                        || self.is_used_outside(link.table, below, piece)?;
                    if used {
                        stays = true;
                    } else {
                        self.write(slot, 0)?;
                        self.push(&mut change.freed, link.table)?;
                        change.note_table(piece.0);
                    }
                }
                Entry::Leaf(_) if !is_whole(level, piece) => {
                    self.write(slot, 0)?;
                    change.note(level, piece);
                    change.bytes += piece.1 - piece.0 + 1;
                    stays = true;
                }
                Entry::Leaf(old) => {
                    let new = edit.apply::<S::Format>(level, old);
                    if new == old {
                        continue;
                    }
                    let in_place = new == 0 || (new ^ old) & !S::PERMISSIONS == 0;
                    self.write(
                        slot,
                        if in_place {
                            new
                        } else {
                            old & !S::Format::VALID
                        },
                    )?;
                    change.parked |= !in_place;
                    change.note(level, piece);
                    change.bytes += piece.1 - piece.0 + 1;
                }
            }
        }
        Ok(stays)
    }

    /// Whether a table has an entry in use that does not belong to `run`.
    #[inline]
    fn is_used_outside(&self, table: u64, level: u8, run: Run) -> Result<bool, Error<S::Input>> {
        let index = |at: u64| at >> format::shift(level) & (ENTRIES - 1);
        let (first, last) = (index(run.0), index(run.1));
        // From the neighbours outwards: a range is seldom alone.
        if last + 1 < ENTRIES && self.read(Pa::truncated(table + (last + 1) * 8))? != 0 {
            return Ok(true);
        }
        if first > 0 && self.read(Pa::truncated(table + (first - 1) * 8))? != 0 {
            return Ok(true);
        }
        self.is_used_far_outside(table, first, last)
    }

    /// The rest of it, many entries at a time.
    #[cold]
    fn is_used_far_outside(
        &self,
        table: u64,
        first: u64,
        last: u64,
    ) -> Result<bool, Error<S::Input>> {
        const PIECE: usize = 64;
        let mut bytes = [0; 8 * PIECE];
        for from in (0..ENTRIES).step_by(PIECE) {
            self.read_many(Pa::truncated(table + from * 8), &mut bytes)?;
            let (words, _) = bytes.as_chunks_mut::<8>();
            // The run's own do not count.
            if from <= last && first < from + PIECE as u64 {
                for (index, word) in (from..).zip(words.iter_mut()) {
                    if (first..=last).contains(&index) {
                        *word = [0; 8];
                    }
                }
            }
            let used = words
                .iter()
                .fold(0, |all, word| all | u64::from_ne_bytes(*word))
                != 0;
            if used {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns when no cache holds anything stale.
    fn settle<I>(&self, change: &Change, caches: &mut I)
    where
        I: Invalidate<S::Input>,
    {
        let Some((run, smallest, level)) = change.stale else {
            return;
        };
        let Some(span) = Span::new(input::<S>(run.0), input::<S>(run.1)) else {
            return;
        };
        caches.publish();
        caches.invalidate(&Stale {
            span,
            stride: PageSize::from_shift(smallest).unwrap_or(page_size(LAST)),
            level,
            scope: if change.tables_went {
                Scope::Walks
            } else {
                Scope::Leaves
            },
        });
        caches.sync();
    }

    /// Gives parked leaves their new attributes.
    fn unpark(&self, table: u64, level: u8, run: Run, edit: Edit) -> Result<(), Error<S::Input>> {
        for piece in pieces(level, run) {
            let slot = self.slot(table, level, piece.0);
            let descriptor = self.read(slot)?;
            match S::Format::decode(descriptor, level) {
                Entry::Table(link) => self.unpark(link.table, level + 1, piece, edit)?,
                Entry::Invalid if descriptor != 0 => {
                    self.write(slot, edit.apply::<S::Format>(level, descriptor))?;
                }
                Entry::Invalid | Entry::Leaf(_) => {}
            }
        }
        Ok(())
    }
}
