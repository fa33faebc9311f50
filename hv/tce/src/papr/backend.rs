//! The core's trait.

use iommu::{
    Backend, BackendError, Binding, Capabilities, Endpoint, EntryPlace, PageRun, PageSizes, Run,
    Slot, TableId, TableOptions, UnitId, Window, WindowLimits,
};
use types::{Iova, Liobn, PageSize, Span};

use super::{
    Ddw, HostBridge, MOST_WINDOWS, PaprBackend, Range, Table, TableWindow, Unit, for_each_chunk,
    refusal, shown,
};
use crate::platform::{HcallError, Platform};
use crate::{OutOfMemory, Tce};

fn no_memory(_: OutOfMemory) -> BackendError {
    BackendError::OutOfMemory
}

/// Writes what a table says to the platform again where it is not known what the platform has. An
/// entry that belongs to no table is empty.
fn retry<P: Platform>(platform: &P, unit: &mut Unit, table: Option<&Table>) -> bool {
    let multi = unit.bridge.multi;
    for live in &mut unit.live {
        let Some(range) = live.stuck else { continue };
        let window = table.and_then(|table| {
            let mut windows = table.windows.iter();
            windows.find(|window| window.shape == live.shape)
        });
        let written = match window {
            Some(window) => live.write(platform, multi, &window.entries, range),
            None => live.wipe(platform, multi, range),
        };
        if written.is_ok() {
            live.stuck = None;
        }
    }
    unit.is_sure()
}

/// Takes everything of a table off the platform. After a failure everything is there again, or
/// marked as not known.
fn hide<P: Platform>(platform: &P, unit: &mut Unit, table: &Table) -> Result<(), BackendError> {
    let multi = unit.bridge.multi;
    let mut failed = false;
    for window in &table.windows {
        if let Some(live) = unit.find(window.shape.base) {
            failed |= live.wipe_live(platform, multi, &window.entries).is_err();
        }
        if failed {
            break;
        }
    }
    if !failed {
        return Ok(());
    }
    for window in &table.windows {
        if let Some(live) = unit.find_mut(window.shape.base) {
            let _ = for_each_chunk(&window.entries, None, |range| {
                if live.write(platform, multi, &window.entries, range).is_err() {
                    live.mark(range);
                }
                Ok::<(), ()>(())
            });
        }
    }
    Err(BackendError::Timeout)
}

/// Puts everything of `new` where everything of `old` is, entry by entry. After a failure `old` is
/// there again, or marked as not known.
fn exchange_all<P: Platform>(
    platform: &P,
    unit: &mut Unit,
    old: Option<&Table>,
    new: &Table,
) -> Result<(), BackendError> {
    let multi = unit.bridge.multi;
    let of_old = |window: &TableWindow| {
        let mut windows = old.into_iter().flat_map(|old| &old.windows);
        windows.find(|other| other.shape == window.shape)
    };
    let mut failure = None;
    for window in &new.windows {
        let live = unit
            .find(window.shape.base)
            .ok_or(BackendError::Incompatible)?;
        let before = of_old(window).map(|window| &window.entries);
        failure = for_each_chunk(&window.entries, before, |range| {
            live.write(platform, multi, &window.entries, range)
        })
        .err();
        if failure.is_some() {
            break;
        }
    }
    let Some(error) = failure else { return Ok(()) };
    let mut sure = true;
    for window in &new.windows {
        let before = of_old(window).map(|window| &window.entries);
        if let Some(live) = unit.find_mut(window.shape.base) {
            let _ = for_each_chunk(&window.entries, before, |range| {
                let back = match before {
                    Some(before) => live.write(platform, multi, before, range),
                    None => live.wipe(platform, multi, range),
                };
                if back.is_err() {
                    live.mark(range);
                    sure = false;
                }
                Ok::<(), ()>(())
            });
        }
    }
    Err(if sure {
        refusal(error)
    } else {
        BackendError::Timeout
    })
}

