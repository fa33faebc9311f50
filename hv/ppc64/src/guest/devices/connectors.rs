//! What a guest does with the connectors of its host bridges. Each bridge has two: a slot, in its own node, and a
//! logical one, in the root, by which the guest gives the bridge's node up and gets it again. [LoPAPR §13]

use alloc::string::String;
use alloc::vec::Vec;

use dtoolkit::model::{DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node as _, Property as _};
use papr::{ConnectorNodes, NOT_CONFIGURABLE, NodeBuilder, Served, WORK_AREA};

use super::recovery::{LATER, Masters};
use super::{Devices, HARDWARE, Held, PARAMETER, View};

/// Indexes of connectors for PCI slots begin here, and those for host bridges; QEMU's.
const SLOTS: u32 = 0x4000_0000;
const BRIDGES: u32 = 0x2000_0000;
/// Slots by PAPR's numbers: one that takes any card.
const TYPE: &str = "28";
/// The one power domain: it is always on.
const LIVE: u32 = u32::MAX;
const FULL_POWER: u32 = 100;

/// The services for connectors, by name and token; tokens are QEMU's.
pub(super) const SERVICES: [(&str, u32); 5] = [
    ("set-indicator", token::SET_INDICATOR),
    ("set-power-level", token::SET_POWER),
    ("get-power-level", token::GET_POWER),
    ("get-sensor-state", token::GET_SENSOR),
    papr::CONFIGURE_CONNECTOR,
];

mod token {
    pub(super) const SET_INDICATOR: u32 = 0x201a;
    pub(super) const SET_POWER: u32 = 0x201b;
    pub(super) const GET_POWER: u32 = 0x201c;
    pub(super) const GET_SENSOR: u32 = 0x201d;
    pub(super) const CONFIGURE: u32 = papr::CONFIGURE_CONNECTOR.1;
}

/// Indicators and sensors: whether a connector is isolated, its lamp, what is in it (a sensor), and whether the
/// guest has the use of it (an indicator of the same number). [Linux arch/powerpc/include/asm/rtas.h]
const ISOLATION: u32 = 9001;
const LAMP: u32 = 9002;
const ENTITY: u32 = 9003;
const ALLOCATION: u32 = 9003;
/// What is in a connector.
const EMPTY: u32 = 0;
const PRESENT: u32 = 1;
const UNUSABLE: u32 = 2;

/// The index of a bridge's slot.
pub(super) fn slot(bridge: usize) -> u32 {
    SLOTS | u32::try_from(bridge & 0xfff).unwrap_or(0) << 16
}

/// The index of its logical connector.
fn logical(bridge: usize) -> u32 {
    BRIDGES | u32::try_from(bridge & 0xfff).unwrap_or(0)
}

