//! The nodes of the tree of areas, and what a parent knows of a child.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "positions and node numbers come from the tree itself, never from a request; a wrong \
              one is a bug of this file and must stop here"
)]

use crate::area::{Area, Flags};

/// Areas in a leaf: 32 cache lines of 64 bytes, the first eight of which are searched.
pub(super) const LEAF: usize = 63;
/// Children of an inner node.
pub(super) const FAN: usize = 63;

#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    pub(super) start: u64,
    pub(super) offset: u64,
    pub(super) memory: u32,
    pub(super) flags: Flags,
}

pub(super) const NO_REST: Rest = Rest {
    start: 0,
    offset: 0,
    memory: 0,
    flags: Flags(0),
};

#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(super) struct Leaf {
    /// Unused ones are `u64::MAX`, so that a search needs no branch.
    pub(super) lasts: [u64; LEAF],
    /// Where the used entries end, and where they begin: what leaves at the front in order leaves a
    /// gap, until [`Leaf::settle`].
    end: u32,
    gap: u32,
    pub(super) rest: [Rest; LEAF],
}

const _: () = assert!(size_of::<Leaf>() == 2048);

/// What a parent knows of a child.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) first: u64,
    pub(super) last: u64,
    /// The largest hole between two areas below, in bytes.
    pub(super) hole: u64,
}

pub(super) const NO_SUMMARY: Summary = Summary {
    first: 0,
    last: 0,
    hole: 0,
};

#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(super) struct Inner {
    /// Unused ones are `u64::MAX`.
    pub(super) lasts: [u64; FAN],
    pub(super) children: [u32; FAN],
    pub(super) len: usize,
    pub(super) firsts: [u64; FAN],
    pub(super) holes: [u64; FAN],
}

/// How many of an ordered array of 8n - 1 are below `address`.
///
/// First the cache line is found, by reads of each that do not wait for one another, then the place
/// in it. Nothing is a branch: a wrong guess would cost more, and keep the next lookup waiting.
#[inline]
fn below<const N: usize>(lasts: &[u64; N], address: u64) -> usize {
    const LINE: usize = 8;
    let ends = lasts.iter().skip(LINE - 1).step_by(LINE);
    let lines: usize = ends.map(|last| usize::from(*last < address)).sum();
    let mut below = lines * LINE;
    for half in [4, 2, 1] {
        below += half * usize::from(lasts[below + half - 1] < address);
    }
    below
}

pub(super) trait Node {
    const EMPTY: Self;
    const MIN: usize;
    fn len(&self) -> usize;
    fn summary(&self) -> Summary;
    /// Forgets its elements.
    fn clear(&mut self);
    /// Moves the elements from `at` on to the end of `other`.
    fn split_off(&mut self, at: usize, other: &mut Self);
    /// Moves the first `count` elements to the end of `other`.
    fn give_front(&mut self, count: usize, other: &mut Self);
    /// Moves the last `count` elements to the front of `other`.
    fn give_back(&mut self, count: usize, other: &mut Self);
}

pub(super) fn open<T: Copy>(array: &mut [T], len: usize, at: usize, count: usize) {
    array.copy_within(at..len, at + count);
}

impl Node for Leaf {
    const EMPTY: Self = Self {
        lasts: [u64::MAX; LEAF],
        end: 0,
        gap: 0,
        rest: [NO_REST; LEAF],
    };
    const MIN: usize = LEAF / 2;

    fn len(&self) -> usize {
        self.end as usize
    }

    fn clear(&mut self) {
        self.gap = 0;
        self.set_len(0);
    }

    fn summary(&self) -> Summary {
        let len = self.len();
        if len == 0 {
            return NO_SUMMARY;
        }
        let mut hole = 0;
        for i in 1..len {
            hole = hole.max(self.rest[i].start - self.lasts[i - 1] - 1);
        }
        Summary {
            first: self.rest[0].start,
            last: self.lasts[len - 1],
            hole,
        }
    }

    fn split_off(&mut self, at: usize, other: &mut Self) {
        let (len, to) = (self.len(), other.len());
        let count = len - at;
        other.lasts[to..to + count].copy_from_slice(&self.lasts[at..len]);
        other.rest[to..to + count].copy_from_slice(&self.rest[at..len]);
        other.set_len(to + count);
        self.set_len(at);
    }

    fn give_front(&mut self, count: usize, other: &mut Self) {
        let (len, to) = (self.len(), other.len());
        other.lasts[to..to + count].copy_from_slice(&self.lasts[..count]);
        other.rest[to..to + count].copy_from_slice(&self.rest[..count]);
        other.set_len(to + count);
        self.lasts.copy_within(count..len, 0);
        self.rest.copy_within(count..len, 0);
        self.set_len(len - count);
    }

