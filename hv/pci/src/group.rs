//! Isolation groups: functions that cannot be told apart or kept apart.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use types::Bdf;

use crate::capability::PortType;
use crate::function::Function;
use crate::topology::Topology;

/// What separates functions from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupPolicy {
    /// Access control services and requester IDs.
    Acs,
    /// Nothing: the host bridge is one group, as on a PAPR platform, where all of its functions
    /// share the same DMA windows.
    WholeHost,
}

/// Why two functions are in one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Functions of one device, at least one of which does not redirect peer-to-peer requests.
    MultiFunction,
    /// The port above does not isolate what is below it.
    Port {
        /// The isolation bits of access control services that are not on.
        absent: u16,
    },
    /// A port of the same switch does not isolate, so requests turn around inside the switch.
    Switch {
        /// That port.
        port: Bdf,
    },
    /// The bridge above is one to or of conventional PCI: requests from below carry its ID, and
    /// devices below reach each other directly.
    Conventional,
    /// The policy is [`GroupPolicy::WholeHost`].
    WholeHost,
}

/// One join that made a group larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join {
    /// A function.
    pub function: Bdf,
    /// The function it cannot be separated from.
    pub with: Bdf,
    /// Why.
    pub why: Reason,
}

/// Functions that have to be given away together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// All functions, ascending, bridges included.
    pub members: Vec<Bdf>,
    /// Requester IDs under which members' requests can appear beside the members' own, ascending.
    pub aliases: Vec<Bdf>,
    /// The joins that made the group; none for a group of one.
    pub why: Vec<Join>,
}

impl Group {
    /// Whether a function belongs to it.
    #[must_use]
    pub fn contains(&self, bdf: Bdf) -> bool {
        self.members.binary_search(&bdf).is_ok()
    }
}

/// The requester IDs a function's requests can carry where the IOMMU sees them: its own first.
///
/// A bridge from PCI Express to conventional PCI replaces it by its secondary bus number with
/// device and function 0; other bridges of conventional PCI by their own.
#[must_use]
pub fn requesters(topology: &Topology, bdf: Bdf) -> Vec<Bdf> {
    let mut ids = vec![bdf];
    for bridge in topology.bridges_above(bdf) {
        let alias = match port(bridge) {
            Some(PortType::RootPort | PortType::Upstream | PortType::Downstream) => continue,
            Some(PortType::ToConventional) => bridge
                .bridge()
                .and_then(|b| b.buses)
                .map(|buses| Bdf::from_bits(u16::from(buses.secondary) << 8)),
            _ => Some(bridge.bdf),
        };
        ids.extend(alias.filter(|alias| !ids.contains(alias)));
    }
    ids
}

/// Divides all functions of a host bridge into groups, ascending by their first member.
#[must_use]
pub fn groups(topology: &Topology, policy: GroupPolicy) -> Vec<Group> {
    let mut sets = Sets::new(topology);
    match policy {
        GroupPolicy::WholeHost => {
            for function in topology.functions() {
                let with = topology.functions().first();
                sets.join(function, with, Reason::WholeHost);
            }
        }
        GroupPolicy::Acs => {
            join_below_bridges(topology, &mut sets);
            join_devices(topology, &mut sets);
        }
    }
    sets.into_groups()
}

fn port(function: &Function) -> Option<PortType> {
    function.capabilities.express.map(|express| express.port)
}

/// Why a bridge does not keep what is below it apart; `None` when it does.
fn leak(bridge: &Function) -> Option<Reason> {
    match port(bridge) {
        Some(PortType::RootPort | PortType::Downstream) => {
            let absent = bridge
                .capabilities
                .acs
                .map_or(crate::Acs::ISOLATION, |acs| acs.absent());
            (absent != 0).then_some(Reason::Port { absent })
        }
        // What turns around inside a switch does so at its downstream ports.
        Some(PortType::Upstream) => None,
        _ => Some(Reason::Conventional),
    }
}

