//! A tree: its root, walks, leaves, its end.

use core::fmt;
use core::marker::PhantomData;

use hal::{FrameAllocator, NotMemory, OutOfFrames, PhysMemory};
use types::{Address, Pa, PageSize, Span};

use crate::format::{self, ENTRIES, Entry, Format, LAST, Link, Vmsav8};
use crate::{Error, Geometry, Invalidate, Stage};

/// A translation tree.
///
/// The tree is a value without a lock. It does not free itself: end it with
/// [`PageTable::destroy`].
#[must_use = "a tree that is dropped without `destroy` never gives its frames back"]
pub struct PageTable<S: Stage, M, F> {
    root: Pa,
    pub(crate) geometry: Geometry,
    memory: M,
    pub(crate) frames: F,
    _stage: PhantomData<S>,
}

impl<S: Stage, M, F> fmt::Debug for PageTable<S, M, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageTable")
            .field("root", &self.root)
            .field("geometry", &self.geometry)
            .finish_non_exhaustive()
    }
}

/// What an address translates to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf<S: Stage> {
    /// The first input address of the block or page.
    pub start: S::Input,
    /// What the address asked for translates to; for an iterated leaf, what `start` does.
    pub pa: Pa,
    /// Permissions and memory type.
    pub attributes: S::Attributes,
    /// The size of the block or page.
    pub size: PageSize,
    /// The level of the descriptor: 1 to 3.
    pub level: u8,
    /// The descriptor.
    pub descriptor: u64,
}

/// Why an address does not translate: what a walker would report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind:?} at level {level}")]
pub struct Fault {
    /// The level the walk ended at.
    pub level: u8,
    /// What was wrong.
    pub kind: FaultKind,
}

/// The kinds of [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The address is wider than the tree's input.
    InputSize,
    /// Nothing is mapped there.
    Translation,
    /// The leaf's access flag is clear.
    AccessFlag,
    /// A leaf this crate never writes.
    Unrecognised {
        /// The descriptor.
        descriptor: u64,
    },
    /// A table lies outside memory.
    NotMemory {
        /// Where the walk went.
        pa: Pa,
    },
}

impl<S: Stage<Format = Vmsav8>, M: PhysMemory, F: FrameAllocator> PageTable<S, M, F> {
    /// An empty tree. Its tables come from `frames` and are written through `memory`.
    ///
    /// # Errors
    /// [`OutOfFrames`] when there is no room for the root.
    pub fn new(geometry: Geometry, memory: M, frames: F) -> Result<Self, OutOfFrames> {
        Self::with_geometry(geometry, memory, frames)
    }
}

impl<S: Stage, M: PhysMemory, F: FrameAllocator> PageTable<S, M, F> {
    pub(crate) fn with_geometry(
        geometry: Geometry,
        memory: M,
        frames: F,
    ) -> Result<Self, OutOfFrames> {
        let root = frames.alloc_zeroed(geometry.root_order())?;
        Ok(Self {
            root,
            geometry,
            memory,
            frames,
            _stage: PhantomData,
        })
    }

    /// The root table, for `TTBR0_EL2`, `VTTBR_EL2` or `STE.S2TTB`. Aligned to its size.
    #[must_use]
    pub fn root(&self) -> Pa {
        self.root
    }

    /// The shape of the tree.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// What `at` translates to.
    ///
    /// # Errors
    /// The [`Fault`] a walker would take; permissions are for the caller to judge.
    #[inline]
    pub fn walk(&self, at: S::Input) -> Result<Leaf<S>, Fault> {
        let bits = at.bits();
        let mut level = self.geometry.root_level();
        let fault = |level, kind| Err(Fault { level, kind });
        if bits >> self.geometry.input_bits() != 0 {
            return fault(level, FaultKind::InputSize);
        }
        let mut slot = self.slot(self.root.bits(), level, bits);
        loop {
            let descriptor = match self.read(slot) {
                Ok(descriptor) => descriptor,
                Err(NotMemory { pa, .. }) => return fault(level, FaultKind::NotMemory { pa }),
            };
            match S::Format::decode(descriptor, level) {
                Entry::Table(link) => {
                    level += 1;
                    slot = self.slot(link.table, level, bits);
                }
                Entry::Leaf(descriptor) => return self.leaf(at, level, descriptor),
                Entry::Invalid => return fault(level, FaultKind::Translation),
            }
        }
    }

