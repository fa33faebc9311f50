//! Each operation on the core, and on the model, and whether they agree.

use alloc::collections::BTreeMap;
use alloc::vec;

use super::*;

impl World {
    pub(super) fn saw(&mut self, kind: &'static str, went_through: bool) {
        let [refused, done] = self.seen.entry(kind).or_default();
        *if went_through { done } else { refused } += 1;
    }

    /// A start and a length in bytes: as said, of an interval there is, all of one, or from the
    /// middle of one.
    pub(super) fn range(&self, space: usize, at: u64, len: u64) -> (u64, u64) {
        let Some(pick) = at.checked_sub(THERE) else {
            return (place(at), len * PAGE);
        };
        let intervals = &self.m.spaces[space];
        let count = intervals.len().max(1) as u64;
        let nth = usize::try_from(pick / 3 % count).unwrap();
        let Some((start, interval)) = intervals.iter().nth(nth) else {
            return (AT, len * PAGE);
        };
        match pick % 3 {
            0 => (*start, len * PAGE),
            1 => (*start, interval.last - start + 1),
            _ => (start + PAGE, len * PAGE),
        }
    }

    pub(super) fn target(&self, to: To) -> Target {
        let [abort, bypass, translate, blocked] = self.targets.map(Target::Domain);
        match to {
            To::Space(space) => Target::Ioas(self.spaces[space]),
            To::Parent => Target::Domain(self.parent),
            To::Abort => abort,
            To::Bypass => bypass,
            To::Translate => translate,
            To::Blocked => blocked,
            To::Pe => Target::Domain(self.pe),
        }
    }

    pub(super) fn request(&self, placement: Placement, what: What, offset: u64, bytes: u64) -> Map {
        let memory = match what {
            What::Ram => self.f.ram,
            What::Bar => self.bar,
        };
        Map {
            memory,
            ..self.f.request(placement, offset, bytes)
        }
    }

