//! In-memory stand-ins: [`FakeMemory`], [`FakeFrames`], [`FakeCache`], [`FakeMmio`], [`FakeClock`].

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use types::{Address, Pa};

use crate::{Clock, FrameAllocator, Mmio, NotMemory, OutOfFrames, PhysMemory, SharedMemory};

const FRAME: u64 = 4096;

/// One block of memory at a base of the test's choosing.
#[derive(Debug)]
pub struct FakeMemory {
    base: Pa,
    bytes: RefCell<Vec<u8>>,
}

impl FakeMemory {
    /// `len` zeroed bytes at `base`.
    #[must_use]
    pub fn new(base: Pa, len: usize) -> Self {
        Self {
            base,
            bytes: RefCell::new(vec![0; len]),
        }
    }

    /// The first address.
    #[must_use]
    pub fn base(&self) -> Pa {
        self.base
    }

    fn offset(&self, pa: Pa, bytes: usize) -> Result<usize, NotMemory> {
        let fail = NotMemory { pa, bytes };
        let offset = pa
            .offset_from(self.base)
            .and_then(|o| usize::try_from(o).ok())
            .ok_or(fail)?;
        let end = offset.checked_add(bytes).ok_or(fail)?;
        if end <= self.bytes.borrow().len() {
            Ok(offset)
        } else {
            Err(fail)
        }
    }

    fn word(&self, pa: Pa) -> Result<usize, NotMemory> {
        if !pa.bits().is_multiple_of(8) {
            return Err(NotMemory { pa, bytes: 8 });
        }
        self.offset(pa, 8)
    }
}

impl PhysMemory for FakeMemory {
    fn read(&self, pa: Pa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        let offset = self.offset(pa, buffer.len())?;
        buffer.copy_from_slice(&self.bytes.borrow()[offset..offset + buffer.len()]);
        Ok(())
    }

    fn write(&self, pa: Pa, bytes: &[u8]) -> Result<(), NotMemory> {
        let offset = self.offset(pa, bytes.len())?;
        self.bytes.borrow_mut()[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read_u64(&self, pa: Pa) -> Result<u64, NotMemory> {
        let offset = self.word(pa)?;
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes.borrow()[offset..offset + 8]);
        Ok(u64::from_ne_bytes(word))
    }

    fn write_u64(&self, pa: Pa, value: u64) -> Result<(), NotMemory> {
        let offset = self.word(pa)?;
        self.bytes.borrow_mut()[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
        Ok(())
    }

    fn zero(&self, pa: Pa, bytes: usize) -> Result<(), NotMemory> {
        let offset = self.offset(pa, bytes)?;
        self.bytes.borrow_mut()[offset..offset + bytes].fill(0);
        Ok(())
    }
}

impl SharedMemory for FakeMemory {
    fn publish(&self) {}
    fn clean_to_memory(&self, _: Pa, _: usize) {}
}

/// A CPU's cache in front of a [`FakeMemory`], for devices that do not snoop it: they use the memory itself.
///
/// It keeps whole lines for as long as it can: what the CPU wrote is in memory only once its line was cleaned, what a
/// device wrote is seen only once a line that was read before was dropped, and a line that is dirty in one word is
/// written back in all of them.
#[derive(Debug)]
pub struct FakeCache<'m> {
    memory: &'m FakeMemory,
    /// By address; whether it is dirty.
    lines: RefCell<BTreeMap<u64, ([u64; LINE_WORDS], bool)>>,
}

/// Words of a cache line.
const LINE_WORDS: usize = 8;
const LINE: u64 = 8 * LINE_WORDS as u64;

impl<'m> FakeCache<'m> {
    /// Empty.
    #[must_use]
    pub fn new(memory: &'m FakeMemory) -> Self {
        Self {
            memory,
            lines: RefCell::default(),
        }
    }

    /// What is behind it.
    #[must_use]
    pub fn memory(&self) -> &'m FakeMemory {
        self.memory
    }

