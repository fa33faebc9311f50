//! PCI host bridges.

use alloc::vec::Vec;
use core::fmt;

use types::{Bdf, Liobn, Pa, Span, StreamId};

use crate::{
    Coherency, Error, Interrupt, Its, NodePath, Note, Problem, Smmu,
    bus::{first_register, reg, translate},
    interrupts::specifier,
    note,
    tree::Node,
};

/// A PCI host bridge: one segment's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostBridge {
    /// The segment (PCI domain): what the tree says, else the lowest free number.
    pub segment: u16,
    /// How configuration space is reached.
    pub config: ConfigAccess,
    /// The first and the last bus number.
    pub buses: (u8, u8),
    /// Where BARs may be placed.
    pub windows: Vec<Window>,
    /// Requester IDs to stream IDs.
    pub streams: IdMap,
    /// Requester IDs to ITS device IDs.
    pub msis: IdMap,
    /// Legacy interrupts.
    pub intx: IntxMap,
    /// Whether its devices see the CPUs' caches.
    pub coherency: Coherency,
    /// The default DMA window, on a PAPR platform.
    pub dma_window: Option<DmaWindow>,
    /// The RTAS calls for more DMA windows, on a PAPR platform that has them.
    pub ddw: Option<Ddw>,
    /// Where it is in the tree.
    pub path: NodePath,
}

/// How configuration space is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigAccess {
    /// In memory, 1 MiB a bus, from the first bus on.
    Ecam(Span<Pa>),
    /// By RTAS with this bus unit ID [LoPAPR §7.3.5].
    Rtas {
        /// The bus unit ID.
        buid: u64,
    },
}

/// What kind of addresses a window takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowKind {
    /// I/O ports.
    Io,
    /// 32-bit memory.
    Memory32,
    /// 64-bit memory.
    Memory64,
}

impl fmt::Display for WindowKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Io => "I/O",
            Self::Memory32 => "32-bit memory",
            Self::Memory64 => "64-bit memory",
        })
    }
}

/// Whether a window may be read ahead of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// It may.
    Allowed,
    /// It may not.
    Forbidden,
}

/// A window through which CPUs reach the devices of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// I/O or memory.
    pub kind: WindowKind,
    /// Whether prefetchable BARs may go there.
    pub prefetch: Prefetch,
    /// The address on the PCI bus, as BARs hold it.
    pub bus: u64,
    /// The addresses for CPUs.
    pub cpu: Span<Pa>,
}

/// A table from requester IDs to the identities another unit knows the devices by
/// (`iommu-map`, `msi-map`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    mask: Option<u16>,
    entries: Vec<IdRange>,
}

/// A range of an [`IdMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first requester ID.
    pub requester: u32,
    /// How many.
    pub count: u32,
    /// The identity of the first; the others follow.
    pub output: u32,
    /// Index of the unit among the machine's SMMUs or ITSs; `None` when it is of a kind that is
    /// not supported.
    pub unit: Option<usize>,
}

impl IdMap {
    /// The ranges.
    #[must_use]
    pub fn ranges(&self) -> &[IdRange] {
        &self.entries
    }

    /// The unit and the identity there of a requester; `None` when it has none.
    #[must_use]
    pub fn lookup(&self, requester: Bdf) -> Option<(usize, u32)> {
        let id = u32::from(requester.bits() & self.mask.unwrap_or(u16::MAX));
        self.entries.iter().find_map(|range| {
            let offset = id.checked_sub(range.requester)?;
            if offset >= range.count {
                return None;
            }
            Some((range.unit?, range.output.checked_add(offset)?))
        })
    }
}

/// Which interrupt a device's INTA to INTD raises (`interrupt-map`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntxMap {
    mask: (u32, u32),
    entries: Vec<(u32, u32, Interrupt)>,
}

impl IntxMap {
    /// The interrupt of `pin` (1 is INTA) of a function on the root bus; for one behind a bridge,
    /// swizzle first.
    #[must_use]
    pub fn lookup(&self, function: Bdf, pin: u8) -> Option<Interrupt> {
        let address = u32::from(function.bits()) << 8 & self.mask.0;
        let pin = u32::from(pin) & self.mask.1;
        self.entries
            .iter()
            .find(|(a, p, _)| (*a, *p) == (address, pin))
            .map(|(_, _, interrupt)| *interrupt)
    }

    /// How many lines are described.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// A DMA window [LoPAPR §7.3.6].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaWindow {
    /// Its table.
    pub liobn: Liobn,
    /// Its first address on the bus.
    pub base: u64,
    /// Its size in bytes.
    pub bytes: u64,
}

