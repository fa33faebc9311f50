//! A VM's devices: its host bridges, their windows, registers and interrupts.
//!
//! A host bridge of the machine is one of the VM's, with the same unique id and the same addresses: what a
//! device's registers are for the machine's CPUs they are for the guest's. BARs are placed already, and
//! stay. Of configuration space a guest reads everything and writes the enables only.

use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};

use bundle::{HostDevice, TcePolicy, VmConfig};
use dtoolkit::model::{DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node as _, Property as _};
use iommu::{DomainId, Extent, IoasId, OwnerId, PageSizes, Permissions, Target};
use papr::Served;
use pci::{Bar, BarKind, Function};
use spin::Mutex;
use types::{Bdf, Ipa, PageSize, Span};
use vtce::{BridgeOptions, Dma, NotMemory, Policy, Progress, Service, Slot};

use super::memory::GuestMemory;
use crate::hardware::{Bridge, Hardware};
use crate::memory::Ram;
use boot::Frames;

/// The services for devices, by name and token; tokens are QEMU's.
const SERVICES: [(&str, u32); 4] = [
    ("ibm,read-pci-config", token::READ_CONFIG),
    ("ibm,write-pci-config", token::WRITE_CONFIG),
    ("ibm,query-interrupt-source-number", token::SOURCE),
    ("ibm,change-msi", token::CHANGE_MSI),
];

mod token {
    pub(super) const READ_CONFIG: u32 = 0x2016;
    pub(super) const WRITE_CONFIG: u32 = 0x2017;
    pub(super) const SOURCE: u32 = 0x2018;
    pub(super) const CHANGE_MSI: u32 = 0x2019;
}

const HARDWARE: i32 = -1;
const PARAMETER: i32 = -3;

/// Devices that a VM cannot have.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the machine has no device {0}")]
    NoDevice(String),
    #[error("devices behind a host bridge cannot be kept apart: {0} belong together")]
    Together(String),
    #[error("BAR{bar} of {bdf} has no place of its own")]
    Bar { bdf: Bdf, bar: u8 },
    #[error("{0}")]
    Core(#[from] iommu::Error),
    #[error("{0}")]
    Windows(#[from] vtce::Refusal),
}

/// A host bridge that a VM has.
#[derive(Debug)]
struct Held {
    bridge: usize,
    ioas: IoasId,
    domain: DomainId,
}

/// The devices of a VM.
#[derive(Debug)]
pub(crate) struct Devices {
    hardware: &'static Hardware,
    vm: usize,
    held: Vec<Held>,
    dma: Mutex<Dma>,
}

/// The memory of a VM, as lists are read from it.
struct Reader<'a>(&'a GuestMemory<'static, Ram, Frames<Ram>>);

impl vtce::GuestMemory for Reader<'_> {
    fn read(&self, at: Ipa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        let bytes = buffer.len();
        let read = self.0.read(at.bits(), buffer);
        read.map_err(|_| NotMemory { at, bytes })
    }
}

/// A function as a configuration address.
fn address(bdf: Bdf) -> u32 {
    u32::from(bdf.bits()) << 8
}

/// The memory BARs of a function.
fn bars(function: &Function) -> impl Iterator<Item = &Bar> {
    function.bars.iter().filter(|bar| !bar.kind.is_io())
}

/// The bridges that a VM asks for, each with all that is behind it.
fn wanted(hardware: &Hardware, config: &VmConfig) -> Result<Vec<usize>, Refusal> {
    let mut wanted: Vec<(usize, Vec<Bdf>)> = Vec::new();
    for device in &config.devices {
        let missing = || Refusal::NoDevice(format!("{}", device.host));
        let place = |matches: &dyn Fn(&Bridge) -> bool| {
            let mut bridges = hardware.bridges.iter();
            bridges.position(matches).ok_or_else(missing)
        };
        let (at, functions) = match device.host {
            HostDevice::Phb { buid } => {
                let at = place(&|bridge: &Bridge| bridge.buid == buid)?;
                let all = hardware.bridges[at].devices.iter();
                (at, all.map(|(bdf, _)| *bdf).collect())
            }
            HostDevice::Pci { segment, bdf } => {
                let at = place(&|bridge: &Bridge| {
                    bridge.topology.segment() == segment
                        && bridge.devices.iter().any(|(other, _)| *other == bdf)
                })?;
                (at, vec![bdf])
            }
        };
        match wanted.iter_mut().find(|(bridge, _)| *bridge == at) {
            Some((_, known)) => known.extend(functions),
            None => wanted.push((at, functions)),
        }
    }
    for (at, functions) in &wanted {
        let bridge = &hardware.bridges[*at];
        let segment = bridge.topology.segment();
        if bridge
            .devices
            .iter()
            .any(|(bdf, _)| !functions.contains(bdf))
        {
            let all = bridge.devices.iter();
            let all: Vec<String> = all.map(|(bdf, _)| format!("{segment:04x}:{bdf}")).collect();
            return Err(Refusal::Together(all.join(", ")));
        }
    }
    Ok(wanted.into_iter().map(|(at, _)| at).collect())
}