/// An entry of a table that is bound.
struct Quick<'a, P> {
    platform: &'a P,
    liobn: Liobn,
    iova: Iova,
    slot: Slot<'a, Tce>,
}

impl<P: Platform> PaprBackend<P> {
    /// Binds the endpoint of a host bridge to a table, from abort or from another one.
    fn bind(&mut self, unit: UnitId, id: TableId) -> Result<(), BackendError> {
        let Self {
            platform,
            units,
            tables,
        } = self;
        let table = |id: TableId| {
            let at = usize::try_from(id.bits()).ok()?;
            tables.get(at)?.as_ref()
        };
        let new = table(id).ok_or(BackendError::Incompatible)?;
        if new.unit != unit {
            return Err(BackendError::Incompatible);
        }
        let unit = usize::try_from(unit.bits())
            .ok()
            .and_then(|at| units.get_mut(at))
            .ok_or(BackendError::Unsupported)?;
        let old = match unit.bound {
            Some(bound) if bound == id => return Ok(()),
            Some(bound) => Some(table(bound).ok_or(BackendError::Unsupported)?),
            None => None,
        };
        if !retry(platform, unit, old) {
            return Err(BackendError::Timeout);
        }
        let shapes = new.shapes().map_err(no_memory)?;
        match old {
            Some(_) if !unit.has_shapes(&shapes) => return Err(BackendError::Incompatible),
            Some(_) => {}
            None => unit.reshape(platform, &shapes)?,
        }
        exchange_all(platform, unit, old, new)?;
        unit.bound = Some(id);
        Ok(())
    }

    /// Puts the endpoint of a host bridge into abort.
    fn abort(&mut self, unit: UnitId) -> Result<(), BackendError> {
        let Self {
            platform,
            units,
            tables,
        } = self;
        let unit = usize::try_from(unit.bits())
            .ok()
            .and_then(|at| units.get_mut(at))
            .ok_or(BackendError::Unsupported)?;
        let table = unit.bound.and_then(|id| {
            let at = usize::try_from(id.bits()).ok()?;
            tables.get(at)?.as_ref()
        });
        // What is not known is put right first: from here on a failure can be undone.
        if !retry(platform, unit, table) {
            return Err(BackendError::Timeout);
        }
        if let Some(table) = table {
            hide(platform, unit, table)?;
        }
        unit.bound = None;
        Ok(())
    }

    /// Where an entry of a table that is bound is written: by which name, and at which place. `None` where
    /// that takes more than a look, and where it is not known what the platform has.
    #[inline(always)]
    fn quick(&mut self, table: TableId, at: EntryPlace) -> Option<Quick<'_, P>> {
        let place = usize::try_from(table.bits()).ok()?;
        let object = self.tables.get_mut(place)?.as_mut()?;
        let unit = usize::try_from(object.unit.bits()).ok()?;
        let unit = self.units.get(unit)?;
        let window = object.windows.get_mut(at.window)?;
        // Both are in the order of their addresses.
        let live = unit.live.get(at.window)?;
        let shape = window.shape;
        if unit.bound != Some(table) || live.stuck.is_some() || live.shape.base != shape.base {
            return None;
        }
        Some(Quick {
            platform: &self.platform,
            liobn: live.liobn,
            iova: shape.at(at.page),
            slot: window.entries.slot(at.page)?,
        })
    }

    /// The window that a platform may bring back when another is removed, in case it does.
    fn spare(&mut self, table: TableId) -> Result<Option<TableWindow>, BackendError> {
        let (_, unit, object, _) = self.parts(table).ok_or(BackendError::Unsupported)?;
        let default = unit.default_shape();
        if object.windows.iter().any(|window| window.shape == default) {
            return Ok(None);
        }
        TableWindow::new(default).map(Some).map_err(no_memory)
    }
}

