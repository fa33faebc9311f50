//! Areas: what an IO address space maps where.

pub(crate) mod tree;

use types::{Iova, Span};

pub(crate) use tree::AreaTree;

/// What a device or the hypervisor may do at an IOVA. At least one of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permissions {
    /// Reads only.
    Read,
    /// Writes only.
    Write,
    /// Both.
    ReadWrite,
}

impl Permissions {
    /// Whether reads are allowed.
    #[must_use]
    pub const fn allows_read(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }

    /// Whether writes are allowed.
    #[must_use]
    pub const fn allows_write(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }

    /// Whether everything `other` allows is allowed here too.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        (self.allows_read() || !other.allows_read())
            && (self.allows_write() || !other.allows_write())
    }
}

/// The small facts of an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flags(u8);

impl Flags {
    const READ: u8 = 1;
    const WRITE: u8 = 2;
    const STALE: u8 = 4;

    pub(crate) fn new(permissions: Permissions) -> Self {
        let mut bits = 0;
        if permissions.allows_read() {
            bits |= Self::READ;
        }
        if permissions.allows_write() {
            bits |= Self::WRITE;
        }
        Self(bits)
    }

    pub(crate) fn permissions(self) -> Permissions {
        match (self.0 & Self::READ != 0, self.0 & Self::WRITE != 0) {
            (true, false) => Permissions::Read,
            (false, true) => Permissions::Write,
            _ => Permissions::ReadWrite,
        }
    }

    /// The entries are cleared, but no invalidation has been confirmed: a device may still hold
    /// them, so the area keeps its memory alive and serves nobody.
    pub(crate) fn is_stale(self) -> bool {
        self.0 & Self::STALE != 0
    }

    pub(crate) fn stale(self) -> Self {
        Self(self.0 | Self::STALE)
    }
}

/// One mapping: `start..=last` shows `memory` from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) start: u64,
    pub(crate) last: u64,
    /// Where in the memory object the area begins, in bytes.
    pub(crate) offset: u64,
    /// The arena slot of the memory object, which the area keeps alive.
    pub(crate) memory: u32,
    pub(crate) flags: Flags,
}

impl Area {
    /// Bytes; an area never covers the whole space, see [`crate::Error::Overflow`].
    pub(crate) fn bytes(self) -> u64 {
        self.last.wrapping_sub(self.start).wrapping_add(1)
    }

    pub(crate) fn span(self) -> Span<Iova> {
        span(self.start, self.last)
    }
}

/// The span of two ends that are known to be in order.
pub(crate) fn span(start: u64, last: u64) -> Span<Iova> {
    let start = Iova::truncated(start);
    let last = Iova::truncated(last);
    Span::new(start, last.max(start)).unwrap_or_else(|| only(start))
}

fn only(at: Iova) -> Span<Iova> {
    // `from_len(_, 1)` exists for every address; the fallback keeps this path free of panics.
    Span::from_len(at, 1).unwrap_or_else(|| only(Iova::ZERO))
}
