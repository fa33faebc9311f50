//! A VM: its memory, its devices, its vCPUs.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use armv8::{Psci, Shown};
use boot::Frames;
use bundle::{Bundle, Firmware, IommuMode, KernelFormat, MsiPolicy, VmConfig};
use firmware::{
    FirmwareError, FirmwareKind, GuestPlatform, Payload, PlatformError, Remapping, Rmr,
};
use hal::{Clock, FrameAllocator, OutOfFrames, PhysMemory};
use iommu::UnitId;
use pagetable::{Geometry, Invalidate, NotLive, PageTable, Stage2, Stage2Attributes, Stale};
use spin::Mutex;
use types::{Address, Iova, Ipa, Pa, PageSize, Span};
use vdev::{Pl011, Pl031};
use vgic::{Affinity, Vgic};

use super::devices::{self, Bus};
use super::irq::Interface;
use super::pci::{Assigned, GuestPci};
use super::smmu::GuestSmmu;
use super::vcpu::Vcpu;
use crate::console::SystemCounter;
use crate::hardware::{Backend, Function, Hardware};
use crate::memory::Ram;
use crate::serial::Port;

/// Physical PPIs that are the guest's: the physical and the virtual timer.
const HARDWARE_PPIS: u32 = 1 << 27 | 1 << 30;
/// SPIs of a guest.
const SPIS: usize = 224;
/// Bits of a guest physical address: RAM from 1 GiB up and the PCI windows of the `virt` layout.
const IPA_BITS: u8 = 40;
/// The largest piece of RAM that is taken at once: 1 GiB.
const LARGEST_ORDER: u8 = 18;
/// The smallest: 2 MiB, so that stage 2 never needs page-sized entries for RAM.
const SMALLEST_ORDER: u8 = 9;

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

/// Where a VM's devices come from.
#[derive(Clone, Copy)]
pub(crate) struct Devices<'a> {
    pub(crate) hardware: &'static Hardware,
    pub(crate) assigned: &'a [Assigned],
}

impl Devices<'_> {
    /// Gives the platform the SMMUs that the guest is to see, one for each of the machine's that its devices are
    /// behind, and for each ITS that those write to; none where it is to see none.
    fn add_smmus(
        &self,
        config: &VmConfig,
        platform: &mut GuestPlatform,
    ) -> Result<Vec<GuestSmmu>, BuildError> {
        let units = match (config.iommu, self.nesting_units()) {
            (IommuMode::Nested, units) => units.map_err(|why| {
                BuildError::Device(format!("iommu = \"nested\" is not to be had: {why}"))
            })?,
            (IommuMode::Auto, Ok(units)) => units,
            (IommuMode::Auto, Err(why)) => {
                log::info!("vm {}: its guest sees no SMMU: {why}", config.name);
                return Ok(Vec::new());
            }
            _ => return Ok(Vec::new()),
        };
        let behind = self.seats().filter_map(|(seat, function)| {
            let behind = function.smmu?;
            Some((seat.guest, seat.seen_behind(function, behind.unit)))
        });
        platform
            .add_virt_smmus(behind)
            .map_err(BuildError::Platform)?;
        if msi_policy(config) == MsiPolicy::Rmr {
            let default = iommu::MsiWindow::DEFAULT.span();
            let start = config
                .msi_window
                .map_or(default.start().bits(), |w| w.start);
            let bytes = config.msi_window.map(|window| window.bytes);
            let bytes = bytes.or(default.len()).unwrap_or(0);
            let window = Ipa::new(start)
                .ok()
                .and_then(|start| Span::from_len(start, bytes))
                .ok_or(BuildError::Geometry)?;
            platform.rmrs.push(Rmr {
                window,
                remapping: Remapping::Permitted,
                devices: super::pci::paths(self.assigned).map_err(BuildError::Device)?,
            });
        }
        let smmus = units
            .into_iter()
            .enumerate()
            .map(|(place, unit)| GuestSmmu::new(self.hardware, unit, platform, place, IPA_BITS));
        smmus.collect::<Result<_, _>>().map_err(BuildError::Device)
    }

    /// Whether one of them is behind no SMMU.
    fn has_unconfined(&self) -> bool {
        let mut functions = self.assigned.iter();
        functions.any(|seat| {
            let function = self.hardware.functions.get(seat.function);
            function.is_some_and(|function| function.smmu.is_none())
        })
    }

    /// The devices, with the machine's functions that they are.
    fn seats(&self) -> impl Iterator<Item = (&Assigned, &'static Function)> {
        let functions = &self.hardware.functions;
        let seats = self.assigned.iter();
        seats.filter_map(|seat| Some((seat, functions.get(seat.function)?)))
    }

    /// Each function of an isolation group has an entry of its own in the guest's stream table, which says nothing of what
    /// they reach of each other past the SMMU. The guest knows of that, and gives all to one of its own users, when it
    /// sees them as functions of one device.
    fn check_mates(&self, seat: &Assigned, function: &Function) -> Result<(), String> {
        let named = |function: &Function| format!("{:04x}:{}", function.segment, function.bdf);
        for (place, shares) in self.hardware.mates(function) {
            let other = self.hardware.functions.get(place).map(named);
            let other = other.unwrap_or_default();
            if shares {
                return Err(format!("{} has the stream ID of {other}", named(function)));
            }
            let mut seats = self.assigned.iter();
            let known = seats.find(|known| known.function == place);
            if known.is_none_or(|known| known.guest.bits() >> 3 != seat.guest.bits() >> 3) {
                return Err(format!(
                    "{} shares its isolation group with {other}: the guest has to see functions of one device (guest = …)",
                    named(function)
                ));
            }
        }
        Ok(())
    }

    /// The machine's SMMU below each of the guest's, in the order of the devices, all of which nest; or why there are
    /// none.
    fn nesting_units(&self) -> Result<Vec<UnitId>, String> {
        let mut keys = Vec::new();
        for (seat, function) in self.seats() {
            let Some(behind) = function.smmu else {
                return Err("a device of it is behind no SMMU".into());
            };
            let key = seat.seen_behind(function, behind.unit);
            if !keys.contains(&key) {
                keys.push(key);
            }
            self.check_mates(seat, function)?;
        }
        if keys.is_empty() {
            return Err("it has no device".into());
        }
        for (unit, ..) in &keys {
            GuestSmmu::features(self.hardware, *unit, IPA_BITS, vsmmuv3::Messages::Off)?;
        }
        Ok(keys.into_iter().map(|(unit, ..)| unit).collect())
    }
}

