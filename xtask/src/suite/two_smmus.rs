//! A machine with two SMMUs, one for each of two host bridges, where QEMU can make one.
//!
//! QEMU's device tree describes the SMMU of `pcie.0` only, and nothing of further host bridges: whoever boots by ACPI
//! finds them. So the tree that QEMU makes is taken, the second bridge and the second SMMU are added, and the
//! machine is started with that.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node as _, Property as _};

use super::trees;
use crate::board::{Arch, Board};
use crate::provide::{self, Version};
use crate::qemu::{Files, Variation};

/// The oldest QEMU that gives each host bridge an SMMU of its own.
pub(super) const LEAST: Version = Version::new(10, 1);

/// A QEMU that can: the machine's, or one beside it.
///
/// # Errors
/// The machine's is older, and no other can be had.
pub(super) fn qemu(arch: Arch) -> Result<PathBuf> {
    provide::qemu_beside::provide(arch, LEAST)
}

/// The second bridge is there under this name, with this bus as its root, a segment of its own.
const BUS: &str = "pxb";
const FIRST_BUS: u32 = 0x20;
const LAST_BUS: u32 = 0x3f;
/// Where QEMU puts the second SMMU, and its first interrupt: both are next to the first one's, on the bus for
/// devices that have no fixed place.
const SMMU_BYTES: u32 = 0x2_0000;
const SMMU_INTERRUPTS: u32 = 4;
const SMMU_PHANDLE: u32 = 0x9100;
/// 32-bit and 64-bit windows of the first bridge end here, and of the second one begin.
const MIDDLE: u32 = 0x2800_0000;
const MIDDLE64: u32 = 0xc0;

/// The board with two SMMUs, both with two stages, and the second host bridge; what else the line needs. The tree
/// becomes `tree`.
///
/// # Errors
/// QEMU has not written a tree, or it is not as expected.
pub(super) fn machine(
    program: &Path,
    board: &Board,
    vary: &Variation,
    files: &Files,
    tree: &Path,
) -> Result<(Board, Variation)> {
    let mut board = board.clone();
    board
        .machine
        .options
        .retain(|option| !option.starts_with("iommu="));
    let mut vary = vary.clone();
    let more = [
        "-global".to_owned(),
        "arm-smmuv3.stage=nested".to_owned(),
        "-device".to_owned(),
        format!("pxb-pcie,id={BUS},bus_nr={FIRST_BUS},bus=pcie.0,addr=1e"),
        "-device".to_owned(),
        "arm-smmuv3,primary-bus=pcie.0".to_owned(),
        "-device".to_owned(),
        format!("arm-smmuv3,primary-bus={BUS}"),
    ];
    vary.args.splice(0..0, more);

    let described = trees::described(program, &board, &vary, files, tree)?;
    vary.args
        .extend(trees::given(tree, &extended(&described)?)?);
    Ok((board, vary))
}

/// The tree with the second bridge and its SMMU.
fn extended(described: &[u8]) -> Result<Vec<u8>> {
    let fdt = Fdt::new(described).map_err(|error| anyhow!("QEMU's tree: {error}"))?;
    let mut tree = DeviceTree::from_fdt(&fdt);
    let named = |prefix: &str| {
        let mut nodes = tree.root.children();
        let found = nodes.find(|node| node.name().starts_with(prefix));
        found.cloned().with_context(|| format!("no {prefix}"))
    };
    let mut bridge = named("pcie@")?;
    let mut smmu = named("smmuv3@")?;
    let mut second = Node(bridge.clone()).renamed("pcie@28000000")?;
    for routed in ["interrupt-map", "interrupt-map-mask", "#interrupt-cells"] {
        second.0.remove_property(routed);
    }

    let [high, low, ..] = cells(&bridge, "reg")?[..] else {
        return Err(anyhow!("the bridge has no configuration space"));
    };
    let bytes = |buses: u32| buses << 20;
    let [_, its, ..] = cells(&bridge, "msi-map")?[..] else {
        return Err(anyhow!("the bridge has no ITS"));
    };
    let [phandle] = cells(&smmu, "phandle")?[..] else {
        return Err(anyhow!("the SMMU has no phandle"));
    };
    let ids = FIRST_BUS << 8;
    let more = (LAST_BUS + 1 - FIRST_BUS) << 8;
    let mut first = Node(bridge.clone());
    first.set("bus-range", &[0, FIRST_BUS - 1]);
    first.set("reg", &[high, low, 0, bytes(FIRST_BUS)]);
    first.set("iommu-map", &[0, phandle, 0, ids]);
    first.set("msi-map", &[0, its, 0, ids]);
    first.set(
        "ranges",
        &[
            [0x100_0000, 0, 0, 0, 0x3eff_0000, 0, 0x1_0000],
            [
                0x200_0000,
                0,
                0x1000_0000,
                0,
                0x1000_0000,
                0,
                MIDDLE - 0x1000_0000,
            ],
            [0x300_0000, 0x80, 0, 0x80, 0, MIDDLE64 - 0x80, 0],
        ]
        .concat(),
    );
    bridge = first.0;
    second.set("bus-range", &[FIRST_BUS, LAST_BUS]);
    second.set("linux,pci-domain", &[1]);
    second.set(
        "reg",
        &[
            high,
            low + bytes(FIRST_BUS),
            0,
            bytes(LAST_BUS + 1 - FIRST_BUS),
        ],
    );
    second.set("iommu-map", &[ids, SMMU_PHANDLE, ids, more]);
    second.set("msi-map", &[ids, its, ids, more]);
    second.set(
        "ranges",
        &[
            [0x200_0000, 0, MIDDLE, 0, MIDDLE, 0, 0x1000_0000],
            [0x300_0000, MIDDLE64, 0, MIDDLE64, 0, 0x100 - MIDDLE64, 0],
        ]
        .concat(),
    );

    let [over, at, ..] = cells(&smmu, "reg")?[..] else {
        return Err(anyhow!("the SMMU has no registers"));
    };
    let interrupts: Vec<u32> = cells(&smmu, "interrupts")?
        .chunks(3)
        .flat_map(|one| match one {
            [kind, number, trigger] => vec![*kind, number + SMMU_INTERRUPTS, *trigger],
            other => other.to_vec(),
        })
        .collect();
    let at = at + SMMU_BYTES;
    let mut other = Node(smmu.clone()).renamed(&format!("smmuv3@{at:x}"))?;
    other.set("reg", &[over, at, 0, SMMU_BYTES]);
    other.set("interrupts", &interrupts);
    other.set("phandle", &[SMMU_PHANDLE]);
    smmu = other.0;

    tree.root.remove_child(bridge.name());
    tree.root.add_child(bridge);
    tree.root.add_child(second.0);
    tree.root.add_child(smmu);
    Ok(tree.to_dtb())
}

