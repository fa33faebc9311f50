//! The model: what a manifest says of each VM, and what must hold of it.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec,
    vec::Vec,
};
use core::fmt;

use crate::{GuestDevice, HostDevice, archive::is_file_name, binding::MANIFEST_NAME};

/// The most VMs of a manifest.
pub const MAX_VMS: usize = 64;
/// The most vCPUs of a VM.
pub const MAX_CPUS: u32 = 64;
/// A VM's memory is a multiple of this many bytes: a stage-2 block.
pub const MEMORY_ALIGNMENT: u64 = 2 << 20;
/// The most memory of a VM, in bytes.
const MAX_MEMORY: u64 = 1 << 40;
/// The longest VM name, in bytes: it prefixes console lines.
const MAX_NAME: usize = 31;
/// The longest command line, in bytes without the end: what arm64 Linux takes.
const MAX_APPEND: usize = 2047;
/// Shortest and longest time slice, in microseconds.
const TIME_SLICE_US: core::ops::RangeInclusive<u32> = 100..=1_000_000;
/// The largest physical CPU index and serial port index.
const MAX_PIN: u32 = 4095;
const MAX_SERIAL: u32 = 15;
/// The most devices of a VM.
pub const MAX_DEVICES: usize = 256;
/// MSI windows start and end on the largest CPU page.
const MSI_ALIGNMENT: u64 = 64 << 10;
/// MSI windows lie in the smallest IPA space of a large machine.
const MSI_LIMIT: u64 = 1 << 40;

/// What the hypervisor is to run. Every value of this type has passed [`Manifest::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    vms: Vec<VmConfig>,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmConfig {
    /// Its name: 1 to 31 of `a-z`, `0-9`, `-`, `_`, starting with a letter.
    pub name: String,
    /// Bytes of RAM: a multiple of [`MEMORY_ALIGNMENT`], not zero.
    pub memory: u64,
    /// vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// The physical CPU (its place in the device tree) of each vCPU; empty to share all CPUs.
    pub pin: Vec<u32>,
    /// How long a vCPU runs when others wait for its CPU, in microseconds; `None` for the
    /// hypervisor's choice.
    pub time_slice_us: Option<u32>,
    /// When it starts.
    pub start: Start,
    /// What follows when the guest resets or powers off.
    pub restart: Restart,
    /// What it runs.
    pub kernel: Kernel,
    /// The file of its initrd.
    pub initrd: Option<String>,
    /// A device tree of the user's own, in place of the generated one.
    pub dtb: Option<String>,
    /// The kernel's command line: printable ASCII.
    pub append: String,
    /// How the platform is described to it.
    pub firmware: Firmware,
    /// Its console.
    pub console: Console,
    /// What it sees of an IOMMU.
    pub iommu: IommuMode,
    /// How its devices' MSIs are addressed (Arm).
    pub msi: MsiPolicy,
    /// Where the MSI window of policy `rmr` lies; `None` for the default.
    pub msi_window: Option<MsiWindow>,
    /// Its DMA windows (POWER).
    pub tce: TcePolicy,
    /// Whether a device behind no IOMMU may be given to it all the same.
    pub unsafe_dma: UnsafeDma,
    /// The devices it owns.
    pub devices: Vec<Device>,
}

impl VmConfig {
    /// A VM with this name, memory in bytes and kernel file, and the default of everything else:
    /// one vCPU, started at boot, no devices.
    #[must_use]
    pub fn new(name: &str, memory: u64, kernel: &str) -> Self {
        Self {
            name: name.into(),
            memory,
            cpus: 1,
            pin: Vec::new(),
            time_slice_us: None,
            start: Start::Boot,
            restart: Restart::OnReset,
            kernel: Kernel {
                file: kernel.into(),
                format: KernelFormat::Auto,
            },
            initrd: None,
            dtb: None,
            append: String::new(),
            firmware: Firmware::Dt,
            console: Console::default(),
            iommu: IommuMode::Auto,
            msi: MsiPolicy::Rmr,
            msi_window: None,
            tce: TcePolicy::default(),
            unsafe_dma: UnsafeDma::Refused,
            devices: Vec::new(),
        }
    }
}

