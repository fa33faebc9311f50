//! Memory and what of it is taken.

use alloc::{string::ToString, vec::Vec};
use core::fmt;

use types::{Address, Pa, Span};

use crate::{
    Error, MAX_ENTRIES, NodePath, Note, Problem,
    bus::{pairs, registers, translate},
    note,
    tree::{Node, Tree},
};

/// Memory that is not free, as the tree says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Which memory.
    pub span: Span<Pa>,
    /// Who says so.
    pub source: ReservationSource,
}

/// Where a reservation comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReservationSource {
    /// The blob's reservation block.
    Block,
    /// A child of `/reserved-memory`.
    Node {
        /// The node.
        path: NodePath,
        /// Whether it may be mapped at all.
        mapping: Mapping,
    },
}

/// Whether reserved memory may be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// It may.
    Allowed,
    /// `no-map`: not even a speculative read may reach it.
    Forbidden,
}

impl fmt::Display for ReservationSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block => f.write_str("reservation block"),
            Self::Node { path, mapping } => {
                write!(f, "{path}")?;
                match mapping {
                    Mapping::Allowed => Ok(()),
                    Mapping::Forbidden => f.write_str(", never mapped"),
                }
            }
        }
    }
}

/// Adds the memory of a node to `spans`.
pub(crate) fn memory(node: Node<'_, '_>, spans: &mut Vec<Span<Pa>>) -> Result<(), Error> {
    if !node.is_device_type("memory") {
        return Ok(());
    }
    // Left by kexec: the part that is ours.
    if node.has("linux,usable-memory") {
        for (address, bytes) in pairs(node, "linux,usable-memory")? {
            if bytes != 0 {
                let span = translate(node, "linux,usable-memory", address, bytes)?;
                node.push("linux,usable-memory", spans, span)?;
            }
        }
        return Ok(());
    }
    if !node.has("reg") {
        return Err(node.error("reg", Problem::Missing));
    }
    for span in registers(node)? {
        node.push("reg", spans, span)?;
    }
    Ok(())
}

/// Sorts spans and joins those that touch; overlaps are noted.
pub(crate) fn join(mut spans: Vec<Span<Pa>>, notes: &mut Vec<Note>) -> Vec<Span<Pa>> {
    types::sort(&mut spans);
    let mut joined: Vec<Span<Pa>> = Vec::with_capacity(spans.len());
    for span in spans {
        if let Some(last) = joined.last_mut() {
            if let Some(both) = last.intersection(span) {
                note(notes, || Note::MemoryTwice(both));
            }
            let touches = last
                .last()
                .checked_add(1)
                .is_none_or(|next| span.start() <= next);
            if touches {
                if let Some(longer) = Span::new(last.start(), last.last().max(span.last())) {
                    *last = longer;
                }
                continue;
            }
        }
        joined.push(span);
    }
    joined
}

pub(crate) fn block_reservations(tree: &Tree<'_>, notes: &mut Vec<Note>) -> Vec<Reservation> {
    let mut reservations = Vec::new();
    for (address, bytes) in tree.reservations().take(MAX_ENTRIES) {
        let span = Pa::new(address)
            .ok()
            .and_then(|start| Span::from_len(start, bytes));
        match span {
            Some(span) => reservations.push(Reservation {
                span,
                source: ReservationSource::Block,
            }),
            None => note(notes, || Note::ReservationOutside {
                start: address,
                bytes,
            }),
        }
    }
    reservations
}

pub(crate) fn reserved_memory(
    child: Node<'_, '_>,
    reservations: &mut Vec<Reservation>,
    notes: &mut Vec<Note>,
) -> Result<(), Error> {
    if !child.has("reg") {
        note(notes, || Note::DynamicReservation(child.path()));
        return Ok(());
    }
    for span in registers(child)? {
        let reservation = Reservation {
            span,
            source: ReservationSource::Node {
                path: child.path(),
                mapping: if child.has("no-map") {
                    Mapping::Forbidden
                } else {
                    Mapping::Allowed
                },
            },
        };
        child.push("reg", reservations, reservation)?;
    }
    Ok(())
}

/// What the boot loader chose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// The command line.
    pub bootargs: Option<alloc::string::String>,
    /// The initrd: for us the boot bundle.
    pub initrd: Option<Span<Pa>>,
    /// The node of the console.
    pub stdout: Option<NodePath>,
    /// `ibm,arch-vec-5-platform-support`: what the POWER platform can negotiate, as pairs of byte
    /// index and value.
    pub arch_vec5_support: Vec<u8>,
}

pub(crate) fn chosen(tree: &Tree<'_>) -> Result<Chosen, Error> {
    let Some(node) = tree.by_path("/chosen") else {
        return Ok(Chosen::default());
    };
    let start = node.number("linux,initrd-start")?;
    let end = node.number("linux,initrd-end")?;
    let initrd = match (start, end) {
        (Some(start), Some(end)) if start != end => {
            let bytes = end.saturating_sub(start);
            let span = Pa::new(start)
                .ok()
                .and_then(|start| Span::from_len(start, bytes))
                .ok_or_else(|| node.error("linux,initrd-end", Problem::PastEnd { start, bytes }))?;
            Some(span)
        }
        (Some(_), None) => return Err(node.error("linux,initrd-end", Problem::Missing)),
        (None, Some(_)) => return Err(node.error("linux,initrd-start", Problem::Missing)),
        _ => None,
    };
    Ok(Chosen {
        bootargs: node.string("bootargs")?,
        initrd,
        stdout: stdout(tree).map(Node::path),
        arch_vec5_support: node
            .get("ibm,arch-vec-5-platform-support")
            .unwrap_or_default()
            .to_vec(),
    })
}

/// The node that `stdout-path` names, by path or alias.
pub(crate) fn stdout<'t, 'a>(tree: &'t Tree<'a>) -> Option<Node<'t, 'a>> {
    let chosen = tree.by_path("/chosen")?;
    let value = chosen
        .get("stdout-path")
        .or_else(|| chosen.get("linux,stdout-path"))?;
    let path = crate::tree::text(value)?;
    let path = path.split(':').next()?;
    if path.starts_with('/') {
        return tree.by_path(path);
    }
    let aliases = tree.by_path("/aliases")?;
    tree.by_path(crate::tree::text(aliases.get(path)?)?)
}

pub(crate) fn strings_of(node: Node<'_, '_>, name: &str) -> Vec<alloc::string::String> {
    node.strings(name)
        .take(MAX_ENTRIES)
        .map(ToString::to_string)
        .collect()
}
