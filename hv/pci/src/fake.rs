//! A PCI hierarchy in memory: [`FakePci`] with [`FakeFunction`]s, for tests on the build host.
//!
//! Registers have write masks, BARs answer sizing as hardware does, and bridges route by the bus
//! numbers written to them. Lies are made on purpose: masks that hold nothing, lists that loop,
//! a bridge that shows itself below itself.
#![cfg_attr(
    not(test),
    expect(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "a test double: a wrong test should stop at once"
    )
)]

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use types::Bdf;

use crate::capability::PortType;
use crate::config::{ConfigSpace, Extent};
use crate::function::BarKind;
use crate::regs;

/// Where a function is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    /// On this root bus.
    Root(u8),
    /// On the bus below this bridge.
    Bridge(FakeId),
}

/// A function of a [`FakePci`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FakeId(usize);

/// The registers of one function: values, and which bits can be written.
#[derive(Clone, Debug)]
pub struct FakeFunction {
    bytes: Vec<u8>,
    mask: Vec<u8>,
    next_capability: usize,
    last_capability: usize,
    next_extended: usize,
    last_extended: usize,
    /// Where ones reset the function: byte and bits.
    reset_at: Vec<(usize, u8)>,
}

impl FakeFunction {
    fn with_header(vendor: u16, device: u16, class: u32, header: u8) -> Self {
        let mut function = Self {
            bytes: vec![0; 4096],
            mask: vec![0; 4096],
            next_capability: 0x40,
            last_capability: usize::from(regs::CAPABILITIES),
            next_extended: 0x100,
            last_extended: 0,
            reset_at: Vec::new(),
        };
        let id = u32::from(device) << 16 | u32::from(vendor);
        function.set(0, id, 0);
        function.set(8, class << 8, 0);
        function.set(4, 0, 0x0547);
        function.bytes[usize::from(regs::HEADER_TYPE)] = header;
        function
    }

    /// An endpoint of this class (24 bits).
    #[must_use]
    pub fn endpoint(vendor: u16, device: u16, class: u32) -> Self {
        Self::with_header(vendor, device, class, 0)
    }

    /// A conventional PCI-to-PCI bridge with all windows, the prefetchable one of 64 bits.
    #[must_use]
    pub fn bridge(vendor: u16, device: u16) -> Self {
        let mut bridge = Self::with_header(vendor, device, 0x06_0400, 1);
        bridge.set(usize::from(regs::BUS_NUMBERS), 0, u32::MAX);
        bridge.set(usize::from(regs::IO_BASE), 0x0101, 0xf0f0);
        bridge.set(usize::from(regs::MEMORY_BASE), 0, 0xfff0_fff0);
        bridge.set(usize::from(regs::PREFETCH_BASE), 0x0001_0001, 0xfff0_fff0);
        bridge.set(usize::from(regs::PREFETCH_BASE_UPPER), 0, u32::MAX);
        bridge.set(usize::from(regs::PREFETCH_LIMIT_UPPER), 0, u32::MAX);
        bridge.set(usize::from(regs::IO_UPPER), 0, u32::MAX);
        bridge.set(0x3c, 0, 0x0043_0000);
        bridge
    }

    /// A PCI Express root port with access control services, as QEMU's `pcie-root-port`.
    #[must_use]
    pub fn root_port() -> Self {
        Self::bridge(0x1b36, 0x000c)
            .express(PortType::RootPort)
            .acs(0x5f)
    }

    /// The upstream port of a switch, as QEMU's `x3130-upstream`.
    #[must_use]
    pub fn upstream() -> Self {
        Self::bridge(0x104c, 0x8232).express(PortType::Upstream)
    }

    /// A downstream port without access control services, as QEMU's `xio3130-downstream`.
    #[must_use]
    pub fn downstream() -> Self {
        Self::bridge(0x104c, 0x8233).express(PortType::Downstream)
    }

