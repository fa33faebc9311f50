//! The devices that VMs are given, and what confines them: SMMUs, ITSs, configuration space.
//!
//! Made when the manifest gives a device to any VM; without one, every SMMU stays as the survey locked
//! it. Everything here is the hypervisor's: a guest reaches it through [`guest::pci`](crate::guest)
//! only, which judges what it asks for.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use boot::{Devices, Frames};
use gic::{Its, Lpis, Snoop};
use hal::{Clock, Mmio};
use iommu::{
    Coherence, DeviceDescription, DeviceId, Endpoint, GroupId, Iommu, MsiRoute, OwnerId, Path,
    Residence, UnitId,
};
use machine::{Coherency, ConfigAccess, Interrupt, Machine};
use pci::{
    BusRange, ConfigSpace, Ecam, FunctionReset, Msi, MsiX, Obstacle, Progress, Reset, Topology,
};
use smmuv3::spec::{Event, Recording};
use smmuv3::{Locked, Platform, Smmu, SmmuBackend};
use spin::Mutex;
use types::{Address, Bdf, Iova, Pa, PageSize, Span, StreamId};
use vm::{Faults, Records, RefusedDma, Telling};

use crate::console::SystemCounter;
use crate::gic as cpu_gic;
use crate::memory::{Ram, Registers};
use crate::mmu::{Map, Use};

/// The allocator of frames, shared by all.
pub(crate) type Pool = &'static Frames<Ram>;
/// The machine's SMMUs as the IOMMU core's hardware.
pub(crate) type Backend = SmmuBackend<Registers, Ram, Pool, SystemCounter>;
/// The IOMMU core of this machine.
pub(crate) type Core = Iommu<Backend>;
type PhysicalIts = Its<Registers, Ram, Pool, SystemCounter>;

/// Bits of a guest-physical address that stage 2 of a device takes.
const IPA_BITS: u8 = 40;
/// The most vectors of a device: what is beyond stays masked.
const MOST_EVENTS: u32 = 256;
/// Records that are read at once.
const MOST_RECORDS: usize = 512;

/// A host bridge.
pub(crate) struct Bridge {
    pub(crate) space: Ecam<Registers>,
    pub(crate) topology: Topology,
    groups: Vec<pci::Group>,
    intx_lock: Mutex<()>,
}

impl Bridge {
    /// Whether a function is alone in its isolation group.
    fn isolates(&self, bdf: Bdf) -> bool {
        let mut groups = self.groups.iter();
        groups.any(|group| group.contains(bdf) && group.members.len() == 1)
    }
}

/// How a function is brought back to its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResetBy {
    /// By itself.
    Function,
    /// With the bus it is alone on, by this bridge.
    Bus(Bdf),
    /// Not at all.
    Nothing,
}

#[derive(Debug)]
enum Resetting {
    /// As enumeration left it.
    Fresh,
    /// A VM has it.
    Used(usize),
    /// This VM has had it, and there is no reset that would make it forget.
    Stale(usize),
    /// On its way.
    Running(Reset),
    /// It did not come back.
    Lost,
}

/// A function that the manifest names.
pub(crate) struct Function {
    pub(crate) segment: u16,
    pub(crate) bdf: Bdf,
    /// Its place among the bridges.
    pub(crate) bridge: usize,
    pub(crate) device: DeviceId,
    pub(crate) unit: UnitId,
    /// Its stream, at that unit.
    pub(crate) stream: u32,
    its: usize,
    /// Who its messages come from, as its ITS sees it: others behind the same bridge may have the same.
    device_id: u32,
    /// The number of its first message among those of that DeviceID.
    pub(crate) first_event: u32,
    /// Messages it may send, numbered from 0.
    pub(crate) events: u32,
    /// The first of its LPIs, counted from the first of all.
    first: usize,
    reset_by: ResetBy,
    reset: Mutex<Resetting>,
}

impl Function {
    /// MSI-X of it.
    pub(crate) fn msix(&self, hardware: &Hardware) -> Option<MsiX> {
        hardware.described(self)?.capabilities.msix
    }

    /// MSI of it.
    pub(crate) fn msi(&self, hardware: &Hardware) -> Option<Msi> {
        hardware.described(self)?.capabilities.msi
    }
}

/// An SMMU that is in use.
struct Unit {
    /// Its name in the log.
    name: String,
    event: Option<Interrupt>,
    error: Option<Interrupt>,
}

/// Who was told of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The guest, by its own SMMU.
    Guest,
    /// Nobody yet.
    Nobody,
}

