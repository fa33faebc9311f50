//! A node: what it says, and what is below it.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::cells::list;
use super::{
    Cells, MANY_CELLS, MAX_NAME_BYTES, NOP, NodeData, Status, Tree, be32, be64, between, has_name,
    offset, property, text,
};
use crate::{Error, MAX_ENTRIES, NodePath, Problem};

#[derive(Clone, Copy)]
/// A node of a [`Tree`].
pub struct Node<'t, 'a> {
    pub(super) tree: &'t Tree<'a>,
    pub(super) index: usize,
}

impl PartialEq for Node<'_, '_> {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index
    }
}

impl<'t, 'a> Node<'t, 'a> {
    fn data(self) -> Option<&'t NodeData> {
        self.tree.nodes.get(self.index)
    }

    /// The tokens of its properties.
    fn tokens(self) -> &'a [u8] {
        let structure = self.tree.structure;
        self.data().map_or(&[], |data| {
            between(structure, data.properties, data.properties_end)
        })
    }

    /// `compatible`, as it stands.
    fn compatible_bytes(self) -> &'a [u8] {
        let structure = self.tree.structure;
        self.data().map_or(&[], |data| {
            between(structure, data.compatible, data.compatible_end)
        })
    }

    pub(crate) fn tree(self) -> &'t Tree<'a> {
        self.tree
    }

    /// Whether it has this name; cheaper than [`Node::name`].
    pub(crate) fn is_named(self, wanted: &str) -> bool {
        let structure = self.tree.structure;
        self.data()
            .and_then(|data| usize::try_from(data.name).ok())
            .is_some_and(|at| has_name(structure, at, wanted.as_bytes()))
    }

    /// Its name, with the unit address; empty for the root.
    #[must_use]
    pub fn name(self) -> &'a str {
        let structure = self.tree.structure;
        self.data()
            .and_then(|data| text(between(structure, data.name, offset(structure.len()))))
            .unwrap_or_default()
    }

    pub(crate) fn is_available(self) -> bool {
        self.data().is_some_and(|data| data.available)
    }

    pub(crate) fn status(self) -> Status {
        self.data().map_or(Status::Disabled, |data| data.status)
    }

    /// `#address-cells` for the children.
    pub(crate) fn address_cells(self) -> u32 {
        match self.data().map(|data| data.address_cells) {
            Some(MANY_CELLS) => self.many_cells("#address-cells"),
            few => few.unwrap_or(2).into(),
        }
    }

    /// `#size-cells` for the children.
    pub(crate) fn size_cells(self) -> u32 {
        match self.data().map(|data| data.size_cells) {
            Some(MANY_CELLS) => self.many_cells("#size-cells"),
            few => few.unwrap_or(1).into(),
        }
    }

    fn many_cells(self, property: &str) -> u32 {
        self.get(property)
            .and_then(|value| be32(value, 0))
            .unwrap_or(u32::MAX)
    }

    pub(crate) fn parent(self) -> Option<Self> {
        (self.index != 0).then_some(Self {
            tree: self.tree,
            index: self.data()?.parent.into(),
        })
    }

    /// The nodes directly below. Linear in the nodes that follow: for a few named nodes only.
    pub fn children(self) -> impl Iterator<Item = Self> {
        let nodes = self.tree.nodes.iter().enumerate();
        nodes
            .skip(self.index.saturating_add(1))
            // Document order: the first node that does not descend from here ends the subtree, and
            // everything in it has a parent at or after this node.
            .take_while(move |(_, data)| usize::from(data.parent) >= self.index)
            .filter(move |(_, data)| usize::from(data.parent) == self.index)
            .map(move |(index, _)| Self {
                tree: self.tree,
                index,
            })
    }

    pub(crate) fn path(self) -> NodePath {
        let mut names = Vec::new();
        let mut here = self;
        while let Some(parent) = here.parent() {
            names.push(here.name());
            here = parent;
        }
        let mut path = String::new();
        for name in names.iter().rev() {
            path.push('/');
            path.push_str(name);
        }
        if path.is_empty() {
            path.push('/');
        }
        NodePath(path)
    }

    pub(crate) fn error(self, property: &'static str, problem: Problem) -> Error {
        Error::Property {
            path: self.path(),
            property,
            problem,
        }
    }

    /// Adds to a list, up to [`MAX_ENTRIES`] of them.
    pub(crate) fn push<T>(
        self,
        property: &'static str,
        list: &mut Vec<T>,
        item: T,
    ) -> Result<(), Error> {
        if list.len() >= MAX_ENTRIES {
            let max = MAX_ENTRIES;
            return Err(self.error(property, Problem::TooMany { max }));
        }
        list.push(item);
        Ok(())
    }

    /// Name and value of every property.
    pub fn properties(self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let mut tokens = self.tokens();
        let strings = self.tree.strings;
        core::iter::from_fn(move || {
            while be32(tokens, 0)? == NOP {
                tokens = tokens.get(4..)?;
            }
            let (name, value, rest) = property(tokens)?;
            tokens = rest;
            let name = strings.get(name..).unwrap_or_default();
            let name = name.get(..MAX_NAME_BYTES).unwrap_or(name);
            Some((text(name).unwrap_or("?"), value))
        })
    }

    pub(crate) fn get(self, wanted: &str) -> Option<&'a [u8]> {
        let mut tokens = self.tokens();
        loop {
            while be32(tokens, 0)? == NOP {
                tokens = tokens.get(4..)?;
            }
            let (name, value, rest) = property(tokens)?;
            if has_name(self.tree.strings, name, wanted.as_bytes()) {
                return Some(value);
            }
            tokens = rest;
        }
    }

    pub(crate) fn has(self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(crate) fn u32(self, name: &'static str) -> Result<Option<u32>, Error> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.len() {
            4 => Ok(be32(value, 0)),
            bytes => Err(self.error(name, Problem::Length { bytes, unit: 4 })),
        }
    }

    /// A number of one or two cells.
    pub(crate) fn number(self, name: &'static str) -> Result<Option<u64>, Error> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.len() {
            4 => Ok(be32(value, 0).map(u64::from)),
            8 => Ok(be64(value, 0)),
            bytes => Err(self.error(name, Problem::Length { bytes, unit: 4 })),
        }
    }

    /// All cells of a property; empty when it is not there.
    pub(crate) fn cells(self, name: &'static str) -> Result<Cells<'a>, Error> {
        let value = self.get(name).unwrap_or_default();
        if value.len().is_multiple_of(4) {
            Ok(Cells(value))
        } else {
            let bytes = value.len();
            Err(self.error(name, Problem::Length { bytes, unit: 4 }))
        }
    }

    pub(crate) fn string(self, name: &'static str) -> Result<Option<String>, Error> {
        self.get(name)
            .map(|value| {
                text(value)
                    .map(ToString::to_string)
                    .ok_or_else(|| self.error(name, Problem::NotText))
            })
            .transpose()
    }

    /// The strings of a list; empty when it is not there. What is not text is left out.
    pub(crate) fn strings(self, name: &str) -> impl Iterator<Item = &'a str> {
        list(self.get(name).unwrap_or_default())
    }

    pub(crate) fn compatible(self) -> impl Iterator<Item = &'a str> {
        list(self.compatible_bytes())
    }

    pub(crate) fn is_compatible(self, wanted: &str) -> bool {
        // Asked of every node some twenty times: bytes are compared, not made text first.
        let mut rest = self.compatible_bytes();
        while let Some(end) = rest.iter().position(|byte| *byte == 0) {
            if rest.get(..end) == Some(wanted.as_bytes()) {
                return true;
            }
            rest = rest.get(end.saturating_add(1)..).unwrap_or_default();
        }
        false
    }

    pub(crate) fn has_compatible(self) -> bool {
        !self.compatible_bytes().is_empty()
    }

    pub(crate) fn is_device_type(self, wanted: &str) -> bool {
        let structure = self.tree.structure;
        self.data()
            .filter(|data| data.device_type != 0)
            .map(|data| between(structure, data.device_type, offset(structure.len())))
            .and_then(|value| value.strip_prefix(wanted.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}
