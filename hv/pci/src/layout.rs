//! Lays BARs and bridge windows out: sizes from the bottom up, addresses from the top down.

use alloc::vec::Vec;
use core::mem::take;

use crate::order::ordered;
use crate::place::{Demand, Kept, parent_of};
use crate::region::{Regions, align_up};
use crate::topology::Topology;

/// Which windows an address can come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB; below a bridge its (non-prefetchable) memory window.
    Low,
    /// Memory from 4 GiB; below a bridge its prefetchable window.
    High,
}

impl Class {
    pub(crate) const ALL: [Self; 3] = [Self::Io, Self::Low, Self::High];

    /// The granule and alignment of a bridge's window.
    const fn granule(self) -> u64 {
        match self {
            Self::Io => 1 << 12,
            Self::Low | Self::High => 1 << 20,
        }
    }
}

/// What takes up room in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ItemId {
    /// The BAR of the demand with this index.
    Bar(usize),
    /// The window of the bridge with this index.
    Window(usize),
}

/// Something that takes up room in a window, and where it is from the window's start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item {
    pub(crate) id: ItemId,
    size: u64,
    align: u64,
    prefetchable: bool,
    offset: u64,
}

/// Everything of one class below one bridge, or on the root buses.
type Shelf = Vec<Item>;

/// The layout of one class in the making, then its addresses.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    roots: Shelf,
    /// By the bridge above.
    shelves: Vec<Shelf>,
    /// By bridge: first address and size.
    pub(crate) windows: Vec<Option<(u64, u64)>>,
    /// By demand.
    pub(crate) bars: Vec<Option<u64>>,
}

/// Largest alignment first, then largest size, then in the order of the functions.
fn largest_first(shelf: Shelf) -> Shelf {
    ordered(shelf, |item| {
        let index = match item.id {
            ItemId::Bar(index) | ItemId::Window(index) => index,
        };
        let index = u128::try_from(index).unwrap_or(0) & 0x3ff_ffff;
        u128::from(item.align.leading_zeros()) << 90 | u128::from(!item.size) << 26 | index
    })
}

/// Packs items; gives the bytes used and the largest alignment.
fn pack(shelf: &mut Shelf) -> Option<(u64, u64)> {
    *shelf = largest_first(take(shelf));
    let mut end = 0;
    let mut largest = 1;
    for item in shelf {
        item.offset = align_up(end, item.align)?;
        end = item.offset.checked_add(item.size)?;
        largest = item.align.max(largest);
    }
    Some((end, largest))
}

impl Layout {
    /// Sizes every window of a class.
    pub(crate) fn new(
        class: Class,
        topology: &Topology,
        demands: &[Demand],
        kept: &[Kept],
    ) -> Self {
        let functions = topology.functions().len();
        let mut layout = Self::default();
        layout.shelves.resize(functions, Shelf::new());
        layout.windows.resize(functions, None);
        layout.bars.resize(demands.len(), None);
        for (index, demand) in demands.iter().enumerate() {
            if demand.class != Some(class) {
                continue;
            }
            let item = Item {
                id: ItemId::Bar(index),
                size: demand.size,
                align: demand.size,
                prefetchable: demand.prefetchable,
                offset: 0,
            };
            layout.shelve(parent_of(topology, demand.function), item);
        }
        // What is below a bridge comes after it, so going backwards sees children first.
        for (bridge, kept) in kept.iter().enumerate().rev() {
            let Some(shelf) = layout.shelves.get_mut(bridge) else {
                continue;
            };
            if kept.windows.is_some() || shelf.is_empty() {
                continue;
            }
            let granule = class.granule();
            // Sizes beyond 64 bits fit nowhere: the largest size says so to the root.
            let (end, largest) = pack(shelf).unwrap_or((u64::MAX, granule));
            let item = Item {
                id: ItemId::Window(bridge),
                size: align_up(end, granule).unwrap_or(u64::MAX),
                align: largest.max(granule),
                prefetchable: class == Class::High,
                offset: 0,
            };
            layout.shelve(parent_of(topology, bridge), item);
        }
        layout.roots = largest_first(take(&mut layout.roots));
        layout
    }

    fn shelve(&mut self, above: Option<usize>, item: Item) {
        let shelf = match above {
            Some(bridge) => self.shelves.get_mut(bridge),
            None => Some(&mut self.roots),
        };
        if let Some(shelf) = shelf {
            shelf.push(item);
        }
    }

    /// Takes room for everything on the root buses and works out all addresses. Gives back what
    /// found no room.
    pub(crate) fn allocate(&mut self, class: Class, free: &mut Regions) -> Vec<ItemId> {
        let mut open = Vec::new();
        let mut failed = Vec::new();
        for item in take(&mut self.roots) {
            let at = free.take(class, item.prefetchable, item.size, item.align);
            match at {
                Some(at) => open.push((item, at)),
                None => failed.push(item.id),
            }
        }
        while let Some((item, at)) = open.pop() {
            match item.id {
                ItemId::Bar(index) => {
                    if let Some(bar) = self.bars.get_mut(index) {
                        *bar = Some(at);
                    }
                }
                ItemId::Window(bridge) => {
                    if let Some(window) = self.windows.get_mut(bridge) {
                        *window = Some((at, item.size));
                    }
                    let shelf = self.shelves.get_mut(bridge).map(take);
                    for item in shelf.into_iter().flatten() {
                        // The window was found room for as a whole, so this stays inside it.
                        open.push((item, at.saturating_add(item.offset)));
                    }
                }
            }
        }
        failed
    }
}
