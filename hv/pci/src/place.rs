//! Placement: gives every BAR an address inside all windows above it.

use alloc::vec::Vec;
use core::fmt;

use types::{Bdf, PageSize};

use crate::config::ConfigSpace;
use crate::error::Error;
use crate::function::{BarKind, BarPlace, BridgeWindow, BridgeWindows, WindowWidth};
use crate::host::{HostBridge, WindowKind};
use crate::layout::{Class, ItemId, Layout};
use crate::order::ordered;
use crate::program;
use crate::region::Regions;
use crate::topology::Topology;

/// What to do with addresses that firmware wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirmwarePlaces {
    /// Keep those that are valid. Below a bridge on a root bus either all are kept or none.
    Keep,
    /// Place everything afresh.
    Replace,
}

/// How [`place`] goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacePolicy {
    /// Addresses of firmware.
    pub firmware: FirmwarePlaces,
    /// Memory BARs are aligned and kept apart by this, at least 4 KiB: BARs are given to guests
    /// by the page.
    pub isolation: PageSize,
}

impl Default for PlacePolicy {
    fn default() -> Self {
        Self {
            firmware: FirmwarePlaces::Keep,
            isolation: PageSize::SIZE_4K,
        }
    }
}

/// Why a BAR has no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No window leads to it: the host bridge or a bridge above has none of that kind.
    NoWindow,
    /// It is larger than every window that leads to it.
    TooLarge {
        /// The largest of them, in bytes.
        largest: u64,
    },
    /// The windows are full.
    NoRoom,
    /// The device does not hold the address written to it.
    DoesNotHold,
    /// A bridge above does not hold its windows.
    BridgeDoesNotHold {
        /// Which.
        bridge: Bdf,
    },
}

/// A BAR that could not be placed. The function does not decode that kind of address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unplaced {
    /// The function.
    pub bdf: Bdf,
    /// The BAR's number.
    pub bar: u8,
    /// What it decodes.
    pub kind: BarKind,
    /// Bytes.
    pub size: u64,
    /// Why.
    pub why: Why,
}

/// What [`place`] did. The addresses are in the topology's BARs and bridge windows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// BARs that stayed where firmware put them.
    pub kept: usize,
    /// BARs that got an address.
    pub placed: usize,
    /// BARs that have none, in the order of their functions.
    pub unplaced: Vec<Unplaced>,
}

/// One BAR that wants an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    pub(crate) function: usize,
    /// Position in the function's BARs.
    pub(crate) bar: usize,
    /// Bytes with isolation, a power of two: also the alignment.
    pub(crate) size: u64,
    pub(crate) prefetchable: bool,
    pub(crate) class: Option<Class>,
    fallback: Option<Class>,
    why: Why,
    /// What it got.
    address: Option<u64>,
}

/// Gives every BAR below the host bridge an address and opens the bridges' windows for them.
///
/// Larger BARs go first, so the same topology always gives the same addresses. Memory BARs share
/// no page of [`PlacePolicy::isolation`]; nothing is placed at bus address 0, and no I/O below
/// 4 KiB. A BAR that does not fit is reported and the others are placed without it. Afterwards a
/// function decodes memory when all its memory BARs have an address, and I/O likewise; a bridge
/// decodes what its windows are open for. Bus mastering stays off. The topology must have come
/// from [`enumerate`](crate::enumerate) on the same `space` and `host`.
///
/// # Errors
/// [`Error::BadWindow`] and [`Error::WindowsOverlap`], with nothing written.
pub fn place(
    space: &dyn ConfigSpace,
    host: &HostBridge,
    topology: &mut Topology,
    policy: PlacePolicy,
) -> Result<Placement, Error> {
    host.check()?;
    let page = policy.isolation.max(PageSize::SIZE_4K).bytes();
    let mut regions = Regions::new(host, page);
    let mut kept = Vec::new();
    kept.resize(topology.functions().len(), Kept::default());
    if policy.firmware == FirmwarePlaces::Keep {
        crate::keep::keep(topology, &mut regions, page, &mut kept);
    }
    let mut demands = demands(topology, &regions, page, &kept);
    let windows = settle(topology, &regions, &kept, &mut demands);
    let mut placement = write_back(host, topology, &kept, &demands);
    program::program(space, topology, &kept, &windows, &mut placement);
    placement.unplaced = ordered(placement.unplaced, |unplaced| {
        u128::from(unplaced.bdf.bits()) << 8 | u128::from(unplaced.bar)
    });
    Ok(placement)
}