/// Devices, SMMUs and ITSs.
pub(crate) struct Hardware {
    pub(crate) iommu: Mutex<Core>,
    units: Vec<Unit>,
    pub(crate) bridges: Vec<Bridge>,
    itss: Vec<Mutex<PhysicalIts>>,
    /// `GITS_TRANSLATER` of each.
    doorbells: Vec<Pa>,
    pub(crate) functions: Vec<Function>,
    /// Where each LPI goes: see [`Route`].
    routes: Box<[AtomicU64]>,
    /// What was told of records.
    faults: Mutex<Faults>,
    /// Records on their way from an event queue to whom they concern.
    records: Mutex<Vec<(u32, Event)>>,
    /// An invalidation of one address forgets 4 KiB only, as QEMU's SMMU does it.
    forgets_pages_only: bool,
    /// Records wait in an event queue.
    waiting: AtomicBool,
    /// The VM that has each function, counted from 1.
    owners: Box<[AtomicUsize]>,
}

/// Where an LPI goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The VM.
    pub(crate) vm: usize,
    /// The requester ID by which the guest knows the device.
    pub(crate) device: u16,
    /// The EventID that the guest gave it.
    pub(crate) event: u16,
}

impl Route {
    const VALID: u64 = 1 << 63;

    fn encode(self) -> u64 {
        Self::VALID | (self.vm as u64) << 32 | u64::from(self.device) << 16 | u64::from(self.event)
    }

    fn decode(bits: u64) -> Option<Self> {
        let [a, b, c, d, e, f, ..] = bits.to_le_bytes();
        (bits & Self::VALID != 0).then(|| Self {
            vm: u16::from_le_bytes([e, f]).into(),
            device: u16::from_le_bytes([c, d]),
            event: u16::from_le_bytes([a, b]),
        })
    }
}

/// What the survey found, as far as devices need it.
pub(crate) struct Found<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) smmus: Vec<Locked<Registers>>,
    pub(crate) devices: Vec<Devices>,
    pub(crate) ram: Ram,
    pub(crate) frames: Pool,
    /// The CPUs' redistributors, by their numbers.
    pub(crate) redistributors: &'a [Option<cpu_gic::Frame>],
}

impl Hardware {
    /// Turns the SMMUs on, with every stream aborting, and makes ready what `wanted` needs. What is not
    /// ready in the end is logged, and missing among the functions.
    pub(crate) fn new(found: Found<'_>, map: &mut Map, wanted: &[(u16, Bdf)]) -> Self {
        let Found {
            machine,
            smmus,
            devices,
            ram,
            frames,
            redistributors,
        } = found;
        let mut units = Vec::new();
        let mut running = Vec::new();
        // By the SMMU's place in the tree: the unit it has become.
        let mut unit_of = Vec::new();
        for (index, locked) in smmus.into_iter().enumerate() {
            match Smmu::enable(locked, ram, frames, SystemCounter) {
                Ok(smmu) => {
                    log::info!("smmu{index}: on: every stream aborts until a VM has it");
                    let lines = machine.smmus.get(index).map(|smmu| smmu.interrupts);
                    let lines = lines.unwrap_or_default();
                    units.push(Unit {
                        name: format!("smmu{index}"),
                        event: lines.event_queue.or(lines.combined),
                        error: lines.global_error,
                    });
                    unit_of.push(u32::try_from(running.len()).ok().map(UnitId::new));
                    running.push(smmu);
                }
                Err(error) => {
                    log::error!("smmu{index}: {error}; no VM gets a device behind it");
                    unit_of.push(None);
                }
            }
        }
        let platform = Platform {
            input_bits: IPA_BITS,
            // Of a VM's memory nothing is left in a cache when a device gets it: it is cleaned to the
            // point of coherency behind every zeroing, and never leaves the VM. What a guest loses by
            // attributes of its own that do not snoop is its own (decision 0024).
            coherent: true,
        };
        let iommu = Iommu::new(SmmuBackend::new(running, ram, frames, platform));
        let mut hardware = Self {
            iommu: Mutex::new(iommu),
            units,
            bridges: Vec::new(),
            itss: Vec::new(),
            doorbells: Vec::new(),
            functions: Vec::new(),
            routes: Box::default(),
            faults: Mutex::new(Faults::new(0, 0)),
            records: Mutex::new(Vec::with_capacity(MOST_RECORDS)),
            forgets_pages_only: machine
                .compatible
                .iter()
                .any(|name| name == "linux,dummy-virt"),
            waiting: AtomicBool::new(false),
            owners: Box::default(),
        };
        hardware.add_bridges(machine, devices);
        let cores = hardware.start_itss(machine, ram, frames, redistributors, wanted);
        let mut lpis = 0;
        for (segment, bdf) in wanted {
            match hardware.add_function(machine, map, &unit_of, *segment, *bdf, lpis) {
                Ok(events) => lpis += events as usize,
                Err(why) => log::error!("pci {segment:04x}:{bdf}: cannot be given away: {why}"),
            }
        }
        hardware.routes = (0..lpis).map(|_| AtomicU64::new(0)).collect();
        hardware.owners = hardware
            .functions
            .iter()
            .map(|_| AtomicUsize::new(0))
            .collect();
        let second = SystemCounter.frequency();
        hardware.faults = Mutex::new(Faults::new(hardware.functions.len(), second));
        hardware.cores_with_lpis(cores);
        hardware
    }

