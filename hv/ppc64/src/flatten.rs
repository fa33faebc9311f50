//! The firmware's device tree, flattened, so that the same code reads every machine.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ffi::CStr;

use dtoolkit::Node as _;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use crate::of::{self, Firmware, Node};

/// Nodes nest no deeper on any machine; a tree that does is a loop.
const MAX_DEPTH: usize = 32;
/// The most nodes that are read.
const MAX_NODES: usize = 8192;
/// The longest property that is read, in bytes.
const MAX_PROPERTY: usize = 1 << 20;
/// What most properties fit in, so that one call reads them.
const USUAL_PROPERTY: usize = 512;
/// The longest path that is read.
const MAX_PATH: usize = 1024;

/// Why the tree cannot be flattened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Firmware(#[from] of::Error),
    #[error("the tree has no root")]
    NoRoot,
    #[error("the tree is deeper than {MAX_DEPTH} nodes")]
    Deep,
    #[error("the tree has more than {MAX_NODES} nodes")]
    Nodes,
    #[error("node {phandle:#x} has a property of {bytes} bytes; {MAX_PROPERTY} are read at most")]
    Property { phandle: u32, bytes: usize },
}

/// Reads the whole tree.
pub(crate) fn flatten(firmware: Firmware) -> Result<DeviceTree, Error> {
    let root = firmware.root()?.ok_or(Error::NoRoot)?;
    let mut open: Vec<(Node, DeviceTreeNode)> = vec![(root, read(firmware, root, "")?)];
    let mut child = firmware.child(root)?;
    let mut nodes = 1;
    loop {
        // Down to the next unread node, or up from a node that is done.
        if let Some(node) = child {
            nodes += 1;
            if nodes > MAX_NODES {
                return Err(Error::Nodes);
            }
            if open.len() == MAX_DEPTH {
                return Err(Error::Deep);
            }
            let name = name(firmware, node)?;
            open.push((node, read(firmware, node, &name)?));
            child = firmware.child(node)?;
            continue;
        }
        let Some((node, done)) = open.pop() else {
            return Err(Error::NoRoot);
        };
        let Some((_, parent)) = open.last_mut() else {
            let mut tree = DeviceTree::new();
            tree.root = done;
            return Ok(tree);
        };
        parent.add_child(done);
        child = firmware.peer(node)?;
    }
}

/// The last part of the path: the name with its unit address, which the property `name` lacks.
fn name(firmware: Firmware, node: Node) -> Result<String, Error> {
    let mut path = [0; MAX_PATH];
    let length = firmware.path(node, &mut path)?.unwrap_or(0).min(MAX_PATH);
    let path = &path[..length];
    let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

fn read(firmware: Firmware, node: Node, name: &str) -> Result<DeviceTreeNode, Error> {
    let mut flat = DeviceTreeNode::new_unchecked(name);
    let mut property = [0; _];
    let mut has_phandle = false;
    while firmware.next_property(node, &mut property)? {
        let Ok(key) = CStr::from_bytes_until_nul(&property) else {
            break;
        };
        // The flat form has names in the structure; and no reader wants the firmware's own words.
        if key == c"name" {
            continue;
        }
        has_phandle |= key == c"phandle";
        if let Some(value) = value(firmware, node, key)? {
            let key = String::from_utf8_lossy(key.to_bytes());
            flat.add_property(DeviceTreeProperty::new_unchecked(key, value));
        }
    }
    if !has_phandle {
        let phandle = node.phandle().to_be_bytes();
        flat.add_property(DeviceTreeProperty::new_unchecked(
            "phandle",
            phandle.as_slice(),
        ));
    }
    Ok(flat)
}

fn value(firmware: Firmware, node: Node, key: &CStr) -> Result<Option<Vec<u8>>, Error> {
    let mut value = vec![0; USUAL_PROPERTY];
    let Some(mut length) = firmware.property(node, key, &mut value)? else {
        return Ok(None);
    };
    if length > value.len() {
        let bytes = firmware.property_length(node, key)?.unwrap_or(length);
        if bytes > MAX_PROPERTY {
            let phandle = node.phandle();
            return Err(Error::Property { phandle, bytes });
        }
        value.resize(bytes, 0);
        length = firmware
            .property(node, key, &mut value)?
            .unwrap_or(0)
            .min(bytes);
    }
    value.truncate(length);
    Ok(Some(value))
}

/// Puts the initrd that the image was entered with into `/chosen`, where the firmware has not.
pub(crate) fn add_initrd(tree: &mut DeviceTree, start: u64, bytes: u64) {
    let Some(chosen) = tree.find_node_mut("/chosen") else {
        return;
    };
    let end = start.saturating_add(bytes);
    for (name, value) in [("linux,initrd-start", start), ("linux,initrd-end", end)] {
        if (*chosen).property(name).is_none() {
            let value = value.to_be_bytes();
            chosen.add_property(DeviceTreeProperty::new_unchecked(name, value.as_slice()));
        }
    }
}
