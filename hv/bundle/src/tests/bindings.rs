use std::{
    string::{String, ToString},
    vec,
    vec::Vec,
};

use dtoolkit::{
    fdt::Fdt,
    model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty},
};
use proptest::prelude::{any, prop, proptest};

use super::everything;
use crate::{
    BindingError, ConsoleUart, Firmware, IommuMode, KernelFormat, Manifest, MsiPolicy, Restart,
    UnsafeDma,
};

/// The full manifest's tree, changed.
fn changed(change: impl FnOnce(&mut DeviceTree)) -> Vec<u8> {
    let blob = everything().to_fdt();
    let mut tree = DeviceTree::from_fdt(&Fdt::new(&blob).unwrap());
    change(&mut tree);
    tree.to_dtb()
}

fn refusal(change: impl FnOnce(&mut DeviceTree)) -> String {
    Manifest::from_fdt(&changed(change))
        .unwrap_err()
        .to_string()
}

fn set(tree: &mut DeviceTree, path: &str, property: &str, value: &[u8]) {
    tree.find_node_mut(path)
        .unwrap()
        .add_property(DeviceTreeProperty::new_unchecked(property, value));
}

fn remove(tree: &mut DeviceTree, path: &str, property: &str) {
    let removed = tree.find_node_mut(path).unwrap().remove_property(property);
    assert!(removed.is_some());
}

#[test]
fn what_is_encoded_decodes_to_the_same() {
    let manifest = everything();
    assert_eq!(Manifest::from_fdt(&manifest.to_fdt()), Ok(manifest));
}

#[test]
fn the_binding_as_source() {
    insta::assert_snapshot!(everything().to_dts());
}

#[test]
fn unknown_nodes_and_properties_are_refused_with_their_path() {
    assert_eq!(
        refusal(|tree| set(tree, "/vm@0", "colour", b"red\0")),
        "/vm@0: colour: no such property in the binding"
    );
    assert_eq!(
        refusal(|tree| set(tree, "/vm@0/device@1", "status", b"okay\0")),
        "/vm@0/device@1: status: no such property in the binding"
    );
    assert_eq!(
        refusal(|tree| set(tree, "/", "model", b"x\0")),
        "/: model: no such property in the binding"
    );
    let add = |path: &'static str, name: &'static str| {
        refusal(move |tree| {
            tree.find_node_mut(path)
                .unwrap()
                .add_child(DeviceTreeNode::new_unchecked(name));
        })
    };
    assert_eq!(add("/", "cpus"), "/cpus: no such node in the binding");
    assert_eq!(
        add("/vm@0", "disk@0"),
        "/vm@0/disk@0: no such node in the binding"
    );
    assert_eq!(
        add("/vm@0/device@0", "bar"),
        "/vm@0/device@0/bar: no such node in the binding"
    );
    // Out of order: there is no VM 3 to be the fourth.
    assert_eq!(add("/", "vm@7"), "/vm@7: no such node in the binding");
    assert_eq!(add("/", "vm"), "/vm: no such node in the binding");
}

#[test]
fn values_of_the_wrong_form_are_refused() {
    for (property, value) in [
        ("memory", &[0, 0, 0, 1][..]),
        ("cpus", &[0; 8]),
        ("cpus", &[]),
        ("pin", &[0; 5]),
        ("label", b"no end"),
        ("label", b"two\0strings\0"),
        ("label", b"\xff\0"),
        ("firmware", b"uefi\0"),
        ("iommu", b"\0"),
        ("msi-window", &[0; 12]),
        ("start", b"later\0"),
        ("tce-default-window-only", b"x"),
    ] {
        let expected = std::format!("/vm@0: {property}: not a legal value");
        assert_eq!(
            refusal(|tree| set(tree, "/vm@0", property, value)),
            expected
        );
    }
    let both = refusal(|tree| set(tree, "/vm@0", "start-after", b"second\0"));
    assert_eq!(both, "/vm@0: start: not a legal value");
    let wide = refusal(|tree| {
        set(
            tree,
            "/vm@0/device@0",
            "host-pci",
            &[0, 1, 0, 0, 0, 0, 0, 8],
        )
    });
    assert_eq!(wide, "/vm@0/device@0: host-pci: not a legal value");
}

