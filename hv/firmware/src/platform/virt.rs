//! The platform our guests have: QEMU's `virt` machine.

use alloc::string::String;
use alloc::vec::Vec;

use types::{Address, Bdf, Span};

use super::{
    Conduit, Gic, GuestPlatform, MAX_SMMUS, Mpidr, PciHost, PciWindow, Peripheral, PlatformError,
    REDISTRIBUTOR_BYTES, SMMU_BYTES, Smmu, Spi, WindowKind, map,
};

impl GuestPlatform {
    /// The layout of QEMU's `virt` machine, which is where Linux, small kernels and their authors
    /// expect things: RAM at 1 GiB, the GIC at 128 MiB, a console and a clock; no PCI.
    ///
    /// # Errors
    /// [`PlatformError::Memory`] unless `ram_bytes` is a multiple of 4 KiB that fits the space, and
    /// [`PlatformError::CpuCount`] for no vCPU or more than [`MAX_CPUS`](super::MAX_CPUS).
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
            uart: Some(Peripheral {
                base: map::UART,
                interrupt: Spi(1),
            }),
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
            messages: self.messages_of(place),
        });
        Some(place)
    }

    /// The DeviceID of an SMMU's own messages: there is an ITS, and no requester has it.
    fn messages_of(&self, place: usize) -> Option<u16> {
        const FIRST: u16 = 0xff00;
        self.gic.its?;
        let buses = &self.pci.as_ref()?.buses;
        let id = FIRST.checked_add(u16::try_from(place).ok()?)?;
        let [_, bus] = id.to_le_bytes();
        (!buses.contains(&bus)).then_some(id)
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
}
