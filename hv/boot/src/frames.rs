//! Free memory, as frames.

use alloc::vec::Vec;

use buddy_system_allocator::FrameAllocator as Buddy;
use hal::{FrameAllocator, OutOfFrames, PhysMemory};
use types::{Address, Pa, PageSize, Span};

const FRAME: PageSize = PageSize::SIZE_4K;
/// Blocks of up to 2^(ORDERS-1) frames: 8 TiB.
const ORDERS: usize = 32;

/// The whole frames of `memory` that no span of `reserved` touches, in ascending order.
///
/// Memory is rounded inwards to 4 KiB, reservations outwards. Memory spans may overlap, as a
/// careless device tree's do: every frame comes out once.
#[must_use]
pub fn usable(memory: &[Span<Pa>], reserved: &[Span<Pa>]) -> Vec<Span<Pa>> {
    // Frame numbers, ends excluded, so that the last frame of the space needs no special case.
    let frames = |span: &Span<Pa>| (span.start().bits() >> 12, (span.last().bits() >> 12) + 1);
    let mut memory = memory.to_vec();
    types::sort(&mut memory);
    let free = memory
        .iter()
        .map(|span| {
            (
                span.start().bits().div_ceil(4096),
                (span.last().bits() + 1) >> 12,
            )
        })
        .filter(|(start, end)| start < end);
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (start, end) in free {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    for (from, to) in reserved.iter().map(frames) {
        let cut = merged
            .iter()
            .flat_map(|&(start, end)| [(start, end.min(from)), (start.max(to), end)]);
        merged = cut.filter(|(start, end)| start < end).collect();
    }
    merged
        .into_iter()
        .filter_map(|(start, end)| Span::from_len(Pa::new(start << 12).ok()?, (end - start) << 12))
        .collect()
}

/// All frames that have no other owner, in buddy blocks.
#[derive(Debug)]
pub struct Frames<M> {
    memory: M,
    pool: hal::Mutex<Pool>,
}

struct Pool {
    buddy: Buddy<ORDERS>,
    total: usize,
    free: usize,
}

impl core::fmt::Debug for Pool {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} of {} frames free", self.free, self.total)
    }
}

impl<M: PhysMemory> Frames<M> {
    /// An allocator over `free`, which the caller has found with [`usable`]: nothing in it may have
    /// an owner.
    #[must_use]
    pub fn new(memory: M, free: &[Span<Pa>]) -> Self {
        let mut buddy = Buddy::new();
        let mut total = 0;
        for span in free {
            let start = number(span.start());
            let end = number(span.last()) + 1;
            buddy.add_frame(start, end);
            total += end - start;
        }
        Self {
            memory,
            pool: hal::Mutex::new(Pool {
                buddy,
                total,
                free: total,
            }),
        }
    }

    /// Frames managed, free or not.
    #[must_use]
    pub fn total(&self) -> usize {
        self.pool.lock().total
    }

    /// Frames free now.
    #[must_use]
    pub fn free_frames(&self) -> usize {
        self.pool.lock().free
    }

    /// So many zeroed frames in one piece, aligned to the next power of two; no frame more is taken. For a VM whose
    /// memory has to be where it believes it to be. By [`crate::Taken`] it is given back when that VM cannot be made.
    ///
    /// # Errors
    /// [`OutOfFrames`] when no block of that power of two is free, however much else is; nothing is taken then.
    pub fn alloc_zeroed_run(&self, frames: usize) -> Result<Pa, OutOfFrames> {
        let out = OutOfFrames { frames };
        let block = frames.max(1).checked_next_power_of_two();
        let block = block.filter(|block| *block < 1 << ORDERS).ok_or(out)?;
        let wanted = frames.max(1);
        let start = {
            let mut pool = self.pool.lock();
            let start = pool.buddy.alloc(block).ok_or(out)?;
            pool.free -= wanted;
            // What is behind it goes back, in the largest blocks that are aligned to their size.
            let mut at = wanted;
            while at < block {
                let spare = at & at.wrapping_neg();
                pool.buddy.dealloc(start + at, spare);
                at += spare;
            }
            start
        };
        let piece = Pa::truncated((start as u64) << FRAME.shift());
        self.memory
            .zero(piece, wanted << FRAME.shift())
            .map_err(|_| out)?;
        Ok(piece)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "usize is 64 bits on both architectures"
)]
fn number(pa: Pa) -> usize {
    (pa.bits() >> FRAME.shift()) as usize
}

