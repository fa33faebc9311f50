//! Reads one function: identity, BAR sizes, bridge facts, capabilities. Leaves it quiet.

use alloc::vec::Vec;

use types::Bdf;

use crate::capability::{Capabilities, InBar};
use crate::config::ConfigSpace;
use crate::defect::Defect;
use crate::function::{
    Bar, BarKind, Bridge, BridgeWindow, BridgeWindows, Class, FoundMastering, Function, Header,
    LeftOn, WindowWidth,
};
use crate::regs;

/// The number that defects use for the expansion ROM, which has no BAR number of its own.
const ROM: u8 = 6;

/// What the identity register of a place says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Absent,
    /// The device asks to be tried again later.
    NotReady,
    Present,
}

pub(crate) fn presence(space: &dyn ConfigSpace, bdf: Bdf) -> Presence {
    match space.read32(bdf, regs::VENDOR) {
        0xffff_ffff | 0 | 0x0000_ffff | 0xffff_0000 => Presence::Absent,
        0xffff_0001 => Presence::NotReady,
        _ => Presence::Present,
    }
}

pub(crate) fn is_bridge(header_type: u8) -> bool {
    header_type & !regs::HEADER_MULTIFUNCTION == 1
}

/// Switches bus mastering off. Returns how it was, and whether it is off now.
pub(crate) fn quiet(space: &dyn ConfigSpace, bdf: Bdf) -> (FoundMastering, Result<(), Defect>) {
    let command = space.read16(bdf, regs::COMMAND);
    if command & regs::COMMAND_MASTER == 0 {
        return (FoundMastering::Off, Ok(()));
    }
    space.write16(bdf, regs::COMMAND, command & !regs::COMMAND_MASTER);
    let off = space.read16(bdf, regs::COMMAND) & regs::COMMAND_MASTER == 0;
    let result = if off {
        Ok(())
    } else {
        Err(Defect::BusMasterStuck)
    };
    (FoundMastering::On, result)
}

/// Reads a function that is present. Its first act is to stop it from mastering the bus.
pub(crate) fn function(space: &dyn ConfigSpace, bdf: Bdf, parent: Option<Bdf>) -> Function {
    let mut defects = Vec::new();
    let (found_mastering, quieted) = quiet(space, bdf);
    defects.extend(quieted.err());
    let [v0, v1, d0, d1] = space.read32(bdf, regs::VENDOR).to_le_bytes();
    let [revision, interface, sub, base] = space.read32(bdf, regs::REVISION).to_le_bytes();
    let kind = space.read8(bdf, regs::HEADER_TYPE) & !regs::HEADER_MULTIFUNCTION;
    let mut function = Function {
        bdf,
        parent,
        vendor: u16::from_le_bytes([v0, v1]),
        device: u16::from_le_bytes([d0, d1]),
        revision,
        subsystem: None,
        class: Class {
            base,
            sub,
            interface,
        },
        header: Header::Unknown(kind),
        bars: Vec::new(),
        rom: None,
        capabilities: Capabilities::default(),
        interrupt_pin: None,
        found_mastering,
        left_on: Vec::new(),
        defects,
    };
    let (bars, rom) = match kind {
        0 => {
            let [v0, v1, d0, d1] = space.read32(bdf, regs::SUBSYSTEM).to_le_bytes();
            function.subsystem = Some((u16::from_le_bytes([v0, v1]), u16::from_le_bytes([d0, d1])));
            function.header = Header::Endpoint;
            (6, regs::ROM_ENDPOINT)
        }
        1 => (2, regs::ROM_BRIDGE),
        _ => {
            function.defects.push(Defect::UnknownHeader { kind });
            return function;
        }
    };
    function.capabilities =
        Capabilities::read(space, bdf, regs::CAPABILITIES, &mut function.defects);
    switch_off(space, &mut function);
    let pin = space.read8(bdf, regs::INTERRUPT_PIN);
    function.interrupt_pin = (1..=4).contains(&pin).then_some(pin);
    size(space, &mut function, bars, rom, kind == 1);
    drop_impossible_msix(&mut function);
    switch_acs_on(space, &mut function);
    function
}

