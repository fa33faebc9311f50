//! What a guest's machine consists of: the one description both firmware kinds are written from.

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use types::{Address, Bdf, Ipa, OutOfRange, PageSize, Span, StreamId};

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
    /// The console, a PL011.
    pub uart: Peripheral,
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

impl GuestPlatform {
    /// The layout of QEMU's `virt` machine, which is where Linux, small kernels and their authors
    /// expect things: RAM at 1 GiB, the GIC at 128 MiB, a console and a clock; no PCI.
    ///
    /// # Errors
    /// [`PlatformError::Memory`] unless `ram_bytes` is a multiple of 4 KiB that fits the space, and
    /// [`PlatformError::CpuCount`] for no vCPU or more than [`MAX_CPUS`].
    pub fn virt(ram_bytes: u64, cpus: u16) -> Result<Self, PlatformError> {
        let count = usize::from(cpus);
        let ram = Span::from_len(map::RAM, ram_bytes).ok_or(PlatformError::Memory)?;
        let redistributors = u64::from(cpus)
            .checked_mul(REDISTRIBUTOR_BYTES)
            .and_then(|bytes| Span::from_len(map::REDISTRIBUTORS, bytes))
            .ok_or(PlatformError::CpuCount(count))?;
        let platform = Self {
            memory: Vec::from([ram]),
            cpus: (0..cpus).map(Mpidr::from_index).collect(),
            gic: Gic {
                distributor: map::DISTRIBUTOR,
                redistributors,
                its: None,
            },
            pmu_ppi: None,
            uart: Peripheral {
                base: map::UART,
                interrupt: Spi(1),
            },
            rtc: Some(Peripheral {
                base: map::RTC,
                interrupt: Spi(2),
            }),
            smmus: Vec::new(),
            behind: Vec::new(),
            pci: None,
            rmrs: Vec::new(),
            conduit: Conduit::Hvc,
            bootargs: String::new(),
            seed: None,
        };
        platform.check()?;
        Ok(platform)
    }

    /// Adds the PCI host of QEMU's `virt` machine, with an SMMU in front of it and the ITS that its
    /// devices' MSIs need. It has no I/O window: no device a guest is given needs one.
    #[must_use]
    pub fn with_virt_pci(self) -> Self {
        let mut platform = self.with_virt_pci_and_no_smmu(u8::MAX);
        platform.add_virt_smmu();
        platform
    }

    /// The SMMU that a requester is behind, by its place; `None` when there is none.
    #[must_use]
    pub fn smmu_of(&self, function: Bdf) -> Option<usize> {
        let mut behind = self.behind.iter();
        let other = behind.find(|(known, _)| *known == function);
        let place = other.map_or(0, |(_, place)| *place);
        (place < self.smmus.len()).then_some(place)
    }

    /// All requesters in order, as ranges behind one SMMU each: the first, how many, which SMMU. Empty without an SMMU.
    #[must_use]
    pub fn requesters(&self) -> Vec<(u32, u32, usize)> {
        const ALL: u32 = 0x1_0000;
        let mut ranges = Vec::new();
        if self.smmus.is_empty() {
            return ranges;
        }
        let mut behind = self.behind.clone();
        types::sort(&mut behind);
        let mut next = 0;
        for (function, place) in behind {
            let at = u32::from(function.bits());
            if let Some(before) = at.checked_sub(next).filter(|count| *count > 0) {
                ranges.push((next, before, 0));
            }
            ranges.push((at, 1, place));
            next = at.saturating_add(1);
        }
        if let Some(rest) = ALL.checked_sub(next).filter(|count| *count > 0) {
            ranges.push((next, rest, 0));
        }
        ranges
    }

    /// Adds the PCI host and the ITS of [`GuestPlatform::with_virt_pci`] without an SMMU: for a guest
    /// whose devices are translated by stage 2 alone, of which it sees nothing. Its buses are 0 to
    /// `last_bus`, whose configuration space takes 1 MiB each: 15 makes that 16 MiB.
    #[must_use]
    pub fn with_virt_pci_and_no_smmu(mut self, last_bus: u8) -> Self {
        self.gic.its = Some(map::ITS);
        self.smmus.clear();
        self.behind.clear();
        self.pci = Some(PciHost {
            ecam: map::ECAM,
            buses: 0..=last_bus,
            windows: Vec::from([
                PciWindow {
                    kind: WindowKind::Memory32,
                    cpu: map::PCI_WINDOW32,
                    bus: map::PCI_WINDOW32.bits(),
                    bytes: map::PCI_WINDOW32_BYTES,
                },
                PciWindow {
                    kind: WindowKind::Memory64,
                    cpu: map::PCI_WINDOW64,
                    bus: map::PCI_WINDOW64.bits(),
                    bytes: map::PCI_WINDOW64_BYTES,
                },
            ]),
            intx: [Spi(3), Spi(4), Spi(5), Spi(6)],
        });
        self
    }

