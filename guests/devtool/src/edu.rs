//! QEMU's `edu` device: registers, and its DMA. [QEMU, docs/specs/edu.rst]
//!
//! It copies up to 4 KiB between a buffer of its own, which the CPU cannot read, and any address of the
//! bus; the low 28 bits of it, unless it was made with another `dma_mask`. A DMA takes 100 ms and ends
//! without a word about errors.

/// What reads and writes its registers.
pub trait Registers {
    /// Reads 32 bits.
    fn read32(&self, offset: usize) -> u32;
    /// Writes 32 bits.
    fn write32(&self, offset: usize, value: u32);
    /// Reads 64 bits.
    fn read64(&self, offset: usize) -> u64;
    /// Writes 64 bits.
    fn write64(&self, offset: usize, value: u64);
}

/// Bytes of its registers' BAR.
pub const BAR: usize = 1 << 20;
/// Bytes of its buffer.
pub const BUFFER: u64 = 4096;

const REG_IDENTITY: usize = 0x00;
const REG_SCRATCH: usize = 0x04;
const REG_IRQ_STATUS: usize = 0x24;
const REG_RAISE: usize = 0x60;
const REG_ACKNOWLEDGE: usize = 0x64;
const REG_DMA_SOURCE: usize = 0x80;
const REG_DMA_TARGET: usize = 0x88;
const REG_DMA_COUNT: usize = 0x90;
const REG_DMA_COMMAND: usize = 0x98;
/// Where the buffer is, for the device.
const BUFFER_AT: u64 = 0x4_0000;
/// Version 1.0, and `ed`.
const IDENTITY: u32 = 0x0100_00ed;
const RUN: u64 = 1;
const TO_MEMORY: u64 = 2;
const INTERRUPT: u64 = 4;
/// The interrupt status of the end of a DMA.
pub const DMA_DONE: u32 = 0x100;

/// Which way a DMA goes, seen from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From memory to the buffer.
    Read,
    /// From the buffer to memory.
    Write,
}

/// Whether the end of a DMA interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtTheEnd {
    /// It does not.
    Silence,
    /// It does, with [`DMA_DONE`].
    Interrupt,
}

/// An `edu`.
#[derive(Debug)]
pub struct Edu<R>(pub R);

impl<R: Registers> Edu<R> {
    /// Whether it is one, and its scratch register inverts.
    pub fn is_there(&self) -> bool {
        self.0.write32(REG_SCRATCH, 0x1234_abcd);
        self.0.read32(REG_IDENTITY) == IDENTITY && self.0.read32(REG_SCRATCH) == !0x1234_abcd
    }

    /// Starts a DMA of the buffer's first `bytes`. False if there is no room for them in the buffer: the
    /// device does not check.
    #[must_use]
    pub fn start(&self, direction: Direction, address: u64, bytes: u64, end: AtTheEnd) -> bool {
        if bytes > BUFFER {
            return false;
        }
        let (source, target, way) = match direction {
            Direction::Read => (address, BUFFER_AT, 0),
            Direction::Write => (BUFFER_AT, address, TO_MEMORY),
        };
        let interrupt = match end {
            AtTheEnd::Silence => 0,
            AtTheEnd::Interrupt => INTERRUPT,
        };
        self.0.write64(REG_DMA_SOURCE, source);
        self.0.write64(REG_DMA_TARGET, target);
        self.0.write64(REG_DMA_COUNT, bytes);
        self.0.write64(REG_DMA_COMMAND, RUN | way | interrupt);
        true
    }

    /// Whether a DMA runs.
    pub fn is_busy(&self) -> bool {
        self.0.read64(REG_DMA_COMMAND) & RUN != 0
    }

    /// Interrupts, with these bits of status.
    pub fn raise(&self, bits: u32) {
        self.0.write32(REG_RAISE, bits);
    }

    /// The interrupt status, which is cleared.
    pub fn take_status(&self) -> u32 {
        let status = self.0.read32(REG_IRQ_STATUS);
        self.0.write32(REG_ACKNOWLEDGE, status);
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[derive(Default)]
    struct Written(RefCell<Vec<(usize, u64)>>);

    impl Registers for Written {
        fn read32(&self, _: usize) -> u32 {
            IDENTITY
        }
        fn write32(&self, offset: usize, value: u32) {
            self.0.borrow_mut().push((offset, value.into()));
        }
        fn read64(&self, _: usize) -> u64 {
            0
        }
        fn write64(&self, offset: usize, value: u64) {
            self.0.borrow_mut().push((offset, value));
        }
    }

    #[test]
    fn a_dma_is_started_by_its_last_register() {
        let edu = Edu(Written::default());
        assert!(edu.start(Direction::Write, 0x1000, 8, AtTheEnd::Interrupt));
        let written = edu.0.0.take();
        assert_eq!(
            written,
            [(0x80, 0x4_0000), (0x88, 0x1000), (0x90, 8), (0x98, 7)]
        );
        assert!(edu.start(Direction::Read, 0x1000, 8, AtTheEnd::Silence));
        assert_eq!(
            edu.0.0.take(),
            [(0x80, 0x1000), (0x88, 0x4_0000), (0x90, 8), (0x98, 1)]
        );
    }

    #[test]
    fn a_dma_beyond_the_buffer_is_not_started() {
        let edu = Edu(Written::default());
        assert!(!edu.start(Direction::Read, 0x1000, 4097, AtTheEnd::Silence));
        assert!(edu.0.0.take().is_empty());
    }

    #[test]
    fn another_device_is_told_apart() {
        // Its scratch register does not invert.
        assert!(!Edu(Written::default()).is_there());
    }
}
