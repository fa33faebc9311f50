//! SMMUs as the hardware of the IOMMU core.

mod caches;
mod lend;
mod table;

use alloc::boxed::Box;
use alloc::vec::Vec;

use hal::{Clock, FrameAllocator, Mmio, SharedMemory};
use iommu::{
    Ats, Backend, BackendError, Binding, Capabilities, ContextFormat, Endpoint, PageSizes, Partial,
    Run, StageOne, StageOneInvalidation, TableId, TableOptions, UnitId, Window, WindowLimits,
};
use pagetable::{Fault, Geometry, Leaf, OutputSize, PageTable};
use types::{Iova, Pa, PageSize, Span, StreamId, Vmid};

use self::caches::{Around, MOST};
use self::table::{Table, attributes};
use crate::Error;
use crate::frames::{Kept, TableFrames};
use crate::invalidation::StageOneCommands;
use crate::shared::Shared;
use crate::smmu::Smmu;
use crate::spec::{Command, Depth, Stage1, Ste, Walks};

/// An endpoint that goes through a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    endpoint: Endpoint,
    table: TableId,
    /// A guest's stage 1 sits on the table there, or has since the endpoint came to it: translations of both stages
    /// stay cached when stage 1 goes, and are used again when it is back.
    nested: bool,
}

/// What the platform says of its SMMUs beyond their registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Bits of a guest-physical address, which is what stage 2 takes: 32 to 48.
    pub input_bits: u8,
    /// No attribute of a guest's stage 1 can show a device what is not the guest's: DMA is coherent with
    /// the CPUs' caches whatever stage 1 says (an emulator; an interconnect that upgrades every access),
    /// or memory is cleaned to the point of coherency before a device gets it.
    pub coherent: bool,
}

/// All SMMUs of a machine, behind the IOMMU core. Unit n is the n-th of them.
#[derive(Debug)]
pub struct SmmuBackend<M, P, F, C> {
    units: Vec<Smmu<M, P, F, C>>,
    tables: Vec<Option<Table<P, F>>>,
    bound: Vec<Bound>,
    memory: Shared<P>,
    frames: F,
    platform: Platform,
    vmid_bits: u8,
    output: OutputSize,
    /// Where the commands of one change are put together: too large to be made anew for each.
    list: Box<[Command; MOST]>,
}

/// A table or its place, if there is one, and what its caches are made of.
type Apart<'a, T, M, P, F, C> = Option<(&'a mut T, Around<'a, M, P, F, C>)>;

/// Whether a guest's stage 1 may run on it.
fn nests<M: Mmio, P: SharedMemory, F: FrameAllocator, C: Clock>(unit: &Smmu<M, P, F, C>) -> bool {
    unit.identity().nests() && !unit.errata().forbid_nesting()
}

fn backend_error(error: Error) -> BackendError {
    match error {
        Error::OutOfMemory => BackendError::OutOfMemory,
        Error::NoSuchStream | Error::NotMemory | Error::Unusable(_) => BackendError::Unsupported,
        Error::Timeout | Error::Refused(_) | Error::Off | Error::Locked(_) => BackendError::Timeout,
    }
}

