//! What a guest's machine consists of: the one description both firmware kinds are written from.

mod check;
pub mod map;
mod units;
mod virt;

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use types::{Address, Bdf, Ipa, OutOfRange, Span, StreamId};

/// The most vCPUs a description may have: the affinity numbering of [`Mpidr::from_index`] and the
/// size of every table stay far from their limits.
pub const MAX_CPUS: usize = 512;

/// The most memory spans a description may have: the EFI memory map has a page.
pub const MAX_MEMORY_SPANS: usize = 64;

/// Bytes of redistributor frames a GICv3 without GICv4 has for each vCPU [IHI 0069 §12.10].
pub const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;

/// The size of the distributor's frame in bytes [IHI 0069 §12.8].
pub const DISTRIBUTOR_BYTES: u64 = 0x1_0000;

/// The size of an ITS in bytes: the control and the translation frame [IHI 0069 §12.18].
pub const ITS_BYTES: u64 = 0x2_0000;

/// The size of an SMMUv3's register file in bytes: pages 0 and 1 [IHI 0070 §6.1].
pub const SMMU_BYTES: u64 = 0x2_0000;
/// The most SMMUs of a guest.
pub const MAX_SMMUS: usize = 8;

/// The size of a PrimeCell's registers in bytes.
pub const PRIMECELL_BYTES: u64 = 0x1000;

/// The affinity fields of a vCPU's `MPIDR_EL1`: Aff0 to Aff2 in bits 23:0, Aff3 in 39:32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mpidr(u64);

impl Mpidr {
    /// The bits that hold affinities.
    pub const MASK: u64 = 0xff_00ff_ffff;

    /// The affinity with this value.
    ///
    /// # Errors
    /// [`OutOfRange`] when a bit outside [`Mpidr::MASK`] is set.
    pub const fn new(bits: u64) -> Result<Self, OutOfRange> {
        if bits & !Self::MASK == 0 {
            Ok(Self(bits))
        } else {
            Err(OutOfRange {
                kind: "Mpidr",
                value: bits,
            })
        }
    }

    /// The affinity of the `index`-th vCPU: sixteen to an Aff1 group, so that one SGI register
    /// write reaches every member of a group [IHI 0069 §12.2, `ICC_SGI1R_EL1`.TargetList].
    #[must_use]
    pub const fn from_index(index: u16) -> Self {
        let index = index as u64;
        Self((index & 0xf) | ((index >> 4) & 0xff) << 8 | (index >> 12) << 16)
    }

    /// The raw value.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// A shared peripheral interrupt, counted from 0 (INTID 32).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spi(u16);

impl Spi {
    /// The largest SPI of a GICv3 without the extended range: INTID 1019.
    pub const MAX: u16 = 987;

    /// The interrupt with this number.
    ///
    /// # Errors
    /// [`OutOfRange`] above [`Spi::MAX`].
    pub const fn new(number: u16) -> Result<Self, OutOfRange> {
        if number <= Self::MAX {
            Ok(Self(number))
        } else {
            Err(OutOfRange {
                kind: "Spi",
                value: number as u64,
            })
        }
    }

    /// The number as a device tree counts it.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The number as the GIC and ACPI (GSIV) count it.
    #[must_use]
    pub const fn intid(self) -> u32 {
        (self.0 as u32).saturating_add(32)
    }
}

/// The guest's GICv3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gic {
    /// The distributor, 64 KiB.
    pub distributor: Ipa,
    /// The redistributors, [`REDISTRIBUTOR_BYTES`] for each vCPU in the order of the CPU list.
    pub redistributors: Span<Ipa>,
    /// The ITS, 128 KiB, when the guest gets LPIs.
    pub its: Option<Ipa>,
}

/// A device with one page of registers and one interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peripheral {
    /// Where its registers are.
    pub base: Ipa,
    /// Its interrupt, level-sensitive.
    pub interrupt: Spi,
}