/// How a VM's messages are addressed, when its guest has an SMMU.
///
/// With a device tree and `iommu = "auto"` by the guest's own mapping, which every kernel makes: one before
/// Linux 6.3 would take no notice of a reserved window, and silently have no messages.
pub(super) fn msi_policy(config: &VmConfig) -> MsiPolicy {
    match (config.iommu, config.firmware) {
        (IommuMode::Auto, Firmware::Dt) => MsiPolicy::Vits,
        _ => config.msi,
    }
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
        // Devices that nothing translates for write to where the guest believes its memory is.
        let placed = match &devices {
            Some(devices) if devices.has_unconfined() => {
                let bytes = config.memory;
                let pages = bytes.div_ceil(PageSize::SIZE_4K.bytes());
                let pages = usize::try_from(pages).unwrap_or(usize::MAX);
                let place = frames.alloc_zeroed_run(pages).map_err(BuildError::Memory)?;
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
        let (stage2, ram) = build_memory(&platform, placed, memory, frames)?;
        let vttbr = stage2.root().bits() | vmid << 48;
        let vtcr = pagetable::vtcr(stage2.geometry(), 8);
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
        match &self.port {
            Some(_) => vm::Line::Own,
            None => vm::Line::Shared,
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

    /// Whether it is off, but its devices are still on their way back: nobody else can have them yet.
    pub(crate) fn is_giving_back(&self) -> bool {
        let is_off = matches!(
            self.lifecycle.state(),
            vm::State::Stopped | vm::State::Failed
        );
        is_off && self.has_devices.load(Ordering::Acquire)
    }

    /// When to look again at resets of its devices, in ticks; `None` when none is under way.
    pub(crate) fn waits_for_devices(&self) -> Option<u64> {
        self.pci.as_ref()?.resets()
    }

    /// Loads the guest, whose memory is zero, and says where its first vCPU starts.
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
        self.rtc.lock().reset(devices::seconds());
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

    /// Copies into guest memory; `None` when some of it is none, and what came before is written.
    pub(crate) fn copy_in(&self, at: Ipa, bytes: &[u8]) -> Option<()> {
        let mut at = at;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (pa, room) = self.translate(at)?;
            let now = rest.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (head, tail) = rest.split_at(now);
            self.memory.write(pa, head).ok()?;
            rest = tail;
            at = at.checked_add(now as u64)?;
        }
        Some(())
    }

    /// Copies out of guest memory; `None` when some of it is none.
    pub(crate) fn copy_out(&self, at: Ipa, into: &mut [u8]) -> Option<()> {
        let mut at = at;
        let mut rest = into;
        while !rest.is_empty() {
            let (pa, room) = self.translate(at)?;
            let now = rest.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (head, tail) = rest.split_at_mut(now);
            self.memory.read(pa, head).ok()?;
            rest = tail;
            at = at.checked_add(now as u64)?;
        }
        Some(())
    }

    /// Copies words out of guest memory, each in one access; `None` when some of it is none, or `at` is
    /// between words.
    pub(crate) fn copy_words(&self, at: Ipa, words: &mut [u64]) -> Option<()> {
        let (pa, room) = self.translate(at)?;
        if room >= size_of_val(words) as u64 {
            return self.memory.read_words(pa, words).ok();
        }
        let mut at = at;
        for word in words {
            let (pa, _) = self.translate(at)?;
            self.memory
                .read_words(pa, core::slice::from_mut(word))
                .ok()?;
            at = at.checked_add(8)?;
        }
        Some(())
    }

    /// Writes a word of 32 bits in one access, after all that was written before; `None` when it is none of guest
    /// memory, or `at` is between words.
    #[inline]
    pub(crate) fn store_word(&self, at: Ipa, word: u32) -> Option<()> {
        let (pa, room) = self.translate(at)?;
        if room < 4 {
            return None;
        }
        self.memory.write_word(pa, word).ok()
    }

    /// Whether so many bytes from an address on are its memory.
    pub(crate) fn is_memory_span(&self, at: Ipa, bytes: usize) -> bool {
        let mut at = at;
        let mut left = bytes as u64;
        while left > 0 {
            let Some((_, room)) = self.translate(at) else {
                return false;
            };
            left = left.saturating_sub(room);
            match at.checked_add(room) {
                Some(next) => at = next,
                None => return left == 0,
            }
        }
        true
    }

    /// Reads an instruction of the guest.
    pub(crate) fn fetch(&self, at: Ipa) -> Option<u32> {
        let (pa, _) = self.translate(at)?;
        let mut word = [0; 4];
        self.memory.read(pa, &mut word).ok()?;
        Some(u32::from_le_bytes(word))
    }

    /// Where a guest physical address is, and how many bytes from there on are next to it.
    fn translate(&self, at: Ipa) -> Option<(Pa, u64)> {
        self.ram
            .iter()
            .find(|(span, _)| span.contains(at))
            .and_then(|(span, pa)| {
                let offset = at.offset_from(span.start())?;
                Some((pa.checked_add(offset)?, span.len()?.checked_sub(offset)?))
            })
    }

    /// Its memory: where the guest sees it, and where it is.
    pub(crate) fn ram(&self) -> &[(Span<Ipa>, Pa)] {
        &self.ram
    }

    /// Shows a part of a device's BAR; false where something is already.
    pub(crate) fn map_device(&self, span: Span<Ipa>, pa: Pa) -> bool {
        let mut tlb = Tlb::of(self.vttbr);
        let mut tree = self.stage2.lock();
        match tree.map(span, pa, Stage2Attributes::DEVICE, &mut tlb) {
            Ok(()) => true,
            Err(error) => {
                // The guest chooses where, as often as it likes.
                log::debug!("vm {}: a BAR at {span}: {error}", self.name);
                false
            }
        }
    }

    /// Takes it back: no vCPU reaches it when this returns.
    pub(crate) fn unmap_device(&self, span: Span<Ipa>) {
        let mut tlb = Tlb::of(self.vttbr);
        if let Err(error) = self.stage2.lock().unmap(span, &mut tlb) {
            log::error!("vm {}: a BAR at {span}: {error}", self.name);
        }
    }

    /// Lets a table for the VM's devices use the tables of its vCPUs, where it can.
    pub(crate) fn lend(&self, backend: &mut Backend, table: iommu::TableId) {
        const GIBIBYTE: u64 = 1 << 30;
        let mut tree = self.stage2.lock();
        for span in &self.platform.memory {
            let first = span.start().bits() & !(GIBIBYTE - 1);
            let last = span.last().bits() | (GIBIBYTE - 1);
            let units = Span::new(Iova::truncated(first), Iova::truncated(last));
            // Where it is refused, the table gets entries of its own.
            if let Some(units) = units
                && let Err(error) = backend.lend(table, &mut tree, units, &mut Tlb::of(self.vttbr))
            {
                log::debug!("vm {}: tables are not shared: {error}", self.name);
            }
        }
    }

    /// Whether a guest physical address is its memory.
    pub(crate) fn is_memory(&self, ipa: u64) -> bool {
        Ipa::new(ipa).is_ok_and(|ipa| self.translate(ipa).is_some())
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

    /// Where stage 2 takes a guest physical address.
    pub(crate) fn walk(&self, at: Ipa) -> vm::Walk {
        match self.stage2.lock().walk(at) {
            Ok(leaf) => vm::Walk::Mapped {
                pa: leaf.pa.bits(),
                bytes: leaf.size.bytes(),
                level: leaf.level,
                descriptor: leaf.descriptor,
            },
            Err(fault) => vm::Walk::Unmapped { level: fault.level },
        }
    }
}

impl vgic::its::GuestMemory for Vm {
    fn read(&self, at: Ipa, into: &mut [u8]) -> Result<(), vgic::its::NotRam> {
        self.copy_out(at, into).ok_or(vgic::its::NotRam { at })
    }
}

/// The TLBs of the CPUs, for one VM's translations.
struct Tlb {
    vttbr: u64,
    stale: bool,
}

impl Tlb {
    const fn of(vttbr: u64) -> Self {
        Self {
            vttbr,
            stale: false,
        }
    }
}

impl Invalidate<Ipa> for Tlb {
    fn publish(&mut self) {
        // SAFETY: orders memory accesses.
        unsafe { core::arch::asm!("dsb ishst", "isb", options(nostack)) };
    }

    fn invalidate(&mut self, _: &Stale<Ipa>) {
        self.stale = true;
    }

    fn invalidate_all(&mut self) {
        self.stale = true;
    }

    fn sync(&mut self) {
        if !core::mem::take(&mut self.stale) {
            return;
        }
        let resident = super::read_register!("vttbr_el2");
        super::write_register!("vttbr_el2", self.vttbr);
        // SAFETY: drops translations of the VM, which are walked anew. Nothing runs at EL1 meanwhile.
        unsafe {
            core::arch::asm!(
                "isb",
                "dsb ishst",
                "tlbi vmalls12e1is",
                "dsb ish",
                "isb",
                options(nostack)
            );
        };
        super::write_register!("vttbr_el2", resident);
        aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
    }
}

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

/// Takes memory for a platform and maps it.
fn build_memory(
    platform: &GuestPlatform,
    placed: Option<Pa>,
    memory: Ram,
    frames: Frame,
) -> Result<(Tree, Pieces), BuildError> {
    let pa_range = super::read_register!("id_aa64mmfr0_el1") & 0xf;
    let output = pagetable::OutputSize::from_encoding(pa_range);
    let geometry = Geometry::new::<Stage2<Ipa>>(IPA_BITS.min(output.bits()), output)
        .map_err(|_| BuildError::Geometry)?;
    let mut tree = PageTable::new(geometry, memory, frames).map_err(BuildError::Memory)?;
    let mut ram = Vec::new();
    if let (Some(pa), [span]) = (placed, platform.memory.as_slice()) {
        tree.map(*span, pa, Stage2Attributes::RAM, &mut NotLive)
            .map_err(BuildError::Stage2)?;
        return Ok((tree, Vec::from([(*span, pa)])));
    }
    for span in &platform.memory {
        let mut at = span.start();
        let mut order = LARGEST_ORDER;
        while at <= span.last() {
            let left = span.last().bits() - at.bits() + 1;
            let bytes = PageSize::SIZE_4K.bytes() << order;
            if order > SMALLEST_ORDER && (bytes > left || at.bits() & (bytes - 1) != 0) {
                order -= 1;
                continue;
            }
            match frames.alloc_zeroed(order) {
                Ok(pa) => {
                    let piece = Span::from_len(at, bytes.min(left)).ok_or(BuildError::Geometry)?;
                    tree.map(piece, pa, Stage2Attributes::RAM, &mut NotLive)
                        .map_err(BuildError::Stage2)?;
                    ram.push((piece, pa));
                    at = match at.checked_add(bytes) {
                        Some(next) => next,
                        None => break,
                    };
                }
                Err(_) if order > SMALLEST_ORDER => order -= 1,
                Err(error) => return Err(BuildError::Memory(error)),
            }
        }
    }
    Ok((tree, ram))
}

/// New code is in memory: no core may use old instructions.
fn clean_instruction_side() {
    // SAFETY: instruction cache maintenance changes no value.
    unsafe { core::arch::asm!("dsb ish", "ic ialluis", "dsb ish", "isb", options(nostack)) };
}