/// What of a function stays as firmware left it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// A bit for each position in the function's BARs.
    pub(crate) bars: u8,
    /// The windows of a bridge that stay open.
    pub(crate) windows: Option<BridgeWindows>,
}

impl Kept {
    pub(crate) fn bar(self, position: usize) -> bool {
        u32::try_from(position)
            .is_ok_and(|shift| self.bars.checked_shr(shift).unwrap_or(0) & 1 != 0)
    }

    pub(crate) fn keep_bar(&mut self, position: usize) {
        let bit = u32::try_from(position)
            .ok()
            .and_then(|s| 1_u8.checked_shl(s));
        self.bars |= bit.unwrap_or(0);
    }
}

/// The index of the bridge right above a function.
pub(crate) fn parent_of(topology: &Topology, function: usize) -> Option<usize> {
    topology.index(topology.functions().get(function)?.parent?)
}

fn demands(topology: &Topology, regions: &Regions, page: u64, kept: &[Kept]) -> Vec<Demand> {
    let mut demands = Vec::new();
    for (index, function) in topology.functions().iter().enumerate() {
        let keeps = kept.get(index).copied().unwrap_or_default();
        let mut io = true;
        let mut wide = true;
        for bridge in topology.bridges_above(function.bdf) {
            let header = bridge.bridge();
            io &= header.is_some_and(|b| b.io != WindowWidth::None);
            wide &= header.is_some_and(|b| b.prefetchable == WindowWidth::Wide);
        }
        let on_root = function.parent.is_none();
        for (position, bar) in function.bars.iter().enumerate() {
            if keeps.bar(position) {
                continue;
            }
            let prefetchable = bar.kind.is_prefetchable();
            // Below a bridge everything shares windows, and only one of them is for 64 bits.
            let high = bar.kind.is_64_bit() && (on_root || wide && prefetchable);
            let classes = match bar.kind {
                BarKind::Io => [io.then_some(Class::Io), None],
                _ if high && (prefetchable || bar.size > 1 << 20) => {
                    [Some(Class::High), Some(Class::Low)]
                }
                _ => [Some(Class::Low), high.then_some(Class::High)],
            };
            let size = if bar.kind.is_io() {
                bar.size
            } else {
                bar.size.max(page)
            };
            // A bridge's low window is for any memory, so what lies in it is no longer "only
            // prefetchable" to the host bridge.
            let counts_prefetchable =
                |class: Class| prefetchable && (on_root || class == Class::High);
            let mut largest = 0;
            let mut fitting = classes.into_iter().flatten().filter(|&class| {
                largest = largest.max(regions.largest(class, counts_prefetchable(class)));
                regions.could_fit(class, size, counts_prefetchable(class))
            });
            let class = fitting.next();
            let fallback = fitting.next();
            demands.push(Demand {
                function: index,
                bar: position,
                size,
                prefetchable: prefetchable && on_root,
                class,
                fallback,
                why: match largest {
                    0 => Why::NoWindow,
                    largest if class.is_none() => Why::TooLarge { largest },
                    _ => Why::NoRoom,
                },
                address: None,
            });
        }
    }
    demands
}

/// Lays everything out; what does not fit moves to another window or is left out, until the rest
/// fits. Every round takes a choice away from one BAR, so this ends. Gives each bridge's windows,
/// and leaves each BAR's address in its demand.
fn settle(
    topology: &Topology,
    regions: &Regions,
    kept: &[Kept],
    demands: &mut [Demand],
) -> Vec<BridgeWindows> {
    loop {
        let mut free = regions.clone();
        let mut again = false;
        let layouts = Class::ALL.map(|class| {
            let mut layout = Layout::new(class, topology, demands, kept);
            let failed = layout.allocate(class, &mut free);
            let movable =
                |demand: &Demand| demand.class == Some(class) && demand.fallback.is_some();
            if !failed.is_empty() && demands.iter().any(movable) {
                again = true;
                if let Some(&item) = failed.first() {
                    give_way(topology, demands, class, item);
                }
                return layout;
            }
            for item in failed {
                match item {
                    // It took no room, so the others stay where they are.
                    ItemId::Bar(index) => {
                        if let Some(demand) = demands.get_mut(index) {
                            demand.class = None;
                        }
                    }
                    ItemId::Window(_) => {
                        again = true;
                        give_way(topology, demands, class, item);
                    }
                }
            }
            layout
        });
        if !again {
            return addresses(kept, demands, layouts);
        }
    }
}

