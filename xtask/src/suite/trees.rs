//! The device tree that QEMU makes for a machine, and trees that a machine should not have.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, ensure};
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeProperty};
use dtoolkit::{Node as _, Property as _};

use crate::board::Board;
use crate::qemu::{self, Files, Variation};

/// The bytes of an interrupt of a GIC's in a tree.
const WIRE: usize = 12;

/// What is wrong with the tree of a test's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tree {
    /// Nothing.
    OfMachine,
    /// The nodes of the root whose names begin so are not there.
    Without(&'static str),
    /// It has a property of so many bytes.
    Filled(usize),
    /// The first wires of the SMMU have these names, and it has no others.
    Wires(&'static [&'static str]),
}

/// The tree that QEMU makes, which is in `tree` then.
///
/// # Errors
/// QEMU has not written one.
pub(super) fn described(
    program: &Path,
    board: &Board,
    vary: &Variation,
    files: &Files,
    tree: &Path,
) -> Result<Vec<u8>> {
    let mut describing = board.clone();
    let path = tree.to_str().context("the path is not UTF-8")?;
    describing.machine.options.push(format!("dumpdtb={path}"));
    let line = qemu::line(program, &describing, vary, files)?;
    let said = Command::new(&line.program)
        .args(&line.args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", line.program.display()))?;
    ensure!(
        said.status.success(),
        "QEMU does not describe the machine: {}",
        String::from_utf8_lossy(&said.stderr)
    );
    fs::read(tree).with_context(|| format!("cannot read {path}"))
}

/// What QEMU is told so that the machine has the tree in this file.
///
/// # Errors
/// The file cannot be written.
pub(super) fn given(tree: &Path, contents: &[u8]) -> Result<[String; 2]> {
    let path = tree.to_str().context("the path is not UTF-8")?;
    fs::write(tree, contents).with_context(|| format!("cannot write {path}"))?;
    Ok(["-dtb".to_owned(), path.to_owned()])
}

/// The tree with its fault.
///
/// # Errors
/// It is no tree, or has nothing that could be left out.
pub(super) fn faulty(described: &[u8], fault: Tree) -> Result<Vec<u8>> {
    let fdt = Fdt::new(described).map_err(|error| anyhow!("QEMU's tree: {error}"))?;
    let mut tree = DeviceTree::from_fdt(&fdt);
    match fault {
        Tree::OfMachine => {}
        Tree::Without(prefix) => {
            let names = tree.root.children().map(|node| node.name().to_owned());
            let names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
            ensure!(!names.is_empty(), "QEMU's tree has no {prefix}");
            for name in names {
                tree.root.remove_child(&name);
            }
        }
        Tree::Filled(bytes) => {
            let filler = DeviceTreeProperty::new_unchecked("filler", vec![0_u8; bytes].as_slice());
            tree.root.add_property(filler);
        }
        Tree::Wires(names) => {
            let mut nodes = tree.root.children();
            let smmu = nodes.find(|node| node.name().starts_with("smmuv3@"));
            let mut smmu = smmu.context("QEMU's tree has no SMMU")?.clone();
            let wires = smmu.property("interrupts");
            let wires = wires.context("the SMMU has no interrupts")?;
            let wires = wires.value().get(..names.len() * WIRE);
            let wires = wires.context("the SMMU has fewer interrupts")?.to_vec();
            smmu.remove_property("interrupts");
            smmu.remove_property("interrupt-names");
            if !names.is_empty() {
                let names = names.join("\0") + "\0";
                for (property, value) in [("interrupts", wires), ("interrupt-names", names.into())]
                {
                    let property = DeviceTreeProperty::new_unchecked(property, value.as_slice());
                    smmu.add_property(property);
                }
            }
            tree.root.remove_child(smmu.name());
            tree.root.add_child(smmu);
        }
    }
    Ok(tree.to_dtb())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtoolkit::model::DeviceTreeNode;

    #[test]
    fn nodes_are_left_out_by_name_and_what_is_not_there_is_an_error() {
        let mut tree = DeviceTree::new();
        for name in ["cpus", "intc@8000000", "pcie@10000000"] {
            tree.root.add_child(DeviceTreeNode::new(name).unwrap());
        }
        let names = |blob: &[u8]| -> Vec<String> {
            let tree = DeviceTree::from_fdt(&Fdt::new(blob).unwrap());
            tree.root
                .children()
                .map(|node| node.name().to_owned())
                .collect()
        };
        let blob = tree.to_dtb();
        let without = faulty(&blob, Tree::Without("intc@")).unwrap();
        assert_eq!(names(&without), ["cpus", "pcie@10000000"]);
        assert!(faulty(&blob, Tree::Without("smmuv3@")).is_err());
        assert_eq!(names(&faulty(&blob, Tree::OfMachine).unwrap()).len(), 3);
        assert!(faulty(&blob, Tree::Filled(4096)).unwrap().len() > blob.len() + 4096);
    }

    #[test]
    fn an_smmu_has_as_many_wires_as_there_are_names() {
        let mut tree = DeviceTree::new();
        let mut smmu = DeviceTreeNode::new("smmuv3@9050000").unwrap();
        let interrupts: [u32; 6] = [0, 74, 1, 0, 77, 1];
        for property in [
            DeviceTreeProperty::new_unchecked("interrupts", interrupts.as_slice()),
            DeviceTreeProperty::new_unchecked("interrupt-names", b"eventq\0gerror\0".as_slice()),
        ] {
            smmu.add_property(property);
        }
        tree.root.add_child(smmu);
        let blob = tree.to_dtb();
        let of = |names| -> Vec<Option<Vec<u8>>> {
            let blob = faulty(&blob, Tree::Wires(names)).unwrap();
            let tree = DeviceTree::from_fdt(&Fdt::new(&blob).unwrap());
            let smmu = tree.root.children().next().unwrap();
            ["interrupts", "interrupt-names"]
                .map(|name| Some((&smmu).property(name)?.value().to_vec()))
                .to_vec()
        };
        assert_eq!(of(&[]), [None, None]);
        let first = [0, 74, 1].map(u32::to_be_bytes).concat();
        let combined = b"combined\0".to_vec();
        assert_eq!(of(&["combined"]), [Some(first), Some(combined)]);
        assert!(faulty(&blob, Tree::Wires(&["a", "b", "c"])).is_err());
        assert!(faulty(&DeviceTree::new().to_dtb(), Tree::Wires(&[])).is_err());
    }
}