fn cells(node: &DeviceTreeNode, name: &str) -> Result<Vec<u32>> {
    let property = (&node).property(name);
    let property = property.with_context(|| format!("{} has no {name}", node.name()))?;
    let words = property.value().chunks_exact(4);
    Ok(words
        .filter_map(|word| Some(u32::from_be_bytes(word.try_into().ok()?)))
        .collect())
}

/// A node in the making.
struct Node(DeviceTreeNode);

impl Node {
    fn set(&mut self, name: &str, cells: &[u32]) {
        self.0.remove_property(name);
        self.0
            .add_property(DeviceTreeProperty::new_unchecked(name, cells));
    }

    /// The same under another name.
    fn renamed(self, name: &str) -> Result<Self> {
        let node = DeviceTreeNode::new(name).map_err(|error| anyhow!("{name}: {error}"))?;
        let mut renamed = Self(node);
        for property in self.0.properties() {
            renamed.0.add_property(property.clone());
        }
        Ok(renamed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU 11.1 describes it.
    fn described() -> Vec<u8> {
        let mut tree = DeviceTree::new();
        let node = |name: &str| Node(DeviceTreeNode::new(name).unwrap());
        let mut bridge = node("pcie@10000000");
        bridge.set("reg", &[0x40, 0x1000_0000, 0, 0x1000_0000]);
        bridge.set("msi-map", &[0, 0x8004, 0, 0x1_0000]);
        bridge.set("interrupt-map", &[0; 4]);
        bridge.set("linux,pci-domain", &[0]);
        let mut smmu = node("smmuv3@c000000");
        smmu.set("reg", &[0, 0xc00_0000, 0, 0x2_0000]);
        smmu.set("interrupts", &[0, 112, 1, 0, 113, 1, 0, 114, 1, 0, 115, 1]);
        smmu.set("phandle", &[0x8006]);
        tree.root.add_child(bridge.0);
        tree.root.add_child(smmu.0);
        tree.to_dtb()
    }

    #[test]
    fn each_bridge_has_an_smmu_of_its_own() {
        let blob = extended(&described()).unwrap();
        let tree = DeviceTree::from_fdt(&Fdt::new(&blob).unwrap());
        let child = |name: &str| tree.root.children().find(|node| node.name() == name);
        let all = |name: &str, property: &str| cells(child(name).unwrap(), property).unwrap();
        assert_eq!(all("pcie@10000000", "iommu-map"), [0, 0x8006, 0, 0x2000]);
        assert_eq!(
            all("pcie@28000000", "iommu-map"),
            [0x2000, SMMU_PHANDLE, 0x2000, 0x2000]
        );
        assert_eq!(
            all("pcie@28000000", "reg"),
            [0x40, 0x1200_0000, 0, 0x200_0000]
        );
        assert_eq!(
            all("pcie@10000000", "reg"),
            [0x40, 0x1000_0000, 0, 0x200_0000]
        );
        assert_eq!(all("pcie@28000000", "linux,pci-domain"), [1]);
        assert_eq!(all("smmuv3@c020000", "phandle"), [SMMU_PHANDLE]);
        assert_eq!(all("smmuv3@c020000", "interrupts")[..3], [0, 116, 1]);
        assert_eq!(all("smmuv3@c000000", "interrupts")[..3], [0, 112, 1]);
        // Its pins are not routed.
        let second = child("pcie@28000000").unwrap();
        assert!(second.property("interrupt-map").is_none());
    }

    #[test]
    fn a_tree_without_an_smmu_is_refused() {
        let blob = DeviceTree::new().to_dtb();
        assert!(extended(&blob).is_err());
    }
}
