//! One entry for each page of a window, where only what is used takes memory.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::OutOfMemory;

/// Entries that are kept together: as many as a call to a PAPR platform can carry, 4 KiB of them.
pub const CHUNK: u64 = 512;
const CHUNK_LEN: usize = 512;

/// What is known of one page.
pub trait Entry: Copy + Default {
    /// Whether that is nothing. It is of the default value.
    fn is_empty(self) -> bool;

    /// The entry of the page that follows, `step` further.
    #[must_use]
    fn next(self, step: u64) -> Self;
}

struct Chunk<T> {
    entries: Box<[T; CHUNK_LEN]>,
    /// What its user keeps with it.
    tag: u32,
    /// Entries that are not empty; a chunk without any is let go, or not yet filled.
    live: u16,
    /// It has no live entry, and what it holds instead means nothing: all of a chunk is emptied without a
    /// store.
    is_stale: bool,
}

impl<T: Entry> Chunk<T> {
    #[cold]
    fn new() -> Result<Self, OutOfMemory> {
        let mut entries = Vec::new();
        entries
            .try_reserve_exact(CHUNK_LEN)
            .map_err(|_| OutOfMemory)?;
        entries.resize(CHUNK_LEN, T::default());
        // Exactly as large as reserved: this moves nothing.
        let entries = entries.into_boxed_slice();
        Ok(Self {
            entries: entries.try_into().map_err(|_| OutOfMemory)?,
            tag: 0,
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
            before.fill(T::default());
            let behind = to.saturating_sub(from);
            rest.get_mut(behind..)
                .unwrap_or_default()
                .fill(T::default());
        }
    }

    fn living(entries: &[T]) -> u16 {
        let live = entries.iter().filter(|entry| !entry.is_empty()).count();
        u16::try_from(live).unwrap_or(u16::MAX)
    }
}

/// The entries of one window.
///
/// A chunk of [`CHUNK`] entries takes memory when one of them is used, and gives it back with its
/// last one, except that the chunk that was emptied last is kept for the next use.
pub struct Sparse<T> {
    chunks: Vec<Option<Chunk<T>>>,
    /// The chunk that was emptied last, where it is yet. It may have been filled since.
    idle: Option<usize>,
    len: u64,
    /// How many chunks there are.
    taken: u64,
    /// Allocations until one that fails; tests fail every one in turn.
    #[cfg(any(test, feature = "mock"))]
    left: Option<u64>,
}

impl<T> fmt::Debug for Sparse<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sparse({})", self.len)
    }
}

const fn place(index: u64) -> (usize, usize) {
    // `usize` has 64 bits wherever tables of such sizes are.
    ((index / CHUNK) as usize, (index % CHUNK) as usize)
}

