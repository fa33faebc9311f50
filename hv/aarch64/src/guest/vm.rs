//! A VM: its memory, its devices, its vCPUs.

mod devices;
mod memory;

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use armv8::{Psci, Shown};
use boot::{Frames, Taken};
use bundle::{Bundle, ConsoleUart, Firmware, KernelFormat, VmConfig};
use firmware::{FirmwareError, FirmwareKind, GuestPlatform, Payload, PlatformError};
use hal::Mutex;
use hal::{Clock, OutOfFrames, PhysMemory};
use pagetable::{PageTable, Stage2};
use types::{Ipa, Pa, PageSize, Span};
use vdev::{Pl011, Pl031};
use vgic::{Affinity, Vgic};

pub(crate) use self::devices::Devices;
pub(super) use self::devices::msi_policy;
use self::memory::build_memory;
use super::devices::{Bus, seconds};
use super::irq::Interface;
use super::pci::GuestPci;
use super::vcpu::Vcpu;
use crate::console::SystemCounter;
use crate::memory::Ram;
use crate::serial::Port;

/// Physical PPIs that are the guest's: the physical and the virtual timer.
const HARDWARE_PPIS: u32 = 1 << 27 | 1 << 30;
/// SPIs of a guest.
const SPIS: usize = 224;
/// Bits of a guest physical address: RAM from 1 GiB up and the PCI windows of the `virt` layout.
const IPA_BITS: u8 = 40;

type Frame = &'static Frames<Ram>;
type Tree = PageTable<Stage2<Ipa>, Ram, Frame>;
/// Pieces of RAM: where the guest sees them, and where they are.
type Pieces = Vec<(Span<Ipa>, Pa)>;

/// Why a VM could not be made.
#[derive(Debug)]
pub(crate) enum BuildError {
    /// Too little memory.
    Memory(OutOfFrames),
    /// The manifest asks for a platform that cannot be.
    Platform(PlatformError),
    /// The kernel or the layout.
    Firmware(FirmwareError),
    /// The interrupt controller.
    Gic(vgic::Error),
    /// Stage 2.
    Stage2(pagetable::Error<Ipa>),
    /// The CPU's address size is too small.
    Geometry,
    /// A file of the bundle is gone.
    File(String),
    /// A device cannot be had.
    Device(String),
}

impl core::fmt::Display for BuildError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Memory(error) => write!(f, "memory: {error}"),
            Self::Platform(error) => write!(f, "platform: {error}"),
            Self::Firmware(error) => write!(f, "{error}"),
            Self::Gic(error) => write!(f, "interrupt controller: {error}"),
            Self::Stage2(error) => write!(f, "stage 2: {error}"),
            Self::Geometry => write!(f, "the CPU's physical addresses are too short"),
            Self::File(name) => write!(f, "{name} is not in the bundle"),
            Self::Device(why) => f.write_str(why),
        }
    }
}

/// A vCPU's slot: beside it is where it starts, when PSCI has turned it on.
pub(crate) type Slot = vm::Slot<Vcpu, Start>;
/// Entry and context.
pub(crate) type Start = Mutex<Option<(u64, u64)>>;
type Tenant = vm::Tenant<Vcpu, Start>;

/// A VM.
pub(crate) struct Vm {
    tenant: Tenant,
    platform: GuestPlatform,
    /// Where its devices are.
    pub(crate) bus: Bus,
    payload: Payload<'static>,
    /// Its memory: where the guest sees it, and where it is.
    ram: Pieces,
    memory: Ram,
    /// Kept for as long as the VM: its tables are in use. BARs come and go.
    stage2: Mutex<Tree>,
    vttbr: u64,
    vtcr: u64,
    counter_offset: AtomicU64,
    pub(crate) gic: Vgic,
    /// Its PCI segment, when it has devices.
    pub(crate) pci: Option<GuestPci>,
    pub(crate) uart: Mutex<Pl011>,
    /// The machine's serial port that is its alone; without one it shares the terminal.
    pub(crate) port: Option<Port>,
    pub(crate) rtc: Mutex<Pl031>,
    pub(crate) psci: Mutex<Psci>,
    /// Typed bytes that its UART has no room for yet, and whether there are any.
    pub(crate) input: Mutex<VecDeque<u8>>,
    pub(crate) has_input: AtomicBool,
    /// It has its devices: from before it runs until after it is off.
    has_devices: AtomicBool,
}

/// The highest bus of a guest's PCI segment: 16 MiB of configuration space.
const LAST_BUS: u8 = 15;