    /// Adds an SMMU in front of the PCI host and returns its place: the first is that of
    /// [`GuestPlatform::with_virt_pci`], further ones follow its registers and its interrupts. `None` when there are
    /// [`MAX_SMMUS`].
    pub fn add_virt_smmu(&mut self) -> Option<usize> {
        let place = self.smmus.len();
        if place >= MAX_SMMUS {
            return None;
        }
        let offset = SMMU_BYTES.checked_mul(u64::try_from(place).ok()?)?;
        let first = u16::try_from(place).ok()?.checked_mul(4)?.checked_add(74)?;
        self.smmus.push(Smmu {
            base: map::SMMU.checked_add(offset)?,
            event: Spi(first),
            pri: Spi(first.saturating_add(1)),
            sync: Spi(first.saturating_add(2)),
            gerror: Spi(first.saturating_add(3)),
        });
        Some(place)
    }

    /// Adds an SMMU for each of the machine's that the functions are behind, in the order in which they first occur:
    /// the guest sees its devices divided as they are.
    ///
    /// # Errors
    /// [`PlatformError::Smmus`] when they are more than [`MAX_SMMUS`].
    pub fn add_virt_smmus<U: Copy + PartialEq>(
        &mut self,
        functions: impl Iterator<Item = (Bdf, U)>,
    ) -> Result<(), PlatformError> {
        let mut units: Vec<U> = Vec::new();
        for (function, unit) in functions {
            let place = match units.iter().position(|known| *known == unit) {
                Some(place) => place,
                None => {
                    units.push(unit);
                    self.add_virt_smmu().ok_or(PlatformError::Smmus)?
                }
            };
            if place > 0 {
                self.behind.push((function, place));
            }
        }
        Ok(())
    }

