//! Leaves: lists of any areas, and grids of areas that are alike.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "positions and node numbers come from the tree itself, never from a request; a wrong \
              one is a bug of this file and must stop here"
)]

use core::ops::ControlFlow;

use super::grid::Grid;
use super::node::{Node, Summary, below, open};
use crate::area::{Area, Flags};

/// Areas in a list, of which the first eight cache lines are searched.
pub(super) const LEAF: usize = 63;
/// So many areas at the end of a list are moved one by one.
const SHORT: usize = 4;
/// A grid with fewer areas is put down as a list again.
const GRID_MIN: usize = LEAF;
/// A grid is cut into two lists when its areas, and one more, fit in two.
const TWO_LISTS: usize = 2 * (LEAF - 1);

#[derive(Clone, Copy, Debug)]
struct Rest {
    start: u64,
    offset: u64,
    memory: u32,
    flags: Flags,
}

const NO_REST: Rest = Rest {
    start: 0,
    offset: 0,
    memory: 0,
    flags: Flags(0),
};

/// Any areas.
#[derive(Clone, Debug)]
pub(super) struct List {
    /// Where the used entries end, and where they begin: what leaves at the front in order leaves a
    /// gap, until [`List::settle`].
    end: u16,
    gap: u16,
    /// Unused ones are `u64::MAX`, so that a search needs no branch.
    lasts: [u64; LEAF],
    rest: [Rest; LEAF],
}

impl List {
    pub(super) const EMPTY: Self = Self {
        lasts: [u64::MAX; LEAF],
        end: 0,
        gap: 0,
        rest: [NO_REST; LEAF],
    };

    /// Where the used entries end.
    #[inline]
    fn end(&self) -> usize {
        usize::from(self.end)
    }

    /// How many areas there are.
    #[inline]
    pub(super) fn len(&self) -> usize {
        usize::from(self.end - self.gap)
    }

    #[expect(clippy::cast_possible_truncation, reason = "at most LEAF")]
    fn set_end(&mut self, end: usize) {
        self.end = end as u16;
        self.lasts[end..].fill(u64::MAX);
    }

    /// Closes the gap at the front.
    fn settle(&mut self) {
        let (gap, end) = (usize::from(self.gap), self.end());
        if gap > 0 {
            self.lasts.copy_within(gap..end, 0);
            self.rest.copy_within(gap..end, 0);
            self.gap = 0;
            self.set_end(end - gap);
        }
    }

    /// The area at a position, counted from the gap.
    #[inline]
    pub(super) fn get(&self, at: usize) -> Area {
        self.area(at + usize::from(self.gap))
    }

    #[inline]
    fn area(&self, at: usize) -> Area {
        let rest = self.rest[at];
        Area {
            start: rest.start,
            last: self.lasts[at],
            offset: rest.offset,
            memory: rest.memory,
            flags: rest.flags,
        }
    }

    #[inline]
    fn set(&mut self, at: usize, area: Area) {
        self.lasts[at] = area.last;
        self.rest[at] = Rest {
            start: area.start,
            offset: area.offset,
            memory: area.memory,
            flags: area.flags,
        };
    }

    /// Appends an area. There is room, and no gap.
    pub(super) fn push(&mut self, area: Area) {
        self.set(self.end(), area);
        self.end += 1;
    }

    /// Adds an area that overlaps none, if there is room.
    #[inline]
    fn add(&mut self, area: Area) -> bool {
        if self.end() == LEAF {
            if self.gap == 0 {
                return false;
            }
            self.settle();
        }
        let (at, end) = (self.before_in_order(area.start), self.end());
        if at < end {
            open(&mut self.lasts, end, at, 1);
            open(&mut self.rest, end, at, 1);
        }
        self.set(at, area);
        self.end += 1;
        true
    }

    /// Takes out the area that starts at `start`.
    #[inline]
    fn take(&mut self, start: u64) -> Option<Area> {
        let at = self.before_in_order(start);
        let end = self.end();
        if at >= end || self.rest[at].start != start {
            return None;
        }
        let area = self.area(at);
        if at == usize::from(self.gap) {
            // Below every address that is looked for.
            self.lasts[at] = 0;
            self.gap += 1;
            return Some(area);
        }
        if end - at <= SHORT {
            // Two calls cost more than a few words moved here.
            for next in at + 1..end {
                self.lasts.swap(next - 1, next);
                self.rest.swap(next - 1, next);
            }
        } else {
            self.lasts.copy_within(at + 1..end, at);
            self.rest.copy_within(at + 1..end, at);
        }
        self.end -= 1;
        self.lasts[end - 1] = u64::MAX;
        Some(area)
    }

    /// Where the first area is that does not end before `address`.
    #[inline]
    fn before(&self, address: u64) -> usize {
        below(&self.lasts, address).max(usize::from(self.gap))
    }

