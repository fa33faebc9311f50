//! What a tree asks of the caches that hold its translations.

use types::{Address, PageSize, Span};

/// Which cached entries are stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Leaves only (`TLBI VALE2IS`, `TLBI IPAS2LE1IS`, the leaf form of an SMMU command).
    Leaves,
    /// Leaves and the tables that led to them.
    Walks,
}

/// Translations that caches must forget.
///
/// One call describes one change. It may cover more than what changed: a sparse range is described by
/// its ends. An implementation is free to drop more, up to everything of the VMID, when
/// [`Stale::steps`] makes that the cheaper way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale<A: Address> {
    /// From the first to the last address that changed.
    pub span: Span<A>,
    /// The smallest leaf among the old entries: one invalidation per `stride` covers the span.
    pub stride: PageSize,
    /// The level of the old leaves, for a `TTL` hint, if they all had the same.
    pub level: Option<u8>,
    /// Whether tables went, too.
    pub scope: Scope,
}

impl<A: Address> Stale<A> {
    /// How many invalidations by address cover the span.
    #[must_use]
    pub fn steps(&self) -> u64 {
        let first = self.span.start().bits() >> self.stride.shift();
        (self.span.last().bits() >> self.stride.shift()) - first + 1
    }
}

/// The translation caches of one tree: a CPU's TLBs, an SMMU's, or both for a tree whose sub-tables
/// are shared.
///
/// Calls come in the order `publish`, `invalidate`, `sync`; table writes before one are complete
/// before the next.
pub trait Invalidate<A: Address> {
    /// Makes the table writes so far visible to walkers, in order (CPU: `DSB ISHST`).
    fn publish(&mut self);

    /// Starts dropping what is stale.
    fn invalidate(&mut self, stale: &Stale<A>);

    /// Starts dropping everything of the tree.
    fn invalidate_all(&mut self);

    /// Returns when everything dropped is gone from every cache and no access that used it is still
    /// under way (CPU: `DSB ISH`, and `ISB` for the own stage 1; SMMU: `CMD_SYNC` consumed). An
    /// implementation that cannot be sure must not return.
    fn sync(&mut self);
}

impl<A: Address, I: Invalidate<A> + ?Sized> Invalidate<A> for &mut I {
    fn publish(&mut self) {
        (**self).publish();
    }
    fn invalidate(&mut self, stale: &Stale<A>) {
        (**self).invalidate(stale);
    }
    fn invalidate_all(&mut self) {
        (**self).invalidate_all();
    }
    fn sync(&mut self) {
        (**self).sync();
    }
}

/// No cache at all: for a tree that no walker uses yet, or no longer.
#[derive(Clone, Copy, Debug, Default)]
pub struct NotLive;

impl<A: Address> Invalidate<A> for NotLive {
    fn publish(&mut self) {}
    fn invalidate(&mut self, _: &Stale<A>) {}
    fn invalidate_all(&mut self) {}
    fn sync(&mut self) {}
}
