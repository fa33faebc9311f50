//! Tables of a VM's CPUs that its devices use, too.

use hal::{Clock, FrameAllocator, Mmio, SharedMemory};
use iommu::{BackendError, TableId};
use pagetable::{Invalidate, PageTable};
use types::{Iova, Ipa, Span};

use super::SmmuBackend;
use super::caches::Caches;
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
    /// Only where every SMMU snoops: the CPUs' tables are not written for one that does not.
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
        let Self {
            units,
            tables,
            bound,
            list,
            ..
        } = self;
        let table = usize::try_from(id.bits())
            .ok()
            .and_then(|at| tables.get_mut(at)?.as_mut())
            .ok_or(BackendError::Incompatible)?;
        if table.lent.try_reserve(1).is_err() {
            return Err(BackendError::OutOfMemory);
        }
        let mut caches = Caches::new(units, bound, list, id, (table.vmid, &table.kept));
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

    /// Ends what [`SmmuBackend::lend`] began, for all that the table has of `owner`. Nothing is
    /// translated there any more when this returns, and the tables are the owner's alone. To be called
    /// before the table is destroyed, and before the owner's tree is.
    ///
    /// # Errors
    /// [`BackendError::Incompatible`] when the tables are not those of `owner`; nothing has changed.
    /// [`BackendError::Timeout`] when not [`Backend::is_sure`](iommu::Backend::is_sure): the owner's tables must then never be freed.
    pub fn take_back<N, G>(
        &mut self,
        id: TableId,
        owner: &mut PageTable<pagetable::Stage2<Ipa>, N, G>,
    ) -> Result<(), BackendError>
    where
        N: hal::PhysMemory,
        G: FrameAllocator,
    {
        let Self {
            units,
            tables,
            bound,
            list,
            ..
        } = self;
        let table = usize::try_from(id.bits())
            .ok()
            .and_then(|at| tables.get_mut(at)?.as_mut())
            .ok_or(BackendError::Incompatible)?;
        let mut caches = Caches::new(units, bound, list, id, (table.vmid, &table.kept));
        while let Some(span) = table.lent.last().copied() {
            table
                .tree
                .unshare_subtree(owner, span, &mut caches)
                .map_err(|_| BackendError::Incompatible)?;
            table.lent.pop();
        }
        table.forgotten = None;
        if table.kept.get() {
            return Err(BackendError::Timeout);
        }
        Ok(())
    }

    /// The translation caches of a table, for whoever changes tables that it was lent: the owner's
    /// changes are complete when both the CPUs' caches and these have forgotten the old state. `None`
    /// when there is no such table.
    ///
    /// After [`Invalidate::sync`], [`Backend::is_sure`](iommu::Backend::is_sure) says whether that is complete.
    pub fn caches(&mut self, id: TableId) -> Option<impl Invalidate<Ipa>> {
        let Self {
            units,
            tables,
            bound,
            list,
            ..
        } = self;
        let table = tables.get(usize::try_from(id.bits()).ok()?)?.as_ref()?;
        let of = (table.vmid, &table.kept);
        Some(Caches::new(units, bound, list, id, of))
    }
}