impl<M: PhysMemory> FrameAllocator for Frames<M> {
    fn alloc_zeroed(&self, order: u8) -> Result<Pa, OutOfFrames> {
        let frames = 1_usize
            .checked_shl(order.into())
            .filter(|_| usize::from(order) < ORDERS)
            .ok_or(OutOfFrames { frames: usize::MAX })?;
        let out = OutOfFrames { frames };
        let start = {
            let mut pool = self.pool.lock();
            let start = pool.buddy.alloc(frames).ok_or(out)?;
            pool.free -= frames;
            start
        };
        let block = Pa::truncated((start as u64) << FRAME.shift());
        // The block is ours and in memory, so this fails only if the memory map lied; a block that
        // may not be zero is never handed out.
        self.memory
            .zero(block, frames << FRAME.shift())
            .map_err(|_| out)?;
        Ok(block)
    }

    fn free(&self, block: Pa, order: u8) {
        debug_assert!(block.is_aligned(FRAME));
        let frames = 1 << order;
        let mut pool = self.pool.lock();
        pool.buddy.dealloc(number(block), frames);
        pool.free += frames;
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;

    use hal::fake::FakeMemory;
    use hal::{FrameAllocator, PhysMemory};
    use proptest::prelude::{any, prop, proptest};
    use types::{Pa, Span};

    use super::{Frames, usable};

    fn span(start: u64, end: u64) -> Span<Pa> {
        Span::new(Pa::truncated(start), Pa::truncated(end - 1)).unwrap()
    }

    #[test]
    fn a_reservation_takes_the_whole_frames_it_touches() {
        let free = usable(&[span(0x800, 0x1_0000)], &[span(0x3fff, 0x4001)]);
        assert_eq!(free, [span(0x1000, 0x3000), span(0x5000, 0x1_0000)]);
    }

    #[test]
    fn memory_that_is_less_than_a_frame_gives_none() {
        assert_eq!(usable(&[span(0x1001, 0x2fff)], &[]), []);
        assert_eq!(usable(&[span(0, 0x4000)], &[span(0, 0x4000)]), []);
    }

    #[test]
    fn the_last_frame_of_the_space_is_usable() {
        let top = Pa::MAX & !0xfff;
        let all = Span::new(Pa::truncated(top), Pa::truncated(Pa::MAX)).unwrap();
        assert_eq!(usable(&[all], &[]), [all]);
    }

    #[test]
    fn blocks_are_zeroed_aligned_and_come_back() {
        let memory = FakeMemory::new(Pa::truncated(0x10_0000), 0x4_0000);
        memory
            .write(Pa::truncated(0x10_0000), &[0xff; 0x1000])
            .unwrap();
        let frames = Frames::new(&memory, &[span(0x10_1000, 0x14_0000)]);
        assert_eq!((frames.total(), frames.free_frames()), (63, 63));
        let big = frames.alloc_zeroed(4).unwrap();
        assert_eq!(big.bits() % 0x1_0000, 0);
        memory.write_u64(big, 1).unwrap();
        frames.free(big, 4);
        let blocks: Vec<_> = core::iter::from_fn(|| frames.alloc_zeroed(0).ok()).collect();
        assert_eq!(blocks.len(), 63);
        assert!(blocks.iter().all(|b| memory.read_u64(*b) == Ok(0)));
        assert!(frames.alloc_zeroed(0).is_err());
        assert!(frames.alloc_zeroed(200).is_err());
        blocks.into_iter().for_each(|b| frames.free(b, 0));
        assert_eq!(frames.free_frames(), 63);
        assert!(
            frames.alloc_zeroed(4).is_ok(),
            "freed frames join into large blocks again"
        );
    }

    #[test]
    fn a_run_takes_no_frame_more_and_what_is_behind_it_is_free_in_large_blocks() {
        let memory = FakeMemory::new(Pa::truncated(0x10_0000), 0x10_0000);
        memory
            .write(Pa::truncated(0x10_0000), &[0xff; 0x10_0000])
            .unwrap();
        let frames = Frames::new(&memory, &[span(0x10_0000, 0x20_0000)]);
        // 256 frames: 129 of them need the block that is all.
        let run = frames.alloc_zeroed_run(129).unwrap();
        assert_eq!((run.bits(), frames.free_frames()), (0x10_0000, 127));
        let zeroes =
            |frame: u64| memory.read_u64(Pa::truncated(run.bits() + (frame << 12))) == Ok(0);
        assert!(zeroes(128) && !zeroes(129), "zeroed as far as it goes");
        let behind = frames.alloc_zeroed(6).unwrap();
        assert_eq!(
            behind.bits(),
            0x1c_0000,
            "64 frames at the end are one block"
        );
        // Much is free, and no such piece.
        assert_eq!(frames.free_frames(), 63);
        assert!(frames.alloc_zeroed_run(63).is_err());
        assert_eq!(frames.free_frames(), 63, "a refusal takes nothing");
        assert!(frames.alloc_zeroed_run(32).is_ok());
        assert!(frames.alloc_zeroed_run(usize::MAX).is_err());
        assert!(frames.alloc_zeroed_run(0).is_ok(), "as for one frame");
        assert_eq!(frames.free_frames(), 30);
    }

    proptest! {
        #[test]
        fn runs_and_blocks_never_share_a_frame_and_all_frames_are_found_in_the_end(
            steps in prop::collection::vec((any::<bool>(), 0_usize..70), 0..30),
        ) {
            let memory = FakeMemory::new(Pa::truncated(0x10_0000), 0x10_0000);
            let frames = Frames::new(&memory, &[span(0x10_1000, 0x1f_f000)]);
            let mut taken: BTreeSet<u64> = BTreeSet::new();
            let mut take = |start: Pa, count: usize| {
                for frame in (start.bits() >> 12..).take(count) {
                    assert!((0x101..0x1ff).contains(&frame), "{frame:#x} is not ours to give");
                    assert!(taken.insert(frame), "{frame:#x} twice");
                }
                taken.len()
            };
            let mut count = 0;
            for (is_run, size) in steps {
                let free = frames.free_frames();
                let order = u8::try_from(size % 6).unwrap();
                let got = match is_run {
                    true => frames.alloc_zeroed_run(size),
                    false => frames.alloc_zeroed(order),
                };
                match got {
                    Ok(run) if is_run => {
                        let boundary = u64::try_from(size.max(1).next_power_of_two()).unwrap();
                        assert!((run.bits() >> 12).is_multiple_of(boundary));
                        count = take(run, size.max(1));
                    }
                    // Some come back, and some stay.
                    Ok(block) if size % 2 == 0 => frames.free(block, order),
                    Ok(block) => count = take(block, 1 << order),
                    Err(_) => {}
                }
                assert!(frames.free_frames() <= free);
                assert_eq!(frames.free_frames() + count, frames.total());
            }
            while let Ok(frame) = frames.alloc_zeroed(0) {
                count = take(frame, 1);
            }
            assert_eq!(count, frames.total());
        }

        #[test]
        fn usable_frames_are_those_of_memory_less_those_reserved(
            memory in prop::collection::vec((0_u64..0x40, 1_u64..0x20), 0..5),
            reserved in prop::collection::vec((0_u64..0x60_000, 1_u64..0x8_000), 0..5),
        ) {
            let memory: Vec<_> =
                memory.iter().map(|(s, n)| span(s << 12, (s + n) << 12)).collect();
            let reserved: Vec<_> = reserved.iter().map(|(s, n)| span(*s, s + n)).collect();
            let expected: BTreeSet<u64> = (0..0x60)
                .filter(|f| {
                    let frame = span(f << 12, (f + 1) << 12);
                    memory.iter().any(|m| m.contains_span(frame))
                        && !reserved.iter().any(|r| r.overlaps(frame))
                })
                .collect();
            let got: Vec<u64> = usable(&memory, &reserved)
                .iter()
                .flat_map(|s| s.start().bits() >> 12..=s.last().bits() >> 12)
                .collect();
            assert_eq!(got, expected.into_iter().collect::<Vec<_>>());
        }
    }
}
