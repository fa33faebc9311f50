//! Trees that are flattened here, held against those of `dtoolkit`.

use std::vec::Vec;

use super::samples::{node, pseries, virt};
use crate::{Flattener, Machine, Part, parts};

fn read(blob: &[u8]) -> Vec<Part<'_>> {
    let mut all = Vec::new();
    parts(blob, &mut |part| all.push(part)).unwrap();
    all
}

fn written(parts: &[Part<'_>]) -> Vec<u8> {
    let mut tree = Flattener::default();
    for part in parts {
        match *part {
            Part::Begin(name) => tree.begin(name),
            Part::Property(name, value) => tree.property(name, value),
            Part::End => tree.end(),
        }
    }
    tree.finish()
}

#[test]
fn a_tree_is_written_as_others_write_it() {
    for sample in [virt(2), pseries(2)] {
        let blob = sample.blob();
        let ours = written(&read(&blob));
        assert_eq!(read(&ours), read(&blob));
        let (ours, theirs) = (Machine::from_fdt(&ours), Machine::from_fdt(&blob));
        assert_eq!(ours.unwrap(), theirs.unwrap());
    }
}

#[test]
fn names_and_values_of_every_length_are_what_they_were() {
    let mut sample = node("");
    for length in 0..9_u8 {
        let value: Vec<u8> = (0..length).collect();
        let name = &"abcdefghi"[..usize::from(length) + 1];
        sample = sample.child(node(name).bytes(name, &value).bytes("bcd", &[]));
    }
    let blob = sample.blob();
    let ours = written(&read(&blob));
    assert_eq!(read(&ours), read(&blob));
    assert!(dtoolkit::fdt::Fdt::new(&ours).is_ok());
}

#[test]
fn a_name_is_stored_once_and_is_no_other_names_end() {
    let mut tree = Flattener::default();
    tree.begin("");
    for name in ["size-cells", "#size-cells", "size", "size-cells"] {
        tree.property(name, &[]);
    }
    tree.end();
    let blob = tree.finish();
    assert!(blob.ends_with(b"size-cells\0#size-cells\0size\0"));
    let ends = [b"size-cells\0".as_slice(), b"\0size-cells\0"];
    assert_eq!(
        ends.map(|name| blob.windows(name.len()).filter(|at| *at == name).count()),
        [2, 0]
    );
    assert_eq!(
        read(&blob)[1..5],
        ["size-cells", "#size-cells", "size", "size-cells"].map(|name| Part::Property(name, &[]))
    );
}

#[test]
fn a_malformed_tree_has_no_parts() {
    let blob = virt(1).blob();
    let mut seen = 0;
    assert!(parts(&blob[..blob.len() - 1], &mut |_| seen += 1).is_err());
    assert!(parts(&[], &mut |_| seen += 1).is_err());
    assert_eq!(seen, 0);
}
