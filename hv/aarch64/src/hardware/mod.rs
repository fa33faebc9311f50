//! The devices that VMs are given, and what confines them: SMMUs, ITSs, configuration space.
//!
//! Made when the manifest gives a device to any VM; without one, every SMMU stays as the survey locked
//! it. Everything here is the hypervisor's: a guest reaches it through [`guest::pci`](crate::guest)
//! only, which judges what it asks for.

mod events;
mod messages;
mod moderation;
mod owners;
mod pins;
mod readers;
mod start;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};

use boot::Frames;
use gic::Its;
use hal::Mutex;
use iommu::{DeviceId, Endpoint, Iommu, OwnerId, UnitId};
use machine::Interrupt;
use pci::{Ecam, Msi, MsiX, Obstacle, Reset, Topology};
use smmuv3::SmmuBackend;
use types::{Bdf, Iova, Pa};
use vm::{Faults, Records};

use moderation::Accounts;
use pins::Line;
use readers::Reading;

use crate::console::SystemCounter;
use crate::memory::{Guarded, Ram, Registers};

pub(crate) use events::Told;
pub(crate) use messages::Route;
pub(crate) use pins::Claim;
pub(crate) use readers::Seat;
pub(crate) use start::Found;

/// The allocator of frames, shared by all.
pub(crate) type Pool = &'static Frames<Ram>;

/// The machine's SMMUs as the IOMMU core's hardware.
pub(crate) type Backend = SmmuBackend<Registers, Ram, Pool, SystemCounter>;

/// The IOMMU core of this machine.
pub(crate) type Core = Iommu<Backend>;

type PhysicalIts = Its<Registers, Ram, Pool, SystemCounter>;

/// A host bridge.
pub(crate) struct Bridge {
    pub(crate) space: Ecam<Guarded>,
    pub(crate) topology: Topology,
    groups: Vec<pci::Group>,
    /// Held while a bit of a command register changes.
    command_lock: Mutex<()>,
    /// Interrupts that some pin raises that cannot be turned off.
    loud: Vec<u32>,
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

/// A function as its SMMU and the IOMMU core know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Behind {
    pub(crate) device: DeviceId,
    pub(crate) unit: UnitId,
    /// Its streams at that unit: its own, then those of bridges to conventional PCI above it, which replace it.
    pub(crate) streams: &'static [u32],
}

/// A function that the manifest names.
pub(crate) struct Function {
    pub(crate) segment: u16,
    pub(crate) bdf: Bdf,
    /// Its place among the bridges.
    pub(crate) bridge: usize,
    /// What confines it; `None` when nothing does.
    pub(crate) smmu: Option<Behind>,
    its: usize,
    /// Who its messages come from, as its ITS sees it: others behind the same bridge may have the same.
    device_id: u32,
    /// The number of its first message among those of that DeviceID.
    pub(crate) first_event: u32,
    /// Messages it may send, numbered from 0.
    pub(crate) events: u32,
    /// What its interrupt pin raises, where that can be served.
    pub(crate) line: Option<Interrupt>,
    /// A VM has it, whose guest lets it raise its pin.
    pin_is_out: AtomicBool,
    /// The first of its LPIs, counted from the first of all.
    first: usize,
    reset_by: ResetBy,
    reset: Mutex<Resetting>,
}

impl Function {
    /// The ITS that its messages go to, by its place among them.
    pub(crate) fn its(&self) -> usize {
        self.its
    }

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
    reading: Reading,
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
    lines: Vec<Line>,
    /// Where each LPI goes: see [`Route`].
    routes: Box<[AtomicU64]>,
    /// The CPU of each.
    targets: Box<[AtomicU16]>,
    /// Their table.
    lpis: Option<gic::Lpis<Ram>>,
    /// What came of them in others' time.
    accounts: Accounts,
    /// What was told of records.
    faults: Mutex<Faults>,
    /// An invalidation of one address forgets 4 KiB only, as QEMU's SMMU does it.
    forgets_pages_only: bool,
    /// The SMMUs of which it was said that they are off.
    told_off: Mutex<Vec<u32>>,
    /// Who reads records when nobody floods.
    home: spin::Once<Seat>,
    /// The VM that has each function, counted from 1.
    owners: Box<[AtomicUsize]>,
}