/// The file of a bundle.
fn file(bundle: &Bundle<'static>, name: &str) -> Result<&'static [u8], BuildError> {
    bundle
        .file(name)
        .ok_or_else(|| BuildError::File(name.into()))
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
        bundle: &Bundle<'static>,
        memory: Ram,
        frames: Frame,
        number: usize,
        devices: Option<Devices<'_>>,
        mut place: impl FnMut(usize) -> usize,
    ) -> Result<Self, BuildError> {
        let cpus = u16::try_from(config.cpus).unwrap_or(u16::MAX);
        let mut platform =
            GuestPlatform::virt(config.memory, cpus).map_err(BuildError::Platform)?;
        platform.bootargs.clone_from(&config.append);
        if config.console.uart == ConsoleUart::None {
            platform.uart = None;
        }
        let mut taken = Taken::new(frames);
        // Devices that nothing translates for write to where the guest believes its memory is.
        let placed = match &devices {
            Some(devices) if devices.has_unconfined() => {
                let bytes = config.memory;
                let pages = bytes.div_ceil(PageSize::SIZE_4K.bytes());
                let pages = usize::try_from(pages).unwrap_or(usize::MAX);
                let place = taken.alloc_zeroed_run(pages).map_err(BuildError::Memory)?;
                let span = Ipa::new(place.bits()).ok();
                let span = span.and_then(|start| Span::from_len(start, bytes));
                platform.memory = Vec::from([span.ok_or(BuildError::Geometry)?]);
                Some(place)
            }
            _ => None,
        };
        if devices.is_some() {
            platform = platform.with_virt_pci_and_no_smmu(LAST_BUS);
        }
        let smmus = match &devices {
            Some(devices) => devices.add_smmus(config, &mut platform)?,
            None => Vec::new(),
        };
        platform.check().map_err(BuildError::Platform)?;
        let payload = Payload {
            kernel: file(bundle, &config.kernel.file)?,
            format: match config.kernel.format {
                KernelFormat::Auto => firmware::KernelFormat::Auto,
                KernelFormat::Image => firmware::KernelFormat::Image,
                KernelFormat::Elf => firmware::KernelFormat::Elf,
                KernelFormat::Flat => firmware::KernelFormat::Flat,
            },
            initrd: config
                .initrd
                .as_deref()
                .map(|name| file(bundle, name))
                .transpose()?,
            tree: config
                .dtb
                .as_deref()
                .map(|name| file(bundle, name))
                .transpose()?,
            firmware: match config.firmware {
                Firmware::Dt => FirmwareKind::DeviceTree,
                Firmware::Acpi => FirmwareKind::Acpi,
            },
        };
        let vmid = number as u64 + 1;
        let affinities: Vec<u64> = platform.cpus.iter().map(|mpidr| mpidr.bits()).collect();
        let pci = devices.map(|Devices { hardware, assigned }| {
            let vcpus = affinities.len();
            GuestPci::new(hardware, &platform, vcpus, assigned, config, smmus)
        });
        let pci = pci.transpose().map_err(BuildError::Device)?;
        let mut gic = new_gic(&affinities)?;
        if let Some(pci) = &pci {
            gic = gic.with_lpis(pci.vits.clone());
        }
        // Nothing fails after this.
        let (stage2, ram) = build_memory(&platform, placed, memory, taken, frames)?;
        let vttbr = stage2.root().bits() | vmid << 48;
        let vtcr = pagetable::vtcr(stage2.geometry(), 8);
        let slots = affinities
            .iter()
            .enumerate()
            .map(|(index, mpidr)| Slot::new(place(index), Vcpu::new(*mpidr), Mutex::new(None)));
        Ok(Self {
            tenant: Tenant::new(number, config, slots),
            bus: Bus::new(&platform),
            payload,
            ram,
            memory,
            stage2: Mutex::new(stage2),
            vttbr,
            vtcr,
            counter_offset: AtomicU64::new(0),
            gic,
            pci,
            uart: Mutex::new(Pl011::new()),
            port: None,
            rtc: Mutex::new(Pl031::new(0, 0)),
            psci: Mutex::new(Psci::new(&affinities)),
            input: Mutex::new(VecDeque::new()),
            has_input: AtomicBool::new(false),
            has_devices: AtomicBool::new(false),
            platform,
        })
    }

    /// Where its console is.
    pub(crate) fn line(&self) -> vm::Line {
        match (&self.platform.uart, &self.port) {
            (None, _) => vm::Line::Absent,
            (Some(_), Some(_)) => vm::Line::Own,
            (Some(_), None) => vm::Line::Shared,
        }
    }

    /// Its console is a port of its own.
    pub(crate) fn with_console(self, port: Option<Port>) -> Self {
        Self { port, ..self }
    }

    /// Its clock shows the time: so many seconds after 1970 the machine's counter was 0.
    pub(crate) fn with_time_at_zero(self, seconds: u32) -> Self {
        *self.rtc.lock() = Pl031::new(seconds, 0);
        self
    }

    /// Zeroed memory, devices of its own and at reset, the guest loaded.
    #[optimize(size)]
    pub(crate) fn make_ready(&self) -> Result<(), BuildError> {
        let begun = SystemCounter.ticks();
        if let Some(pci) = &self.pci {
            pci.claim(self).map_err(BuildError::Device)?;
        }
        self.has_devices
            .store(self.pci.is_some(), Ordering::Release);
        let claimed = SystemCounter.ticks();
        let loaded = if self.takes_fresh_memory() {
            self.load()
        } else {
            self.clear().and_then(|()| self.load())
        };
        if loaded.is_err() {
            self.give_back_devices();
        }
        log::debug!(
            "vm {}: devices taken in {} ticks, memory zeroed and loaded in {} ticks",
            self.name,
            claimed - begun,
            SystemCounter.ticks() - claimed
        );
        loaded
    }

    /// Its devices reach nothing of it any more, and are anyone's. No vCPU is on a core.
    pub(crate) fn give_back_devices(&self) {
        if let Some(pci) = &self.pci {
            pci.release(self);
            self.has_devices.store(false, Ordering::Release);
        }
    }

    /// Whether it has its devices.
    pub(crate) fn holds_devices(&self) -> bool {
        self.has_devices.load(Ordering::Acquire)
    }

    /// When to look again at resets of its devices, in ticks; `None` when none is under way.
    pub(crate) fn waits_for_devices(&self) -> Option<u64> {
        self.pci.as_ref()?.resets()
    }

    /// Loads the guest, whose memory is zero, and says where its first vCPU starts.
    #[optimize(size)]
    fn load(&self) -> Result<(), BuildError> {
        let layout = firmware::plan(&self.platform, &self.payload).map_err(BuildError::Firmware)?;
        for placement in &layout.placements {
            self.copy_in(placement.at, &placement.bytes)
                .ok_or(BuildError::Geometry)?;
        }
        // The guest starts with its caches off: what was zeroed and written must be in memory, and
        // no line of it may be written back over what the guest writes.
        for (span, pa) in &self.ram {
            let bytes = span
                .len()
                .and_then(|len| usize::try_from(len).ok())
                .unwrap_or(0);
            let cleaned = self.memory.clean(*pa, bytes);
            cleaned.map_err(|error| BuildError::Stage2(error.into()))?;
        }
        clean_instruction_side();
        let now = SystemCounter.ticks();
        log::debug!("vm {}: its counter starts at tick {now}", self.name);
        self.counter_offset.store(now, Ordering::Release);
        let Some(first) = self.slots.first() else {
            return Err(BuildError::Geometry);
        };
        *first.beside.lock() = Some((layout.entry.pc.bits(), layout.entry.x0.bits()));
        Ok(())
    }

    /// Back to the beginning: zeroed memory, devices at reset. No vCPU is on a core.
    #[optimize(size)]
    fn clear(&self) -> Result<(), BuildError> {
        for (span, pa) in &self.ram {
            let bytes = span
                .len()
                .and_then(|len| usize::try_from(len).ok())
                .unwrap_or(0);
            let zeroed = self.memory.zero(*pa, bytes);
            zeroed.map_err(|error| BuildError::Stage2(error.into()))?;
        }
        self.gic.reset();
        if let Some(pci) = &self.pci {
            pci.vits.reset();
        }
        *self.uart.lock() = Pl011::new();
        self.rtc.lock().reset(seconds());
        self.input.lock().clear();
        self.has_input.store(false, Ordering::Release);
        let affinities: Vec<u64> = self
            .platform
            .cpus
            .iter()
            .map(|mpidr| mpidr.bits())
            .collect();
        *self.psci.lock() = Psci::new(&affinities);
        for slot in &self.slots {
            slot.set_activity(vm::Activity::Off);
            *slot.beside.lock() = None;
        }
        Ok(())
    }

    pub(crate) fn vttbr(&self) -> u64 {
        self.vttbr
    }

    pub(crate) fn vtcr(&self) -> u64 {
        self.vtcr
    }

    /// What is subtracted from the physical counter for the guest's virtual one.
    pub(crate) fn counter_offset(&self) -> u64 {
        self.counter_offset.load(Ordering::Acquire)
    }

    pub(crate) fn platform(&self) -> &GuestPlatform {
        &self.platform
    }

    /// What its identification registers may show.
    pub(crate) fn shown(&self) -> Shown {
        Shown { ipa_bits: IPA_BITS }
    }
}

#[optimize(size)]
fn new_gic(affinities: &[u64]) -> Result<Vgic, BuildError> {
    let interface = Interface::read();
    let affinities: Vec<Affinity> = affinities
        .iter()
        .map(|mpidr| Affinity::from_mpidr(*mpidr))
        .collect();
    Vgic::new(&vgic::Config {
        affinities: &affinities,
        spis: SPIS,
        list_registers: interface.list_registers,
        hardware_ppis: HARDWARE_PPIS,
        a3v: interface.a3v,
    })
    .map_err(BuildError::Gic)
}

/// New code is in memory: no core may use old instructions.
fn clean_instruction_side() {
    // SAFETY: instruction cache maintenance changes no value.
    unsafe { core::arch::asm!("dsb ish", "ic ialluis", "dsb ish", "isb", options(nostack)) };
}