/// What the manifest lets a guest have.
fn policy(tce: &TcePolicy) -> Policy {
    let usual = Policy::usual();
    let pages = match tce {
        TcePolicy::DefaultWindow => PageSizes::NONE,
        TcePolicy::Dynamic { page_shifts } if page_shifts.is_empty() => return usual,
        TcePolicy::Dynamic { page_shifts } => {
            let sizes = page_shifts.iter().filter_map(|shift| {
                let shift = u8::try_from(*shift).ok()?;
                PageSize::from_shift(shift).ok()
            });
            sizes.fold(PageSizes::NONE, |all, size| {
                all.with(PageSizes::new(&[size]))
            })
        }
    };
    Policy { pages, ..usual }
}

impl Devices {
    /// Takes the devices that a VM asks for, and shows it their registers; `None` when it asks for none.
    /// Their DMA reaches nothing until the guest maps something.
    pub(crate) fn claim(
        hardware: &'static Hardware,
        vm: usize,
        config: &VmConfig,
        memory: &mut GuestMemory<'static, Ram, Frames<Ram>>,
    ) -> Result<Option<Self>, Refusal> {
        let bridges = wanted(hardware, config)?;
        if bridges.is_empty() {
            return Ok(None);
        }
        for at in &bridges {
            for function in hardware.bridges[*at].topology.functions() {
                for bar in bars(function) {
                    let (bdf, index) = (function.bdf, bar.index);
                    let refused = Refusal::Bar { bdf, bar: index };
                    let place = bar.place.filter(|_| bar.size >= 4096).ok_or(refused)?;
                    let refused = Refusal::Bar { bdf, bar: index };
                    memory
                        .map_registers(place.cpu, bar.size)
                        .map_err(|_| refused)?;
                }
            }
        }
        let owner = OwnerId::new(u32::try_from(vm + 1).unwrap_or(u32::MAX));
        let mut core = hardware.core.lock();
        let mut dma = Dma::new()?;
        let extents: Vec<Extent> = memory.extents().collect();
        let ram = core.add_ram(owner, &extents)?;
        let whole = Ipa::new(0)
            .ok()
            .and_then(|at| Span::from_len(at, memory.bytes()));
        dma.add_slot(Slot {
            span: whole.ok_or(vtce::Refusal::Taken)?,
            memory: ram,
            offset: 0,
            permissions: Permissions::ReadWrite,
            page: memory.contiguous(),
        })?;
        let mut held = Vec::new();
        for at in bridges {
            let bridge = &hardware.bridges[at];
            let ioas = core.create_ioas(owner)?;
            let mut domain = None;
            for (_, device) in &bridge.devices {
                core.bind(*device, owner)?;
            }
            for (_, device) in &bridge.devices {
                domain = Some(core.attach(*device, Target::Ioas(ioas))?);
            }
            let Some(domain) = domain else { continue };
            let number = u8::try_from(at).unwrap_or(u8::MAX);
            dma.add_bridge(
                &core,
                BridgeOptions {
                    number,
                    buid: bridge.buid,
                    ioas,
                    domain,
                    policy: policy(&config.tce),
                },
            )?;
            held.push(Held {
                bridge: at,
                ioas,
                domain,
            });
        }
        Ok(Some(Self {
            hardware,
            vm,
            held,
            dma: Mutex::new(dma),
        }))
    }