impl<P: Platform> Backend for PaprBackend<P> {
    fn capabilities(&self, unit: UnitId) -> Option<Capabilities> {
        let unit = self.unit(unit)?;
        Some(Capabilities {
            source_bits: 0,
            nesting: false,
            dirty: false,
            // A host bridge of this platform is coherent.
            forces_coherence: true,
            atc_invalidation: false,
            dynamic_windows: unit.bridge.ddw != Ddw::None,
        })
    }

    fn create_table(
        &mut self,
        endpoint: Endpoint,
        options: TableOptions,
    ) -> Result<TableId, BackendError> {
        let unit = self.unit(endpoint.unit).ok_or(BackendError::Unsupported)?;
        if options.nest_parent || options.dirty || endpoint.source != 0 {
            return Err(BackendError::Unsupported);
        }
        let window = TableWindow::new(unit.default_shape()).map_err(no_memory)?;
        let table = Table::new(endpoint.unit, window).map_err(no_memory)?;
        let place = self.tables.iter().position(Option::is_none);
        let at = place.unwrap_or(self.tables.len());
        let id = u32::try_from(at).map_err(|_| BackendError::OutOfMemory)?;
        match self.tables.get_mut(at) {
            Some(slot) => *slot = Some(table),
            None => {
                self.tables
                    .try_reserve(1)
                    .map_err(|_| BackendError::OutOfMemory)?;
                self.tables.push(Some(table));
            }
        }
        Ok(TableId::new(id))
    }

    fn destroy_table(&mut self, table: TableId) {
        let Some((platform, unit, _, bound)) = self.parts(table) else {
            return;
        };
        if bound {
            // The core destroys what nothing is bound to.
            return;
        }
        if unit.bound.is_none() {
            // Its windows are empty. Where they stay, the next table removes them.
            let _ = unit.reset(platform);
        }
        if let Some(slot) = usize::try_from(table.bits())
            .ok()
            .and_then(|at| self.tables.get_mut(at))
        {
            *slot = None;
        }
    }

    fn windows(&self, table: TableId) -> &[Window] {
        match self.table(table) {
            Some(table) => &table.shown,
            None => &[],
        }
    }

    fn create_window(
        &mut self,
        table: TableId,
        page: PageSize,
        bytes: u64,
    ) -> Result<Window, BackendError> {
        self.settle(table)?;
        let limits = self.window_limits(table);
        let (platform, unit, object, _) = self.parts(table).ok_or(BackendError::Unsupported)?;
        if unit.bridge.ddw == Ddw::None {
            return Err(BackendError::Unsupported);
        }
        if limits.available == 0 || object.windows.len() >= MOST_WINDOWS {
            return Err(BackendError::NoWindow);
        }
        let entries = bytes >> page.shift();
        if !limits.pages.contains(page)
            || !bytes.is_power_of_two()
            || entries == 0
            || entries > most_entries(&unit.bridge)
        {
            return Err(BackendError::BadWindow);
        }
        // Where it will be is the platform's choice; how many entries it has is known.
        let room = crate::Entries::new(entries).map_err(no_memory)?;
        let shape = unit.create(platform, page, bytes)?;
        let window = shown(shape).ok_or(BackendError::BadWindow)?;
        object.add(TableWindow {
            shape,
            entries: room,
        });
        Ok(window)
    }

    fn remove_window(&mut self, table: TableId, base: Iova) -> Result<(), BackendError> {
        self.settle(table)?;
        let spare = self.spare(table)?;
        let (platform, unit, object, _) = self.parts(table).ok_or(BackendError::Unsupported)?;
        if unit.bridge.ddw == Ddw::None {
            return Err(BackendError::Unsupported);
        }
        if !retry(platform, unit, Some(object)) {
            return Err(BackendError::Timeout);
        }
        unit.remove(platform, base)?;
        object.follow(unit, spare);
        Ok(())
    }

