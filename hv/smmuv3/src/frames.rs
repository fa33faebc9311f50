//! Frames for tables that an SMMU walks.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use hal::{FrameAllocator, OutOfFrames, SharedMemory};
use types::Pa;

use crate::shared::Shared;

/// Frames whose addresses have no more bits than an SMMU's: its registers keep no others, so that it would go elsewhere.
/// [IHI 0070 §6.3.26]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Within<'a, F> {
    pub(crate) frames: &'a F,
    /// `IDR5.OAS`.
    pub(crate) bits: u8,
}

impl<F: FrameAllocator> FrameAllocator for Within<'_, F> {
    fn alloc_zeroed(&self, order: u8) -> Result<Pa, OutOfFrames> {
        let block = self.frames.alloc_zeroed(order)?;
        // A block is aligned to its size.
        if block.bits() >> self.bits == 0 {
            return Ok(block);
        }
        self.frames.free(block, order);
        Err(OutOfFrames { frames: 1 << order })
    }

    fn free(&self, block: Pa, order: u8) {
        self.frames.free(block, order);
    }
}

/// Frames of one table, whose zeroes an SMMU sees, whether it snoops or not, and which stay out of use once an SMMU
/// may be walking them for ever.
#[derive(Clone, Debug)]
pub(crate) struct TableFrames<P, F> {
    frames: F,
    memory: Shared<P>,
    kept: Kept,
}

/// Whether a table, and what it leads to, is kept from further use: a device behind an SMMU that [is
/// lost](crate::Smmu::is_lost) went through it, and may do so still.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept(Arc<AtomicBool>);

impl Kept {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl<P: SharedMemory, F: FrameAllocator> TableFrames<P, F> {
    pub(crate) fn new(frames: F, memory: Shared<P>, kept: Kept) -> Self {
        Self {
            frames,
            memory,
            kept,
        }
    }
}

impl<P: SharedMemory, F: FrameAllocator> FrameAllocator for TableFrames<P, F> {
    fn alloc_zeroed(&self, order: u8) -> Result<Pa, OutOfFrames> {
        let block = self.frames.alloc_zeroed(order)?;
        self.memory.cleaned(block, 4096 << order);
        Ok(block)
    }

    fn free(&self, block: Pa, order: u8) {
        if !self.kept.get() {
            self.frames.free(block, order);
        }
    }
}
