//! The flattened form, for machines whose firmware hands the tree out in another one.
//!
//! [Devicetree Specification v0.4 §5]

use alloc::vec::Vec;

use crate::Error;
use crate::tree::{Node, Tree};

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
const COMPATIBLE_WITH: u32 = 16;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const END: u32 = 9;
const HEADER_BYTES: usize = 40;
/// The one that ends the list of reservations.
const RESERVATION_BYTES: usize = 16;

/// Writes a tree. Nodes nest: a node's properties come before its children.
#[derive(Clone, Debug, Default)]
pub struct Flattener {
    structure: Vec<u8>,
    strings: Vec<u8>,
    /// Where each name begins in `strings`.
    names: Vec<usize>,
}

impl Flattener {
    /// Opens a node: the name with its unit address, empty for the root.
    pub fn begin(&mut self, name: &str) {
        self.word(BEGIN_NODE);
        self.bytes(name.as_bytes());
        self.structure.push(0);
        self.align();
    }

    /// Adds a property to the node that was opened last.
    pub fn property(&mut self, name: &str, value: &[u8]) {
        let name = self.name(name.as_bytes());
        self.word(PROPERTY);
        self.word(number(value.len()));
        self.word(name);
        self.bytes(value);
        self.align();
    }

    /// Closes a node.
    pub fn end(&mut self) {
        self.word(END_NODE);
    }

    /// The tree.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.word(END);
        let structure_at = HEADER_BYTES.saturating_add(RESERVATION_BYTES);
        let strings_at = structure_at.saturating_add(self.structure.len());
        let total = strings_at.saturating_add(self.strings.len());
        let header = [
            MAGIC,
            number(total),
            number(structure_at),
            number(strings_at),
            number(HEADER_BYTES),
            VERSION,
            COMPATIBLE_WITH,
            0,
            number(self.strings.len()),
            number(self.structure.len()),
        ];
        let mut blob = Vec::with_capacity(total);
        for word in header {
            blob.extend_from_slice(&word.to_be_bytes());
        }
        blob.extend_from_slice(&[0; RESERVATION_BYTES]);
        blob.append(&mut self.structure);
        blob.append(&mut self.strings);
        blob
    }

    /// Where a name is among the strings: each is there once.
    fn name(&mut self, name: &[u8]) -> u32 {
        let is = |at: &&usize| {
            let rest = self.strings.get(**at..).unwrap_or_default();
            rest.strip_prefix(name)
                .is_some_and(|behind| behind.first() == Some(&0))
        };
        if let Some(at) = self.names.iter().find(is) {
            return number(*at);
        }
        let at = self.strings.len();
        self.names.push(at);
        self.strings.extend_from_slice(name);
        self.strings.push(0);
        number(at)
    }

    fn word(&mut self, word: u32) {
        self.bytes(&word.to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.structure.extend_from_slice(bytes);
    }

    fn align(&mut self) {
        while !self.structure.len().is_multiple_of(4) {
            self.structure.push(0);
        }
    }
}

/// A length or place; a tree that is as long as that is refused by its reader.
fn number(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

/// What a tree consists of, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// A node begins, with this name.
    Begin(&'a str),
    /// The node has a property of this name and value.
    Property(&'a str, &'a [u8]),
    /// The node ends.
    End,
}

/// Calls `each` with all parts of the tree in `blob`.
///
/// # Errors
/// A tree that is malformed.
pub fn parts<'a>(blob: &'a [u8], each: &mut dyn FnMut(Part<'a>)) -> Result<(), Error> {
    walk(Tree::new(blob)?.root(), each);
    Ok(())
}

/// The reader has bounded how deep nodes nest.
fn walk<'a>(node: Node<'_, 'a>, each: &mut dyn FnMut(Part<'a>)) {
    each(Part::Begin(node.name()));
    for (name, value) in node.properties() {
        each(Part::Property(name, value));
    }
    for child in node.children() {
        walk(child, each);
    }
    each(Part::End);
}
