//! What the device tree says: options from the kernel command line (`name=number` words), memory.

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};

/// Bytes of a device tree that are looked at.
const TREE_LIMIT: usize = 1 << 20;

/// The command line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    words: &'static str,
    memory: u64,
    console: bool,
}

/// The consoles that a platform may have: a PL011, a terminal of hypervisor calls.
const CONSOLES: [&str; 2] = ["arm,pl011", "hvterm1"];

/// Whether the tree has a console: a node that is one, or a path to one.
fn has_console(tree: &Fdt<'static>) -> bool {
    let is_one = |node: FdtNode<'static>| {
        let compatible = node.property("compatible");
        compatible.is_some_and(|compatible| {
            let mut names = compatible.value().split(|byte| *byte == 0);
            names.any(|name| CONSOLES.iter().any(|console| console.as_bytes() == name))
        })
    };
    // On POWER the node is one level down.
    let mut nodes = tree.root().children();
    let chosen = tree.find_node("/chosen");
    chosen.is_some_and(|chosen| chosen.property("stdout-path").is_some())
        || nodes.any(|node| is_one(node) || node.children().any(is_one))
}

impl Options {
    /// That of the device tree at an address; empty if there is none.
    pub fn from_tree(address: usize) -> Self {
        let Some(tree) = Self::find(address) else {
            return Self::default();
        };
        let words = || {
            let chosen = tree.find_node("/chosen")?;
            chosen.property("bootargs")?.value_as().ok()
        };
        // Two cells of address, two of size.
        let memory = || {
            let node = tree
                .root()
                .children()
                .find(|node| node.name_without_address() == "memory")?;
            let reg = node.property("reg")?;
            let size = reg.value().get(8..16)?;
            Some(u64::from_be_bytes(size.try_into().ok()?))
        };
        Self {
            words: words().unwrap_or_default(),
            memory: memory().unwrap_or_default(),
            console: has_console(&tree),
        }
    }

    fn find(address: usize) -> Option<Fdt<'static>> {
        const MAGIC: u32 = 0xd00d_feed;
        if address == 0 || !address.is_multiple_of(8) {
            return None;
        }
        let start = core::ptr::with_exposed_provenance::<u8>(address);
        // SAFETY: whoever entered the guest put a device tree there, in memory that nothing else
        // uses; its header is at least this long. [Devicetree Specification §5.2]
        let header = unsafe { core::slice::from_raw_parts(start, 8) };
        let word = |at: usize| {
            let bytes = header.get(at..at + 4)?;
            Some(u32::from_be_bytes(bytes.try_into().ok()?))
        };
        if word(0)? != MAGIC {
            return None;
        }
        let bytes = usize::try_from(word(4)?).ok()?.min(TREE_LIMIT);
        // SAFETY: as above, the size is the header's.
        let tree = unsafe { core::slice::from_raw_parts(start, bytes) };
        // Not validated: names on POWER are longer than the specification's 31 characters.
        Some(Fdt::new_unchecked(tree))
    }

    /// The first word that is no `name=number`: what the guest is to do.
    pub fn command(&self) -> Option<&'static str> {
        self.words
            .split_whitespace()
            .find(|word| !word.contains('='))
    }

    /// Whether a console is described.
    pub fn console(&self) -> bool {
        self.console
    }

    /// Bytes of memory, of the first memory node; 0 if none is described.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// The number of `name=number`, decimal or with `0x`.
    ///
    /// # Panics
    /// If it is no number: a test that mistypes its options must not pass.
    pub fn number(&self, name: &str) -> Option<u64> {
        let value = self.words.split_whitespace().find_map(|word| {
            let (key, value) = word.split_once('=')?;
            (key == name).then_some(value)
        })?;
        let number = match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => value.parse(),
        };
        match number {
            Ok(number) => Some(number),
            Err(_) => panic!("option {name}: {value} is no number"),
        }
    }
}
