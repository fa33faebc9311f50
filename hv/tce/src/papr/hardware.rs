//! One host bridge of the platform: the windows that exist there, and how they are written.

use alloc::vec::Vec;

use iommu::BackendError;
use types::{Iova, Liobn, PageSize, Span};

use super::{Ddw, HostBridge};
use crate::platform::{
    Created, HcallError, LIST, MOST_STUFFED, Multi, Platform, RtasError, WindowSpec,
};
use crate::{Entries, Tce};

/// The most windows a host bridge is taken to have; two are known.
pub(super) const MOST_WINDOWS: usize = 4;

/// Where a window is, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) base: Iova,
    pub(super) bytes: u64,
    pub(super) page: PageSize,
}

impl Shape {
    pub(super) fn entries(self) -> u64 {
        self.bytes >> self.page.shift()
    }

    pub(super) fn span(self) -> Option<Span<Iova>> {
        Span::from_len(self.base, self.bytes)
    }

    /// The address of an entry.
    #[inline(always)]
    pub(super) fn at(self, index: u64) -> Iova {
        let into = index.wrapping_shl(self.page.shift().into());
        Iova::truncated(self.base.bits().wrapping_add(into))
    }
}

/// Entries of a window, by number: the first, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Range {
    pub(super) fn overlaps(self, other: Self) -> bool {
        self.first < other.first.saturating_add(other.count)
            && other.first < self.first.saturating_add(self.count)
    }

    /// The smallest range that holds both.
    fn join(self, other: Self) -> Self {
        let first = self.first.min(other.first);
        let end = self.first.saturating_add(self.count);
        let end = end.max(other.first.saturating_add(other.count));
        Self {
            first,
            count: end.saturating_sub(first),
        }
    }
}

/// A window that exists on the platform.
#[derive(Clone, Copy, Debug)]
pub(super) struct Live {
    pub(super) liobn: Liobn,
    pub(super) shape: Shape,
    /// Entries of which it is not known what they hold, because a call failed that should have
    /// written them.
    pub(super) stuck: Option<Range>,
}

impl Live {
    pub(super) fn mark(&mut self, range: Range) {
        self.stuck = Some(self.stuck.map_or(range, |stuck| stuck.join(range)));
    }

    /// Writes entries as the store has them, by the cheapest calls.
    pub(super) fn write<P: Platform>(
        &self,
        platform: &P,
        multi: Multi,
        entries: &Entries,
        range: Range,
    ) -> Result<(), HcallError> {
        let mut done = 0_u64;
        while done < range.count {
            let index = range.first.saturating_add(done);
            let (here, run) = entries.run(index, range.count.saturating_sub(done));
            if here == 0 {
                return Err(HcallError::Parameter);
            }
            let at = self.shape.at(index);
            match run {
                None => self.wipe(
                    platform,
                    multi,
                    Range {
                        first: index,
                        count: here,
                    },
                )?,
                Some([single]) => platform.put(self.liobn, at, *single)?,
                Some(list) if multi == Multi::Yes && list.len() <= LIST => {
                    platform.put_list(self.liobn, at, list)?;
                }
                Some(list) => {
                    for (index, tce) in (index..).zip(list) {
                        platform.put(self.liobn, self.shape.at(index), *tce)?;
                    }
                }
            }
            done = done.saturating_add(here);
        }
        Ok(())
    }

    /// Empties entries.
    pub(super) fn wipe<P: Platform>(
        &self,
        platform: &P,
        multi: Multi,
        range: Range,
    ) -> Result<(), HcallError> {
        let end = range.first.saturating_add(range.count);
        let mut index = range.first;
        while index < end {
            let left = end.saturating_sub(index);
            let at = self.shape.at(index);
            let here = match multi {
                Multi::Yes if left > 1 => {
                    let here = left.min(MOST_STUFFED);
                    platform.stuff(self.liobn, at, Tce::EMPTY, here)?;
                    here
                }
                _ => {
                    platform.put(self.liobn, at, Tce::EMPTY)?;
                    1
                }
            };
            index = index.saturating_add(here);
        }
        Ok(())
    }