    /// [`List::before`], which looks at both ends first: changes in order come and go there.
    #[inline(always)]
    fn before_in_order(&self, address: u64) -> usize {
        let (gap, end) = (usize::from(self.gap), self.end());
        if gap == end || self.lasts[end - 1] < address {
            end
        } else if address <= self.lasts[gap] {
            gap
        } else {
            self.before(address)
        }
    }

    fn split_off(&mut self, at: usize) -> Self {
        self.settle();
        let end = self.end();
        let mut other = Self::EMPTY;
        other.lasts[..end - at].copy_from_slice(&self.lasts[at..end]);
        other.rest[..end - at].copy_from_slice(&self.rest[at..end]);
        other.set_end(end - at);
        self.set_end(at);
        other
    }

    fn summary(&self) -> Summary {
        let (gap, end) = (usize::from(self.gap), self.end());
        if gap == end {
            return Summary::default();
        }
        let mut hole = 0;
        for i in gap + 1..end {
            hole = hole.max(self.rest[i].start - self.lasts[i - 1] - 1);
        }
        Summary {
            first: self.rest[gap].start,
            last: self.lasts[end - 1],
            hole,
        }
    }
}

#[derive(Clone, Debug)]
enum Areas {
    List(List),
    Grid(Grid),
}

/// A leaf of the tree.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct Leaf(Areas);

// An odd number of cache lines: were the size a power of two, the same line of all leaves would
// compete for a few sets of a cache.
const _: () = assert!(size_of::<Leaf>() == 33 * 64);

/// How a leaf made room for an area.
pub(super) enum Cut {
    /// The area is in the leaf or in the other.
    Done,
    /// The other has areas, and there is no place for this one yet.
    Again,
}

impl Leaf {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[cfg(test)]
    pub(super) fn is_grid(&self) -> bool {
        matches!(self.0, Areas::Grid(_))
    }

    /// The first area that does not end before `address`.
    #[inline]
    pub(super) fn first_from(&self, address: u64) -> Option<Area> {
        match &self.0 {
            Areas::List(list) => {
                let at = list.before(address);
                (at < list.end()).then(|| list.area(at))
            }
            Areas::Grid(grid) => grid.first_from(address),
        }
    }

    /// The first area that shares an address with `start..=last`. Looks first where changes in order
    /// come and go.
    // Not a call: an area that is returned through memory is read back before it is all there.
    #[inline(always)]
    pub(super) fn overlapping(&self, start: u64, last: u64) -> Option<Area> {
        match &self.0 {
            Areas::List(list) => {
                let at = list.before_in_order(start);
                (at < list.end() && list.rest[at].start <= last).then(|| list.area(at))
            }
            Areas::Grid(grid) => grid.overlapping(start, last),
        }
    }

    /// Visits the areas that do not end before `address`, in order.
    pub(super) fn visit_from<B>(
        &self,
        address: u64,
        mut f: impl FnMut(Area) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        match &self.0 {
            Areas::List(list) => {
                for at in list.before(address)..list.end() {
                    f(list.area(at))?;
                }
                ControlFlow::Continue(())
            }
            Areas::Grid(grid) => grid.visit_from(address, f),
        }
    }

    /// Adds an area that overlaps none, if it can be.
    #[inline]
    pub(super) fn add(&mut self, area: Area) -> bool {
        match &mut self.0 {
            Areas::List(list) => list.add(area),
            Areas::Grid(grid) => grid.add(area),
        }
    }

    /// Makes a full list a grid that has `area` too, if all are alike.
    pub(super) fn condense(&mut self, area: Area) -> bool {
        if let Areas::List(list) = &self.0
            && let Some(grid) = Grid::new(list, area)
        {
            self.0 = Areas::Grid(grid);
            return true;
        }
        false
    }

    /// Takes out the area that starts at `start`.
    #[inline]
    pub(super) fn take(&mut self, start: u64) -> Option<Area> {
        match &mut self.0 {
            Areas::List(list) => list.take(start),
            Areas::Grid(grid) => grid.take(start),
        }
    }

    pub(super) fn set_flags(&mut self, start: u64, flags: Flags) {
        match &mut self.0 {
            Areas::List(list) => {
                let at = list.before(start);
                if at < list.end() && list.rest[at].start == start {
                    list.rest[at].flags = flags;
                }
            }
            Areas::Grid(grid) => grid.set_flags(start, flags),
        }
    }

    /// Changes what the area with the same addresses shows, if the leaf can say it. Says so too of an
    /// area that is not there.
    pub(super) fn replace(&mut self, area: Area) -> bool {
        match &mut self.0 {
            Areas::List(list) => {
                let at = list.before(area.start);
                if at < list.end() && list.rest[at].start == area.start {
                    list.set(at, area);
                }
                true
            }
            Areas::Grid(grid) => grid.replace(area),
        }
    }