/// Gives an enum its words in the manifest: `parse` and `word` are each other's inverse.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// All words of the binding, in order.
            pub const WORDS: &[&str] = &[$($word),+];

            /// The value of a word of the binding.
            #[must_use]
            pub fn parse(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// The word of the binding.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words! {
    /// How a kernel file is loaded.
    KernelFormat {
        /// By what the file starts with.
        Auto = "auto",
        /// An arm64 Image.
        Image = "image",
        /// An ELF file.
        Elf = "elf",
        /// A flat binary.
        Flat = "flat",
    }
}

words! {
    /// How the platform is described to the guest.
    Firmware {
        /// By a device tree.
        Dt = "dt",
        /// By ACPI tables (Arm).
        Acpi = "acpi",
    }
}

words! {
    /// The console device the guest sees.
    ConsoleUart {
        /// What the platform has: PL011 on Arm, `hvc` on POWER.
        Auto = "auto",
        /// A PL011.
        Pl011 = "pl011",
        /// PAPR's virtual terminal.
        Hvc = "hvc",
        /// None.
        None = "none",
    }
}

words! {
    /// What the guest sees of an IOMMU. The devices are confined in every mode.
    IommuMode {
        /// The best the machine has: `nested` on Arm where the SMMU can, else `stage2`; `tce` on
        /// POWER.
        Auto = "auto",
        /// Nothing; no devices may be given to the VM.
        None = "none",
        /// Nothing; the hypervisor's stage 2 alone translates.
        Stage2 = "stage2",
        /// An SMMUv3 of its own, with hardware walking its stage 1 over our stage 2.
        Nested = "nested",
        /// PAPR's DMA windows.
        Tce = "tce",
    }
}

words! {
    /// How the MSIs of the guest's devices are addressed. Both windows are always mapped.
    MsiPolicy {
        /// By an identity-mapped window that is announced as reserved (IORT RMR, or
        /// `iommu-addresses` in a device tree).
        Rmr = "rmr",
        /// By the guest's own mapping of its ITS page.
        Vits = "vits",
    }
}

words! {
    /// What follows when the guest resets or powers off.
    Restart {
        /// It stays stopped after both.
        Never = "never",
        /// It starts again after a reset.
        OnReset = "on-reset",
        /// It starts again after both.
        Always = "always",
    }
}

words! {
    /// Whether a device that no IOMMU confines may be given to the VM.
    UnsafeDma {
        /// It may not.
        Refused = "refused",
        /// It may: the VM's memory is mapped 1:1, and the device can reach everything else too.
        Identity = "identity",
    }
}

words! {
    /// Whether other devices of the VM may reach a device's BARs.
    PeerToPeer {
        /// They may not.
        Refused = "no",
        /// They may.
        Allowed = "yes",
    }
}

/// When a VM starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// At boot.
    Boot,
    /// When somebody says so in the monitor.
    Manual,
    /// When another VM has stopped; it may take over that VM's devices.
    After(String),
}

/// What a VM runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The name of the file in the bundle.
    pub file: String,
    /// How it is loaded.
    pub format: KernelFormat,
}

/// The console of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Console {
    /// The device the guest sees.
    pub uart: ConsoleUart,
    /// A serial port of the machine (its place in the device tree) for this VM alone; `None` shares
    /// the hypervisor's terminal.
    pub serial: Option<u32>,
}

impl Default for Console {
    fn default() -> Self {
        Self {
            uart: ConsoleUart::Auto,
            serial: None,
        }
    }
}

