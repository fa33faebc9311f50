//! One table of the mock, with its translation cache.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use types::{Iova, Pa, Span};

use crate::area::{Permissions, span};
use crate::backend::{BackendError, DirtyRead, DirtyTracking, Endpoint, MemoryType, Window};

/// One entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Where it leads.
    pub pa: Pa,
    /// How many bytes it covers.
    pub bytes: u64,
    /// What is allowed.
    pub permissions: Permissions,
    /// How memory is accessed.
    pub memory: MemoryType,
    /// Written since the last clearing read.
    pub dirty: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) made_for: Endpoint,
    pub(super) windows: Vec<Window>,
    leaves: BTreeMap<u64, Leaf>,
    cache: BTreeMap<u64, Leaf>,
    tracking: DirtyTracking,
}

fn covering(map: &BTreeMap<u64, Leaf>, iova: u64) -> Option<(u64, Leaf)> {
    let (at, leaf) = map.range(..=iova).next_back()?;
    (iova - at < leaf.bytes).then_some((*at, *leaf))
}

fn overlapping(map: &BTreeMap<u64, Leaf>, span: Span<Iova>) -> Vec<u64> {
    let first = covering(map, span.start().bits()).map(|(at, _)| at);
    let from = first.unwrap_or(span.start().bits());
    map.range(from..=span.last().bits())
        .map(|(at, _)| *at)
        .collect()
}

impl Table {
    pub(super) fn new(made_for: Endpoint, windows: Vec<Window>) -> Self {
        Self {
            made_for,
            windows,
            leaves: BTreeMap::new(),
            cache: BTreeMap::new(),
            tracking: DirtyTracking::Off,
        }
    }

    pub(super) fn walk(&self) -> Vec<(Iova, Leaf)> {
        self.leaves
            .iter()
            .map(|(at, leaf)| (Iova::truncated(*at), *leaf))
            .collect()
    }

    pub(super) fn is_empty(&self, span: Span<Iova>) -> bool {
        let below = self.leaves.range(..=span.last().bits()).next_back();
        below.is_none_or(|(at, leaf)| at + (leaf.bytes - 1) < span.start().bits())
    }

    pub(super) fn insert(&mut self, at: u64, leaf: Leaf) {
        let covered = span(at, at + (leaf.bytes - 1));
        assert!(self.is_empty(covered), "{covered} is mapped already");
        assert!(
            self.windows
                .iter()
                .any(|w| w.span.contains_span(covered) && w.pages.bits() & leaf.bytes != 0),
            "{covered} is in no window with pages of {:#x}",
            leaf.bytes
        );
        self.leaves.insert(at, leaf);
    }

    /// Replaces a leaf by one of the same size. Nothing of the old one stays cached.
    pub(super) fn exchange(&mut self, at: u64, new: Leaf) -> Result<(), BackendError> {
        let old = self.leaves.get_mut(&at).ok_or(BackendError::Incompatible)?;
        if old.bytes != new.bytes {
            return Err(BackendError::Unsupported);
        }
        *old = new;
        self.forget(span(at, at + (new.bytes - 1)));
        Ok(())
    }

    pub(super) fn clear(&mut self, span: Span<Iova>) {
        for at in overlapping(&self.leaves, span) {
            if let Some(leaf) = self.leaves.remove(&at) {
                let whole = crate::area::span(at, at + (leaf.bytes - 1));
                assert!(span.contains_span(whole), "unmapping {span} splits {whole}");
            }
        }
    }

    /// Cached translations that the table does not give any more.
    pub(super) fn lingering(&self) -> usize {
        let same = |at: &u64, cached: &Leaf| {
            self.leaves.get(at).is_some_and(|leaf| {
                (leaf.pa, leaf.bytes, leaf.permissions, leaf.memory)
                    == (cached.pa, cached.bytes, cached.permissions, cached.memory)
            })
        };
        let cache = self.cache.iter();
        cache.filter(|(at, cached)| !same(at, cached)).count()
    }

    pub(super) fn forget(&mut self, span: Span<Iova>) {
        for at in overlapping(&self.cache, span) {
            self.cache.remove(&at);
        }
    }

    /// What a device gets: a cached translation first, however old.
    pub(super) fn translate(&mut self, iova: Iova) -> Option<(u64, Leaf)> {
        if let Some(hit) = covering(&self.cache, iova.bits()) {
            return Some(hit);
        }
        let (at, leaf) = covering(&self.leaves, iova.bits())?;
        // Translations of overlapping size conflict; hardware may pick either, the mock is strict.
        self.forget(crate::area::span(at, at + (leaf.bytes - 1)));
        self.cache.insert(at, leaf);
        Some((at, leaf))
    }

    /// A write through a cached clean translation still sets the flag in the table, as hardware
    /// that updates it does; a write after a clearing read without invalidation is lost.
    pub(super) fn mark_dirty(&mut self, at: u64) {
        if self.tracking == DirtyTracking::Off {
            return;
        }
        if self.cache.get(&at).is_some_and(|cached| cached.dirty) {
            return;
        }
        if let Some(leaf) = self.leaves.get_mut(&at) {
            leaf.dirty = true;
        }
        if let Some(cached) = self.cache.get_mut(&at) {
            cached.dirty = true;
        }
    }

    pub(super) fn track(&mut self, tracking: DirtyTracking) {
        if tracking == DirtyTracking::On {
            for leaf in self.leaves.values_mut() {
                leaf.dirty = false;
            }
            self.cache.clear();
        }
        self.tracking = tracking;
    }

    pub(super) fn read_dirty(
        &mut self,
        span: Span<Iova>,
        read: DirtyRead,
        report: &mut dyn FnMut(Span<Iova>),
    ) {
        for at in overlapping(&self.leaves, span) {
            if let Some(leaf) = self.leaves.get_mut(&at)
                && leaf.dirty
            {
                let whole = crate::area::span(at, at + (leaf.bytes - 1));
                report(whole);
                if read == DirtyRead::Clear && span.contains_span(whole) {
                    leaf.dirty = false;
                }
            }
        }
    }
}