    pub(super) fn step(&mut self, op: Op) {
        match op {
            Op::Map(space, at, what, offset, len, permissions) => {
                let (at, offset, bytes) = (place(at), offset * PAGE, len * PAGE);
                let request = Map {
                    permissions,
                    ..self.request(Placement::Fixed(iova(at)), what, offset, bytes)
                };
                let result = self.f.core.map(self.spaces[space], &request);
                let may = self.m.may_map(space, at, what, offset, bytes);
                assert_eq!(result.is_ok(), may, "{result:?}");
                let kind = match what {
                    What::Ram => "map",
                    What::Bar => "map a BAR",
                };
                self.saw(kind, may);
                if may {
                    let last = at + bytes - 1;
                    let new = Interval {
                        last,
                        what,
                        offset,
                        permissions,
                    };
                    self.m.spaces[space].insert(at, new);
                }
            }
            Op::Auto(space, what, offset, len) => {
                let (offset, bytes) = (offset * PAGE, len * PAGE);
                let request = self.request(Placement::Auto, what, offset, bytes);
                let result = self.f.core.map(self.spaces[space], &request);
                self.saw("place", result.is_ok());
                match result {
                    Ok(span) => {
                        let (at, last) = (span.start().bits(), span.last().bits());
                        assert!(self.m.may_map(space, at, what, offset, bytes));
                        assert_eq!(last - at + 1, bytes);
                        let allowed = !self.m.allowed[space] || at >= AT && last <= AT + 64 * PAGE;
                        assert!(allowed && at > 0);
                        let permissions = Permissions::ReadWrite;
                        let new = Interval {
                            last,
                            what,
                            offset,
                            permissions,
                        };
                        self.m.spaces[space].insert(at, new);
                    }
                    // There is room somewhere unless something speaks against it.
                    Err(error) => assert!(
                        !self.m.may_show(what, offset, bytes)
                            || self.m.allowed[space]
                            || space == TCE_SPACE,
                        "{error:?}"
                    ),
                }
            }
            Op::Unmap(space, at, len) => {
                let (at, bytes) = self.range(space, at, len);
                self.unmap(space, at, at + bytes - 1);
            }
            Op::Everything(space) => self.unmap(space, 0, u64::MAX),
            Op::Copy(from, at, len, to, target) => {
                let range = self.range(from, at, len);
                self.copy(from, range, to, place(target));
            }

            Op::Split(space, at) => {
                let (at, _) = self.range(space, at, 1);
                self.split(space, at);
            }
            Op::Exchange(space, at, len, offset, permissions) => {
                let (at, bytes) = self.range(space, at, len);
                self.exchange(space, at, bytes, offset * PAGE, permissions);
            }
            Op::Allow(space, some) => {
                let window = [of(AT, 64 * PAGE)];
                let list = if some { &window[..] } else { &[] };
                let result = self.f.core.allow(self.spaces[space], list);
                let mut windows = self.m.windows.iter();
                let may =
                    !some || space == 0 || windows.any(|w| w.0 <= AT && AT + 64 * PAGE <= w.1);
                assert_eq!(result.is_ok(), may, "{result:?}");
                self.saw("allow", may);
                if may {
                    self.m.allowed[space] = some;
                }
            }
            Op::Attach(device, to) => {
                if !fits_kind(device, to) {
                    return;
                }
                let result = self.f.core.attach(self.devices[device], self.target(to));
                let may = self.m.devices[device].is_none() && self.m.may_enter(device, to);
                assert_eq!(result.is_ok(), may, "{result:?}");
                self.saw(attach_kind(to), may);
                if may {
                    self.m.enter(device, Some(to));
                }
            }
            Op::Replace(device, to) => {
                if !fits_kind(device, to) {
                    return;
                }
                let result = self.f.core.replace(self.devices[device], self.target(to));
                let now = self.m.devices[device];
                let may = now.is_some() && (now == Some(to) || self.m.may_enter(device, to));
                assert_eq!(result.is_ok(), may, "{result:?}");
                self.saw("replace", may);
                if may {
                    self.m.enter(device, Some(to));
                }
            }
            Op::Detach(device) => {
                let result = self.f.core.detach(self.devices[device]);
                assert_eq!(result.is_ok(), self.m.devices[device].is_some());
                self.saw("detach", result.is_ok());
                self.m.enter(device, None);
            }
            Op::Pin(space, at, len, hold) => {
                let (at, bytes) = self.range(space, at, len);
                self.pin(space, at, bytes, hold);
            }
            Op::Unpin(at) => {
                if !self.pins.is_empty() {
                    let at = at % self.pins.len();
                    self.f.core.unpin(self.pins.remove(at)).unwrap();
                    self.m.pins.remove(at);
                }
            }
            Op::Begin(space, at, len) => {
                // Every other time what is pinned.
                let mut pins = self.m.pins.iter().filter(|pin| pin.0 == space);
                let pinned = pins.next().filter(|_| at % 2 == 0);
                let pinned = pinned.and_then(|pin| self.m.find(space, pin.1));
                let (at, last) = match pinned {
                    Some((start, interval)) => (start, interval.last),
                    None => {
                        let (at, bytes) = self.range(space, at, len);
                        (at, at + bytes - 1)
                    }
                };
                self.begin(space, at, last);
            }
            Op::Poll(space) => self.poll(space),
            Op::Abort(space) => {
                if let Some(waiting) = self.waiting[space].take() {
                    self.f.core.abort_unmap(waiting).unwrap();
                    self.saw("abort an unmapping", true);
                    self.m.waiting[space] = None;
                }
            }
            Op::Reset(begins) => {
                let device = self.devices[EXPORTER];
                let result = if begins {
                    self.f.core.begin_reset(device)
                } else {
                    self.f.core.end_reset(device)
                };
                result.unwrap();
                let shows = |interval: &Interval| interval.what == What::Bar;
                if begins && self.m.spaces.iter().flat_map(BTreeMap::values).any(shows) {
                    self.saw("revoke what is mapped", true);
                }
                self.m.revoked = begins;
                if begins {
                    let gone: Vec<(u64, u64)> = self.m.spaces[0]
                        .iter()
                        .filter(|(_, interval)| interval.what == What::Bar)
                        .map(|(start, interval)| (*start, interval.last))
                        .collect();
                    let dirty = &mut self.m.dirty;
                    dirty.retain(|page| !gone.iter().any(|(s, l)| s <= page && page <= l));
                }
            }
            Op::CreateWindow(page, shift) => self.create_window(page, 1 << shift),
            Op::RemoveWindow(first) => {
                let base = if first { 0 } else { DYNAMIC_WINDOW_BASE };
                let result = self.f.core.remove_window(self.pe, iova(base));
                let at = self.m.windows.iter().position(|window| window.0 == base);
                let may = at.is_some_and(|at| {
                    let (first, last, _) = self.m.windows[at];
                    let promised = self.m.allowed[TCE_SPACE] && first <= AT && AT <= last;
                    !promised && !self.m.overlap(TCE_SPACE, first, last)
                });
                assert_eq!(result.is_ok(), may, "{result:?}");
                self.saw("remove a window", may);
                if may {
                    self.m.windows.remove(at.unwrap());
                }
            }
            Op::ResetWindows => {
                let result = self.f.core.reset_windows(self.pe);
                let used = !self.m.spaces[TCE_SPACE].is_empty() || self.m.allowed[TCE_SPACE];
                assert_eq!(result.is_err(), used, "{result:?}");
                self.saw("reset windows", !used);
                if !used {
                    self.m.windows = vec![(0, DEFAULT_WINDOW_BYTES - 1, PAGE)];
                }
            }
            Op::Doorbell(n) => self.doorbell((n + 1) << 30),
            Op::MoveMsi(start, mebibytes) => {
                let device = self.devices[RINGING];
                let start = 0x0900_0000 + start * 16 * MIB;
                let set = self.f.core.set_msi_start(device, start);
                let sized = self.f.core.set_msi_size(device, mebibytes);
                let free = self.m.devices[RINGING].is_none();
                assert_eq!((set.is_ok(), sized.is_ok()), (free, free));
                self.saw("move the interrupt window", free);
                if free {
                    self.m.msi = if mebibytes == 0 { 0x0800_0000 } else { start };
                }
            }
            Op::Track(tracking) => {
                self.f
                    .core
                    .set_dirty_tracking(self.parent, tracking)
                    .unwrap();
                self.m.tracking = tracking == DirtyTracking::On;
                if self.m.tracking {
                    self.m.dirty.clear();
                }
            }
            Op::Write(device, at) => {
                let seen = self.m.devices[device].and_then(To::seen).unwrap_or(0);
                let (at, _) = self.range(seen, at, 1);
                self.write(device, at + 2049);
            }
            Op::ReadDirty(at, len, shift, read) => {
                // Every other time where something was written.
                let written = self.m.dirty.first().filter(|_| at % 2 == 0);
                let at = written.map_or(AT + at * PAGE, |page| page & !(PAGE - 1));
                self.read_dirty(at, len, SMALL_PAGE << shift, read);
            }
            Op::Destroy => {
                for space in self.spaces {
                    let result = self.f.core.destroy_ioas(space);
                    assert!(matches!(result, Err(Error::Busy { .. })));
                }
                let result = self.f.core.destroy_domain(self.parent);
                assert!(matches!(result, Err(Error::Busy { .. })));
                let mut all = self.m.spaces.iter().flat_map(BTreeMap::values);
                if all.any(|interval| interval.what == What::Ram) {
                    let result = self.f.core.destroy_memory(self.f.ram);
                    assert!(matches!(result, Err(Error::Busy { .. })));
                }
                if self.m.devices[EXPORTER].is_some() {
                    assert!(self.f.core.unbind(self.devices[EXPORTER]).is_err());
                }
            }
        }
    }

