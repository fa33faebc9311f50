//! The nodes of the tree of areas, and what a parent knows of a child.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "positions and node numbers come from the tree itself, never from a request; a wrong \
              one is a bug of this file and must stop here"
)]

use crate::area::{Area, Flags};

/// Areas in a leaf.
pub(super) const LEAF: usize = 16;
/// Children of an inner node.
pub(super) const FAN: usize = 32;

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
pub(super) struct Leaf {
    pub(super) lasts: [u64; LEAF],
    pub(super) rest: [Rest; LEAF],
    pub(super) len: usize,
}

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
pub(super) struct Inner {
    pub(super) firsts: [u64; FAN],
    pub(super) lasts: [u64; FAN],
    pub(super) holes: [u64; FAN],
    pub(super) children: [u32; FAN],
    pub(super) len: usize,
}

pub(super) trait Node {
    const EMPTY: Self;
    const MIN: usize;
    fn len(&self) -> usize;
    fn summary(&self) -> Summary;
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
        lasts: [0; LEAF],
        rest: [NO_REST; LEAF],
        len: 0,
    };
    const MIN: usize = LEAF / 2;

    fn len(&self) -> usize {
        self.len
    }

    fn summary(&self) -> Summary {
        if self.len == 0 {
            return NO_SUMMARY;
        }
        let mut hole = 0;
        for i in 1..self.len {
            hole = hole.max(self.rest[i].start - self.lasts[i - 1] - 1);
        }
        Summary {
            first: self.rest[0].start,
            last: self.lasts[self.len - 1],
            hole,
        }
    }

    fn split_off(&mut self, at: usize, other: &mut Self) {
        let count = self.len - at;
        let to = other.len..other.len + count;
        other.lasts[to.clone()].copy_from_slice(&self.lasts[at..self.len]);
        other.rest[to].copy_from_slice(&self.rest[at..self.len]);
        other.len += count;
        self.len = at;
    }

    fn give_front(&mut self, count: usize, other: &mut Self) {
        let to = other.len..other.len + count;
        other.lasts[to.clone()].copy_from_slice(&self.lasts[..count]);
        other.rest[to].copy_from_slice(&self.rest[..count]);
        other.len += count;
        self.lasts.copy_within(count..self.len, 0);
        self.rest.copy_within(count..self.len, 0);
        self.len -= count;
    }

    fn give_back(&mut self, count: usize, other: &mut Self) {
        let from = self.len - count..self.len;
        open(&mut other.lasts, other.len, 0, count);
        open(&mut other.rest, other.len, 0, count);
        other.lasts[..count].copy_from_slice(&self.lasts[from.clone()]);
        other.rest[..count].copy_from_slice(&self.rest[from]);
        other.len += count;
        self.len -= count;
    }
}

impl Leaf {
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

    pub(super) fn insert(&mut self, at: usize, area: Area) {
        open(&mut self.lasts, self.len, at, 1);
        open(&mut self.rest, self.len, at, 1);
        self.lasts[at] = area.last;
        self.rest[at] = Rest {
            start: area.start,
            offset: area.offset,
            memory: area.memory,
            flags: area.flags,
        };
        self.len += 1;
    }

    pub(super) fn remove(&mut self, at: usize) -> Area {
        let area = self.get(at);
        self.lasts.copy_within(at + 1..self.len, at);
        self.rest.copy_within(at + 1..self.len, at);
        self.len -= 1;
        area
    }

    /// The number of areas that end before `address`.
    #[inline]
    pub(super) fn before(&self, address: u64) -> usize {
        self.lasts[..self.len].partition_point(|last| *last < address)
    }

    /// The hole in front of an area, which is not the first.
    pub(super) fn hole(&self, at: usize) -> u64 {
        self.rest[at].start - self.lasts[at - 1] - 1
    }

    /// The summary after an insertion at `at`, from the one before.
    pub(super) fn summary_with(&self, at: usize, old: Summary) -> Summary {
        let mut hole = old.hole;
        let (front, back) = (at > 0, at + 1 < self.len);
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
            last: self.lasts[self.len - 1],
            hole,
        }
    }

    /// The summary after a removal at `at`, from the one before.
    pub(super) fn summary_without(&self, at: usize, gone: Area, old: Summary) -> Summary {
        if self.len == 0 {
            return NO_SUMMARY;
        }
        let mut hole = old.hole;
        if at > 0 && at < self.len {
            hole = hole.max(self.hole(at));
        } else {
            let edge = if at == 0 {
                self.rest[0].start - gone.last - 1
            } else {
                gone.start - self.lasts[at - 1] - 1
            };
            if edge == hole {
                return self.summary();
            }
        }
        Summary {
            first: self.rest[0].start,
            last: self.lasts[self.len - 1],
            hole,
        }
    }
}

impl Node for Inner {
    const EMPTY: Self = Self {
        firsts: [0; FAN],
        lasts: [0; FAN],
        holes: [0; FAN],
        children: [0; FAN],
        len: 0,
    };
    const MIN: usize = FAN / 2;

    fn len(&self) -> usize {
        self.len
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
            self.len -= 1;
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
        self.lasts[..self.len].partition_point(|last| *last < address)
    }
}
