//! The device tree of a guest: what it is given, and of the machine's own tree what describes CPUs.

use alloc::vec::Vec;

use dtoolkit::Node as _;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use super::rtas;

/// What the tree says of one guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) bytes: u64,
    pub(crate) cpus: usize,
    pub(crate) bootargs: &'a str,
    /// First address, and first address behind.
    pub(crate) initrd: Option<(u64, u64)>,
    /// Whether the platform tells the time.
    pub(crate) has_clock: bool,
}

/// The unit address of the guest's terminal.
pub(crate) const TERMINAL: u32 = 0x7100_0000;
const TERMINAL_PATH: &str = "/vdevice/vty@71000000";

/// Groups of hypercalls that the guest may use.
const HYPERTAS: &[&str] = &[
    "hcall-term",
    "hcall-interrupt",
    "hcall-vio",
    "hcall-set-mode",
];

/// Writes the tree. `machine` is the machine's own.
pub(crate) fn build(machine: &DeviceTreeNode, facts: &Facts<'_>) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    let root = &mut tree.root;
    for (name, value) in [("#address-cells", 2_u32), ("#size-cells", 2)] {
        root.add_property(property(name, value));
    }
    root.add_property(property("device_type", "chrp"));
    root.add_property(property("compatible", "qemu,pseries"));
    root.add_property(property("model", "Bulkhead guest"));
    root.add_child(chosen(facts));
    root.add_child(memory(facts.bytes));
    if let Some(cpus) = machine.child("cpus") {
        root.add_child(cpus_of(cpus, facts.cpus));
    }
    root.add_child(rtas_node(facts));
    root.add_child(vdevice());
    let presentation = machine
        .children()
        .find(|node| node.name_without_address() == "interrupt-controller");
    if let Some(node) = presentation {
        let mut node = node.clone();
        let servers = [0, u32::try_from(facts.cpus).unwrap_or(u32::MAX)];
        node.add_property(property("ibm,interrupt-server-ranges", servers));
        root.add_child(node);
    }
    tree.to_dtb()
}

fn property<T: dtoolkit::ToPropertyValue>(name: &str, value: T) -> DeviceTreeProperty {
    DeviceTreeProperty::new_unchecked(name, value)
}

fn chosen(facts: &Facts<'_>) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("chosen");
    node.add_property(property("bootargs", facts.bootargs));
    node.add_property(property("stdout-path", TERMINAL_PATH));
    node.add_property(property("linux,stdout-path", TERMINAL_PATH));
    if let Some((start, end)) = facts.initrd {
        node.add_property(property("linux,initrd-start", start));
        node.add_property(property("linux,initrd-end", end));
    }
    node.add_property(property(
        "ibm,architecture-vec-5",
        option_vector_5().as_slice(),
    ));
    node
}

/// What firmware and guest would have agreed on. [LoPAPR §B.6.2.3, byte numbers of vector 5]
fn option_vector_5() -> [u8; 28] {
    let mut vector = [0; 28];
    vector[0] = 27;
    // Byte 23: XICS. Byte 24: radix. Byte 26: the guest may invalidate its own translations.
    vector[24] = 0x40;
    vector[26] = 0x40;
    vector
}

fn memory(bytes: u64) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("memory@0");
    node.add_property(property("device_type", "memory"));
    let reg: Vec<u8> = [0, bytes]
        .iter()
        .flat_map(|cell: &u64| cell.to_be_bytes())
        .collect();
    node.add_property(property("reg", reg));
    node
}

/// The first `count` CPUs of the machine: a guest's CPU is what the machine's is.
fn cpus_of(cpus: &DeviceTreeNode, count: usize) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("cpus");
    for property in cpus.properties() {
        node.add_property(property.clone());
    }
    for cpu in cpus.children().take(count) {
        node.add_child(cpu.clone());
    }
    node
}

fn rtas_node(facts: &Facts<'_>) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("rtas");
    let clock = facts.has_clock.then_some(&rtas::CLOCK_TOKEN);
    for (name, token) in rtas::TOKENS.iter().chain(clock) {
        node.add_property(property(name, *token));
    }
    node.add_property(property("rtas-version", 1_u32));
    node.add_property(property("rtas-size", rtas::BYTES));
    node.add_property(property("linux,rtas-base", rtas::BASE));
    node.add_property(property("linux,rtas-entry", rtas::BASE));
    node.add_property(property("ibm,hypertas-functions", HYPERTAS));
    node
}

fn vdevice() -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("vdevice");
    node.add_property(property("device_type", "vdevice"));
    node.add_property(property("compatible", "IBM,vdevice"));
    node.add_property(property("#address-cells", 1_u32));
    node.add_property(property("#size-cells", 0_u32));
    let mut vty = DeviceTreeNode::new_unchecked("vty@71000000");
    vty.add_property(property("name", "vty"));
    vty.add_property(property("device_type", "serial"));
    vty.add_property(property("compatible", "hvterm1"));
    vty.add_property(property("reg", TERMINAL));
    node.add_child(vty);
    node
}