    pub(super) fn unmap(&mut self, space: usize, at: u64, last: u64) {
        let result = self.f.core.unmap(self.spaces[space], upto(at, last));
        let everything = at == 0;
        let whole = self.m.whole(space, at, last);
        let may = whole.filter(|whole| {
            (everything || !whole.is_empty())
                && !self.m.waits(space, at, last)
                && !self.m.pinned(space, at, last, None)
        });
        self.saw("unmap", may.is_some());
        match may {
            Some(whole) => assert_eq!(result, Ok(self.m.remove(space, &whole))),
            None => assert!(result.is_err()),
        }
    }

    pub(super) fn copy(&mut self, from: usize, (at, bytes): (u64, u64), to: usize, target: u64) {
        let last = at + bytes - 1;
        let request = Copy {
            from: self.spaces[from],
            span: upto(at, last),
            to: self.spaces[to],
            placement: Placement::Fixed(iova(target)),
            permissions: Permissions::Read,
        };
        let result = self.f.core.copy(&request);
        let pieces = self.m.pieces(from, at, last).filter(|pieces| {
            pieces.iter().all(|(start, end, piece)| {
                piece.permissions.allows_read()
                    && self.m.may_map(
                        to,
                        start - at + target,
                        piece.what,
                        piece.offset,
                        end - start + 1,
                    )
            })
        });
        assert_eq!(result.is_ok(), pieces.is_some(), "{result:?}");
        self.saw("copy", pieces.is_some());
        for (start, end, piece) in pieces.into_iter().flatten() {
            let copied = Interval {
                last: end - at + target,
                permissions: Permissions::Read,
                ..piece
            };
            self.m.spaces[to].insert(start - at + target, copied);
        }
    }

