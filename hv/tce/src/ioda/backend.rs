//! The core's trait.

use alloc::vec::Vec;

use hal::{FrameAllocator, SharedMemory};
use iommu::Entry as _;
use iommu::{
    Backend, BackendError, Binding, Capabilities, Endpoint, PageSizes, Run, TableId, TableOptions,
    UnitId, Window, WindowLimits,
};
use types::{Iova, PageSize, PeNumber, Span};

use super::table::{Error, Tree, tree_shape};
use super::{Bound, Bridge, BridgeError, Half, Ioda, IodaBackend, Table, TreeWindow, Tve};
use crate::Tce;

/// Whether a window of a bridge can be of that size: a power of two of pages that it has, whose tables take no
/// bit of a bus address that chooses the window.
pub(super) fn can_be(bridge: &Bridge, page: PageSize, bytes: u64) -> bool {
    let most = 1_u64.checked_shl(bridge.entries.into()).unwrap_or(0);
    let entries = bytes >> page.shift();
    bridge.pages.contains(page)
        && bytes.is_power_of_two()
        && (1..=most).contains(&entries)
        && tree_shape(entries).is_some_and(|shape| shape.bits(page) <= Half::BITS)
}

fn pe(endpoint: Endpoint) -> Result<PeNumber, BackendError> {
    u16::try_from(endpoint.source)
        .ok()
        .and_then(|pe| PeNumber::new(pe).ok())
        .ok_or(BackendError::Unsupported)
}

/// Drops what the bridges cached for a table.
fn kill<B: Ioda>(bridge: &B, bound: &[Bound], table: TableId) -> Result<(), BridgeError> {
    let mut outcome = Ok(());
    for bound in bound.iter().filter(|bound| bound.table == table) {
        let Ok(pe) = pe(bound.endpoint) else { continue };
        outcome = outcome.and(bridge.kill(bound.endpoint.unit, pe));
    }
    outcome
}

impl Table {
    fn tve(&self, half: Half) -> Tve {
        let mut windows = self.windows.iter();
        windows
            .find(|window| window.half == half)
            .map_or(Tve::INVALID, TreeWindow::tve)
    }

    fn add(&mut self, window: TreeWindow) {
        let Some(shown) = window.shown() else { return };
        let at = self
            .windows
            .partition_point(|other| other.half < window.half);
        self.windows.insert(at, window);
        self.shown.insert(at, shown);
    }

    fn locate(&self, span: Span<Iova>) -> Option<(&TreeWindow, u64, u64)> {
        let mut windows = self.windows.iter();
        windows.find_map(|window| {
            let (first, count) = window.range(span)?;
            Some((window, first, count))
        })
    }
}

impl<B: Ioda, P: SharedMemory, F: FrameAllocator> IodaBackend<B, P, F> {
    fn make_window(
        &self,
        half: Half,
        page: PageSize,
        bytes: u64,
    ) -> Result<TreeWindow, BackendError> {
        let tree = Tree::new(&self.frames, bytes >> page.shift())
            .map_err(|_| BackendError::OutOfMemory)?;
        Ok(TreeWindow {
            half,
            bytes,
            page,
            tree,
        })
    }

    /// Sets a window of every PE that is bound to a table. After a failure all are as before, as far
    /// as the bridges do what they are told.
    fn point(
        &mut self,
        table: TableId,
        half: Half,
        new: Tve,
        old: Tve,
    ) -> Result<(), BackendError> {
        self.memory.publish();
        let mut outcome = Ok(());
        let mut set = 0_usize;
        for bound in self.bound.iter().filter(|bound| bound.table == table) {
            let endpoint = bound.endpoint;
            outcome = pe(endpoint).and_then(|pe| {
                let set = self.bridge.set_window(endpoint.unit, pe, half, new);
                set.map_err(|_| BackendError::Timeout)
            });
            if outcome.is_err() {
                break;
            }
            set = set.saturating_add(1);
        }
        if outcome.is_ok() && kill(&self.bridge, &self.bound, table).is_ok() {
            return Ok(());
        }
        let mut bound = self.bound.iter().filter(|bound| bound.table == table);
        let mut back = true;
        for bound in bound.by_ref().take(set) {
            let endpoint = bound.endpoint;
            back &= pe(endpoint).is_ok_and(|pe| {
                let set = self.bridge.set_window(endpoint.unit, pe, half, old);
                set.and(self.bridge.kill(endpoint.unit, pe)).is_ok()
            });
        }
        self.unsure |= !back;
        Err(BackendError::Timeout)
    }