    fn give_back(&mut self, count: usize, other: &mut Self) {
        let (len, others) = (self.len(), other.len());
        let from = len - count..len;
        open(&mut other.lasts, others, 0, count);
        open(&mut other.rest, others, 0, count);
        other.lasts[..count].copy_from_slice(&self.lasts[from.clone()]);
        other.rest[..count].copy_from_slice(&self.rest[from]);
        other.set_len(others + count);
        self.set_len(len - count);
    }
}

impl Leaf {
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.end as usize
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.end == self.gap
    }

    #[expect(clippy::cast_possible_truncation, reason = "at most LEAF")]
    fn set_len(&mut self, len: usize) {
        self.end = len as u32;
        self.lasts[len..].fill(u64::MAX);
    }

    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.len() < LEAF || self.gap > 0
    }

    /// Closes the gap at the front.
    pub(super) fn settle(&mut self) {
        let (gap, len) = (self.gap as usize, self.len());
        if gap > 0 {
            self.lasts.copy_within(gap..len, 0);
            self.rest.copy_within(gap..len, 0);
            self.gap = 0;
            self.set_len(len - gap);
        }
    }

    #[inline]
    pub(super) fn get(&self, at: usize) -> Area {
        let rest = self.rest[at];
        Area {
            start: rest.start,
            last: self.lasts[at],
            offset: rest.offset,
            memory: rest.memory,
            flags: rest.flags,
        }
    }

    /// Puts an area at `at`, as [`Leaf::before`] found it. There is room.
    #[inline]
    pub(super) fn insert(&mut self, at: usize, area: Area) {
        let mut at = at;
        if self.len() == LEAF {
            at -= self.gap as usize;
            self.settle();
        }
        let len = self.len();
        if at < len {
            open(&mut self.lasts, len, at, 1);
            open(&mut self.rest, len, at, 1);
        }
        self.lasts[at] = area.last;
        self.rest[at] = Rest {
            start: area.start,
            offset: area.offset,
            memory: area.memory,
            flags: area.flags,
        };
        self.end += 1;
    }

    #[inline]
    pub(super) fn remove(&mut self, at: usize) -> Area {
        let area = self.get(at);
        let len = self.len();
        if at == self.gap as usize {
            // Below every address that is looked for.
            self.lasts[at] = 0;
            self.gap += 1;
            return area;
        }
        self.lasts.copy_within(at + 1..len, at);
        self.rest.copy_within(at + 1..len, at);
        self.end -= 1;
        self.lasts[len - 1] = u64::MAX;
        area
    }

    /// Where the first area is that does not end before `address`.
    #[inline]
    pub(super) fn before(&self, address: u64) -> usize {
        below(&self.lasts, address).max(self.gap as usize)
    }

    /// [`Leaf::before`], which looks at both ends first: changes in order come and go there.
    #[inline]
    pub(super) fn before_in_order(&self, address: u64) -> usize {
        let (gap, len) = (self.gap as usize, self.len());
        if self.is_empty() || self.lasts[len - 1] < address {
            len
        } else if address <= self.lasts[gap] {
            gap
        } else {
            self.before(address)
        }
    }

    /// The hole in front of an area, which is not the first.
    pub(super) fn hole(&self, at: usize) -> u64 {
        self.rest[at].start - self.lasts[at - 1] - 1
    }

    /// The summary after an insertion at `at`, from the one before.
    pub(super) fn summary_with(&self, at: usize, old: Summary) -> Summary {
        let mut hole = old.hole;
        let len = self.len();
        let (front, back) = (at > 0, at + 1 < len);
        if front && back {
            let split = self.rest[at + 1].start - self.lasts[at - 1] - 1;
            if split == hole {
                return self.summary();
            }
        } else if front {
            hole = hole.max(self.hole(at));
        } else if back {
            hole = hole.max(self.hole(at + 1));
        }
        Summary {
            first: self.rest[0].start,
            last: self.lasts[len - 1],
            hole,
        }
    }
}

impl Node for Inner {
    const EMPTY: Self = Self {
        firsts: [0; FAN],
        lasts: [u64::MAX; FAN],
        holes: [0; FAN],
        children: [0; FAN],
        len: 0,
    };
    const MIN: usize = FAN / 2;

    fn len(&self) -> usize {
        self.len
    }

    fn clear(&mut self) {
        self.lasts.fill(u64::MAX);
        self.len = 0;
    }