impl<T: Entry> Sparse<T> {
    /// `len` empty entries. The directory of chunks is allocated now: 16 bytes for 512 entries.
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
            idle: None,
            len,
            taken: 0,
            #[cfg(any(test, feature = "mock"))]
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
        self.chunks.iter().flatten().all(|chunk| chunk.live == 0)
    }

    /// How many entries are not empty: counted, chunk after chunk.
    #[must_use]
    pub fn live(&self) -> u64 {
        let chunks = self.chunks.iter().flatten();
        chunks.fold(0, |all, chunk| all.saturating_add(chunk.live.into()))
    }

    /// The entry with this number; empty beyond the end.
    #[must_use]
    pub fn get(&self, index: u64) -> T {
        let (chunk, at) = place(index);
        match self.chunks.get(chunk) {
            Some(Some(chunk)) if !chunk.is_stale => {
                chunk.entries.get(at).copied().unwrap_or_default()
            }
            _ => T::default(),
        }
    }

    /// Lets that many more chunks be allocated and none after them; `None` heals.
    #[cfg(any(test, feature = "mock"))]
    pub fn fail_after(&mut self, chunks: Option<u64>) {
        self.left = chunks;
    }

    /// A chunk has become empty. The one before it is given back.
    #[inline]
    fn idle(&mut self, at: usize) {
        if let Some(before) = self.idle.replace(at)
            && before != at
        {
            self.give_back(before);
        }
    }

    /// Gives a chunk back, unless it has been filled since.
    #[inline(never)]
    fn give_back(&mut self, at: usize) {
        if let Some(slot) = self.chunks.get_mut(at)
            && slot.as_ref().is_some_and(|chunk| chunk.live == 0)
        {
            *slot = None;
            self.taken = self.taken.saturating_sub(1);
        }
    }

    fn allocate(&mut self) -> Result<Chunk<T>, OutOfMemory> {
        let idle = self.idle.take().and_then(|at| self.chunks.get_mut(at));
        if let Some(slot) = idle
            && slot.as_ref().is_some_and(|chunk| chunk.live == 0)
            && let Some(chunk) = slot.take()
        {
            return Ok(chunk);
        }
        #[cfg(any(test, feature = "mock"))]
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1).ok_or(OutOfMemory)?;
        }
        let chunk = Chunk::new()?;
        self.taken = self.taken.saturating_add(1);
        Ok(chunk)
    }

    /// Makes room for entries, so that setting them cannot fail. [`Sparse::trim`] gives back what
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
        let chunks = place(first).0..=place(last).0;
        if self.idle.is_some_and(|idle| chunks.contains(&idle)) {
            // It is about to be used where it is.
            self.idle = None;
        }
        for at in chunks {
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
            if matches!(self.chunks.get(at), Some(Some(chunk)) if chunk.live == 0) {
                self.idle(at);
            }
        }
    }

    /// How many entries of the chunk that an entry lies in are not empty.
    #[must_use]
    #[inline]
    pub fn live_in_chunk(&self, index: u64) -> u16 {
        match self.chunks.get(place(index).0) {
            Some(Some(chunk)) => chunk.live,
            _ => 0,
        }
    }

    /// Whether [`Sparse::reserve`] of these entries would take no memory.
    #[must_use]
    #[inline]
    pub fn has_room(&self, first: u64, count: u64) -> bool {
        let last = first.saturating_add(count.saturating_sub(1));
        let chunks = self.chunks.get(place(first).0..=place(last).0);
        chunks.is_some_and(|chunks| chunks.iter().all(Option::is_some))
    }

    /// How many chunks [`Sparse::reserve`] of these entries would allocate.
    #[must_use]
    pub fn growth(&self, first: u64, count: u64) -> u64 {
        let last = first.saturating_add(count.saturating_sub(1));
        let (first, last) = (place(first).0, place(last).0);
        let chunks = self.chunks.get(first..=last).unwrap_or_default();
        let wanted = chunks.iter().filter(|chunk| chunk.is_none()).count();
        // The one that was emptied last goes where it is wanted, unless it is there already.
        let idle = self.idle.filter(|at| !(first..=last).contains(at));
        let idle = idle.and_then(|at| self.chunks.get(at)?.as_ref());
        let spare = u64::from(idle.is_some_and(|chunk| chunk.live == 0));
        u64::try_from(wanted)
            .unwrap_or(u64::MAX)
            .saturating_sub(spare)
    }

    /// Sets an entry for which [`Sparse::reserve`] made room, and gives the old one. An empty one
    /// needs no room.
    #[inline]
    pub fn set(&mut self, index: u64, entry: T) -> T {
        let (at, within) = place(index);
        let Some(slot) = self.chunks.get_mut(at) else {
            return T::default();
        };
        let Some(chunk) = slot else {
            debug_assert!(entry.is_empty(), "an entry without room");
            return T::default();
        };
        if chunk.is_stale {
            chunk.refresh(0, 0);
        }
        let Some(place) = chunk.entries.get_mut(within) else {
            return T::default();
        };
        let old = core::mem::replace(place, entry);
        match (old.is_empty(), entry.is_empty()) {
            (true, false) => {
                chunk.live = chunk.live.saturating_add(1);
            }
            (false, true) => {
                chunk.live = chunk.live.saturating_sub(1);
                if chunk.live == 0 {
                    self.idle(at);
                }
            }
            _ => {}
        }
        old
    }

    /// The place of an entry, where there is room for it already.
    #[must_use]
    #[inline(always)]
    pub fn slot(&mut self, index: u64) -> Option<Slot<'_, T>> {
        let (at, within) = place(index);
        match self.chunks.get_mut(at) {
            Some(Some(chunk)) if !chunk.is_stale => Some(Slot { chunk, within }),
            _ => None,
        }
    }

    /// Sets `count` entries, for which there is room, from `first` on: to `entry`, which is not empty,
    /// and what follows it in steps.
    pub fn fill_row(&mut self, first: u64, count: u64, entry: T, step: u64) {
        let mut next = entry;
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
                Chunk::living(rest)
            };
            for place in rest {
                *place = next;
                next = next.next(step);
            }
            done = done.saturating_add(u64::try_from(here).unwrap_or(u64::MAX));
            let come = u16::try_from(here).unwrap_or(u16::MAX);
            chunk.live = chunk.live.saturating_add(come).saturating_sub(gone);
        }
    }

    /// Changes the entries of a range that are not empty to others that are not.
    pub fn change(&mut self, first: u64, count: u64, mut f: impl FnMut(T) -> T) {
        let end = first.saturating_add(count);
        let mut at = first;
        while let Some(index) = self.live_in(at, end.saturating_sub(at)) {
            let changed = f(self.get(index));
            self.set(index, changed);
            at = index.saturating_add(1);
        }
    }

    /// Empties `count` entries from `first` on; gives how many were not empty.
    pub fn clear(&mut self, first: u64, count: u64) -> u64 {
        let mut all = 0_u64;
        let mut done = 0;
        while done < count {
            let (at, within) = place(first.saturating_add(done));
            let here = CHUNK
                .saturating_sub(u64::try_from(within).unwrap_or(0))
                .min(count.saturating_sub(done));
            let Some(slot) = self.chunks.get_mut(at) else {
                break;
            };
            if let Some(chunk) = slot
                && chunk.live > 0
            {
                let end = within.saturating_add(usize::try_from(here).unwrap_or(0));
                let entries = chunk.entries.get_mut(within..end).unwrap_or_default();
                let gone = if here == CHUNK {
                    // All of it: nothing has to be counted or written.
                    chunk.is_stale = true;
                    chunk.live
                } else if chunk.is_stale {
                    0
                } else {
                    let live = Chunk::living(entries);
                    entries.fill(T::default());
                    live
                };
                chunk.live = chunk.live.saturating_sub(gone);
                all = all.saturating_add(gone.into());
                if chunk.live == 0 {
                    self.idle(at);
                }
            }
            done = done.saturating_add(here);
        }
        all
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
    pub fn run(&self, first: u64, count: u64) -> (u64, Option<&[T]>) {
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

    /// What is kept with the chunk that an entry lies in, where it has room: a number of the user's.
    #[must_use]
    #[inline]
    pub fn tag(&mut self, index: u64) -> Option<&mut u32> {
        let chunk = self.chunks.get_mut(place(index).0)?.as_mut()?;
        Some(&mut chunk.tag)
    }

    /// How many chunks there are, used or kept.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// The room that is in use, in entries: for tests of its bounds.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.taken.saturating_mul(CHUNK)
    }
}