/// Switches off what whoever ran before may have left on: a kernel that started us by kexec, or
/// firmware. Virtual functions come last, after what they depend on.
fn switch_off(space: &dyn ConfigSpace, function: &mut Function) {
    let capabilities = &function.capabilities;
    // Structure, offset of the control register, bits.
    let switches = [
        (LeftOn::Msi, capabilities.msi.map(|c| c.offset), 2, 1 << 0),
        (
            LeftOn::MsiX,
            capabilities.msix.map(|c| c.offset),
            2,
            1 << 15,
        ),
        (LeftOn::Ats, capabilities.ats, 6, 1 << 15),
        (LeftOn::Pri, capabilities.pri, 4, 1 << 0),
        (LeftOn::Pasid, capabilities.pasid, 6, 7),
        (
            LeftOn::VirtualFunctions,
            capabilities.sriov,
            8,
            1 << 0 | 1 << 3,
        ),
    ];
    for (what, structure, offset, bits) in switches {
        let Some(structure) = structure else { continue };
        let at = structure.saturating_add(offset);
        let found: u16 = space.read16(function.bdf, at);
        // Past the end of the space there is nothing.
        if found & bits == 0 || at >= space.extent().bytes() {
            continue;
        }
        function.left_on.push(what);
        space.write16(function.bdf, at, found & !bits);
        if space.read16(function.bdf, at) & bits != 0 {
            function.defects.push(Defect::StaysOn(what));
        }
    }
}

/// Everything that needs decoding off while it looks: BARs, the ROM, a bridge's windows.
fn size(space: &dyn ConfigSpace, function: &mut Function, bars: u8, rom: u16, bridge: bool) {
    let bdf = function.bdf;
    let command = space.read16(bdf, regs::COMMAND) & !regs::COMMAND_MASTER;
    let decoding = command & regs::COMMAND_DECODE != 0;
    if decoding {
        space.write16(bdf, regs::COMMAND, command & !regs::COMMAND_DECODE);
        if space.read16(bdf, regs::COMMAND) & regs::COMMAND_DECODE != 0 {
            function.defects.push(Defect::DecodeStuck);
            if bridge {
                function.header = Header::Bridge(Bridge {
                    buses: None,
                    io: WindowWidth::None,
                    prefetchable: WindowWidth::None,
                    windows: BridgeWindows::default(),
                });
            }
            return;
        }
    }
    let mut index = 0;
    while index < bars {
        let (bar, slots) = size_bar(space, bdf, index, bars, &mut function.defects);
        function.bars.extend(bar);
        index = index.saturating_add(slots);
    }
    function.rom = size_rom(space, bdf, rom, &mut function.defects);
    if bridge {
        function.header = Header::Bridge(read_bridge(space, bdf));
    }
    if decoding {
        space.write16(bdf, regs::COMMAND, command);
    }
}

/// Writes ones to a register and gives back what it held and which bits took them.
fn ones(space: &dyn ConfigSpace, bdf: Bdf, at: u16) -> (u32, u32) {
    let found = space.read32(bdf, at);
    space.write32(bdf, at, u32::MAX);
    let mask = space.read32(bdf, at);
    space.write32(bdf, at, found);
    (found, mask)
}

/// The offset of a BAR register.
pub(crate) const fn bar_offset(index: u8) -> u16 {
    regs::BAR0.saturating_add((index as u16).saturating_mul(4))
}

/// The size behind a mask whose implemented bits are the upper ones without a gap.
fn size_of_mask(mask: u64) -> Option<u64> {
    let size = mask & mask.wrapping_neg();
    let gapless = mask | size.wrapping_sub(1) == u64::MAX;
    (mask != 0 && gapless).then_some(size)
}

