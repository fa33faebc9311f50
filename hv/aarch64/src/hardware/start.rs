//! What the survey found becomes devices that can be given away: SMMUs on, ITSs on, functions described.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize};

use boot::Devices;
use gic::{Its, Lpis, Snoop};
use hal::Clock;
use hal::Mutex;
use iommu::{Coherence, DeviceDescription, GroupId, Iommu, MsiRoute, Path, Residence, UnitId};
use machine::{Coherency, ConfigAccess, Machine, RegisterPages};
use pci::{BusRange, Ecam, FunctionReset};
use smmuv3::{Locked, Platform, Smmu, SmmuBackend};
use types::{Address, Bdf, Pa, PageSize, Span};
use vm::Faults;

use super::moderation::Accounts;
use super::{Behind, Bridge, Function, Hardware, Pool, ResetBy, Resetting, Unit};
use crate::console::SystemCounter;
use crate::gic as cpu_gic;
use crate::memory::{Guarded, Ram, Registers};
use crate::mmu::{Map, Use};

/// Bits of a guest-physical address that stage 2 of a device takes.
const IPA_BITS: u8 = 40;

/// The most vectors of a device: what is beyond stays masked.
const MOST_EVENTS: u32 = 256;

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
    #[optimize(size)]
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
            let told = machine.smmus.get(index);
            let locked = match told.map(|smmu| smmu.coherency) {
                Some(Coherency::Coherent) => locked,
                Some(Coherency::NonCoherent) | None => locked.without_snooping(),
            };
            let locked = match told.map(|smmu| smmu.pages) {
                Some(RegisterPages::One) => locked.with_one_page(),
                Some(RegisterPages::Two) | None => locked,
            };
            match Smmu::enable(locked, ram, frames, SystemCounter) {
                Ok(smmu) => {
                    log::info!("smmu{index}: on: every stream aborts until a VM has it");
                    let lines = told.map(|smmu| smmu.interrupts).unwrap_or_default();
                    units.push(Unit::new(index, lines));
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
            lines: Vec::new(),
            routes: Box::default(),
            targets: Box::default(),
            lpis: None,
            accounts: Accounts::default(),
            faults: Mutex::new(Faults::new(0, 0)),
            forgets_pages_only: machine
                .compatible
                .iter()
                .any(|name| name == "linux,dummy-virt"),
            told_off: Mutex::default(),
            home: spin::Once::new(),
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
        hardware.targets = (0..lpis).map(|_| AtomicU16::new(0)).collect();
        hardware.owners = hardware
            .functions
            .iter()
            .map(|_| AtomicUsize::new(0))
            .collect();
        let second = SystemCounter.frequency();
        hardware.faults = Mutex::new(Faults::new(hardware.functions.len(), second));
        hardware.collect_lines();
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

    #[optimize(size)]
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
            let registers = unsafe { Guarded::new(span) };
            let mut bridge = Bridge {
                space: Ecam::new(registers, buses),
                topology: found.topology,
                groups: found.groups,
                command_lock: Mutex::new(()),
                loud: Vec::new(),
            };
            super::pins::silence(machine, &mut bridge);
            self.bridges.push(bridge);
        }
    }

    /// Starts every ITS and gives each CPU LPIs; returns how many CPUs have them.
    #[optimize(size)]
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
        self.lpis = Some(lpis);
        ready.len()
    }

    #[optimize(size)]
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
        let line = super::pins::line_of(machine, below, function);
        let smmu = self.behind(machine, unit_of, bridge, bdf, &requesters)?;
        self.functions.push(Function {
            segment,
            bdf,
            bridge,
            smmu,
            its,
            device_id,
            first_event,
            events,
            line,
            pin_is_out: AtomicBool::new(false),
            first,
            reset_by,
            reset: Mutex::new(Resetting::Fresh),
        });
        Ok(events)
    }

    /// Makes a function known to the core; `None` when it is behind no SMMU.
    #[optimize(size)]
    fn behind(
        &mut self,
        machine: &Machine,
        unit_of: &[Option<UnitId>],
        bridge: usize,
        bdf: Bdf,
        requesters: &[Bdf],
    ) -> Result<Option<Behind>, String> {
        let below = self.bridges.get(bridge).ok_or("there is no such segment")?;
        let segment = below.topology.segment();
        let host = machine
            .host_bridge(segment)
            .ok_or("there is no such segment")?;
        let Some((smmu, _)) = machine.iommu_of(segment, bdf) else {
            if requesters
                .iter()
                .any(|id| machine.iommu_of(segment, *id).is_some())
            {
                return Err("an SMMU knows some of the IDs it uses, and others not".to_string());
            }
            return match host.coherency {
                Coherency::Coherent => Ok(None),
                Coherency::NonCoherent => {
                    Err("it is behind no SMMU, and does not snoop caches".to_string())
                }
            };
        };
        let unit = unit_of
            .get(smmu)
            .copied()
            .flatten()
            .ok_or("its SMMU is not in use")?;
        let group = self.group_of(bridge, bdf, unit)?;
        let below = self.bridges.get(bridge).ok_or("there is no such segment")?;
        let mut ids = requesters.iter();
        let stream = |requester: &Bdf| {
            let (_, stream) = machine.iommu_of(segment, *requester)?;
            Some(stream.bits())
        };
        let own = ids.next().and_then(stream);
        let sources = usize::from(own.is_some());
        let streams: Vec<u32> = own.into_iter().chain(ids.filter_map(stream)).collect();
        // A function is never forgotten.
        let streams: &'static [u32] = streams.leak();
        let (sources, aliases) = streams.split_at(sources);
        let isolated = below.isolates(bdf);
        let description = DeviceDescription {
            group,
            sources,
            aliases,
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
        Ok(Some(Behind {
            device: device.map_err(|error| error.to_string())?,
            unit,
            streams,
        }))
    }

    /// The core's group of a function, made with the first of its members.
    #[optimize(size)]
    fn group_of(&mut self, bridge: usize, bdf: Bdf, unit: UnitId) -> Result<GroupId, String> {
        let groups = self
            .bridges
            .get(bridge)
            .map(|b| b.groups.as_slice())
            .unwrap_or_default();
        let mates = groups.iter().find(|group| group.contains(bdf));
        let mut mates = self.functions.iter().filter(|known| {
            known.bridge == bridge && mates.is_some_and(|group| group.contains(known.bdf))
        });
        let known = mates.find_map(|known| Some(known.smmu?.device));
        let core = self.iommu.get_mut();
        match known {
            Some(known) => Ok(core.device(known).map_err(|e| e.to_string())?.group()),
            None => core
                .add_group(unit, Residence::Free)
                .map_err(|e| e.to_string()),
        }
    }
}

fn group_number(bridge: &Bridge, bdf: Bdf) -> u32 {
    let number = bridge.groups.iter().position(|group| group.contains(bdf));
    u32::try_from(number.unwrap_or(0)).unwrap_or(0)
}

#[optimize(size)]
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
