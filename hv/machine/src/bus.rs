//! `reg` and `ranges`: from an address on a node's bus to a physical one.

use alloc::vec::Vec;

use types::{Pa, Span};

use crate::{
    Error, Problem,
    tree::{Cells, Node},
};

/// More entries than any bus has; it bounds what one translation can cost.
const MAX_RANGES: usize = 512;

/// Cells of an address or a size that make a number: 0 (no number) to 4 (upper ones zero).
fn usable(node: Node<'_, '_>, property: &'static str, cells: u32) -> Result<u32, Error> {
    if cells <= 4 {
        Ok(cells)
    } else {
        Err(node.error(property, Problem::Cells { cells }))
    }
}

fn cells_bytes(cells: &[u32]) -> usize {
    let sum = cells
        .iter()
        .fold(0u32, |sum, cells| sum.saturating_add(*cells));
    usize::try_from(sum).unwrap_or(usize::MAX).saturating_mul(4)
}

/// The entries of `reg` as (address, size) on the node's own bus.
pub(crate) fn reg(node: Node<'_, '_>) -> Result<Vec<(u64, u64)>, Error> {
    pairs(node, "reg")
}

/// As [`reg`], of any property of its form.
pub(crate) fn pairs(node: Node<'_, '_>, property: &'static str) -> Result<Vec<(u64, u64)>, Error> {
    let bus = node.parent().unwrap_or(node);
    let address_cells = usable(bus, "#address-cells", bus.address_cells())?;
    let size_cells = usable(bus, "#size-cells", bus.size_cells())?;
    let unit = cells_bytes(&[address_cells, size_cells]);
    let mut cells = node.cells(property)?;
    if cells.is_empty() {
        return Ok(Vec::new());
    }
    let bytes = cells.bytes();
    if unit == 0 || !bytes.is_multiple_of(unit) {
        return Err(node.error(property, Problem::Length { bytes, unit }));
    }
    let mut entries = Vec::new();
    while !cells.is_empty() {
        let mut number = |cell_count| {
            cells
                .number(cell_count)
                .flatten()
                .ok_or_else(|| node.error(property, Problem::TooWide))
        };
        let entry = (number(address_cells)?, number(size_cells)?);
        node.push(property, &mut entries, entry)?;
    }
    Ok(entries)
}

/// The entries of `reg` as physical spans; entries of size zero are left out.
pub(crate) fn registers(node: Node<'_, '_>) -> Result<Vec<Span<Pa>>, Error> {
    let mut spans = Vec::new();
    for (address, bytes) in reg(node)? {
        if bytes != 0 {
            spans.push(translate(node, "reg", address, bytes)?);
        }
    }
    Ok(spans)
}

/// The first entry of `reg`, physical.
pub(crate) fn first_register(node: Node<'_, '_>) -> Result<Span<Pa>, Error> {
    let (address, bytes) = reg(node)?
        .first()
        .copied()
        .ok_or_else(|| node.error("reg", Problem::Missing))?;
    translate(node, "reg", address, bytes)
}

/// A range of `node`'s bus as physical addresses.
pub(crate) fn translate(
    node: Node<'_, '_>,
    property: &'static str,
    address: u64,
    bytes: u64,
) -> Result<Span<Pa>, Error> {
    let past_end = |start| node.error(property, Problem::PastEnd { start, bytes });
    let mut here = address;
    let mut bus = node.parent();
    while let Some(node_of_bus) = bus {
        let Some(above) = node_of_bus.parent() else {
            break;
        };
        here = through(node_of_bus, above, here, bytes)?.ok_or_else(|| {
            node.error(
                property,
                Problem::NotTranslated {
                    address: here,
                    bus: node_of_bus.path(),
                },
            )
        })?;
        bus = Some(above);
    }
    Pa::new(here)
        .ok()
        .and_then(|start| Span::from_len(start, bytes))
        .ok_or_else(|| past_end(here))
}

/// One step up: from the bus of `bus` to that of its parent; `None` when `ranges` has no such
/// address.
fn through(
    bus: Node<'_, '_>,
    above: Node<'_, '_>,
    address: u64,
    bytes: u64,
) -> Result<Option<u64>, Error> {
    if !bus.has("ranges") {
        return Ok(None);
    }
    let mut cells = bus.cells("ranges")?;
    if cells.is_empty() {
        return Ok(Some(address));
    }
    for entry in ranges(bus, above, &mut cells)? {
        let (Some(child), Some(parent), Some(size)) = entry else {
            continue;
        };
        let fits = address
            .checked_sub(child)
            .filter(|offset| offset.checked_add(bytes).is_some_and(|end| end <= size));
        if let Some(offset) = fits {
            return Ok(parent.checked_add(offset));
        }
    }
    Ok(None)
}

type Range = (Option<u64>, Option<u64>, Option<u64>);

fn ranges(
    bus: Node<'_, '_>,
    above: Node<'_, '_>,
    cells: &mut Cells<'_>,
) -> Result<Vec<Range>, Error> {
    let child_cells = usable(bus, "#address-cells", bus.address_cells())?;
    let parent_cells = usable(above, "#address-cells", above.address_cells())?;
    let size_cells = usable(bus, "#size-cells", bus.size_cells())?;
    let unit = cells_bytes(&[child_cells, parent_cells, size_cells]);
    let bytes = cells.bytes();
    if unit == 0
        || !bytes.is_multiple_of(unit)
        || bytes
            .checked_div(unit)
            .is_none_or(|entries| entries > MAX_RANGES)
    {
        return Err(bus.error("ranges", Problem::Length { bytes, unit }));
    }
    let mut entries = Vec::new();
    while let (Some(child), Some(parent), Some(size)) = (
        cells.number(child_cells),
        cells.number(parent_cells),
        cells.number(size_cells),
    ) {
        entries.push((child, parent, size));
    }
    Ok(entries)
}