    /// Does something with a word of its line, which is read first where it is not there.
    fn with<R>(&self, at: u64, act: impl FnOnce(&mut u64, &mut bool) -> R) -> Result<R, NotMemory> {
        let start = at & !(LINE - 1);
        let mut lines = self.lines.borrow_mut();
        let (words, is_dirty) = match lines.entry(start) {
            Entry::Occupied(line) => line.into_mut(),
            Entry::Vacant(place) => {
                let mut words = [0; LINE_WORDS];
                for (address, word) in (start..).step_by(8).zip(&mut words) {
                    *word = self.memory.read_u64(Pa::truncated(address))?;
                }
                place.insert((words, false))
            }
        };
        let index = usize::try_from((at - start) / 8).unwrap_or(0);
        Ok(act(&mut words[index], is_dirty))
    }
}

impl PhysMemory for FakeCache<'_> {
    fn read(&self, pa: Pa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        for (at, byte) in (pa.bits()..).zip(buffer) {
            let [word, index] = [at & !7, at & 7];
            let index = usize::try_from(index).unwrap_or(0);
            *byte = self.with(word, |word, _| word.to_ne_bytes()[index])?;
        }
        Ok(())
    }

    fn write(&self, pa: Pa, bytes: &[u8]) -> Result<(), NotMemory> {
        for (at, byte) in (pa.bits()..).zip(bytes) {
            let index = usize::try_from(at & 7).unwrap_or(0);
            self.with(at & !7, |word, is_dirty| {
                let mut whole = word.to_ne_bytes();
                whole[index] = *byte;
                *word = u64::from_ne_bytes(whole);
                *is_dirty = true;
            })?;
        }
        Ok(())
    }

    fn read_u64(&self, pa: Pa) -> Result<u64, NotMemory> {
        self.memory.word(pa)?;
        self.with(pa.bits(), |word, _| *word)
    }

    fn write_u64(&self, pa: Pa, value: u64) -> Result<(), NotMemory> {
        self.memory.word(pa)?;
        self.with(pa.bits(), |word, is_dirty| {
            *word = value;
            *is_dirty = true;
        })
    }

    fn zero(&self, pa: Pa, bytes: usize) -> Result<(), NotMemory> {
        self.write(pa, &vec![0; bytes])
    }
}

impl SharedMemory for FakeCache<'_> {
    fn publish(&self) {}

    fn clean_to_memory(&self, pa: Pa, bytes: usize) {
        let end = pa.bits() + bytes as u64;
        let mut lines = self.lines.borrow_mut();
        for start in (pa.bits() & !(LINE - 1)..end).step_by(64) {
            let Some((words, true)) = lines.remove(&start) else {
                continue;
            };
            for (at, word) in (start..).step_by(8).zip(words) {
                // The line was read from memory.
                let _ = self.memory.write_u64(Pa::truncated(at), word);
            }
        }
    }
}

/// Frames that are zero as a CPU sees them, by its [`FakeCache`]: in memory there is still something else.
#[derive(Debug)]
pub struct StaleFrames<'m> {
    cache: &'m FakeCache<'m>,
    frames: FakeFrames<'m>,
}

impl<'m> StaleFrames<'m> {
    /// Hands out all of the memory behind a cache.
    #[must_use]
    pub fn new(cache: &'m FakeCache<'m>) -> Self {
        Self {
            cache,
            frames: FakeFrames::new(cache.memory),
        }
    }

    /// As [`FakeFrames`].
    #[must_use]
    pub fn frames(&self) -> &FakeFrames<'m> {
        &self.frames
    }
}

impl FrameAllocator for StaleFrames<'_> {
    fn alloc_zeroed(&self, order: u8) -> Result<Pa, OutOfFrames> {
        const STALE: u8 = 0xff;
        let out = OutOfFrames { frames: 1 << order };
        let block = self.frames.alloc_zeroed(order)?;
        let bytes = usize::try_from(FRAME << order).map_err(|_| out)?;
        // What a cache had of it was of another time.
        self.cache.clean_to_memory(block, bytes);
        self.cache
            .memory
            .write(block, &vec![STALE; bytes])
            .and_then(|()| self.cache.zero(block, bytes))
            .map_err(|_| out)?;
        Ok(block)
    }

    fn free(&self, block: Pa, order: u8) {
        self.frames.free(block, order);
    }
}

/// Frames out of a [`FakeMemory`], first fit, that can be told to fail and that notices a wrong
/// free.
#[derive(Debug)]
pub struct FakeFrames<'m> {
    memory: &'m FakeMemory,
    live: RefCell<BTreeMap<Pa, u8>>,
    /// Allocations until the one that fails; `None` never fails.
    fail_in: Cell<Option<usize>>,
}