    pub(super) fn split(&mut self, space: usize, at: u64) {
        let result = self.f.core.split(self.spaces[space], iova(at));
        let found = self.m.find(space, at).filter(|(start, _)| *start != at);
        let may = found.is_none_or(|(start, interval)| {
            let alignment = self.m.alignment(space, start, interval.last);
            !self.m.waits(space, start, interval.last)
                && alignment.is_some_and(|a| at.is_multiple_of(a))
        });
        assert_eq!(result.is_ok(), may, "{result:?}");
        if found.is_some() {
            self.saw("split", may);
        }
        if let Some((start, interval)) = found.filter(|_| may) {
            let first = Interval {
                last: at - 1,
                ..interval
            };
            let offset = interval.offset + (at - start);
            self.m.spaces[space].insert(start, first);
            self.m.spaces[space].insert(at, Interval { offset, ..interval });
        }
    }

    pub(super) fn exchange(
        &mut self,
        space: usize,
        at: u64,
        bytes: u64,
        offset: u64,
        how: Permissions,
    ) {
        let request = Map {
            permissions: how,
            ..self.request(Placement::Fixed(iova(at)), What::Ram, offset, bytes)
        };
        let result = self.f.core.exchange(self.spaces[space], &request);
        let last = at + bytes - 1;
        // Only TCE tables can, an entry at a time.
        let found = self.m.find(space, at).filter(|(start, interval)| {
            *start == at
                && interval.last == last
                && interval.what == What::Ram
                && !self.m.behind_smmu(space)
                && self.m.alignment(space, at, last) == Some(bytes)
                && offset.is_multiple_of(bytes)
                && !self.m.waits(space, at, last)
                && !self.m.pinned(space, at, last, None)
        });
        assert_eq!(result.is_ok(), found.is_some(), "{result:?}");
        self.saw("exchange", found.is_some());
        if let Some((start, interval)) = found {
            let permissions = how;
            self.m.spaces[space].insert(
                start,
                Interval {
                    offset,
                    permissions,
                    ..interval
                },
            );
        }
    }