impl<M, P, F, C> SmmuBackend<M, P, F, C>
where
    M: Mmio,
    P: SharedMemory + Copy,
    F: FrameAllocator + Copy,
    C: Clock,
{
    /// The SMMUs of a machine. Tables are made in `memory` of frames from `frames`.
    pub fn new(units: Vec<Smmu<M, P, F, C>>, memory: P, frames: F, platform: Platform) -> Self {
        let coherent = units.iter().all(|unit| unit.walks() == Walks::Coherent);
        let walks = if coherent {
            Walks::Coherent
        } else {
            Walks::NonCoherent
        };
        let output = units
            .iter()
            .map(|unit| OutputSize::from_encoding(unit.identity().idr5.oas().into()))
            .min()
            .unwrap_or(OutputSize::Bits32);
        let wide = units.iter().all(|unit| unit.identity().idr0.vmid16());
        Self {
            units,
            tables: Vec::new(),
            bound: Vec::new(),
            memory: Shared::new(memory, walks),
            frames,
            platform,
            vmid_bits: if wide { 16 } else { 8 },
            output,
            list: Box::new([Command::CFGI_ALL; MOST]),
        }
    }

    /// The units.
    pub fn units(&self) -> &[Smmu<M, P, F, C>] {
        &self.units
    }

    /// A unit, for its interrupts.
    pub fn unit_mut(&mut self, unit: UnitId) -> Option<&mut Smmu<M, P, F, C>> {
        self.units.get_mut(usize::try_from(unit.bits()).ok()?)
    }

    fn unit(&self, unit: UnitId) -> Option<&Smmu<M, P, F, C>> {
        self.units.get(usize::try_from(unit.bits()).ok()?)
    }

    fn table(&self, table: TableId) -> Option<&Table<P, F>> {
        self.tables
            .get(usize::try_from(table.bits()).ok()?)?
            .as_ref()
    }

    /// The place of a table, and apart from it what its caches are made of.
    fn split(&mut self, id: TableId) -> Apart<'_, Option<Table<P, F>>, M, P, F, C> {
        let slot = self.tables.get_mut(usize::try_from(id.bits()).ok()?)?;
        let around = Around {
            units: &mut self.units,
            bound: &self.bound,
            commands: &mut self.list,
            table: id,
        };
        Some((slot, around))
    }

    /// A table, and the same.
    fn split_table(&mut self, id: TableId) -> Apart<'_, Table<P, F>, M, P, F, C> {
        let (slot, around) = self.split(id)?;
        Some((slot.as_mut()?, around))
    }

    /// Where a table takes a bus address.
    ///
    /// # Errors
    /// The [`Fault`] of a walk; `None` when there is no such table.
    pub fn walk(
        &self,
        table: TableId,
        at: Iova,
    ) -> Option<Result<Leaf<pagetable::Stage2<Iova>>, Fault>> {
        Some(self.table(table)?.tree.walk(at))
    }

    /// What is written for a binding.
    fn entry(&self, unit: &Smmu<M, P, F, C>, binding: &Binding) -> Result<Ste, BackendError> {
        let stage2 = |table: TableId| {
            let table = self.table(table).ok_or(BackendError::Incompatible)?;
            if table.closed {
                return Err(BackendError::Incompatible);
            }
            Ok(table.stage2(unit.walks()))
        };
        Ok(match binding {
            Binding::Abort => Ste::ABORT,
            Binding::Identity => Ste::BYPASS,
            Binding::Table(table) => Ste::stage2(&stage2(*table)?),
            Binding::Nested { parent, config } => {
                let stage2 = stage2(*parent)?;
                match config.stage_one {
                    StageOne::Abort => Ste::ABORT,
                    StageOne::Invalid => Ste::INVALID,
                    StageOne::Bypass => Ste::stage2(&stage2),
                    StageOne::Translate(translate) => {
                        let identity = unit.identity();
                        let two_levels = translate.format != ContextFormat::Linear;
                        let fits = translate.substream_bits <= identity.idr1.ssidsize()
                            && (!two_levels || identity.idr0.cd2l())
                            && translate.base & !Ste::S1_CONTEXT == 0
                            && config.ats == Ats::Off;
                        if !fits || !nests(unit) {
                            return Err(BackendError::Unsupported);
                        }
                        let stage1 = Stage1 {
                            format: translate.format as u64,
                            context: translate.base,
                            cd_max: translate.substream_bits.into(),
                            dss: translate.default_substream as u64,
                            eats: 0,
                        };
                        let ste = Ste::nested(&stage1, &stage2);
                        // PCI Express forbids that a transaction waits for somebody, and a guest has no
                        // command to let one go. [IHI 0070 §3.12.1]
                        match identity.idr0.stall_model() {
                            0 => ste.without_stalls(),
                            _ => ste,
                        }
                    }
                }
            }
        })
    }
}

