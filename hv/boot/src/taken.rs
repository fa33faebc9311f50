//! Frames that are taken for something which is not whole yet.

use alloc::vec::Vec;

use hal::{FrameAllocator, OutOfFrames, PhysMemory};
use types::{Pa, PageSize};

use crate::Frames;

/// Frames taken for something that may yet fail to be made: dropped, they are free again, unless they were kept.
///
/// Whoever takes them lets no device and no guest reach them before they are kept.
#[derive(Debug)]
pub struct Taken<'f, F: FrameAllocator> {
    frames: &'f F,
    /// Blocks, each with the log2 of its frames.
    blocks: Vec<(Pa, u8)>,
}

impl<'f, F: FrameAllocator> Taken<'f, F> {
    /// None yet, to be taken from `frames`.
    pub fn new(frames: &'f F) -> Self {
        let blocks = Vec::new();
        Self { frames, blocks }
    }

    /// Takes a block of `1 << order` zeroed frames, aligned to its size.
    ///
    /// # Errors
    /// [`OutOfFrames`] when there is none; what was taken before stays taken.
    pub fn alloc_zeroed(&mut self, order: u8) -> Result<Pa, OutOfFrames> {
        let block = self.frames.alloc_zeroed(order)?;
        self.blocks.push((block, order));
        Ok(block)
    }

    /// They belong to what has been made, for good.
    pub fn keep(mut self) {
        self.blocks.clear();
    }
}

impl<M: PhysMemory> Taken<'_, Frames<M>> {
    /// Takes so many zeroed frames in one piece: [`Frames::alloc_zeroed_run`].
    ///
    /// # Errors
    /// [`OutOfFrames`] when there is no such piece; what was taken before stays taken.
    pub fn alloc_zeroed_run(&mut self, frames: usize) -> Result<Pa, OutOfFrames> {
        let frames = frames.max(1);
        let start = self.frames.alloc_zeroed_run(frames)?;
        // It is aligned to the next power of two, so blocks of its bits, the largest first, are to their sizes.
        let mut at = start;
        for order in (0..usize::BITS).rev() {
            let order = u8::try_from(order).unwrap_or(0);
            if frames >> order & 1 != 0 {
                self.blocks.push((at, order));
                at = Pa::truncated(at.bits() + (PageSize::SIZE_4K.bytes() << order));
            }
        }
        Ok(start)
    }
}

impl<F: FrameAllocator> Drop for Taken<'_, F> {
    fn drop(&mut self) {
        for (block, order) in self.blocks.drain(..) {
            self.frames.free(block, order);
        }
    }
}

#[cfg(test)]
mod tests {
    use hal::fake::FakeMemory;
    use proptest::prelude::{prop, proptest};
    use types::{Pa, Span};

    use super::Taken;
    use crate::Frames;

    const FRAMES: usize = 512;

    fn memory() -> (FakeMemory, Span<Pa>) {
        let start = Pa::new(0x4000_0000).unwrap();
        let span = Span::from_len(start, (FRAMES as u64) << 12).unwrap();
        (FakeMemory::new(start, FRAMES << 12), span)
    }

    #[test]
    fn what_is_kept_stays_taken() {
        let (memory, span) = memory();
        let frames = Frames::new(&memory, &[span]);
        let mut taken = Taken::new(&frames);
        taken.alloc_zeroed(3).unwrap();
        taken.alloc_zeroed_run(37).unwrap();
        taken.keep();
        assert_eq!(frames.free_frames(), FRAMES - 8 - 37);
    }

    proptest! {
        /// Wherever it ends: all frames are there again, in one block as before.
        #[test]
        fn what_is_not_kept_is_free_again_as_it_was(
            wanted in prop::collection::vec((prop::bool::ANY, 0..200_usize), 0..12),
        ) {
            let (memory, span) = memory();
            let frames = Frames::new(&memory, &[span]);
            let mut taken = Taken::new(&frames);
            for (in_one_piece, size) in wanted {
                let done = if in_one_piece {
                    taken.alloc_zeroed_run(size)
                } else {
                    taken.alloc_zeroed((size % 8).try_into().unwrap())
                };
                if done.is_err() {
                    break;
                }
            }
            drop(taken);
            assert_eq!(frames.free_frames(), FRAMES);
            assert!(frames.alloc_zeroed_run(FRAMES).is_ok());
        }
    }
}
