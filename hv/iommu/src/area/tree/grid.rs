//! Leaves for areas that are all alike.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "positions and node numbers come from the tree itself, never from a request; a wrong \
              one is a bug of this file and must stop here"
)]

use core::ops::ControlFlow;

use super::leaf::{LEAF, List};
use super::node::Summary;
use crate::area::{Area, Flags};

/// Areas a grid can hold.
pub(super) const SLOTS: usize = 480;
/// Words of the bitmaps.
const WORDS: usize = SLOTS.div_ceil(64);
/// The largest area of a grid, as a power of two: far beyond what a table maps with one leaf.
const MAX_SHIFT: u32 = 40;

/// Areas of one size, of one memory object, with the same permissions, on a grid: what an operating
/// system makes that maps page by page. Most need a bit each, the others four bytes. So the areas of
/// a large address space stay in near caches. Taking one out never needs memory.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    /// Log2 of the size of an area.
    shift: u8,
    flags: Flags,
    /// Whether what the areas show is as far apart as they are; then `places` means nothing.
    linear: bool,
    /// Whether an area may be stale.
    any_stale: bool,
    len: u16,
    memory: u32,
    /// The address of slot 0.
    base: u64,
    /// While linear: the offset of slot 0, modulo 2^64.
    offset: u64,
    used: [u64; WORDS],
    stale: [u64; WORDS],
    /// Offsets in units of the size.
    places: [u32; SLOTS],
}

impl Grid {
    /// A grid with the areas of a full list and another one, if they are alike.
    pub(super) fn new(list: &List, more: Area) -> Option<Self> {
        let bytes = more.bytes();
        if !bytes.is_power_of_two() || bytes.ilog2() > MAX_SHIFT || more.flags.is_stale() {
            return None;
        }
        let (first, last) = (list.get(0), list.get(list.len() - 1));
        let (low, high) = (first.start.min(more.start), last.start.max(more.start));
        let shift = bytes.ilog2();
        let span = (high - low) >> shift;
        // Room for others goes where they will come.
        let spare = (SLOTS as u64 - 1).checked_sub(span)?;
        let below = if more.start == high {
            0
        } else if more.start == low {
            spare
        } else {
            spare / 2
        };
        let base = low - (below.min(low >> shift) << shift);
        base.checked_add((SLOTS as u64) << shift)?;
        let mut grid = Self {
            shift: u8::try_from(shift).ok()?,
            flags: more.flags,
            linear: true,
            any_stale: false,
            len: 0,
            memory: more.memory,
            base,
            offset: more.offset.wrapping_sub(more.start - base),
            used: [0; WORDS],
            stale: [0; WORDS],
            places: [0; SLOTS],
        };
        let alike = (0..list.len()).all(|at| grid.add(list.get(at))) && grid.add(more);
        alike.then_some(grid)
    }

    /// An empty one of the same kind.
    fn like(&self) -> Self {
        Self {
            len: 0,
            used: [0; WORDS],
            stale: [0; WORDS],
            ..self.clone()
        }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        usize::from(self.len)
    }

    #[inline(always)]
    fn is_used(&self, slot: usize) -> bool {
        // A full grid says so in the cache line that every lookup reads.
        self.len() == SLOTS || self.used[slot / 64] >> (slot % 64) & 1 != 0
    }