/// The RTAS tokens for dynamic DMA windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ddw {
    /// `ibm,query-pe-dma-window`.
    pub query: u32,
    /// `ibm,create-pe-dma-window`.
    pub create: u32,
    /// `ibm,remove-pe-dma-window`.
    pub remove: u32,
    /// `ibm,reset-pe-dma-windows`, where the platform has it.
    pub reset: Option<u32>,
    /// Whether the query call returns six values (1) instead of five.
    pub wide_query: Option<u32>,
}

/// A host bridge whose tables name units by phandle until [`resolve`] runs.
pub(crate) struct Raw {
    bridge: HostBridge,
    segment: Option<u16>,
    streams: Vec<u32>,
    msis: Vec<u32>,
}

pub(crate) fn host_bridge(node: Node<'_, '_>, notes: &mut Vec<Note>) -> Result<Option<Raw>, Error> {
    let config = if node.is_compatible("pci-host-ecam-generic") {
        ConfigAccess::Ecam(first_register(node)?)
    } else if node.is_compatible("IBM,Logical_PHB") {
        let (buid, _) = reg(node)?
            .first()
            .copied()
            .ok_or_else(|| node.error("reg", Problem::Missing))?;
        ConfigAccess::Rtas { buid }
    } else {
        return Ok(None);
    };
    if (node.address_cells(), node.size_cells()) != (3, 2) {
        let cells = node.address_cells();
        return Err(node.error("#address-cells", Problem::Cells { cells }));
    }
    let (stream_map, streams) = id_map(node, "iommu-map", "iommu-map-mask")?;
    let (mut msi_map, mut msis) = id_map(node, "msi-map", "msi-map-mask")?;
    if !node.has("msi-map")
        && let Some(phandle) = node.cells("msi-parent")?.next()
    {
        // Without a map every function's requester ID is its device ID.
        msi_map.entries.push(IdRange {
            requester: 0,
            count: 0x1_0000,
            output: 0,
            unit: None,
        });
        msis.push(phandle);
    }
    let segment = node
        .u32("linux,pci-domain")?
        .map(|segment| {
            u16::try_from(segment)
                .map_err(|_| node.error("linux,pci-domain", Problem::Value(segment.into())))
        })
        .transpose()?;
    Ok(Some(Raw {
        bridge: HostBridge {
            segment: segment.unwrap_or_default(),
            config,
            buses: buses(node, config, notes)?,
            windows: windows(node)?,
            streams: stream_map,
            msis: msi_map,
            intx: intx(node)?,
            coherency: if node.has("dma-coherent") || matches!(config, ConfigAccess::Rtas { .. }) {
                Coherency::Coherent
            } else {
                Coherency::NonCoherent
            },
            dma_window: dma_window(node)?,
            ddw: ddw(node)?,
            path: node.path(),
        },
        segment,
        streams,
        msis,
    }))
}

/// Puts indexes in place of phandles, and gives segments to the bridges that have none.
pub(crate) fn resolve(
    raw: Vec<Raw>,
    smmus: &[Smmu],
    itss: &[Its],
    notes: &mut Vec<Note>,
) -> Vec<HostBridge> {
    let mut taken: Vec<u16> = raw.iter().filter_map(|raw| raw.segment).collect();
    let mut bridges: Vec<HostBridge> = Vec::with_capacity(raw.len());
    for Raw {
        mut bridge,
        segment,
        streams,
        msis,
    } in raw
    {
        match segment {
            Some(segment) => {
                if bridges.iter().any(|other| other.segment == segment) {
                    note(notes, || Note::SegmentTwice {
                        path: bridge.path.clone(),
                        segment,
                    });
                }
            }
            None => {
                bridge.segment = (0..u16::MAX)
                    .find(|candidate| !taken.contains(candidate))
                    .unwrap_or(u16::MAX);
                taken.push(bridge.segment);
            }
        }
        for (range, phandle) in bridge.streams.entries.iter_mut().zip(streams) {
            range.unit = smmus.iter().position(|smmu| smmu.phandle == Some(phandle));
        }
        for (range, phandle) in bridge.msis.entries.iter_mut().zip(msis) {
            range.unit = itss.iter().position(|its| its.phandle == Some(phandle));
        }
        if bridge
            .streams
            .entries
            .iter()
            .any(|range| range.unit.is_none())
        {
            note(notes, || Note::UnknownIommu(bridge.path.clone()));
        }
        if bridge.msis.entries.iter().any(|range| range.unit.is_none()) {
            note(notes, || Note::UnknownMsiController(bridge.path.clone()));
        }
        bridges.push(bridge);
    }
    bridges
}