impl Hardware {
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

    /// The state of each SMMU, in words, for the monitor.
    pub(crate) fn states(&self) -> Vec<(String, String)> {
        let iommu = self.iommu.lock();
        let units = iommu.backend().units().iter().zip(&self.units);
        let faults = self.faults.lock();
        let mut states: Vec<(String, String)> = units
            .map(|(smmu, unit)| {
                let state = if smmu.is_lost() {
                    "OFF: it did not answer; everything aborts, and memory is kept".to_string()
                } else if smmu.is_off() {
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
                Records::Unwanted | Records::Unbearable => {
                    ", a flood: they are not recorded for a second"
                }
            };
            if total > 0 {
                let name = format!("{:04x}:{}", function.segment, function.bdf);
                states.push((name, format!("{total} events{muted}")));
            }
        }
        states
    }

    /// Says once of each SMMU that is off that it is, and whose memory is kept because of that. To be called while the
    /// VMs have their devices, when something has failed.
    #[cold]
    #[optimize(size)]
    pub(crate) fn tell_off(&self, core: &Core) {
        for (number, (smmu, unit)) in (0..).zip(core.backend().units().iter().zip(&self.units)) {
            let mut told = self.told_off.lock();
            if !smmu.is_off() || told.contains(&number) {
                continue;
            }
            told.push(number);
            drop(told);
            log::error!(
                "{}: it is off, and every device behind it aborts",
                unit.name
            );
            if !smmu.is_lost() {
                continue;
            }
            let mut vms = String::new();
            for (function, owner) in self.functions.iter().zip(&self.owners) {
                let owner = owner.load(Ordering::Relaxed);
                let is_behind = |behind: Behind| behind.unit == UnitId::new(number);
                if owner != 0 && function.smmu.is_some_and(is_behind) {
                    vms += &format!(" {:04x}:{} of VM {owner},", function.segment, function.bdf);
                }
            }
            log::error!(
                "{}: nothing proves that what it let through is over:{vms} what these reach is given to nobody any more",
                unit.name
            );
        }
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

    /// Others of a function's isolation group, each with whether it sends with a number of the function's.
    pub(crate) fn mates(&self, function: &Function) -> Vec<(usize, bool)> {
        let Some(behind) = function.smmu else {
            return Vec::new();
        };
        let core = self.iommu.lock();
        let known = |behind: &Behind| core.device(behind.device).ok();
        let Some(own) = known(&behind) else {
            return Vec::new();
        };
        let mate = |(at, other): (usize, &Function)| {
            let other = other.smmu.filter(|other| other.device != behind.device)?;
            let device = known(&other).filter(|device| device.group() == own.group())?;
            let shares = device
                .sources()
                .any(|source| own.sources().any(|s| s == source));
            Some((at, shares))
        };
        self.functions.iter().enumerate().filter_map(mate).collect()
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
        let Some(behind) = function.smmu else {
            return Some("behind no SMMU: it reaches all memory, untranslated".to_string());
        };
        let stream = *behind.streams.first()?;
        let endpoint = Endpoint {
            unit: behind.unit,
            source: stream,
        };
        let iommu = self.iommu.lock();
        let entry = iommu.backend().read_entry(endpoint).ok()?;
        Some(format!("stream {stream:#x}: {entry}"))
    }

    /// Where stage 2 takes an address of a function's, by the tables in memory; `None` when the function
    /// has no stage 2.
    #[optimize(size)]
    pub(crate) fn stage_two(&self, function: &Function, at: Iova) -> Option<vm::Walk> {
        let iommu = self.iommu.lock();
        let group = iommu.device(function.smmu?.device).ok()?.group();
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

/// How the core names a VM.
pub(crate) fn owner(vm: usize) -> OwnerId {
    OwnerId::new(u32::try_from(vm + 1).unwrap_or(u32::MAX))
}
