//! The model: what a manifest says of each VM.

use alloc::{string::String, vec::Vec};
use core::fmt;

use crate::{GuestDevice, HostDevice};

/// The most VMs of a manifest.
pub const MAX_VMS: usize = 64;
/// The most vCPUs of a VM.
pub const MAX_CPUS: u32 = 64;
/// A VM's memory is a multiple of this many bytes: a stage-2 block.
pub const MEMORY_ALIGNMENT: u64 = 2 << 20;
/// The most devices of a VM.
pub const MAX_DEVICES: usize = 256;
/// The highest number of an SMMU of a guest's.
pub const MAX_SMMU: u8 = 7;

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

    /// The first key that asks for something which a hypervisor that gives its guests the console device `own`
    /// does not do: a VM that has one is to be left out, not run in another way than was asked for.
    #[must_use]
    pub fn not_acted_on(&self, own: ConsoleUart) -> Option<Field> {
        // Most of what a POWER guest's tree says is an agreement with the platform, down to the numbers of calls.
        if self.dtb.is_some() && own == ConsoleUart::Hvc {
            return Some(Field::Dtb);
        }
        let here = [ConsoleUart::Auto, ConsoleUart::None, own];
        if !here.contains(&self.console.uart) {
            return Some(Field::Console);
        }
        // The terminal of a POWER partition is all that there is.
        (self.console.serial.is_some() && own == ConsoleUart::Hvc).then_some(Field::Serial)
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
    /// Devices with different numbers, 0 to [`MAX_SMMU`](crate::MAX_SMMU), are behind different SMMUs of the guest's.
    pub smmu: u8,
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
    Smmu,
}

impl Field {
    /// The key in a TOML manifest, below its VM (below its device for the last four).
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
            Self::Smmu => "smmu",
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

impl Manifest {
    /// VMs that [`Manifest::new`] has checked.
    pub(crate) fn checked(vms: Vec<VmConfig>) -> Self {
        Self { vms }
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
