//! Identity mappings asked of the guest: `/reserved-memory` with `iommu-addresses`, and the PCI
//! device nodes that claim them.
//!
//! Linux takes such a mapping only when the region's `reg` equals the range in `iommu-addresses`,
//! the range is written in the cells of the device's parent bus (three for PCI), and the device's
//! own node names the region in `memory-region`.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;

use types::Bdf;

use super::{NodeBuilder, cells, concat};
use crate::platform::{GuestPlatform, Rmr};

/// The PCI space code of 32-bit memory: what the first cell of a PCI address begins with.
const MEMORY32: u32 = 0x0200_0000;

/// Hands out node handles.
pub(super) struct Handles(u32);

impl Handles {
    pub(super) fn starting_at(first: u32) -> Self {
        Self(first)
    }

    fn take(&mut self) -> u32 {
        let handle = self.0;
        self.0 = handle.saturating_add(1);
        handle
    }
}

/// A PCI function with its own node, and what is behind it.
#[derive(Default)]
struct Function {
    behind: BTreeMap<u16, Function>,
    handle: Option<u32>,
    regions: Vec<u32>,
}

impl Function {
    fn at(&mut self, path: impl Iterator<Item = Bdf>) -> &mut Function {
        path.fold(self, |function, bdf| {
            function.behind.entry(bdf.bits()).or_default()
        })
    }

    fn nodes(&self) -> impl Iterator<Item = NodeBuilder> {
        self.behind
            .iter()
            .map(|(bdf, function)| function.node(Bdf::from_bits(*bdf)))
    }

    /// The lowest and the highest bus that anything behind this bridge is on.
    fn buses(&self, bdf: Bdf) -> [u32; 2] {
        let range = self
            .behind
            .iter()
            .fold(None, |range: Option<[u32; 2]>, (behind, function)| {
                let behind = Bdf::from_bits(*behind);
                let bus = u32::from(behind.bus());
                let [low, high] = function.buses(behind);
                let [low, high] = [low.min(bus), high.max(bus)];
                Some(range.map_or([low, high], |[a, b]| [a.min(low), b.max(high)]))
            });
        // Nothing behind it: its own bus bounds nothing.
        range.unwrap_or([u32::from(bdf.bus()); 2])
    }

    fn node(&self, bdf: Bdf) -> NodeBuilder {
        let kind = if self.behind.is_empty() {
            "device"
        } else {
            "pcie"
        };
        let name = format!("{kind}@{:x},{:x}", bdf.device(), bdf.function());
        let mut node = NodeBuilder::new(name)
            // Configuration space of the function: the requester ID in bits 23:8.
            .with("reg", [u32::from(bdf.bits()) << 8, 0, 0, 0, 0]);
        if !self.behind.is_empty() {
            node = node
                .with("device_type", "pci")
                .with("#address-cells", 3u32)
                .with("#size-cells", 2u32)
                .with("bus-range", self.buses(bdf))
                .flag("ranges");
        }
        if let Some(handle) = self.handle {
            node = node
                .with("memory-region", self.regions.as_slice())
                .with("phandle", handle);
        }
        node.children(self.nodes())
    }
}

/// The regions and the devices of all [`Rmr`]s.
pub(super) struct Reserved<'a> {
    regions: Vec<Region<'a>>,
    root_bus: Function,
}

struct Region<'a> {
    rmr: &'a Rmr,
    handle: u32,
    devices: Vec<u32>,
}

impl<'a> Reserved<'a> {
    pub(super) fn new(platform: &'a GuestPlatform, handles: &mut Handles) -> Self {
        let mut root_bus = Function::default();
        let mut regions = Vec::new();
        for rmr in &platform.rmrs {
            let region = handles.take();
            let mut devices = Vec::new();
            for path in &rmr.devices {
                let bridges = path.bridges().iter().copied();
                let function = root_bus.at(bridges.chain([path.function()]));
                devices.push(*function.handle.get_or_insert_with(|| handles.take()));
                function.regions.push(region);
            }
            regions.push(Region {
                rmr,
                handle: region,
                devices,
            });
        }
        Self { regions, root_bus }
    }

    /// `/reserved-memory`, when there is anything in it.
    pub(super) fn regions(&self) -> Option<NodeBuilder> {
        let nodes = self.regions.iter().map(|region| {
            let window = region.rmr.window;
            let bytes = window.len().unwrap_or(u64::MAX);
            let addresses = region.devices.iter().map(|device| {
                let [high, low] = cells(window.start().bits());
                let [size_high, size_low] = cells(bytes);
                Vec::from([*device, MEMORY32, high, low, size_high, size_low])
            });
            NodeBuilder::at("msi", window.start())
                .reg(&[(window.start(), bytes)])
                .with("iommu-addresses", concat(addresses))
                .with("phandle", region.handle)
        });
        (!self.regions.is_empty()).then(|| {
            NodeBuilder::new("reserved-memory")
                .with("#address-cells", 2u32)
                .with("#size-cells", 2u32)
                .flag("ranges")
                .children(nodes)
        })
    }

    /// The nodes below the PCI host.
    pub(super) fn devices(&self) -> impl Iterator<Item = NodeBuilder> {
        self.root_bus.nodes()
    }
}