    /// What an endpoint's windows are, from one binding to another.
    fn switch(&mut self, endpoint: Endpoint, new: [Tve; 2], old: [Tve; 2]) -> Result<(), ()> {
        let pe = pe(endpoint).map_err(|_| ())?;
        let unit = endpoint.unit;
        self.memory.publish();
        let write = |tves: [Tve; 2]| -> Result<(), BridgeError> {
            for (half, tve) in Half::BOTH.into_iter().zip(tves) {
                self.bridge.set_window(unit, pe, half, tve)?;
            }
            self.bridge.kill(unit, pe)
        };
        if write(new).is_ok() {
            return Ok(());
        }
        if write(old).is_err() {
            self.unsure = true;
        }
        Err(())
    }

    fn tves(&self, table: Option<TableId>) -> Result<[Tve; 2], BackendError> {
        let Some(table) = table else {
            return Ok([Tve::INVALID; 2]);
        };
        let table = self.table(table).ok_or(BackendError::Incompatible)?;
        Ok(Half::BOTH.map(|half| table.tve(half)))
    }

    fn take_window(&mut self, table: TableId, base: Iova) -> Result<(), BackendError> {
        let object = self.table(table).ok_or(BackendError::Unsupported)?;
        let mut windows = object.windows.iter();
        let at = windows
            .position(|window| window.half.base() == base.bits())
            .ok_or(BackendError::NoWindow)?;
        let window = object.windows.get(at).ok_or(BackendError::NoWindow)?;
        let (half, tve) = (window.half, window.tve());
        self.point(table, half, Tve::INVALID, tve)?;
        let place = usize::try_from(table.bits()).ok();
        let object = place.and_then(|place| self.tables.get_mut(place)?.as_mut());
        if let Some(object) = object {
            object.shown.remove(at);
            let window = object.windows.remove(at);
            window.tree.free(&self.memory, &self.frames);
        }
        Ok(())
    }

    /// Adds a window that PEs bound to the table get to see.
    fn give_window(&mut self, table: TableId, window: TreeWindow) -> Result<Window, BackendError> {
        let Some(shown) = window.shown().filter(|_| !window.tve().is_invalid()) else {
            window.tree.free(&self.memory, &self.frames);
            return Err(BackendError::BadWindow);
        };
        if let Err(error) = self.point(table, window.half, window.tve(), Tve::INVALID) {
            // Where even the way back failed, a bridge may be walking the table for ever.
            if !self.unsure {
                window.tree.free(&self.memory, &self.frames);
            }
            return Err(error);
        }
        let place = usize::try_from(table.bits()).ok();
        match place.and_then(|place| self.tables.get_mut(place)?.as_mut()) {
            Some(object) => object.add(window),
            None => window.tree.free(&self.memory, &self.frames),
        }
        Ok(shown)
    }
}

impl<B: Ioda, P: SharedMemory, F: FrameAllocator> Backend for IodaBackend<B, P, F> {
    fn capabilities(&self, unit: UnitId) -> Option<Capabilities> {
        let bridge = self.unit(unit)?;
        let last = bridge.pes.saturating_sub(1);
        let bits = u16::BITS.saturating_sub(last.leading_zeros());
        Some(Capabilities {
            source_bits: u8::try_from(bits).unwrap_or(16),
            nesting: false,
            dirty: false,
            // A host bridge of this kind is coherent.
            forces_coherence: true,
            atc_invalidation: false,
            dynamic_windows: true,
        })
    }

    fn create_table(
        &mut self,
        endpoint: Endpoint,
        options: TableOptions,
    ) -> Result<TableId, BackendError> {
        let bridge = *self.unit(endpoint.unit).ok_or(BackendError::Unsupported)?;
        if options.nest_parent || options.dirty || endpoint.source >= u32::from(bridge.pes) {
            return Err(BackendError::Unsupported);
        }
        let no_memory = |_| BackendError::OutOfMemory;
        let place = self.tables.iter().position(Option::is_none);
        let at = place.unwrap_or(self.tables.len());
        let id = u32::try_from(at).map_err(|_| BackendError::OutOfMemory)?;
        let mut table = Table {
            unit: endpoint.unit,
            windows: Vec::new(),
            shown: Vec::new(),
            stale: false,
        };
        table.windows.try_reserve_exact(2).map_err(no_memory)?;
        table.shown.try_reserve_exact(2).map_err(no_memory)?;
        if place.is_none() {
            self.tables.try_reserve(1).map_err(no_memory)?;
        }
        table.add(self.make_window(Half::Low, bridge.default_page, bridge.default_bytes)?);
        match self.tables.get_mut(at) {
            Some(slot) => *slot = Some(table),
            None => self.tables.push(Some(table)),
        }
        Ok(TableId::new(id))
    }