    /// A conventional device with a DMA engine, as QEMU's `edu`.
    #[must_use]
    pub fn edu() -> Self {
        Self::endpoint(0x1234, 0x11e8, 0x00_ff00)
            .bar(0, BarKind::Memory32, 1 << 20)
            .msi(0, 0x80)
    }

    /// An NVMe controller, as QEMU's `nvme`.
    #[must_use]
    pub fn nvme() -> Self {
        Self::endpoint(0x1b36, 0x0010, 0x01_0802)
            .bar(0, BarKind::Memory64, 16 << 10)
            .msix(65, (0, 0x2000), (0, 0x3000))
            .express(PortType::IntegratedEndpoint)
            .function_level_reset()
    }

    /// Sets 32 bits and which of them can be written.
    pub fn set(&mut self, at: usize, value: u32, mask: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        self.mask[at..at + 4].copy_from_slice(&mask.to_le_bytes());
    }

    /// The registers.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// As [`FakeFunction::set`], while building.
    #[must_use]
    pub fn with(mut self, at: usize, value: u32, mask: u32) -> Self {
        self.set(at, value, mask);
        self
    }

    /// Adds a BAR of `size` bytes, a power of two.
    #[must_use]
    pub fn bar(mut self, index: u8, kind: BarKind, size: u64) -> Self {
        let at = 0x10 + 4 * usize::from(index);
        let mask = !(size - 1);
        let low = u32::try_from(mask & u64::from(u32::MAX)).unwrap();
        let high = u32::try_from(mask >> 32).unwrap();
        let flags = match kind {
            BarKind::Io => 1,
            BarKind::Memory32 => 0,
            BarKind::Prefetchable32 => 8,
            BarKind::Memory64 => 4,
            BarKind::Prefetchable64 => 12,
        };
        self.set(at, flags, low);
        if kind.is_64_bit() {
            self.set(at + 4, 0, high);
        }
        self
    }

    /// Writes a BAR's address, as firmware would have.
    #[must_use]
    pub fn assigned(mut self, index: u8, address: u64) -> Self {
        let at = 0x10 + 4 * usize::from(index);
        let flags = self.bytes[at] & 0xf;
        for (i, byte) in address.to_le_bytes().into_iter().enumerate() {
            if i < 4 || flags & 7 == 4 {
                self.bytes[at + i] = byte & self.mask[at + i];
            }
        }
        self.bytes[at] |= flags;
        self
    }

    /// Adds an expansion ROM of `size` bytes to an endpoint.
    #[must_use]
    pub fn rom(self, size: u32) -> Self {
        self.with(0x30, 0, !(size - 1) | 1)
    }

    /// Sets bits of the command register.
    #[must_use]
    pub fn command(mut self, bits: u16) -> Self {
        self.bytes[4..6].copy_from_slice(&bits.to_le_bytes());
        self
    }

    /// Marks the device as having several functions.
    #[must_use]
    pub fn multifunction(mut self) -> Self {
        self.bytes[usize::from(regs::HEADER_TYPE)] |= 0x80;
        self
    }

    /// Bus numbers of a bridge, as firmware would have written them.
    #[must_use]
    pub fn numbers(mut self, primary: u8, secondary: u8, subordinate: u8) -> Self {
        self.bytes[0x18..0x1b].copy_from_slice(&[primary, secondary, subordinate]);
        self
    }

    /// Appends a standard capability of `bytes` bytes, header included; gives its offset.
    pub fn add_capability(&mut self, id: u8, bytes: usize) -> usize {
        let at = self.next_capability;
        self.bytes[at] = id;
        self.bytes[self.last_capability] = u8::try_from(at).unwrap();
        self.bytes[usize::from(regs::STATUS)] |= 0x10;
        self.last_capability = at + 1;
        self.next_capability = (at + bytes).next_multiple_of(4);
        at
    }

    /// Appends an extended capability of `bytes` bytes, header included; gives its offset.
    pub fn add_extended(&mut self, id: u16, bytes: usize) -> usize {
        let at = self.next_extended;
        self.set(at, u32::from(id) | 1 << 16, 0);
        if self.last_extended != 0 {
            let next = u32::try_from(at).unwrap() << 20;
            let last = self.last_extended;
            let header = u32::from_le_bytes(self.bytes[last..last + 4].try_into().unwrap());
            self.set(last, header & 0xf_ffff | next, 0);
        }
        self.last_extended = at;
        self.next_extended = (at + bytes).next_multiple_of(4);
        at
    }

