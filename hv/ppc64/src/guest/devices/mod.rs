//! A VM's devices: its host bridges, their windows, registers and interrupts.
//!
//! A host bridge of the machine is one of the VM's, with the same unique id and the same addresses: what a
//! device's registers are for the machine's CPUs they are for the guest's. BARs are placed already, and
//! stay. Of configuration space a guest reads everything and writes the enables only.
//!
//! A VM has its bridges from when it starts until it is off. Locks are taken in this order: what is held,
//! the core with all VMs' windows; the guest's tree last.

mod claim;
mod config;
mod connectors;
mod messages;
mod node;
mod peers;
mod pins;
mod plug;
mod ready;
mod recovery;
mod registers;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use boot::Frames;
use dtoolkit::model::DeviceTreeNode;
use dtoolkit::{Node as _, Property as _};
use hal::Mutex;
use iommu::{DomainId, IoasId, MemoryId, OwnerId};
use papr::{ConnectorNodes, Served};
use pci::{Function, Reset};
use tce::AuditPlace;
use types::{Bdf, Ipa};
use vm::{Moderated, Moderation, Rate};
use vtce::{FunctionCall, FunctionRequest, FunctionService, NotMemory, Policy, Service};

use super::memory::GuestMemory;
use super::tree;
use crate::console::TimeBase;
use crate::hardware::{Bridge, Hardware, Shared};
use crate::memory::Ram;
use crate::spr;

pub(crate) use claim::Refusal;
pub(crate) use registers::Access;
use registers::Shown;

/// The memory of the guests here.
type Memory = GuestMemory<'static, Ram, Frames<Ram>>;

/// Lines of the log in a second that calls of a guest may cause.
const LINES: u32 = 32;
const HARDWARE: i32 = -1;
const PARAMETER: i32 = -3;

/// What a call of a guest's may change apart from devices: its tree, which its vCPUs use.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) memory: &'a Memory,
    /// Returns when every other vCPU of the VM has left its guest since.
    pub(crate) leave: &'a dyn Fn(),
}

/// A host bridge that a VM has.
#[derive(Debug)]
struct Held {
    /// Its place among the machine's.
    bridge: usize,
    ioas: IoasId,
    domain: DomainId,
    pe: eeh::Pe,
    /// Registers that the VM's devices may reach.
    granted: Vec<(Bdf, MemoryId)>,
    functions: Vec<FunctionState>,
    /// What the guest finds in the place of its I/O space.
    io: Shown,
    /// The guest has isolated its connector: nothing of it answers.
    isolated: bool,
    /// It is on its way back, and away for the guest until its devices are through their resets.
    returns: bool,
    /// Resets under way.
    resets: Vec<Reset>,
    /// How far its devices are, before a start.
    readiness: ready::Readiness,
}

/// A function of it.
#[derive(Debug)]
struct FunctionState {
    bdf: Bdf,
    /// The guest lets it master the bus.
    masters: bool,
    /// The guest lets its registers answer.
    decodes: bool,
    /// How many messages it has.
    messages: messages::Assigned,
    /// Where they went before a reset that is under way.
    kept: Option<messages::Kept>,
    /// What the guest finds in the place of its registers.
    shown: Shown,
}

/// The devices of a VM.
#[derive(Debug)]
pub(crate) struct Devices {
    hardware: &'static Hardware,
    vm: usize,
    owner: OwnerId,
    /// The bridges that it has when it runs.
    bridges: Vec<usize>,
    /// The sources of their pins.
    lines: Vec<pins::Line>,
    /// The CPU that pins interrupt.
    server: u32,
    policy: Policy,
    /// The devices whose registers the others may reach: bridge and function.
    peers: Vec<(usize, Bdf)>,
    held: Mutex<Vec<Held>>,
    /// Any are held.
    has_bridges: AtomicBool,
    /// Bridges that were taken away from it while it runs.
    away: Mutex<Vec<plug::Away>>,
    /// Any are on their way back.
    returning: AtomicBool,
    /// Bridges that the guest has given up the use of.
    released: Mutex<Vec<usize>>,
    /// What the guest is told of its bridges' nodes when it asks for them again.
    trees: Mutex<Vec<(usize, ConnectorNodes)>>,
    /// How much was told of its calls.
    told: Mutex<Moderation>,
    /// Whether its guest injects errors.
    injection: Mutex<eeh::Injection>,
    /// Its errors, while it does not have the bridge: a VM that restarts is no better than before.
    past: Mutex<Vec<(usize, eeh::Pe)>>,
    /// Its windows, by their place among those of all.
    dma: usize,
}

/// The memory of a VM, as lists are read from it.
struct Reader<'a>(&'a Memory);

impl vtce::GuestMemory for Reader<'_> {
    fn read(&self, at: Ipa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        let bytes = buffer.len();
        let read = self.0.read(at.bits(), buffer);
        read.map_err(|_| NotMemory { at, bytes })
    }
}

