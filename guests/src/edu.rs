//! QEMU's `edu`: a device that copies 4 KiB at most between its buffer and any address, and interrupts.
//! [QEMU, docs/specs/edu.rst]
//!
//! Its buffer cannot be read by the CPU: what a DMA brought in is seen by another one that takes it
//! out. A DMA ends 100 ms of the machine's time after it was started, without a word about errors: a
//! read that was refused leaves the buffer as it was or fills it, a write that was refused is gone. It
//! needs `dma_mask=0xffffffffffffffff`, or it cuts addresses to 28 bits.

use crate::pci::{self, Function, Msi};
use crate::{cpu, mmio};

/// Vendor and device ID.
pub const IDS: u32 = 0x11e8_1234;
/// Bytes of its buffer.
pub const BUFFER: u64 = 4096;
/// What it says it is: version 1.0, and `ed`.
pub const IDENTITY: u32 = 0x0100_00ed;
/// The interrupt status that the end of a DMA sets.
pub const DMA_DONE: u32 = 0x100;

const REG_IDENTITY: usize = 0x00;
/// What is written here reads inverted.
pub const REG_SCRATCH: usize = 0x04;
const REG_FACTORIAL: usize = 0x08;
const REG_STATUS: usize = 0x20;
const REG_IRQ_STATUS: usize = 0x24;
/// What is written here is raised.
pub const REG_RAISE: usize = 0x60;
const REG_ACKNOWLEDGE: usize = 0x64;
const REG_DMA_SOURCE: usize = 0x80;
const REG_DMA_TARGET: usize = 0x88;
const REG_DMA_COUNT: usize = 0x90;
const REG_DMA_COMMAND: usize = 0x98;
/// Where the device's own addresses of the buffer start.
const BUFFER_AT: u64 = 0x4_0000;
const RUN: u64 = 1;
const TO_MEMORY: u64 = 2;
const INTERRUPT: u64 = 4;

/// How long a DMA takes, in microseconds of the machine's time.
pub const DMA_US: u64 = 100_000;
/// How long a DMA is waited for: ten times what it takes, and what a busy machine adds.
const PATIENCE_US: u64 = 2_000_000;
/// How long a factorial is waited for.
const FACTORIAL_US: u64 = 500_000;

/// Which way a DMA goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From memory into the device's buffer.
    Read,
    /// From the device's buffer to memory.
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

/// The DMA did not end, or the device did not answer, in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout;

/// An `edu` whose BAR is placed.
#[derive(Clone, Copy, Debug)]
pub struct Edu {
    /// Its function.
    pub function: Function,
    /// Where its registers are.
    pub base: usize,
}

