//! QEMU's `edu`, as on Arm: a device that copies between its buffer and any bus address, and
//! interrupts. [QEMU, docs/specs/edu.rst] It says nothing of errors. It needs
//! `dma_mask=0xffffffffffffffff`.

use crate::pci::{Function, MASTER, MEMORY};
use crate::{cpu, mmio, wait};

/// Bytes of its buffer.
pub const BUFFER: u64 = 4096;
const IDENTITY: u32 = 0x0100_00ed;
const BUFFER_AT: u64 = 0x4_0000;
/// How long a DMA takes, in microseconds, and how long it is waited for.
const DMA_US: u64 = 100_000;
const PATIENCE_US: u64 = 2_000_000;

/// Which way a DMA goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From memory into the device's buffer.
    Read,
    /// From the device's buffer to memory.
    Write,
}

/// An `edu`.
#[derive(Clone, Copy, Debug)]
pub struct Edu {
    /// Its function.
    pub function: Function,
    registers: u64,
}

impl Edu {
    /// The one at this place: it decodes and masters the bus from now on.
    pub fn open(function: Function) -> Option<Self> {
        if function.read(0, 4) != (0, 0x11e8_1234) {
            return None;
        }
        function.write(4, 2, MEMORY | MASTER);
        let edu = Self {
            function,
            registers: function.bar(),
        };
        (mmio::read32(edu.registers) == IDENTITY).then_some(edu)
    }

    /// What its identity register reads as.
    pub fn identity(self) -> u32 {
        mmio::read32(self.registers)
    }

    /// The same by an instruction whose target held `before`, which has more than 32 bits: `None` where it was
    /// not changed.
    pub fn identity_over(self, before: u64) -> Option<u32> {
        let value = mmio::read32_over(self.registers, before);
        u32::try_from(value).ok().map(u32::swap_bytes)
    }

    /// Whether the identity is an `edu`'s.
    pub fn answers(self) -> bool {
        self.identity() == IDENTITY
    }

    /// Sends its message, once for each time that bits are newly raised.
    pub fn raise(self) {
        mmio::write32(self.registers + 0x60, 1);
        mmio::write32(self.registers + 0x64, 1);
    }

    /// Its pin goes up, as long as it sends no messages.
    pub fn pin_up(self) {
        mmio::write32(self.registers + 0x60, 1);
    }

    /// It goes down.
    pub fn pin_down(self) {
        mmio::write32(self.registers + 0x64, !0);
    }

    /// Starts a DMA of `bytes` between a bus address and `offset` in the buffer.
    pub fn start(self, direction: Direction, at: u64, offset: u64, bytes: u64) {
        assert!(offset + bytes <= BUFFER, "a DMA leaves the buffer");
        let inside = BUFFER_AT + offset;
        let (source, target, way) = match direction {
            Direction::Read => (at, inside, 0),
            Direction::Write => (inside, at, 2),
        };
        mmio::barrier();
        mmio::write64(self.registers + 0x80, source);
        mmio::write64(self.registers + 0x88, target);
        mmio::write64(self.registers + 0x90, bytes);
        mmio::write64(self.registers + 0x98, 1 | way);
    }

    /// Does it, and waits for the end.
    pub fn dma(self, direction: Direction, at: u64, offset: u64, bytes: u64) {
        self.start(direction, at, offset, bytes);
        self.wait();
    }

    /// Whether a DMA runs.
    pub fn is_busy(self) -> bool {
        mmio::read32(self.registers + 0x98) & 1 != 0
    }

    /// Waits for the end of a DMA.
    pub fn wait(self) {
        wait::until(cpu::now() + cpu::ticks(DMA_US));
        let end = cpu::now() + cpu::ticks(PATIENCE_US);
        while self.is_busy() {
            assert!(cpu::now() < end, "a DMA does not end");
            wait::until(cpu::now() + cpu::ticks(1000));
        }
        mmio::barrier();
    }
}