    /// The first slot from `from` on that is used.
    #[inline(always)]
    fn next(&self, from: usize) -> Option<usize> {
        if self.len() == SLOTS {
            return (from < SLOTS).then_some(from);
        }
        let mut word = from / 64;
        let mut bits = self.used.get(word)? & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            bits = *self.used.get(word)?;
        }
        Some(word * 64 + bits.trailing_zeros() as usize)
    }

    fn last(&self) -> usize {
        let word = self.used.iter().rposition(|word| *word != 0).unwrap_or(0);
        word * 64 + (63 - self.used[word].leading_zeros() as usize)
    }

    #[inline(always)]
    fn get(&self, slot: usize) -> Area {
        let into = (slot as u64) << self.shift;
        let start = self.base + into;
        let mut flags = self.flags;
        if self.any_stale && self.stale[slot / 64] >> (slot % 64) & 1 != 0 {
            flags = flags.stale();
        }
        Area {
            start,
            last: start + ((1 << self.shift) - 1),
            offset: if self.linear {
                self.offset.wrapping_add(into)
            } else {
                u64::from(self.places[slot]) << self.shift
            },
            memory: self.memory,
            flags,
        }
    }

    /// The slot that an address is in, or one past the last.
    #[inline(always)]
    fn slot(&self, address: u64) -> usize {
        let into = address.saturating_sub(self.base) >> self.shift;
        usize::try_from(into).map_or(SLOTS, |slot| slot.min(SLOTS))
    }

    /// The slot of the area that starts at `start`.
    #[inline]
    fn slot_of(&self, start: u64) -> Option<usize> {
        let slot = self.slot(start);
        let starts_there = slot < SLOTS && self.base + ((slot as u64) << self.shift) == start;
        (starts_there && self.is_used(slot)).then_some(slot)
    }

    /// The first area that does not end before `address`.
    #[inline(always)]
    pub(super) fn first_from(&self, address: u64) -> Option<Area> {
        self.next(self.slot(address)).map(|slot| self.get(slot))
    }

    /// The first area that shares an address with `start..=last`.
    #[inline(always)]
    pub(super) fn overlapping(&self, start: u64, last: u64) -> Option<Area> {
        let (from, to) = (self.slot(start), self.slot(last));
        // Most ranges are those of one area, there or not.
        if from == to && (from == SLOTS || !self.is_used(from)) {
            return None;
        }
        let area = self.get(self.next(from)?);
        (area.start <= last).then_some(area)
    }

    pub(super) fn visit_from<B>(
        &self,
        address: u64,
        mut f: impl FnMut(Area) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let mut at = self.next(self.slot(address));
        while let Some(slot) = at {
            f(self.get(slot))?;
            at = self.next(slot + 1);
        }
        ControlFlow::Continue(())
    }

    /// The slot of an area that overlaps none, if it is like the others and near them.
    #[inline]
    fn fits(&self, area: Area) -> Option<usize> {
        let slot = self.slot(area.start);
        let fits = slot < SLOTS
            && self.base + ((slot as u64) << self.shift) == area.start
            && area.last - area.start == (1 << self.shift) - 1
            && area.memory == self.memory
            && area.flags == self.flags;
        fits.then_some(slot)
    }

    /// Whether the area of a slot would show what the others have it show.
    #[inline]
    fn is_in_line(&self, slot: usize, offset: u64) -> bool {
        self.linear && self.offset.wrapping_add((slot as u64) << self.shift) == offset
    }

    /// Whether [`Grid::add`] would take the area.
    pub(super) fn takes(&self, area: Area) -> bool {
        self.fits(area)
            .is_some_and(|slot| self.is_in_line(slot, area.offset) || self.can_place(area.offset))
    }

    /// Adds an area that overlaps none, if it is like the others and near them.
    #[inline]
    pub(super) fn add(&mut self, area: Area) -> bool {
        let Some(slot) = self.fits(area) else {
            return false;
        };
        if !self.is_in_line(slot, area.offset) {
            if !self.can_place(area.offset) {
                return false;
            }
            self.place(slot, area.offset);
        }
        self.used[slot / 64] |= 1 << (slot % 64);
        self.len += 1;
        true
    }

    /// Offsets that are not in line are counted in whole areas, in 32 bits.
    fn to_place(&self, offset: u64) -> Option<u32> {
        let whole = offset & ((1 << self.shift) - 1) == 0;
        u32::try_from(offset >> self.shift).ok().filter(|_| whole)
    }

    fn can_place(&self, offset: u64) -> bool {
        // Those in line differ by whole areas: when the outermost can be counted, all can.
        let ends = [self.first_area(), self.last_area()];
        let mut ends = ends.into_iter().flatten();
        self.to_place(offset).is_some()
            && (!self.linear || ends.all(|area| self.to_place(area.offset).is_some()))
    }

    /// Notes an offset that is not in line.
    fn place(&mut self, slot: usize, offset: u64) {
        if self.linear {
            let mut at = self.next(0);
            while let Some(slot) = at {
                self.places[slot] = self.to_place(self.get(slot).offset).unwrap_or(0);
                at = self.next(slot + 1);
            }
            self.linear = false;
        }
        self.places[slot] = self.to_place(offset).unwrap_or(0);
    }

    /// Takes out the area that starts at `start`.
    #[inline(always)]
    pub(super) fn take(&mut self, start: u64) -> Option<Area> {
        let slot = self.slot_of(start)?;
        let area = self.get(slot);
        let bit = 1 << (slot % 64);
        self.used[slot / 64] &= !bit;
        self.stale[slot / 64] &= !bit;
        self.len -= 1;
        Some(area)
    }

    /// Changes what the area with the same addresses shows, if it stays like the others.
    pub(super) fn replace(&mut self, area: Area) -> bool {
        let Some(slot) = self.slot_of(area.start) else {
            return true;
        };
        if !self.takes(area) {
            return false;
        }
        if !self.is_in_line(slot, area.offset) {
            self.place(slot, area.offset);
        }
        self.stale[slot / 64] &= !(1 << (slot % 64));
        true
    }

    /// Marks the area that starts at `start`. Only [`Flags::stale`] can differ from the others'.
    pub(super) fn set_flags(&mut self, start: u64, flags: Flags) {
        if let Some(slot) = self.slot_of(start)
            && flags.is_stale()
        {
            self.stale[slot / 64] |= 1 << (slot % 64);
            self.any_stale = true;
        }
    }

    pub(super) fn first_area(&self) -> Option<Area> {
        self.next(0).map(|slot| self.get(slot))
    }

    pub(super) fn last_area(&self) -> Option<Area> {
        self.next(0).map(|_| self.get(self.last()))
    }

    pub(super) fn summary(&self) -> Summary {
        let (Some(first), Some(last)) = (self.next(0), self.last_area()) else {
            return Summary::default();
        };
        let mut hole = 0;
        if self.last() - first + 1 != self.len() {
            let mut from = first;
            let mut at = self.next(first);
            while let Some(slot) = at {
                hole = hole.max(slot.saturating_sub(from));
                from = slot + 1;
                at = self.next(from);
            }
        }
        Summary {
            first: self.get(first).start,
            last: last.last,
            hole: (hole as u64) << self.shift,
        }
    }

    /// How many areas are before `address`.
    pub(super) fn before(&self, address: u64) -> usize {
        let slot = self.slot(address);
        let words = self.used.iter().enumerate();
        let counts = words.map(|(word, bits)| {
            let bits = match slot.saturating_sub(word * 64) {
                below @ 0..64 => bits & !(u64::MAX << below),
                _ => *bits,
            };
            bits.count_ones() as usize
        });
        counts.sum()
    }

    /// Takes out all areas but the first `count`.
    pub(super) fn split_off(&mut self, count: usize) -> Self {
        let mut other = self.like();
        let mut at = self.next(0);
        for _ in 0..count {
            at = at.and_then(|slot| self.next(slot + 1));
        }
        let Some(cut) = at else {
            return other;
        };
        for word in 0..WORDS {
            let keep = match cut.saturating_sub(word * 64) {
                below @ 0..64 => !(u64::MAX << below),
                _ => u64::MAX,
            };
            other.used[word] = self.used[word] & !keep;
            other.stale[word] = self.stale[word] & !keep;
            self.used[word] &= keep;
            self.stale[word] &= keep;
        }
        let kept = count.min(self.len());
        other.len = self.len - u16::try_from(kept).unwrap_or(self.len);
        self.len -= other.len;
        other
    }

    /// The areas as a list; there are few enough.
    pub(super) fn to_list(&self) -> List {
        let mut list = List::EMPTY;
        debug_assert!(self.len() <= LEAF);
        let _ = self.visit_from(0, |area| {
            list.push(area);
            ControlFlow::<()>::Continue(())
        });
        list
    }
}