    /// Makes the last standard capability point to `at`.
    #[must_use]
    pub fn loop_to(mut self, at: u8) -> Self {
        self.bytes[self.last_capability] = at;
        self
    }

    /// Adds the PCI Express capability.
    #[must_use]
    pub fn express(mut self, port: PortType) -> Self {
        let at = self.add_capability(0x10, 60);
        let code: u8 = match port {
            PortType::Endpoint => 0,
            PortType::LegacyEndpoint => 1,
            PortType::RootPort => 4,
            PortType::Upstream => 5,
            PortType::Downstream => 6,
            PortType::ToConventional => 7,
            PortType::FromConventional => 8,
            PortType::IntegratedEndpoint => 9,
            PortType::EventCollector => 10,
            PortType::Unknown(code) => code,
        };
        self.bytes[at + 2] = 2 | code << 4;
        self
    }

    /// Adds function-level reset to the PCI Express capability, which must be the last one added.
    #[must_use]
    pub fn function_level_reset(mut self) -> Self {
        let at = self.last_capability - 1;
        self.bytes[at + 7] |= 0x10;
        self.reset_at.push((at + 9, 0x80));
        self
    }

    /// Adds MSI with `1 << log2` vectors; `flags` are bits 7 (64-bit) and up of the control
    /// register's low half, and bit 8 (maskable) as bit 0 of the next byte.
    #[must_use]
    pub fn msi(mut self, log2: u8, flags: u16) -> Self {
        let at = self.add_capability(5, 24);
        let control = flags | u16::from(log2) << 1;
        self.bytes[at + 2..at + 4].copy_from_slice(&control.to_le_bytes());
        self.mask[at + 2..at + 4].copy_from_slice(&0x0071_u16.to_le_bytes());
        self.mask[at + 4..at + 24].fill(0xff);
        self
    }

    /// Adds MSI-X with `vectors` entries; table and pending bits as (BAR, offset).
    #[must_use]
    pub fn msix(mut self, vectors: u16, table: (u8, u32), pending: (u8, u32)) -> Self {
        let at = self.add_capability(0x11, 12);
        let control = vectors - 1;
        self.bytes[at + 2..at + 4].copy_from_slice(&control.to_le_bytes());
        self.mask[at + 3] = 0xc0;
        self.set(at + 4, table.1 | u32::from(table.0), 0);
        self.set(at + 8, pending.1 | u32::from(pending.0), 0);
        self
    }

    /// Adds access control services with these capability bits, all switched off.
    #[must_use]
    pub fn acs(mut self, capability: u16) -> Self {
        let at = self.add_extended(0x000d, 8);
        let bits = u32::from(capability);
        self.set(at + 4, bits, bits << 16);
        self
    }

    /// Adds access control services with these capability bits, and these switched on, as firmware
    /// leaves them.
    #[must_use]
    pub fn acs_on(mut self, capability: u16, control: u16) -> Self {
        let at = self.add_extended(0x000d, 8);
        let (bits, on) = (u32::from(capability), u32::from(control));
        self.set(at + 4, bits | on << 16, bits << 16);
        self
    }
}

/// A function placed in the hierarchy.
#[derive(Debug)]
struct Placed {
    bytes: RefCell<Vec<u8>>,
    mask: Vec<u8>,
    fresh: Vec<u8>,
    reset_at: Vec<(usize, u8)>,
    resets: Cell<usize>,
    /// Reads until it answers again.
    away: Cell<usize>,
    /// What is on the bus below: by device and function number.
    below: RefCell<BTreeMap<u8, FakeId>>,
}