/// Whether a function is somewhere below a bridge.
pub(crate) fn is_below(topology: &Topology, function: usize, bridge: usize) -> bool {
    let mut next = parent_of(topology, function);
    while let Some(parent) = next {
        if parent == bridge {
            return true;
        }
        next = parent_of(topology, parent);
    }
    false
}

/// Takes one choice away from the BAR that stands most in the way of `item`.
fn give_way(topology: &Topology, demands: &mut [Demand], class: Class, item: ItemId) {
    let mut victim = None;
    for (index, demand) in demands.iter().enumerate() {
        if demand.class != Some(class) {
            continue;
        }
        let inside = match item {
            ItemId::Bar(bar) => bar == index,
            ItemId::Window(bridge) => is_below(topology, demand.function, bridge),
        };
        // First what can go elsewhere, from inside what failed or else from anywhere; only then
        // is the largest inside left out.
        let order = match (demand.fallback.is_some(), inside) {
            (true, true) => 3,
            (true, false) => 2,
            (false, true) => 1,
            (false, false) => continue,
        };
        let rank = (order, demand.size);
        if victim.is_none_or(|(best, _)| rank > best) {
            victim = Some((rank, index));
        }
    }
    if let Some(demand) = victim.and_then(|(_, index)| demands.get_mut(index)) {
        demand.class = demand.fallback.take();
    }
}

/// Takes the addresses out of finished layouts.
fn addresses(kept: &[Kept], demands: &mut [Demand], layouts: [Layout; 3]) -> Vec<BridgeWindows> {
    for (index, demand) in demands.iter_mut().enumerate() {
        let mut all = layouts.iter();
        demand.address = all.find_map(|layout| *layout.bars.get(index)?);
    }
    let mut all = Vec::new();
    for (index, kept) in kept.iter().enumerate() {
        let [io, memory, prefetchable] = layouts.each_ref().map(|layout| {
            let (first, size) = (*layout.windows.get(index)?)?;
            let last = first.checked_add(size.checked_sub(1)?)?;
            Some(BridgeWindow { first, last })
        });
        all.push(kept.windows.unwrap_or(BridgeWindows {
            io,
            memory,
            prefetchable,
        }));
    }
    all
}

/// Puts the result into the topology's BARs.
fn write_back(
    host: &HostBridge,
    topology: &mut Topology,
    kept: &[Kept],
    demands: &[Demand],
) -> Placement {
    let mut placement = Placement::default();
    let to_cpu = |kind: BarKind, bus: u64, size: u64| {
        let cpu = host.windows.iter().find_map(|window| {
            let same = (window.kind == WindowKind::Io) == kind.is_io();
            window.to_cpu(bus, size).filter(|_| same)
        })?;
        Some(BarPlace { bus, cpu })
    };
    for (function, keeps) in topology.functions_mut().iter_mut().zip(kept) {
        for (position, bar) in function.bars.iter_mut().enumerate() {
            bar.place = None;
            if keeps.bar(position) {
                bar.place = to_cpu(bar.kind, bar.found, bar.size);
                placement.kept = placement.kept.saturating_add(1);
            }
        }
    }
    for demand in demands {
        let Some(function) = topology.functions_mut().get_mut(demand.function) else {
            continue;
        };
        let bdf = function.bdf;
        let Some(bar) = function.bars.get_mut(demand.bar) else {
            continue;
        };
        bar.place = demand
            .address
            .and_then(|bus| to_cpu(bar.kind, bus, bar.size));
        if bar.place.is_some() {
            placement.placed = placement.placed.saturating_add(1);
        } else {
            placement.unplaced.push(Unplaced {
                bdf,
                bar: bar.index,
                kind: bar.kind,
                size: bar.size,
                why: demand.why,
            });
        }
    }
    placement
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoWindow => f.write_str("no window leads to it"),
            Self::TooLarge { largest } => {
                let largest = crate::report::Bytes(largest);
                write!(f, "larger than the largest window ({largest})")
            }
            Self::NoRoom => f.write_str("the windows are full"),
            Self::DoesNotHold => f.write_str("the device does not hold its address"),
            Self::BridgeDoesNotHold { bridge } => {
                write!(f, "bridge {bridge} does not hold its windows")
            }
        }
    }
}
