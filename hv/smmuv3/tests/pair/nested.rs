//! A guest's SMMU, the core, the driver and the hardware, one over the other: what devices reach.

use bulkhead_smmuv3::spec::regs;
use bulkhead_smmuv3::{Platform, SmmuBackend};
use hal::PhysMemory;
use hal::fake::{FakeFrames, FakeMemory};
use iommu::{
    Ats, Coherence, DeviceDescription, DeviceId, DomainId, DomainOptions, Extent, IoasId, Iommu,
    Map, MemoryId, MsiRoute, NestedConfig, OwnerId, Path, Permissions, Placement, Residence,
    Target, UnitId, ViommuId,
};
use types::{Iova, Ipa, Pa, Span, StreamId};
use vsmmuv3::{
    Delivery, End, Failure, Features, GuestMemory, Invalidation, NotGuestMemory, Options, Physical,
    Refusal, VSmmu, Width, Work,
};

use crate::board::{BASE, Board, Hardware, Haste, Model};
use crate::engine::{Access, Engine, Fault};

pub(crate) type Core =
    Iommu<SmmuBackend<&'static Hardware, &'static FakeMemory, &'static FakeFrames<'static>, Haste>>;

/// Where each guest sees its RAM.
pub(crate) const RAM: u64 = 0x8000_0000;
pub(crate) const RAM_BYTES: u64 = 2 << 20;

/// Where the guest's driver has its things.
const CMDQ: u64 = RAM + 0x1000;
const EVTQ: u64 = RAM + 0x2000;
const STRTAB: u64 = RAM + 0x1_0000;
pub(crate) const CDS: u64 = RAM + 0x3000;
/// The root, a level-2 and a level-3 table.
pub(crate) const TABLES: [u64; 3] = [RAM + 0x4000, RAM + 0x5000, RAM + 0x6000];
/// Pages for data.
pub(crate) const DATA: u64 = RAM + 0x10_0000;
/// How much higher all of these are for the second SMMU of a VM.
pub(crate) const SHIFT: u64 = 0x8_0000;

/// A guest's memory, at its own addresses.
#[derive(Clone, Copy)]
struct Ram {
    memory: &'static FakeMemory,
    at: u64,
}

impl Ram {
    fn pa(self, ipa: Ipa, bytes: usize) -> Result<Pa, NotGuestMemory> {
        let fail = NotGuestMemory { ipa, bytes };
        let offset = ipa.bits().checked_sub(RAM).ok_or(fail)?;
        let end = offset.checked_add(bytes as u64).ok_or(fail)?;
        if end > RAM_BYTES {
            return Err(fail);
        }
        Ok(Pa::truncated(self.at + offset))
    }
}

impl GuestMemory for Ram {
    fn read(&self, ipa: Ipa, buffer: &mut [u8]) -> Result<(), NotGuestMemory> {
        let pa = self.pa(ipa, buffer.len())?;
        self.memory.read(pa, buffer).unwrap();
        Ok(())
    }

    fn write(&self, ipa: Ipa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        let pa = self.pa(ipa, bytes.len())?;
        self.memory.write(pa, bytes).unwrap();
        Ok(())
    }
}

/// The halves of a VM's RAM.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    Tables,
    Data,
}

impl Part {
    fn offset(self) -> u64 {
        match self {
            Self::Tables => 0,
            Self::Data => RAM_BYTES / 2,
        }
    }
}

/// What translates for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stages {
    Second,
    Both,
}

struct Link {
    virtual_id: u32,
    pub(crate) physical: u32,
    device: DeviceId,
    domain: Option<DomainId>,
}

/// The machine's side of a guest's SMMU, as the hypervisor has it.
struct Machine<'a> {
    core: &'a mut Core,
    viommu: ViommuId,
    links: &'a mut [Link],
}

impl Physical for Machine<'_> {
    fn set_stream(&mut self, stream: StreamId, config: &NestedConfig) -> Result<(), Refusal> {
        let mut links = self.links.iter_mut();
        let link = links
            .find(|link| link.virtual_id == stream.bits())
            .ok_or(Refusal::Failed)?;
        let new = self
            .core
            .create_nested(self.viommu, *config)
            .map_err(|_| Refusal::Refused)?;
        self.core
            .configure(link.device, Some(new))
            .map_err(|_| Refusal::Refused)?;
        if let Some(old) = link.domain.replace(new) {
            self.core.destroy_domain(old).unwrap();
        }
        Ok(())
    }

    fn invalidate(&mut self, batch: &[Invalidation]) -> Result<(), Failure> {
        let entries = batch.iter().map(Invalidation::for_core);
        let done = self.core.invalidate_each(self.viommu, entries);
        done.map(|_| ()).map_err(|_| Failure::Failed)
    }
}