    /// Empties the entries that a store says are not empty.
    pub(super) fn wipe_live<P: Platform>(
        &self,
        platform: &P,
        multi: Multi,
        entries: &Entries,
    ) -> Result<(), HcallError> {
        for_each_chunk(entries, None, |range| self.wipe(platform, multi, range))
    }

    /// Whether the first and the last entry are empty.
    pub(super) fn looks_empty<P: Platform>(&self, platform: &P) -> Result<bool, HcallError> {
        let last = self.shape.entries().saturating_sub(1);
        for index in [0, last] {
            if platform.get(self.liobn, self.shape.at(index))? != Tce::EMPTY {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Visits the ranges of whole chunks in which a store, or another one like it, holds anything.
pub(super) fn for_each_chunk<E>(
    entries: &Entries,
    other: Option<&Entries>,
    mut f: impl FnMut(Range) -> Result<(), E>,
) -> Result<(), E> {
    let mut from = 0;
    loop {
        let next = entries.first_live(from);
        let also = other.and_then(|other| other.first_live(from));
        let next = match (next, also) {
            (Some(a), Some(b)) => a.min(b),
            (Some(a), None) | (None, Some(a)) => a,
            (None, None) => return Ok(()),
        };
        let first = next & !crate::CHUNK.saturating_sub(1);
        let count = crate::CHUNK.min(entries.len().saturating_sub(first));
        f(Range { first, count })?;
        from = first.saturating_add(count);
    }
}

/// A host bridge.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) bridge: HostBridge,
    /// Ordered by base; room for [`MOST_WINDOWS`] from the start.
    pub(super) live: Vec<Live>,
    /// The table that the platform's windows show.
    pub(super) bound: Option<iommu::TableId>,
}

/// What a refused call means for whoever asked.
pub(super) fn refusal(error: HcallError) -> BackendError {
    match error {
        HcallError::Resource => BackendError::OutOfMemory,
        HcallError::Hardware
        | HcallError::Function
        | HcallError::Parameter
        | HcallError::Other(_) => BackendError::Unsupported,
    }
}

pub(super) fn window_refusal(error: RtasError) -> BackendError {
    match error {
        RtasError::Missing => BackendError::Unsupported,
        RtasError::Status(-3) => BackendError::BadWindow,
        RtasError::Status(_) => BackendError::NoWindow,
    }
}

impl Unit {
    pub(super) fn default_shape(&self) -> Shape {
        Shape {
            base: self.bridge.base,
            bytes: self.bridge.bytes,
            page: self.bridge.page,
        }
    }

    fn default_live(&self) -> Live {
        Live {
            liobn: self.bridge.liobn,
            shape: self.default_shape(),
            stuck: None,
        }
    }

    pub(super) fn find(&self, base: Iova) -> Option<&Live> {
        self.live.iter().find(|live| live.shape.base == base)
    }

    pub(super) fn find_mut(&mut self, base: Iova) -> Option<&mut Live> {
        self.live.iter_mut().find(|live| live.shape.base == base)
    }

    pub(super) fn is_sure(&self) -> bool {
        self.live.iter().all(|live| live.stuck.is_none())
    }

    pub(super) fn has_shapes(&self, shapes: &[Shape]) -> bool {
        self.live
            .iter()
            .map(|live| live.shape)
            .eq(shapes.iter().copied())
    }

    fn push(&mut self, live: Live) {
        let at = self
            .live
            .partition_point(|other| other.shape.base < live.shape.base);
        self.live.insert(at, live);
    }

    /// Removing the last window that was created brings the default one back on some platforms.
    fn look_for_default<P: Platform>(&mut self, platform: &P) {
        let default = self.default_live();
        let known = self.live.iter().any(|live| live.liobn == default.liobn);
        if !known && platform.get(default.liobn, default.shape.base).is_ok() {
            self.push(default);
        }
    }

    /// Removes a window of the platform; nothing is in it.
    pub(super) fn remove<P: Platform>(
        &mut self,
        platform: &P,
        base: Iova,
    ) -> Result<(), BackendError> {
        let mut all = self.live.iter();
        let at = all
            .position(|live| live.shape.base == base)
            .ok_or(BackendError::NoWindow)?;
        let liobn = self.live.get(at).ok_or(BackendError::NoWindow)?.liobn;
        platform.remove_window(liobn).map_err(window_refusal)?;
        self.live.remove(at);
        if liobn != self.bridge.liobn {
            self.look_for_default(platform);
        }
        Ok(())
    }

    /// Back to the default window alone; nothing is in any window.
    pub(super) fn reset<P: Platform>(&mut self, platform: &P) -> Result<(), BackendError> {
        let default = [self.default_shape()];
        if self.has_shapes(&default) {
            return Ok(());
        }
        if self.bridge.ddw == Ddw::CreateAndReset {
            platform
                .reset_windows(self.bridge.buid, self.bridge.config_address)
                .map_err(window_refusal)?;
            self.live.clear();
            self.look_for_default(platform);
        } else {
            for _ in 0..MOST_WINDOWS {
                let mut all = self.live.iter();
                let Some(created) = all.find(|live| live.shape != self.default_shape()) else {
                    break;
                };
                let base = created.shape.base;
                self.remove(platform, base)?;
            }
        }
        if self.has_shapes(&default) {
            Ok(())
        } else {
            Err(BackendError::NoWindow)
        }
    }

    /// Creates a window and checks what the platform made of it.
    pub(super) fn create<P: Platform>(
        &mut self,
        platform: &P,
        page: PageSize,
        bytes: u64,
    ) -> Result<Shape, BackendError> {
        if self.live.len() >= MOST_WINDOWS {
            return Err(BackendError::NoWindow);
        }
        let shift = bytes.checked_ilog2().ok_or(BackendError::BadWindow)?;
        let spec = WindowSpec {
            page,
            shift: u8::try_from(shift).map_err(|_| BackendError::BadWindow)?,
        };
        let Created { liobn, base } = platform
            .create_window(self.bridge.buid, self.bridge.config_address, spec)
            .map_err(window_refusal)?;
        let live = Live {
            liobn,
            shape: Shape { base, bytes, page },
            stuck: None,
        };
        let usable = live.shape.span().is_some_and(|span| {
            span.is_aligned(page)
                && self.live.iter().all(|other| {
                    other.liobn != liobn
                        && other
                            .shape
                            .span()
                            .is_some_and(|other| !other.overlaps(span))
                })
        }) && live.looks_empty(platform) == Ok(true);
        if !usable {
            // A window that nobody was told of, and that nothing was written to.
            let _ = platform.remove_window(liobn);
            return Err(BackendError::BadWindow);
        }
        self.push(live);
        Ok(live.shape)
    }

    /// Makes the platform's windows those of a table. Nothing is in any of them.
    pub(super) fn reshape<P: Platform>(
        &mut self,
        platform: &P,
        wanted: &[Shape],
    ) -> Result<(), BackendError> {
        if self.has_shapes(wanted) {
            return Ok(());
        }
        let result = self.shape_to(platform, wanted);
        if result.is_err() {
            // Whatever is left is empty; the next attempt starts from what is there.
            let _ = self.reset(platform);
        }
        result
    }

    fn shape_to<P: Platform>(
        &mut self,
        platform: &P,
        wanted: &[Shape],
    ) -> Result<(), BackendError> {
        self.reset(platform)?;
        let default = self.default_shape();
        let replaced = wanted
            .iter()
            .any(|shape| shape.base == default.base && *shape != default);
        if replaced {
            self.remove(platform, default.base)?;
        }
        for shape in wanted {
            if self.live.iter().all(|live| live.shape != *shape) {
                let made = self.create(platform, shape.page, shape.bytes)?;
                if made != *shape {
                    return Err(BackendError::Incompatible);
                }
            }
        }
        if !wanted.iter().any(|shape| shape.base == default.base) {
            self.remove(platform, default.base)?;
        }
        if self.has_shapes(wanted) {
            Ok(())
        } else {
            Err(BackendError::Incompatible)
        }
    }
}