/// The place of one entry.
pub struct Slot<'a, T> {
    chunk: &'a mut Chunk<T>,
    within: usize,
}

impl<T> fmt::Debug for Slot<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({})", self.within)
    }
}

impl<T: Entry> Slot<'_, T> {
    /// What it holds.
    #[must_use]
    #[inline(always)]
    pub fn get(&self) -> T {
        let within = self.within % CHUNK_LEN;
        self.chunk.entries.get(within).copied().unwrap_or_default()
    }

    /// How many entries of its chunk are not empty.
    #[must_use]
    #[inline(always)]
    pub fn live_in_chunk(&self) -> u16 {
        self.chunk.live
    }

    /// [`Sparse::tag`].
    #[must_use]
    #[inline(always)]
    pub fn tag(&mut self) -> &mut u32 {
        &mut self.chunk.tag
    }

    /// Whether emptying it may leave its chunk without any.
    #[must_use]
    #[inline(always)]
    pub fn is_last(&self) -> bool {
        self.chunk.live <= 1
    }

    /// Empties it, which is not the last of its chunk.
    #[inline(always)]
    pub fn clear(self) {
        let Some(place) = self.chunk.entries.get_mut(self.within % CHUNK_LEN) else {
            return;
        };
        if !place.is_empty() && self.chunk.live > 1 {
            self.chunk.live = self.chunk.live.wrapping_sub(1);
            *place = T::default();
        }
    }

    /// Puts an entry there that is not empty, where one is that is.
    #[inline(always)]
    pub fn fill(self, entry: T) {
        debug_assert!(self.get().is_empty() && !entry.is_empty());
        if let Some(place) = self.chunk.entries.get_mut(self.within % CHUNK_LEN) {
            self.chunk.live = self.chunk.live.wrapping_add(1);
            *place = entry;
        }
    }

    /// Puts an entry there that is not empty.
    #[inline(always)]
    pub fn put(self, entry: T) {
        let Some(place) = self.chunk.entries.get_mut(self.within % CHUNK_LEN) else {
            return;
        };
        if place.is_empty() {
            self.chunk.live = self.chunk.live.wrapping_add(1);
        }
        *place = entry;
    }
}

