//! The device tree's part about a guest's host bridges.

use alloc::vec::Vec;

use dtoolkit::model::{DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node as _, Property as _};
use pci::{BarKind, Function};
use types::Bdf;

use super::address;
use crate::hardware::Bridge;

/// Properties of the machine's tree that are not the guest's.
const NOT_ITS: [&str; 9] = [
    "ibm,my-drc-index",
    "ibm,drc-indexes",
    "ibm,drc-names",
    "ibm,drc-types",
    "ibm,drc-power-domains",
    "interrupt-map",
    "interrupt-map-mask",
    "ibm,dma-window",
    "interrupts",
];

fn property<T: dtoolkit::ToPropertyValue>(name: &str, value: T) -> DeviceTreeProperty {
    DeviceTreeProperty::new_unchecked(name, value)
}

/// The node of a bridge: the machine's own, with the guest's windows and the places of BARs.
pub(super) fn node(
    pattern: &DeviceTreeNode,
    bridge: &Bridge,
    properties: &vtce::Properties,
) -> DeviceTreeNode {
    let mut node = pattern.clone();
    for name in NOT_ITS {
        node.remove_property(name);
    }
    node.add_property(property("ibm,dma-window", properties.dma_window));
    for (name, value) in [
        ("ibm,ddw-applicable", properties.ddw_applicable),
        ("ibm,ddw-extensions", properties.ddw_extensions),
    ] {
        node.remove_property(name);
        if let Some(value) = value {
            node.add_property(property(name, value));
        }
    }
    for child in node.children_mut() {
        for name in NOT_ITS {
            child.remove_property(name);
        }
        let reg = child.property("reg").map(|reg| reg.value().to_vec());
        let place = reg.as_deref().and_then(|reg| reg.first_chunk::<4>());
        let bits = place.map(|place| u32::from_be_bytes(*place) >> 8 & 0xffff);
        let bdf = bits
            .and_then(|bits| u16::try_from(bits).ok())
            .map(Bdf::from_bits);
        let function = bdf.and_then(|bdf| bridge.topology.function(bdf));
        if let Some(function) = function {
            child.remove_property("assigned-addresses");
            let cells = assigned(function);
            child.add_property(property("assigned-addresses", cells));
        }
    }
    node
}

/// The places of a function's BARs. [IEEE 1275, PCI bus binding §2.2.1.1]
fn assigned(function: &Function) -> Vec<u8> {
    const FIXED: u32 = 1 << 31;
    const PREFETCHABLE: u32 = 1 << 30;
    let mut cells: Vec<u32> = Vec::new();
    for bar in &function.bars {
        let Some(place) = bar.place else { continue };
        let kind = match bar.kind {
            BarKind::Io => 1 << 24,
            BarKind::Memory32 => 2 << 24,
            BarKind::Prefetchable32 => 2 << 24 | PREFETCHABLE,
            BarKind::Memory64 => 3 << 24,
            BarKind::Prefetchable64 => 3 << 24 | PREFETCHABLE,
        };
        let register = 0x10 + 4 * u32::from(bar.index);
        cells.push(FIXED | kind | address(function.bdf) | register);
        for value in [place.bus, bar.size] {
            let bytes = value.to_be_bytes();
            cells.extend(
                bytes
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|half| u32::from_be_bytes(*half)),
            );
        }
    }
    cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
}