    #[inline]
    fn leaf(&self, at: S::Input, level: u8, descriptor: u64) -> Result<Leaf<S>, Fault> {
        let mask = format::mask(level);
        let unrecognised = Fault {
            level,
            kind: FaultKind::Unrecognised { descriptor },
        };
        if descriptor & S::Format::ACCESSED == 0 {
            let kind = FaultKind::AccessFlag;
            return Err(Fault { level, kind });
        }
        let size = page_size(level);
        Ok(Leaf {
            start: at.align_down(size),
            pa: Pa::truncated(descriptor & S::Format::ADDRESS & !mask | at.bits() & mask),
            attributes: S::decode(descriptor).ok_or(unrecognised)?,
            size,
            level,
            descriptor,
        })
    }

    /// All leaves that touch `span`, in ascending order. A leaf of an encoding this crate never
    /// writes is passed over.
    pub fn leaves(&self, span: Span<S::Input>) -> Leaves<'_, S, M, F> {
        Leaves {
            table: self,
            rest: Some((span.start().bits(), span.last().bits())),
        }
    }

    /// Ends the tree and gives all its tables back. What it mapped is untouched.
    ///
    /// # Errors
    /// [`Error::Shared`] or [`Error::Borrowed`], with the tree, while a sub-table is shared with
    /// another.
    pub fn destroy<I>(self, caches: &mut I) -> Result<(), (Self, Error<S::Input>)>
    where
        I: Invalidate<S::Input>,
    {
        let whole = (0, (1 << self.geometry.input_bits()) - 1);
        let level = self.geometry.root_level();
        if let Err(error) = self.check_unshared(self.root.bits(), level, whole) {
            return Err((self, error));
        }
        caches.invalidate_all();
        caches.sync();
        self.free_tables(self.root.bits(), level, whole);
        self.frames.free(self.root, self.geometry.root_order());
        Ok(())
    }

    fn check_unshared(&self, table: u64, level: u8, run: Run) -> Result<(), Error<S::Input>> {
        for (first, last) in pieces(level, run) {
            if let Entry::Table(link) = self.entry(self.slot(table, level, first), level)? {
                let at = input::<S>(first);
                if link.borrowed {
                    return Err(Error::Borrowed { at });
                }
                if link.shares > 0 {
                    return Err(Error::Shared { at });
                }
                if level + 1 < LAST {
                    self.check_unshared(link.table, level + 1, (first, last))?;
                }
            }
        }
        Ok(())
    }

    /// Frees the tables below `table`, which no walker uses any more.
    pub(crate) fn free_tables(&self, table: u64, level: u8, run: Run) {
        if level == LAST {
            return;
        }
        for (first, last) in pieces(level, run) {
            // A table outside memory cannot be followed; its frames are lost, nothing else.
            if let Ok(Entry::Table(link)) = self.entry(self.slot(table, level, first), level) {
                self.free_tables(link.table, level + 1, (first, last));
                self.frames.free(Pa::truncated(link.table), 0);
            }
        }
    }

    pub(crate) fn root_bits(&self) -> u64 {
        self.root.bits()
    }

    /// Where the entry for `at` is in a table of this level.
    #[inline]
    pub(crate) fn slot(&self, table: u64, level: u8, at: u64) -> Pa {
        let index = at >> format::shift(level);
        let index = if level == self.geometry.root_level() {
            index
        } else {
            index % ENTRIES
        };
        Pa::truncated(table + index * 8)
    }

    #[inline]
    pub(crate) fn read(&self, slot: Pa) -> Result<u64, NotMemory> {
        self.memory.read_u64(slot).map(S::Format::in_memory)
    }

    /// Entries as they are in memory.
    pub(crate) fn read_many(&self, slot: Pa, into: &mut [u8]) -> Result<(), NotMemory> {
        self.memory.read(slot, into)
    }

    #[inline]
    pub(crate) fn write(&self, slot: Pa, descriptor: u64) -> Result<(), NotMemory> {
        self.memory
            .write_u64(slot, S::Format::in_memory(descriptor))
    }

    #[inline]
    pub(crate) fn entry(&self, slot: Pa, level: u8) -> Result<Entry, NotMemory> {
        Ok(S::Format::decode(self.read(slot)?, level))
    }

    /// Writes the leaves of `run` side by side, each like the `first` but for its output.
    #[inline]
    pub(crate) fn write_leaves(
        &self,
        table: u64,
        level: u8,
        run: Run,
        first: u64,
    ) -> Result<(), NotMemory> {
        let step = 1 << format::shift(level);
        let mut slot = self.slot(table, level, run.0).bits();
        let end = slot + 8 * (((run.1 - run.0) >> format::shift(level)) + 1);
        let mut descriptor = first;
        while slot < end {
            self.write(Pa::truncated(slot), descriptor)?;
            slot += 8;
            descriptor += step;
        }
        Ok(())
    }

    /// The lowest table that alone holds all of `run`, with its level. `None` when that is another
    /// tree's, or cannot be read: then the general way finds what to say.
    #[inline]
    pub(crate) fn table_of(&self, run: Run) -> Option<(u64, u8)> {
        let mut table = self.root.bits();
        let mut level = self.geometry.root_level();
        let differ = run.0 ^ run.1;
        while level < LAST && differ >> format::shift(level) == 0 {
            match self.entry(self.slot(table, level, run.0), level) {
                Ok(Entry::Table(link)) if !link.borrowed => table = link.table,
                Ok(Entry::Invalid | Entry::Leaf(_)) => break,
                _ => return None,
            }
            level += 1;
        }
        Some((table, level))
    }

    /// Checks alignment and input range of a change.
    #[inline]
    pub(crate) fn run(&self, span: Span<S::Input>) -> Result<Run, Error<S::Input>> {
        let (first, last) = (span.start().bits(), span.last().bits());
        if first & PageSize::SIZE_4K.mask() != 0 {
            return Err(Error::Misaligned { value: first });
        }
        let next = last.wrapping_add(1);
        if next & PageSize::SIZE_4K.mask() != 0 {
            return Err(Error::Misaligned { value: next });
        }
        if last >> self.geometry.input_bits() != 0 {
            return Err(Error::InputRange { last: span.last() });
        }
        Ok((first, last))
    }

    /// A zeroed table.
    pub(crate) fn new_table(&self) -> Result<u64, OutOfFrames> {
        self.frames.alloc_zeroed(0).map(Pa::bits)
    }
}

