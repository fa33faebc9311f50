//! Writes placement's result to the devices.

use alloc::vec::Vec;

use types::Bdf;

use crate::config::ConfigSpace;
use crate::defect::Defect;
use crate::function::{Bar, Bridge, BridgeWindow, BridgeWindows, Function, Header, WindowWidth};
use crate::place::{Kept, Placement, Unplaced, Why};
use crate::probe::{bar_offset, read_windows};
use crate::regs;
use crate::topology::Topology;

pub(crate) fn program(
    space: &dyn ConfigSpace,
    topology: &mut Topology,
    kept: &[Kept],
    windows: &[BridgeWindows],
    placement: &mut Placement,
) {
    // Bridges that do not forward what they should: everything below them is unreachable.
    let mut broken: Vec<Bdf> = Vec::new();
    for ((function, kept), windows) in topology.functions_mut().iter_mut().zip(kept).zip(windows) {
        if matches!(function.header, Header::Unknown(_)) {
            continue;
        }
        let above = function.parent.filter(|parent| broken.contains(parent));
        if above.is_some() {
            broken.push(function.bdf);
        }
        decode(space, function, Decoding::default());
        for position in 0..function.bars.len() {
            let bridge = above.map(|bridge| Why::BridgeDoesNotHold { bridge });
            program_bar(space, function, position, *kept, bridge, placement);
        }
        if function.bridge().is_some_and(|b| b.windows != *windows) {
            let holds = program_windows(space, function, *windows);
            if !holds {
                function.defects.push(Defect::WindowsDoNotHold);
                broken.push(function.bdf);
            }
        }
        let on = decoding(function);
        decode(space, function, on);
    }
}

/// Which spaces a function decodes.
#[derive(Clone, Copy, Default)]
struct Decoding {
    io: bool,
    memory: bool,
}

/// All that has an address may be decoded, unless something of the same space has none.
fn decoding(function: &Function) -> Decoding {
    let all = |io: bool| {
        let mut same = function.bars.iter().filter(|bar| bar.kind.is_io() == io);
        same.all(|bar| bar.place.is_some())
    };
    let any = |io: bool| function.bars.iter().any(|bar| bar.kind.is_io() == io);
    let windows = function.bridge().map(|b| b.windows).unwrap_or_default();
    let memory = windows.memory.or(windows.prefetchable).is_some();
    Decoding {
        io: all(true) && (any(true) || windows.io.is_some()),
        memory: all(false) && (any(false) || memory),
    }
}

fn decode(space: &dyn ConfigSpace, function: &Function, on: Decoding) {
    let found = space.read16(function.bdf, regs::COMMAND);
    let mut command = found & !(regs::COMMAND_DECODE | regs::COMMAND_MASTER);
    if on.io {
        command |= regs::COMMAND_IO;
    }
    if on.memory {
        command |= regs::COMMAND_MEMORY;
    }
    if command != found {
        space.write16(function.bdf, regs::COMMAND, command);
    }
}

fn program_bar(
    space: &dyn ConfigSpace,
    function: &mut Function,
    position: usize,
    kept: Kept,
    unreachable: Option<Why>,
    placement: &mut Placement,
) {
    let bdf = function.bdf;
    let Some(bar) = function.bars.get_mut(position) else {
        return;
    };
    let Some(place) = bar.place else { return };
    let stays = kept.bar(position);
    let why = match unreachable {
        Some(why) => why,
        None if stays || write_bar(space, bdf, bar, place.bus) => return,
        None => {
            let defect = Defect::BarDoesNotHold { bar: bar.index };
            function.defects.push(defect);
            Why::DoesNotHold
        }
    };
    let count = if stays {
        &mut placement.kept
    } else {
        &mut placement.placed
    };
    *count = count.saturating_sub(1);
    bar.place = None;
    placement.unplaced.push(Unplaced {
        bdf,
        bar: bar.index,
        kind: bar.kind,
        size: bar.size,
        why,
    });
}