impl<'m> FakeFrames<'m> {
    /// Hands out all of `memory`.
    #[must_use]
    pub fn new(memory: &'m FakeMemory) -> Self {
        Self {
            memory,
            live: RefCell::default(),
            fail_in: Cell::new(None),
        }
    }

    /// Lets the `nth` allocation from now (0 = the next) and all after it fail; `None` heals.
    pub fn fail_from(&self, nth: Option<usize>) {
        self.fail_in.set(nth);
    }

    /// Blocks handed out and not yet given back.
    #[must_use]
    pub fn live_blocks(&self) -> usize {
        self.live.borrow().len()
    }

    /// Whether a frame is in a block that was handed out and not given back.
    #[must_use]
    pub fn is_live(&self, frame: Pa) -> bool {
        let live = self.live.borrow();
        let before = live.range(..=frame).next_back();
        before.is_some_and(|(block, order)| frame.bits() - block.bits() < FRAME << order)
    }
}

impl FrameAllocator for FakeFrames<'_> {
    fn alloc_zeroed(&self, order: u8) -> Result<Pa, OutOfFrames> {
        let out = OutOfFrames { frames: 1 << order };
        match self.fail_in.get() {
            Some(0) => return Err(out),
            Some(n) => self.fail_in.set(Some(n - 1)),
            None => {}
        }
        let size = FRAME << order;
        let end = self.memory.base.bits() + self.memory.bytes.borrow().len() as u64;
        let mut live = self.live.borrow_mut();
        let mut start = self.memory.base.bits().next_multiple_of(size);
        for (block, order) in live.iter() {
            if start + size <= block.bits() {
                break;
            }
            start = start.max((block.bits() + (FRAME << order)).next_multiple_of(size));
        }
        if start + size > end {
            return Err(out);
        }
        let block = Pa::new(start).map_err(|_| out)?;
        let bytes = usize::try_from(size).map_err(|_| out)?;
        self.memory.zero(block, bytes).map_err(|_| out)?;
        live.insert(block, order);
        Ok(block)
    }

    fn free(&self, block: Pa, order: u8) {
        let was = self.live.borrow_mut().remove(&block);
        assert_eq!(
            was,
            Some(order),
            "free of {block} order {order}, which is not allocated so"
        );
    }
}

/// Registers that remember what was written and log every access.
#[derive(Debug, Default)]
pub struct FakeMmio {
    bytes: RefCell<BTreeMap<usize, u8>>,
    log: RefCell<Vec<Access>>,
}

/// One access a driver made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `offset`, width in bytes.
    Read(usize, usize),
    /// `offset`, width in bytes, value.
    Write(usize, usize, u64),
}

impl FakeMmio {
    /// Registers that all read as zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `width` bytes at `offset` without logging.
    pub fn preset(&self, offset: usize, width: usize, value: u64) {
        let mut bytes = self.bytes.borrow_mut();
        for (i, byte) in value.to_le_bytes().into_iter().take(width).enumerate() {
            bytes.insert(offset + i, byte);
        }
    }

    /// All accesses so far, in order; the log starts anew.
    pub fn take_log(&self) -> Vec<Access> {
        core::mem::take(&mut self.log.borrow_mut())
    }

    fn get(&self, offset: usize, width: usize) -> [u8; 8] {
        assert_eq!(offset % width, 0, "misaligned register read at {offset:#x}");
        self.log.borrow_mut().push(Access::Read(offset, width));
        let bytes = self.bytes.borrow();
        core::array::from_fn(|i| {
            if i < width {
                bytes.get(&(offset + i)).copied().unwrap_or(0)
            } else {
                0
            }
        })
    }

    fn set(&self, offset: usize, width: usize, value: u64) {
        assert_eq!(
            offset % width,
            0,
            "misaligned register write at {offset:#x}"
        );
        self.log
            .borrow_mut()
            .push(Access::Write(offset, width, value));
        self.preset(offset, width, value);
    }
}

