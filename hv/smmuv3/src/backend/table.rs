//! Stage-2 tables for devices.

use alloc::vec::Vec;

use hal::{FrameAllocator, SharedMemory};
use iommu::{MemoryType, Permissions, Run, Window};
use pagetable::{PageTable, Stage2Access, Stage2Attributes};
use types::{Iova, Span, Vmid};

use crate::frames::{Kept, TableFrames};
use crate::shared::Shared;
use crate::spec::{Stage2, Walks};

type Tree<P, F> = PageTable<pagetable::Stage2<Iova>, Shared<P>, TableFrames<P, F>>;

/// A stage-2 table for devices.
#[derive(Debug)]
pub(super) struct Table<P, F> {
    pub(super) tree: Tree<P, F>,
    pub(super) vmid: Vmid,
    pub(super) window: [Window; 1],
    /// Where the tree uses the tables of a VM's CPUs.
    pub(super) lent: Vec<Span<Iova>>,
    /// What was unmapped last, and is in no cache any more.
    pub(super) forgotten: Option<Span<Iova>>,
    /// Whether nothing of it may be used for anything else any more.
    pub(super) kept: Kept,
    /// What was lent was to be unmapped: nothing may use the table any more.
    pub(super) closed: bool,
}

impl<P: SharedMemory, F: FrameAllocator> Table<P, F> {
    /// The stage 2 of a stream.
    pub(super) fn stage2(&self, walks: Walks) -> Stage2 {
        let geometry = self.tree.geometry();
        Stage2 {
            vmid: self.vmid,
            t0sz: geometry.t0sz(),
            sl0: geometry.sl0(),
            ps: geometry.output().encoding(),
            root: self.tree.root(),
            walks,
        }
    }

    pub(super) fn is_lent(&self, span: Span<Iova>) -> bool {
        self.lent.iter().any(|lent| lent.contains_span(span))
    }

    /// Whether the tree already translates a run as it says.
    pub(super) fn shows(&self, run: &Run) -> bool {
        let mut at = run.iova.bits();
        let end = at.saturating_add(run.bytes);
        while at < end {
            let Ok(leaf) = self.tree.walk(Iova::truncated(at)) else {
                return false;
            };
            let into = at - run.iova.bits();
            if leaf.pa.bits() != run.pa.bits().saturating_add(into)
                || leaf.attributes != attributes(run)
            {
                return false;
            }
            at = (at | leaf.size.mask()).saturating_add(1);
        }
        true
    }
}

/// How a run is accessed.
pub(super) fn attributes(run: &Run) -> Stage2Attributes {
    let attributes = match run.memory {
        MemoryType::Normal => Stage2Attributes::RAM,
        MemoryType::Device => Stage2Attributes::DEVICE,
    };
    Stage2Attributes {
        access: match run.permissions {
            Permissions::Read => Stage2Access::Read,
            Permissions::Write => Stage2Access::Write,
            Permissions::ReadWrite => Stage2Access::ReadWrite,
        },
        ..attributes
    }
}
