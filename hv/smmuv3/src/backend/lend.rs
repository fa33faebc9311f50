//! Tables of a VM's CPUs that its devices use, too.

use hal::{Clock, FrameAllocator, Mmio, SharedMemory};
use iommu::{BackendError, TableId};
use pagetable::{Invalidate, PageTable};
use types::{Iova, Ipa, Span};

use super::SmmuBackend;
use crate::spec::Walks;

impl<M, P, F, C> SmmuBackend<M, P, F, C>
where
    M: Mmio,
    P: SharedMemory + Copy,
    F: FrameAllocator + Copy,
    C: Clock,
{
    /// Lets a table use the tables that map a VM's memory for its CPUs, in units of 1 GiB in which
    /// the table maps nothing. A run that the core then maps there is compared with what the CPUs'
    /// tables say, and refused as incompatible where the two differ.
    ///
    /// Only where every SMMU snoops: the CPUs' tables are not written for one that does not. What the owner maps in these
    /// units stays as it is from now on, as the SMMUs' caches are not told; and the table is not destroyed.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] where one does not snoop; [`BackendError::OutOfMemory`];
    /// [`BackendError::Incompatible`] for any other refusal of the tables. Nothing has changed.
    pub fn lend<N, G, J>(
        &mut self,
        id: TableId,
        owner: &mut PageTable<pagetable::Stage2<Ipa>, N, G>,
        span: Span<Iova>,
        owner_caches: &mut J,
    ) -> Result<(), BackendError>
    where
        N: hal::PhysMemory,
        G: FrameAllocator,
        J: Invalidate<Ipa>,
    {
        if self.memory.walks() != Walks::Coherent {
            return Err(BackendError::Unsupported);
        }
        let (table, around) = self.split_table(id).ok_or(BackendError::Incompatible)?;
        if table.lent.try_reserve(1).is_err() {
            return Err(BackendError::OutOfMemory);
        }
        let mut caches = around.caches(table.vmid, &table.kept);
        match table
            .tree
            .share_subtree(owner, span, &mut caches, owner_caches)
        {
            Ok(()) => {
                table.lent.push(span);
                Ok(())
            }
            Err(pagetable::Error::OutOfFrames(_)) => Err(BackendError::OutOfMemory),
            Err(_) => Err(BackendError::Incompatible),
        }
    }
}