    /// Checks everything the writers of device tree and ACPI rely on.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn check(&self) -> Result<(), PlatformError> {
        self.check_memory()?;
        self.check_cpus()?;
        self.check_devices()?;
        self.check_pci()?;
        self.check_smmus()?;
        self.check_rmrs()?;
        if self.bootargs.bytes().any(|byte| byte == 0) {
            return Err(PlatformError::Bootargs);
        }
        Ok(())
    }

    fn check_memory(&self) -> Result<(), PlatformError> {
        let aligned = self
            .memory
            .iter()
            .all(|span| span.is_aligned(PageSize::SIZE_4K));
        let ascending = self
            .memory
            .windows(2)
            .all(|pair| matches!(pair, [low, high] if low.last() < high.start()));
        let count = self.memory.len();
        if count == 0 || count > MAX_MEMORY_SPANS || !aligned || !ascending {
            return Err(PlatformError::Memory);
        }
        Ok(())
    }

    fn check_cpus(&self) -> Result<(), PlatformError> {
        let count = self.cpus.len();
        if count == 0 || count > MAX_CPUS {
            return Err(PlatformError::CpuCount(count));
        }
        let mut sorted = self.cpus.clone();
        types::sort(&mut sorted);
        for pair in sorted.windows(2) {
            if let [a, b] = pair
                && a == b
            {
                return Err(PlatformError::DuplicateMpidr(a.bits()));
            }
        }
        let room = self.gic.redistributors.len().unwrap_or(u64::MAX) / REDISTRIBUTOR_BYTES;
        if room < count as u64 {
            return Err(PlatformError::Redistributors(count));
        }
        match self.pmu_ppi {
            Some(intid) if !(16..32).contains(&intid) => Err(PlatformError::NotAPpi(intid)),
            _ => Ok(()),
        }
    }

    fn check_devices(&self) -> Result<(), PlatformError> {
        let fixed = [
            (Some(self.gic.distributor), DISTRIBUTOR_BYTES),
            (self.gic.its, ITS_BYTES),
            (Some(self.uart.base), PRIMECELL_BYTES),
            (self.rtc.map(|rtc| rtc.base), PRIMECELL_BYTES),
        ];
        let smmus = self.smmus.iter().map(|smmu| (Some(smmu.base), SMMU_BYTES));
        let mut taken = self.memory.clone();
        let mut spans = Vec::from([self.gic.redistributors]);
        for (base, bytes) in fixed.into_iter().chain(smmus) {
            if let Some(base) = base {
                spans.push(Span::from_len(base, bytes).ok_or(PlatformError::Device(base))?);
            }
        }
        if let Some(pci) = &self.pci {
            spans.push(pci.ecam_span().ok_or(PlatformError::Ecam)?);
            for window in &pci.windows {
                spans.push(window.span().ok_or(PlatformError::Window(window.cpu))?);
            }
        }
        for span in spans {
            if taken.iter().any(|other| other.overlaps(span)) {
                return Err(PlatformError::Device(span.start()));
            }
            taken.push(span);
        }
        Ok(())
    }

    fn check_pci(&self) -> Result<(), PlatformError> {
        let Some(pci) = &self.pci else {
            return Ok(());
        };
        if pci.buses.is_empty() {
            return Err(PlatformError::Ecam);
        }
        for window in &pci.windows {
            let last = window
                .bytes
                .checked_sub(1)
                .and_then(|rest| window.bus.checked_add(rest));
            let fits = match window.kind {
                WindowKind::Memory64 => last.is_some(),
                WindowKind::Memory32 => last.is_some_and(|last| last <= u64::from(u32::MAX)),
                WindowKind::Io => window.bus != 0 && last.is_some_and(|last| last <= 0xffff),
            };
            // A length of exactly 4 GiB has no 32-bit form.
            let length = window.kind == WindowKind::Memory64 || u32::try_from(window.bytes).is_ok();
            if !fits || !length {
                return Err(PlatformError::Window(window.cpu));
            }
        }
        Ok(())
    }

    fn check_smmus(&self) -> Result<(), PlatformError> {
        let mut functions: Vec<Bdf> = self.behind.iter().map(|(function, _)| *function).collect();
        types::sort(&mut functions);
        let twice = functions
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if a == b));
        let nowhere = self
            .behind
            .iter()
            .any(|(_, place)| *place >= self.smmus.len());
        if self.smmus.len() > MAX_SMMUS || twice || nowhere {
            return Err(PlatformError::Smmus);
        }
        Ok(())
    }

    fn check_rmrs(&self) -> Result<(), PlatformError> {
        if !self.rmrs.is_empty() && (self.pci.is_none() || self.smmus.is_empty()) {
            return Err(PlatformError::RmrWithoutSmmu);
        }
        for rmr in &self.rmrs {
            if rmr.devices.is_empty() || !rmr.window.is_aligned(PageSize::SIZE_64K) {
                return Err(PlatformError::Rmr(rmr.window.start()));
            }
        }
        Ok(())
    }
}

impl PciWindow {
    /// What CPUs see of the window; `None` when it is empty or leaves the space.
    #[must_use]
    pub fn span(&self) -> Option<Span<Ipa>> {
        Span::from_len(self.cpu, self.bytes)
    }
}

/// Where things are on QEMU's `virt` machine, and so on our guests'.
pub mod map {
    use types::Ipa;

    /// RAM.
    pub const RAM: Ipa = Ipa::truncated(0x4000_0000);
    /// The GIC's distributor.
    pub const DISTRIBUTOR: Ipa = Ipa::truncated(0x0800_0000);
    /// The ITS; `GITS_TRANSLATER` is at +0x1_0040.
    pub const ITS: Ipa = Ipa::truncated(0x0808_0000);
    /// The redistributors; room for 123 vCPUs below the console.
    pub const REDISTRIBUTORS: Ipa = Ipa::truncated(0x080a_0000);
    /// The PL011.
    pub const UART: Ipa = Ipa::truncated(0x0900_0000);
    /// The PL031.
    pub const RTC: Ipa = Ipa::truncated(0x0901_0000);
    /// The SMMU.
    pub const SMMU: Ipa = Ipa::truncated(0x0905_0000);
    /// The PCI memory window below 4 GiB.
    pub const PCI_WINDOW32: Ipa = Ipa::truncated(0x1000_0000);
    /// Its length in bytes.
    pub const PCI_WINDOW32_BYTES: u64 = 0x2eff_0000;
    /// The configuration space of 256 buses.
    pub const ECAM: Ipa = Ipa::truncated(0x40_1000_0000);
    /// The PCI memory window above RAM.
    pub const PCI_WINDOW64: Ipa = Ipa::truncated(0x80_0000_0000);
    /// Its length in bytes.
    pub const PCI_WINDOW64_BYTES: u64 = 0x80_0000_0000;
}