/// The four properties that list connectors: index and name of each, and the type of all.
fn lists(connectors: &[(u32, String)], kind: &str) -> [(&'static str, Vec<u8>); 4] {
    let cells = |cells: &mut dyn Iterator<Item = u32>| {
        let count = u32::try_from(connectors.len()).unwrap_or(0);
        let all = core::iter::once(count).chain(cells);
        all.flat_map(u32::to_be_bytes).collect::<Vec<u8>>()
    };
    let texts = |text: &mut dyn Iterator<Item = &str>| {
        let mut value = cells(&mut core::iter::empty());
        text.for_each(|text| value.extend(text.bytes().chain([0])));
        value
    };
    let mut indexes = connectors.iter().map(|(index, _)| *index);
    let mut names = connectors.iter().map(|(_, name)| name.as_str());
    [
        ("ibm,drc-indexes", cells(&mut indexes)),
        (
            "ibm,drc-power-domains",
            cells(&mut connectors.iter().map(|_| LIVE)),
        ),
        ("ibm,drc-names", texts(&mut names)),
        ("ibm,drc-types", texts(&mut connectors.iter().map(|_| kind))),
    ]
}

/// Says in a bridge's node that it is a slot, and at which connector the node is.
pub(super) fn describe(node: &mut DeviceTreeNode, bridge: usize) {
    let mut add = |name: &str, value: Vec<u8>| {
        node.add_property(DeviceTreeProperty::new_unchecked(name, value));
    };
    let own = [(slot(bridge), alloc::format!("PHB{bridge}"))];
    for (name, value) in lists(&own, TYPE) {
        add(name, value);
    }
    add("ibm,my-drc-index", logical(bridge).to_be_bytes().to_vec());
}

/// What `ibm,configure-connector` says of a node.
pub(super) fn told(node: &DeviceTreeNode) -> ConnectorNodes {
    fn fill(node: &DeviceTreeNode, into: &mut NodeBuilder<'_>) {
        for property in node.properties() {
            into.property(property.name(), property.value());
        }
        for child in node.children() {
            into.child(child.name(), |into| fill(child, into));
        }
    }
    ConnectorNodes::new(node.name(), |into| fill(node, into))
}

impl Devices {
    /// What the root of the guest's tree says of connectors.
    pub(crate) fn root_lists(&self) -> [(&'static str, Vec<u8>); 4] {
        let bridges = self.bridges.iter();
        let all: Vec<(u32, String)> = bridges
            .map(|at| (logical(*at), alloc::format!("PHB {at}")))
            .collect();
        lists(&all, "PHB")
    }

    /// Whether the guest has given up the use of a bridge.
    pub(super) fn is_released(&self, bridge: usize) -> bool {
        self.released.lock().contains(&bridge)
    }

    /// The bridge, and whether its logical connector was named.
    fn connector_of(&self, index: u32) -> Option<(usize, bool)> {
        let mut bridges = self.bridges.iter().copied();
        let at = bridges.find(|at| [slot(*at), logical(*at)].contains(&index))?;
        Some((at, logical(at) == index))
    }

    /// Serves one of [`SERVICES`].
    pub(super) fn connector_service(
        &self,
        view: View<'_>,
        token: u32,
        arguments: &[u32],
        results: usize,
    ) -> Served {
        let status = |status| Served::new(status, &[]);
        match (token, arguments, results) {
            (token::GET_POWER, &[LIVE], 2) | (token::SET_POWER, &[LIVE, _], 2) => {
                Served::new(0, &[FULL_POWER])
            }
            (token::GET_SENSOR, &[ENTITY, index], 2) => match self.connector_of(index) {
                Some((at, is_logical)) => Served::new(0, &[self.entity(at, is_logical)]),
                None => status(PARAMETER),
            },
            (token::SET_INDICATOR, &[LAMP, index, 0..4], 1) => {
                let its = self.connector_of(index).is_some();
                status(if its { 0 } else { PARAMETER })
            }
            (token::SET_INDICATOR, &[ISOLATION, index, value @ (0 | 1)], 1) => {
                status(self.with_held(index, |held, _| match value {
                    0 => self.isolate(held, view),
                    _ => self.unite(held, view),
                }))
            }
            (token::SET_INDICATOR, &[ALLOCATION, index, value @ (0 | 1)], 1) => {
                status(self.with_held(index, |held, is_logical| {
                    self.allocate(held, is_logical, value == 1)
                }))
            }
            (token::CONFIGURE, &[area, 0], 1) => status(self.configure(view, area)),
            _ => status(PARAMETER),
        }
    }

    /// What is in a connector.
    fn entity(&self, at: usize, is_logical: bool) -> u32 {
        let all = self.held.lock();
        let there = all.iter().any(|held| held.bridge == at && !held.returns);
        match (there, is_logical) {
            (true, true) if self.is_released(at) => UNUSABLE,
            (true, _) => PRESENT,
            (false, true) => UNUSABLE,
            (false, false) => EMPTY,
        }
    }

    /// Does something to the bridge at a connector, which is told whether it is the logical one. One that is away
    /// is none.
    fn with_held(&self, index: u32, what: impl FnOnce(&mut Held, bool) -> i32) -> i32 {
        let Some((at, is_logical)) = self.connector_of(index) else {
            return PARAMETER;
        };
        let mut all = self.held.lock();
        let mut found = all.iter_mut();
        match found.find(|held| held.bridge == at && !held.returns) {
            Some(held) => what(held, is_logical),
            None => PARAMETER,
        }
    }

    /// The guest gives up the use of a bridge that it has isolated, or takes it again. A slot is always usable. [LoPAPR
    /// §13.5.3.4]
    fn allocate(&self, held: &Held, is_logical: bool, usable: bool) -> i32 {
        if !is_logical || !usable && !held.isolated {
            return PARAMETER;
        }
        let mut released = self.released.lock();
        released.retain(|bridge| *bridge != held.bridge);
        if !usable {
            released.push(held.bridge);
        }
        0
    }

    /// A step of `ibm,configure-connector`.
    fn configure(&self, view: View<'_>, area: u32) -> i32 {
        let area = u64::from(area);
        let last = area + WORK_AREA as u64 - 1;
        let mut head = [[0; 4]; 2];
        let all_there = view.memory.read(last, &mut [0]);
        let read = view.memory.read(area, head.as_flattened_mut());
        if all_there.is_err() || read.is_err() {
            return PARAMETER;
        }
        let [index, place] = head.map(u32::from_be_bytes);
        let Some((at, true)) = self.connector_of(index) else {
            return PARAMETER;
        };
        let all = self.held.lock();
        let mut held = all.iter().filter(|held| held.bridge == at);
        let there = held.any(|held| !held.returns && !held.isolated);
        if !there || self.is_released(at) {
            return NOT_CONFIGURABLE;
        }
        drop(all);
        let trees = self.trees.lock();
        let Some((_, nodes)) = trees.iter().find(|(bridge, _)| *bridge == at) else {
            return HARDWARE;
        };
        let (status, answer) = nodes.answer(place);
        // From its second cell on.
        if view.memory.write(area + 4, &answer).is_err() {
            return PARAMETER;
        }
        status
    }

    /// The guest parts from a bridge: nothing of it reaches the guest, or the guest it.
    fn isolate(&self, held: &mut Held, view: View<'_>) -> i32 {
        if !held.isolated {
            held.isolated = true;
            let buid = self.hardware.bridges[held.bridge].buid;
            self.hardware.messages.stop_pins(buid);
            let off = self.set_masters(held, Masters::None);
            self.take_messages(held);
            self.show(held, view);
            self.begin_resets(held);
            if !off {
                return HARDWARE;
            }
        }
        0
    }

    /// The guest has it again, once its devices are through their resets; one that it has no use of it has not.
    fn unite(&self, held: &mut Held, view: View<'_>) -> i32 {
        if !held.isolated {
            return 0;
        }
        if self.is_released(held.bridge) {
            return PARAMETER;
        }
        if !self.poll_resets(held) {
            return LATER;
        }
        held.isolated = false;
        self.show(held, view);
        if held.answers() {
            let buid = self.hardware.bridges[held.bridge].buid;
            self.hardware.messages.allow_pins(buid);
        }
        0
    }
}