/// The window that MSIs are written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiWindow {
    /// The first address, a multiple of 64 KiB.
    pub start: u64,
    /// The size in bytes, a multiple of 64 KiB.
    pub bytes: u64,
}

impl MsiWindow {
    /// Where Linux puts its own: 1 MiB from 0x0800_0000.
    pub const DEFAULT: Self = Self {
        start: 0x0800_0000,
        bytes: 0x10_0000,
    };
}

/// What DMA windows a VM may have on POWER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TcePolicy {
    /// The default 32-bit window only.
    DefaultWindow,
    /// Windows of the guest's choosing too, with pages of these sizes (log2, ascending; empty for
    /// all that the platform has).
    Dynamic {
        /// Log2 of the page sizes: of 12, 16, 21, 24.
        page_shifts: Vec<u32>,
    },
}

impl Default for TcePolicy {
    fn default() -> Self {
        Self::Dynamic {
            page_shifts: Vec::new(),
        }
    }
}

/// A device given to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Where it is in the machine.
    pub host: HostDevice,
    /// Where the guest sees it; `None` for the next free place.
    pub guest: Option<GuestDevice>,
    /// Whether the VM's other devices may reach its BARs.
    pub p2p: PeerToPeer,
}

/// A value of a manifest, by the name its key has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is the key of the same name")]
pub enum Field {
    Vm,
    Name,
    Memory,
    Cpus,
    Pin,
    TimeSliceUs,
    Start,
    Restart,
    Kernel,
    KernelFormat,
    Initrd,
    Dtb,
    Append,
    Firmware,
    Console,
    Serial,
    Iommu,
    Msi,
    MsiWindow,
    TcePages,
    UnsafeDma,
    Devices,
    Host,
    Guest,
    P2p,
}

impl Field {
    /// The key in a TOML manifest, below its VM (below its device for the last three).
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Name => "name",
            Self::Memory => "memory",
            Self::Cpus => "cpus",
            Self::Pin => "pin",
            Self::TimeSliceUs => "time_slice_us",
            Self::Start => "start",
            Self::Restart => "restart",
            Self::Kernel => "kernel",
            Self::KernelFormat => "kernel_format",
            Self::Initrd => "initrd",
            Self::Dtb => "dtb",
            Self::Append => "append",
            Self::Firmware => "firmware",
            Self::Console => "console",
            Self::Serial => "serial",
            Self::Iommu => "iommu",
            Self::Msi => "msi",
            Self::MsiWindow => "msi_window",
            Self::TcePages => "tce_pages",
            Self::UnsafeDma => "unsafe_dma",
            Self::Devices => "devices",
            Self::Host => "host",
            Self::Guest => "guest",
            Self::P2p => "p2p",
        }
    }
}

/// A place in a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which VM, counted from 0.
    pub vm: Option<usize>,
    /// Which of its devices, counted from 0.
    pub device: Option<usize>,
    /// Which value.
    pub field: Field,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(vm) = self.vm {
            write!(f, "vm[{vm}].")?;
        }
        if let Some(device) = self.device {
            write!(f, "devices[{device}].")?;
        }
        f.write_str(self.field.key())
    }
}

/// A value that does not hold, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ManifestError {
    /// Where.
    pub place: Place,
    /// What.
    pub problem: Invalid,
}

