//! What can be wrong with a device tree.

use alloc::string::String;
use core::fmt;

/// The path of a node, as `/soc/pcie@4010000000`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePath(pub(crate) String);

impl NodePath {
    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A device tree that cannot be used. `offset` counts bytes from the start of the blob.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fewer bytes than an FDT header has.
    #[error("device tree: {bytes} bytes are too few for a header")]
    TooShort {
        /// Bytes offered.
        bytes: usize,
    },
    /// The magic number is not there.
    #[error("device tree: magic {magic:#010x} instead of 0xd00dfeed")]
    Magic {
        /// What stands in its place.
        magic: u32,
    },
    /// The blob is larger than [`MAX_BYTES`](crate::MAX_BYTES).
    #[error("device tree: {bytes} bytes, more than the {max} that are allowed")]
    TooLarge {
        /// The size the header gives.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The header asks for more bytes than there are.
    #[error("device tree: header says {claimed} bytes, there are {bytes}")]
    Truncated {
        /// The size the header gives.
        claimed: usize,
        /// Bytes offered.
        bytes: usize,
    },
    /// Not version 17, nor compatible with it.
    #[error("device tree: version {version}, compatible back to {compatible}; 17 is needed")]
    Version {
        /// The version.
        version: u32,
        /// The oldest version it is compatible with.
        compatible: u32,
    },
    /// A block of the blob lies outside of it.
    #[error("device tree: the {block} block lies outside the blob")]
    Block {
        /// Which block.
        block: Block,
    },
    /// The structure block is malformed.
    #[error("device tree: {problem} at offset {offset:#x}")]
    Structure {
        /// Where.
        offset: usize,
        /// What.
        problem: Malformed,
    },
    /// A property does not hold what it must.
    #[error("{path}: {property}: {problem}")]
    Property {
        /// The node.
        path: NodePath,
        /// The property.
        property: &'static str,
        /// What is wrong with it.
        problem: Problem,
    },
    /// No memory is described.
    #[error("device tree: no memory: no node with device_type \"memory\" has a size")]
    NoMemory,
}

/// A block of an FDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// The memory reservations.
    Reservations,
    /// Nodes and properties.
    Structure,
    /// The names of properties.
    Strings,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reservations => "reservation",
            Self::Structure => "structure",
            Self::Strings => "strings",
        })
    }
}

/// How a structure block can be malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The block ends in the middle of something.
    #[error("the structure ends early")]
    Ends,
    /// A token that no version has, or that has no business here.
    #[error("unexpected token {0:#x}")]
    Token(u32),
    /// A node name without an end, with bytes that are not printable ASCII, or of more than 255.
    #[error("a node name is not text, or too long")]
    NodeName,
    /// A property name outside the strings block.
    #[error("a property name lies outside the strings block")]
    PropertyName,
    /// Nodes nested deeper than [`MAX_DEPTH`](crate::MAX_DEPTH).
    #[error("nodes are nested too deeply")]
    Depth,
    /// More than [`MAX_NODES`](crate::MAX_NODES) nodes.
    #[error("there are too many nodes")]
    Nodes,
    /// More nodes than the heap has room for.
    #[error("there are more nodes than the heap has room for")]
    Heap,
    /// The list of reservations has no end.
    #[error("the reservations have no end")]
    Reservations,
    /// Two nodes claim one phandle.
    #[error("phandle {0:#x} is given to two nodes")]
    Phandle(u32),
}

/// What can be wrong with a property.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It is not there.
    #[error("missing")]
    Missing,
    /// Its length does not fit its kind.
    #[error("{bytes} bytes are not a whole number of {unit}-byte entries")]
    Length {
        /// The length it has.
        bytes: usize,
        /// The length of an entry.
        unit: usize,
    },
    /// A string without an end, or not ASCII.
    #[error("not a string")]
    NotText,
    /// `#address-cells`, `#size-cells` or the like with a value that cannot be used here.
    #[error("{cells} cells cannot be used here")]
    Cells {
        /// The value.
        cells: u32,
    },
    /// A number with more bits than the address space.
    #[error("a number is too wide")]
    TooWide,
    /// A range that runs past the end of the address space.
    #[error("{bytes:#x} bytes from {start:#x} run past the end of the address space")]
    PastEnd {
        /// The first address.
        start: u64,
        /// The length.
        bytes: u64,
    },
    /// An address that no bus above translates.
    #[error("address {address:#x} is not translated by {bus}")]
    NotTranslated {
        /// The address on the child's bus.
        address: u64,
        /// The bus whose `ranges` lacks it.
        bus: NodePath,
    },
    /// More of something than any machine has.
    #[error("more than {max} of these")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// A phandle that no node has.
    #[error("no node has phandle {0:#x}")]
    Phandle(u32),
    /// A number outside of what the binding allows.
    #[error("{0:#x} is not allowed")]
    Value(u64),
}