impl Edu {
    /// Places BAR 0 of an `edu`, lets it decode and master the bus.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(function: Function, base: usize) -> Result<Self, &'static str> {
        function.command(0);
        let bar = function.bar(0);
        if bar.bytes == 0 || bar.bytes > 1 << 24 {
            return Err("edu has no BAR 0 of a reasonable size");
        }
        if !base.is_multiple_of(usize::try_from(bar.bytes).unwrap_or(usize::MAX)) {
            return Err("the address is not aligned to the BAR");
        }
        let edu = Self { function, base };
        edu.place(base)?;
        Ok(edu)
    }

    fn place(self, base: usize) -> Result<(), &'static str> {
        self.function.command(0);
        if self.function.place(0, base as u64) != base as u64 {
            return Err("BAR 0 does not keep the address that it is given");
        }
        self.function.command(pci::MEMORY_SPACE | pci::BUS_MASTER);
        Ok(())
    }

    /// Moves its registers.
    ///
    /// # Errors
    /// What is wrong with that.
    pub fn move_to(&mut self, base: usize) -> Result<(), &'static str> {
        self.place(base)?;
        self.base = base;
        Ok(())
    }

    fn read(self, register: usize) -> u32 {
        mmio::read32(self.base + register)
    }

    fn write(self, register: usize, value: u32) {
        mmio::write32(self.base + register, value);
    }

    /// Whether it is an `edu`, and its scratch register inverts.
    pub fn is_there(self) -> bool {
        self.read(REG_IDENTITY) == IDENTITY && {
            self.write(REG_SCRATCH, 0x1234_abcd);
            self.read(REG_SCRATCH) == !0x1234_abcd
        }
    }

    /// The scratch register.
    pub fn scratch(self) -> u32 {
        !self.read(REG_SCRATCH)
    }

    /// Sets the scratch register.
    pub fn set_scratch(self, value: u32) {
        self.write(REG_SCRATCH, value);
    }

    /// A factorial, modulo 2^32.
    ///
    /// # Errors
    /// It takes too long.
    pub fn factorial(self, of: u32) -> Result<u32, Timeout> {
        self.write(REG_FACTORIAL, of);
        self.wait_until(FACTORIAL_US, 1000, || self.read(REG_STATUS) & 1 == 0)?;
        Ok(self.read(REG_FACTORIAL))
    }

    /// Raises interrupts.
    pub fn raise(self, bits: u32) {
        self.write(REG_RAISE, bits);
    }

    /// What is raised.
    pub fn raised(self) -> u32 {
        self.read(REG_IRQ_STATUS)
    }

    /// Takes back what was raised.
    pub fn acknowledge(self, bits: u32) {
        self.write(REG_ACKNOWLEDGE, bits);
    }

    /// Its MSI capability.
    pub fn msi(self) -> Option<Msi> {
        self.function.msi()
    }

    /// Starts a DMA of `bytes` at bus address `address`, and at `offset` in the buffer. Offset and bytes
    /// must lie in the buffer: the device does not check. Ignored while another one runs.
    ///
    /// # Panics
    /// If they do not.
    pub fn start(self, direction: Direction, address: u64, offset: u64, bytes: u64, end: AtTheEnd) {
        assert!(
            bytes <= BUFFER && offset <= BUFFER - bytes,
            "a DMA of {bytes} bytes at {offset} leaves the buffer"
        );
        let inside = BUFFER_AT + offset;
        let (source, target, way) = match direction {
            Direction::Read => (address, inside, 0),
            Direction::Write => (inside, address, TO_MEMORY),
        };
        let interrupt = if end == AtTheEnd::Interrupt {
            INTERRUPT
        } else {
            0
        };
        mmio::barrier();
        mmio::write64(self.base + REG_DMA_SOURCE, source);
        mmio::write64(self.base + REG_DMA_TARGET, target);
        mmio::write64(self.base + REG_DMA_COUNT, bytes);
        mmio::write64(self.base + REG_DMA_COMMAND, RUN | way | interrupt);
    }

    /// Whether a DMA runs.
    pub fn is_busy(self) -> bool {
        mmio::read64(self.base + REG_DMA_COMMAND) & RUN != 0
    }

    /// Waits for the end of a DMA, asleep. Interrupts must be masked, as for [`cpu::wait_until`].
    ///
    /// # Errors
    /// It does not end.
    pub fn wait(self) -> Result<(), Timeout> {
        self.wait_until(PATIENCE_US, 2_000, || !self.is_busy())
    }

    /// Polls every `period_us`.
    fn wait_until(
        self,
        patience_us: u64,
        period_us: u64,
        mut done: impl FnMut() -> bool,
    ) -> Result<(), Timeout> {
        let end = cpu::now().saturating_add(cpu::ticks(patience_us));
        while !done() {
            if cpu::now() >= end {
                return Err(Timeout);
            }
            cpu::sleep_us(period_us);
        }
        mmio::barrier();
        Ok(())
    }

    /// A DMA from start to end, without an interrupt. One that a guest before this one started may still run: it
    /// is waited for, because the device ignores what is asked of it meanwhile.
    ///
    /// # Errors
    /// It does not end, or the one before does not.
    pub fn transfer(
        self,
        direction: Direction,
        address: u64,
        offset: u64,
        bytes: u64,
    ) -> Result<(), Timeout> {
        if self.is_busy() {
            self.wait()?;
        }
        self.start(direction, address, offset, bytes, AtTheEnd::Silence);
        // Nothing can be seen before.
        cpu::sleep_us(DMA_US);
        self.wait()
    }
}
