//! The blob read once, front to back, into an index of nodes.
//!
//! `dtoolkit` is what the project writes trees with; it does not serve for reading the machine's:
//! it refuses names longer than 31 characters, and QEMU's own pseries tree has
//! `ibm,processor-radix-AP-encodings`, as many boards have such names. It also walks a node's whole
//! subtree to find its sibling. Here every node is visited once.

mod cells;
mod node;

use alloc::vec::Vec;

use crate::{Block, Error, MAX_BYTES, MAX_DEPTH, MAX_NODES, Malformed};

pub(crate) use cells::Cells;
pub use node::Node;

const MAGIC: u32 = 0xd00d_feed;
const HEADER_BYTES: usize = 40;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;
/// No binding has a longer name; it bounds what a hostile strings block can cost.
const MAX_NAME_BYTES: usize = 256;

pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(word.try_into().ok()?))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(word.try_into().ok()?))
}

fn be_usize(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(be32(bytes, at)?).ok()
}

/// The size of a device tree in bytes, from its first 8 bytes: how much to map before
/// [`Machine::from_fdt`](crate::Machine::from_fdt) can be called.
///
/// # Errors
/// [`Error::TooShort`], [`Error::Magic`], or [`Error::TooLarge`].
pub fn blob_size(start: &[u8]) -> Result<usize, Error> {
    let short = || Error::TooShort { bytes: start.len() };
    let magic = be32(start, 0).ok_or_else(short)?;
    if magic != MAGIC {
        return Err(Error::Magic { magic });
    }
    let bytes = be_usize(start, 4).ok_or_else(short)?;
    if bytes > MAX_BYTES {
        return Err(Error::TooLarge {
            bytes,
            max: MAX_BYTES,
        });
    }
    Ok(bytes)
}

/// `status`, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Okay,
    Disabled,
    Failed,
}

impl Status {
    fn from_property(value: &[u8]) -> Self {
        match value {
            b"okay\0" | b"ok\0" => Self::Okay,
            _ if value.starts_with(b"fail") => Self::Failed,
            _ => Self::Disabled,
        }
    }
}

/// A node in 32 bytes: offsets into the structure block, so that the index of a large tree fits a
/// small heap.
struct NodeData {
    /// Of the name; its text was checked.
    name: u32,
    /// Of the first token of its properties, which were checked.
    properties: u32,
    properties_end: u32,
    compatible: u32,
    compatible_end: u32,
    /// 0 when there is none.
    device_type: u32,
    parent: u16,
    /// [`MANY_CELLS`] for that many or more.
    address_cells: u8,
    size_cells: u8,
    status: Status,
    /// Neither the node nor one above it is switched off.
    available: bool,
}

const _: () = assert!(size_of::<NodeData>() == 32);
const _: () = assert!(MAX_BYTES < u32::MAX as usize && MAX_NODES <= u16::MAX as usize);

const MANY_CELLS: u8 = u8::MAX;

fn few_cells(cells: Option<u32>) -> u8 {
    cells
        .and_then(|cells| u8::try_from(cells).ok())
        .unwrap_or(MANY_CELLS)
}

/// An offset into a block of at most [`MAX_BYTES`].
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// The bytes from one such offset to another.
fn between(block: &[u8], start: u32, end: u32) -> &[u8] {
    let at = |offset| usize::try_from(offset).unwrap_or(usize::MAX);
    block.get(at(start)..at(end)).unwrap_or_default()
}

/// A device tree: nodes in document order, the root first.
pub struct Tree<'a> {
    reservations: &'a [u8],
    structure: &'a [u8],
    strings: &'a [u8],
    nodes: Vec<NodeData>,
    /// Sorted by phandle.
    phandles: Vec<(u32, usize)>,
}

/// One property token: its name's offset, its value, and what follows.
fn property(tokens: &[u8]) -> Option<(usize, &[u8], &[u8])> {
    let bytes = be_usize(tokens, 4)?;
    let name = be_usize(tokens, 8)?;
    let value = tokens.get(12..12usize.checked_add(bytes)?)?;
    // The padding after the last property of a block may be all there is of it.
    let rest = tokens
        .get(12usize.checked_add(bytes.checked_next_multiple_of(4)?)?..)
        .unwrap_or_default();
    Some((name, value, rest))
}