#[test]
fn what_must_be_there_is_missed() {
    for property in ["label", "memory", "kernel"] {
        let expected = std::format!("/vm@1: {property}: missing");
        assert_eq!(refusal(|tree| remove(tree, "/vm@1", property)), expected);
    }
    assert_eq!(
        refusal(|tree| remove(tree, "/", "version")),
        "/: version: missing"
    );
    assert_eq!(
        refusal(|tree| remove(tree, "/vm@1/device@0", "host-phb")),
        "/vm@1/device@0: host-pci: missing"
    );
    // What may be missing has its default.
    let less = changed(|tree| remove(tree, "/vm@1", "cpus"));
    assert_eq!(Manifest::from_fdt(&less).unwrap().vms()[1].cpus, 1);
}

#[test]
fn other_trees_and_versions_are_refused() {
    assert!(matches!(Manifest::from_fdt(&[]), Err(BindingError::Fdt(_))));
    assert!(matches!(
        Manifest::from_fdt(b"VMs, please"),
        Err(BindingError::Fdt(_))
    ));
    let other = changed(|tree| set(tree, "/", "compatible", b"linux,dummy-virt\0"));
    assert_eq!(Manifest::from_fdt(&other), Err(BindingError::Compatible));
    let newer = changed(|tree| set(tree, "/", "version", &[0, 0, 0, 2]));
    assert_eq!(Manifest::from_fdt(&newer), Err(BindingError::Version(2)));
    let large = vec![0; (1 << 20) + 1];
    assert!(matches!(
        Manifest::from_fdt(&large),
        Err(BindingError::TooLarge(_))
    ));
    let reserved = changed(|tree| {
        tree.memory_reservations
            .push(dtoolkit::memreserve::MemoryReservation::new(0, 1));
    });
    assert!(Manifest::from_fdt(&reserved).is_err());
}

#[test]
fn a_property_that_is_there_twice_is_refused() {
    // `pin` renamed to `cpus` in the strings block: the first manifest has both.
    let mut blob = changed(|tree| {
        remove(tree, "/vm@0", "pin");
        set(tree, "/vm@0", "cpuz", &[0, 0, 0, 2]);
    });
    let at = blob
        .windows(5)
        .position(|window| window == b"cpuz\0")
        .unwrap();
    blob[at + 3] = b's';
    assert_eq!(
        Manifest::from_fdt(&blob).unwrap_err().to_string(),
        "/vm@0: cpus is there twice"
    );
}

#[test]
fn values_that_do_not_hold_are_refused_with_their_place() {
    let error = refusal(|tree| set(tree, "/vm@1", "memory", &(3u64 << 20).to_be_bytes()));
    assert_eq!(error, "vm[1].memory: 3 MiB is not a multiple of 2 MiB");
}

#[test]
fn every_property_and_word_is_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/manifest.md");
    let text = std::fs::read_to_string(path).unwrap();
    let binding = text.split("## The binding").nth(1).unwrap();
    for line in everything().to_dts().lines() {
        let line = line.trim();
        let name = line.split([' ', ';']).next().unwrap();
        if line.ends_with('{') || line.starts_with('/') || name.is_empty() || name == "}" {
            continue;
        }
        assert!(binding.contains(&std::format!("`{name}`")), "{name}");
    }
    let words = [
        KernelFormat::WORDS,
        Firmware::WORDS,
        ConsoleUart::WORDS,
        IommuMode::WORDS,
        MsiPolicy::WORDS,
        Restart::WORDS,
        UnsafeDma::WORDS,
    ];
    for words in words {
        let list: Vec<_> = words.iter().map(|word| std::format!("`{word}`")).collect();
        assert!(binding.contains(&list.join(", ")), "{words:?}");
    }
}

proptest! {
    #[test]
    fn a_mutated_blob_never_panics_and_never_decodes_to_nonsense(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..10),
    ) {
        let mut blob = everything().to_fdt();
        for (index, value) in changes {
            let at = index.index(blob.len());
            blob[at] = value;
        }
        if let Ok(manifest) = Manifest::from_fdt(&blob) {
            // Whatever decodes has passed every check, and encodes to what decodes to it.
            assert_eq!(Manifest::new(manifest.vms().to_vec()), Ok(manifest.clone()));
            assert_eq!(Manifest::from_fdt(&manifest.to_fdt()), Ok(manifest));
        }
    }

    #[test]
    fn a_cut_blob_is_refused(at in any::<prop::sample::Index>()) {
        let blob = everything().to_fdt();
        assert!(Manifest::from_fdt(&blob[..at.index(blob.len())]).is_err());
    }
}
