//! A device in the hands of a program: Linux's VFIO. [Linux, include/uapi/linux/vfio.h]

use devtool::edu::{BAR, Registers};

use crate::Failure;
use crate::linux::{Errno, File, Memory, Open};

/// Requests are numbered from here.
const BASE: usize = 0x3b64;
const GET_API_VERSION: usize = BASE;
const SET_IOMMU: usize = BASE + 2;
const GROUP_GET_STATUS: usize = BASE + 3;
const GROUP_SET_CONTAINER: usize = BASE + 4;
const GROUP_GET_DEVICE_FD: usize = BASE + 6;
const DEVICE_GET_REGION_INFO: usize = BASE + 8;
const DEVICE_SET_IRQS: usize = BASE + 10;
const IOMMU_MAP_DMA: usize = BASE + 13;
const IOMMU_UNMAP_DMA: usize = BASE + 14;

const TYPE1V2_IOMMU: usize = 3;
/// Regions of a PCI function: its BARs by number, then these.
const CONFIG_REGION: u32 = 7;
const MSI: u32 = 1;

#[repr(C)]
#[derive(Default)]
struct Status {
    argsz: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct RegionInfo {
    argsz: u32,
    flags: u32,
    index: u32,
    cap_offset: u32,
    size: u64,
    offset: u64,
}

#[repr(C)]
#[derive(Default)]
struct Map {
    argsz: u32,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
}

#[repr(C)]
#[derive(Default)]
struct Unmap {
    argsz: u32,
    flags: u32,
    iova: u64,
    size: u64,
}

#[repr(C)]
struct IrqSet {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    file: i32,
}

#[repr(C)]
struct Name([u8; 16]);

fn size<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

/// What a device may do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Only read it.
    Read,
    /// Read and write it.
    ReadWrite,
}

/// An IO address space of a program's own, with one group of devices in it.
pub(crate) struct Container {
    container: File,
    group: File,
}

impl Container {
    /// Takes a group, whose number is given. The devices of it must all have been left to VFIO.
    ///
    /// # Errors
    /// It cannot be had; the kernel's log says more.
    pub(crate) fn open(group: &str) -> Result<Self, Failure> {
        const VIABLE: u32 = 1;
        let at = |what| move |error| Failure::Call(what, error);
        let container = File::open(&["/dev/vfio/vfio"], Open::ReadWrite)
            .map_err(at("/dev/vfio/vfio cannot be opened"))?;
        if container.control(GET_API_VERSION, 0) != Ok(0) {
            return Err(Failure::Wrong("VFIO has another version"));
        }
        let group = File::open(&["/dev/vfio/", group], Open::ReadWrite)
            .map_err(at("the group cannot be opened"))?;
        let mut status = Status {
            argsz: size::<Status>(),
            ..Status::default()
        };
        group
            .exchange(GROUP_GET_STATUS, &mut status)
            .map_err(at("the group has no status"))?;
        if status.flags & VIABLE == 0 {
            return Err(Failure::Wrong("the group is not viable"));
        }
        let mut number = container.number();
        group
            .exchange(GROUP_SET_CONTAINER, &mut number)
            .map_err(at("the group cannot be put into a container"))?;
        container
            .control(SET_IOMMU, TYPE1V2_IOMMU)
            .map_err(at("the container cannot have an IOMMU"))?;
        Ok(Self { container, group })
    }

    /// Maps memory for the devices.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn map(&self, memory: &Memory, iova: u64, access: Access) -> Result<(), Errno> {
        let flags = match access {
            Access::Read => 1,
            Access::ReadWrite => 3,
        };
        let mut map = Map {
            argsz: size::<Map>(),
            flags,
            vaddr: memory.address() as u64,
            iova,
            size: memory.bytes() as u64,
        };
        self.container.exchange(IOMMU_MAP_DMA, &mut map).map(|_| ())
    }

    /// Takes it away.
    ///
    /// # Errors
    /// The kernel's, or another number of bytes was mapped.
    pub(crate) fn unmap(&self, memory: &Memory, iova: u64) -> Result<(), Failure> {
        let bytes = memory.bytes() as u64;
        let mut unmap = Unmap {
            argsz: size::<Unmap>(),
            flags: 0,
            iova,
            size: bytes,
        };
        self.container
            .exchange(IOMMU_UNMAP_DMA, &mut unmap)
            .map_err(|error| Failure::Call("a mapping cannot be taken away", error))?;
        if unmap.size != bytes {
            return Err(Failure::Differs("bytes unmapped", unmap.size, bytes));
        }
        Ok(())
    }

    /// Takes a device of the group, by its address, and lets it decode and master the bus.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn device(&self, function: &str) -> Result<Device, Failure> {
        const COMMAND: u64 = 4;
        const MEMORY_AND_BUS_MASTER: u16 = 6;
        let mut name = Name([0; 16]);
        for (place, byte) in name.0.iter_mut().take(15).zip(function.bytes()) {
            *place = byte;
        }
        let number = self
            .group
            .exchange(GROUP_GET_DEVICE_FD, &mut name)
            .map_err(|error| Failure::Call("the device cannot be had", error))?;
        let file = File::of_number(number);
        let config = region(&file, CONFIG_REGION)?.offset;
        let failed = |error| Failure::Call("the configuration space", error);
        let command = file.read16(config + COMMAND).map_err(failed)?;
        file.write16(config + COMMAND, command | MEMORY_AND_BUS_MASTER)
            .map_err(failed)?;
        let bar = region(&file, 0)?;
        if bar.size != BAR as u64 {
            return Err(Failure::Differs("bytes of BAR 0", bar.size, BAR as u64));
        }
        let registers = file
            .map(bar.offset, BAR)
            .map_err(|error| Failure::Call("BAR 0 cannot be mapped", error))?;
        Ok(Device { file, registers })
    }
}

fn region(device: &File, index: u32) -> Result<RegionInfo, Failure> {
    let mut info = RegionInfo {
        argsz: size::<RegionInfo>(),
        index,
        ..RegionInfo::default()
    };
    device
        .exchange(DEVICE_GET_REGION_INFO, &mut info)
        .map_err(|error| Failure::Call("a region of the device", error))?;
    Ok(info)
}

/// A device that is the program's. It is reset when it is dropped.
pub(crate) struct Device {
    file: File,
    registers: Memory,
}

impl Device {
    /// Has its message interrupt counted.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn interrupts(&self) -> Result<File, Failure> {
        const DATA_EVENTFD: u32 = 1 << 2;
        const ACTION_TRIGGER: u32 = 1 << 5;
        let failed = |error| Failure::Call("the message interrupt cannot be had", error);
        let counter = File::event().map_err(failed)?;
        let mut set = IrqSet {
            argsz: size::<IrqSet>(),
            flags: DATA_EVENTFD | ACTION_TRIGGER,
            index: MSI,
            start: 0,
            count: 1,
            file: counter.number(),
        };
        self.file
            .exchange(DEVICE_SET_IRQS, &mut set)
            .map_err(failed)?;
        Ok(counter)
    }
}

impl Registers for Device {
    fn read32(&self, offset: usize) -> u32 {
        self.registers.read32(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.registers.write32(offset, value);
    }

    fn read64(&self, offset: usize) -> u64 {
        self.registers.read64(offset)
    }

    fn write64(&self, offset: usize, value: u64) {
        self.registers.write64(offset, value);
    }
}