/// Sizes the BAR at `index`; also says how many registers it takes.
fn size_bar(
    space: &dyn ConfigSpace,
    bdf: Bdf,
    index: u8,
    bars: u8,
    defects: &mut Vec<Defect>,
) -> (Option<Bar>, u8) {
    let (found, mask) = ones(space, bdf, bar_offset(index));
    if mask == 0 {
        return (None, 1);
    }
    let high = 0xffff_ffff_0000_0000;
    let (kind, found, mask, slots) = if mask & regs::BAR_IO != 0 {
        // Upper half of an I/O BAR may be hard-wired to zero: 16-bit decoding.
        let io = mask & regs::BAR_IO_MASK;
        let io = if io >> 16 == 0 { io | 0xffff_0000 } else { io };
        let none = mask & 0xfffc == 0;
        let io = if none { 0 } else { u64::from(io) | high };
        (BarKind::Io, u64::from(found & regs::BAR_IO_MASK), io, 1)
    } else {
        let prefetchable = mask & regs::BAR_PREFETCHABLE != 0;
        let low = u64::from(mask & regs::BAR_MEMORY_MASK);
        let found_low = u64::from(found & regs::BAR_MEMORY_MASK);
        match (mask & regs::BAR_TYPE, prefetchable) {
            (regs::BAR_TYPE_32, _) if low == 0 => return (None, 1),
            (regs::BAR_TYPE_32, false) => (BarKind::Memory32, found_low, low | high, 1),
            (regs::BAR_TYPE_32, true) => (BarKind::Prefetchable32, found_low, low | high, 1),
            (regs::BAR_TYPE_64, _) if index.saturating_add(1) >= bars => {
                defects.push(Defect::BarWithoutUpperHalf { bar: index });
                return (None, 1);
            }
            (regs::BAR_TYPE_64, _) => {
                let upper = bar_offset(index.saturating_add(1));
                let (found_high, mask_high) = ones(space, bdf, upper);
                let kind = if prefetchable {
                    BarKind::Prefetchable64
                } else {
                    BarKind::Memory64
                };
                let mask = u64::from(mask_high) << 32 | low;
                if mask == 0 {
                    return (None, 2);
                }
                (kind, u64::from(found_high) << 32 | found_low, mask, 2)
            }
            _ => {
                let bits = mask.to_le_bytes()[0] & 0xf;
                defects.push(Defect::BarType { bar: index, bits });
                return (None, 1);
            }
        }
    };
    let Some(size) = size_of_mask(mask) else {
        defects.push(Defect::BarMask { bar: index, mask });
        return (None, slots);
    };
    let bar = Bar {
        index,
        kind,
        size,
        found,
        place: None,
    };
    (Some(bar), slots)
}

/// Sizes the expansion ROM and leaves it switched off.
fn size_rom(space: &dyn ConfigSpace, bdf: Bdf, at: u16, defects: &mut Vec<Defect>) -> Option<u64> {
    let found = space.read32(bdf, at);
    space.write32(bdf, at, regs::ROM_MASK);
    let mask = u64::from(space.read32(bdf, at) & regs::ROM_MASK);
    space.write32(bdf, at, found & regs::ROM_MASK);
    if mask == 0 {
        return None;
    }
    let size = size_of_mask(mask | 0xffff_ffff_0000_0000);
    if size.is_none() {
        defects.push(Defect::BarMask { bar: ROM, mask });
    }
    size
}

fn read_bridge(space: &dyn ConfigSpace, bdf: Bdf) -> Bridge {
    let width = |register: u16, ones: u16| {
        let found = space.read16(bdf, register);
        space.write16(bdf, register, ones);
        let took = space.read16(bdf, register);
        space.write16(bdf, register, found);
        match took & 0xf {
            _ if took & ones == 0 => WindowWidth::None,
            0 => WindowWidth::Narrow,
            _ => WindowWidth::Wide,
        }
    };
    let io = width(regs::IO_BASE, 0x00f0);
    let prefetchable = width(regs::PREFETCH_BASE, 0xfff0);
    Bridge {
        buses: None,
        io,
        prefetchable,
        windows: read_windows(space, bdf, io, prefetchable),
    }
}