/// A number of bytes as people write it.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            let unit_bytes = 1u64 << shift;
            if self.0 != 0 && self.0.is_multiple_of(unit_bytes) {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

/// Why a value does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// No VM, or more than [`MAX_VMS`].
    #[error("{0} VMs; 1 to {MAX_VMS} are allowed")]
    VmCount(usize),
    /// A name that is not one.
    #[error("{0:?} is not a name: 1 to {MAX_NAME} of a-z, 0-9, - and _, starting with a letter")]
    Name(String),
    /// Another VM has this name.
    #[error("vm[{0}] has this name already")]
    NameTaken(usize),
    /// Memory that is not whole blocks.
    #[error("{} is not a multiple of 2 MiB", Bytes(*.0))]
    MemoryAlignment(u64),
    /// No memory or too much.
    #[error("{} of memory; 2 MiB to {} are allowed", Bytes(*.0), Bytes(MAX_MEMORY))]
    MemorySize(u64),
    /// A number outside its range.
    #[error("{value} is outside {min} to {max}")]
    Range {
        /// The value.
        value: u64,
        /// The smallest allowed.
        min: u64,
        /// The largest allowed.
        max: u64,
    },
    /// Not one physical CPU for each vCPU.
    #[error("{pins} physical CPUs for {cpus} vCPUs; give one for each, or none")]
    PinCount {
        /// How many are given.
        pins: usize,
        /// How many vCPUs there are.
        cpus: u32,
    },
    /// A command line with bytes that are not printable ASCII.
    #[error("a command line is printable ASCII, at most {MAX_APPEND} bytes")]
    Append,
    /// A name that no file in a bundle can have.
    #[error("{0:?} cannot be the name of a file in a bundle")]
    FileName(String),
    /// A device tree of the user's own for a guest that gets ACPI.
    #[error("a device tree goes with firmware \"dt\" only")]
    DtbWithAcpi,
    /// To start after a VM that is not there, or after itself.
    #[error("there is no other VM {0:?} to start after")]
    StartAfter(String),
    /// VMs that wait for each other.
    #[error("it waits for itself by way of {0:?}")]
    StartCycle(String),
    /// Another VM has this serial port.
    #[error("vm[{0}] has this serial port already")]
    SerialTaken(usize),
    /// An MSI window that cannot be mapped.
    #[error("start and size must be multiples of 64 KiB, the size not zero, the end below 1 TiB")]
    MsiWindow,
    /// TCE pages that are no page size, twice, or not ascending.
    #[error("page sizes are 4K, 64K, 2M, 16M, each once, ascending")]
    TcePages,
    /// Devices for a VM without a view on an IOMMU.
    #[error("devices need an IOMMU mode other than \"none\"")]
    DevicesWithoutIommu,
    /// A nested IOMMU over nothing.
    #[error("\"identity\" leaves no IOMMU to nest")]
    NestedIdentity,
    /// More devices than a VM can have.
    #[error("{0} devices; at most {MAX_DEVICES} are allowed")]
    DeviceCount(usize),
    /// A device is given away twice.
    #[error("{device} is given to vm[{vm}].devices[{index}] already")]
    DeviceTaken {
        /// The device.
        device: HostDevice,
        /// Who has it.
        vm: usize,
        /// Which of its devices it is.
        index: usize,
    },
    /// Two devices of a VM at one place.
    #[error("{0} is taken by another device of this VM")]
    GuestPlaceTaken(GuestDevice),
    /// A PCI function shown as a host bridge or the other way round.
    #[error("a {host} cannot be shown as {guest}")]
    DeviceKind {
        /// The device.
        host: HostDevice,
        /// The place.
        guest: GuestDevice,
    },
}

impl Manifest {
    /// A manifest of these VMs.
    ///
    /// # Errors
    /// The first thing that does not hold, with its place.
    pub fn new(vms: Vec<VmConfig>) -> Result<Self, ManifestError> {
        let count = vms.len();
        if count == 0 || count > MAX_VMS {
            return Err(ManifestError {
                place: Place {
                    vm: None,
                    device: None,
                    field: Field::Vm,
                },
                problem: Invalid::VmCount(count),
            });
        }
        let mut boot = Owners::new();
        for (index, vm) in vms.iter().enumerate() {
            let at = |(field, problem)| ManifestError {
                place: Place {
                    vm: Some(index),
                    device: None,
                    field,
                },
                problem,
            };
            check(vm).map_err(at)?;
            if let Some(other) = vms
                .iter()
                .take(index)
                .position(|other| other.name == vm.name)
            {
                return Err(at((Field::Name, Invalid::NameTaken(other))));
            }
            check_start(index, &vms).map_err(|problem| at((Field::Start, problem)))?;
            if let Some(serial) = vm.console.serial {
                let same = |other: &VmConfig| other.console.serial == Some(serial);
                if let Some(other) = vms.iter().take(index).position(same) {
                    return Err(at((Field::Serial, Invalid::SerialTaken(other))));
                }
            }
            check_devices(index, vm, &mut boot)?;
        }
        Ok(Self { vms })
    }