fn has_name(strings: &[u8], at: usize, name: &[u8]) -> bool {
    strings
        .get(at..)
        .and_then(|tail| tail.strip_prefix(name))
        .is_some_and(|tail| tail.first() == Some(&0))
}

/// The text up to the first NUL, when it is printable ASCII.
pub(crate) fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let text = bytes.get(..end)?;
    text.iter()
        .all(|byte| matches!(byte, b' '..=b'~'))
        .then(|| core::str::from_utf8(text).ok())?
}

impl<'a> Tree<'a> {
    /// Reads the tree in `blob`.
    ///
    /// # Errors
    /// A tree that is malformed, or larger than any machine's.
    pub fn new(blob: &'a [u8]) -> Result<Self, Error> {
        let claimed = blob_size(blob)?;
        if blob.len() < HEADER_BYTES || claimed < HEADER_BYTES {
            return Err(Error::TooShort {
                bytes: blob.len().min(claimed),
            });
        }
        let Some(blob) = blob.get(..claimed) else {
            return Err(Error::Truncated {
                claimed,
                bytes: blob.len(),
            });
        };
        let field = |at| be_usize(blob, at).unwrap_or(usize::MAX);
        let (version, compatible) = (
            be32(blob, 20).unwrap_or_default(),
            be32(blob, 24).unwrap_or_default(),
        );
        if version < 17 || compatible > 17 {
            return Err(Error::Version {
                version,
                compatible,
            });
        }
        let slice = |start: usize, bytes: usize, block| {
            start
                .checked_add(bytes)
                .and_then(|end| blob.get(start..end))
                .ok_or(Error::Block { block })
        };
        let structure_at = field(8);
        let structure = slice(structure_at, field(36), Block::Structure)?;
        let strings = slice(field(12), field(32), Block::Strings)?;
        if strings.last().is_some_and(|last| *last != 0) {
            return Err(Error::Block {
                block: Block::Strings,
            });
        }
        let reservations_at = field(16);
        let reservations = blob.get(reservations_at..).ok_or(Error::Block {
            block: Block::Reservations,
        })?;
        let end = (0..reservations.len())
            .step_by(16)
            .find(|at| be64(reservations, at.saturating_add(8)) == Some(0))
            .ok_or(Error::Structure {
                offset: reservations_at,
                problem: Malformed::Reservations,
            })?;
        let mut tree = Self {
            reservations: reservations.get(..end).unwrap_or_default(),
            structure,
            strings,
            nodes: Vec::new(),
            phandles: Vec::new(),
        };
        tree.index().map_err(|(at, problem)| Error::Structure {
            offset: structure_at.saturating_add(at),
            problem,
        })?;
        Ok(tree)
    }

    /// Reads the structure block; errors carry the offset in it.
    fn index(&mut self) -> Result<(), (usize, Malformed)> {
        let structure = self.structure;
        let mut at = 0usize;
        let mut open: Vec<usize> = Vec::new();
        loop {
            let token = be32(structure, at).ok_or((at, Malformed::Ends))?;
            let here = at;
            at = at.saturating_add(4);
            match token {
                NOP => {}
                BEGIN_NODE if self.nodes.is_empty() || !open.is_empty() => {
                    if open.len() >= MAX_DEPTH {
                        return Err((here, Malformed::Depth));
                    }
                    if self.nodes.len() >= MAX_NODES {
                        return Err((here, Malformed::Nodes));
                    }
                    let name_at = at;
                    let name = structure
                        .get(at..)
                        .map(|tail| tail.get(..MAX_NAME_BYTES).unwrap_or(tail))
                        .and_then(text)
                        .ok_or((at, Malformed::NodeName))?;
                    at = at
                        .saturating_add(name.len().saturating_add(1))
                        .next_multiple_of(4);
                    let parent = open.last().copied();
                    let node = self.node(name_at, parent, &mut at)?;
                    open.push(self.nodes.len());
                    // The one list that grows with the tree, on a heap that does not.
                    self.nodes
                        .try_reserve(1)
                        .map_err(|_| (here, Malformed::Heap))?;
                    self.nodes.push(node);
                }
                END_NODE if open.pop().is_some() => {}
                END if open.is_empty() && !self.nodes.is_empty() => break,
                other => return Err((here, Malformed::Token(other))),
            }
        }
        types::sort(&mut self.phandles);
        let twice = self.phandles.windows(2).find_map(|pair| match pair {
            [(a, _), (b, _)] if a == b => Some(*a),
            _ => None,
        });
        match twice {
            Some(phandle) => Err((at, Malformed::Phandle(phandle))),
            None => Ok(()),
        }
    }