    pub(super) fn pin(&mut self, space: usize, at: u64, bytes: u64, hold: Hold) {
        let last = at + bytes - 1;
        let span = upto(at, last);
        let pin = self
            .f
            .core
            .pin(self.access[space], span, Intent::Write, hold);
        let pieces = self.m.pieces(space, at, last);
        let may = pieces.is_some_and(|pieces| {
            let mut next = None;
            pieces.iter().all(|(start, end, piece)| {
                let contiguous = next.is_none_or(|next| next == piece.offset);
                next = Some(piece.offset + (end - start + 1));
                piece.what == What::Ram
                    && piece.permissions.allows_write()
                    && (contiguous || hold == Hold::Revocable)
            })
        }) && !self.m.waits(space, at, last);
        assert_eq!(pin.is_ok(), may, "{pin:?}");
        self.saw("pin", may);
        if let Ok(pin) = pin {
            self.pins.push(pin);
            self.m.pins.push((space, at, last, Some(hold)));
        }
    }

    pub(super) fn begin(&mut self, space: usize, at: u64, last: u64) {
        let result = self.f.core.begin_unmap(self.spaces[space], upto(at, last));
        let whole = self.m.whole(space, at, last).filter(|whole| {
            !whole.is_empty()
                && self.m.waiting[space].is_none()
                && !self.m.pinned(space, at, last, Some(Hold::Hardware))
        });
        self.saw("begin an unmapping", result.is_ok());
        match (result, whole) {
            (Err(_), None) => {}
            (Ok(Unmapping::Done(bytes)), Some(whole)) => {
                assert!(!self.m.pinned(space, at, last, None));
                assert_eq!(bytes, self.m.remove(space, &whole));
            }
            (Ok(Unmapping::Waiting(waiting)), Some(_)) => {
                assert!(self.m.pinned(space, at, last, None));
                self.waiting[space] = Some(waiting);
                self.m.waiting[space] = Some((at, last));
            }
            (result, whole) => panic!("{result:?} but {whole:?}"),
        }
    }

    pub(super) fn poll(&mut self, space: usize) {
        let (Some(waiting), Some((at, last))) = (self.waiting[space].take(), self.m.waiting[space])
        else {
            return;
        };
        let polled = self.f.core.poll_unmap(waiting).unwrap();
        self.saw("poll", matches!(polled, Unmapping::Done(_)));
        match polled {
            Unmapping::Waiting(again) => {
                assert!(self.m.pinned(space, at, last, None));
                self.waiting[space] = Some(again);
            }
            Unmapping::Done(bytes) => {
                assert!(!self.m.pinned(space, at, last, None));
                self.m.waiting[space] = None;
                let whole = self.m.whole(space, at, last).unwrap();
                assert_eq!(bytes, self.m.remove(space, &whole));
            }
        }
    }

    pub(super) fn create_window(&mut self, page: PageSize, bytes: u64) {
        let result = self.f.core.create_window(self.pe, page, bytes);
        let may = self.m.windows.len() < MAX_WINDOWS
            && page != PageSize::SIZE_1G
            && bytes >= page.bytes();
        assert_eq!(result.is_ok(), may, "{result:?}");
        self.saw("create a window", may);
        if may {
            let has_first = self.m.windows.iter().any(|window| window.0 == 0);
            let base = if has_first { DYNAMIC_WINDOW_BASE } else { 0 };
            let window = result.unwrap();
            assert_eq!(window.span, of(base, bytes));
            self.m.windows.push((base, base + bytes - 1, page.bytes()));
        }
    }

    pub(super) fn doorbell(&mut self, at: u64) {
        let result = self.f.core.map_doorbell(self.devices[RINGING], pa(at + 64));
        let Some(To::Space(space)) = self.m.devices[RINGING] else {
            assert_eq!(refused(result), Error::NotAttached);
            self.saw("map a doorbell", false);
            return;
        };
        self.saw("map a doorbell", true);
        let window = self.m.msi;
        let same: Vec<_> = self
            .m
            .doorbells
            .iter()
            .filter(|d| d.window == window)
            .collect();
        let known = same.iter().find(|d| d.pa == at).map(|d| d.iova);
        let place = known.unwrap_or(window + same.len() as u64 * PAGE);
        assert_eq!(result, Ok(iova(place + 64)));
        let doorbell = Doorbell {
            window,
            pa: at,
            iova: place,
        };
        if known.is_none() {
            self.m.doorbells.push(doorbell);
        }
        self.m.show(space, doorbell);
    }