/// Writes an address; whether it stayed.
fn write_bar(space: &dyn ConfigSpace, bdf: Bdf, bar: &Bar, address: u64) -> bool {
    let at = bar_offset(bar.index);
    let flags = if bar.kind.is_io() {
        !regs::BAR_IO_MASK
    } else {
        !regs::BAR_MEMORY_MASK
    };
    let [low, high] = halves(address);
    space.write32(bdf, at, low);
    let mut holds = space.read32(bdf, at) & !flags == low;
    if bar.kind.is_64_bit() {
        let upper = bar_offset(bar.index.saturating_add(1));
        space.write32(bdf, upper, high);
        holds &= space.read32(bdf, upper) == high;
    }
    holds
}

fn halves(address: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}

/// Opens the windows of a bridge and closes those with nothing behind them; whether it holds them.
fn program_windows(
    space: &dyn ConfigSpace,
    function: &mut Function,
    windows: BridgeWindows,
) -> bool {
    let bdf = function.bdf;
    let Some(bridge) = function.bridge_mut() else {
        return true;
    };
    let holds = write_windows(space, bdf, bridge, windows);
    // A bridge with other windows than these is told to forward nothing.
    bridge.windows = if holds {
        windows
    } else {
        BridgeWindows::default()
    };
    holds
}

/// Writes a function's registers as enumeration and placement left them. It is fresh from a reset:
/// it masters nothing, and nothing else is switched on.
pub(crate) fn restore(space: &dyn ConfigSpace, function: &Function) {
    let bdf = function.bdf;
    decode(space, function, Decoding::default());
    for bar in &function.bars {
        if let Some(place) = bar.place {
            write_bar(space, bdf, bar, place.bus);
        }
    }
    if let Some(bridge) = function.bridge() {
        if let Some(buses) = bridge.buses {
            let numbers = [bdf.bus(), buses.secondary, buses.subordinate, 0];
            space.write32(bdf, regs::BUS_NUMBERS, u32::from_le_bytes(numbers));
        }
        write_windows(space, bdf, bridge, bridge.windows);
    }
    if let Some(acs) = function.capabilities.acs {
        space.write16(bdf, acs.offset.saturating_add(6), acs.control);
    }
    let on = decoding(function);
    decode(space, function, on);
}

/// Writes a bridge's windows; whether it holds them.
fn write_windows(
    space: &dyn ConfigSpace,
    bdf: Bdf,
    bridge: &Bridge,
    windows: BridgeWindows,
) -> bool {
    // A limit below the base closes a window.
    let closed = BridgeWindow {
        first: u64::MAX,
        last: 0,
    };
    let megabytes = |window: BridgeWindow| {
        let [base, _] = halves(window.first);
        let [limit, _] = halves(window.last);
        (base >> 16) & 0xfff0 | limit & 0xfff0_0000
    };
    space.write32(
        bdf,
        regs::MEMORY_BASE,
        megabytes(windows.memory.unwrap_or(closed)),
    );
    if bridge.prefetchable != WindowWidth::None {
        let window = windows.prefetchable.unwrap_or(closed);
        let [[_, base], [_, limit]] = [halves(window.first), halves(window.last)];
        // Closed before it moves: no moment at which half an address is open.
        space.write32(bdf, regs::PREFETCH_BASE, megabytes(closed));
        if bridge.prefetchable == WindowWidth::Wide {
            space.write32(bdf, regs::PREFETCH_BASE_UPPER, base);
            space.write32(bdf, regs::PREFETCH_LIMIT_UPPER, limit);
        }
        space.write32(bdf, regs::PREFETCH_BASE, megabytes(window));
    }
    if bridge.io != WindowWidth::None {
        let window = windows.io.unwrap_or(closed);
        let [base, limit] = [window.first, window.last].map(|a| a.to_le_bytes());
        let [_, base_low, base2, base3, ..] = base;
        let [_, limit_low, limit2, limit3, ..] = limit;
        let low = u16::from_le_bytes([base_low & 0xf0, limit_low & 0xf0]);
        if bridge.io == WindowWidth::Wide {
            let upper = u32::from_le_bytes([base2, base3, limit2, limit3]);
            space.write32(bdf, regs::IO_UPPER, upper);
        }
        space.write16(bdf, regs::IO_BASE, low);
    }
    read_windows(space, bdf, bridge.io, bridge.prefetchable) == windows
}