    fn reset_windows(&mut self, table: TableId) -> Result<(), BackendError> {
        self.settle(table)?;
        let spare = self.spare(table)?;
        let (platform, unit, object, _) = self.parts(table).ok_or(BackendError::Unsupported)?;
        if !retry(platform, unit, Some(object)) {
            return Err(BackendError::Timeout);
        }
        let result = unit.reset(platform);
        // Also after a failure: what the platform has is what the table can show.
        object.follow(unit, spare);
        result
    }

    fn window_limits(&self, table: TableId) -> WindowLimits {
        let none = WindowLimits {
            available: 0,
            largest: 0,
            pages: PageSizes::NONE,
        };
        let Some(table) = self.table(table) else {
            return none;
        };
        let Some(unit) = self.unit(table.unit) else {
            return none;
        };
        if unit.bridge.ddw == Ddw::None {
            return none;
        }
        let (buid, config) = (unit.bridge.buid, unit.bridge.config_address);
        let Ok(limits) = self.platform.query_windows(buid, config) else {
            return none;
        };
        // The platform speaks of the windows it has now, which may be another table's.
        let all = u32::try_from(unit.live.len())
            .unwrap_or(0)
            .saturating_add(limits.available);
        let mine = u32::try_from(table.windows.len()).unwrap_or(u32::MAX);
        let mut sizes = PageSizes::NONE;
        let mut largest = 0;
        for shift in 12..=34 {
            let Ok(page) = PageSize::from_shift(shift) else {
                continue;
            };
            if limits.pages & page.bytes() != 0 {
                sizes = PageSizes::new(&[page]).with(sizes);
                let entries = limits.entries.min(most_entries(&unit.bridge));
                largest = entries.saturating_mul(page.bytes()).max(largest);
            }
        }
        WindowLimits {
            available: all.saturating_sub(mine),
            largest: 1 << largest.checked_ilog2().unwrap_or(0),
            pages: sizes,
        }
    }

    fn map(&mut self, table: TableId, run: &Run) -> Result<(), BackendError> {
        let (platform, unit, object, bound) = self.parts(table).ok_or(BackendError::Unsupported)?;
        let span = Span::from_len(run.iova, run.bytes).ok_or(BackendError::Unsupported)?;
        let (at, range) = object.locate(span).ok_or(BackendError::Incompatible)?;
        let window = object
            .windows
            .get_mut(at)
            .ok_or(BackendError::Incompatible)?;
        let page = window.shape.page;
        let first = Tce::new(run.pa, run.permissions, page).ok_or(BackendError::Incompatible)?;
        let Range { first: from, count } = range;
        window.entries.reserve(from, count).map_err(no_memory)?;
        if count == 1 {
            window.entries.set(from, first);
        } else {
            window.entries.fill_row(from, count, first, page.bytes());
        }
        if !bound {
            return Ok(());
        }
        let multi = unit.bridge.multi;
        let Some(live) = unit.find_mut(window.shape.base) else {
            window.entries.clear(from, count);
            return Err(BackendError::Unsupported);
        };
        let written = if count == 1 {
            platform.put(live.liobn, run.iova, first)
        } else {
            live.write(platform, multi, &window.entries, range)
        };
        let Err(error) = written else {
            return Ok(());
        };
        window.entries.clear(from, count);
        match live.wipe(platform, multi, range) {
            Ok(()) => Err(refusal(error)),
            Err(_) => {
                live.mark(range);
                Err(BackendError::Timeout)
            }
        }
    }

    #[inline(always)]
    fn map_page(&mut self, table: TableId, at: EntryPlace, page: PageRun) -> bool {
        let Some(quick) = self.quick(table, at) else {
            return false;
        };
        let tce = Tce::of_page(page.pa, page.permissions);
        // The entry that a call did not write is as before: it is tried again with more care.
        if !quick.slot.get().is_empty() || quick.platform.put(quick.liobn, quick.iova, tce).is_err()
        {
            return false;
        }
        quick.slot.fill(tce);
        true
    }