/// A VM with an SMMU of its own, and two devices.
pub(crate) struct Vm {
    pub(crate) smmu: VSmmu,
    ram: Ram,
    pub(crate) ioas: IoasId,
    pub(crate) memory: MemoryId,
    viommu: ViommuId,
    links: Vec<Link>,
    slot: u32,
    /// The machine's SMMU that this one is over.
    unit: u32,
    /// How much higher than the constants its driver's things are.
    shift: u64,
}

/// How a VM's devices are isolated from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Groups {
    Each,
    /// As functions of a device without isolation are.
    Together,
    /// The first VM's disk is behind a bridge to conventional PCI, which sends with an ID of its own.
    Bridged,
}

/// Streams as guests know them.
pub(crate) const DISK: u32 = 8;
pub(crate) const NET: u32 = 0x30;

/// The stream of a bridge to conventional PCI.
pub(crate) const BRIDGE: u32 = 0xff;

pub(crate) struct World {
    pub(crate) board: Board,
    /// The machine's SMMUs; the first is `board`.
    pub(crate) boards: Vec<Board>,
    pub(crate) core: Core,
    pub(crate) vms: Vec<Vm>,
}

fn iova(bits: u64) -> Iova {
    Iova::new(bits).unwrap()
}

impl World {
    /// Two VMs whose drivers have done nothing yet.
    pub(crate) fn cold(model: Model) -> Self {
        Self::grouped(model, Groups::Each)
    }

    fn grouped(model: Model, groups: Groups) -> Self {
        let board = Board::new(model);
        let platform = Platform {
            input_bits: 40,
            coherent: true,
        };
        let units = vec![board.driver()];
        let backend = SmmuBackend::new(units, board.memory, board.frames, platform);
        let mut core = Iommu::new(backend);
        let vms = [(1, [3, 8]), (2, [9, 0x108])]
            .map(|(number, sources)| Vm::new(&board, &mut core, number, sources, groups));
        Self {
            board,
            boards: vec![board],
            core,
            vms: vms.into(),
        }
    }

    /// A machine with one SMMU and a VM that has two over it: `vms[0]` and `vms[1]`, over one memory.
    pub(crate) fn two_over_one() -> Self {
        let mut world = Self::cold(Model::default());
        world.vms.truncate(1);
        let second = world.vms[0].beside(&mut world.core, 0, [0, 0xff]);
        world.vms.push(second);
        world.bring_up(0);
        world.bring_up(1);
        world
    }

    /// A machine with two SMMUs and one VM, whose devices are behind both: `vms[0]` and `vms[1]` are its two SMMUs
    /// over one memory. The machine's stream IDs are the same at either.
    pub(crate) fn two_units() -> Self {
        let boards = [Board::new(Model::default())];
        let boards = vec![boards[0], boards[0].beside(Model::default())];
        let platform = Platform {
            input_bits: 40,
            coherent: true,
        };
        let units = boards.iter().map(Board::driver).collect();
        let backend = SmmuBackend::new(units, boards[0].memory, boards[0].frames, platform);
        let mut core = Iommu::new(backend);
        let first = Vm::new(&boards[0], &mut core, 1, [3, 8], Groups::Each);
        let second = first.beside(&mut core, 1, [3, 8]);
        let mut world = Self {
            board: boards[0],
            boards,
            core,
            vms: vec![first, second],
        };
        world.bring_up(0);
        world.bring_up(1);
        world
    }

    /// The same, of which each VM's devices are of one isolation group.
    pub(crate) fn together() -> Self {
        let mut world = Self::grouped(Model::default(), Groups::Together);
        for vm in 0..2 {
            world.bring_up(vm);
        }
        world
    }

    /// Two VMs, of which the first's disk sends with the ID of a [bridge](BRIDGE).
    pub(crate) fn bridged() -> Self {
        let mut world = Self::grouped(Model::default(), Groups::Bridged);
        for vm in 0..2 {
            world.bring_up(vm);
        }
        world
    }

