//! One function as its guest sees it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use types::{Bdf, PageSize};

use crate::capability::{InBar, MsiX};
use crate::config::ConfigSpace;
use crate::function::{Bar, Function};
use crate::probe::bar_offset;
use crate::regs;

use super::effects::{Effects, MsiState, MsixState};
use super::paint::{Cell, Cells, Painter, Refusal, Shape};

/// Whether the guest's device has other functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Siblings {
    /// It has not.
    None,
    /// It has.
    Several,
}

/// What is above the function in the guest's hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// It sits on a root bus.
    RootBus,
    /// It sits below a port, with a link.
    Port,
}

/// Where the guest finds the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Other functions of the same device.
    pub siblings: Siblings,
    /// What is above.
    pub upstream: Upstream,
    /// The page by which BARs are mapped: none is shown smaller.
    pub page: PageSize,
    /// Whether it has an interrupt pin.
    pub pin: Pin,
}

/// Whether the guest sees the function's interrupt pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// As the device has it.
    Shown,
    /// It has none: nobody would bring its interrupts to the guest, who is left with messages.
    Hidden,
}

/// The width of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Half,
    /// 32 bits.
    Word,
}

impl Width {
    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u16 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
        }
    }
}

/// A function's configuration space as its guest sees it.
///
/// Accesses are judged by [`TABLE`](super::TABLE). No access can fail, and none takes more than a
/// handful of accesses to the device.
#[derive(Clone, Debug)]
pub struct VirtualFunction {
    physical: Bdf,
    cells: Box<Cells>,
    /// The copy as it was at first.
    fresh: Box<Cells>,
    shape: Shape,
    msix: Option<MsiX>,
}

/// What effects are told by.
#[derive(PartialEq, Eq)]
struct View {
    mapping: [Option<u64>; 6],
    mastering: bool,
    intx: bool,
    msi: Option<MsiState>,
    msix: Option<MsixState>,
}

impl VirtualFunction {
    /// The guest's view of a function that was enumerated and placed. Values are copied from the
    /// device now.
    ///
    /// # Errors
    /// [`Refusal::NotAnEndpoint`].
    pub fn new(space: &dyn ConfigSpace, physical: &Function, seat: Seat) -> Result<Self, Refusal> {
        let (cells, shape) = Painter::paint(space, physical, seat)?;
        let msix = physical.capabilities.msix;
        Ok(Self {
            physical: physical.bdf,
            fresh: cells.clone(),
            cells,
            msix: msix.filter(|_| shape.msix.is_some()),
            shape,
        })
    }

    /// The device behind it.
    #[must_use]
    pub fn physical(&self) -> Bdf {
        self.physical
    }

    /// Back to the state in which the guest got it: no BAR assigned, nothing enabled.
    pub fn reset(&mut self) {
        self.cells.clone_from(&self.fresh);
    }

    /// What the guest reads. Accesses that are not aligned to their width, and those beyond 4 KiB,
    /// read as all ones.
    #[must_use]
    pub fn read(&self, space: &dyn ConfigSpace, offset: u16, width: Width) -> u32 {
        if !is_access(offset, width) {
            return u32::MAX;
        }
        let mut bytes = [0; 4];
        let cells = self.span(offset, width);
        let live = cells.iter().any(|cell| cell.live != 0);
        // The dword around the access holds all of it.
        let device = if live {
            let dword = space.read32(self.physical, offset & !3);
            dword.checked_shr(u32::from(offset & 3) << 3).unwrap_or(0)
        } else {
            0
        };
        for ((byte, cell), device) in bytes.iter_mut().zip(cells).zip(device.to_le_bytes()) {
            *byte = cell.value & !cell.live | device & cell.live;
        }
        u32::from_le_bytes(bytes)
    }

    /// Takes a guest's write, and says what it asks for. Accesses that are not aligned to their
    /// width, and those beyond 4 KiB, do nothing.
    pub fn write(
        &mut self,
        space: &dyn ConfigSpace,
        offset: u16,
        width: Width,
        value: u32,
    ) -> Effects {
        if !is_access(offset, width) {
            return Effects::empty();
        }
        let bytes = value.to_le_bytes();
        let cells = self.span(offset, width).iter().zip(bytes);
        let clear = bytes_of(cells.clone().map(|(cell, byte)| byte & cell.cleared));
        let changes = |(cell, byte): (&Cell, u8)| (cell.value ^ byte) & cell.writable != 0;
        let changes = cells.clone().any(changes);
        self.clear_in_device(space, offset, clear);
        let mut effects = Effects::empty();
        if changes {
            let before = self.view();
            self.store(offset, width, bytes);
            effects = before.changes(&self.view());
        }
        if self.asks_for_reset(offset, width, bytes) {
            effects |= Effects::RESET;
        }
        effects
    }