impl Held {
    /// Whether registers and configuration space answer.
    fn answers(&self) -> bool {
        self.pe.state().allows_registers() && !self.isolated
    }
}

/// A function as a configuration address.
fn address(bdf: Bdf) -> u32 {
    u32::from(bdf.bits()) << 8
}

impl Devices {
    /// One line for each device, for the log and the monitor.
    pub(crate) fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let all = self.held.lock();
        for at in &self.bridges {
            let bridge = &self.hardware.bridges[*at];
            let segment = bridge.topology.segment();
            for (bdf, _) in &bridge.devices {
                lines.push(format!("{segment:04x}:{bdf} of phb:{:x}", bridge.buid));
            }
            let Some(held) = all.iter().find(|held| held.bridge == *at) else {
                if self.is_away(*at) {
                    lines.push(format!("phb:{:x} is taken away", bridge.buid));
                }
                continue;
            };
            let shared = self.hardware.shared.lock();
            let core = &shared.core;
            let windows = core.windows(held.domain).unwrap_or_default();
            let pages = core.ioas(held.ioas).map_or(0, iommu::Ioas::pages);
            for window in windows {
                lines.push(format!(
                    "window {} with pages of {:#x} bytes; {pages} pages in all",
                    window.span,
                    window.pages.smallest()
                ));
            }
            drop(shared);
            lines.push(held.line());
        }
        let (sources, muted) = self.hardware.messages.of_vm(self.vm);
        if sources > 0 {
            lines.push(format!("{sources} sources of interrupts, {muted} muted"));
        }
        lines
    }

    /// Holds the guest's books against the core's, and these against the platform's: how many entries
    /// were looked at, and how many were wrong. What the calls of all VMs need is let go of between parts.
    #[optimize(size)]
    pub(crate) fn audit(&self) -> (u64, u64) {
        let all = self.held.lock();
        let (mut looked, mut wrong) = (0, 0);
        let mut in_parts = |part: &dyn Fn(&Shared, &mut AuditPlace, &mut u64) -> u64| {
            let mut place = AuditPlace::default();
            loop {
                let read = part(&self.hardware.shared.lock(), &mut place, &mut wrong);
                if read == 0 {
                    break;
                }
                looked += read;
            }
        };
        in_parts(&|Shared { core, dmas }, place, wrong| {
            let dma = dmas.get(self.dma);
            dma.map_or(0, |dma| dma.audit_part(core, place, &mut |_| *wrong += 1))
        });
        for held in all.iter() {
            let unit = iommu::UnitId::new(u32::try_from(held.bridge).unwrap_or(u32::MAX));
            in_parts(&|shared, place, wrong| {
                let backend = shared.core.backend();
                backend.audit_part(unit, place, &mut |_| *wrong += 1)
            });
        }
        (looked, wrong)
    }

    /// Whether a call of the guest's may cause a line of the log: so often and no more, because the log is everybody's.
    fn may_tell(&self) -> bool {
        let rate = Rate {
            most: LINES,
            ticks: hal::Clock::frequency(&TimeBase),
        };
        let now = spr::timebase();
        let mut told = self.told.lock();
        told.is_due(now, rate);
        if told.is_muted() {
            return false;
        }
        if told.came(now, rate) == Moderated::Mute {
            log::info!("vm {}: its calls are told of no more for now", self.vm);
        }
        true
    }

    /// Whether it has bridges now.
    pub(crate) fn has_bridges(&self) -> bool {
        self.has_bridges.load(Ordering::Acquire)
    }

    /// The bridge that a call's unique id names, as the VM holds it.
    fn bridge<'h>(&self, all: &'h mut [Held], [high, low]: [u32; 2]) -> Option<&'h mut Held> {
        let buid = u64::from(high) << 32 | u64::from(low);
        let mut all = all.iter_mut();
        all.find(|held| self.hardware.bridges[held.bridge].buid == buid)
    }

    /// The function that a configuration address names.
    fn function(&self, held: &Held, config: u32) -> Option<(&'static Bridge, &'static Function)> {
        let bridge = &self.hardware.bridges[held.bridge];
        let bdf = Bdf::from_bits(u16::try_from(config >> 8 & 0xffff).ok()?);
        Some((bridge, bridge.topology.function(bdf)?))
    }

    /// Serves a hypercall; `None` for one that is not about DMA.
    #[optimize(speed)]
    pub(crate) fn hypercall(
        &self,
        memory: &Memory,
        number: u64,
        arguments: [u64; 4],
    ) -> Option<(u64, Option<u64>)> {
        if vtce::HYPERCALLS.contains(&number) {
            self.dma_hypercall(memory, number, arguments)
        } else {
            None
        }
    }

    #[inline(never)]
    fn dma_hypercall(
        &self,
        memory: &Memory,
        number: u64,
        arguments: [u64; 4],
    ) -> Option<(u64, Option<u64>)> {
        let mut shared = self.hardware.shared.lock();
        let Shared { core, dmas } = &mut *shared;
        let dma = dmas.get_mut(self.dma)?;
        let answer = dma.hypercall(core, &Reader(memory), number, arguments)?;
        Some((answer.status.bits(), answer.value))
    }

    /// `H_PUT_TCE`, if that is cheap: what a guest calls for every page where it has no direct window.
    #[optimize(speed)]
    #[inline(never)]
    pub(crate) fn put_tce(&self, arguments: [u64; 4]) -> bool {
        let mut shared = self.hardware.shared.lock();
        let Shared { core, dmas } = &mut *shared;
        let dma = dmas.get_mut(self.dma);
        dma.is_some_and(|dma| dma.put_tce(core, arguments))
    }

    /// Serves a service; `None` for one that is not about devices. `server` is the CPU that gets the
    /// interrupts of devices.
    pub(crate) fn service(
        &self,
        server: u32,
        view: View<'_>,
        token: u32,
        arguments: &[u32],
        results: usize,
    ) -> Option<Served> {
        let windows = Service::ALL
            .into_iter()
            .find(|service| service.token() == token);
        if let Some(service) = windows {
            let mut shared = self.hardware.shared.lock();
            let Shared { core, dmas } = &mut *shared;
            let dma = dmas.get_mut(self.dma)?;
            let outcome = dma.service(core, service, arguments, results);
            drop(shared);
            if service != Service::Query && self.may_tell() {
                log::info!(
                    "vm {}: {} {arguments:x?}: {} {:x?}",
                    self.vm,
                    service.name(),
                    outcome.status,
                    outcome.values()
                );
            }
            return Some(Served::new(outcome.status, outcome.values()));
        }
        let recovery = eeh::Service::ALL
            .into_iter()
            .find(|service| service.token() == token);
        if let Some(service) = recovery {
            return Some(self.recover(view, service, arguments, results));
        }
        let mut errors = eeh::ErrorService::ALL.into_iter();
        if let Some(service) = errors.find(|service| service.token() == token) {
            return Some(self.inject_error(view, service, arguments, results));
        }
        if connectors::SERVICES.iter().any(|(_, its)| *its == token) {
            return Some(self.connector_service(view, token, arguments, results));
        }
        let mut functions = FunctionService::ALL.into_iter();
        let service = functions.find(|service| service.token() == token)?;
        let Some(FunctionCall { at, buid, what }) = service.call(arguments, results) else {
            return Some(Served::new(PARAMETER, &[]));
        };
        Some(match what {
            FunctionRequest::Read { bytes } => self.read_config(at, buid, bytes),
            FunctionRequest::Write { bytes, value } => {
                let status = self.write_config(view, at, buid, [bytes, value]);
                Served::new(status, &[])
            }
            FunctionRequest::Source { number } => self.source(at, buid, number),
            FunctionRequest::ChangeMessages(what) => self.change_msi(server, at, buid, what),
        })
    }

    /// What the guest's tree says of its bridges: the machine's own nodes, with the guest's windows and
    /// the places of BARs.
    pub(crate) fn nodes(&self, tree: &DeviceTreeNode) -> Vec<DeviceTreeNode> {
        let shared = self.hardware.shared.lock();
        let Shared { core, dmas } = &*shared;
        let mut nodes = Vec::new();
        let Some(dma) = dmas.get(self.dma) else {
            return nodes;
        };
        for at in &self.bridges {
            let bridge = &self.hardware.bridges[*at];
            let mut machine = tree.children();
            let its = |node: &&DeviceTreeNode| {
                let reg = node.property("reg").map(|reg| reg.value().to_vec());
                node.name_without_address() == "pci"
                    && reg.is_some_and(|reg| reg.starts_with(&bridge.buid.to_be_bytes()))
            };
            let Some(pattern) = machine.find(its) else {
                continue;
            };
            let windows = dma.bridges().iter();
            let mut windows = windows.filter(|windows| windows.options().buid == bridge.buid);
            let tokens = Service::ALL.map(Service::token);
            let properties = windows
                .next()
                .map(|windows| windows.properties(core, tokens));
            let Some(Ok(Some(properties))) = properties else {
                continue;
            };
            let pin = |bdf| Some((tree::PRESENTATION, self.pin(*at, bdf)?));
            let mut node = node::node(pattern, bridge, &properties, &pin);
            connectors::describe(&mut node, *at);
            let mut trees = self.trees.lock();
            trees.retain(|(bridge, _)| bridge != at);
            trees.push((*at, connectors::told(&node)));
            nodes.push(node);
        }
        nodes
    }

    /// The services that the guest's tree names.
    pub(crate) fn services() -> impl Iterator<Item = (&'static str, u32)> {
        let windows = Service::ALL.map(|service| (service.name(), service.token()));
        let recovery = eeh::Service::ALL.map(|service| (service.name(), service.token()));
        let functions = FunctionService::ALL.map(|service| (service.name(), service.token()));
        let all = functions.into_iter().chain(connectors::SERVICES);
        let errors = eeh::ErrorService::ALL.map(|service| (service.name(), service.token()));
        all.chain(windows).chain(recovery).chain(errors)
    }
}