    /// The VMs, in the order of the manifest.
    #[must_use]
    pub fn vms(&self) -> &[VmConfig] {
        &self.vms
    }

    /// The VM of this name.
    #[must_use]
    pub fn vm(&self, name: &str) -> Option<&VmConfig> {
        self.vms.iter().find(|vm| vm.name == name)
    }

    /// Every file the manifest names, with the value that names it. A file may be named often.
    pub fn files(&self) -> impl Iterator<Item = (Place, &str)> {
        self.vms.iter().enumerate().flat_map(|(index, vm)| {
            let place = move |field| Place {
                vm: Some(index),
                device: None,
                field,
            };
            let kernel = Some((place(Field::Kernel), vm.kernel.file.as_str()));
            let initrd = vm
                .initrd
                .as_deref()
                .map(|file| (place(Field::Initrd), file));
            let dtb = vm.dtb.as_deref().map(|file| (place(Field::Dtb), file));
            [kernel, initrd, dtb].into_iter().flatten()
        })
    }
}

type Check = Result<(), (Field, Invalid)>;

fn in_range(field: Field, value: u32, range: core::ops::RangeInclusive<u32>) -> Check {
    if range.contains(&value) {
        return Ok(());
    }
    let (min, max) = (u64::from(*range.start()), u64::from(*range.end()));
    let value = value.into();
    Err((field, Invalid::Range { value, min, max }))
}

fn is_vm_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_lowercase())
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

/// What can be said of a VM alone.
fn check(vm: &VmConfig) -> Check {
    if !is_vm_name(&vm.name) {
        return Err((Field::Name, Invalid::Name(vm.name.clone())));
    }
    if !vm.memory.is_multiple_of(MEMORY_ALIGNMENT) {
        return Err((Field::Memory, Invalid::MemoryAlignment(vm.memory)));
    }
    if vm.memory == 0 || vm.memory > MAX_MEMORY {
        return Err((Field::Memory, Invalid::MemorySize(vm.memory)));
    }
    in_range(Field::Cpus, vm.cpus, 1..=MAX_CPUS)?;
    if !vm.pin.is_empty() && usize::try_from(vm.cpus) != Ok(vm.pin.len()) {
        let (pins, cpus) = (vm.pin.len(), vm.cpus);
        return Err((Field::Pin, Invalid::PinCount { pins, cpus }));
    }
    for pin in &vm.pin {
        in_range(Field::Pin, *pin, 0..=MAX_PIN)?;
    }
    if let Some(time_slice) = vm.time_slice_us {
        in_range(Field::TimeSliceUs, time_slice, TIME_SLICE_US)?;
    }
    let files = [
        (Field::Kernel, Some(&vm.kernel.file)),
        (Field::Initrd, vm.initrd.as_ref()),
        (Field::Dtb, vm.dtb.as_ref()),
    ];
    for (field, file) in files {
        if let Some(file) = file
            && (!is_file_name(file) || file == MANIFEST_NAME)
        {
            return Err((field, Invalid::FileName(file.clone())));
        }
    }
    if vm.dtb.is_some() && vm.firmware != Firmware::Dt {
        return Err((Field::Dtb, Invalid::DtbWithAcpi));
    }
    if vm.append.len() > MAX_APPEND || !vm.append.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err((Field::Append, Invalid::Append));
    }
    if let Some(serial) = vm.console.serial {
        in_range(Field::Serial, serial, 0..=MAX_SERIAL)?;
    }
    if let Some(window) = vm.msi_window {
        let aligned = (window.start | window.bytes).is_multiple_of(MSI_ALIGNMENT);
        let end = window.start.checked_add(window.bytes);
        if !aligned || window.bytes == 0 || end.is_none_or(|end| end > MSI_LIMIT) {
            return Err((Field::MsiWindow, Invalid::MsiWindow));
        }
    }
    if let TcePolicy::Dynamic { page_shifts } = &vm.tce {
        let known = page_shifts
            .iter()
            .all(|shift| matches!(shift, 12 | 16 | 21 | 24));
        if !known || !page_shifts.is_sorted_by(|a, b| a < b) {
            return Err((Field::TcePages, Invalid::TcePages));
        }
    }
    if vm.iommu == IommuMode::None && !vm.devices.is_empty() {
        return Err((Field::Iommu, Invalid::DevicesWithoutIommu));
    }
    if vm.iommu == IommuMode::Nested && vm.unsafe_dma == UnsafeDma::Identity {
        return Err((Field::UnsafeDma, Invalid::NestedIdentity));
    }
    if vm.devices.len() > MAX_DEVICES {
        return Err((Field::Devices, Invalid::DeviceCount(vm.devices.len())));
    }
    Ok(())
}