    pub(super) fn write(&mut self, device: usize, at: u64) {
        let reached = self.f.dma(self.devices[device], at, Dma::Write).ok();
        let page = at & !(SMALL_PAGE - 1);
        let seen = self
            .m
            .view(device)
            .and_then(|view| view.get(&page).copied());
        let expected = seen.filter(|(_, how, _)| how.allows_write());
        assert_eq!(reached, expected.map(|(pa, ..)| pa + (at - page)));
        // The nest parent's table is seen by the guest's device alone, and not by way of a space.
        let by_parent = matches!(
            self.m.devices[device],
            Some(To::Parent | To::Bypass | To::Translate)
        );
        self.saw("write", reached.is_some());
        if reached.is_some() && by_parent && self.m.tracking {
            self.saw("write what is tracked", true);
            self.m.dirty.insert(page);
        }
    }

    pub(super) fn read_dirty(&mut self, at: u64, len: u64, page: u64, read: DirtyRead) {
        let mut bits = [0_u8; 16];
        let span = of(at, len * PAGE);
        let result = self
            .f
            .core
            .read_dirty(self.parent, span, page, read, &mut bits);
        let bytes = len * PAGE;
        let may = self.m.tracking && (at | bytes).is_multiple_of(page.max(SMALL_PAGE));
        assert_eq!(result.is_ok(), may, "{result:?}");
        self.saw("read dirty pages", may);
        let mut expected = [0_u8; 16];
        let first = self.m.dirty.range(at..at + bytes).next().copied();
        if may {
            for dirty in self.m.dirty.range(at..at + bytes) {
                let bit = (dirty - at) / page;
                expected[usize::try_from(bit / 8).unwrap()] |= 1 << (bit % 8);
            }
            if read == DirtyRead::Clear {
                self.m
                    .dirty
                    .retain(|dirty| *dirty < at || *dirty >= at + bytes);
            }
        }
        assert_eq!(bits, expected);
        if bits != [0; 16] {
            self.saw("find dirty pages", true);
            // Nothing that is cached keeps a page from being dirty again.
            self.write(NESTED, first.unwrap_or(at));
        }
    }

    pub(super) fn compare(&mut self) {
        check(&self.f.core);
        for (index, device) in self.devices.clone().into_iter().enumerate() {
            let endpoint = self.f.endpoint(device);
            let view = self.m.view(index);
            if self.m.devices[index].is_none() || self.m.devices[index] == Some(To::Blocked) {
                assert_eq!(self.f.core.backend().binding(endpoint), Binding::Abort);
            }
            let mut probes: Vec<u64> = (0..112).map(place).collect();
            if let Some(view) = &view {
                let mut walked = BTreeMap::new();
                for (at, leaf) in self.f.walk(device) {
                    for page in (0..leaf.bytes).step_by(2048) {
                        let shown = (leaf.pa.bits() + page, leaf.permissions, leaf.memory);
                        walked.insert(at + page, shown);
                    }
                }
                assert_eq!(&walked, view);
                probes.extend(view.keys().step_by(5));
            }
            for at in probes {
                let seen = view.as_ref().and_then(|view| view.get(&at));
                let expected = seen.filter(|(_, how, _)| how.allows_read());
                // A device in translation by the guest is as one in bypass, for the mock.
                assert_eq!(self.f.reads(device, at), expected.map(|(pa, ..)| *pa));
            }
        }
        for (space, intervals) in self.m.spaces.iter().enumerate() {
            let object = self.f.core.ioas(self.spaces[space]).unwrap();
            assert_eq!(object.len(), intervals.len());
        }
    }
}
