//! What a window holds, entry by entry, where only what is used takes memory.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::{OutOfMemory, Tce};

/// Entries that are kept together: as many as a call can carry, 4 KiB of them.
pub const CHUNK: u64 = 512;
const CHUNK_LEN: usize = 512;

#[derive(Debug)]
struct Chunk {
    entries: Box<[Tce]>,
    /// Entries that are not empty; a chunk without any is let go, or not yet filled.
    live: u16,
    /// It has no live entry, and what it holds instead means nothing: all of a chunk is emptied without a
    /// store.
    is_stale: bool,
}

impl Chunk {
    fn new() -> Result<Self, OutOfMemory> {
        let mut entries = Vec::new();
        entries
            .try_reserve_exact(CHUNK_LEN)
            .map_err(|_| OutOfMemory)?;
        entries.resize(CHUNK_LEN, Tce::EMPTY);
        // Exactly as large as reserved: this moves nothing.
        Ok(Self {
            entries: entries.into_boxed_slice(),
            live: 0,
            is_stale: false,
        })
    }

    /// Makes what it holds mean something again, apart from the entries between these two, which are
    /// written next.
    #[inline]
    fn refresh(&mut self, from: usize, to: usize) {
        if self.is_stale {
            self.is_stale = false;
            let (before, rest) = self.entries.split_at_mut_checked(from).unwrap_or_default();
            before.fill(Tce::EMPTY);
            let behind = to.saturating_sub(from);
            rest.get_mut(behind..).unwrap_or_default().fill(Tce::EMPTY);
        }
    }
}

/// The entries of one window.
///
/// A chunk of [`CHUNK`] entries takes memory when one of them is used, and gives it back with its
/// last one, except that one empty chunk is kept for the next use.
#[derive(Debug)]
pub struct Entries {
    chunks: Vec<Option<Chunk>>,
    spare: Option<Chunk>,
    len: u64,
    live: u64,
    /// Allocations until one that fails; tests fail every one in turn.
    #[cfg(any(test, feature = "fake"))]
    left: Option<u64>,
}

const fn place(index: u64) -> (usize, usize) {
    // `usize` has 64 bits wherever tables of such sizes are.
    ((index / CHUNK) as usize, (index % CHUNK) as usize)
}