    /// Puts the leaf in order after a while of being open.
    pub(super) fn settle(&mut self) {
        match &mut self.0 {
            Areas::List(list) => list.settle(),
            Areas::Grid(grid) if grid.len() < GRID_MIN => self.0 = Areas::List(grid.to_list()),
            Areas::Grid(_) => {}
        }
    }

    /// Whether an area that overlaps none lies behind all of a leaf that cannot take it. A list
    /// could always be split instead.
    pub(super) fn is_passed_by(&self, area: Area) -> bool {
        match &self.0 {
            Areas::List(_) => false,
            Areas::Grid(grid) => {
                grid.last_area().is_some_and(|last| last.last < area.start) && !grid.takes(area)
            }
        }
    }

    /// Makes room for an area that the leaf could not take, by moving areas to an empty leaf that
    /// comes after it. `keep` are those of a full list that stay.
    pub(super) fn cut(&mut self, area: Area, keep: usize, other: &mut Self) -> Cut {
        let mut alone = List::EMPTY;
        let grid = match &mut self.0 {
            Areas::List(list) => {
                list.settle();
                let after = list.before(area.start) > keep;
                let mut rest = list.split_off(keep);
                // A full one that stays whole has its follower start with the area.
                let into = if after || keep == LEAF {
                    &mut rest
                } else {
                    list
                };
                let added = into.add(area);
                debug_assert!(added);
                other.0 = Areas::List(rest);
                return Cut::Done;
            }
            Areas::Grid(grid) => grid,
        };
        let (count, before) = (grid.len(), grid.before(area.start));
        alone.push(area);
        if before == count {
            other.0 = Areas::List(alone);
            return Cut::Done;
        }
        if before == 0 {
            other.0 = core::mem::replace(&mut self.0, Areas::List(alone));
            return Cut::Done;
        }
        // A list of as many as it takes to be no waste, and a grid of the rest.
        let half = LEAF / 2;
        let after = count - before;
        let (keep, whole) = if count <= TWO_LISTS {
            (count / 2, true)
        } else if before < LEAF {
            (before.max(half), true)
        } else if after < LEAF {
            (count - after.max(half), true)
        } else {
            (before - half, false)
        };
        let rest = grid.split_off(keep);
        other.0 = Areas::Grid(rest);
        self.settle();
        other.settle();
        if !whole {
            return Cut::Again;
        }
        let (first, second) = if before <= keep {
            (self, other)
        } else {
            (other, self)
        };
        // On the border either may be the list.
        let added = first.add_to_list(area) || (before == keep && second.add_to_list(area));
        if added { Cut::Done } else { Cut::Again }
    }

    fn add_to_list(&mut self, area: Area) -> bool {
        match &mut self.0 {
            Areas::List(list) => list.add(area),
            Areas::Grid(_) => false,
        }
    }

    fn pop_first(&mut self) -> Option<Area> {
        let first = match &self.0 {
            Areas::List(list) => (list.len() > 0).then(|| list.get(0)),
            Areas::Grid(grid) => grid.first_area(),
        };
        self.take(first?.start)
    }

    fn pop_last(&mut self) -> Option<Area> {
        let last = match &self.0 {
            Areas::List(list) => (list.len() > 0).then(|| list.get(list.len() - 1)),
            Areas::Grid(grid) => grid.last_area(),
        };
        self.take(last?.start)
    }
}

impl Node for Leaf {
    const EMPTY: Self = Self(Areas::List(List::EMPTY));
    const MIN: usize = LEAF / 2;
    const SHARE: usize = 3 * LEAF / 4;

    #[inline]
    fn len(&self) -> usize {
        match &self.0 {
            Areas::List(list) => list.len(),
            Areas::Grid(grid) => grid.len(),
        }
    }

    fn clear(&mut self) {
        match &mut self.0 {
            Areas::List(list) => {
                list.gap = 0;
                list.set_end(0);
            }
            Areas::Grid(_) => *self = Self::EMPTY,
        }
    }

    fn summary(&self) -> Summary {
        match &self.0 {
            Areas::List(list) => list.summary(),
            Areas::Grid(grid) => grid.summary(),
        }
    }

    fn give_front(&mut self, count: usize, other: &mut Self) {
        for _ in 0..count {
            if let Some(area) = self.pop_first() {
                let added = other.add(area);
                debug_assert!(added);
            }
        }
        self.settle();
    }

    fn give_back(&mut self, count: usize, other: &mut Self) {
        for _ in 0..count {
            if let Some(area) = self.pop_last() {
                let added = other.add(area);
                debug_assert!(added);
            }
        }
        self.settle();
    }
}