    /// Writes what can be written to the copy.
    fn store(&mut self, offset: u16, width: Width, bytes: [u8; 4]) {
        let cells = self.cells.iter_mut().skip(usize::from(offset));
        for (cell, byte) in cells.zip(bytes).take(usize::from(width.bytes())) {
            cell.value = cell.value & !cell.writable | byte & cell.writable;
        }
    }

    /// Writes ones to bits that they clear. Such bits only exist in 16-bit status registers.
    fn clear_in_device(&self, space: &dyn ConfigSpace, offset: u16, bits: [u8; 4]) {
        let [a, b, c, d] = bits;
        // An access of one byte may be the upper half of its register.
        let halves = if offset & 1 == 0 {
            [(offset, [a, b]), (offset | 2, [c, d])]
        } else {
            [(offset & !1, [0, a]), (offset, [0, 0])]
        };
        for (at, bits) in halves {
            let bits = u16::from_le_bytes(bits);
            if bits != 0 {
                space.write16(self.physical, at, bits);
            }
        }
    }

    /// Whether a write sets one of the bits that ask for a function-level reset, where the device
    /// has one.
    fn asks_for_reset(&self, offset: u16, width: Width, bytes: [u8; 4]) -> bool {
        let written = |at: u16| {
            let index = at.checked_sub(offset)?;
            let inside = index < width.bytes();
            bytes.get(usize::from(index)).copied().filter(|_| inside)
        };
        let set = |at: u16, bit: u8| written(at).is_some_and(|byte| byte & bit != 0);
        let has = |at: u16, bit: u8| self.byte(at) & bit != 0;
        let express = self.shape.express.is_some_and(|at| {
            has(at.saturating_add(7), 1 << 4) && set(at.saturating_add(9), 1 << 7)
        });
        let advanced = self.shape.advanced.is_some_and(|at| {
            has(at.saturating_add(3), 1 << 1) && set(at.saturating_add(4), 1 << 0)
        });
        express || advanced
    }

    fn span(&self, offset: u16, width: Width) -> &[Cell] {
        let first = usize::from(offset);
        let last = first.saturating_add(usize::from(width.bytes()));
        self.cells.get(first..last).unwrap_or_default()
    }

    /// A byte of the copy.
    fn byte(&self, at: u16) -> u8 {
        self.cells.get(usize::from(at)).map_or(0, |cell| cell.value)
    }

