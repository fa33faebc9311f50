use std::{string::String, string::ToString, vec::Vec};

use dtoolkit::{Node as _, Property as _, fdt::Fdt};
use proptest::prelude::{Strategy, any, prop, proptest};

use super::samples::{N, SMMU, node, pseries, virt};
use crate::{
    Block, Error, MAX_BYTES, MAX_DEPTH, MAX_ENTRIES, MAX_NODES, MAX_NOTES, MAX_UNITS, Machine,
    Malformed, Note, Problem, UartKind, blob_size, tree::Tree,
};

fn patched(at: usize, value: u32) -> Vec<u8> {
    let mut blob = virt(1).blob();
    blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
    blob
}

#[test]
fn headers_that_lie_are_refused() {
    let read = |blob: &[u8]| Machine::from_fdt(blob).unwrap_err();
    let good = virt(1).blob();
    assert_eq!(read(&[]), Error::TooShort { bytes: 0 });
    assert_eq!(read(&good[..39]), Error::TooShort { bytes: 39 });
    assert_eq!(
        read(&good[..400]),
        Error::Truncated {
            claimed: good.len(),
            bytes: 400
        }
    );
    assert_eq!(
        read(&patched(0, 0xedfe_0dd0)),
        Error::Magic { magic: 0xedfe_0dd0 }
    );
    assert!(matches!(
        read(&patched(4, u32::MAX)),
        Error::TooLarge { .. }
    ));
    assert_eq!(read(&patched(4, 39)), Error::TooShort { bytes: 39 });
    assert_eq!(
        read(&patched(8, u32::MAX)),
        Error::Block {
            block: Block::Structure
        }
    );
    assert_eq!(
        read(&patched(12, u32::MAX)),
        Error::Block {
            block: Block::Strings
        }
    );
    assert_eq!(
        read(&patched(16, u32::MAX)),
        Error::Block {
            block: Block::Reservations
        }
    );
    assert_eq!(
        read(&patched(20, 16)),
        Error::Version {
            version: 16,
            compatible: 16
        }
    );
    assert_eq!(
        read(&patched(24, 18)),
        Error::Version {
            version: 17,
            compatible: 18
        }
    );
    assert_eq!(
        read(&patched(32, u32::MAX)),
        Error::Block {
            block: Block::Strings
        }
    );
    assert_eq!(
        read(&patched(36, u32::MAX)),
        Error::Block {
            block: Block::Structure
        }
    );
    // Half the structure is not a structure.
    assert!(matches!(
        read(&patched(36, 0x400)),
        Error::Structure {
            problem: Malformed::Ends,
            ..
        }
    ));
    // A strings block that starts later has shorter or no names.
    assert!(Machine::from_fdt(&patched(32, 1)).is_err());
}

#[test]
fn the_size_can_be_had_from_the_first_eight_bytes() {
    let blob = virt(1).blob();
    assert_eq!(blob_size(&blob[..8]), Ok(blob.len()));
    assert_eq!(blob_size(&blob[..7]), Err(Error::TooShort { bytes: 7 }));
    assert!(blob_size(&[0; 8]).is_err());
}

#[test]
fn trees_too_large_or_too_deep_are_refused() {
    let mut deep = node("leaf");
    for _ in 0..MAX_DEPTH {
        deep = node("level").child(deep);
    }
    assert!(matches!(
        Machine::from_fdt(&node("").child(deep).blob()),
        Err(Error::Structure {
            problem: Malformed::Depth,
            ..
        })
    ));
    let mut wide = virt(1);
    for index in 0..MAX_NODES {
        wide = wide.child(node(&std::format!("n{index}")));
    }
    assert!(matches!(
        Machine::from_fdt(&wide.blob()),
        Err(Error::Structure {
            problem: Malformed::Nodes,
            ..
        })
    ));
    let large = virt(1).bytes("filler", &std::vec![0; MAX_BYTES]);
    assert!(matches!(
        Machine::from_fdt(&large.blob()),
        Err(Error::TooLarge { .. })
    ));
}