    fn destroy_table(&mut self, table: TableId) {
        if self.bound.iter().any(|bound| bound.table == table) {
            // The core destroys what nothing is bound to.
            return;
        }
        let place = usize::try_from(table.bits()).ok();
        let object = place.and_then(|place| self.tables.get_mut(place)?.take());
        for window in object.into_iter().flat_map(|table| table.windows) {
            // A bridge that did not confirm may be walking them for ever.
            if !self.unsure {
                window.tree.free(&self.memory, &self.frames);
            }
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
        let object = self.table(table).ok_or(BackendError::Unsupported)?;
        let bridge = *self.unit(object.unit).ok_or(BackendError::Unsupported)?;
        let taken = |half: Half| object.windows.iter().any(|window| window.half == half);
        let half = Half::BOTH
            .into_iter()
            .find(|half| !taken(*half))
            .ok_or(BackendError::NoWindow)?;
        if !can_be(&bridge, page, bytes) {
            return Err(BackendError::BadWindow);
        }
        let window = self.make_window(half, page, bytes)?;
        self.give_window(table, window)
    }

    fn remove_window(&mut self, table: TableId, base: Iova) -> Result<(), BackendError> {
        self.take_window(table, base)
    }

    fn reset_windows(&mut self, table: TableId) -> Result<(), BackendError> {
        let object = self.table(table).ok_or(BackendError::Unsupported)?;
        let bridge = *self.unit(object.unit).ok_or(BackendError::Unsupported)?;
        let is_default = |window: &TreeWindow| {
            window.half == Half::Low
                && (window.page, window.bytes) == (bridge.default_page, bridge.default_bytes)
        };
        let spare = if object.windows.iter().any(is_default) {
            None
        } else {
            // Before anything goes: without memory everything stays.
            Some(self.make_window(Half::Low, bridge.default_page, bridge.default_bytes)?)
        };
        let mut outcome = Ok(());
        for half in Half::BOTH {
            let object = self.table(table).ok_or(BackendError::Unsupported)?;
            let mut windows = object.windows.iter();
            let there = windows.find(|window| window.half == half);
            if there.is_some_and(|window| !is_default(window)) {
                outcome = outcome.and(self.take_window(table, Iova::truncated(half.base())));
            }
        }
        match (outcome, spare) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(spare)) => self.give_window(table, spare).map(|_| ()),
            (Err(error), spare) => {
                if let Some(spare) = spare {
                    spare.tree.free(&self.memory, &self.frames);
                }
                Err(error)
            }
        }
    }

    fn window_limits(&self, table: TableId) -> WindowLimits {
        let bridge = self
            .table(table)
            .and_then(|table| Some((table, self.unit(table.unit)?)));
        let Some((table, bridge)) = bridge else {
            return WindowLimits {
                available: 0,
                largest: 0,
                pages: PageSizes::NONE,
            };
        };
        let possible = |shift: &u8| {
            let bytes = 1_u64.checked_shl((*shift).into()).unwrap_or(0);
            let mut pages = (0..=Half::BITS).filter_map(|page| PageSize::from_shift(page).ok());
            pages.any(|page| can_be(bridge, page, bytes))
        };
        let largest = (0..=Half::BITS).rev().find(possible);
        let largest = largest.and_then(|shift| 1_u64.checked_shl(shift.into()));
        let free = 2_usize.saturating_sub(table.windows.len());
        WindowLimits {
            available: u32::try_from(free).unwrap_or(0),
            largest: largest.unwrap_or(0),
            pages: bridge.pages,
        }
    }

    fn map(&mut self, id: TableId, run: &Run) -> Result<(), BackendError> {
        let span = Span::from_len(run.iova, run.bytes).ok_or(BackendError::Unsupported)?;
        let table = self.table(id).ok_or(BackendError::Unsupported)?;
        let (window, first, count) = table.locate(span).ok_or(BackendError::Incompatible)?;
        let page = window.page;
        let tce = Tce::new(run.pa, run.permissions, page).ok_or(BackendError::Incompatible)?;
        let mut next = tce;
        let written = window
            .tree
            .fill(&self.memory, &self.frames, first, count, |_| {
                let tce = next;
                next = tce.next(page.bytes());
                tce
            });
        let (error, done) = match written {
            Ok(()) => {
                self.memory.publish();
                if kill(&self.bridge, &self.bound, id).is_ok() {
                    return Ok(());
                }
                (BackendError::Timeout, count)
            }
            Err((Error::OutOfMemory, done)) => (BackendError::OutOfMemory, done),
            Err((Error::NotMemory, done)) => (BackendError::Unsupported, done),
        };
        let cleared = window.tree.clear(&self.memory, first, done);
        self.memory.publish();
        if cleared.is_err() || done > 0 && kill(&self.bridge, &self.bound, id).is_err() {
            self.unsure = true;
            return Err(BackendError::Timeout);
        }
        Err(error)
    }

    fn unmap(&mut self, id: TableId, span: Span<Iova>) {
        let place = usize::try_from(id.bits()).ok();
        let Some(table) = place.and_then(|place| self.tables.get_mut(place)?.as_mut()) else {
            return;
        };
        table.stale = true;
        let Some((window, first, count)) = table.locate(span) else {
            return;
        };
        if window.tree.clear(&self.memory, first, count).is_err() {
            self.unsure = true;
        }
    }

    fn exchange(&mut self, id: TableId, run: &Run) -> Result<(), BackendError> {
        let span = Span::from_len(run.iova, run.bytes).ok_or(BackendError::Unsupported)?;
        let table = self.table(id).ok_or(BackendError::Unsupported)?;
        let (window, index, count) = table.locate(span).ok_or(BackendError::Incompatible)?;
        if count != 1 {
            return Err(BackendError::Unsupported);
        }
        let no_memory = |_| BackendError::Unsupported;
        let new =
            Tce::new(run.pa, run.permissions, window.page).ok_or(BackendError::Incompatible)?;
        let old = window.tree.get(&self.memory, index).map_err(no_memory)?;
        if old.is_empty() {
            return Err(BackendError::Incompatible);
        }
        let tree = &window.tree;
        tree.set(&self.memory, index, new).map_err(no_memory)?;
        self.memory.publish();
        if kill(&self.bridge, &self.bound, id).is_ok() {
            return Ok(());
        }
        let back = tree.set(&self.memory, index, old);
        self.memory.publish();
        if back.is_err() || kill(&self.bridge, &self.bound, id).is_err() {
            self.unsure = true;
        }
        Err(BackendError::Timeout)
    }

    fn invalidate(&mut self, id: TableId, _: Span<Iova>) -> Result<(), BackendError> {
        let table = self.table(id).ok_or(BackendError::Unsupported)?;
        if table.stale {
            // By PE: bridges of this kind are known to lose kills of single pages.
            self.memory.publish();
            kill(&self.bridge, &self.bound, id).map_err(|_| BackendError::Timeout)?;
        }
        let place = usize::try_from(id.bits()).ok();
        if let Some(table) = place.and_then(|place| self.tables.get_mut(place)?.as_mut()) {
            table.stale = false;
        }
        Ok(())
    }

    fn install(&mut self, endpoint: Endpoint, binding: &Binding) -> Result<(), BackendError> {
        let bridge = self.unit(endpoint.unit).ok_or(BackendError::Unsupported)?;
        if endpoint.source >= u32::from(bridge.pes) {
            return Err(BackendError::Unsupported);
        }
        let new = match *binding {
            Binding::Abort => None,
            Binding::Table(table) => Some(table),
            // The bridge could let everything through; nobody here may ask for it.
            Binding::Identity | Binding::Nested { .. } => return Err(BackendError::Unsupported),
        };
        let of_another = |id| {
            self.table(id)
                .is_none_or(|table: &Table| table.unit != endpoint.unit)
        };
        if new.is_some_and(of_another) {
            return Err(BackendError::Incompatible);
        }
        let place = self.bound.iter().position(|b| b.endpoint == endpoint);
        let old = place.and_then(|at| self.bound.get(at)).map(|b| b.table);
        let (to, from) = (self.tves(new)?, self.tves(old)?);
        if place.is_none() && new.is_some() {
            self.bound
                .try_reserve(1)
                .map_err(|_| BackendError::OutOfMemory)?;
        }
        self.switch(endpoint, to, from)
            .map_err(|()| BackendError::Timeout)?;
        match (place, new) {
            (Some(at), Some(table)) => {
                if let Some(bound) = self.bound.get_mut(at) {
                    bound.table = table;
                }
            }
            (Some(at), None) => {
                self.bound.swap_remove(at);
            }
            (None, Some(table)) => self.bound.push(Bound { endpoint, table }),
            (None, None) => {}
        }
        Ok(())
    }
}
