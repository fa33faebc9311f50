//! Run-time abstraction services: what a PAPR platform offers by name.

use alloc::{
    collections::BTreeMap,
    string::{String, ToString},
    vec::Vec,
};

use crate::{
    Error, MAX_ENTRIES,
    memory::strings_of,
    tree::{Node, be32},
};

/// The `/rtas` node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rtas {
    tokens: BTreeMap<String, u32>,
    /// `ibm,hypertas-functions`: the groups of hcalls the platform has.
    pub hypertas: Vec<String>,
    /// Where RTAS code was put, when firmware did so.
    pub base: Option<u32>,
    /// Where to enter it; absent when RTAS is called by `H_RTAS` alone.
    pub entry: Option<u32>,
    /// How much memory RTAS wants, in bytes.
    pub bytes: Option<u32>,
}

/// Properties of one cell that are not tokens.
const NOT_TOKENS: [&str; 10] = [
    "#address-cells",
    "#size-cells",
    "linux,phandle",
    "linux,rtas-base",
    "linux,rtas-entry",
    "phandle",
    "rtas-error-log-max",
    "rtas-event-scan-rate",
    "rtas-size",
    "rtas-version",
];

impl Rtas {
    /// The token of a call.
    #[must_use]
    pub fn token(&self, call: &str) -> Option<u32> {
        self.tokens.get(call).copied()
    }

    /// All calls and their tokens, by name.
    pub fn tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.tokens
            .iter()
            .map(|(name, token)| (name.as_str(), *token))
    }

    /// Whether the platform has this group of hcalls.
    #[must_use]
    pub fn has_hypertas(&self, function: &str) -> bool {
        self.hypertas.iter().any(|name| name == function)
    }
}

pub(crate) fn rtas(node: Node<'_, '_>) -> Result<Rtas, Error> {
    let mut tokens = BTreeMap::new();
    for (name, value) in node.properties() {
        if value.len() == 4
            && tokens.len() < MAX_ENTRIES
            && !NOT_TOKENS.contains(&name)
            && let Some(token) = be32(value, 0)
        {
            tokens.insert(name.to_string(), token);
        }
    }
    Ok(Rtas {
        tokens,
        hypertas: strings_of(node, "ibm,hypertas-functions"),
        base: node.u32("linux,rtas-base")?,
        entry: node.u32("linux,rtas-entry")?,
        bytes: node.u32("rtas-size")?,
    })
}
