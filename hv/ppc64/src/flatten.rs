//! The firmware's device tree, flattened, so that the same code reads every machine.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ffi::CStr;

use dtoolkit::model::{DeviceTreeNode, DeviceTreeProperty};
use machine::{Flattener, Part};

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

/// Reads the whole tree. What `initrd` has, its address and bytes, goes into `/chosen`, where the firmware
/// has not put it.
#[optimize(size)]
pub(crate) fn flatten(firmware: Firmware, initrd: Option<(u64, u64)>) -> Result<Vec<u8>, Error> {
    let mut tree = Flattener::default();
    let root = firmware.root()?.ok_or(Error::NoRoot)?;
    read(firmware, root, "", None, &mut tree)?;
    let mut open = vec![root];
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
            let initrd = initrd.filter(|_| open.len() == 1 && name == "chosen");
            read(firmware, node, &name, initrd, &mut tree)?;
            open.push(node);
            child = firmware.child(node)?;
            continue;
        }
        tree.end();
        match open.pop() {
            Some(node) if !open.is_empty() => child = firmware.peer(node)?,
            _ => return Ok(tree.finish()),
        }
    }
}

/// The tree in a form that guests' trees are made of.
#[optimize(size)]
pub(crate) fn model(blob: &[u8]) -> Result<DeviceTreeNode, machine::Error> {
    let mut open = Vec::from([DeviceTreeNode::new_unchecked("")]);
    machine::parts(blob, &mut |part| match part {
        Part::Begin(name) => open.push(DeviceTreeNode::new_unchecked(name)),
        Part::Property(name, value) => {
            if let Some(node) = open.last_mut() {
                node.add_property(DeviceTreeProperty::new_unchecked(name, value));
            }
        }
        Part::End => {
            if let Some(done) = open.pop()
                && let Some(parent) = open.last_mut()
            {
                parent.add_child(done);
            }
        }
    })?;
    // The root is the only child of what was open before it.
    let above = open.pop();
    let root = above.and_then(|mut above| above.remove_child(""));
    Ok(root.unwrap_or_else(|| DeviceTreeNode::new_unchecked("")))
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

/// Opens a node and reads its properties.
#[optimize(size)]
fn read(
    firmware: Firmware,
    node: Node,
    name: &str,
    initrd: Option<(u64, u64)>,
    tree: &mut Flattener,
) -> Result<(), Error> {
    tree.begin(name);
    let mut property = [0; _];
    let mut has_phandle = false;
    let mut has_initrd = false;
    while firmware.next_property(node, &mut property)? {
        let Ok(key) = CStr::from_bytes_until_nul(&property) else {
            break;
        };
        // The flat form has names in the structure; and no reader wants the firmware's own words.
        if key == c"name" {
            continue;
        }
        has_phandle |= key == c"phandle";
        has_initrd |= key == c"linux,initrd-start";
        if let Some(value) = value(firmware, node, key)? {
            tree.property(&String::from_utf8_lossy(key.to_bytes()), &value);
        }
    }
    if !has_phandle {
        tree.property("phandle", &node.phandle().to_be_bytes());
    }
    if let Some((start, bytes)) = initrd.filter(|_| !has_initrd) {
        let end = start.saturating_add(bytes);
        tree.property("linux,initrd-start", &start.to_be_bytes());
        tree.property("linux,initrd-end", &end.to_be_bytes());
    }
    Ok(())
}

#[optimize(size)]
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