/// A host bridge with functions below it.
#[derive(Debug)]
pub struct FakePci {
    extent: Extent,
    functions: Vec<Placed>,
    roots: BTreeMap<u8, BTreeMap<u8, FakeId>>,
    accesses: Cell<usize>,
    mastered: Cell<bool>,
    writes: RefCell<Vec<FakeWrite>>,
    reset_reads: Cell<usize>,
}

/// A write that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeWrite {
    /// To which function.
    pub bdf: Bdf,
    /// To which register.
    pub offset: u16,
    /// Bytes.
    pub width: usize,
    /// What.
    pub value: u32,
}

impl Default for FakePci {
    fn default() -> Self {
        Self::new()
    }
}

impl FakePci {
    /// A host bridge with 4 KiB of configuration space a function and nothing below it.
    #[must_use]
    pub fn new() -> Self {
        Self {
            extent: Extent::Extended,
            functions: Vec::new(),
            roots: BTreeMap::new(),
            accesses: Cell::new(0),
            mastered: Cell::new(false),
            writes: RefCell::default(),
            reset_reads: Cell::new(0),
        }
    }

    /// Narrows configuration space.
    pub fn set_extent(&mut self, extent: Extent) {
        self.extent = extent;
    }

    /// Puts a function somewhere.
    pub fn add(&mut self, below: Below, device: u8, number: u8, function: FakeFunction) -> FakeId {
        let id = FakeId(self.functions.len());
        self.functions.push(Placed {
            fresh: function.bytes.clone(),
            bytes: RefCell::new(function.bytes),
            mask: function.mask,
            reset_at: function.reset_at,
            resets: Cell::new(0),
            away: Cell::new(0),
            below: RefCell::default(),
        });
        self.connect(below, device, number, id);
        id
    }

    /// Shows a function that exists in one more place.
    pub fn connect(&mut self, below: Below, device: u8, number: u8, id: FakeId) {
        let place = device << 3 | number;
        match below {
            Below::Root(bus) => {
                self.roots.entry(bus).or_default().insert(place, id);
            }
            Below::Bridge(bridge) => {
                let below = &self.functions[bridge.0].below;
                below.borrow_mut().insert(place, id);
            }
        }
    }

    /// Accesses since the last call.
    pub fn take_accesses(&self) -> usize {
        self.accesses.take()
    }

    /// How often a function was reset.
    #[must_use]
    pub fn resets(&self, id: FakeId) -> usize {
        self.functions[id.0].resets.get()
    }

    /// How many reads a function does not answer after a reset from now on.
    pub fn set_reset_reads(&self, reads: usize) {
        self.reset_reads.set(reads);
    }

    fn reset(&self, id: FakeId) {
        let function = &self.functions[id.0];
        function.bytes.borrow_mut().clone_from(&function.fresh);
        function.resets.set(function.resets.get() + 1);
        function.away.set(self.reset_reads.get());
        let below: Vec<FakeId> = function.below.borrow().values().copied().collect();
        for id in below {
            self.reset(id);
        }
    }

    /// Writes since the last call.
    pub fn take_writes(&self) -> Vec<FakeWrite> {
        self.writes.take()
    }

    /// Whether any write has switched bus mastering on.
    #[must_use]
    pub fn ever_mastered(&self) -> bool {
        self.mastered.get()
    }