    #[inline(always)]
    fn unmap_page(&mut self, table: TableId, at: EntryPlace) -> bool {
        let Some(quick) = self.quick(table, at) else {
            return false;
        };
        // The entry that a call did not clear is as before: it is tried again with more care.
        if quick.slot.is_last()
            || quick
                .platform
                .put(quick.liobn, quick.iova, Tce::EMPTY)
                .is_err()
        {
            return false;
        }
        quick.slot.clear();
        true
    }

    fn unmap(&mut self, table: TableId, span: Span<Iova>) {
        let Some((platform, unit, object, bound)) = self.parts(table) else {
            return;
        };
        let Some((at, range)) = object.locate(span) else {
            return;
        };
        let Some(window) = object.windows.get_mut(at) else {
            return;
        };
        window.entries.clear(range.first, range.count);
        let multi = unit.bridge.multi;
        if bound
            && let Some(live) = unit.find_mut(window.shape.base)
            && live.wipe(platform, multi, range).is_err()
        {
            live.mark(range);
        }
    }

    fn exchange(&mut self, table: TableId, run: &Run) -> Result<(), BackendError> {
        let (platform, unit, object, bound) = self.parts(table).ok_or(BackendError::Unsupported)?;
        let span = Span::from_len(run.iova, run.bytes).ok_or(BackendError::Unsupported)?;
        let (at, range) = object.locate(span).ok_or(BackendError::Incompatible)?;
        let window = object
            .windows
            .get_mut(at)
            .ok_or(BackendError::Incompatible)?;
        let page = window.shape.page;
        if range.count != 1 {
            return Err(BackendError::Unsupported);
        }
        let new = Tce::new(run.pa, run.permissions, page).ok_or(BackendError::Incompatible)?;
        if window.entries.get(range.first).is_empty() {
            return Err(BackendError::Incompatible);
        }
        if bound {
            let live = unit
                .find_mut(window.shape.base)
                .ok_or(BackendError::Unsupported)?;
            let put = platform.put(live.liobn, live.shape.at(range.first), new);
            put.map_err(|error: HcallError| refusal(error))?;
        }
        window.entries.set(range.first, new);
        Ok(())
    }

    fn invalidate(&mut self, table: TableId, span: Span<Iova>) -> Result<(), BackendError> {
        let (platform, unit, object, bound) = self.parts(table).ok_or(BackendError::Unsupported)?;
        // A call returns when no device uses the old entry any more: there is nothing to wait for,
        // unless a call failed.
        if !bound || unit.is_sure() {
            return Ok(());
        }
        let touched = unit.live.iter().any(|live| {
            let Some(shared) = live.shape.span().and_then(|whole| whole.intersection(span)) else {
                return false;
            };
            let shift = live.shape.page.shift();
            let index = |at: Iova| at.bits().wrapping_sub(live.shape.base.bits()) >> shift;
            let first = index(shared.start());
            let count = index(shared.last()).saturating_sub(first).saturating_add(1);
            live.stuck
                .is_some_and(|stuck| stuck.overlaps(Range { first, count }))
        });
        if !touched || retry(platform, unit, Some(object)) {
            return Ok(());
        }
        Err(BackendError::Timeout)
    }

    fn install(&mut self, endpoint: Endpoint, binding: &Binding) -> Result<(), BackendError> {
        if endpoint.source != 0 {
            return Err(BackendError::Unsupported);
        }
        match *binding {
            Binding::Abort => self.abort(endpoint.unit),
            Binding::Table(table) => self.bind(endpoint.unit, table),
            // There is no way around the tables, and nothing to nest.
            Binding::Identity | Binding::Nested { .. } => Err(BackendError::Unsupported),
        }
    }
}

fn most_entries(bridge: &HostBridge) -> u64 {
    let shift = bridge.entries.min(HostBridge::MOST_ENTRIES);
    1_u64.checked_shl(shift.into()).unwrap_or(0)
}
