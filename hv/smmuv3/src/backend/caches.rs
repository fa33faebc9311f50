//! The translation caches of the SMMUs: what a change of a stage-2 table makes them forget.

use hal::{Clock, FrameAllocator, Mmio, SharedMemory};
use iommu::TableId;
use pagetable::{Invalidate, Stale};
use types::{Address, Iova, PageSize, Span, Vmid};

use super::Bound;
use crate::Error;
use crate::frames::Kept;
use crate::invalidation::Ranges;
use crate::smmu::Smmu;
use crate::spec::{Command, Depth, Range};

/// The most commands of one invalidation; where more were needed, everything of the VMID goes.
pub(super) const MOST: usize = 32;

/// The translation caches of the SMMUs, for one table and its VMID.
pub(super) struct Caches<'a, M, P, F, C> {
    units: &'a mut [Smmu<M, P, F, C>],
    bound: &'a [Bound],
    table: TableId,
    vmid: Vmid,
    /// Of the table's frames.
    kept: &'a Kept,
    /// A guest's stage 1 sits on the table, or has: its combined translations go, too, and what the SMMU
    /// keeps of its context descriptors.
    nested: bool,
    commands: &'a mut [Command; MOST],
    count: usize,
}

/// What the caches of a table are made of, beside the table.
pub(super) struct Around<'a, M, P, F, C> {
    pub(super) units: &'a mut [Smmu<M, P, F, C>],
    pub(super) bound: &'a [Bound],
    pub(super) commands: &'a mut [Command; MOST],
    pub(super) table: TableId,
}

impl<'a, M, P, F, C> Around<'a, M, P, F, C> {
    /// The caches, for what the table says of itself.
    pub(super) fn caches(self, vmid: Vmid, kept: &'a Kept) -> Caches<'a, M, P, F, C> {
        let Self {
            units,
            bound,
            commands,
            table,
        } = self;
        let nested = bound.iter().any(|b| b.table == table && b.nested);
        Caches {
            units,
            bound,
            table,
            vmid,
            kept,
            nested,
            commands,
            count: 0,
        }
    }
}

impl<M: Mmio, P: SharedMemory, F: FrameAllocator, C: Clock> Caches<'_, M, P, F, C> {
    fn push(&mut self, command: Command) {
        match self.commands.get_mut(self.count) {
            Some(slot) => {
                *slot = command;
                self.count += 1;
            }
            None => self.everything(),
        }
    }

    /// One command that covers whatever was asked for.
    fn everything(&mut self) {
        self.commands[0] = Command::TlbiS12Vmall(self.vmid);
        self.count = 1;
    }

    /// Invalidates the stage-2 translations of a span: by ranges where every unit has them, page by
    /// page where few pages are concerned, else all of the VMID.
    pub(super) fn span(&mut self, span: Span<Iova>, stride: PageSize, level: u8, depth: Depth) {
        let ranges = self.units.iter().all(|unit| unit.identity().idr3.ril());
        let vmid = self.vmid;
        if ranges {
            for (ipa, range) in Ranges::new(span, level) {
                self.push(Command::TlbiS2Ipa {
                    vmid,
                    ipa,
                    range,
                    depth,
                });
            }
            return;
        }
        let shift = stride.shift();
        let first = span.start().bits() >> shift;
        let last = span.last().bits() >> shift;
        if last - first >= MOST as u64 - 2 {
            self.everything();
            return;
        }
        for page in first..=last {
            self.push(Command::TlbiS2Ipa {
                vmid,
                ipa: page << shift,
                range: Range::LEAF,
                depth,
            });
        }
    }

    /// Carries the invalidations out. An SMMU that does not is turned off, so that nothing gets
    /// through it by what it may have kept.
    pub(super) fn finish(&mut self) {
        if self.count == 0 {
            return;
        }
        if self.nested {
            // Stage-1 translations are cached together with the stage 2 they went through, and with
            // context descriptors the place they were read from.
            self.push(Command::TlbiNhAll(self.vmid));
            self.push(Command::CFGI_ALL);
        }
        let commands = self.commands.get(..self.count).unwrap_or_default();
        let mut lost = false;
        for unit in &mut *self.units {
            if matches!(unit.send(commands), Err(Error::Refused(_))) {
                let all = [Command::TlbiS12Vmall(self.vmid), Command::CFGI_ALL];
                if unit.send(&all).is_err() {
                    unit.disable();
                }
            }
            lost |= unit.is_lost();
        }
        if lost {
            self.keep();
        }
        self.count = 0;
    }

    /// Keeps what the table uses from further use if a device behind a lost SMMU may be using it still.
    #[cold]
    fn keep(&self) {
        let mut users = self.bound.iter().filter(|b| b.table == self.table);
        let lost = |bound: &Bound| {
            let unit = usize::try_from(bound.endpoint.unit.bits());
            let unit = unit.ok().and_then(|at| self.units.get(at));
            unit.is_some_and(Smmu::is_lost)
        };
        if users.any(lost) {
            self.kept.set();
        }
    }
}

impl<A, M, P, F, C> Invalidate<A> for Caches<'_, M, P, F, C>
where
    A: Address,
    M: Mmio,
    P: SharedMemory,
    F: FrameAllocator,
    C: Clock,
{
    fn publish(&mut self) {
        for unit in &mut *self.units {
            unit.publish();
        }
    }

    fn invalidate(&mut self, stale: &Stale<A>) {
        let depth = match stale.scope {
            pagetable::Scope::Leaves => Depth::Leaf,
            pagetable::Scope::Walks => Depth::All,
        };
        // The level helps with leaves alone: the tables above them are at others.
        let level = stale.level.filter(|_| depth == Depth::Leaf).unwrap_or(0);
        let (start, last) = (stale.span.start().bits(), stale.span.last().bits());
        match Span::new(Iova::truncated(start), Iova::truncated(last)) {
            Some(span) => self.span(span, stale.stride, level, depth),
            None => self.everything(),
        }
    }

    fn invalidate_all(&mut self) {
        self.everything();
    }

    fn sync(&mut self) {
        self.finish();
    }
}