fn join_below_bridges(topology: &Topology, sets: &mut Sets<'_>) {
    // For each switch with a leaking port: the upstream port and the first such port.
    let mut leaking: Vec<(Bdf, Bdf)> = Vec::new();
    for function in topology.functions() {
        if port(function) == Some(PortType::Downstream)
            && leak(function).is_some()
            && let Some(upstream) = function.parent
            && leaking.iter().all(|&(seen, _)| seen != upstream)
        {
            leaking.push((upstream, function.bdf));
        }
    }
    for function in topology.functions() {
        for bridge in topology.bridges_above(function.bdf) {
            let switch = leaking.iter().find(|&&(up, _)| up == bridge.bdf);
            let switch = switch.map(|&(_, port)| Reason::Switch { port });
            if let Some(why) = leak(bridge).or(switch) {
                sets.join(function, Some(bridge), why);
            }
        }
    }
}

/// Whether a function redirects the requests it could make to other functions of its device.
fn redirects(function: &Function) -> bool {
    match (port(function), function.capabilities.acs) {
        (None, _) | (_, None) => false,
        (Some(PortType::RootPort | PortType::Downstream), Some(acs)) => acs.absent() == 0,
        // A function that cannot make such requests offers no control over them.
        (Some(_), Some(acs)) => acs.missing() == 0,
    }
}

fn join_devices(topology: &Topology, sets: &mut Sets<'_>) {
    let device = |function: &Function| function.bdf.bits() >> 3;
    let same = |a: &Function, b: &Function| device(a) == device(b);
    for functions in topology.functions().chunk_by(same) {
        if !functions.iter().all(redirects) {
            for function in functions {
                sets.join(function, functions.first(), Reason::MultiFunction);
            }
        }
    }
}

/// Disjoint sets of functions.
struct Sets<'t> {
    topology: &'t Topology,
    /// A member of the same set; itself for the one that stands for the set.
    toward: Vec<usize>,
    joins: Vec<Join>,
}

impl<'t> Sets<'t> {
    fn new(topology: &'t Topology) -> Self {
        Self {
            topology,
            toward: (0..topology.functions().len()).collect(),
            joins: Vec::new(),
        }
    }

    fn representative(&self, mut index: usize) -> usize {
        // Links lead to lower indices only, so this ends.
        while let Some(&next) = self.toward.get(index).filter(|&&next| next < index) {
            index = next;
        }
        index
    }

    fn join(&mut self, function: &Function, with: Option<&Function>, why: Reason) {
        let Some(with) = with else { return };
        let indices = (
            self.topology.index(function.bdf),
            self.topology.index(with.bdf),
        );
        let (Some(a), Some(b)) = indices else { return };
        let (a, b) = (self.representative(a), self.representative(b));
        if a == b {
            return;
        }
        if let Some(slot) = self.toward.get_mut(a.max(b)) {
            *slot = a.min(b);
        }
        self.joins.push(Join {
            function: function.bdf,
            with: with.bdf,
            why,
        });
    }

    fn into_groups(self) -> Vec<Group> {
        let mut groups: Vec<(usize, Group)> = Vec::new();
        for (index, function) in self.topology.functions().iter().enumerate() {
            let representative = self.representative(index);
            let position = match groups.binary_search_by_key(&representative, |&(r, _)| r) {
                Ok(position) => position,
                Err(position) => {
                    let empty = Group {
                        members: Vec::new(),
                        aliases: Vec::new(),
                        why: Vec::new(),
                    };
                    groups.insert(position, (representative, empty));
                    position
                }
            };
            if let Some((_, group)) = groups.get_mut(position) {
                group.members.push(function.bdf);
            }
        }
        for (_, group) in &mut groups {
            for &member in &group.members {
                for id in requesters(self.topology, member) {
                    let place = group.aliases.binary_search(&id);
                    if let (Err(place), Err(_)) = (place, group.members.binary_search(&id)) {
                        group.aliases.insert(place, id);
                    }
                }
            }
            let joins = self.joins.iter();
            let ours = joins.filter(|join| group.contains(join.function));
            group.why = ours.copied().collect();
        }
        groups.into_iter().map(|(_, group)| group).collect()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::MultiFunction => f.write_str("functions of one device without ACS"),
            Self::Port { absent } => write!(f, "port without ACS (bits {absent:#x})"),
            Self::Switch { port } => write!(f, "switch with port {port} without ACS"),
            Self::Conventional => f.write_str("bridge of conventional PCI"),
            Self::WholeHost => f.write_str("one group a host bridge"),
        }
    }
}

impl fmt::Display for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {}: {}", self.function, self.with, self.why)
    }
}