/// The SMMUv3 the guest sees. Its interrupts are edge-triggered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smmu {
    /// Page 0 of its registers; 128 KiB follow.
    pub base: Ipa,
    /// The event queue's interrupt.
    pub event: Spi,
    /// The page request queue's interrupt.
    pub pri: Spi,
    /// The interrupt of `CMD_SYNC`.
    pub sync: Spi,
    /// The global error interrupt.
    pub gerror: Spi,
    /// The DeviceID under which it sends messages of its own to the ITS: no requester's. `None` when it sends none.
    pub messages: Option<u16>,
}

/// What a window of a PCI host bridge carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowKind {
    /// Memory below 4 GiB on the bus.
    Memory32,
    /// Memory anywhere on the bus.
    Memory64,
    /// I/O ports.
    Io,
}

/// A window through which CPUs reach BARs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciWindow {
    /// What the window carries.
    pub kind: WindowKind,
    /// The first address as CPUs see it.
    pub cpu: Ipa,
    /// The first address as the bus sees it.
    pub bus: u64,
    /// The length in bytes.
    pub bytes: u64,
}

/// The guest's PCI Express host bridge: segment 0, all functions visible through one ECAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciHost {
    /// Configuration space of bus 0 (not of the first bus in `buses`), 1 MiB a bus.
    pub ecam: Ipa,
    /// The bus numbers below this bridge.
    pub buses: RangeInclusive<u8>,
    /// The windows. An I/O window must not start at bus address 0: Linux takes an unset I/O BAR
    /// for one that firmware has placed there.
    pub windows: Vec<PciWindow>,
    /// The interrupts of INTA to INTD of device 0, level-sensitive. Device n's are moved on by n, as a
    /// bridge above it would move them.
    pub intx: [Spi; 4],
}

impl PciHost {
    /// The interrupt that a pin (1 is INTA, 4 INTD) of a device on the root bus raises.
    #[must_use]
    pub fn pin(&self, device: u8, pin: u8) -> Spi {
        let [a, b, c, d] = self.intx;
        match pin.wrapping_sub(1).wrapping_add(device) & 3 {
            0 => a,
            1 => b,
            2 => c,
            _ => d,
        }
    }

    /// The configuration space of exactly the buses of this bridge.
    #[must_use]
    pub fn ecam_span(&self) -> Option<Span<Ipa>> {
        let first = self
            .ecam
            .checked_add(u64::from(*self.buses.start()).checked_mul(1 << 20)?)?;
        let buses = u64::from(self.buses.end().checked_sub(*self.buses.start())?).checked_add(1)?;
        Span::from_len(first, buses.checked_mul(1 << 20)?)
    }
}

/// Whether a guest may remove a reserved identity mapping once its driver has the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remapping {
    /// It stays: Linux shows `direct` and refuses the device to VFIO.
    Denied,
    /// It may go: Linux shows `direct-relaxable`. A device tree cannot say this.
    Permitted,
}

/// The way from the root bus to a function: the bridges passed, then the function itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DevicePath {
    bridges: Vec<Bdf>,
    function: Bdf,
}

impl DevicePath {
    /// The path to `function` through `bridges`, the one on the root bus first.
    #[must_use]
    pub fn new(bridges: Vec<Bdf>, function: Bdf) -> Self {
        Self { bridges, function }
    }

    /// The bridges on the way, the one on the root bus first.
    #[must_use]
    pub fn bridges(&self) -> &[Bdf] {
        &self.bridges
    }

    /// The function.
    #[must_use]
    pub fn function(&self) -> Bdf {
        self.function
    }

    /// The stream ID of the function: its requester ID, as every output maps them one to one.
    #[must_use]
    pub fn stream_id(&self) -> Option<StreamId> {
        StreamId::new(u32::from(self.function.bits())).ok()
    }
}

/// A range that the guest must map to itself for some devices: the MSI doorbell window of the
/// `rmr` policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rmr {
    /// The range, on 64 KiB boundaries.
    pub window: Span<Ipa>,
    /// Whether the guest may remove the mapping later.
    pub remapping: Remapping,
    /// The devices the range is for. Name only those that exist: Linux installs a bypass stream
    /// table entry for each at probe.
    pub devices: Vec<DevicePath>,
}

