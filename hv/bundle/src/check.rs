//! What must hold of a manifest, however it came about.

use alloc::{string::String, vec, vec::Vec};
use core::fmt::{self, Write as _};

use crate::{
    ConsoleUart, Field, Firmware, GuestDevice, HostDevice, IommuMode, MANIFEST_NAME, MAX_CPUS,
    MAX_DEVICES, MAX_SMMU, MAX_VMS, MEMORY_ALIGNMENT, Manifest, Place, Start, TcePolicy, UnsafeDma,
    VmConfig, archive::is_file_name,
};

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
/// MSI windows start and end on the largest CPU page.
const MSI_ALIGNMENT: u64 = 64 << 10;
/// MSI windows lie in the smallest IPA space of a large machine.
const MSI_LIMIT: u64 = 1 << 40;

/// A value that does not hold, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ManifestError {
    /// Where.
    pub place: Place,
    /// What.
    pub problem: Invalid,
}

/// Text from outside, as messages show it: what is not printable ASCII is escaped. The `Debug` of a string
/// would do as much with the tables of all of Unicode.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for c in self.0.chars() {
            match c {
                ' '..='~' if c != '"' && c != '\\' => f.write_char(c)?,
                _ => write!(f, "\\u{{{:x}}}", u32::from(c))?,
            }
        }
        f.write_str("\"")
    }
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
    #[error("{} is not a name: 1 to {MAX_NAME} of a-z, 0-9, - and _, starting with a letter", Quoted(.0))]
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
    #[error("{} cannot be the name of a file in a bundle", Quoted(.0))]
    FileName(String),
    /// A device tree of the user's own for a guest that gets ACPI.
    #[error("a device tree goes with firmware \"dt\" only")]
    DtbWithAcpi,
    /// To start after a VM that is not there, or after itself.
    #[error("there is no other VM {} to start after", Quoted(.0))]
    StartAfter(String),
    /// VMs that wait for each other.
    #[error("it waits for itself by way of {}", Quoted(.0))]
    StartCycle(String),
    /// Another VM has this serial port.
    #[error("vm[{0}] has this serial port already")]
    SerialTaken(usize),
    /// A serial port for a VM that has no console.
    #[error("a VM without a console has no use for a serial port")]
    SerialWithoutConsole,
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
        let mut boot = Owners::default();
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
        Ok(Self::checked(vms))
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
        if vm.console.uart == ConsoleUart::None {
            return Err((Field::Serial, Invalid::SerialWithoutConsole));
        }
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

/// Who has a device: the VM, and which of its devices it is. By devices, ascending.
#[derive(Default)]
struct Owners(Vec<(HostDevice, (usize, usize))>);

impl Owners {
    /// Where a device is, or belongs.
    fn place(&self, device: HostDevice) -> Result<usize, usize> {
        self.0.binary_search_by(|(owned, _)| owned.cmp(&device))
    }

    fn get(&self, device: HostDevice) -> Option<(usize, usize)> {
        let place = self.place(device).ok()?;
        self.0.get(place).map(|(_, owner)| *owner)
    }

    fn add(&mut self, device: HostDevice, owner: (usize, usize)) {
        let (Ok(place) | Err(place)) = self.place(device);
        self.0.insert(place, (device, owner));
    }
}

/// No device is given away twice, none is shown where another one is. Two VMs may name one device
/// when they cannot both start at boot: the second takes it over.
fn check_devices(index: usize, vm: &VmConfig, boot: &mut Owners) -> Result<(), ManifestError> {
    let mut places = Vec::new();
    let mut own = Owners::default();
    for (device_index, device) in vm.devices.iter().enumerate() {
        let at = |field, problem| ManifestError {
            place: Place {
                vm: Some(index),
                device: Some(device_index),
                field,
            },
            problem,
        };
        if device.smmu > MAX_SMMU {
            let (value, max) = (device.smmu.into(), MAX_SMMU.into());
            return Err(at(Field::Smmu, Invalid::Range { value, min: 0, max }));
        }
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
            if places.contains(&guest) {
                return Err(at(Field::Guest, Invalid::GuestPlaceTaken(guest)));
            }
            places.push(guest);
        }
        let taken = own.get(device.host).or_else(|| {
            let others = (vm.start == Start::Boot).then_some(&*boot)?;
            others.get(device.host)
        });
        if let Some((taker, taker_device)) = taken {
            return Err(at(
                Field::Host,
                Invalid::DeviceTaken {
                    device: device.host,
                    vm: taker,
                    index: taker_device,
                },
            ));
        }
        own.add(device.host, (index, device_index));
    }
    if vm.start == Start::Boot {
        for (device, owner) in own.0 {
            boot.add(device, owner);
        }
    }
    Ok(())
}