    /// Two VMs whose drivers translate for both devices.
    pub(crate) fn new() -> Self {
        let mut world = Self::cold(Model::default());
        for vm in 0..2 {
            world.bring_up(vm);
        }
        world
    }

    pub(crate) fn write(&mut self, vm: usize, offset: usize, width: Width, value: u64) {
        let Self { core, vms, .. } = self;
        let vm = &mut vms[vm];
        let mut machine = Machine {
            core,
            viommu: vm.viommu,
            links: &mut vm.links,
        };
        let mut outcome = vm
            .smmu
            .write(offset as u64, width, value, &vm.ram, &mut machine);
        while outcome.work == Work::More {
            outcome = vm.smmu.run(&vm.ram, &mut machine);
        }
        assert_eq!(outcome.health, vsmmuv3::Health::Good);
    }

    pub(crate) fn reset(&mut self, vm: usize) {
        let Self { core, vms, .. } = self;
        let vm = &mut vms[vm];
        let mut machine = Machine {
            core,
            viommu: vm.viommu,
            links: &mut vm.links,
        };
        let mut outcome = vm.smmu.reset(&vm.ram, &mut machine);
        while outcome.work == Work::More {
            outcome = vm.smmu.run(&vm.ram, &mut machine);
        }
        vm.slot = 0;
    }

    fn w32(&mut self, vm: usize, offset: usize, value: u64) {
        self.write(vm, offset, Width::Word, value);
    }

    pub(crate) fn put(&self, vm: usize, at: u64, words: &[u64]) {
        let (ram, shift) = (self.vms[vm].ram, self.vms[vm].shift);
        for (word, n) in words.iter().zip(0..) {
            let ipa = Ipa::new(at + shift + n * 8).unwrap();
            ram.write(ipa, &word.to_le_bytes()).unwrap();
        }
    }

    pub(crate) fn ste(&self, vm: usize, stream: u32, words: [u64; 2]) {
        self.put(vm, STRTAB + u64::from(stream) * 64, &words);
    }

    /// A context descriptor: 39 bits of input, 4 KiB granule.
    pub(crate) fn cd(&self, vm: usize, at: u64, asid: u64, root: u64) {
        let word0 = 25 | 1 << 30 | 1 << 31 | 4 << 32 | 1 << 41 | 1 << 46 | asid << 48;
        self.put(vm, at, &[word0, root, 0, 0]);
    }

    /// Sends commands and a wait.
    pub(crate) fn send(&mut self, vm: usize, commands: &[[u64; 2]]) {
        for command in commands.iter().chain(&[[0x46, 0]]) {
            let slot = self.vms[vm].slot;
            self.put(vm, CMDQ + u64::from(slot & 63) * 16, command);
            self.vms[vm].slot = (slot + 1) & 127;
        }
        let slot = self.vms[vm].slot;
        self.w32(vm, regs::CMDQ_PROD, slot.into());
        let smmu = &self.vms[vm].smmu;
        let consumer = smmu.read(regs::CMDQ_CONS as u64, Width::Word);
        assert_eq!(consumer, u64::from(slot), "all is consumed");
    }

    /// A guest's driver: queues, a linear stream table, one address space for both devices, in which
    /// page 5 leads to the first page of data.
    pub(crate) fn bring_up(&mut self, vm: usize) {
        let shift = self.vms[vm].shift;
        self.write(vm, regs::CMDQ_BASE, Width::Double, (CMDQ + shift) | 6);
        self.write(vm, regs::EVENTQ_BASE, Width::Double, (EVTQ + shift) | 5);
        self.w32(vm, regs::CR0, 0xc);
        self.write(vm, regs::STRTAB_BASE, Width::Double, STRTAB + shift);
        self.w32(vm, regs::STRTAB_BASE_CFG, 6);
        self.put(vm, TABLES[0], &[(TABLES[1] + shift) | 3]);
        self.put(vm, TABLES[1], &[(TABLES[2] + shift) | 3]);
        self.put(vm, TABLES[2] + 5 * 8, &[leaf(DATA + shift)]);
        self.cd(vm, CDS, 1, TABLES[0] + shift);
        for stream in [DISK, NET] {
            self.ste(vm, stream, [1 | 5 << 1 | (CDS + shift), 0]);
        }
        self.w32(vm, regs::CR0, 0xd);
    }

    pub(crate) fn source(&self, vm: usize, stream: u32) -> u32 {
        let mut links = self.vms[vm].links.iter();
        links.find(|l| l.virtual_id == stream).unwrap().physical
    }

