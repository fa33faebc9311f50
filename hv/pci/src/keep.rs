//! Which of firmware's addresses can stay.

use alloc::vec::Vec;

use crate::function::{Bar, BridgeWindow, BridgeWindows};
use crate::order::ordered;
use crate::place::{Kept, is_below, parent_of};
use crate::region::Regions;
use crate::topology::Topology;

/// A span of bus addresses in use: whether it is I/O, first, last.
type Used = (bool, u64, u64);

/// What a BAR takes up with isolation, if its address could stay: it is assigned and aligned.
fn used(bar: &Bar, page: u64) -> Option<Used> {
    let io = bar.kind.is_io();
    let size = if io { bar.size } else { bar.size.max(page) };
    let last = bar.found.checked_add(size.wrapping_sub(1))?;
    let aligned = bar.found & size.wrapping_sub(1) == 0;
    (bar.found != 0 && aligned).then_some((io, bar.found, last))
}

/// Marks in `kept` what stays, and takes it out of `regions`.
pub(crate) fn keep(topology: &Topology, regions: &mut Regions, page: u64, kept: &mut [Kept]) {
    // What lies below a bridge on a root bus stays as a whole or not at all.
    for (index, function) in topology.functions().iter().enumerate() {
        if function.parent.is_none() && function.bridge().is_some() {
            keep_below(topology, regions, page, kept, index);
        }
    }
    // BARs on root buses stay one by one.
    for (function, kept) in topology.functions().iter().zip(kept) {
        if function.parent.is_some() {
            continue;
        }
        for (position, bar) in function.bars.iter().enumerate() {
            if let Some((io, first, last)) = used(bar, page)
                && regions.carve(io, first, last)
            {
                kept.keep_bar(position);
            }
        }
    }
}

/// Keeps everything below the bridge at `top`, if all of it can stay and there is something.
fn keep_below(
    topology: &Topology,
    regions: &mut Regions,
    page: u64,
    kept: &mut [Kept],
    top: usize,
) {
    let functions = topology.functions();
    // Descending: what is below a bridge comes before it.
    let mut tree: Vec<usize> = (0..functions.len())
        .filter(|&other| other == top || is_below(topology, other, top))
        .collect();
    tree.reverse();
    // The windows that something lies in, by bridge; the others are closed.
    let mut open: Vec<(usize, BridgeWindows)> = Vec::new();
    for &bridge in &tree {
        let Some(header) = functions.get(bridge).and_then(|f| f.bridge()) else {
            continue;
        };
        let Some(shelf) = shelf(topology, bridge, page, &open) else {
            return;
        };
        let Some(windows) = enclosing(header.windows, &shelf) else {
            return;
        };
        open.push((bridge, windows));
    }
    let Some(&(_, windows)) = open.last() else {
        return;
    };
    let mut trial = regions.clone();
    let outer = spans(windows);
    let room = |&(io, first, last): &Used| trial.carve(io, first, last);
    if outer.is_empty() || !outer.iter().all(room) {
        return;
    }
    *regions = trial;
    for &index in tree.iter().filter(|&&index| index != top) {
        let bars = functions.get(index).map_or(0, |f| f.bars.len());
        if let Some(kept) = kept.get_mut(index) {
            (0..bars).for_each(|bar| kept.keep_bar(bar));
        }
    }
    for (bridge, windows) in open {
        if let Some(kept) = kept.get_mut(bridge) {
            kept.windows = Some(windows);
        }
    }
}

/// Open windows as spans.
fn spans(windows: BridgeWindows) -> Vec<Used> {
    let span = |io: bool, window: Option<BridgeWindow>| window.map(|w| (io, w.first, w.last));
    [
        span(true, windows.io),
        span(false, windows.memory),
        span(false, windows.prefetchable),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Everything right below a bridge; `None` when some of it is not assigned or overlaps.
fn shelf(
    topology: &Topology,
    bridge: usize,
    page: u64,
    open: &[(usize, BridgeWindows)],
) -> Option<Vec<Used>> {
    let mut all = Vec::new();
    for (index, function) in topology.functions().iter().enumerate() {
        if parent_of(topology, index) != Some(bridge) {
            continue;
        }
        for bar in &function.bars {
            all.push(used(bar, page)?);
        }
        let windows = open.iter().filter(|&&(other, _)| other == index);
        all.extend(windows.flat_map(|&(_, windows)| spans(windows)));
    }
    let all = ordered(all, |&(io, first, _)| {
        u128::from(io) << 64 | u128::from(first)
    });
    let apart = all.windows(2).all(|pair| match pair {
        [(io, _, last), (next_io, next, _)] => io != next_io || last < next,
        _ => true,
    });
    apart.then_some(all)
}

/// Those of a bridge's windows that something lies in; `None` when something lies in none.
fn enclosing(windows: BridgeWindows, shelf: &[Used]) -> Option<BridgeWindows> {
    let mut needed = BridgeWindows::default();
    for &(io, first, last) in shelf {
        let holds = |window: &BridgeWindow| window.first <= first && last <= window.last;
        if io {
            needed.io = Some(windows.io.filter(holds)?);
        } else if let Some(window) = windows.memory.filter(holds) {
            needed.memory = Some(window);
        } else {
            needed.prefetchable = Some(windows.prefetchable.filter(holds)?);
        }
    }
    Some(needed)
}