    /// Reads the properties of a node whose name ends at `at`, and leaves `at` behind them.
    fn node(
        &mut self,
        name: usize,
        parent: Option<usize>,
        at: &mut usize,
    ) -> Result<NodeData, (usize, Malformed)> {
        let structure = self.structure;
        let above = parent.and_then(|parent| self.nodes.get(parent));
        let mut node = NodeData {
            name: offset(name),
            properties: offset(*at),
            properties_end: 0,
            compatible: 0,
            compatible_end: 0,
            device_type: 0,
            parent: parent
                .and_then(|parent| u16::try_from(parent).ok())
                .unwrap_or_default(),
            address_cells: 2,
            size_cells: 1,
            status: Status::Okay,
            available: above.is_none_or(|above| above.available),
        };
        let start = *at;
        let mut phandle = None;
        loop {
            let token = be32(structure, *at).ok_or((*at, Malformed::Ends))?;
            match token {
                NOP => *at = at.saturating_add(4),
                PROP => {
                    let tokens = structure.get(*at..).unwrap_or_default();
                    let (name_at, value, rest) = property(tokens).ok_or((*at, Malformed::Ends))?;
                    let named = |name| has_name(self.strings, name_at, name);
                    // The block ends with a NUL, so every name that starts in it ends in it.
                    if name_at >= self.strings.len() {
                        return Err((*at, Malformed::PropertyName));
                    }
                    let cells = || be32(value, 0);
                    let value_at = at.saturating_add(12);
                    match value.len() {
                        4 if named(b"#address-cells") => {
                            node.address_cells = few_cells(cells());
                        }
                        4 if named(b"#size-cells") => node.size_cells = few_cells(cells()),
                        4 if named(b"phandle") || named(b"linux,phandle") => {
                            phandle = cells();
                        }
                        _ if named(b"compatible") => {
                            node.compatible = offset(value_at);
                            node.compatible_end = offset(value_at.saturating_add(value.len()));
                        }
                        _ if named(b"device_type") => node.device_type = offset(value_at),
                        _ if named(b"status") => node.status = Status::from_property(value),
                        _ => {}
                    }
                    *at = structure.len().saturating_sub(rest.len());
                }
                _ => break,
            }
        }
        node.properties_end = offset(*at);
        node.available &= node.status == Status::Okay;
        if let Some(phandle) = phandle {
            self.phandles
                .try_reserve(1)
                .map_err(|_| (start, Malformed::Heap))?;
            self.phandles.push((phandle, self.nodes.len()));
        }
        Ok(node)
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> Node<'_, 'a> {
        Node {
            tree: self,
            index: 0,
        }
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = Node<'_, 'a>> {
        (0..self.nodes.len()).map(|index| Node { tree: self, index })
    }

    /// Pairs of address and size from the reservation block.
    pub fn reservations(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.reservations
            .chunks_exact(16)
            .filter_map(|entry| Some((be64(entry, 0)?, be64(entry, 8)?)))
    }

    pub(crate) fn by_phandle(&self, phandle: u32) -> Option<Node<'_, 'a>> {
        let found = self
            .phandles
            .binary_search_by_key(&phandle, |(phandle, _)| *phandle)
            .ok()?;
        let (_, index) = self.phandles.get(found)?;
        Some(Node {
            tree: self,
            index: *index,
        })
    }

    /// The node with this absolute path. A component without a unit address matches any.
    pub(crate) fn by_path(&self, path: &str) -> Option<Node<'_, 'a>> {
        let mut here = self.root();
        for component in path.strip_prefix('/')?.split('/').filter(|c| !c.is_empty()) {
            here = here.children().find(|child| {
                child.name() == component || child.name().split('@').next() == Some(component)
            })?;
        }
        Some(here)
    }
}
