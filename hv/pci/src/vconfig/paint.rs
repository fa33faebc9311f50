//! Makes the filter of one function out of the table and the device's own values.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::capability::{CapabilityId, Msi, PortType};
use crate::config::ConfigSpace;
use crate::function::{Bar, Function, Header};
use crate::probe::bar_offset;
use crate::regs;

use super::function::{Pin, Seat, Siblings, Upstream};
use super::table::{Row, Structure};

/// Why a function cannot be given to a guest at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Only endpoints are given to guests.
    #[error("{0} is not an endpoint")]
    NotAnEndpoint(types::Bdf),
}

/// One byte of the filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    /// The copy.
    pub(crate) value: u8,
    /// Bits read from the device.
    pub(crate) live: u8,
    /// Bits of the copy that the guest can write.
    pub(crate) writable: u8,
    /// Bits whose ones go to the device.
    pub(crate) cleared: u8,
    /// Whether a structure has it.
    used: bool,
}

/// The first 256 bytes; the others are hidden.
pub(crate) type Cells = [Cell; 256];

/// Where the structures a guest sees are, and its BARs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) power: Option<u16>,
    pub(crate) msi: Option<Msi>,
    pub(crate) msix: Option<u16>,
    pub(crate) express: Option<u16>,
    pub(crate) advanced: Option<u16>,
    /// The BARs that are shown, with the size that is shown.
    pub(crate) bars: Vec<Bar>,
}

/// Builds the filter.
pub(crate) struct Painter<'a> {
    space: &'a dyn ConfigSpace,
    physical: &'a Function,
    cells: Box<Cells>,
    shape: Shape,
}

impl<'a> Painter<'a> {
    pub(crate) fn paint(
        space: &'a dyn ConfigSpace,
        physical: &'a Function,
        seat: Seat,
    ) -> Result<(Box<Cells>, Shape), Refusal> {
        if physical.header != Header::Endpoint {
            return Err(Refusal::NotAnEndpoint(physical.bdf));
        }
        let mut painter = Self {
            space,
            physical,
            cells: Box::new([Cell::default(); 256]),
            shape: Shape::default(),
        };
        painter.header(seat);
        painter.capabilities(seat);
        Ok((painter.cells, painter.shape))
    }

    fn device(&self, at: u16) -> u8 {
        self.space.read8(self.physical.bdf, at)
    }

    fn cell(&mut self, at: u16) -> Option<&mut Cell> {
        self.cells.get_mut(usize::from(at))
    }

    /// Sets a byte of the copy.
    fn set(&mut self, at: u16, value: u8) {
        if let Some(cell) = self.cell(at) {
            cell.value = value;
        }
    }

    /// Paints one field at an absolute offset.
    fn field(&mut self, row: &Row, at: u16, bytes: u16) {
        for offset in 0..bytes {
            let at = at.saturating_add(offset);
            let byte = |mask: u32| {
                let [a, b, c, d] = mask.to_le_bytes();
                match offset & 3 {
                    0 => a,
                    1 => b,
                    2 => c,
                    _ => d,
                }
            };
            let value = match byte(row.copied) {
                0 => 0,
                mask => self.device(at) & mask,
            };
            if let Some(cell) = self.cell(at) {
                *cell = Cell {
                    value,
                    live: byte(row.live),
                    writable: byte(row.writable),
                    cleared: byte(row.cleared),
                    used: true,
                };
            }
        }
    }

    fn header(&mut self, seat: Seat) {
        for row in Row::of(Structure::Header) {
            self.field(row, row.offset, row.bytes);
        }
        let several = seat.siblings == Siblings::Several;
        self.set(
            regs::HEADER_TYPE,
            if several {
                regs::HEADER_MULTIFUNCTION
            } else {
                0
            },
        );
        self.set(
            regs::INTERRUPT_PIN,
            match seat.pin {
                Pin::Shown => self.physical.interrupt_pin.unwrap_or(0),
                Pin::Hidden => 0,
            },
        );
        for bar in &self.physical.bars {
            if bar.place.is_some() && !bar.kind.is_io() {
                // At least a page: that is what can be mapped.
                let size = bar.size.max(seat.page.bytes());
                self.bar(Bar { size, ..*bar });
            }
        }
    }

    fn bar(&mut self, bar: Bar) {
        let mask = bar.size.wrapping_neg() & !0xf;
        let bytes = if bar.kind.is_64_bit() { 8 } else { 4 };
        let first = bar_offset(bar.index);
        for (at, writable) in (first..).zip(mask.to_le_bytes()).take(bytes) {
            if let Some(cell) = self.cell(at) {
                cell.writable = writable;
            }
        }
        let mut flags = 0;
        if bar.kind.is_64_bit() {
            flags |= regs::BAR_TYPE_64;
        }
        if bar.kind.is_prefetchable() {
            flags |= regs::BAR_PREFETCHABLE;
        }
        self.set(first, flags.to_le_bytes()[0]);
        self.shape.bars.push(bar);
    }