// The directory of a window of 2^24 entries takes 32768 of these.
const _: () = assert!(size_of::<Option<Chunk<u64>>>() == 16);

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;

    use proptest::prelude::*;

    use super::{CHUNK, Entry, Sparse};
    use crate::OutOfMemory;

    impl Entry for u64 {
        fn is_empty(self) -> bool {
            self & 3 == 0
        }

        fn next(self, step: u64) -> Self {
            self + step
        }
    }

    fn entry(n: u64) -> u64 {
        n << 12 | 3
    }

    #[test]
    fn only_what_is_used_takes_memory() {
        let mut entries = Sparse::new(1 << 24).unwrap();
        assert_eq!(entries.room(), 0);
        entries.reserve(1 << 20, 2).unwrap();
        entries.set(1 << 20, entry(1));
        entries.set((1 << 20) + 1, entry(2));
        assert_eq!((entries.room(), entries.live()), (CHUNK, 2));
        entries.clear(1 << 20, 2);
        // One is kept for the next use, and never two.
        assert_eq!(entries.room(), CHUNK);
        entries.reserve(0, 1).unwrap();
        entries.set(0, entry(3));
        assert_eq!(entries.room(), CHUNK);
        entries.reserve(4 * CHUNK, 4 * CHUNK).unwrap();
        entries.trim(4 * CHUNK, 4 * CHUNK);
        assert_eq!(entries.room(), 2 * CHUNK);
    }

    #[test]
    fn a_reservation_that_fails_leaves_nothing_behind() {
        let mut entries = Sparse::new(8 * CHUNK).unwrap();
        entries.reserve(0, 1).unwrap();
        entries.set(0, entry(1));
        entries.fail_after(Some(2));
        assert_eq!(entries.reserve(0, 5 * CHUNK), Err(OutOfMemory));
        assert_eq!((entries.room(), entries.live()), (2 * CHUNK, 1));
        assert_eq!(entries.reserve(7 * CHUNK, CHUNK + 1), Err(OutOfMemory));
        assert_eq!(entries.reserve(u64::MAX, 2), Ok(()), "nothing to reserve");
    }

    proptest! {
        #[test]
        fn the_store_is_a_map(steps in proptest::collection::vec(
            (0u64..2000, 1u64..1200, 0u8..5), 1..40,
        )) {
            const LEN: u64 = 5 * CHUNK / 2;
            let mut entries = Sparse::new(LEN).unwrap();
            let mut model = BTreeMap::new();
            for (step, (first, count, what)) in (1u64..).zip(steps) {
                let first = first % LEN;
                let count = count.min(LEN - first);
                match what {
                    0 => {
                        entries.clear(first, count);
                        model.retain(|at, _| !(first..first + count).contains(at));
                    }
                    1 if count % 2 == 0 && entries.slot(first).is_some() => {
                        let slot = entries.slot(first).unwrap();
                        if count % 4 == 0 && !slot.is_last() {
                            slot.clear();
                            model.remove(&first);
                            continue;
                        }
                        prop_assert_eq!(slot.get(), model.get(&first).copied().unwrap_or_default());
                        slot.put(entry(step));
                        model.insert(first, entry(step));
                    }
                    1 => {
                        entries.reserve(first, 1).unwrap();
                        let old = entries.set(first, entry(step));
                        prop_assert_eq!(old, model.insert(first, entry(step)).unwrap_or_default());
                    }
                    2 => {
                        let old = entries.set(first, 0);
                        prop_assert_eq!(old, model.remove(&first).unwrap_or_default());
                    }
                    3 => {
                        entries.change(first, count, |entry| entry ^ 1);
                        for (_, entry) in model.range_mut(first..first + count) {
                            *entry ^= 1;
                        }
                    }
                    _ => {
                        let grown = entries.taken() + entries.growth(first, count);
                        entries.reserve(first, count).unwrap();
                        prop_assert_eq!(entries.taken(), grown);
                        prop_assert!(entries.has_room(first, count));
                        entries.fill_row(first, count, entry(step * 4096), 1 << 12);
                        for n in 0..count {
                            model.insert(first + n, entry(step * 4096 + n));
                        }
                    }
                }
                prop_assert_eq!(entries.live(), model.len() as u64);
                let taken = entries.chunks.iter().flatten().count();
                prop_assert_eq!(entries.taken(), taken as u64);
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