/// The windows a bridge has open, from its registers.
pub(crate) fn read_windows(
    space: &dyn ConfigSpace,
    bdf: Bdf,
    io: WindowWidth,
    prefetchable: WindowWidth,
) -> BridgeWindows {
    let halves = |register: u16| {
        let [b0, b1, l0, l1] = space.read32(bdf, register).to_le_bytes();
        let half = |low, high| u64::from(u16::from_le_bytes([low, high]) & 0xfff0) << 16;
        (half(b0, b1), half(l0, l1))
    };
    let open = |first: u64, last: u64| (first <= last).then_some(BridgeWindow { first, last });
    let io = (io != WindowWidth::None).then(|| {
        let [base, limit] = space.read16(bdf, regs::IO_BASE).to_le_bytes();
        let [b0, b1, l0, l1] = match io {
            WindowWidth::Wide => space.read32(bdf, regs::IO_UPPER).to_le_bytes(),
            _ => [0; 4],
        };
        let address = |low: u8, upper: [u8; 2]| {
            u64::from(u16::from_le_bytes(upper)) << 16 | u64::from(low & 0xf0) << 8
        };
        (address(base, [b0, b1]), address(limit, [l0, l1]) | 0xfff)
    });
    let (base, limit) = halves(regs::MEMORY_BASE);
    let memory = open(base, limit | 0xf_ffff);
    let prefetchable = (prefetchable != WindowWidth::None).then(|| {
        let (base, limit) = halves(regs::PREFETCH_BASE);
        let upper = |register| match prefetchable {
            WindowWidth::Wide => u64::from(space.read32(bdf, register)) << 32,
            _ => 0,
        };
        (
            base | upper(regs::PREFETCH_BASE_UPPER),
            limit | 0xf_ffff | upper(regs::PREFETCH_LIMIT_UPPER),
        )
    });
    BridgeWindows {
        io: io.and_then(|(first, last)| open(first, last)),
        memory,
        prefetchable: prefetchable.and_then(|(first, last)| open(first, last)),
    }
}

/// MSI-X counts only when its table and pending bits lie in memory BARs of the function.
fn drop_impossible_msix(function: &mut Function) {
    let Some(msix) = function.capabilities.msix else {
        return;
    };
    let inside = |place: InBar, bytes: u32| {
        let bar = function.bar(place.bar).filter(|bar| !bar.kind.is_io());
        bar.is_some_and(|bar| u64::from(place.offset).saturating_add(bytes.into()) <= bar.size)
    };
    let places = [
        (msix.table, msix.table_bytes()),
        (msix.pending, msix.pending_bytes()),
    ];
    if let Some((place, _)) = places.into_iter().find(|&(p, bytes)| !inside(p, bytes)) {
        function.defects.push(Defect::MsixOutsideBar { place });
        function.capabilities.msix = None;
    }
}

/// Isolation is wanted everywhere it is offered: it costs a trip to the root complex for
/// peer-to-peer traffic, which then is translated like any other. A request that says of itself that
/// its address is translated needs no leave to say so, and no device gets such an address: it is
/// blocked where that is offered, and goes to no neighbour directly.
fn switch_acs_on(space: &dyn ConfigSpace, function: &mut Function) {
    let Some(acs) = &mut function.capabilities.acs else {
        return;
    };
    let wanted = acs.wanted();
    if acs.control == wanted {
        return;
    }
    let at = acs.offset.saturating_add(6);
    space.write16(function.bdf, at, wanted);
    acs.control = space.read16(function.bdf, at);
    let missing = acs.missing();
    if missing != 0 {
        function.defects.push(Defect::AcsDoesNotHold { missing });
    }
}