    /// Shows the capabilities that can be shown and links them.
    fn capabilities(&mut self, seat: Seat) {
        let mut link = regs::CAPABILITIES;
        for capability in &self.physical.capabilities.list {
            let CapabilityId::Standard(id) = capability.id else {
                continue;
            };
            let mut known = Structure::CAPABILITIES.into_iter();
            let Some(structure) = known.find(|structure| structure.id() == Some(id)) else {
                continue;
            };
            let at = capability.offset;
            let Some(bytes) = self.length(structure, at) else {
                continue;
            };
            // A structure that overlaps another is one the device lies about.
            let end = at.saturating_add(bytes);
            let free = self.cells.get(usize::from(at)..usize::from(end));
            if !free.is_some_and(|cells| cells.iter().all(|cell| !cell.used)) {
                continue;
            }
            self.capability(structure, at, bytes, seat);
            self.set(at, id);
            let [offset, _] = at.to_le_bytes();
            self.set(link, offset);
            link = at.saturating_add(1);
        }
        if link != regs::CAPABILITIES {
            let [low, _] = regs::STATUS_CAPABILITIES.to_le_bytes();
            self.set(regs::STATUS, low);
        }
    }

    /// Bytes of a structure at an offset; `None` when it is not shown. Of a kind that exists once,
    /// only the one that was decoded is.
    fn length(&self, structure: Structure, at: u16) -> Option<u16> {
        let capabilities = &self.physical.capabilities;
        match structure {
            Structure::Power => (capabilities.power == Some(at)).then_some(8),
            Structure::Msi => {
                let msi = capabilities.msi.filter(|msi| msi.offset == at)?;
                // Whole dwords: the form without masks ends in the middle of one.
                Some(msi.bytes().next_multiple_of(4))
            }
            Structure::MsiX => capabilities
                .msix
                .filter(|msix| msix.offset == at && self.shows_msix())
                .map(|_| 12),
            Structure::Express => {
                let express = capabilities.express.filter(|e| e.offset == at)?;
                Some(if express.version >= 2 { 0x3c } else { 0x14 })
            }
            Structure::Advanced => capabilities.advanced.filter(|a| a.offset == at).map(|_| 6),
            Structure::Vendor => {
                let length = u16::from(self.device(at.saturating_add(2)));
                (length >= 3).then_some(length)
            }
            Structure::Header | Structure::Extended => None,
        }
    }

    /// MSI-X is of no use when the BAR with the table is not shown.
    fn shows_msix(&self) -> bool {
        let shown = |index: u8| self.shape.bars.iter().any(|bar| bar.index == index);
        let msix = self.physical.capabilities.msix;
        msix.is_some_and(|msix| shown(msix.table.bar) && shown(msix.pending.bar))
    }

    fn capability(&mut self, structure: Structure, at: u16, bytes: u16, seat: Seat) {
        for offset in 0..bytes {
            if let Some(cell) = self.cell(at.saturating_add(offset)) {
                cell.used = true;
            }
        }
        let link_shown = seat.upstream == Upstream::Port;
        for row in Row::of(structure) {
            let offset = match (structure, self.physical.capabilities.msi) {
                (Structure::Msi, Some(msi)) => msi_offset(row.offset, msi),
                (Structure::Express, _) if matches!(row.offset, 0xc | 0x12) && !link_shown => None,
                _ => Some(row.offset),
            };
            let Some(offset) = offset.filter(|&offset| offset < bytes) else {
                continue;
            };
            let inside = bytes.saturating_sub(offset).min(row.bytes);
            self.field(row, at.saturating_add(offset), inside);
        }
        match structure {
            Structure::Power => {
                self.shape.power = Some(at);
                self.set(at.saturating_add(4), NO_SOFT_RESET);
            }
            Structure::Msi => self.msi(at),
            Structure::MsiX => self.shape.msix = Some(at),
            Structure::Express => {
                self.shape.express = Some(at);
                self.port_type(at.saturating_add(2), seat);
            }
            Structure::Advanced => self.shape.advanced = Some(at),
            _ => {}
        }
    }

    /// One mask bit for each vector, not more.
    fn msi(&mut self, at: u16) {
        self.shape.msi = self.physical.capabilities.msi;
        let Some(msi) = self.shape.msi.filter(|msi| msi.maskable) else {
            return;
        };
        let all = 1_u64.wrapping_shl(msi.vectors.into()).wrapping_sub(1);
        let masks = at.saturating_add(if msi.wide { 0x10 } else { 0xc });
        for (at, bits) in (masks..).zip(all.to_le_bytes()).take(4) {
            if let Some(cell) = self.cell(at) {
                cell.writable = bits;
            }
        }
    }

    /// What sits on a root bus is part of the root complex; what sits below a port is not.
    fn port_type(&mut self, at: u16, seat: Seat) {
        let physical = self.physical.capabilities.express.map(|e| e.port);
        let code = match (seat.upstream, physical) {
            (Upstream::RootBus, _) => 9,
            (Upstream::Port, Some(PortType::LegacyEndpoint)) => 1,
            (Upstream::Port, _) => 0,
        };
        if let Some(cell) = self.cell(at) {
            cell.value = cell.value & 0xf | code << 4;
        }
    }
}

/// Bit 3 of the power management status: the copy survives D3hot.
const NO_SOFT_RESET: u8 = 1 << 3;

/// Where a field of the largest form of MSI is in the form a device has.
pub(crate) fn msi_offset(offset: u16, msi: Msi) -> Option<u16> {
    let shift = if msi.wide { 0 } else { 4 };
    match offset {
        0x8 => msi.wide.then_some(offset),
        0xc | 0xe => offset.checked_sub(shift),
        0x10 | 0x14 => offset.checked_sub(shift).filter(|_| msi.maskable),
        _ => Some(offset),
    }
}