    fn cores_with_lpis(&self, cores: usize) {
        log::info!(
            "devices: {} functions, {} LPIs on {cores} CPUs",
            self.functions.len(),
            self.routes.len()
        );
    }

    fn add_bridges(&mut self, machine: &Machine, devices: Vec<Devices>) {
        for found in devices {
            let segment = found.topology.segment();
            let Some(bridge) = machine.host_bridge(segment) else {
                continue;
            };
            let (ConfigAccess::Ecam(span), Ok(buses)) =
                (bridge.config, BusRange::new(bridge.buses.0, bridge.buses.1))
            else {
                continue;
            };
            // SAFETY: the survey mapped it, and has handed over what it did with it.
            let registers = unsafe { Registers::new(span) };
            self.bridges.push(Bridge {
                space: Ecam::new(registers, buses),
                topology: found.topology,
                groups: found.groups,
                intx_lock: Mutex::new(()),
            });
        }
    }

    /// Starts every ITS and gives each CPU LPIs; returns how many CPUs have them.
    fn start_itss(
        &mut self,
        machine: &Machine,
        ram: Ram,
        frames: Pool,
        redistributors: &[Option<cpu_gic::Frame>],
        wanted: &[(u16, Bdf)],
    ) -> usize {
        let coherent = |its: &machine::Its| its.coherency == Coherency::Coherent;
        let snoop = match machine.itss.iter().all(coherent) {
            true => Snoop::Coherent,
            false => Snoop::NonCoherent,
        };
        let Ok(lpis) = Lpis::new(ram, &frames, snoop) else {
            log::error!("gic: no memory for LPIs");
            return 0;
        };
        let mut ready = Vec::new();
        for (cpu, frame) in redistributors.iter().enumerate() {
            let Some(frame) = frame else { continue };
            match lpis.enable(&frame.registers(), &frames, &SystemCounter) {
                Ok(()) => ready.push(*frame),
                Err(error) => log::error!("cpu{cpu}: LPIs: {error}"),
            }
        }
        let ids = wanted
            .iter()
            .filter_map(|(segment, bdf)| machine.msi_of(*segment, *bdf));
        let last = ids.map(|(_, id)| id).max().unwrap_or(0);
        for (index, its) in machine.itss.iter().enumerate() {
            // SAFETY: the survey mapped it as device memory; this is its driver.
            let registers = unsafe { Registers::new(its.registers) };
            let started = Its::enable(registers, ram, frames, SystemCounter, snoop, last);
            let started = started.and_then(|mut its| {
                for frame in &ready {
                    let target = its.target(frame.number(), frame.pa());
                    its.add_collection(target)?;
                }
                Ok(its)
            });
            match started {
                Ok(driver) => {
                    self.itss.push(Mutex::new(driver));
                    let doorbell = its.registers.start().checked_add(gic::TRANSLATER);
                    self.doorbells.push(doorbell.unwrap_or(Pa::ZERO));
                }
                Err(error) => {
                    log::error!("its{index}: {error}; no device behind it gets interrupts");
                    break;
                }
            }
        }
        ready.len()
    }