impl Entries {
    /// `len` empty entries. The directory of chunks is allocated now: 24 bytes for 512 entries.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(len: u64) -> Result<Self, OutOfMemory> {
        let slots = usize::try_from(len.div_ceil(CHUNK)).map_err(|_| OutOfMemory)?;
        let mut chunks = Vec::new();
        chunks.try_reserve_exact(slots).map_err(|_| OutOfMemory)?;
        chunks.resize_with(slots, || None);
        Ok(Self {
            chunks,
            spare: None,
            len,
            live: 0,
            #[cfg(any(test, feature = "fake"))]
            left: None,
        })
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether every entry is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// How many entries are not empty.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.live
    }

    /// The entry with this number; empty beyond the end.
    #[must_use]
    pub fn get(&self, index: u64) -> Tce {
        let (chunk, at) = place(index);
        match self.chunks.get(chunk) {
            Some(Some(chunk)) if !chunk.is_stale => {
                chunk.entries.get(at).copied().unwrap_or_default()
            }
            _ => Tce::EMPTY,
        }
    }

    /// Lets that many more chunks be allocated and none after them; `None` heals.
    #[cfg(any(test, feature = "fake"))]
    pub fn fail_after(&mut self, chunks: Option<u64>) {
        self.left = chunks;
    }

    fn allocate(&mut self) -> Result<Chunk, OutOfMemory> {
        if let Some(spare) = self.spare.take() {
            return Ok(spare);
        }
        #[cfg(any(test, feature = "fake"))]
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1).ok_or(OutOfMemory)?;
        }
        Chunk::new()
    }

    /// Makes room for entries, so that setting them cannot fail. [`Entries::trim`] gives back what
    /// is then not set after all.
    ///
    /// # Errors
    /// [`OutOfMemory`], also beyond the end. Room that was made before the failure is given back.
    pub fn reserve(&mut self, first: u64, count: u64) -> Result<(), OutOfMemory> {
        let Some(last) = count.checked_sub(1).and_then(|n| first.checked_add(n)) else {
            return Ok(());
        };
        if last >= self.len {
            return Err(OutOfMemory);
        }
        for at in place(first).0..=place(last).0 {
            if !matches!(self.chunks.get(at), Some(None)) {
                continue;
            }
            match self.allocate() {
                Ok(chunk) => {
                    if let Some(slot) = self.chunks.get_mut(at) {
                        *slot = Some(chunk);
                    }
                }
                Err(error) => {
                    self.trim(first, count);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Gives back the room of chunks in a range that hold nothing.
    pub fn trim(&mut self, first: u64, count: u64) {
        let Some(last) = count.checked_sub(1).and_then(|n| first.checked_add(n)) else {
            return;
        };
        for at in place(first).0..=place(last).0 {
            if let Some(slot) = self.chunks.get_mut(at)
                && slot.as_ref().is_some_and(|chunk| chunk.live == 0)
            {
                self.spare = slot.take();
            }
        }
    }

    /// Sets an entry for which [`Entries::reserve`] made room, and gives the old one. An empty one
    /// needs no room.
    pub fn set(&mut self, index: u64, tce: Tce) -> Tce {
        let (at, within) = place(index);
        let Some(slot) = self.chunks.get_mut(at) else {
            return Tce::EMPTY;
        };
        let Some(chunk) = slot else {
            debug_assert!(tce.is_empty(), "an entry without room");
            return Tce::EMPTY;
        };
        chunk.refresh(0, 0);
        let Some(entry) = chunk.entries.get_mut(within) else {
            return Tce::EMPTY;
        };
        let old = core::mem::replace(entry, tce);
        match (old.is_empty(), tce.is_empty()) {
            (true, false) => {
                chunk.live = chunk.live.saturating_add(1);
                self.live = self.live.saturating_add(1);
            }
            (false, true) => {
                chunk.live = chunk.live.saturating_sub(1);
                self.live = self.live.saturating_sub(1);
                if chunk.live == 0 {
                    self.spare = slot.take();
                }
            }
            _ => {}
        }
        old
    }

    /// Sets `count` entries, for which there is room, from `first` on by what `f` makes of the number
    /// of each, counted from zero.
    pub fn fill(&mut self, first: u64, count: u64, mut f: impl FnMut(u64) -> Tce) {
        let mut done = 0;
        while done < count {
            let index = first.saturating_add(done);
            let (at, within) = place(index);
            let Some(Some(chunk)) = self.chunks.get_mut(at) else {
                return;
            };
            let here = usize::try_from(count.saturating_sub(done)).unwrap_or(usize::MAX);
            let here = here.min(CHUNK_LEN.saturating_sub(within));
            let end = within.saturating_add(here);
            chunk.refresh(within, end);
            let rest = chunk.entries.get_mut(within..end).unwrap_or_default();
            let gone = if chunk.live == 0 {
                0
            } else {
                rest.iter().filter(|entry| !entry.is_empty()).count()
            };
            let mut come = 0_usize;
            for (number, entry) in (done..).zip(rest) {
                let tce = f(number);
                come = come.wrapping_add(usize::from(!tce.is_empty()));
                *entry = tce;
            }
            done = done.saturating_add(u64::try_from(here).unwrap_or(u64::MAX));
            let gone = u16::try_from(gone).unwrap_or(u16::MAX);
            let come = u16::try_from(come).unwrap_or(u16::MAX);
            chunk.live = chunk.live.saturating_add(come).saturating_sub(gone);
            self.live = self
                .live
                .saturating_add(come.into())
                .saturating_sub(gone.into());
        }
    }

    /// Empties `count` entries from `first` on.
    pub fn clear(&mut self, first: u64, count: u64) {
        let mut done = 0;
        while done < count {
            let (at, within) = place(first.saturating_add(done));
            let here = CHUNK
                .saturating_sub(u64::try_from(within).unwrap_or(0))
                .min(count.saturating_sub(done));
            let Some(slot) = self.chunks.get_mut(at) else {
                return;
            };
            if let Some(chunk) = slot {
                let end = within.saturating_add(usize::try_from(here).unwrap_or(0));
                let entries = chunk.entries.get_mut(within..end).unwrap_or_default();
                let gone = if here == CHUNK {
                    // All of it: nothing has to be counted or written.
                    chunk.is_stale = true;
                    chunk.live
                } else if chunk.is_stale {
                    0
                } else {
                    let live = entries.iter().filter(|entry| !entry.is_empty());
                    let live = u16::try_from(live.count()).unwrap_or(u16::MAX);
                    entries.fill(Tce::EMPTY);
                    live
                };
                chunk.live = chunk.live.saturating_sub(gone);
                self.live = self.live.saturating_sub(gone.into());
                if chunk.live == 0 {
                    self.spare = slot.take();
                }
            }
            done = done.saturating_add(here);
        }
    }

    /// The first entry at or after `index` that is not empty, by number.
    #[must_use]
    pub fn first_live(&self, index: u64) -> Option<u64> {
        let (mut at, mut within) = place(index);
        loop {
            match self.chunks.get(at)? {
                Some(chunk) if chunk.live > 0 => {
                    let mut rest = chunk.entries.get(within..)?.iter();
                    if let Some(found) = rest.position(|entry| !entry.is_empty()) {
                        let base = u64::try_from(at).ok()?.checked_mul(CHUNK)?;
                        let within = u64::try_from(within.checked_add(found)?).ok()?;
                        return base.checked_add(within);
                    }
                }
                _ => {}
            }
            at = at.checked_add(1)?;
            within = 0;
        }
    }

    /// The first of `count` entries from `first` on that is not empty, by number. It looks at these
    /// entries only, however large the window is.
    #[must_use]
    pub fn live_in(&self, first: u64, count: u64) -> Option<u64> {
        let end = first.saturating_add(count);
        let mut index = first;
        while index < end {
            let (here, run) = self.run(index, end.saturating_sub(index));
            if here == 0 {
                return None;
            }
            if let Some(run) = run {
                let mut entries = run.iter();
                if let Some(found) = entries.position(|entry| !entry.is_empty()) {
                    return u64::try_from(found).ok()?.checked_add(index);
                }
            }
            index = index.saturating_add(here);
        }
        None
    }

    /// The entries from `first` on that lie in one chunk, at most `count`; `None` where all of the
    /// chunk is empty. With it, how many these are.
    #[must_use]
    pub fn run(&self, first: u64, count: u64) -> (u64, Option<&[Tce]>) {
        let (at, within) = place(first);
        let here = CHUNK
            .saturating_sub(u64::try_from(within).unwrap_or(0))
            .min(count);
        let run = match self.chunks.get(at) {
            Some(Some(chunk)) if chunk.live == 0 => None,
            Some(Some(chunk)) => {
                let end = within.saturating_add(usize::try_from(here).unwrap_or(0));
                chunk.entries.get(within..end)
            }
            _ => None,
        };
        (here, run)
    }

    /// The room that is in use, in entries: for tests of its bounds.
    #[must_use]
    pub fn room(&self) -> u64 {
        let chunks = self.chunks.iter().flatten().count();
        let spare = usize::from(self.spare.is_some());
        u64::try_from(chunks.saturating_add(spare))
            .unwrap_or(u64::MAX)
            .saturating_mul(CHUNK)
    }
}

// The directory of a window of 2^24 entries takes 32768 of these.
const _: () = assert!(size_of::<Option<Chunk>>() == 24);

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;

    use proptest::prelude::*;

    use super::{CHUNK, Entries};
    use crate::{OutOfMemory, Tce};

    fn tce(n: u64) -> Tce {
        Tce::from_bits(n << 12 | 3)
    }

    #[test]
    fn only_what_is_used_takes_memory() {
        let mut entries = Entries::new(1 << 24).unwrap();
        assert_eq!(entries.room(), 0);
        entries.reserve(1 << 20, 2).unwrap();
        entries.set(1 << 20, tce(1));
        entries.set((1 << 20) + 1, tce(2));
        assert_eq!((entries.room(), entries.live()), (CHUNK, 2));
        entries.clear(1 << 20, 2);
        // One is kept for the next use, and never two.
        entries.reserve(0, 1).unwrap();
        entries.set(0, tce(3));
        assert_eq!(entries.room(), CHUNK);
        entries.reserve(4 * CHUNK, 4 * CHUNK).unwrap();
        entries.trim(4 * CHUNK, 4 * CHUNK);
        assert_eq!(entries.room(), 2 * CHUNK);
    }

    #[test]
    fn a_reservation_that_fails_leaves_nothing_behind() {
        let mut entries = Entries::new(8 * CHUNK).unwrap();
        entries.reserve(0, 1).unwrap();
        entries.set(0, tce(1));
        entries.fail_after(Some(2));
        assert_eq!(entries.reserve(0, 5 * CHUNK), Err(OutOfMemory));
        assert_eq!((entries.room(), entries.live()), (2 * CHUNK, 1));
        assert_eq!(entries.reserve(7 * CHUNK, CHUNK + 1), Err(OutOfMemory));
        assert_eq!(entries.reserve(u64::MAX, 2), Ok(()), "nothing to reserve");
    }

    proptest! {
        #[test]
        fn the_store_is_a_map(steps in proptest::collection::vec(
            (0u64..2000, 1u64..1200, 0u8..4), 1..40,
        )) {
            const LEN: u64 = 5 * CHUNK / 2;
            let mut entries = Entries::new(LEN).unwrap();
            let mut model = BTreeMap::new();
            for (step, (first, count, what)) in (1u64..).zip(steps) {
                let first = first % LEN;
                let count = count.min(LEN - first);
                match what {
                    0 => {
                        entries.clear(first, count);
                        model.retain(|at, _| !(first..first + count).contains(at));
                    }
                    1 => {
                        entries.reserve(first, 1).unwrap();
                        let old = entries.set(first, tce(step));
                        prop_assert_eq!(old, model.insert(first, tce(step)).unwrap_or_default());
                    }
                    2 => {
                        let old = entries.set(first, Tce::EMPTY);
                        prop_assert_eq!(old, model.remove(&first).unwrap_or_default());
                    }
                    _ => {
                        entries.reserve(first, count).unwrap();
                        entries.fill(first, count, |n| tce(step * 4096 + n));
                        for n in 0..count {
                            model.insert(first + n, tce(step * 4096 + n));
                        }
                    }
                }
                prop_assert_eq!(entries.live(), model.len() as u64);
                for at in 0..LEN {
                    prop_assert_eq!(entries.get(at), model.get(&at).copied().unwrap_or_default());
                }
                prop_assert_eq!(
                    entries.first_live(first),
                    model.range(first..).next().map(|(at, _)| *at)
                );
                prop_assert_eq!(
                    entries.live_in(first, count),
                    model.range(first..first + count).next().map(|(at, _)| *at)
                );
            }
        }
    }
}