/// Input addresses from the first to the last, both included.
pub(crate) type Run = (u64, u64);

/// The parts of `run` by entry of a table at `level`.
#[inline]
pub(crate) fn pieces(level: u8, (first, last): Run) -> impl Iterator<Item = Run> {
    let mask = format::mask(level);
    let mut next = Some(first);
    core::iter::from_fn(move || {
        let start = next?;
        let end = (start | mask).min(last);
        next = (end < last).then(|| end + 1);
        Some((start, end))
    })
}

/// Whether the run is all that one entry of `level` translates.
#[inline]
pub(crate) fn is_whole(level: u8, (first, last): Run) -> bool {
    last - first == format::mask(level)
}

/// The size of a leaf at `level`.
#[inline]
pub(crate) fn page_size(level: u8) -> PageSize {
    match level {
        0 => PageSize::SIZE_512G,
        1 => PageSize::SIZE_1G,
        2 => PageSize::SIZE_2M,
        _ => PageSize::SIZE_4K,
    }
}

/// An address that [`PageTable::run`] has bounded.
pub(crate) fn input<S: Stage>(bits: u64) -> S::Input {
    S::Input::truncated(bits)
}

/// Tables that wait in a chain: to be used by a change that must not fail half way, or to be freed
/// once no cache knows them. The chain runs through the first word of each, as an invalid
/// descriptor, so that a walker which still knows the table finds nothing in it.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    head: Option<u64>,
}

