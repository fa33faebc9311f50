//! The device tree's part about a guest's host bridges.

use alloc::vec::Vec;

use dtoolkit::model::{DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node as _, Property as _};
use pci::{BarKind, Function, FunctionReset};
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

/// Says to which source of the guest's controller, which is named by its phandle, a function's pin goes.
pub(super) type Pins<'a> = &'a dyn Fn(Bdf) -> Option<(u32, u32)>;

/// The node of a bridge: the machine's own, with the guest's windows, pins and the places of BARs.
pub(super) fn node(
    pattern: &DeviceTreeNode,
    bridge: &Bridge,
    properties: &vtce::Properties,
    pins: Pins<'_>,
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
    add_pins(&mut node, bridge, None, pins);
    functions_of(&mut node, bridge, pins);
    node
}

/// The functions below a node, which is a host bridge's or a bridge's.
fn functions_of(node: &mut DeviceTreeNode, bridge: &Bridge, pins: Pins<'_>) {
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
        let Some(function) = bdf.and_then(|bdf| bridge.topology.function(bdf)) else {
            continue;
        };
        child.remove_property("assigned-addresses");
        let cells = assigned(function);
        child.add_property(property("assigned-addresses", cells));
        if is_reset_alone(function) {
            child.add_property(property("ibm,pe-reset-is-flr", ""));
        }
        if let (Some(pin), Some(_)) = (function.interrupt_pin, pins(function.bdf)) {
            child.add_property(property("interrupts", u32::from(pin)));
        }
        if function.bridge().is_some() {
            add_pins(child, bridge, Some(function.bdf), pins);
            functions_of(child, bridge, pins);
        }
    }
}

/// Whether a reset of the PE is one of this function by itself. [LoPAR ibm,set-slot-reset, R1-9]
pub(super) fn is_reset_alone(function: &Function) -> bool {
    let express = function.capabilities.express.as_ref();
    let advanced = function.capabilities.advanced.as_ref();
    let supported = |reset| reset == FunctionReset::Supported;
    function.bridge().is_none()
        && function.parent.is_none()
        && (express.is_some_and(|express| supported(express.reset))
            || advanced.is_some_and(|advanced| supported(advanced.reset)))
}

/// Where the pins of the functions right below a node go. [Devicetree Specification 0.4 §2.4.3]
fn add_pins(node: &mut DeviceTreeNode, bridge: &Bridge, parent: Option<Bdf>, pins: Pins<'_>) {
    /// Device and function, and the pin.
    const MASK: [u32; 4] = [0xff00, 0, 0, 7];
    /// The source is a level.
    const LEVEL: u32 = 1;
    let functions = bridge.topology.functions().iter();
    let below = functions.filter(|function| function.parent == parent);
    let entries = below.filter_map(|function| {
        let pin = u32::from(function.interrupt_pin?);
        let (controller, source) = pins(function.bdf)?;
        let at = address(function.bdf) & 0xff00;
        Some([at, 0, 0, pin, controller, source, LEVEL])
    });
    let cells: Vec<u8> = entries.flatten().flat_map(u32::to_be_bytes).collect();
    if !cells.is_empty() {
        let mask: Vec<u8> = MASK.into_iter().flat_map(u32::to_be_bytes).collect();
        node.remove_property("#interrupt-cells");
        node.add_property(property("#interrupt-cells", 1_u32));
        node.add_property(property("interrupt-map-mask", mask));
        node.add_property(property("interrupt-map", cells));
    }
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
