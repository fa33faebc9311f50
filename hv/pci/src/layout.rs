//! Lays BARs and bridge windows out: sizes from the bottom up, addresses from the top down.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cmp::Reverse;

use crate::place::{Demand, Kept, parent_of};
use crate::region::{Regions, align_up};
use crate::topology::Topology;

/// Which windows an address can come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// A BAR by position: function in the topology, BAR in the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BarId {
    pub(crate) function: usize,
    pub(crate) bar: usize,
}

/// What takes up room in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ItemId {
    Bar(BarId),
    /// The window of the bridge with this index.
    Window(usize),
}

/// Something that takes up room in a window, and where it is from the window's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) id: ItemId,
    size: u64,
    align: u64,
    prefetchable: bool,
    offset: u64,
}

/// An item that found no room on a root bus.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fit {
    pub(crate) class: Class,
    pub(crate) item: Item,
}

/// Everything below one bridge, or on the root buses.
type Shelf = Vec<Item>;

/// A layout in the making, then the addresses.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// By class and bridge (`None`: the root buses).
    shelves: BTreeMap<(Class, Option<usize>), Shelf>,
    windows: BTreeMap<(Class, usize), (u64, u64)>,
    bars: BTreeMap<BarId, u64>,
}

/// Packs items largest alignment first; gives the bytes used and the largest alignment.
fn pack(shelf: &mut Shelf) -> Option<(u64, u64)> {
    shelf.sort_by_key(|item| (Reverse(item.align), Reverse(item.size), item.id));
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
    /// Sizes every window.
    pub(crate) fn new(topology: &Topology, demands: &[Demand], kept: &[Kept]) -> Self {
        let mut layout = Self::default();
        for demand in demands {
            let Some(class) = demand.class else { continue };
            let item = Item {
                id: ItemId::Bar(BarId {
                    function: demand.function,
                    bar: demand.bar,
                }),
                size: demand.size,
                align: demand.size,
                prefetchable: demand.prefetchable,
                offset: 0,
            };
            let shelf = (class, parent_of(topology, demand.function));
            layout.shelves.entry(shelf).or_default().push(item);
        }
        // What is below a bridge comes after it, so going backwards sees children first.
        for bridge in (0..topology.functions().len()).rev() {
            if kept.get(bridge).is_some_and(|kept| kept.windows.is_some()) {
                continue;
            }
            for class in Class::ALL {
                let Some(shelf) = layout.shelves.get_mut(&(class, Some(bridge))) else {
                    continue;
                };
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
                let above = (class, parent_of(topology, bridge));
                layout.shelves.entry(above).or_default().push(item);
            }
        }
        layout
    }

    /// Takes room for everything on the root buses and works out all addresses of a class.
    pub(crate) fn allocate(&mut self, class: Class, free: &mut Regions) -> Result<(), Fit> {
        let Some(mut roots) = self.shelves.remove(&(class, None)) else {
            return Ok(());
        };
        roots.sort_by_key(|item| (Reverse(item.align), Reverse(item.size), item.id));
        let mut open = Vec::new();
        for item in roots {
            let at = free.take(class, item.prefetchable, item.size, item.align);
            open.push((item, at.ok_or(Fit { class, item })?));
        }
        while let Some((item, at)) = open.pop() {
            match item.id {
                ItemId::Bar(id) => {
                    self.bars.insert(id, at);
                }
                ItemId::Window(bridge) => {
                    self.windows.insert((class, bridge), (at, item.size));
                    let shelf = self.shelves.remove(&(class, Some(bridge)));
                    for item in shelf.into_iter().flatten() {
                        // The window was found room for as a whole, so this stays inside it.
                        open.push((item, at.saturating_add(item.offset)));
                    }
                }
            }
        }
        Ok(())
    }

    /// Address and size of a bridge's window.
    pub(crate) fn window(&self, class: Class, bridge: usize) -> Option<(u64, u64)> {
        self.windows.get(&(class, bridge)).copied()
    }

    /// The address of a BAR.
    pub(crate) fn bar(&self, function: usize, bar: usize) -> Option<u64> {
        self.bars.get(&BarId { function, bar }).copied()
    }
}
