//! `ibm,configure-connector`: a guest asks for the device tree of what has come to a connector, a node or a
//! property a call. [LoPAPR §13.5.3.5]
//!
//! Where the guest is in it stands in the work area, which is the guest's: nothing is kept for it, any number of
//! vCPUs may walk at once, and a place that is made up is one of its own tree or refused.

use alloc::string::String;
use alloc::vec::Vec;

/// The service's name, and its token, which is QEMU's.
pub const CONFIGURE_CONNECTOR: (&str, u32) = ("ibm,configure-connector", 0x201e);

/// Bytes of a work area. [LoPAPR §13.5.3.5.1]
pub const WORK_AREA: usize = 4096;

/// What a call answers when there is something at the connector, and the guest has not made it its own. [LoPAPR
/// Table 169]
pub const NOT_CONFIGURABLE: i32 = -9003;

/// Cells of a work area: the connector's index; where the walk is, which is 0 at first and our business from
/// then on; where the name is; bytes of a property, and where they are.
const CELLS: usize = 5;
const HEAD: usize = CELLS * 4;

const HARDWARE: i32 = -1;
const PARAMETER: i32 = -3;

/// What a call tells of, by its status. [LoPAPR Table 169]
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// 1: a node behind the last one, with the same parent.
    Sibling(String),
    /// 2: the first node below the last one; also the very first.
    Child(String),
    /// 3: of the last node.
    Property(String, Vec<u8>),
    /// 4: what comes next is about the node above.
    Parent,
}

/// The nodes of a connector in the order in which a guest hears of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectorNodes {
    steps: Vec<Step>,
}

/// A node whose properties, and then the nodes below it, are to be said.
#[derive(Debug)]
pub struct NodeBuilder<'n> {
    nodes: &'n mut ConnectorNodes,
    has_children: bool,
}

impl ConnectorNodes {
    /// The node at the top, filled by `fill`.
    pub fn new(name: &str, fill: impl FnOnce(&mut NodeBuilder<'_>)) -> Self {
        let mut nodes = Self::default();
        nodes.steps.push(Step::Child(name.into()));
        fill(&mut NodeBuilder {
            nodes: &mut nodes,
            has_children: false,
        });
        // Nothing comes after it.
        while nodes.steps.pop_if(|last| *last == Step::Parent).is_some() {}
        nodes
    }

    /// Answers a call: the status, and what the work area holds from its second cell on. `place` is that
    /// second cell as the guest gave it. The area has to be as long as [`WORK_AREA`] to hold everything that is said.
    #[must_use]
    pub fn answer(&self, place: u32) -> (i32, Vec<u8>) {
        let at = usize::try_from(place).unwrap_or(usize::MAX);
        let Some(step) = self.steps.get(at) else {
            // Behind the last one.
            let status = if at == self.steps.len() { 0 } else { PARAMETER };
            return (status, Vec::new());
        };
        let (status, name, value): (i32, &str, &[u8]) = match step {
            Step::Sibling(name) => (1, name, &[]),
            Step::Child(name) => (2, name, &[]),
            Step::Property(name, value) => (3, name, value),
            Step::Parent => (4, "", &[]),
        };
        let behind_name = HEAD.saturating_add(name.len()).saturating_add(1);
        let end = behind_name.saturating_add(value.len());
        let cell = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let mut area = Vec::new();
        if end > WORK_AREA || area.try_reserve_exact(end).is_err() {
            return (HARDWARE, Vec::new());
        }
        let cells = [
            place.saturating_add(1),
            cell(HEAD),
            cell(value.len()),
            cell(behind_name),
        ];
        area.extend(cells.into_iter().flat_map(u32::to_be_bytes));
        area.extend(name.bytes());
        area.push(0);
        area.extend(value);
        (status, area)
    }
}

impl NodeBuilder<'_> {
    /// A property of this node. All of them come before the first node below.
    pub fn property(&mut self, name: &str, value: &[u8]) {
        self.nodes
            .steps
            .push(Step::Property(name.into(), value.into()));
    }

    /// A node below this one.
    pub fn child(&mut self, name: &str, fill: impl FnOnce(&mut NodeBuilder<'_>)) {
        if self.has_children {
            // From what was below the last one back to it.
            self.nodes.steps.push(Step::Sibling(name.into()));
        } else {
            self.nodes.steps.push(Step::Child(name.into()));
        }
        self.has_children = true;
        let mut node = NodeBuilder {
            nodes: self.nodes,
            has_children: false,
        };
        fill(&mut node);
        if node.has_children {
            self.nodes.steps.push(Step::Parent);
        }
    }
}
