//! Inner nodes of the tree of areas, and what a parent knows of a child.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "positions and node numbers come from the tree itself, never from a request; a wrong \
              one is a bug of this file and must stop here"
)]

/// Children of an inner node.
pub(super) const FAN: usize = 63;

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

/// How many of an ordered array of 63 are below `address`.
///
/// First the group of eight is found, then the place in it, each by reads and comparisons that do not
/// wait for one another. Nothing is a branch: a wrong guess would cost more, and keep the next lookup
/// waiting.
#[inline]
pub(super) fn below(ordered: &[u64; 63], address: u64) -> usize {
    let count = |at: usize| usize::from(ordered[at] < address);
    let groups = count(7) + count(15) + count(23) + count(31) + count(39) + count(47) + count(55);
    let first = groups * 8;
    let Some(group) = ordered.get(first..first + 7) else {
        return first;
    };
    let count = |at: usize| usize::from(group[at] < address);
    first + count(0) + count(1) + count(2) + count(3) + count(4) + count(5) + count(6)
}

pub(super) trait Node {
    const EMPTY: Self;
    const MIN: usize;
    /// The most that a node gets from its neighbour, counted with what it has.
    const SHARE: usize;
    fn len(&self) -> usize;
    fn summary(&self) -> Summary;
    /// Forgets its elements.
    fn clear(&mut self);
    /// Moves the first `count` elements to the end of `other`.
    fn give_front(&mut self, count: usize, other: &mut Self);
    /// Moves the last `count` elements to the front of `other`.
    fn give_back(&mut self, count: usize, other: &mut Self);
}

pub(super) fn open<T: Copy>(array: &mut [T], len: usize, at: usize, count: usize) {
    array.copy_within(at..len, at + count);
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
    const SHARE: usize = FAN;

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
    /// Moves the children from `at` on to the end of `other`.
    pub(super) fn split_off(&mut self, at: usize, other: &mut Self) {
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
