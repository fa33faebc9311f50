//! Random trees that are well-formed as blobs and nonsense, or nearly sense, as machines.

use std::{string::ToString, vec, vec::Vec};

use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};
use types::{Address, Bdf, Pa, Span};

use super::samples::{GIC, ITS, N, SMMU, XICS, node, pseries, virt};
use crate::{Machine, Note, memory::join};

const NODES: [&str; 14] = [
    "cpus",
    "cpu@0",
    "memory@0",
    "reserved-memory",
    "region@1",
    "chosen",
    "aliases",
    "rtas",
    "soc",
    "intc@8000000",
    "smmu@9050000",
    "pcie@10000000",
    "vdevice",
    "uart@1",
];

const PROPERTIES: [&str; 30] = [
    "#address-cells",
    "#size-cells",
    "#interrupt-cells",
    "#iommu-cells",
    "#redistributor-regions",
    "bus-range",
    "compatible",
    "device_type",
    "dma-coherent",
    "ibm,ddw-applicable",
    "ibm,ddw-extensions",
    "ibm,dma-window",
    "ibm,ppc-interrupt-server#s",
    "interrupt-map",
    "interrupt-map-mask",
    "interrupt-names",
    "interrupt-parent",
    "interrupts",
    "interrupts-extended",
    "iommu-map",
    "iommus",
    "linux,initrd-end",
    "linux,initrd-start",
    "linux,pci-domain",
    "msi-map",
    "msi-parent",
    "phandle",
    "ranges",
    "reg",
    "status",
];

const STRINGS: [&str; 18] = [
    "IBM,Logical_PHB",
    "IBM,ppc-xicp",
    "arm,armv8-timer",
    "arm,gic-v3",
    "arm,gic-v3-its",
    "arm,gic-400",
    "arm,pl011",
    "arm,psci-1.0",
    "arm,smmu-v3",
    "cpu",
    "disabled",
    "eventq",
    "hvterm1",
    "ibm,power-ivpe",
    "memory",
    "ns16550a",
    "pci",
    "pci-host-ecam-generic",
];

fn value() -> impl Strategy<Value = Vec<u8>> {
    let cell = prop_oneof![
        4 => 0u32..5,
        2 => prop::sample::select(vec![GIC, ITS, SMMU, XICS]),
        2 => any::<u32>(),
        1 => Just(u32::MAX),
        1 => Just(0x1000),
    ];
    let cells = prop::collection::vec(cell, 0..20)
        .prop_map(|cells| cells.iter().flat_map(|cell| cell.to_be_bytes()).collect());
    let strings = prop::collection::vec(prop::sample::select(STRINGS.to_vec()), 1..3)
        .prop_map(|strings| (strings.join("\0") + "\0").into_bytes());
    prop_oneof![4 => cells, 4 => strings, 1 => prop::collection::vec(any::<u8>(), 0..9)]
}

/// Which node to hang it below (0 is the root), its name, its properties.
type Random = Vec<(prop::sample::Index, usize, Vec<(usize, Vec<u8>)>)>;

fn random() -> impl Strategy<Value = Random> {
    let properties = prop::collection::vec((0..PROPERTIES.len(), value()), 0..9);
    prop::collection::vec(
        (any::<prop::sample::Index>(), 0..NODES.len(), properties),
        1..10,
    )
}

/// The nodes in a tree; those that hang below others come later in the list.
fn grow(base: N, random: &Random) -> Vec<u8> {
    fn build(at: usize, parents: &[usize], random: &Random) -> N {
        let (_, name, properties) = &random[at];
        let start = node(NODES[*name]);
        let with = properties
            .iter()
            .fold(start, |n, (name, value)| n.bytes(PROPERTIES[*name], value));
        children(at + 1, parents, random, with)
    }
    fn children(parent: usize, parents: &[usize], random: &Random, start: N) -> N {
        (0..parents.len())
            .filter(|child| parents[*child] == parent)
            .fold(start, |n, child| n.child(build(child, parents, random)))
    }
    let parents: Vec<_> = (0..random.len())
        .map(|at| random[at].0.index(at + 1))
        .collect();
    children(0, &parents, random, base).blob()
}

