//! A VM: its memory, its platform, its vCPUs.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::num::NonZeroU16;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use boot::Frames;
use bundle::{Bundle, ConsoleUart, KernelFormat, VmConfig};
use dtoolkit::model::DeviceTreeNode;
use hal::Mutex;
use hal::{Clock, NotMemory};
use papr::{Characteristics, Config, Kind, Platform, Source};

use super::devices::{Devices, Refusal};
use super::kernel;
use super::memory::{GuestMemory, NoRoom, Outside};
use super::tree::{self, Facts, Services};
use crate::console::TimeBase;
use crate::hardware::Hardware;
use crate::memory::Ram;
use crate::messages;
use crate::nested::{PartitionTable, Vcpu};
use crate::rtas::Rtas;
use crate::{smp, spr};

/// What lies at the end of a guest's memory, or of its first 256 MiB: the run-time services, below
/// them the device tree, below that the initrd.
const LOW: u64 = 0x1000_0000;
const SERVICES: u32 = 0x1_0000;
const TREE_MOST: u64 = 0x10_0000;
const INITRD_ALIGNMENT: u64 = 0x1_0000;

/// The source of the terminal's interrupt.
pub(super) const TERMINAL_SOURCE: u32 = 0x1100;
/// Typed bytes that a guest has not asked for; what comes then is lost.
const MOST_INPUT: usize = 4096;

