//! Functions that exist only in a guest's view: the host bridge and root ports.

use alloc::boxed::Box;

use crate::function::{BridgeBuses, BridgeWindow};
use crate::regs;

use super::function::{Siblings, Width};
use super::paint::{Cell, Cells};

/// Where the PCI Express capability of a port is.
const EXPRESS: u16 = 0x40;

/// Registers without a device behind them.
#[derive(Clone, Debug)]
pub(crate) struct Synthetic {
    cells: Box<Cells>,
}

impl Synthetic {
    fn new(vendor: u16, device: u16, class: u32, header: u8) -> Self {
        let mut new = Self {
            cells: Box::new([Cell::default(); 256]),
        };
        new.put(regs::VENDOR, u32::from(device) << 16 | u32::from(vendor), 0);
        new.put(regs::REVISION, class << 8, 0);
        new.put(regs::COMMAND, 0, 0x0546);
        new.put(regs::HEADER_TYPE & !3, u32::from(header) << 16, 0xff);
        new
    }

    /// The host bridge: a function without BARs, for software that looks for one.
    pub(crate) fn host_bridge() -> Self {
        Self::new(0x1b36, 0x0008, 0x06_0000, 0)
    }

    /// A root port with these buses below it, for good.
    pub(crate) fn root_port(siblings: Siblings, bus: u8, buses: BridgeBuses) -> Self {
        let several = match siblings {
            Siblings::Several => regs::HEADER_MULTIFUNCTION,
            Siblings::None => 0,
        };
        let mut port = Self::new(0x1b36, 0x000c, 0x06_0400, 1 | several);
        let numbers = [bus, buses.secondary, buses.subordinate, 0];
        port.put(regs::BUS_NUMBERS, u32::from_le_bytes(numbers), 0);
        // No I/O window. Memory windows start closed: base above limit.
        port.put(regs::MEMORY_BASE, 0x0000_fff0, 0xfff0_fff0);
        port.put(regs::PREFETCH_BASE, 0x0001_fff1, 0xfff0_fff0);
        port.put(regs::PREFETCH_BASE_UPPER, 0, u32::MAX);
        port.put(regs::PREFETCH_LIMIT_UPPER, 0, u32::MAX);
        port.put(regs::BRIDGE_CONTROL & !3, 0, 0x0043_00ff);
        let [pointer, _] = EXPRESS.to_le_bytes();
        port.put(regs::CAPABILITIES, pointer.into(), 0);
        let command = port.word(regs::COMMAND);
        let list = u32::from(regs::STATUS_CAPABILITIES) << 16;
        port.put(regs::COMMAND, command | list, 0x0546);
        // Version 2, root port, no slot; role-based errors; a link of one lane at 2.5 GT/s, up.
        port.put(EXPRESS, 0x0042_0010, 0);
        port.put(EXPRESS.saturating_add(0x04), 0x0000_8000, 0);
        port.put(EXPRESS.saturating_add(0x0c), 0x0000_0011, 0);
        port.put(EXPRESS.saturating_add(0x10), 0x2011_0000, 0);
        port
    }

    /// Sets 32 bits and which of them can be written.
    fn put(&mut self, at: u16, value: u32, writable: u32) {
        let cells = self.cells.iter_mut().skip(usize::from(at));
        let bytes = value.to_le_bytes().into_iter().zip(writable.to_le_bytes());
        for (cell, (value, writable)) in cells.zip(bytes) {
            cell.value = value;
            cell.writable = writable;
        }
    }

    fn word(&self, at: u16) -> u32 {
        self.read(at, Width::Word)
    }

    fn half(&self, at: u16) -> u16 {
        let [a, b, ..] = self.read(at, Width::Half).to_le_bytes();
        u16::from_le_bytes([a, b])
    }

    /// What the guest reads at an aligned offset.
    pub(crate) fn read(&self, offset: u16, width: Width) -> u32 {
        let mut bytes = [0; 4];
        let cells = self.cells.iter().skip(usize::from(offset));
        let inside = bytes.iter_mut().take(usize::from(width.bytes()));
        for (byte, cell) in inside.zip(cells) {
            *byte = cell.value;
        }
        u32::from_le_bytes(bytes)
    }

    /// Takes a guest's write at an aligned offset.
    pub(crate) fn write(&mut self, offset: u16, width: Width, value: u32) {
        let cells = self.cells.iter_mut().skip(usize::from(offset));
        let bytes = value.to_le_bytes().into_iter();
        for (cell, byte) in cells.zip(bytes).take(usize::from(width.bytes())) {
            cell.value = cell.value & !cell.writable | byte & cell.writable;
        }
    }

    /// Whether the guest holds what is below in reset.
    pub(crate) fn in_reset(&self) -> bool {
        self.half(regs::BRIDGE_CONTROL) & regs::BRIDGE_RESET != 0
    }

    /// Whether requests from below go up.
    pub(crate) fn mastering(&self) -> bool {
        self.half(regs::COMMAND) & regs::COMMAND_MASTER != 0
    }

    /// The memory windows that are open and decoded.
    pub(crate) fn windows(&self) -> [Option<BridgeWindow>; 2] {
        if self.half(regs::COMMAND) & regs::COMMAND_MEMORY == 0 {
            return [None; 2];
        }
        let limits = |at: u16| {
            let word = self.word(at);
            let base = u64::from(word & 0xfff0) << 16;
            (base, u64::from(word & 0xfff0_0000) | 0xf_ffff)
        };
        let open = |(first, last)| (first <= last).then_some(BridgeWindow { first, last });
        let (base, limit) = limits(regs::PREFETCH_BASE);
        let upper = |at: u16| u64::from(self.word(at)) << 32;
        let prefetchable = (
            base | upper(regs::PREFETCH_BASE_UPPER),
            limit | upper(regs::PREFETCH_LIMIT_UPPER),
        );
        [open(limits(regs::MEMORY_BASE)), open(prefetchable)]
    }
}
