//! One window's tables in memory: up to five levels, the lower ones made as they are needed.

use hal::{FrameAllocator, NotMemory, SharedMemory};
use types::{Pa, PageSize};

use super::tve::{Shape, Tve};
use crate::{OutOfMemory, Tce};

/// What an upper-level entry has besides the address of the table below.
const LINK: u64 = Tce::RIGHTS;

/// Why an entry could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Error {
    /// No frames for a table. What was written before is still there.
    OutOfMemory,
    /// Frames of ours are not memory: whoever gave them is wrong.
    NotMemory,
}

impl From<NotMemory> for Error {
    fn from(_: NotMemory) -> Self {
        Self::NotMemory
    }
}

/// The tables of a window. They are given back by [`Tree::free`].
#[derive(Debug)]
pub(super) struct Tree {
    root: Pa,
    shape: Shape,
    entries: u64,
}

fn slot(table: Pa, place: u64) -> Pa {
    Pa::truncated(table.bits() | place << 3)
}

/// The tables of a window of so many entries.
pub(super) fn tree_shape(entries: u64) -> Option<Shape> {
    let log2 = entries.checked_next_power_of_two()?.trailing_zeros();
    let log2 = u8::try_from(log2).ok()?;
    // One bit more than the window needs: bridges are known that do not look at the address bits
    // above those of the table, and an access that runs out of the window shall find nothing
    // rather than its beginning.
    Shape::for_entries(log2.saturating_add(1))
}

impl Tree {
    pub(super) fn new<F: FrameAllocator>(frames: &F, entries: u64) -> Result<Self, OutOfMemory> {
        let shape = tree_shape(entries).ok_or(OutOfMemory)?;
        let root = frames
            .alloc_zeroed(shape.order())
            .map_err(|_| OutOfMemory)?;
        Ok(Self {
            root,
            shape,
            entries,
        })
    }

    pub(super) fn tve(&self, page: PageSize) -> Option<Tve> {
        Tve::new(self.root, self.shape, page)
    }

    fn read<P: SharedMemory>(memory: &P, at: Pa) -> Result<Tce, NotMemory> {
        let word = memory.read_u64(at)?;
        Ok(Tce::from_bits(u64::from_be(word)))
    }

    fn write<P: SharedMemory>(memory: &P, at: Pa, tce: Tce) -> Result<(), NotMemory> {
        memory.write_u64(at, tce.bits().to_be())
    }

    /// The table of pages that holds an entry, if it exists.
    fn leaf<P: SharedMemory>(&self, memory: &P, index: u64) -> Result<Option<Pa>, NotMemory> {
        let mut table = self.root;
        for level in (1..self.shape.levels()).rev() {
            let link = Self::read(memory, slot(table, self.shape.place(level, index)))?;
            if link.is_empty() {
                return Ok(None);
            }
            table = Pa::truncated(link.address());
        }
        Ok(Some(table))
    }

    /// The same, made where it does not exist: zeroed, and linked from above when it is.
    fn make_leaf<P: SharedMemory, F: FrameAllocator>(
        &self,
        memory: &P,
        frames: &F,
        index: u64,
    ) -> Result<Pa, Error> {
        let mut table = self.root;
        for level in (1..self.shape.levels()).rev() {
            let at = slot(table, self.shape.place(level, index));
            let link = Self::read(memory, at)?;
            table = if link.is_empty() {
                let below = frames
                    .alloc_zeroed(self.shape.order())
                    .map_err(|_| Error::OutOfMemory)?;
                // The host bridge may walk here at any moment: the zeroes come first.
                memory.publish();
                Self::write(memory, at, Tce::from_bits(below.bits() | LINK))?;
                below
            } else {
                Pa::truncated(link.address())
            };
        }
        Ok(table)
    }

    /// Writes `count` entries from `first` on, which exist: what `f` makes of the number of each.
    ///
    /// # Errors
    /// With how many were written.
    pub(super) fn fill<P: SharedMemory, F: FrameAllocator>(
        &self,
        memory: &P,
        frames: &F,
        first: u64,
        count: u64,
        mut f: impl FnMut(u64) -> Tce,
    ) -> Result<(), (Error, u64)> {
        let end = first.checked_add(count).filter(|end| *end <= self.entries);
        let end = end.ok_or((Error::NotMemory, 0))?;
        let mut index = first;
        while index < end {
            let done = index.saturating_sub(first);
            let leaf = self
                .make_leaf(memory, frames, index)
                .map_err(|error| (error, done))?;
            let last = index | self.shape.entries().saturating_sub(1);
            while index < end && index <= last {
                let done = index.saturating_sub(first);
                let at = slot(leaf, self.shape.place(0, index));
                Self::write(memory, at, f(done)).map_err(|error| (error.into(), done))?;
                index = index.saturating_add(1);
            }
        }
        Ok(())
    }

    /// Empties `count` entries from `first` on. The tables stay: the host bridge may be walking them.
    pub(super) fn clear<P: SharedMemory>(
        &self,
        memory: &P,
        first: u64,
        count: u64,
    ) -> Result<(), NotMemory> {
        let end = first.saturating_add(count).min(self.entries);
        let mut index = first;
        while index < end {
            let last = index | self.shape.entries().saturating_sub(1);
            let behind = last.saturating_add(1).min(end);
            if let Some(leaf) = self.leaf(memory, index)? {
                while index < behind {
                    Self::write(memory, slot(leaf, self.shape.place(0, index)), Tce::EMPTY)?;
                    index = index.saturating_add(1);
                }
            }
            index = behind;
        }
        Ok(())
    }

    pub(super) fn get<P: SharedMemory>(&self, memory: &P, index: u64) -> Result<Tce, NotMemory> {
        match self.leaf(memory, index)? {
            Some(leaf) => Self::read(memory, slot(leaf, self.shape.place(0, index))),
            None => Ok(Tce::EMPTY),
        }
    }

    /// Writes one entry whose table exists.
    pub(super) fn set<P: SharedMemory>(
        &self,
        memory: &P,
        index: u64,
        tce: Tce,
    ) -> Result<(), NotMemory> {
        match self.leaf(memory, index)? {
            Some(leaf) => Self::write(memory, slot(leaf, self.shape.place(0, index)), tce),
            None => Ok(()),
        }
    }

    /// Gives every table back. No host bridge uses them any more.
    pub(super) fn free<P: SharedMemory, F: FrameAllocator>(self, memory: &P, frames: &F) {
        self.free_below(memory, frames, self.root, self.shape.levels());
    }

    fn free_below<P: SharedMemory, F: FrameAllocator>(
        &self,
        memory: &P,
        frames: &F,
        table: Pa,
        levels: u8,
    ) {
        let below = levels.saturating_sub(1);
        if below > 0 {
            for place in 0..self.shape.entries() {
                if let Ok(link) = Self::read(memory, slot(table, place))
                    && !link.is_empty()
                {
                    self.free_below(memory, frames, Pa::truncated(link.address()), below);
                }
            }
        }
        frames.free(table, self.shape.order());
    }
}
