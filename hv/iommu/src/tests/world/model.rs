//! What the naive model knows and foretells.

use alloc::collections::BTreeMap;

use super::*;

impl Model {
    /// Whether a table of an SMMU shows a space, so that only its aperture can be used.
    pub(super) fn behind_smmu(&self, space: usize) -> bool {
        let all = [EXPORTER, NESTED, RINGING, ELSEWHERE];
        space == 0
            || all
                .into_iter()
                .any(|d| self.devices[d] == Some(To::Space(space)))
    }

    /// What starts, lengths and offsets must be a multiple of; `None` where nothing can be mapped.
    pub(super) fn alignment(&self, space: usize, at: u64, last: u64) -> Option<u64> {
        if self.behind_smmu(space) && (at < AT || last > APERTURE_LAST) {
            return None;
        }
        if space != TCE_SPACE {
            return Some(SMALL_PAGE);
        }
        let mut windows = self.windows.iter();
        let window = windows.find(|(first, end, _)| *first <= at && last <= *end);
        window.map(|(_, _, page)| *page)
    }

    pub(super) fn waits(&self, space: usize, at: u64, last: u64) -> bool {
        self.waiting[space].is_some_and(|(first, end)| first <= last && at <= end)
    }

    pub(super) fn overlap(&self, space: usize, at: u64, last: u64) -> bool {
        let before = self.spaces[space].range(..=last).next_back();
        before.is_some_and(|(_, interval)| interval.last >= at)
    }

    pub(super) fn may_show(&self, what: What, offset: u64, bytes: u64) -> bool {
        match what {
            What::Ram => true,
            What::Bar => !self.revoked && offset + bytes <= BAR_PAGES * PAGE,
        }
    }

    pub(super) fn may_map(
        &self,
        space: usize,
        at: u64,
        what: What,
        offset: u64,
        bytes: u64,
    ) -> bool {
        let last = at + bytes - 1;
        let aligned = |alignment| (at | offset | bytes).is_multiple_of(alignment);
        self.may_show(what, offset, bytes)
            && self.alignment(space, at, last).is_some_and(aligned)
            && !self.overlap(space, at, last)
            && !self.waits(space, at, last)
    }

    /// The whole intervals in a range; `None` when one is cut.
    pub(super) fn whole(&self, space: usize, at: u64, last: u64) -> Option<Vec<u64>> {
        let all = self.spaces[space].iter();
        let touched: Vec<_> = all.filter(|(s, i)| **s <= last && i.last >= at).collect();
        let whole = touched.iter().all(|(s, i)| **s >= at && i.last <= last);
        whole.then(|| touched.into_iter().map(|(start, _)| *start).collect())
    }

    pub(super) fn find(&self, space: usize, at: u64) -> Option<(u64, Interval)> {
        let (start, interval) = self.spaces[space].range(..=at).next_back()?;
        (interval.last >= at).then_some((*start, *interval))
    }

    /// What a space shows between two addresses, if there is no hole.
    pub(super) fn pieces(
        &self,
        space: usize,
        at: u64,
        last: u64,
    ) -> Option<Vec<(u64, u64, Interval)>> {
        let mut pieces = Vec::new();
        let mut next = at;
        while next <= last {
            let (start, interval) = self.find(space, next)?;
            let end = interval.last.min(last);
            let offset = interval.offset + (next - start);
            pieces.push((next, end, Interval { offset, ..interval }));
            next = end + 1;
        }
        Some(pieces)
    }

    pub(super) fn pinned(&self, space: usize, at: u64, last: u64, hold: Option<Hold>) -> bool {
        let mut pins = self.pins.iter();
        pins.any(|(of, first, end, how)| {
            *of == space && *first <= last && at <= *end && (hold.is_none() || *how == hold)
        })
    }

    pub(super) fn remove(&mut self, space: usize, starts: &[u64]) -> u64 {
        let mut bytes = 0;
        for start in starts {
            let gone = self.spaces[space].remove(start).unwrap();
            bytes += gone.last - start + 1;
            if space == 0 {
                self.dirty.retain(|page| page < start || *page > gone.last);
            }
        }
        bytes
    }

    /// Whether the device may go there, as far as the model knows.
    pub(super) fn may_enter(&self, device: usize, to: To) -> bool {
        let kind = match to {
            To::Space(_) => device != PE,
            To::Pe => device == PE,
            _ => device == NESTED,
        };
        let fits = |space: usize| {
            self.spaces[space]
                .iter()
                .all(|(start, interval)| *start >= AT && interval.last <= APERTURE_LAST)
        };
        kind && match to {
            To::Space(space) => fits(space),
            _ => true,
        }
    }

    pub(super) fn enter(&mut self, device: usize, to: Option<To>) {
        self.devices[device] = to;
        if device == RINGING
            && let Some(To::Space(space)) = to
        {
            let needed = self.doorbells.clone();
            for doorbell in needed {
                self.show(space, doorbell);
            }
        }
        for space in 0..2 {
            let users = [EXPORTER, NESTED, RINGING].into_iter();
            if users
                .filter(|d| self.devices[*d] == Some(To::Space(space)))
                .count()
                == 0
            {
                self.shown[space].clear();
            }
        }
    }

    pub(super) fn show(&mut self, space: usize, doorbell: Doorbell) {
        if !self.shown[space].contains(&doorbell) {
            self.shown[space].push(doorbell);
        }
    }

    /// Every small page a device can reach: where it leads, how.
    pub(super) fn view(
        &self,
        device: usize,
    ) -> Option<BTreeMap<u64, (u64, Permissions, MemoryType)>> {
        let to = self.devices[device]?;
        let space = to.seen()?;
        let mut view = BTreeMap::new();
        for (start, interval) in &self.spaces[space] {
            if interval.what == What::Bar && self.revoked {
                continue;
            }
            let (base, memory) = match interval.what {
                What::Ram => (RAM, MemoryType::Normal),
                What::Bar => (BAR, MemoryType::Device),
            };
            for page in (*start..=interval.last).step_by(2048) {
                let pa = base + interval.offset + (page - start);
                view.insert(page, (pa, interval.permissions, memory));
            }
        }
        if let To::Space(space) = to
            && device != ELSEWHERE
        {
            for doorbell in &self.shown[space] {
                for at in [0, SMALL_PAGE] {
                    let shown = (doorbell.pa + at, Permissions::ReadWrite, MemoryType::Device);
                    view.insert(doorbell.iova + at, shown);
                }
            }
        }
        Some(view)
    }
}