    /// 32 bits of the copy.
    fn word(&self, at: u16) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|i| self.byte(at.saturating_add(i))))
    }

    /// 16 bits of the copy.
    fn half(&self, at: u16) -> u16 {
        u16::from_le_bytes([0, 1].map(|i| self.byte(at.saturating_add(i))))
    }

    /// Whether the guest left the function in D0.
    fn is_awake(&self) -> bool {
        let state = self
            .shape
            .power
            .map(|at| self.byte(at.saturating_add(4)) & 3);
        state.is_none_or(|state| state == 0)
    }

    fn command(&self, bit: u16) -> bool {
        self.half(regs::COMMAND) & bit != 0
    }

    /// The BARs the guest sees, of the size it sees. Their places are the device's own.
    #[must_use]
    pub fn bars(&self) -> &[Bar] {
        &self.shape.bars
    }

    /// The guest's address of a BAR as it stands in the register, decoded or not.
    #[must_use]
    pub fn bar_address(&self, index: u8) -> Option<u64> {
        let bar = self.shape.bars.iter().find(|bar| bar.index == index)?;
        let at = bar_offset(index);
        let low = u64::from(self.word(at) & regs::BAR_MEMORY_MASK);
        let high = match bar.kind.is_64_bit() {
            true => u64::from(self.word(at.saturating_add(4))),
            false => 0,
        };
        Some(high << 32 | low)
    }

    /// Where the guest wants a BAR to appear: `None` while it does not decode memory. The address
    /// is aligned to the BAR's size as shown; whether it lies in a window is for the caller to
    /// judge.
    #[must_use]
    pub fn mapping(&self, index: u8) -> Option<u64> {
        let decodes = self.command(regs::COMMAND_MEMORY) && self.is_awake();
        self.bar_address(index).filter(|_| decodes)
    }

    /// Whether the guest lets the device master the bus.
    #[must_use]
    pub fn mastering(&self) -> bool {
        self.command(regs::COMMAND_MASTER) && self.is_awake()
    }

    /// The interrupt pin the guest sees, 1 (INTA) to 4.
    #[must_use]
    pub fn pin(&self) -> Option<u8> {
        Some(self.byte(regs::INTERRUPT_PIN)).filter(|&pin| pin != 0)
    }

    /// Whether the device may raise its interrupt pin.
    #[must_use]
    pub fn intx(&self) -> bool {
        self.pin().is_some() && !self.command(regs::COMMAND_INTX_OFF) && self.is_awake()
    }

    /// The MSI capability, if the guest has one.
    #[must_use]
    pub fn msi(&self) -> Option<MsiState> {
        let msi = self.shape.msi?;
        let at = |offset: u16| {
            let offset = super::paint::msi_offset(offset, msi)?;
            Some(msi.offset.saturating_add(offset))
        };
        let control = self.half(at(2)?);
        let asked = u32::from(control >> 4 & 7);
        let high = at(8).map_or(0, |at| u64::from(self.word(at)));
        Some(MsiState {
            enabled: control & 1 != 0 && self.mastering(),
            // A guest may write more than the device offers.
            vectors: 1_u8.checked_shl(asked).unwrap_or(u8::MAX).min(msi.vectors),
            address: high << 32 | u64::from(self.word(at(4)?)),
            data: self.half(at(0xc)?),
            masked: at(0x10).map_or(0, |at| self.word(at)),
        })
    }

    /// The MSI-X capability, if the guest has one.
    #[must_use]
    pub fn msix(&self) -> Option<MsixState> {
        let control = self.half(self.shape.msix?.saturating_add(2));
        Some(MsixState {
            enabled: control & 1 << 15 != 0 && self.mastering(),
            masked: control & 1 << 14 != 0,
        })
    }

    /// The parts of BARs that must not be mapped into the guest but trapped: the pages of the
    /// MSI-X table and pending bits. As (BAR, first byte, length), a page's multiples, at most two
    /// and without overlap.
    #[must_use]
    pub fn trapped(&self, page: PageSize) -> Vec<(u8, u64, u64)> {
        let Some(msix) = self.msix else {
            return Vec::new();
        };
        let pages = |place: InBar, bytes: u32| {
            let first = u64::from(place.offset) & !page.mask();
            let end = u64::from(place.offset).saturating_add(bytes.into());
            let end = end.saturating_add(page.mask()) & !page.mask();
            (place.bar, first, end)
        };
        let table = pages(msix.table, msix.table_bytes());
        let pending = pages(msix.pending, msix.pending_bytes());
        let touch = table.0 == pending.0 && table.1 <= pending.2 && pending.1 <= table.2;
        let spans = if touch {
            Vec::from([(table.0, table.1.min(pending.1), table.2.max(pending.2))])
        } else {
            Vec::from([table, pending])
        };
        let length = |(bar, first, end): (u8, u64, u64)| (bar, first, end.saturating_sub(first));
        spans.into_iter().map(length).collect()
    }

    fn view(&self) -> View {
        View {
            mapping: [0, 1, 2, 3, 4, 5].map(|index| self.mapping(index)),
            mastering: self.mastering(),
            intx: self.intx(),
            msi: self.msi(),
            msix: self.msix(),
        }
    }
}

impl View {
    fn changes(&self, after: &Self) -> Effects {
        let mut effects = Effects::empty();
        effects.set(Effects::MAPPING, self.mapping != after.mapping);
        effects.set(Effects::MASTERING, self.mastering != after.mastering);
        effects.set(Effects::INTX, self.intx != after.intx);
        effects.set(Effects::MSI, self.msi != after.msi);
        effects.set(Effects::MSIX, self.msix != after.msix);
        effects
    }
}

/// Up to four bytes, the rest zero.
fn bytes_of(from: impl Iterator<Item = u8>) -> [u8; 4] {
    let mut bytes = [0; 4];
    bytes.iter_mut().zip(from).for_each(|(to, from)| *to = from);
    bytes
}

/// Whether an access is aligned and inside 4 KiB.
pub(crate) fn is_access(offset: u16, width: Width) -> bool {
    offset < 4096 && offset & width.bytes().wrapping_sub(1) == 0
}