    fn add_function(
        &mut self,
        machine: &Machine,
        map: &mut Map,
        unit_of: &[Option<UnitId>],
        segment: u16,
        bdf: Bdf,
        first: usize,
    ) -> Result<u32, String> {
        let bridge = self
            .bridges
            .iter()
            .position(|b| b.topology.segment() == segment);
        let bridge = bridge.ok_or("there is no such segment")?;
        let below = self.bridges.get(bridge).ok_or("there is no such segment")?;
        let function = below
            .topology
            .function(bdf)
            .ok_or("there is no such function")?;
        let (smmu, _) = machine.iommu_of(segment, bdf).ok_or(
            "it is behind no SMMU: unsafe_dma = \"identity\" is not supported by this version",
        )?;
        let unit = unit_of
            .get(smmu)
            .copied()
            .flatten()
            .ok_or("its SMMU is not in use")?;
        // A bridge to conventional PCI puts itself in the place of what is behind it.
        let requesters = pci::requesters(&below.topology, bdf);
        let (its, device_id) = requesters
            .last()
            .and_then(|last| machine.msi_of(segment, *last))
            .ok_or("it is behind no ITS")?;
        if self.itss.len() <= its {
            return Err("its ITS is not in use".to_string());
        }
        for bar in function.bars.iter().filter(|bar| !bar.kind.is_io()) {
            let place = bar
                .place
                .ok_or_else(|| format!("BAR{} is not placed", bar.index))?;
            let span = Span::from_len(place.cpu, bar.size.max(PageSize::SIZE_4K.bytes()));
            let span = span.ok_or("a BAR is out of range")?;
            map.identity(span, Use::Device)
                .map_err(|error| format!("BAR{} cannot be mapped: {error}", bar.index))?;
        }
        let msix = function
            .capabilities
            .msix
            .map_or(0, |msix| msix.vectors.into());
        let msi = function
            .capabilities
            .msi
            .map_or(0, |msi| msi.vectors.into());
        let events = u32::max(msix, msi).min(MOST_EVENTS);
        // The vectors of MSI are the low bits of what it sends: a boundary of 32.
        let alike = self.alike(its, device_id);
        let first_event = alike
            .map(|(_, other)| other.first_event.saturating_add(other.events))
            .max()
            .map_or(0, |end| end.next_multiple_of(32));
        let reset_by = reset_of(below, function);
        if reset_by == ResetBy::Nothing {
            log::warn!(
                "pci {segment:04x}:{bdf}: it cannot be reset: only the VM that gets it first can have it"
            );
        }
        let group = self.group_of(machine, bridge, bdf, unit)?;
        let host = machine
            .host_bridge(segment)
            .ok_or("there is no such segment")?;
        let below = self.bridges.get(bridge).ok_or("there is no such segment")?;
        let mut ids = requesters.into_iter();
        let stream = |requester: Bdf| {
            let (_, stream) = machine.iommu_of(segment, requester)?;
            Some(stream.bits())
        };
        let sources: Vec<u32> = ids.next().and_then(stream).into_iter().collect();
        let aliases: Vec<u32> = ids.filter_map(stream).collect();
        let isolated = below.isolates(bdf);
        let description = DeviceDescription {
            group,
            sources: &sources,
            aliases: &aliases,
            reserved: &[],
            path: if isolated {
                Path::Redirected
            } else {
                Path::Open(group_number(below, bdf))
            },
            msi: MsiRoute::Doorbell,
            coherence: match host.coherency {
                Coherency::Coherent => Coherence::Coherent,
                Coherency::NonCoherent => Coherence::Incoherent,
            },
            ats: iommu::Ats::Off,
        };
        let device = self.iommu.get_mut().add_device(&description);
        let device = device.map_err(|error| error.to_string())?;
        self.functions.push(Function {
            segment,
            bdf,
            bridge,
            device,
            unit,
            stream: sources.first().copied().unwrap_or(u32::MAX),
            its,
            device_id,
            first_event,
            events,
            first,
            reset_by,
            reset: Mutex::new(Resetting::Fresh),
        });
        Ok(events)
    }

    /// The core's group of a function, made with the first of its members.
    fn group_of(
        &mut self,
        machine: &Machine,
        bridge: usize,
        bdf: Bdf,
        unit: UnitId,
    ) -> Result<GroupId, String> {
        let groups = self
            .bridges
            .get(bridge)
            .map(|b| b.groups.as_slice())
            .unwrap_or_default();
        let mates = groups.iter().find(|group| group.contains(bdf));
        let known = self.functions.iter().find(|known| {
            known.bridge == bridge && mates.is_some_and(|group| group.contains(known.bdf))
        });
        let _ = machine;
        let core = self.iommu.get_mut();
        match known {
            Some(known) => Ok(core
                .device(known.device)
                .map_err(|e| e.to_string())?
                .group()),
            None => core
                .add_group(unit, Residence::Free)
                .map_err(|e| e.to_string()),
        }
    }

    /// What enumeration found of a function.
    pub(crate) fn described(&self, function: &Function) -> Option<&pci::Function> {
        self.bridges
            .get(function.bridge)?
            .topology
            .function(function.bdf)
    }

    /// The function at a place of the machine.
    pub(crate) fn find(&self, segment: u16, bdf: Bdf) -> Option<usize> {
        let mut functions = self.functions.iter();
        functions.position(|function| function.segment == segment && function.bdf == bdf)
    }

    /// What is in the way of giving these functions to one VM, as lines.
    pub(crate) fn obstacles(&self, wanted: &[(u16, Bdf)], vm: usize) -> Vec<String> {
        let vm = u32::try_from(vm).unwrap_or(u32::MAX);
        let mut lines = Vec::new();
        for bridge in &self.bridges {
            let segment = bridge.topology.segment();
            let wishes: Vec<pci::Wish> = wanted
                .iter()
                .filter(|(of, _)| *of == segment)
                .map(|(_, function)| pci::Wish {
                    function: *function,
                    vm,
                })
                .collect();
            let found: Vec<Obstacle> = pci::obstacles(&bridge.topology, &bridge.groups, &wishes);
            lines.extend(
                found
                    .iter()
                    .map(|obstacle| format!("{segment:04x}:{obstacle}")),
            );
        }
        for (segment, bdf) in wanted {
            if lines.is_empty() && self.find(*segment, *bdf).is_none() {
                lines.push(format!(
                    "{segment:04x}:{bdf}: cannot be given away, see above"
                ));
            }
        }
        lines
    }