/// A VM that cannot be made, or cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error("the bundle has no file {0}")]
    NoFile(String),
    #[error("kernel: {0}")]
    Kernel(#[from] kernel::Error),
    #[error("{bytes:#x} bytes of memory are too few: {needed:#x} are needed")]
    FewBytes { bytes: u64, needed: u64 },
    #[error("its device tree would have {bytes:#x} bytes; {TREE_MOST:#x} are the most")]
    LargeTree { bytes: usize },
    #[error("{0} vCPUs are too many: {max} are the most", max = papr::MOST_CPUS)]
    ManyCpus(u32),
    #[error("this platform runs ELF and flat kernels only")]
    Format,
    #[error("it is more than there are partitions for")]
    Partitions,
    #[error("this machine has no devices to give")]
    NoDevices,
    #[error("{0}")]
    Devices(#[from] Refusal),
    #[error("a device of its may still be at work")]
    Busy,
    #[error("{0}")]
    NoRoom(#[from] NoRoom),
    #[error("{0}")]
    Outside(#[from] Outside),
    #[error("{0}")]
    Memory(#[from] NotMemory),
}

/// What is kept beside a vCPU.
#[derive(Default)]
pub(crate) struct Beside {
    /// It has left its core to wait.
    pub(crate) waited: AtomicBool,
    /// It is the VM's first, and starts from the beginning.
    pub(crate) begins: AtomicBool,
    /// It runs now: the platform has been asked to enter it and has not come back.
    pub(crate) inside: AtomicBool,
}

pub(crate) type Slot = vm::Slot<Vcpu, Beside>;
type Tenant = vm::Tenant<Vcpu, Beside>;

/// What all VMs have of the machine.
#[derive(Clone, Copy)]
pub(crate) struct Machine {
    /// The machine's own device tree.
    pub(crate) tree: &'static DeviceTreeNode,
    pub(crate) bundle: &'static Bundle<'static>,
    pub(crate) ram: Ram,
    pub(crate) frames: &'static Frames<Ram>,
    /// Its run-time services.
    pub(crate) rtas: Option<&'static Rtas>,
    /// Its host bridges, when their devices can be given away.
    pub(crate) hardware: Option<&'static Hardware>,
    pub(crate) partitions: &'static PartitionTable<Ram>,
    /// How its CPUs withstand speculation attacks.
    pub(crate) characteristics: Option<Characteristics>,
}

/// The interrupt sources of a VM: its terminal's, and those of messages, pins and hot plug where it has
/// devices.
fn sources(devices: Option<&Devices>) -> Vec<Source> {
    let messages = match devices {
        Some(_) => messages::FIRST..messages::FIRST + messages::COUNT,
        None => 0..0,
    };
    let events = devices.map(|_| papr::HOT_PLUG_SOURCE);
    let numbers = messages.chain([TERMINAL_SOURCE]).chain(events);
    let kind = Kind::Edge;
    let edges = numbers.map(|number| Source { number, kind });
    let kind = Kind::Sampled;
    let pins = devices.into_iter().flat_map(Devices::pin_sources);
    edges
        .chain(pins.map(|number| Source { number, kind }))
        .collect()
}

/// A VM.
pub(crate) struct Vm {
    tenant: Tenant,
    pub(crate) machine: Machine,
    pub(crate) memory: GuestMemory<'static, Ram, Frames<Ram>>,
    pub(crate) platform: Platform,
    /// The devices it owns.
    pub(crate) devices: Option<Devices>,
    pub(crate) input: Mutex<VecDeque<u8>>,
    /// What its time base is ahead of ours.
    pub(crate) timebase_offset: AtomicI64,
    lpid: NonZeroU16,
    config: VmConfig,
    /// Where its device tree is while it starts.
    tree_at: AtomicU64,
}

/// What policy sees of it.
impl core::ops::Deref for Vm {
    type Target = Tenant;

    fn deref(&self) -> &Tenant {
        &self.tenant
    }
}

impl Vm {
    /// Makes a VM, stopped. `number` is its place among the VMs; `place` says on which core each vCPU
    /// runs.
    #[optimize(size)]
    pub(crate) fn build(
        config: &VmConfig,
        machine: Machine,
        number: usize,
        mut place: impl FnMut(usize) -> usize,
    ) -> Result<Self, BuildError> {
        let cpus = usize::try_from(config.cpus).unwrap_or(usize::MAX);
        if cpus > papr::MOST_CPUS {
            return Err(BuildError::ManyCpus(config.cpus));
        }
        let lpid = u16::try_from(number + 1).ok().and_then(NonZeroU16::new);
        let lpid = lpid
            .filter(|lpid| lpid.get() < crate::nested::PARTITIONS - 1)
            .ok_or(BuildError::Partitions)?;
        let memory = GuestMemory::new(machine.ram, machine.frames, config.memory)?;
        let places: Vec<usize> = (0..cpus).map(&mut place).collect();
        let first = places
            .first()
            .and_then(|core| smp::cpus().get(*core).copied());
        let server = first.and_then(|cpu| u32::try_from(cpu.server()).ok());
        let devices = match machine.hardware {
            Some(hardware) => {
                let who = (number, server.unwrap_or(0));
                Devices::plan(hardware, who, config, &memory).map_err(BuildError::from)
            }
            None if config.devices.is_empty() => Ok(None),
            None => Err(BuildError::NoDevices),
        };
        let devices = match devices {
            Ok(devices) => devices,
            Err(error) => {
                memory.give_back(machine.frames);
                return Err(error);
            }
        };
        // Its number is in the table: nothing fails after the plan.
        machine.partitions.set(lpid, memory.partition_entry(), 0)?;
        let platform = Platform::new(Config {
            terminal: (config.console.uart != ConsoleUart::None).then_some(papr::TERMINAL),
            cpus,
            sources: sources(devices.as_ref()),
            characteristics: machine.characteristics,
        });
        let slots = places
            .into_iter()
            .map(|core| Slot::new(core, Vcpu::new(lpid, 0, 0), Beside::default()));
        Ok(Self {
            tenant: Tenant::new(number, config, slots),
            machine,
            memory,
            platform,
            devices,
            input: Mutex::new(VecDeque::new()),
            timebase_offset: AtomicI64::new(0),
            lpid,
            config: config.clone(),
            tree_at: AtomicU64::new(0),
        })
    }

    /// Zeroed memory, platform at reset, the guest loaded.
    pub(crate) fn make_ready(&self) -> Result<(), BuildError> {
        if !self.takes_fresh_memory() {
            self.clear()?;
        }
        if let Some(devices) = &self.devices {
            devices.take(&self.memory)?;
        }
        if let Err(error) = self.load() {
            // What it has not used can be given back.
            let _ = self
                .devices
                .as_ref()
                .is_none_or(|devices| devices.give_back(&self.memory));
            return Err(error);
        }
        let now = spr::timebase();
        log::debug!("vm {}: its counter starts at tick {now}", self.name);
        self.timebase_offset
            .store(now.wrapping_neg().cast_signed(), Ordering::Release);
        if let Some(first) = self.slots.first() {
            first.beside.begins.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Back to the beginning. No vCPU is on a core.
    #[optimize(size)]
    fn clear(&self) -> Result<(), BuildError> {
        if self
            .devices
            .as_ref()
            .is_some_and(|devices| !devices.quiesce())
        {
            return Err(BuildError::Busy);
        }
        self.memory.clear()?;
        self.platform.reset();
        self.input.lock().clear();
        self.machine
            .partitions
            .set(self.lpid, self.memory.partition_entry(), 0)?;
        for slot in &self.slots {
            slot.set_activity(vm::Activity::Off);
            slot.beside.begins.store(false, Ordering::Release);
            slot.beside.waited.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Loads the guest, whose memory is zero.
    #[optimize(size)]
    fn load(&self) -> Result<(), BuildError> {
        let config = &self.config;
        let file = |name: &str| {
            let file = self.machine.bundle.file(name);
            file.ok_or_else(|| BuildError::NoFile(name.into()))
        };
        let image = file(&config.kernel.file)?;
        let kernel = match config.kernel.format {
            KernelFormat::Auto | KernelFormat::Elf => kernel::parse(image)?,
            KernelFormat::Flat => kernel::flat(image),
            KernelFormat::Image => return Err(BuildError::Format),
        };
        let initrd = config.initrd.as_deref().map(file).transpose()?;
        let initrd_bytes = initrd.map_or(0, |initrd| initrd.len() as u64);
        let bytes = self.memory.bytes();
        let few = |needed| BuildError::FewBytes { bytes, needed };
        let behind = u64::from(SERVICES) + TREE_MOST + initrd_bytes + INITRD_ALIGNMENT;
        let services = bytes.min(LOW).saturating_sub(SERVICES.into());
        let tree_at = services.saturating_sub(TREE_MOST);
        let initrd_at = tree_at.saturating_sub(initrd_bytes) & !(INITRD_ALIGNMENT - 1);
        if kernel.end > initrd_at {
            return Err(few(kernel.end + behind));
        }
        for (at, part) in &kernel.parts {
            self.memory.write(*at, part)?;
        }
        if let Some(initrd) = initrd {
            self.memory.write(initrd_at, initrd)?;
        }
        for (at, word) in (services..).step_by(4).zip(papr::ENTRY_CODE) {
            self.memory.write_cell(at, word)?;
        }
        let facts = Facts {
            bytes,
            cpus: self.slots.len(),
            bootargs: &config.append,
            initrd: initrd.map(|_| (initrd_at, initrd_at + initrd_bytes)),
            has_clock: self.machine.rtas.is_some_and(Rtas::has_clock),
            services: Services {
                base: u32::try_from(services).unwrap_or(0),
                bytes: SERVICES,
            },
            terminal: self.platform.config().terminal.map(|_| TERMINAL_SOURCE),
            devices: self.devices.as_ref(),
        };
        let tree = tree::build(self.machine.tree, &facts);
        if tree.len() as u64 > TREE_MOST {
            return Err(BuildError::LargeTree { bytes: tree.len() });
        }
        self.memory.write(tree_at, &tree)?;
        self.tree_at.store(tree_at, Ordering::Release);
        Ok(())
    }

    /// Puts a vCPU that starts into its first state: the VM's first as its firmware leaves it, others
    /// as `start-cpu` says.
    pub(crate) fn reset(&self, index: usize, slot: &Slot, vcpu: &mut Vcpu) {
        if slot.beside.begins.swap(false, Ordering::AcqRel) {
            vcpu.reset(kernel::BASE);
            vcpu.registers.gpr[3] = self.tree_at.load(Ordering::Acquire);
            vcpu.registers.gpr[4] = kernel::BASE;
        } else if let Some((entry, argument)) = self.platform.take_start(index) {
            vcpu.reset(entry);
            vcpu.registers.gpr[3] = argument;
        } else {
            return;
        }
        vcpu.set_timebase_offset(self.timebase_offset.load(Ordering::Acquire));
    }

    /// Takes typed bytes, as many as there is room for: who is to be told.
    pub(crate) fn receive(&self, byte: u8) -> papr::Servers {
        {
            let mut input = self.input.lock();
            if input.len() >= MOST_INPUT {
                return papr::Servers::NONE;
            }
            input.push_back(byte);
        }
        self.platform
            .signal(TERMINAL_SOURCE)
            .unwrap_or(papr::Servers::NONE)
    }

    /// Its partition.
    pub(crate) fn lpid(&self) -> NonZeroU16 {
        self.lpid
    }

    /// Whether the machine tells the time, and what it says.
    pub(crate) fn now(&self) -> Option<papr::Date> {
        let cells = self.machine.rtas?.time_of_day().ok()?;
        papr::Date::of_machine(cells)
    }

    /// Ticks of so many microseconds.
    pub(crate) fn ticks(us: u64) -> u64 {
        TimeBase.ticks_of_us(us)
    }
}