fn id_map(
    node: Node<'_, '_>,
    property: &'static str,
    mask: &'static str,
) -> Result<(IdMap, Vec<u32>), Error> {
    let mask = node
        .u32(mask)?
        .map(|bits| u16::try_from(bits & 0xffff).unwrap_or(u16::MAX));
    let mut cells = node.cells(property)?;
    let bytes = cells.bytes();
    if !bytes.is_multiple_of(16) {
        return Err(node.error(property, Problem::Length { bytes, unit: 16 }));
    }
    let (mut entries, mut phandles) = (Vec::new(), Vec::new());
    while let (Some(requester), Some(phandle), Some(output), Some(count)) =
        (cells.next(), cells.next(), cells.next(), cells.next())
    {
        let range = IdRange {
            requester,
            count,
            output,
            unit: None,
        };
        node.push(property, &mut entries, range)?;
        phandles.push(phandle);
    }
    Ok((IdMap { mask, entries }, phandles))
}

fn buses(
    node: Node<'_, '_>,
    config: ConfigAccess,
    notes: &mut Vec<Note>,
) -> Result<(u8, u8), Error> {
    let mut cells = node.cells("bus-range")?;
    let (first, last) = if cells.is_empty() {
        (0, 0xff)
    } else {
        let mut bus = || {
            let cell = cells
                .next()
                .ok_or_else(|| node.error("bus-range", Problem::Length { bytes: 4, unit: 8 }))?;
            u8::try_from(cell).map_err(|_| node.error("bus-range", Problem::Value(cell.into())))
        };
        (bus()?, bus()?)
    };
    if first > last {
        return Err(node.error("bus-range", Problem::Value(first.into())));
    }
    // What is too small for its buses has as many as fit.
    if let ConfigAccess::Ecam(span) = config {
        let fit = span.len().unwrap_or(u64::MAX) >> 20;
        if fit == 0 {
            let bytes = usize::try_from(span.len().unwrap_or_default()).unwrap_or(usize::MAX);
            return Err(node.error(
                "reg",
                Problem::Length {
                    bytes,
                    unit: 1 << 20,
                },
            ));
        }
        let most = u64::from(first).saturating_add(fit.saturating_sub(1));
        if most < u64::from(last) {
            note(notes, || Note::EcamTooSmall(node.path()));
            return Ok((first, u8::try_from(most).unwrap_or(last)));
        }
    }
    Ok((first, last))
}

fn windows(node: Node<'_, '_>) -> Result<Vec<Window>, Error> {
    let above = node.parent().unwrap_or(node);
    let parent_cells = above.address_cells();
    if parent_cells > 4 {
        let cells = parent_cells;
        return Err(above.error("#address-cells", Problem::Cells { cells }));
    }
    let mut cells = node.cells("ranges")?;
    let bytes = cells.bytes();
    let unit = usize::try_from(parent_cells)
        .unwrap_or(4)
        .saturating_add(5)
        .saturating_mul(4);
    if !bytes.is_multiple_of(unit) {
        return Err(node.error("ranges", Problem::Length { bytes, unit }));
    }
    let mut windows = Vec::new();
    while let (Some(flags), Some(bus), Some(cpu), Some(size)) = (
        cells.next(),
        cells.number(2),
        cells.number(parent_cells),
        cells.number(2),
    ) {
        let wide = || node.error("ranges", Problem::TooWide);
        let (bus, cpu, size) = (
            bus.ok_or_else(wide)?,
            cpu.ok_or_else(wide)?,
            size.ok_or_else(wide)?,
        );
        // phys.hi of the PCI binding: the space in bits 25:24, prefetchable in bit 30
        // [IEEE 1275 PCI bus binding §2.2.1.1].
        let kind = match flags >> 24 & 3 {
            1 => WindowKind::Io,
            2 => WindowKind::Memory32,
            3 => WindowKind::Memory64,
            _ => continue,
        };
        if size == 0 {
            continue;
        }
        if bus.checked_add(size.saturating_sub(1)).is_none() {
            let problem = Problem::PastEnd {
                start: bus,
                bytes: size,
            };
            return Err(node.error("ranges", problem));
        }
        let window = Window {
            kind,
            prefetch: if flags & 1 << 30 == 0 {
                Prefetch::Forbidden
            } else {
                Prefetch::Allowed
            },
            bus,
            cpu: translate(node, "ranges", cpu, size)?,
        };
        node.push("ranges", &mut windows, window)?;
    }
    Ok(windows)
}