    /// Which interrupts it wants, and how they are signalled.
    pub(crate) fn interrupts(&self) -> impl Iterator<Item = Interrupt> + '_ {
        self.units
            .iter()
            .flat_map(|unit| [unit.event, unit.error].into_iter().flatten())
    }

    /// Whether an interrupt is one of an SMMU's.
    pub(crate) fn is_ours(&self, intid: u32) -> bool {
        self.interrupts().any(|interrupt| interrupt.number == intid)
    }

    /// Whether records wait for [`Hardware::drain`].
    pub(crate) fn has_records(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Reads the event queues and acknowledges global errors. `tell` is told of every record of a device
    /// that a VM has: the VM, the function, the record; what it does not pass on is logged.
    pub(crate) fn drain(&self, mut tell: impl FnMut(usize, usize, &Event) -> Told) {
        self.waiting.store(false, Ordering::Relaxed);
        let mut records = self.records.lock();
        records.clear();
        {
            let mut iommu = self.iommu.lock();
            for (number, unit) in (0..).zip(&self.units) {
                let Some(smmu) = iommu.backend_mut().unit_mut(UnitId::new(number)) else {
                    continue;
                };
                let room = MOST_RECORDS.saturating_sub(records.len());
                let drained = smmu.drain(room, |event| records.push((number, event)));
                if drained.more {
                    self.waiting.store(true, Ordering::Relaxed);
                }
                let errors = smmu.acknowledge_errors();
                if drained.lost || errors != 0 {
                    self.log_errors(&unit.name, drained.lost, errors);
                }
            }
            self.forgive(&mut iommu);
        }
        // The core is not locked here: whoever is told may have to wait for somebody who waits for it.
        for (number, event) in records.iter() {
            self.note(*number, event, &mut tell);
        }
    }

    /// Global errors of an SMMU, a few times a second at most.
    fn log_errors(&self, unit: &str, lost: bool, errors: u32) {
        let error = RefusedDma {
            code: 0,
            is_write: lost,
            address: u64::from(errors) << 12,
        };
        let now = SystemCounter.ticks();
        if let Telling::Told { .. } = self.faults.lock().line(None, error, now) {
            let lost = if lost { "events were lost, " } else { "" };
            log::warn!("{unit}: {lost}global errors {errors:#x}");
        }
    }

    fn note(
        &self,
        number: u32,
        event: &Event,
        tell: &mut impl FnMut(usize, usize, &Event) -> Told,
    ) {
        let mut functions = self.functions.iter().zip(&self.owners).enumerate();
        let known = functions.find(|(_, (function, _))| {
            function.unit == UnitId::new(number) && function.stream == event.sid()
        });
        let index = known.map(|(index, _)| index);
        let known = known.map(|(_, (function, owner))| {
            let vm = owner.load(Ordering::Relaxed).checked_sub(1);
            (function.bdf, vm)
        });
        let now = SystemCounter.ticks();
        if self.faults.lock().count(index, now) == Records::Unwanted {
            self.set_recording(index, Recording::Off);
        }
        if let (Some(index), Some((_, Some(vm)))) = (index, known)
            && tell(vm, index, event) == Told::Guest
        {
            return;
        }
        let refused = RefusedDma {
            code: event.id().bits(),
            is_write: !event.is_read(),
            address: event.input(),
        };
        let Telling::Told { unsaid } = self.faults.lock().line(index, refused, now) else {
            return;
        };
        let unit = usize::try_from(number)
            .ok()
            .and_then(|at| self.units.get(at));
        let unit = unit.map_or("", |unit| &unit.name);
        let before = match unsaid {
            0 => String::new(),
            unsaid => format!(" ({unsaid} of it before this had no line)"),
        };
        match known {
            Some((bdf, None)) => log::info!("{unit}: {event}, {bdf} of no VM{before}"),
            Some((bdf, Some(vm))) => log::info!("{unit}: {event}, {bdf} of VM {}{before}", vm + 1),
            None => log::info!("{unit}: {event}, of no device that was given away{before}"),
        }
    }

    /// Has records written of a function's refused DMA, or none, because it floods.
    fn set_recording(&self, index: Option<usize>, recording: Recording) {
        let mut iommu = self.iommu.lock();
        if let Some(function) = index.and_then(|index| self.functions.get(index)) {
            set_recording(&mut iommu, function, recording);
        }
    }

    /// Lets functions be heard again whose flood is over.
    fn forgive(&self, iommu: &mut Core) {
        let mut faults = self.faults.lock();
        for index in faults.forgiven(SystemCounter.ticks()) {
            if let Some(function) = self.functions.get(index) {
                set_recording(iommu, function, Recording::On);
            }
        }
    }

    /// When [`Hardware::look_around`] has something to do, in ticks.
    pub(crate) fn next_look(&self) -> Option<u64> {
        // Records that were too many: whoever else is on the CPU has half of it meanwhile.
        const REST_US: u64 = 200;
        let now = SystemCounter.ticks();
        let rest = SystemCounter.ticks_of_us(REST_US);
        let more = self.has_records().then(|| now.saturating_add(rest));
        more.into_iter()
            .chain(self.faults.lock().next_forgiven())
            .min()
    }

    /// Lets functions be heard again whose flood is over, where there are any.
    pub(crate) fn look_around(&self) {
        if self.next_look().is_some() {
            self.forgive(&mut self.iommu.lock());
        }
    }

    /// Where an LPI goes.
    pub(crate) fn route(&self, intid: u32) -> Option<Route> {
        let index = intid.checked_sub(gic::FIRST_LPI)? as usize;
        Route::decode(self.routes.get(index)?.load(Ordering::Acquire))
    }

    /// Says where a message of a function goes; `None` for nowhere.
    pub(crate) fn set_route(&self, function: &Function, vector: u32, route: Option<Route>) {
        if vector < function.events
            && let Some(slot) = self.routes.get(function.first + vector as usize)
        {
            slot.store(route.map_or(0, Route::encode), Ordering::Release);
        }
    }

    /// The state of each SMMU, in words, for the monitor.
    pub(crate) fn states(&self) -> Vec<(String, String)> {
        let iommu = self.iommu.lock();
        let units = iommu.backend().units().iter().zip(&self.units);
        let faults = self.faults.lock();
        let mut states: Vec<(String, String)> = units
            .map(|(smmu, unit)| {
                let state = if smmu.is_off() {
                    "OFF: it did not answer; everything aborts".to_string()
                } else {
                    format!(
                        "on, streams of no VM abort; {} events in all",
                        faults.total()
                    )
                };
                (unit.name.clone(), state)
            })
            .collect();
        for (index, function) in self.functions.iter().enumerate() {
            let (records, total) = faults.of(index);
            let muted = match records {
                Records::Wanted => "",
                Records::Unwanted => ", a flood: they are not recorded for a second",
            };
            if total > 0 {
                let name = format!("{:04x}:{}", function.segment, function.bdf);
                states.push((name, format!("{total} events{muted}")));
            }
        }
        states
    }

    /// Takes a function for a VM: bound to it in the core, with its messages made LPIs of the CPUs
    /// `cpu_of` names, none of which goes anywhere yet. It reaches nothing before it is attached.
    pub(crate) fn take(
        &self,
        index: usize,
        vm: usize,
        cpu_of: impl Fn(u32) -> usize,
    ) -> Result<(), String> {
        let function = self.functions.get(index).ok_or("no such function")?;
        let mut reset = function.reset.lock();
        match &*reset {
            Resetting::Lost => return Err("it did not come back from its last reset".to_string()),
            Resetting::Stale(before) if *before != vm => {
                return Err(format!(
                    "VM {} has used it, and it cannot be reset: it might go on with that VM's work",
                    before + 1
                ));
            }
            _ => {}
        }
        self.iommu
            .lock()
            .bind(function.device, owner(vm))
            .map_err(|error| error.to_string())?;
        if let Err(error) = self.map_events(function, cpu_of) {
            let _ = self.iommu.lock().unbind(function.device);
            return Err(format!("its ITS: {error}"));
        }
        *reset = Resetting::Used(vm);
        if let Some(slot) = self.owners.get(index) {
            slot.store(vm + 1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The functions whose messages have the same DeviceID, with their places.
    fn alike(&self, its: usize, device_id: u32) -> impl Iterator<Item = (usize, &Function)> {
        let functions = self.functions.iter().enumerate();
        functions.filter(move |(_, other)| other.its == its && other.device_id == device_id)
    }

    /// Whether an ITS has messages of a function's DeviceID: a VM has one with it.
    fn has_messages(&self, function: &Function) -> bool {
        self.alike(function.its, function.device_id)
            .any(|(index, other)| {
                let owner = self.owners.get(index);
                other.events > 0 && owner.is_some_and(|owner| owner.load(Ordering::Relaxed) != 0)
            })
    }

    fn map_events(
        &self,
        function: &Function,
        cpu_of: impl Fn(u32) -> usize,
    ) -> Result<(), gic::Error> {
        let Some(its) = self.itss.get(function.its) else {
            return Err(gic::Error::NoLpis);
        };
        if function.events == 0 {
            return Ok(());
        }
        let mut its = its.lock();
        if !self.has_messages(function) {
            let alike = self.alike(function.its, function.device_id);
            let ends = alike.map(|(_, other)| other.first_event.saturating_add(other.events));
            its.map_device(function.device_id, ends.max().unwrap_or(0))?;
        }
        let events: Vec<(u32, u32, u16)> = (0..function.events)
            .map(|event| {
                let lpi = u32::try_from(function.first).unwrap_or(0) + event;
                let cpu = u16::try_from(cpu_of(event)).unwrap_or(0);
                (function.first_event + event, gic::FIRST_LPI + lpi, cpu)
            })
            .collect();
        its.map_events(function.device_id, &events)
    }

    /// Gives a function back: it masters nothing, reaches nothing, interrupts nobody, and is on its way
    /// back to its beginning. It must be detached.
    pub(crate) fn give_back(&self, index: usize) {
        let Some(function) = self.functions.get(index) else {
            return;
        };
        for vector in 0..function.events {
            self.set_route(function, vector, None);
        }
        if let Some(slot) = self.owners.get(index) {
            slot.store(0, Ordering::Relaxed);
        }
        // Whoever has the same DeviceID goes to the same VM, and comes back with it.
        if let Some(its) = self.itss.get(function.its)
            && !self.has_messages(function)
        {
            let mut its = its.lock();
            let alike = self.alike(function.its, function.device_id);
            let ends = alike.map(|(_, other)| other.first_event.saturating_add(other.events));
            // A message that waits at a CPU outlives its mapping: it must not reach the next owner.
            let cleared = its.clear(function.device_id, ends.max().unwrap_or(0));
            if let Err(error) = cleared.and_then(|()| its.unmap_device(function.device_id)) {
                log::error!("pci {}: its ITS: {error}", function.bdf);
            }
        }
        if let Err(error) = self.iommu.lock().unbind(function.device) {
            log::error!("pci {}: {error}", function.bdf);
        }
        self.begin_reset(function);
    }

    /// Stops a function: no bus mastering, no messages.
    pub(crate) fn quiet(&self, function: &Function) {
        let Some(bridge) = self.bridges.get(function.bridge) else {
            return;
        };
        let denied = pci::Permission::Denied;
        if let Err(error) =
            pci::set_mastering(&bridge.space, &bridge.topology, function.bdf, denied)
        {
            log::error!("pci {}: {error}", function.bdf);
        }
        if let Some(msix) = function.msix(self) {
            let _ = msix.set_mode(&bridge.space, function.bdf, pci::MsixMode::Off);
        }
        if let Some(msi) = function.msi(self) {
            let _ = msi.disable(&bridge.space, function.bdf);
        }
    }

    /// Lets a function master the bus, or not.
    pub(crate) fn set_mastering(&self, function: &Function, permission: pci::Permission) {
        let Some(bridge) = self.bridges.get(function.bridge) else {
            return;
        };
        let guard = bridge.intx_lock.lock();
        let set = pci::set_mastering(&bridge.space, &bridge.topology, function.bdf, permission);
        drop(guard);
        if let Err(error) = set {
            log::error!("pci {}: {error}", function.bdf);
        }
    }

    /// Begins to reset a function; [`Hardware::poll_reset`] goes on.
    pub(crate) fn begin_reset(&self, function: &Function) {
        let Some(bridge) = self.bridges.get(function.bridge) else {
            return;
        };
        let (space, topology): (&dyn ConfigSpace, _) = (&bridge.space, &bridge.topology);
        let begun = match function.reset_by {
            ResetBy::Function => Reset::function(space, topology, function.bdf, &SystemCounter),
            ResetBy::Bus(above) => Reset::bus(space, topology, above, &SystemCounter),
            ResetBy::Nothing => {
                let mut state = function.reset.lock();
                if let Resetting::Used(vm) = &*state {
                    *state = Resetting::Stale(*vm);
                }
                return;
            }
        };
        *function.reset.lock() = match begun {
            Ok(reset) => Resetting::Running(reset),
            Err(error) => {
                log::error!("pci {}: reset: {error}", function.bdf);
                Resetting::Lost
            }
        };
    }

    /// Moves a reset on; when it is to be looked at again, in ticks, or `None` when it is over.
    pub(crate) fn poll_reset(&self, function: &Function) -> Option<u64> {
        let bridge = self.bridges.get(function.bridge)?;
        let mut state = function.reset.lock();
        let Resetting::Running(reset) = &mut *state else {
            return None;
        };
        match reset.poll(&bridge.space, &bridge.topology, &SystemCounter) {
            Ok(Progress::Wait(until)) => Some(until),
            Ok(Progress::Done) => {
                *state = Resetting::Fresh;
                None
            }
            Err(error) => {
                log::error!("pci {}: reset: {error}", function.bdf);
                *state = Resetting::Lost;
                None
            }
        }
    }

    /// Whether a function has no reset at all.
    pub(crate) fn has_reset(&self, function: &Function) -> bool {
        function.reset_by != ResetBy::Nothing
    }

    /// The identification of an SMMU over which a guest can have one of its own.
    pub(crate) fn identity(&self, unit: UnitId) -> Option<smmuv3::Identity> {
        let iommu = self.iommu.lock();
        let backend = iommu.backend();
        let nests = iommu::Backend::capabilities(backend, unit).is_some_and(|c| c.nesting);
        let unit = usize::try_from(unit.bits()).ok()?;
        let smmu = backend.units().get(unit).filter(|_| nests)?;
        Some(*smmu.identity())
    }

    /// Whether a function is alone in its isolation group.
    pub(crate) fn is_alone(&self, function: &Function) -> bool {
        let bridge = self.bridges.get(function.bridge);
        bridge.is_some_and(|bridge| bridge.isolates(function.bdf))
    }

    /// Whether an invalidation of one address forgets only 4 KiB.
    pub(crate) fn forgets_pages_only(&self) -> bool {
        self.forgets_pages_only
    }

    /// The doorbell of a function's messages.
    pub(crate) fn doorbell(&self, function: &Function) -> Option<Pa> {
        self.doorbells.get(function.its).copied()
    }

    /// The stream table entry of a function as it stands in memory, in words.
    pub(crate) fn entry(&self, function: &Function) -> Option<String> {
        let endpoint = Endpoint {
            unit: function.unit,
            source: function.stream,
        };
        let iommu = self.iommu.lock();
        let entry = iommu.backend().read_entry(endpoint).ok()?;
        Some(format!("stream {:#x}: {entry}", function.stream))
    }

    /// Where stage 2 takes an address of a function's, by the tables in memory; `None` when the function
    /// has no stage 2.
    pub(crate) fn stage_two(&self, function: &Function, at: Iova) -> Option<vm::Walk> {
        let iommu = self.iommu.lock();
        let group = iommu.device(function.device).ok()?.group();
        let domain = iommu.group(group).ok()?.domain()?;
        let paging = iommu.paging_below(domain)?;
        let table = iommu.domain(paging).ok()?.table()?;
        Some(match iommu.backend().walk(table, at)? {
            Ok(leaf) => vm::Walk::Mapped {
                pa: leaf.pa.bits(),
                bytes: leaf.size.bytes(),
                level: leaf.level,
                descriptor: leaf.descriptor,
            },
            Err(fault) => vm::Walk::Unmapped { level: fault.level },
        })
    }
}

fn set_recording(iommu: &mut Core, function: &Function, recording: Recording) {
    let Ok(stream) = StreamId::new(function.stream) else {
        return;
    };
    if let Some(smmu) = iommu.backend_mut().unit_mut(function.unit)
        && let Err(error) = smmu.set_recording(stream, recording)
    {
        log::error!("pci {}: {error}", function.bdf);
    }
}

/// How the core names a VM.
pub(crate) fn owner(vm: usize) -> OwnerId {
    OwnerId::new(u32::try_from(vm + 1).unwrap_or(u32::MAX))
}

fn group_number(bridge: &Bridge, bdf: Bdf) -> u32 {
    let number = bridge.groups.iter().position(|group| group.contains(bdf));
    u32::try_from(number.unwrap_or(0)).unwrap_or(0)
}

fn reset_of(bridge: &Bridge, function: &pci::Function) -> ResetBy {
    let capabilities = &function.capabilities;
    let supported = |reset: FunctionReset| reset == FunctionReset::Supported;
    if capabilities.express.is_some_and(|e| supported(e.reset))
        || capabilities.advanced.is_some_and(|a| supported(a.reset))
    {
        return ResetBy::Function;
    }
    let Some(above) = function.parent else {
        return ResetBy::Nothing;
    };
    let alone = bridge.topology.functions().iter().all(|other| {
        other.bdf == function.bdf
            || !bridge
                .topology
                .bridges_above(other.bdf)
                .any(|b| b.bdf == above)
    });
    if alone {
        ResetBy::Bus(above)
    } else {
        ResetBy::Nothing
    }
}

/// A device's registers from an offset on, for what is in the middle of a page.
pub(crate) struct Within {
    pub(crate) registers: Registers,
    pub(crate) offset: usize,
}

impl Mmio for Within {
    fn read8(&self, offset: usize) -> u8 {
        self.registers.read8(self.offset + offset)
    }
    fn read16(&self, offset: usize) -> u16 {
        self.registers.read16(self.offset + offset)
    }
    fn read32(&self, offset: usize) -> u32 {
        self.registers.read32(self.offset + offset)
    }
    fn read64(&self, offset: usize) -> u64 {
        self.registers.read64(self.offset + offset)
    }
    fn write8(&self, offset: usize, value: u8) {
        self.registers.write8(self.offset + offset, value);
    }
    fn write16(&self, offset: usize, value: u16) {
        self.registers.write16(self.offset + offset, value);
    }
    fn write32(&self, offset: usize, value: u32) {
        self.registers.write32(self.offset + offset, value);
    }
    fn write64(&self, offset: usize, value: u64) {
        self.registers.write64(self.offset + offset, value);
    }
}