impl<M, P, F, C> Backend for SmmuBackend<M, P, F, C>
where
    M: Mmio,
    P: SharedMemory + Copy,
    F: FrameAllocator + Copy,
    C: Clock,
{
    fn capabilities(&self, unit: UnitId) -> Option<Capabilities> {
        let unit = self.unit(unit)?;
        Some(Capabilities {
            source_bits: unit.stream_bits(),
            nesting: nests(unit),
            dirty: false,
            forces_coherence: self.platform.coherent,
            // A device with a translation cache could send what it calls translated addresses, which
            // pass by stage 2. Nobody gets one before that is checked.
            atc_invalidation: false,
            dynamic_windows: false,
        })
    }

    fn create_table(
        &mut self,
        endpoint: Endpoint,
        options: TableOptions,
    ) -> Result<TableId, BackendError> {
        let capabilities = self
            .capabilities(endpoint.unit)
            .ok_or(BackendError::Unsupported)?;
        if options.dirty || options.nest_parent && !capabilities.nesting {
            return Err(BackendError::Unsupported);
        }
        let place = self.tables.iter().position(Option::is_none);
        let at = place.unwrap_or(self.tables.len());
        // VMID 0 is left to what has no stage 2.
        let vmid = u16::try_from(at + 1).ok().and_then(|vmid| {
            let fits = self.vmid_bits == 16 || vmid < 1 << 8;
            Vmid::new(vmid).ok().filter(|_| fits)
        });
        let (Some(vmid), Ok(id)) = (vmid, u32::try_from(at)) else {
            return Err(BackendError::OutOfMemory);
        };
        let bits = self.platform.input_bits.min(self.output.bits());
        let geometry = Geometry::new::<pagetable::Stage2<Iova>>(bits, self.output)
            .map_err(|_| BackendError::Unsupported)?;
        if place.is_none() && self.tables.try_reserve(1).is_err() {
            return Err(BackendError::OutOfMemory);
        }
        let kept = Kept::default();
        let frames = TableFrames::new(self.frames, self.memory, kept.clone());
        let tree =
            PageTable::new(geometry, self.memory, frames).map_err(|_| BackendError::OutOfMemory)?;
        let last = Iova::truncated((1 << bits) - 1);
        let span = Span::new(Iova::ZERO, last).ok_or(BackendError::Unsupported)?;
        let pages = [PageSize::SIZE_4K, PageSize::SIZE_2M, PageSize::SIZE_1G];
        let table = Table {
            tree,
            vmid,
            window: [Window {
                span,
                pages: PageSizes::new(&pages),
            }],
            lent: Vec::new(),
            forgotten: None,
            kept,
            closed: false,
        };
        match self.tables.get_mut(at) {
            Some(slot) => *slot = Some(table),
            None => self.tables.push(Some(table)),
        }
        Ok(TableId::new(id))
    }

    fn destroy_table(&mut self, id: TableId) {
        let Some((slot, around)) = self.split(id) else {
            return;
        };
        if let Some(table) = slot.take() {
            let mut caches = around.caches(table.vmid, &table.kept);
            if let Err((tree, _)) = table.tree.destroy(&mut caches) {
                // It still uses a VM's tables. Nothing is bound to it; its place is not used again.
                *slot = Some(Table {
                    tree,
                    closed: true,
                    ..table
                });
            }
        }
    }

    fn is_sure(&self, table: TableId) -> bool {
        self.table(table).is_none_or(|table| !table.kept.get())
    }

    fn windows(&self, table: TableId) -> &[Window] {
        match self.table(table) {
            Some(table) => &table.window,
            None => &[],
        }
    }

    fn create_window(&mut self, _: TableId, _: PageSize, _: u64) -> Result<Window, BackendError> {
        Err(BackendError::NoWindow)
    }

    fn remove_window(&mut self, _: TableId, _: Iova) -> Result<(), BackendError> {
        Err(BackendError::NoWindow)
    }

    fn reset_windows(&mut self, _: TableId) -> Result<(), BackendError> {
        Ok(())
    }

    fn window_limits(&self, _: TableId) -> WindowLimits {
        WindowLimits {
            available: 0,
            largest: 0,
            pages: PageSizes::NONE,
        }
    }

    fn map(&mut self, id: TableId, run: &Run) -> Result<(), BackendError> {
        let (table, around) = self.split_table(id).ok_or(BackendError::Incompatible)?;
        let span = Span::from_len(run.iova, run.bytes).ok_or(BackendError::Unsupported)?;
        if table.is_lent(span) {
            return if table.shows(run) {
                Ok(())
            } else {
                Err(BackendError::Incompatible)
            };
        }
        let largest = match run.leaves.bits() {
            sizes if sizes & PageSize::SIZE_1G.bytes() != 0 => PageSize::SIZE_1G,
            sizes if sizes & PageSize::SIZE_2M.bytes() != 0 => PageSize::SIZE_2M,
            _ => PageSize::SIZE_4K,
        };
        let mut caches = around.caches(table.vmid, &table.kept);
        table.forgotten = None;
        table
            .tree
            .map_up_to(largest, span, run.pa, attributes(run), &mut caches)
            .map_err(|error| match error {
                pagetable::Error::OutOfFrames(_) => BackendError::OutOfMemory,
                _ => BackendError::Incompatible,
            })
    }

    fn unmap(&mut self, id: TableId, span: Span<Iova>) {
        let is_lent = self.table(id).is_some_and(|table| table.is_lent(span));
        if is_lent {
            // The tables are another tree's, whose owner should have taken them back first. Nothing
            // goes through this one any more.
            self.close(id);
            return;
        }
        let Some((table, around)) = self.split_table(id) else {
            return;
        };
        let mut caches = around.caches(table.vmid, &table.kept);
        match table.tree.unmap(span, &mut caches) {
            Ok(_) => table.forgotten = Some(span),
            // What was asked for cannot be done, and must be: nothing goes through the table.
            Err(_) => self.close(id),
        }
    }

    fn invalidate(&mut self, id: TableId, span: Span<Iova>) -> Result<(), BackendError> {
        let (table, around) = self.split_table(id).ok_or(BackendError::Unsupported)?;
        if table
            .forgotten
            .take()
            .is_some_and(|forgotten| forgotten.contains_span(span))
            && !table.kept.get()
        {
            return Ok(());
        }
        let last = table.window[0].span.last().min(span.last());
        let Some(span) = Span::new(span.start(), last) else {
            return Ok(());
        };
        let mut caches = around.caches(table.vmid, &table.kept);
        caches.span(span, PageSize::SIZE_4K, 0, Depth::All);
        caches.finish();
        if table.kept.get() {
            return Err(BackendError::Timeout);
        }
        Ok(())
    }

    fn install(&mut self, endpoint: Endpoint, binding: &Binding) -> Result<(), BackendError> {
        let unit = self.unit(endpoint.unit).ok_or(BackendError::Unsupported)?;
        let sid = StreamId::new(endpoint.source).map_err(|_| BackendError::Unsupported)?;
        let ste = self.entry(unit, binding)?;
        let new = match *binding {
            Binding::Table(table) => Some((table, false)),
            Binding::Nested { parent, .. } => Some((parent, true)),
            Binding::Abort | Binding::Identity => None,
        };
        let old = self.bound.iter().position(|b| b.endpoint == endpoint);
        if old.is_none() && self.bound.try_reserve(1).is_err() {
            return Err(BackendError::OutOfMemory);
        }
        let left = old.and_then(|at| self.bound.get(at)).map(|b| b.table);
        let left = left.filter(|table| new.map(|(table, _)| table) != Some(*table));
        let vmid = left.and_then(|table| Some(self.table(table)?.vmid));
        let unit = self
            .unit_mut(endpoint.unit)
            .ok_or(BackendError::Unsupported)?;
        let installed = unit.install(sid, ste);
        if let (Ok(()), Some(vmid)) = (&installed, vmid) {
            // What the device did under the old table is complete when its translations are gone.
            // CFGI_ALL reaches copies of the entry under any number the bus may have had for the
            // function. An SMMU that does not answer is off.
            let _ = unit.send(&[Command::CFGI_ALL, Command::TlbiS12Vmall(vmid)]);
        }
        if unit.is_lost() {
            // The device may have gone through the new one already.
            self.keep(left);
            self.keep(new.map(|(table, _)| table));
        }
        installed.map_err(backend_error)?;
        match (old, new) {
            (Some(at), None) => {
                self.bound.swap_remove(at);
            }
            (Some(at), Some((table, nested))) => {
                if let Some(bound) = self.bound.get_mut(at) {
                    bound.nested = nested || bound.nested && bound.table == table;
                    bound.table = table;
                }
            }
            (None, Some((table, nested))) => self.bound.push(Bound {
                endpoint,
                table,
                nested,
            }),
            (None, None) => {}
        }
        Ok(())
    }

    fn invalidate_stage_one(
        &mut self,
        parent: TableId,
        what: &mut dyn Iterator<Item = StageOneInvalidation>,
    ) -> Result<(), Partial> {
        let fail = |because| Partial { done: 0, because };
        let vmid = self
            .table(parent)
            .ok_or(fail(BackendError::Unsupported))?
            .vmid;
        // All streams of a table are behind one unit. Without any, nothing of the guest is cached.
        let Some(used) = self.bound.iter().find(|bound| bound.table == parent) else {
            what.for_each(drop);
            return Ok(());
        };
        let number = used.endpoint.unit;
        let bound = &self.bound;
        let own = |source: u32| {
            let endpoint = Endpoint {
                unit: number,
                source,
            };
            bound
                .iter()
                .any(|bound| bound.table == parent && bound.endpoint == endpoint)
        };
        let unit = usize::try_from(number.bits())
            .ok()
            .and_then(|at| self.units.get_mut(at))
            .ok_or(fail(BackendError::Unsupported))?;
        let mut commands = StageOneCommands::new(vmid, unit.identity());
        let mut sending = unit.sending().map_err(|error| fail(backend_error(error)))?;
        let mut failed = None;
        for what in what {
            let done = commands.encode(&what, own, &mut |command| sending.add(command));
            failed = failed.or(done.err());
        }
        match (sending.finish(), failed) {
            (Ok(()), None) => Ok(()),
            (Err(error), _) | (Ok(()), Some(error)) => Err(fail(backend_error(error))),
        }
    }
}