#[test]
fn lists_without_end_are_refused_or_cut() {
    let entries = MAX_ENTRIES + 1;
    let refused = |tree: N, property: &str| {
        let error = Machine::from_fdt(&tree.blob()).unwrap_err();
        let Error::Property {
            property: named,
            problem,
            ..
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!(
            (named, problem),
            (property, Problem::TooMany { max: MAX_ENTRIES })
        );
    };
    let many = |entry: &[u32]| entry.repeat(entries);
    let map = many(&[0, SMMU, 0, 1]);
    refused(
        virt(1).edit(&["pcie@10000000"], |n| n.cells("iommu-map", &map)),
        "iommu-map",
    );
    let streams = many(&[SMMU, 7]);
    refused(
        virt(1).child(node("dma").cells("iommus", &streams)),
        "iommus",
    );
    let memory = many(&[0, 0x4000_0000, 0, 0x1000]);
    refused(
        virt(1).edit(&["memory@40000000"], |n| n.cells("reg", &memory)),
        "reg",
    );
    let threads = many(&[1]);
    refused(
        pseries(1).edit(&["cpus", "PowerPC,POWER9@0"], |n| {
            n.cells("ibm,ppc-interrupt-server#s", &threads)
        }),
        "ibm,ppc-interrupt-server#s",
    );
    // One less is read.
    let fits = [0, SMMU, 0, 1].repeat(MAX_ENTRIES);
    let tree = virt(1).edit(&["pcie@10000000"], |n| n.cells("iommu-map", &fits));
    assert!(Machine::from_fdt(&tree.blob()).is_ok());
}

#[test]
fn more_smmus_than_any_machine_has_are_refused() {
    let smmus = |count: usize| {
        (0..count).fold(virt(1), |tree, index| {
            tree.child(
                node(&std::format!("smmu@{index:x}"))
                    .text("compatible", &["arm,smmu-v3"])
                    .cells("reg", &[0, 0x1000_0000, 0, 0x2_0000]),
            )
        })
    };
    // The sample has one already.
    let machine = Machine::from_fdt(&smmus(MAX_UNITS - 1).blob()).unwrap();
    assert_eq!(machine.smmus.len(), MAX_UNITS);
    assert!(Machine::from_fdt(&smmus(MAX_UNITS).blob()).is_err());
}

#[test]
fn notes_end_with_word_of_more() {
    let odd = (0..MAX_NOTES * 2).fold(virt(1), |tree, index| {
        tree.child(
            node(&std::format!("mmu@{index}"))
                .text("compatible", &["arm,mmu-500"])
                .cells("#iommu-cells", &[1]),
        )
    });
    let machine = Machine::from_fdt(&odd.blob()).unwrap();
    assert_eq!(machine.notes.len(), MAX_NOTES);
    assert_eq!(machine.notes.last(), Some(&Note::More));
}

#[test]
fn names_without_end_are_refused() {
    let named = |bytes| Machine::from_fdt(&virt(1).child(node(&"n".repeat(bytes))).blob());
    assert!(named(255).is_ok());
    assert!(matches!(
        named(256),
        Err(Error::Structure {
            problem: Malformed::NodeName,
            ..
        })
    ));
}

#[test]
fn bytes_after_the_tree_do_not_matter() {
    let mut blob = virt(1).blob();
    let alone = Machine::from_fdt(&blob).unwrap();
    blob.resize(blob.len() + 4096, 0xff);
    assert_eq!(Machine::from_fdt(&blob), Ok(alone));
}

#[test]
fn one_phandle_for_two_nodes_is_refused() {
    let tree = virt(1).edit(&["psci"], |n| n.cells("phandle", &[super::samples::GIC]));
    assert!(matches!(
        Machine::from_fdt(&tree.blob()),
        Err(Error::Structure {
            problem: Malformed::Phandle(super::samples::GIC),
            ..
        })
    ));
}

#[test]
fn the_console_can_be_had_from_a_tree_that_is_refused() {
    let tree = virt(1).without("memory@40000000");
    let blob = tree.blob();
    assert!(Machine::from_fdt(&blob).is_err());
    assert!(matches!(Machine::console(&blob), Some(UartKind::Pl011(_))));
    assert_eq!(Machine::console(&blob[..100]), None);
    let options = virt(1)
        .child(node("aliases").text("serial0", &["/pl011@9000000"]))
        .edit(&["chosen"], |n| {
            n.text("stdout-path", &["serial0:115200n8"])
        });
    assert!(matches!(
        Machine::console(&options.blob()),
        Some(UartKind::Pl011(_))
    ));
}

/// Every node and property, as another reader sees them.
fn through_dtoolkit(blob: &[u8]) -> Vec<(String, String, Vec<u8>)> {
    fn walk(
        node: &dtoolkit::fdt::FdtNode<'_>,
        path: &str,
        found: &mut Vec<(String, String, Vec<u8>)>,
    ) {
        for property in node.properties() {
            let name = property.name().to_string();
            found.push((path.to_string(), name, property.value().to_vec()));
        }
        for child in node.children() {
            let path = std::format!("{}/{}", path.trim_end_matches('/'), child.name());
            walk(&child, &path, found);
        }
    }
    let mut found = Vec::new();
    walk(&Fdt::new_unchecked(blob).root(), "/", &mut found);
    found
}

#[test]
fn another_reader_sees_the_same_tree() {
    for blob in [virt(3).blob(), pseries(2).blob()] {
        let tree = Tree::new(&blob).unwrap();
        let mut ours = Vec::new();
        for node in tree.nodes() {
            for (name, value) in node.properties() {
                ours.push((node.path().to_string(), name.to_string(), value.to_vec()));
                assert_eq!(node.get(name), Some(value));
            }
            assert!(tree.by_path(node.path().as_str()) == Some(node));
        }
        assert_eq!(ours, through_dtoolkit(&blob));
    }
}

fn mutations() -> impl Strategy<Value = Vec<(prop::sample::Index, u32)>> {
    let value = proptest::prop_oneof![
        any::<u32>(),
        0u32..16,
        proptest::strategy::Just(u32::MAX),
        proptest::strategy::Just(0x8002),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), value), 1..12)
}