    fn summary(&self) -> Summary {
        if self.len == 0 {
            return NO_SUMMARY;
        }
        let mut hole = self.holes[0];
        for i in 1..self.len {
            hole = hole
                .max(self.holes[i])
                .max(self.firsts[i] - self.lasts[i - 1] - 1);
        }
        Summary {
            first: self.firsts[0],
            last: self.lasts[self.len - 1],
            hole,
        }
    }

    fn split_off(&mut self, at: usize, other: &mut Self) {
        let count = self.len - at;
        let to = other.len..other.len + count;
        other.firsts[to.clone()].copy_from_slice(&self.firsts[at..self.len]);
        other.lasts[to.clone()].copy_from_slice(&self.lasts[at..self.len]);
        other.holes[to.clone()].copy_from_slice(&self.holes[at..self.len]);
        other.children[to].copy_from_slice(&self.children[at..self.len]);
        other.len += count;
        self.lasts[at..].fill(u64::MAX);
        self.len = at;
    }

    fn give_front(&mut self, count: usize, other: &mut Self) {
        let to = other.len..other.len + count;
        other.firsts[to.clone()].copy_from_slice(&self.firsts[..count]);
        other.lasts[to.clone()].copy_from_slice(&self.lasts[..count]);
        other.holes[to.clone()].copy_from_slice(&self.holes[..count]);
        other.children[to].copy_from_slice(&self.children[..count]);
        other.len += count;
        for _ in 0..count {
            self.remove(0);
        }
    }

    fn give_back(&mut self, count: usize, other: &mut Self) {
        for _ in 0..count {
            let at = self.len - 1;
            let (child, summary) = (self.children[at], self.child(at));
            self.remove(at);
            other.insert(0, child, summary);
        }
    }
}

impl Inner {
    pub(super) fn child(&self, at: usize) -> Summary {
        Summary {
            first: self.firsts[at],
            last: self.lasts[at],
            hole: self.holes[at],
        }
    }

    /// The ends, with a given hole.
    pub(super) fn ends(&self, hole: u64) -> Summary {
        Summary {
            first: self.firsts[0],
            last: self.lasts[self.len - 1],
            hole,
        }
    }

    pub(super) fn set(&mut self, at: usize, summary: Summary) {
        self.firsts[at] = summary.first;
        self.lasts[at] = summary.last;
        self.holes[at] = summary.hole;
    }

    pub(super) fn insert(&mut self, at: usize, child: u32, summary: Summary) {
        open(&mut self.firsts, self.len, at, 1);
        open(&mut self.lasts, self.len, at, 1);
        open(&mut self.holes, self.len, at, 1);
        open(&mut self.children, self.len, at, 1);
        self.children[at] = child;
        self.set(at, summary);
        self.len += 1;
    }

    pub(super) fn remove(&mut self, at: usize) {
        self.firsts.copy_within(at + 1..self.len, at);
        self.lasts.copy_within(at + 1..self.len, at);
        self.holes.copy_within(at + 1..self.len, at);
        self.children.copy_within(at + 1..self.len, at);
        self.len -= 1;
        self.lasts[self.len] = u64::MAX;
    }

    /// The largest hole in and beside a child.
    pub(super) fn around(&self, at: usize) -> u64 {
        let mut hole = self.holes[at];
        if at > 0 {
            hole = hole.max(self.firsts[at] - self.lasts[at - 1] - 1);
        }
        if at + 1 < self.len {
            hole = hole.max(self.firsts[at + 1] - self.lasts[at] - 1);
        }
        hole
    }

    /// Updates what is known of a child, and returns the summary, from the one before.
    pub(super) fn update(&mut self, at: usize, child: Summary, old: Summary) -> Summary {
        let before = self.around(at);
        self.set(at, child);
        let after = self.around(at);
        let hole = if after >= old.hole {
            after
        } else if before < old.hole {
            old.hole
        } else {
            return self.summary();
        };
        Summary {
            first: self.firsts[0],
            last: self.lasts[self.len - 1],
            hole,
        }
    }

    /// The child that an area starting at `start` belongs to.
    pub(super) fn place(&self, start: u64) -> usize {
        // Both ends are where areas come and go in order.
        if self.len < 2 || self.firsts[1] > start {
            return 0;
        }
        if self.firsts[self.len - 1] <= start {
            return self.len - 1;
        }
        self.firsts[..self.len]
            .partition_point(|first| *first <= start)
            .saturating_sub(1)
    }

    /// The number of children that end before `address`.
    #[inline]
    pub(super) fn before(&self, address: u64) -> usize {
        below(&self.lasts, address)
    }
}
