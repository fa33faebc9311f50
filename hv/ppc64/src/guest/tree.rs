//! The device tree of a guest: what it is given, and of the machine's own tree what describes CPUs.

use alloc::vec::Vec;

use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node as _, Property as _};

use super::devices::Devices;

/// Where the run-time services are, and what is set apart for them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Services {
    pub(crate) base: u32,
    pub(crate) bytes: u32,
}

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
    pub(crate) services: Services,
    /// The interrupt of the terminal, by edge, if there is a terminal.
    pub(crate) terminal: Option<u32>,
    /// The devices it owns.
    pub(crate) devices: Option<&'a Devices>,
}

const TERMINAL_PATH: &str = "/vdevice/vty@71000000";

/// Writes the tree. `machine` is the machine's own.
#[optimize(size)]
pub(crate) fn build(machine: &DeviceTreeNode, facts: &Facts<'_>) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    // Firmware would have taken it out of the guest's memory.
    tree.memory_reservations.push(MemoryReservation::new(
        facts.services.base.into(),
        facts.services.bytes.into(),
    ));
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
    root.add_child(vdevice(facts));
    root.add_child(random());
    if let Some(devices) = facts.devices {
        root.add_child(event_sources());
        for (name, value) in devices.root_lists() {
            root.add_property(property(name, value));
        }
    }
    root.add_child(presentation(facts.cpus));
    for node in facts
        .devices
        .iter()
        .flat_map(|devices| devices.nodes(machine))
    {
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
    if facts.terminal.is_some() {
        node.add_property(property("stdout-path", TERMINAL_PATH));
        node.add_property(property("linux,stdout-path", TERMINAL_PATH));
    }
    if let Some((start, end)) = facts.initrd {
        node.add_property(property("linux,initrd-start", start));
        node.add_property(property("linux,initrd-end", end));
    }
    // BARs are where they are.
    if facts.devices.is_some() {
        node.add_property(property("linux,pci-probe-only", 1_u32));
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

/// CPUs with the servers 0 and up, each as the machine's first: a guest's CPU is what the machine's
/// is.
fn cpus_of(cpus: &DeviceTreeNode, count: usize) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("cpus");
    for property in cpus.properties() {
        node.add_property(property.clone());
    }
    let Some(pattern) = cpus
        .children()
        .find(|child| child.name_without_address().starts_with("PowerPC"))
    else {
        return node;
    };
    let kind = pattern.name_without_address();
    for server in (0..).take(count) {
        let name = alloc::format!("{kind}@{server:x}");
        let mut cpu = DeviceTreeNode::new_unchecked(name.as_str());
        let not_shared = [
            "phandle",
            "linux,phandle",
            "ibm,my-drc-index",
            "reg",
            "ibm,ppc-interrupt-server#s",
            "ibm,ppc-interrupt-gserver#s",
            // They count whoever has the thread.
            "ibm,purr",
            "ibm,spurr",
        ];
        for property in pattern.properties() {
            if !not_shared.contains(&property.name()) {
                cpu.add_property(property.clone());
            }
        }
        cpu.add_property(property("reg", server));
        cpu.add_property(property("ibm,ppc-interrupt-server#s", server));
        cpu.add_property(property("ibm,ppc-interrupt-gserver#s", [server, 0_u32]));
        node.add_child(cpu);
    }
    node
}

fn rtas_node(facts: &Facts<'_>) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("rtas");
    for (name, token) in papr::TOKENS {
        if facts.has_clock || !name.ends_with("-time-of-day") {
            node.add_property(property(name, *token));
        }
    }
    // `ibm,os-term` does not come back.
    node.add_property(property("ibm,extended-os-term", ""));
    // How often `event-scan` wants to be called: once a minute is the least. [LoPAPR §7.3.3]
    node.add_property(property("rtas-event-scan-rate", 1_u32));
    node.add_property(property("rtas-error-log-max", 2048_u32));
    node.add_property(property("rtas-version", 1_u32));
    node.add_property(property("rtas-size", facts.services.bytes));
    node.add_property(property("linux,rtas-base", facts.services.base));
    node.add_property(property("linux,rtas-entry", facts.services.base));
    let mut groups = papr::HYPERTAS.to_vec();
    if facts.devices.is_some() {
        groups.extend(vtce::HYPERTAS);
        for (name, token) in Devices::services() {
            node.add_property(property(name, token));
        }
        // What those services do of what they may do: MSI-X; fundamental resets, too; five results. [LoPAR, PAPR binding, RTAS node]
        node.add_property(property("ibm,change-msix-capable", ""));
        node.add_property(property("ibm,reset-capabilities", 1_u32));
        node.add_property(property("ibm,read-slot-reset-state-functions", 3_u32));
        let errors = eeh::ERRORS.iter();
        let errors = errors.flat_map(|(name, token)| {
            let name = name.bytes().chain([0]);
            name.chain(token.to_be_bytes())
        });
        let errors: Vec<u8> = errors.collect();
        node.add_property(property("ibm,errinjct-tokens", errors));
        // The most memory there will ever be (what a window onto all of it has to hold), in units of
        // 256 MiB, and the most CPUs. Linux sizes its direct window by it.
        let capacity: Vec<u8> = [facts.bytes, 0x1000_0000]
            .iter()
            .flat_map(|cells| cells.to_be_bytes())
            .chain(u32::try_from(facts.cpus).unwrap_or(0).to_be_bytes())
            .collect();
        node.add_property(property("ibm,lrdr-capacity", capacity));
    }
    node.add_property(property("ibm,hypertas-functions", groups.as_slice()));
    node
}

fn vdevice(facts: &Facts<'_>) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("vdevice");
    node.add_property(property("device_type", "vdevice"));
    node.add_property(property("compatible", "IBM,vdevice"));
    node.add_property(property("#address-cells", 1_u32));
    node.add_property(property("#size-cells", 0_u32));
    node.add_property(property("#interrupt-cells", 2_u32));
    node.add_property(property("interrupt-controller", ""));
    let Some(interrupt) = facts.terminal else {
        return node;
    };
    let mut vty = DeviceTreeNode::new_unchecked("vty@71000000");
    vty.add_property(property("name", "vty"));
    vty.add_property(property("device_type", "serial"));
    vty.add_property(property("compatible", "hvterm1"));
    vty.add_property(property("reg", papr::TERMINAL));
    vty.add_property(property("interrupts", [interrupt, 0_u32]));
    node.add_child(vty);
    node
}

/// Says that there is XICS, whatever the machine's own CPUs are interrupted by. [LoPAPR §C.6.8.1]
fn presentation(cpus: usize) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("interrupt-controller");
    let kind = "PowerPC-External-Interrupt-Presentation";
    node.add_property(property("device_type", kind));
    node.add_property(property("compatible", "IBM,ppc-xicp"));
    node.add_property(property("interrupt-controller", ""));
    node.add_property(property("#interrupt-cells", 2_u32));
    node.add_property(property("#address-cells", 0_u32));
    let servers = [0, u32::try_from(cpus).unwrap_or(u32::MAX)];
    node.add_property(property("ibm,interrupt-server-ranges", servers));
    node.add_property(property("phandle", PRESENTATION));
    node
}

/// What host bridges refer to it by: as in QEMU's trees.
pub(super) const PRESENTATION: u32 = 0x1111;

/// The interrupt of hot plug's events, by edge.
fn event_sources() -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("event-sources");
    node.add_property(property("interrupt-controller", ""));
    node.add_property(property("#interrupt-cells", 2_u32));
    let mut events = DeviceTreeNode::new_unchecked("hot-plug-events");
    events.add_property(property("interrupts", [papr::HOT_PLUG_SOURCE, 0_u32]));
    node.add_child(events);
    node
}

/// Says that there is `H_RANDOM`.
fn random() -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("ibm,random");
    node.add_property(property("compatible", "ibm,random"));
    node
}