fn intx(node: Node<'_, '_>) -> Result<IntxMap, Error> {
    let mut mask = node.cells("interrupt-map-mask")?;
    let mask = match (mask.next(), mask.next(), mask.next(), mask.next()) {
        (Some(address), _, _, Some(pin)) => (address, pin),
        _ => return Ok(IntxMap::default()),
    };
    let mut cells = node.cells("interrupt-map")?;
    let bytes = cells.bytes();
    let short = || node.error("interrupt-map", Problem::Length { bytes, unit: 4 });
    let mut entries = Vec::new();
    while !cells.is_empty() {
        let (Some(address), Some(_), Some(_), Some(pin), Some(phandle)) = (
            cells.next(),
            cells.next(),
            cells.next(),
            cells.next(),
            cells.next(),
        ) else {
            return Err(short());
        };
        let controller = node
            .tree()
            .by_phandle(phandle)
            .ok_or_else(|| node.error("interrupt-map", Problem::Phandle(phandle)))?;
        // Here `#address-cells` counts only when it is written down; its default of 2 does not.
        let unit_cells = controller.u32("#address-cells")?.unwrap_or_default();
        if unit_cells > 4 {
            return Err(controller.error("#address-cells", Problem::Cells { cells: unit_cells }));
        }
        cells.number(unit_cells).ok_or_else(short)?;
        let interrupt = specifier(node, "interrupt-map", controller, &mut cells)?;
        if let Some(interrupt) = interrupt {
            let entry = (address & mask.0, pin & mask.1, interrupt);
            node.push("interrupt-map", &mut entries, entry)?;
        }
    }
    Ok(IntxMap { mask, entries })
}

/// `ibm,#dma-address-cells` and its like stand on the node or above it.
fn inherited(node: Node<'_, '_>, property: &'static str) -> Result<Option<u32>, Error> {
    let mut here = Some(node);
    while let Some(at) = here {
        if let Some(value) = at.u32(property)? {
            return Ok(Some(value));
        }
        here = at.parent();
    }
    Ok(None)
}

fn dma_window(node: Node<'_, '_>) -> Result<Option<DmaWindow>, Error> {
    const PROPERTY: &str = "ibm,dma-window";
    let mut cells = node.cells(PROPERTY)?;
    if cells.is_empty() {
        return Ok(None);
    }
    let bytes = cells.bytes();
    let short = || node.error(PROPERTY, Problem::Length { bytes, unit: 4 });
    let wide = || node.error(PROPERTY, Problem::TooWide);
    let count = |property| -> Result<u32, Error> {
        let cells = inherited(node, property)?.unwrap_or(2);
        if (1..=2).contains(&cells) {
            Ok(cells)
        } else {
            Err(node.error(property, Problem::Cells { cells }))
        }
    };
    let (address_cells, size_cells) = (
        count("ibm,#dma-address-cells")?,
        count("ibm,#dma-size-cells")?,
    );
    let liobn = cells.next().ok_or_else(short)?;
    let base = cells
        .number(address_cells)
        .ok_or_else(short)?
        .ok_or_else(wide)?;
    let size = cells
        .number(size_cells)
        .ok_or_else(short)?
        .ok_or_else(wide)?;
    Ok(Some(DmaWindow {
        liobn: Liobn::new(liobn).map_err(|_| node.error(PROPERTY, Problem::Value(liobn.into())))?,
        base,
        bytes: size,
    }))
}

fn ddw(node: Node<'_, '_>) -> Result<Option<Ddw>, Error> {
    let mut tokens = node.cells("ibm,ddw-applicable")?;
    let (Some(query), Some(create), Some(remove)) = (tokens.next(), tokens.next(), tokens.next())
    else {
        return Ok(None);
    };
    // The extensions start with how many follow.
    let mut extensions = node.cells("ibm,ddw-extensions")?;
    let count = extensions.next().unwrap_or_default();
    Ok(Some(Ddw {
        query,
        create,
        remove,
        reset: extensions.next().filter(|_| count >= 1),
        wide_query: extensions.next().filter(|_| count >= 2),
    }))
}

/// What [`Machine::iommu_of`](crate::Machine::iommu_of) returns.
pub(crate) fn stream(bridge: &HostBridge, requester: Bdf) -> Option<(usize, StreamId)> {
    let (smmu, id) = bridge.streams.lookup(requester)?;
    Some((smmu, StreamId::new(id).ok()?))
}