/// Whoever a VM waits for is there, and does not wait for it in turn.
fn check_start(index: usize, vms: &[VmConfig]) -> Result<(), Invalid> {
    let by_name = |name: &str| vms.iter().position(|vm| vm.name == name);
    let mut seen = vec![index];
    let mut here = index;
    while let Some(VmConfig {
        start: Start::After(name),
        ..
    }) = vms.get(here)
    {
        match by_name(name) {
            Some(next) if next == here => return Err(Invalid::StartAfter(name.clone())),
            None => return Err(Invalid::StartAfter(name.clone())),
            Some(next) if seen.contains(&next) => return Err(Invalid::StartCycle(name.clone())),
            Some(next) => {
                seen.push(next);
                here = next;
            }
        }
    }
    Ok(())
}

/// Who has a device: the VM, and which of its devices it is.
type Owners = BTreeMap<HostDevice, (usize, usize)>;

/// No device is given away twice, none is shown where another one is. Two VMs may name one device
/// when they cannot both start at boot: the second takes it over.
fn check_devices(index: usize, vm: &VmConfig, boot: &mut Owners) -> Result<(), ManifestError> {
    let mut places = BTreeSet::new();
    let mut own = Owners::new();
    for (device_index, device) in vm.devices.iter().enumerate() {
        let at = |field, problem| ManifestError {
            place: Place {
                vm: Some(index),
                device: Some(device_index),
                field,
            },
            problem,
        };
        if let Some(guest) = device.guest {
            let same_kind = matches!(
                (device.host, guest),
                (HostDevice::Pci { .. }, GuestDevice::Pci(_))
                    | (HostDevice::Phb { .. }, GuestDevice::Phb(_))
            );
            if !same_kind {
                let host = device.host;
                return Err(at(Field::Guest, Invalid::DeviceKind { host, guest }));
            }
            if !places.insert(guest) {
                return Err(at(Field::Guest, Invalid::GuestPlaceTaken(guest)));
            }
        }
        let taken = own.get(&device.host).or_else(|| {
            let others = (vm.start == Start::Boot).then_some(&*boot)?;
            others.get(&device.host)
        });
        if let Some((taker, taker_device)) = taken.copied() {
            return Err(at(
                Field::Host,
                Invalid::DeviceTaken {
                    device: device.host,
                    vm: taker,
                    index: taker_device,
                },
            ));
        }
        own.insert(device.host, (index, device_index));
    }
    if vm.start == Start::Boot {
        boot.append(&mut own);
    }
    Ok(())
}