    /// One line for each device, for the log and the monitor.
    pub(crate) fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let core = self.hardware.core.lock();
        for held in &self.held {
            let bridge = &self.hardware.bridges[held.bridge];
            let segment = bridge.topology.segment();
            for (bdf, _) in &bridge.devices {
                lines.push(format!("{segment:04x}:{bdf} of phb:{:x}", bridge.buid));
            }
            let windows = core.windows(held.domain).unwrap_or_default();
            let areas = core.ioas(held.ioas).map_or(0, iommu::Ioas::len);
            for window in windows {
                lines.push(format!(
                    "window {} with pages of {:#x} bytes; {areas} areas in all",
                    window.span,
                    window.pages.smallest()
                ));
            }
        }
        let (sources, muted) = self.hardware.messages.of_vm(self.vm);
        if sources > 0 {
            lines.push(format!("{sources} sources of messages, {muted} muted"));
        }
        lines
    }

    /// Holds the guest's books against the core's, and these against the platform's: how many entries
    /// were looked at, and how many were wrong.
    pub(crate) fn audit(&self) -> (u64, u64) {
        let core = self.hardware.core.lock();
        let dma = self.dma.lock();
        let mut wrong = 0;
        let mut looked = dma.audit(&core, &mut |_| wrong += 1);
        for held in &self.held {
            let unit = iommu::UnitId::new(u32::try_from(held.bridge).unwrap_or(u32::MAX));
            let backend = core.backend();
            looked += backend.audit(unit, tce::AuditScope::Used, &mut |_| wrong += 1);
        }
        (looked, wrong)
    }

    /// The bridge and function that a call's configuration address and unique id name.
    fn function(&self, config: u32, [high, low]: [u32; 2]) -> Option<(&Bridge, &Function)> {
        let buid = u64::from(high) << 32 | u64::from(low);
        let held = self.held.iter();
        let mut bridges = held.map(|held| &self.hardware.bridges[held.bridge]);
        let bridge = bridges.find(|bridge| bridge.buid == buid)?;
        let bdf = Bdf::from_bits(u16::try_from(config >> 8 & 0xffff).ok()?);
        Some((bridge, bridge.topology.function(bdf)?))
    }

    /// Serves a hypercall; `None` for one that is not about DMA.
    pub(crate) fn hypercall(
        &self,
        memory: &GuestMemory<'static, Ram, Frames<Ram>>,
        number: u64,
        arguments: [u64; 4],
    ) -> Option<(u64, Option<u64>)> {
        if !vtce::HYPERCALLS.contains(&number) {
            return None;
        }
        let mut core = self.hardware.core.lock();
        let mut dma = self.dma.lock();
        let answer = dma.hypercall(&mut core, &Reader(memory), number, arguments)?;
        Some((answer.status.bits(), answer.value))
    }

    /// Serves a service; `None` for one that is not about devices. `server` is the CPU that gets the
    /// interrupts of devices.
    pub(crate) fn service(
        &self,
        server: u32,
        token: u32,
        arguments: &[u32],
        results: usize,
    ) -> Option<Served> {
        let windows = Service::ALL
            .into_iter()
            .find(|service| service.token() == token);
        if let Some(service) = windows {
            let mut core = self.hardware.core.lock();
            let mut dma = self.dma.lock();
            let outcome = dma.service(&mut core, service, arguments, results);
            if service != Service::Query {
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
        let refused = Some(Served::new(PARAMETER, &[]));
        match (token, arguments, results) {
            (token::READ_CONFIG, &[at, high, low, bytes], 2) => {
                Some(self.read_config(at, [high, low], bytes))
            }
            (token::WRITE_CONFIG, &[at, high, low, bytes, value], 1) => {
                let status = self.write_config(at, [high, low], bytes, value);
                Some(Served::new(status, &[]))
            }
            (token::SOURCE, &[at, high, low, number], 3) => {
                let Some((bridge, function)) = self.function(at, [high, low]) else {
                    return refused;
                };
                let rtas = self.hardware.rtas;
                let source = rtas.source_of_msi(bridge.buid, address(function.bdf), number);
                Some(match source {
                    Ok(source) => Served::new(0, &source),
                    Err(_) => Served::new(PARAMETER, &[]),
                })
            }
            (token::CHANGE_MSI, &[at, high, low, function, count, sequence], 3 | 4) => {
                let what = [function, count, sequence];
                Some(self.change_msi(server, at, [high, low], what))
            }
            (known, ..) if SERVICES.iter().any(|(_, token)| *token == known) => refused,
            _ => None,
        }
    }

    fn read_config(&self, at: u32, buid: [u32; 2], bytes: u32) -> Served {
        if !matches!(bytes, 1 | 2 | 4) {
            return Served::new(PARAMETER, &[]);
        }
        // Nothing there: all ones, as on the bus itself.
        let nothing = u32::MAX >> (32 - 8 * bytes);
        let Some((bridge, function)) = self.function(at, buid) else {
            return Served::new(HARDWARE, &[nothing]);
        };
        let at = at & 0xf000_00ff | address(function.bdf);
        match self.hardware.rtas.read_config(bridge.buid, at, bytes) {
            Ok(value) => Served::new(0, &[value]),
            Err(_) => Served::new(HARDWARE, &[nothing]),
        }
    }

    /// Lets a guest write the enables, each where it is; everything else stays as it is.
    fn write_config(&self, at: u32, buid: [u32; 2], bytes: u32, value: u32) -> i32 {
        /// I/O, memory, bus mastering, no interrupt pin.
        const COMMAND: u32 = 0x0407;
        /// On, and all vectors masked.
        const MSIX_CONTROL: u32 = 0xc000;
        /// On, and how many vectors.
        const MSI_CONTROL: u32 = 0x0071;
        if !matches!(bytes, 1 | 2 | 4) {
            return PARAMETER;
        }
        let Some((bridge, function)) = self.function(at, buid) else {
            return HARDWARE;
        };
        let offset = at & 0xff | at >> 20 & 0xf00;
        let capabilities = &function.capabilities;
        let msix = capabilities
            .msix
            .as_ref()
            .map(|msix| u32::from(msix.offset) + 2);
        let msi = capabilities
            .msi
            .as_ref()
            .map(|msi| u32::from(msi.offset) + 2);
        let mask = match (offset, bytes) {
            (0x04, 2) => COMMAND,
            (control, 2) if Some(control) == msix => MSIX_CONTROL,
            (control, 2) if Some(control) == msi => MSI_CONTROL,
            _ => return 0,
        };
        let at = at & 0xf000_00ff | address(function.bdf);
        let rtas = self.hardware.rtas;
        let Ok(old) = rtas.read_config(bridge.buid, at, bytes) else {
            return HARDWARE;
        };
        let new = old & !mask | value & mask;
        // SAFETY: the device is the VM's, and its DMA reaches what the VM mapped.
        match unsafe { rtas.write_config(bridge.buid, at, bytes, new) } {
            Ok(()) => 0,
            Err(_) => HARDWARE,
        }
    }

    fn change_msi(&self, server: u32, at: u32, buid: [u32; 2], what: [u32; 3]) -> Served {
        let Some((bridge, function)) = self.function(at, buid) else {
            return Served::new(PARAMETER, &[]);
        };
        let device = address(function.bdf);
        let name = [bridge.buid, device.into()];
        self.hardware.messages.forget(name);
        let rtas = self.hardware.rtas;
        // SAFETY: the device is the VM's.
        let changed = unsafe { rtas.change_msi(bridge.buid, device, what) };
        let [count, sequence, kind] = match changed {
            Ok(changed) => changed,
            Err(crate::rtas::Error::Status { status, .. }) => {
                return Served::new(status, &[0, 0, 0]);
            }
            Err(_) => return Served::new(HARDWARE, &[0, 0, 0]),
        };
        for number in 0..count {
            let source = rtas.source_of_msi(bridge.buid, device, number);
            let Ok([source, _]) = source else { continue };
            if !self.hardware.messages.add(source, self.vm, name, server) {
                log::warn!("vm {}: interrupt {source:#x} goes nowhere", self.vm);
            }
        }
        Served::new(0, &[count, sequence, kind])
    }

    /// No device of the VM does anything any more, and nothing of its windows is left: bus mastering
    /// off, then interrupts, then every entry. True when all of that is certain.
    pub(crate) fn quiesce(&self) -> bool {
        const MASTER: u32 = 1 << 2;
        const MSIX: u32 = 4;
        let rtas = self.hardware.rtas;
        let mut sure = true;
        for held in &self.held {
            let bridge = &self.hardware.bridges[held.bridge];
            for (bdf, _) in &bridge.devices {
                let device = address(*bdf);
                let command = rtas.read_config(bridge.buid, device | 4, 2);
                let off = command.is_ok_and(|command| {
                    // SAFETY: takes something away.
                    let write =
                        unsafe { rtas.write_config(bridge.buid, device | 4, 2, command & !MASTER) };
                    write.is_ok()
                });
                sure &= off;
                self.hardware.messages.forget([bridge.buid, device.into()]);
                // SAFETY: takes interrupts away; one that has none answers with an error.
                let _ = unsafe { rtas.change_msi(bridge.buid, device, [MSIX, 0, 0]) };
            }
        }
        let mut dma = self.dma.lock();
        loop {
            let mut core = self.hardware.core.lock();
            match dma.clear(&mut core) {
                Ok(Progress::More) => {}
                Ok(Progress::Done) => return sure && core.backend().is_sure(),
                Err(error) => {
                    log::error!("vm {}: windows cannot be emptied: {error}", self.vm);
                    return false;
                }
            }
        }
    }

    /// What the guest's tree says of its bridges: the machine's own nodes, with the guest's windows and
    /// the places of BARs.
    pub(crate) fn nodes(&self, machine: &DeviceTreeNode) -> Vec<DeviceTreeNode> {
        let dma = self.dma.lock();
        let core = self.hardware.core.lock();
        let mut nodes = Vec::new();
        for held in &self.held {
            let bridge = &self.hardware.bridges[held.bridge];
            let mut machine = machine.children();
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
                .map(|windows| windows.properties(&core, tokens));
            let Some(Ok(Some(properties))) = properties else {
                continue;
            };
            nodes.push(node(pattern, bridge, &properties));
        }
        nodes
    }

    /// The services that the guest's tree names.
    pub(crate) fn services() -> impl Iterator<Item = (&'static str, u32)> {
        let windows = Service::ALL.map(|service| (service.name(), service.token()));
        SERVICES.into_iter().chain(windows)
    }
}

/// Properties of the machine's tree that are not the guest's.
const NOT_ITS: [&str; 9] = [
    "ibm,my-drc-index",
    "ibm,drc-indexes",
    "ibm,drc-names",
    "ibm,drc-types",
    "ibm,drc-power-domains",
    "interrupt-map",
    "interrupt-map-mask",
    "ibm,dma-window",
    "interrupts",
];

fn property<T: dtoolkit::ToPropertyValue>(name: &str, value: T) -> DeviceTreeProperty {
    DeviceTreeProperty::new_unchecked(name, value)
}

fn node(
    pattern: &DeviceTreeNode,
    bridge: &Bridge,
    properties: &vtce::Properties,
) -> DeviceTreeNode {
    let mut node = pattern.clone();
    for name in NOT_ITS {
        node.remove_property(name);
    }
    node.add_property(property("ibm,dma-window", properties.dma_window));
    for (name, value) in [
        ("ibm,ddw-applicable", properties.ddw_applicable),
        ("ibm,ddw-extensions", properties.ddw_extensions),
    ] {
        node.remove_property(name);
        if let Some(value) = value {
            node.add_property(property(name, value));
        }
    }
    for child in node.children_mut() {
        for name in NOT_ITS {
            child.remove_property(name);
        }
        let reg = child.property("reg").map(|reg| reg.value().to_vec());
        let place = reg.as_deref().and_then(|reg| reg.first_chunk::<4>());
        let bits = place.map(|place| u32::from_be_bytes(*place) >> 8 & 0xffff);
        let bdf = bits
            .and_then(|bits| u16::try_from(bits).ok())
            .map(Bdf::from_bits);
        let function = bdf.and_then(|bdf| bridge.topology.function(bdf));
        if let Some(function) = function {
            child.remove_property("assigned-addresses");
            let cells = assigned(function);
            child.add_property(property("assigned-addresses", cells));
        }
    }
    node
}

/// The places of a function's BARs. [IEEE 1275, PCI bus binding §2.2.1.1]
fn assigned(function: &Function) -> Vec<u8> {
    const FIXED: u32 = 1 << 31;
    const PREFETCHABLE: u32 = 1 << 30;
    let mut cells: Vec<u32> = Vec::new();
    for bar in &function.bars {
        let Some(place) = bar.place else { continue };
        let kind = match bar.kind {
            BarKind::Io => 1 << 24,
            BarKind::Memory32 => 2 << 24,
            BarKind::Prefetchable32 => 2 << 24 | PREFETCHABLE,
            BarKind::Memory64 => 3 << 24,
            BarKind::Prefetchable64 => 3 << 24 | PREFETCHABLE,
        };
        let register = 0x10 + 4 * u32::from(bar.index);
        cells.push(FIXED | kind | address(function.bdf) | register);
        for value in [place.bus, bar.size] {
            let bytes = value.to_be_bytes();
            cells.extend(
                bytes
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|half| u32::from_be_bytes(*half)),
            );
        }
    }
    cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
}

impl GuestMemory<'static, Ram, Frames<Ram>> {
    /// The pieces of it in our memory, in the guest's order.
    fn extents(&self) -> impl Iterator<Item = Extent> {
        self.pieces().map(|(_, pa, bytes)| Extent { pa, bytes })
    }

    /// The largest page that is contiguous wherever one can be.
    fn contiguous(&self) -> PageSize {
        let smallest = self.pieces().map(|(at, pa, bytes)| {
            let bits = at | pa.bits() | bytes;
            bits & bits.wrapping_neg()
        });
        let smallest = smallest.min().unwrap_or(4096).min(1 << 30);
        PageSize::from_bytes(smallest).unwrap_or(PageSize::SIZE_4K)
    }
}