    /// 32 bits of a function, however it is reached.
    #[must_use]
    pub fn register(&self, id: FakeId, at: usize) -> u32 {
        let bytes = self.functions[id.0].bytes.borrow();
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    /// The function a bus access reaches.
    #[must_use]
    pub fn route(&self, bdf: Bdf) -> Option<FakeId> {
        let place = bdf.bits().to_le_bytes()[0];
        if let Some(root) = self.roots.get(&bdf.bus()) {
            return root.get(&place).copied();
        }
        // Bridges above the bus, from a root downwards. Depth is bounded: a bridge may be below
        // itself.
        let mut on_bus: Vec<FakeId> = self
            .roots
            .range(..bdf.bus())
            .next_back()?
            .1
            .values()
            .copied()
            .collect();
        for _ in 0..256 {
            let (bridge, secondary) = on_bus.iter().find_map(|&id| {
                let bytes = self.functions[id.0].bytes.borrow();
                let [secondary, subordinate] = [bytes[0x19], bytes[0x1a]];
                let is_bridge = bytes[0x0e] & 0x7f == 1;
                let held = bytes[0x3e] & 0x40 != 0;
                let there = !held && (secondary..=subordinate).contains(&bdf.bus());
                (is_bridge && secondary != 0 && there).then_some((id, secondary))
            })?;
            let below = self.functions[bridge.0].below.borrow();
            if secondary == bdf.bus() {
                return below.get(&place).copied();
            }
            let next = below.values().copied().collect();
            drop(below);
            on_bus = next;
        }
        None
    }

    fn get(&self, bdf: Bdf, offset: u16, width: usize) -> u32 {
        self.accesses.set(self.accesses.get() + 1);
        let at = usize::from(offset);
        assert_eq!(at % width, 0, "misaligned access at {offset:#x}");
        let id = self.route(bdf).filter(|_| offset < self.extent.bytes());
        let Some(id) = id else { return u32::MAX };
        let away = &self.functions[id.0].away;
        if away.get() != 0 {
            away.set(away.get() - 1);
            return u32::MAX;
        }
        let bytes = self.functions[id.0].bytes.borrow();
        (0..width).fold(0, |v, i| v | u32::from(bytes[at + i]) << (8 * i))
    }

    fn put(&self, bdf: Bdf, offset: u16, width: usize, value: u32) {
        self.accesses.set(self.accesses.get() + 1);
        self.writes.borrow_mut().push(FakeWrite {
            bdf,
            offset,
            width,
            value,
        });
        let at = usize::from(offset);
        assert_eq!(at % width, 0, "misaligned access at {offset:#x}");
        let id = self.route(bdf).filter(|_| offset < self.extent.bytes());
        let Some(id) = id else { return };
        let function = &self.functions[id.0];
        if function.away.get() != 0 {
            return;
        }
        let sets = |at_byte: usize, bits: u8| {
            let written = at_byte.checked_sub(at).filter(|&i| i < width);
            written.is_some_and(|i| value.to_le_bytes()[i] & bits != 0)
        };
        if function
            .reset_at
            .iter()
            .any(|&(byte, bits)| sets(byte, bits))
        {
            return self.reset(id);
        }
        let mut bytes = function.bytes.borrow_mut();
        let bridge = bytes[0x0e] & 0x7f == 1;
        if bridge && sets(0x3e, 0x40) && bytes[0x3e] & 0x40 == 0 {
            let below: Vec<FakeId> = function.below.borrow().values().copied().collect();
            below.into_iter().for_each(|id| self.reset(id));
        }
        for i in 0..width {
            let new = value.to_le_bytes()[i];
            let mask = function.mask[at + i];
            bytes[at + i] = bytes[at + i] & !mask | new & mask;
        }
        if offset <= 4 && at + width > 4 && value & 4 != 0 {
            self.mastered.set(true);
        }
    }
}

impl ConfigSpace for FakePci {
    fn extent(&self) -> Extent {
        self.extent
    }
    fn read8(&self, bdf: Bdf, offset: u16) -> u8 {
        self.get(bdf, offset, 1).to_le_bytes()[0]
    }
    fn read16(&self, bdf: Bdf, offset: u16) -> u16 {
        let [a, b, ..] = self.get(bdf, offset, 2).to_le_bytes();
        u16::from_le_bytes([a, b])
    }
    fn read32(&self, bdf: Bdf, offset: u16) -> u32 {
        self.get(bdf, offset, 4)
    }
    fn write8(&self, bdf: Bdf, offset: u16, value: u8) {
        self.put(bdf, offset, 1, value.into());
    }
    fn write16(&self, bdf: Bdf, offset: u16, value: u16) {
        self.put(bdf, offset, 2, value.into());
    }
    fn write32(&self, bdf: Bdf, offset: u16, value: u32) {
        self.put(bdf, offset, 4, value);
    }
}