/// What holds of every machine that is read, whatever the tree says.
fn holds(machine: &Machine) {
    assert!(!machine.memory.is_empty());
    for pair in machine.memory.windows(2) {
        // Sorted, and apart: what touches is joined.
        assert!(pair[0].last().bits() + 1 < pair[1].start().bits());
    }
    for bridge in &machine.host_bridges {
        assert!(bridge.buses.0 <= bridge.buses.1);
        for requester in [0, 1, 0xff, 0x100, 0xffff].map(Bdf::from_bits) {
            if let Some((smmu, _)) = machine.iommu_of(bridge.segment, requester) {
                assert!(smmu < machine.smmus.len());
            }
            if let Some((its, _)) = machine.msi_of(bridge.segment, requester) {
                assert!(its < machine.itss.len());
            }
        }
    }
    for master in &machine.masters {
        assert!(master.smmu < machine.smmus.len());
    }
    for smmu in &machine.smmus {
        assert!(smmu.msi_parent.is_none_or(|its| its < machine.itss.len()));
    }
    let report = machine.to_string();
    assert!(report.lines().count() >= 5);
    assert!(
        report.lines().all(|line| line.split_once(": ").is_some()),
        "{report}"
    );
}

proptest! {
    #[test]
    fn random_nodes_in_a_good_tree_break_nothing(random in random(), power in any::<bool>()) {
        let base = if power { pseries(1) } else { virt(1) };
        let blob = grow(base, &random);
        match Machine::from_fdt(&blob) {
            Ok(machine) => holds(&machine),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn random_nodes_alone_break_nothing(random in random()) {
        if let Ok(machine) = Machine::from_fdt(&grow(node(""), &random)) {
            holds(&machine);
        }
    }

    #[test]
    fn joined_memory_is_the_memory_given(pages in prop::collection::vec((0u64..60, 1u64..8), 1..12)) {
        let span = |(start, count): (u64, u64)| {
            Span::from_len(Pa::new(start << 12).unwrap(), count << 12).unwrap()
        };
        let spans: Vec<_> = pages.iter().copied().map(span).collect();
        let mut notes = Vec::new();
        let joined = join(spans.clone(), &mut notes);
        let mut twice = false;
        for page in 0..80u64 {
            let here = Pa::new(page << 12).unwrap();
            let given = spans.iter().filter(|span| span.contains(here)).count();
            twice |= given > 1;
            assert_eq!(joined.iter().filter(|span| span.contains(here)).count(), given.min(1));
        }
        for pair in joined.windows(2) {
            assert!(pair[0].last().checked_add(1).unwrap() < pair[1].start());
        }
        assert_eq!(twice, notes.iter().any(|note| matches!(note, Note::MemoryTwice(_))));
    }

    #[test]
    fn a_map_gives_what_its_first_matching_range_says(
        ranges in prop::collection::vec((0u32..40, 0u32..20, any::<u32>()), 0..6),
        requester in 0u16..64,
    ) {
        let map: Vec<_> = ranges
            .iter()
            .flat_map(|(first, count, output)| [*first, SMMU, *output, *count])
            .collect();
        let tree = virt(1).edit(&["pcie@10000000"], |n| n.cells("iommu-map", &map));
        let machine = Machine::from_fdt(&tree.blob()).unwrap();
        // A range whose output leaves 32 bits gives nothing; a later one may.
        let expected = ranges.iter().find_map(|(first, count, output)| {
            let inside = (*first..first + count).contains(&u32::from(requester));
            let id = u64::from(*output) + u64::from(u32::from(requester).wrapping_sub(*first));
            if inside { u32::try_from(id).ok() } else { None }
        });
        let found = machine.iommu_of(0, Bdf::from_bits(requester));
        assert_eq!(found.map(|(_, stream)| stream.bits()), expected);
    }
}