    pub(crate) fn device(&self, vm: usize, stream: u32) -> DeviceId {
        let mut links = self.vms[vm].links.iter();
        links.find(|l| l.virtual_id == stream).unwrap().device
    }

    /// Has a device go by stage 2 alone; by the guest's stage 1, as it was, again.
    pub(crate) fn set_stages(&mut self, vm: usize, stream: u32, stages: Stages) {
        let mut links = self.vms[vm].links.iter();
        let link = links.find(|l| l.virtual_id == stream).unwrap();
        let domain = link.domain.filter(|_| stages == Stages::Both);
        self.core.configure(link.device, domain).unwrap();
    }

    pub(crate) fn access(&self, vm: usize, stream: u32, at: u64) -> Access {
        Access {
            sid: self.source(vm, stream),
            ssid: None,
            at,
            write: true,
        }
    }

    /// Where a device's write goes, by what the hardware has cached.
    pub(crate) fn dma(&self, vm: usize, stream: u32, at: u64) -> Result<u64, Fault> {
        let unit = self.vms[vm].unit as usize;
        let access = self.access(vm, stream, at);
        self.boards[unit].hardware.dma(access)
    }

    /// Where it goes by what is in memory.
    pub(crate) fn fresh(&self, vm: usize, stream: u32, at: u64) -> Result<u64, Fault> {
        let access = self.access(vm, stream, at);
        self.board.hardware.look(access, &mut Engine::default())
    }

    /// What the monitor says of an access, from the same tables.
    pub(crate) fn walk(&self, vm: usize, stream: u32, at: u64) -> End {
        let vm = &self.vms[vm];
        let stream = (StreamId::new(stream).unwrap(), None);
        let stage_two = |ipa: Ipa| {
            let iova = Iova::new(ipa.bits()).ok()?;
            Some(self.core.translate(vm.ioas, iova).ok()?.pa)
        };
        let walk = vm
            .smmu
            .walk(stream, at, vsmmuv3::Access::Write, &vm.ram, stage_two);
        walk.end()
    }

    /// Where a guest's address lies.
    pub(crate) fn pa(&self, vm: usize, ipa: u64) -> u64 {
        self.vms[vm].ram.at + (ipa - RAM)
    }

    /// Hands the hardware's records on; returns them with what became of each.
    pub(crate) fn events(&mut self) -> Vec<([u64; 4], Delivery)> {
        let Self { core, vms, .. } = self;
        let mut records = Vec::new();
        for unit in (0..).take(self.boards.len()) {
            let driver = core.backend_mut().unit_mut(UnitId::new(unit)).unwrap();
            driver.drain(64, |event| records.push((unit, event)));
        }
        let mut seen = Vec::new();
        for (unit, record) in records {
            for vm in vms.iter_mut().filter(|vm| vm.unit == unit) {
                let mut links = vm.links.iter();
                let Some(link) = links.find(|link| link.physical == record.sid()) else {
                    continue;
                };
                let stream = StreamId::new(link.virtual_id).unwrap();
                let (delivery, _) = vm.smmu.report(stream, &record, &vm.ram);
                seen.push((record.0, delivery));
            }
        }
        seen
    }

    /// The guest's next record.
    pub(crate) fn guest_event(&mut self, vm: usize) -> Option<[u64; 4]> {
        let smmu = &self.vms[vm].smmu;
        let [producer, consumer] =
            [regs::EVENTQ_PROD, regs::EVENTQ_CONS].map(|at| smmu.read(at as u64, Width::Word));
        if producer == consumer {
            return None;
        }
        let at = EVTQ + self.vms[vm].shift + (consumer & 31) * 32;
        let mut bytes = [0; 32];
        let ipa = Ipa::new(at).unwrap();
        self.vms[vm].ram.read(ipa, &mut bytes).unwrap();
        self.w32(vm, regs::EVENTQ_CONS, (consumer + 1) & 63);
        let (words, _) = bytes.as_chunks::<8>();
        Some(std::array::from_fn(|n| u64::from_le_bytes(words[n])))
    }
}

/// A stage-1 page: read and write, not global, accessed.
pub(crate) fn leaf(ipa: u64) -> u64 {
    ipa | 3 | 1 << 10 | 1 << 11
}