fn mutate(mut blob: Vec<u8>, mutations: &[(prop::sample::Index, u32)]) -> Vec<u8> {
    for (index, value) in mutations {
        let words = blob.len() / 4;
        let at = index.index(words) * 4;
        blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    blob
}

proptest! {
    #[test]
    fn mutated_trees_never_panic(mutations in mutations(), power in any::<bool>()) {
        let blob = if power { pseries(2).blob() } else { virt(2).blob() };
        let blob = mutate(blob, &mutations);
        if let Ok(machine) = Machine::from_fdt(&blob) {
            assert!(!machine.memory.is_empty());
            let _ = machine.to_string();
        }
        let _ = Machine::console(&blob);
    }

    #[test]
    fn bytes_that_are_no_tree_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut blob = std::vec![0u8; 40];
        blob.extend(bytes);
        for (at, value) in [
            (0usize, 0xd00d_feed), (4, u32::try_from(blob.len()).unwrap()),
            (8, 40), (12, 40), (16, 40), (20, 17), (24, 16),
            (32, u32::try_from(blob.len()).unwrap() - 40),
            (36, u32::try_from(blob.len()).unwrap() - 40),
        ] {
            blob[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
        }
        if let Some(last) = blob.get_mut(40..).and_then(<[u8]>::last_mut) {
            *last = 0;
        }
        let _ = Machine::from_fdt(&blob);
    }

    #[test]
    fn cutting_a_tree_short_is_an_error(at in any::<prop::sample::Index>()) {
        let blob = virt(1).blob();
        let cut = at.index(blob.len());
        assert!(Machine::from_fdt(&blob[..cut]).is_err());
    }
}