impl<M, P, F, C> SmmuBackend<M, P, F, C>
where
    M: Mmio,
    P: SharedMemory + Copy,
    F: FrameAllocator + Copy,
    C: Clock,
{
    /// A device behind a lost SMMU may go through a table for ever.
    #[cold]
    fn keep(&self, table: Option<TableId>) {
        if let Some(table) = table.and_then(|table| self.table(table)) {
            table.kept.set();
        }
    }

    /// Every endpoint of a table aborts, for good.
    fn close(&mut self, table: TableId) {
        if let Some(table) = usize::try_from(table.bits())
            .ok()
            .and_then(|at| self.tables.get_mut(at)?.as_mut())
        {
            table.closed = true;
        }
        let mut at = 0;
        while let Some(bound) = self.bound.get(at).copied() {
            if bound.table == table {
                if self.install(bound.endpoint, &Binding::Abort).is_err()
                    && let Some(unit) = self.unit_mut(bound.endpoint.unit)
                {
                    unit.disable();
                    if unit.is_lost() {
                        self.keep(Some(table));
                    }
                    self.bound.swap_remove(at);
                }
            } else {
                at += 1;
            }
        }
    }

    /// The entry of an endpoint as it stands in memory.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] when there is no such endpoint.
    pub fn read_entry(&self, endpoint: Endpoint) -> Result<Ste, BackendError> {
        let unit = self.unit(endpoint.unit).ok_or(BackendError::Unsupported)?;
        let sid = StreamId::new(endpoint.source).map_err(|_| BackendError::Unsupported)?;
        unit.entry(sid).map_err(backend_error)
    }

    /// The root and VMID of a table.
    #[must_use]
    pub fn root(&self, table: TableId) -> Option<(Pa, Vmid)> {
        let table = self.table(table)?;
        Some((table.tree.root(), table.vmid))
    }
}