impl Vm {
    fn new(board: &Board, core: &mut Core, number: u32, sources: [u32; 2], groups: Groups) -> Self {
        let owner = OwnerId::new(number);
        let at = BASE + (8 << 20) + u64::from(number) * RAM_BYTES;
        let extent = Extent {
            pa: Pa::new(at).unwrap(),
            bytes: RAM_BYTES,
        };
        let ioas = core.create_ioas(owner).unwrap();
        let memory = core.add_ram(owner, &[extent]).unwrap();
        let ram = Ram {
            memory: board.memory,
            at,
        };
        let vm = Self::behind(core, number, (ioas, memory, ram), (0, 0), (sources, groups));
        vm.map(core, Part::Tables);
        vm.map(core, Part::Data);
        vm
    }

    /// The VM's SMMU over the machine's second one.
    pub(crate) fn beside(&self, core: &mut Core, unit: u32, sources: [u32; 2]) -> Self {
        let number = core.ioas(self.ioas).unwrap().owner().bits();
        let memory = (self.ioas, self.memory, self.ram);
        Self::behind(core, number, memory, (unit, SHIFT), (sources, Groups::Each))
    }

    fn behind(
        core: &mut Core,
        number: u32,
        (ioas, memory, ram): (IoasId, MemoryId, Ram),
        (unit, shift): (u32, u64),
        (sources, groups): ([u32; 2], Groups),
    ) -> Self {
        let owner = OwnerId::new(number);
        let features = {
            let unit = &core.backend().units()[unit as usize];
            let options = Options {
                stream_bits: 8,
                ..Options::default()
            };
            Features::derive(unit.identity(), options).unwrap()
        };
        let mut known = None;
        let devices = sources.map(|source| {
            let group = known
                .unwrap_or_else(|| core.add_group(UnitId::new(unit), Residence::Free).unwrap());
            known = (groups == Groups::Together).then_some(group);
            let description = DeviceDescription {
                group,
                sources: &[source],
                aliases: match (groups, source) {
                    (Groups::Bridged, 3) => &[BRIDGE],
                    _ => &[],
                },
                reserved: &[],
                path: Path::Redirected,
                msi: MsiRoute::Doorbell,
                coherence: Coherence::CoherentAlways,
                ats: Ats::Off,
            };
            core.add_device(&description).unwrap()
        });
        for device in devices {
            core.bind(device, owner).unwrap();
        }
        let options = DomainOptions {
            nest_parent: true,
            dirty_tracking: false,
        };
        let parent = core.create_domain(devices[0], ioas, options).unwrap();
        let viommu = core.create_viommu(devices[0], parent).unwrap();
        let mut vm = Self {
            smmu: VSmmu::new(features),
            ram,
            ioas,
            memory,
            viommu,
            links: Vec::new(),
            slot: 0,
            unit,
            shift,
        };
        for ((device, physical), virtual_id) in devices.into_iter().zip(sources).zip([DISK, NET]) {
            core.attach(device, Target::Domain(parent)).unwrap();
            core.create_vdevice(viommu, device, virtual_id.into())
                .unwrap();
            let none = core.create_nested(viommu, NestedConfig::ABORT).unwrap();
            core.configure(device, Some(none)).unwrap();
            vm.links.push(Link {
                virtual_id,
                physical,
                device,
                domain: Some(none),
            });
            let mut machine = Machine {
                core,
                viommu,
                links: &mut vm.links,
            };
            let stream = StreamId::new(virtual_id).unwrap();
            let added = vm.smmu.add_stream(stream, &vm.ram, &mut machine);
            assert_eq!(added.unwrap().work, Work::Done);
        }
        vm
    }

    /// Shows a half of the RAM to the devices.
    pub(crate) fn map(&self, core: &mut Core, part: Part) {
        let request = Map {
            placement: Placement::Fixed(iova(RAM + part.offset())),
            memory: self.memory,
            offset: part.offset(),
            bytes: RAM_BYTES / 2,
            permissions: Permissions::ReadWrite,
        };
        core.map(self.ioas, &request).unwrap();
    }

    /// Takes a half of the RAM out of their reach.
    pub(crate) fn unmap(&self, core: &mut Core, part: Part) {
        self.try_unmap(core, part).unwrap();
    }

    pub(crate) fn try_unmap(&self, core: &mut Core, part: Part) -> Result<(), iommu::Error> {
        let span = Span::from_len(iova(RAM + part.offset()), RAM_BYTES / 2).unwrap();
        core.unmap(self.ioas, span).map(drop)
    }
}