/// How a guest calls PSCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// `HVC #0`.
    Hvc,
    /// `SMC #0`.
    Smc,
}

/// Randomness for the guest, drawn by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Moves the guest kernel's address space.
    pub kaslr: u64,
    /// Feeds the guest kernel's random number generator.
    pub rng: [u8; 32],
}

/// A guest's machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestPlatform {
    /// RAM, ascending, on 4 KiB boundaries. The kernel goes into the first span.
    pub memory: Vec<Span<Ipa>>,
    /// The vCPUs; the first one boots.
    pub cpus: Vec<Mpidr>,
    /// The interrupt controller.
    pub gic: Gic,
    /// The INTID of the PMU overflow interrupt (a PPI, 16 to 31), when the guest has a PMU.
    pub pmu_ppi: Option<u8>,
    /// The console, a PL011, if the guest has one.
    pub uart: Option<Peripheral>,
    /// The clock, a PL031. ACPI has no name for one, so only a device tree tells of it.
    pub rtc: Option<Peripheral>,
    /// The SMMUs in front of the PCI host. Every requester is behind the first that [`GuestPlatform::behind`] does not
    /// put behind another.
    pub smmus: Vec<Smmu>,
    /// Functions behind another SMMU than the first: which, by its place in [`GuestPlatform::smmus`].
    pub behind: Vec<(Bdf, usize)>,
    /// The PCI host.
    pub pci: Option<PciHost>,
    /// Identity mappings asked of the guest.
    pub rmrs: Vec<Rmr>,
    /// How PSCI is called.
    pub conduit: Conduit,
    /// The kernel's command line.
    pub bootargs: String,
    /// Randomness, or none for a run that repeats itself.
    pub seed: Option<Seed>,
}

/// What is wrong with a [`GuestPlatform`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    /// No RAM, more than [`MAX_MEMORY_SPANS`], or spans that are unaligned, overlapping or out of
    /// order.
    #[error("the guest's memory spans are none, too many, unaligned or out of order")]
    Memory,
    /// No vCPU, or more than [`MAX_CPUS`].
    #[error("{0} vCPUs")]
    CpuCount(usize),
    /// Two vCPUs with one affinity.
    #[error("two vCPUs have the MPIDR {0:#x}")]
    DuplicateMpidr(u64),
    /// Too few redistributors for the vCPUs.
    #[error("the redistributors have no room for {0} vCPUs")]
    Redistributors(usize),
    /// A device's registers lie in RAM, over another device, or past the end of the IPA space.
    #[error("the device at {0} lies over something else")]
    Device(Ipa),
    /// The PMU's interrupt is not a PPI.
    #[error("INTID {0} is not a PPI")]
    NotAPpi(u8),
    /// Bus numbers that run backwards, or an ECAM past the end of the IPA space.
    #[error("the PCI host's buses or ECAM are out of range")]
    Ecam,
    /// A window that is empty, leaves its address space, or starts at I/O address 0.
    #[error("the PCI window at {0} is empty or out of range")]
    Window(Ipa),
    /// More than [`MAX_SMMUS`], or a function behind one that there is not, or behind two.
    #[error("the SMMUs are too many, or not those that functions are behind")]
    Smmus,
    /// SMMUs send messages without an ITS, or with a DeviceID that a requester or another SMMU has.
    #[error("the DeviceIDs of the SMMUs' messages are not theirs alone, or there is no ITS")]
    SmmuMessages,
    /// An [`Rmr`] without a PCI host and an SMMU.
    #[error("a reserved mapping needs a PCI host and an SMMU")]
    RmrWithoutSmmu,
    /// An [`Rmr`] that names no device or is not on 64 KiB boundaries.
    #[error("the reserved mapping of {0} names no device or is not on 64 KiB boundaries")]
    Rmr(Ipa),
    /// A NUL in the command line.
    #[error("the command line has a NUL in it")]
    Bootargs,
}

impl PciWindow {
    /// What CPUs see of the window; `None` when it is empty or leaves the space.
    #[must_use]
    pub fn span(&self) -> Option<Span<Ipa>> {
        Span::from_len(self.cpu, self.bytes)
    }
}