/// With a chained table's address: keeps "none" and "table 0" apart. No format's [`Format::VALID`].
const CHAINED: u64 = 1 << 1;

impl<S: Stage, M: PhysMemory, F: FrameAllocator> PageTable<S, M, F> {
    /// Puts a table whose entries are all invalid on the chain.
    pub(crate) fn push(&self, chain: &mut Chain, table: u64) -> Result<(), NotMemory> {
        let next = chain.head.map_or(0, |next| next | CHAINED);
        self.write(Pa::truncated(table), next)?;
        chain.head = Some(table);
        Ok(())
    }

    /// Takes a table off the chain, zeroed.
    pub(crate) fn pop(&self, chain: &mut Chain) -> Result<Option<u64>, NotMemory> {
        let Some(table) = chain.head else {
            return Ok(None);
        };
        let slot = Pa::truncated(table);
        let next = self.read(slot)?;
        self.write(slot, 0)?;
        chain.head = (next != 0).then_some(next & !CHAINED);
        Ok(Some(table))
    }

    /// Gives the chained tables back.
    pub(crate) fn free_chain(&self, mut chain: Chain) -> Result<(), NotMemory> {
        while let Some(table) = self.pop(&mut chain)? {
            self.frames.free(Pa::truncated(table), 0);
        }
        Ok(())
    }

    /// A chain of `count` tables, or none at all.
    pub(crate) fn reserve(&self, count: u64) -> Result<Chain, Error<S::Input>> {
        let mut chain = Chain::default();
        for _ in 0..count {
            match self.new_table() {
                Ok(table) => self.push(&mut chain, table)?,
                Err(out) => {
                    self.free_chain(chain)?;
                    return Err(out.into());
                }
            }
        }
        Ok(chain)
    }

    /// Writes the entry that makes `table` reachable; its content is visible before.
    pub(crate) fn link<I>(&self, slot: Pa, table: u64, caches: &mut I) -> Result<(), NotMemory>
    where
        I: Invalidate<S::Input>,
    {
        caches.publish();
        self.write(slot, S::Format::link(Link::to(table)))
    }
}

/// The iterator of [`PageTable::leaves`].
#[derive(Debug)]
pub struct Leaves<'t, S: Stage, M, F> {
    table: &'t PageTable<S, M, F>,
    rest: Option<Run>,
}

impl<S: Stage, M: PhysMemory, F: FrameAllocator> Iterator for Leaves<'_, S, M, F> {
    type Item = Leaf<S>;

    fn next(&mut self) -> Option<Leaf<S>> {
        loop {
            let (at, last) = self.rest?;
            let found = self.table.walk(input::<S>(at));
            let level = match found {
                Ok(leaf) => leaf.level,
                // Beyond the input space there is nothing more.
                Err(Fault {
                    kind: FaultKind::InputSize,
                    ..
                }) => {
                    self.rest = None;
                    return None;
                }
                Err(fault) => fault.level,
            };
            let end = at | format::mask(level);
            self.rest = (end < last).then(|| (end + 1, last));
            if let Ok(leaf) = found {
                let pa = leaf.pa.align_down(leaf.size);
                return Some(Leaf { pa, ..leaf });
            }
        }
    }
}