impl Mmio for FakeMmio {
    fn read8(&self, offset: usize) -> u8 {
        self.get(offset, 1)[0]
    }
    fn read16(&self, offset: usize) -> u16 {
        let [a, b, ..] = self.get(offset, 2);
        u16::from_le_bytes([a, b])
    }
    fn read32(&self, offset: usize) -> u32 {
        let [a, b, c, d, ..] = self.get(offset, 4);
        u32::from_le_bytes([a, b, c, d])
    }
    fn read64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.get(offset, 8))
    }
    fn write8(&self, offset: usize, value: u8) {
        self.set(offset, 1, value.into());
    }
    fn write16(&self, offset: usize, value: u16) {
        self.set(offset, 2, value.into());
    }
    fn write32(&self, offset: usize, value: u32) {
        self.set(offset, 4, value.into());
    }
    fn write64(&self, offset: usize, value: u64) {
        self.set(offset, 8, value);
    }
}

/// A clock of 1 GHz that moves one tick whenever it is read.
#[derive(Debug, Default)]
pub struct FakeClock {
    now: Cell<u64>,
}

impl Clock for FakeClock {
    fn ticks(&self) -> u64 {
        self.now.set(self.now.get() + 1);
        self.now.get()
    }

    fn frequency(&self) -> u64 {
        1_000_000_000
    }
}

#[cfg(test)]
mod tests {
    use types::Pa;

    use super::{Access, FakeClock, FakeFrames, FakeMemory, FakeMmio};
    use crate::{Clock, FrameAllocator, Mmio, PhysMemory};

    #[test]
    fn memory_refuses_an_access_that_leaves_it_and_changes_nothing() {
        let memory = FakeMemory::new(Pa::truncated(0x1000), 0x1000);
        let last = Pa::truncated(0x1fff);
        assert!(memory.write(last, &[1, 2]).is_err());
        let mut byte = [9];
        memory.read(last, &mut byte).unwrap();
        assert_eq!(byte, [0]);
        assert!(memory.read_u64(Pa::truncated(0x1004)).is_err());
        assert!(memory.read(Pa::ZERO, &mut byte).is_err());
    }

    #[test]
    fn a_pair_of_words_is_written_whole_or_not_at_all() {
        let memory = FakeMemory::new(Pa::truncated(0x1000), 0x28);
        let words = || [0x1010, 0x1018, 0x1020].map(|at| memory.read_u64(Pa::truncated(at)));
        memory.write_pair(Pa::truncated(0x1010), [1, 2]).unwrap();
        assert_eq!(words(), [Ok(1), Ok(2), Ok(0)]);
        // Half of it outside, between pairs, before memory.
        for at in [0x1020, 0x1008, 0xff0] {
            assert!(memory.write_pair(Pa::truncated(at), [3, 4]).is_err());
        }
        assert_eq!(words(), [Ok(1), Ok(2), Ok(0)]);
    }

    #[test]
    fn frames_are_aligned_zeroed_and_reused() {
        let memory = FakeMemory::new(Pa::truncated(0x1000), 0x8000);
        let frames = FakeFrames::new(&memory);
        let a = frames.alloc_zeroed(0).unwrap();
        let b = frames.alloc_zeroed(1).unwrap();
        assert_eq!((a.bits(), b.bits()), (0x1000, 0x2000));
        memory.write_u64(a, 7).unwrap();
        frames.free(a, 0);
        assert_eq!(frames.alloc_zeroed(0), Ok(a));
        assert_eq!(memory.read_u64(a), Ok(0));
        assert!(frames.alloc_zeroed(3).is_err());
        frames.fail_from(Some(1));
        assert!(frames.alloc_zeroed(0).is_ok());
        assert!(frames.alloc_zeroed(0).is_err());
        assert_eq!(frames.live_blocks(), 3);
    }

    #[test]
    fn registers_remember_and_log() {
        let mmio = FakeMmio::new();
        mmio.preset(0x10, 4, 0x1234_5678);
        assert_eq!(mmio.read16(0x12), 0x1234);
        mmio.write8(0x10, 0xff);
        assert_eq!(mmio.read32(0x10), 0x1234_56ff);
        assert_eq!(
            mmio.take_log(),
            [
                Access::Read(0x12, 2),
                Access::Write(0x10, 1, 0xff),
                Access::Read(0x10, 4)
            ]
        );
    }

    #[test]
    fn a_wait_is_never_shorter_than_asked() {
        assert_eq!(FakeClock::default().ticks_of_us(3), 3000);
        assert_eq!(FakeClock::default().ticks_of_us(u64::MAX), u64::MAX);
    }
}
