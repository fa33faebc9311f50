//! Memory of several VMs behind two SMMUs, of which one breaks: none gets another owner under a device's access.

use bulkhead_smmuv3::spec::Command;
use bulkhead_smmuv3::{Error, Platform, SmmuBackend};
use iommu::{
    Ats, Coherence, DeviceDescription, DeviceId, Endpoint, Extent, IoasId, Iommu, Map, MemoryId,
    MsiRoute, OwnerId, Path, Permissions, Placement, Residence, Target, UnitId,
};
use proptest::prelude::{ProptestConfig, any, proptest};
use types::{Iova, Pa, Span};

use crate::board::{BASE, BYTES, Board, Broken, Model};
use crate::engine::{Access, Engine};
use crate::nested::Core;

/// VMs and their devices: unit and stream.
const VMS: [&[(u32, u32)]; 4] = [&[(0, 3)], &[(1, 3)], &[(0, 8), (1, 8)], &[(0, 9)]];
/// The VM that has nothing behind the SMMU that breaks.
const ELSEWHERE: usize = 1;
/// Pages that are given to VMs.
const PAGES: usize = 6;
const PAGE: u64 = 4096;

struct Device {
    id: DeviceId,
    endpoint: Endpoint,
    attached: bool,
}

struct Vm {
    owner: OwnerId,
    ioas: IoasId,
    devices: Vec<Device>,
}

struct World {
    boards: [Board; 2],
    core: Core,
    vms: Vec<Vm>,
    /// Whose each page is, and as what.
    pages: [Option<(usize, MemoryId)>; PAGES],
}

/// Where a page is, and where its VM's devices find it.
fn place(page: usize) -> (Pa, Span<Iova>) {
    let offset = page as u64 * PAGE;
    let pa = Pa::new(BASE + BYTES / 2 + offset).unwrap();
    let at = Iova::new(0x10_0000 + offset).unwrap();
    (pa, Span::from_len(at, PAGE).unwrap())
}

impl World {
    fn new() -> Self {
        let first = Board::new(Model::default());
        let boards = [first, first.beside(Model::default())];
        let platform = Platform {
            input_bits: 40,
            coherent: true,
        };
        let units = boards.iter().map(Board::driver).collect();
        let backend = SmmuBackend::new(units, first.memory, first.frames, platform);
        let mut core = Iommu::new(backend);
        let mut number = 0;
        let vms = VMS.map(|devices| {
            number += 1;
            let owner = OwnerId::new(number);
            let devices = devices.iter().map(|(unit, source)| {
                let unit = UnitId::new(*unit);
                let group = core.add_group(unit, Residence::Free).unwrap();
                let description = DeviceDescription {
                    group,
                    sources: &[*source],
                    aliases: &[],
                    reserved: &[],
                    path: Path::Redirected,
                    msi: MsiRoute::Doorbell,
                    coherence: Coherence::CoherentAlways,
                    ats: Ats::Off,
                };
                let id = core.add_device(&description).unwrap();
                core.bind(id, owner).unwrap();
                let source = *source;
                Device {
                    id,
                    endpoint: Endpoint { unit, source },
                    attached: false,
                }
            });
            let devices = devices.collect();
            let ioas = core.create_ioas(owner).unwrap();
            Vm {
                owner,
                ioas,
                devices,
            }
        });
        Self {
            boards,
            core,
            vms: vms.into(),
            pages: [None; PAGES],
        }
    }

    /// What any SMMU may still do to a page.
    fn is_under_way(&self, page: Pa) -> bool {
        let mut boards = self.boards.iter();
        boards.any(|board| board.hardware.under_way.borrow().contains_key(&page.bits()))
    }

    /// A page that is nobody's becomes a VM's.
    fn give(&mut self, page: usize, vm: usize) {
        let (pa, span) = place(page);
        if self.pages[page].is_some() {
            return;
        }
        assert!(!self.is_under_way(pa), "page {page} is given to {vm}");
        let Vm { owner, ioas, .. } = self.vms[vm];
        let extent = Extent { pa, bytes: PAGE };
        let memory = self.core.add_ram(owner, &[extent]).unwrap();
        let request = Map {
            placement: Placement::Fixed(span.start()),
            memory,
            offset: 0,
            bytes: PAGE,
            permissions: Permissions::ReadWrite,
        };
        self.core.map(ioas, &request).unwrap();
        self.pages[page] = Some((vm, memory));
    }

    /// It is nobody's again, unless the core keeps it.
    fn take(&mut self, page: usize) {
        let (pa, span) = place(page);
        let Some((vm, memory)) = self.pages[page] else {
            return;
        };
        let taken = self.core.unmap(self.vms[vm].ioas, span).map(drop);
        let taken = taken.and_then(|()| self.core.destroy_memory(memory));
        match taken {
            Ok(()) => {
                assert!(!self.is_under_way(pa), "page {page} is nobody's");
                self.pages[page] = None;
            }
            Err(error) => assert_ne!(vm, ELSEWHERE, "page {page} is kept: {error}"),
        }
    }

    fn attach(&mut self, vm: usize, device: usize) {
        let ioas = self.vms[vm].ioas;
        let device = &mut self.vms[vm].devices[device];
        if device.attached {
            self.core.detach(device.id).unwrap_or_else(|error| {
                assert_eq!(device.endpoint.unit.bits(), 0, "{error}");
                // It aborts by now.
                self.core.detach(device.id).unwrap();
            });
            device.attached = false;
        } else {
            let attached = self.core.attach(device.id, Target::Ioas(ioas));
            assert!(attached.is_ok() || device.endpoint.unit.bits() == 0);
            device.attached = attached.is_ok();
        }
    }

    /// An access, and the walk that leads to it.
    fn dma(&mut self, vm: usize, device: usize, page: usize) {
        let (pa, span) = place(page);
        let endpoint = self.vms[vm].devices[device].endpoint;
        let board = self.boards[endpoint.unit.bits() as usize];
        if let Ok(at) = board.dma(endpoint.source, span.start().bits()) {
            assert_eq!(at, pa.bits());
            let owner = self.pages[page].expect("a page of somebody's").0;
            assert_eq!(owner, vm, "page {page}");
            let root = self.core.backend().read_entry(endpoint).unwrap().s2ttb();
            let mut under_way = board.hardware.under_way.borrow_mut();
            under_way.extend([(at, false), (root, false)]);
        }
    }

    /// Tables that an SMMU may be walking are not used for anything else.
    fn check(&self) {
        for board in &self.boards {
            for page in board.hardware.under_way.borrow().keys() {
                let pa = Pa::new(*page).unwrap();
                let is_data = *page >= BASE + BYTES / 2;
                assert!(is_data || board.frames.is_live(pa), "table at {pa}");
            }
        }
    }

    fn first_is_lost(&self) -> bool {
        self.core.backend().units()[0].is_lost()
    }

    fn step(&mut self, [kind, which, more]: [u8; 3]) {
        let vm = usize::from(which) % VMS.len();
        let device = usize::from(which >> 4) % VMS[vm].len();
        let page = usize::from(more) % PAGES;
        match kind % 8 {
            0 | 1 => self.give(page, vm),
            2 => self.take(page),
            3 => self.attach(vm, device),
            4..=6 => self.dma(vm, device, page),
            _ => {
                // Somebody has a reason of his own to tell the first one something.
                let unit = self.core.backend_mut().unit_mut(UnitId::new(0));
                let _ = unit.unwrap().send(&[Command::CFGI_ALL]);
            }
        }
        self.check();
    }

    /// Everybody ends; what is left over is kept for ever.
    fn end(&mut self) {
        for vm in 0..self.vms.len() {
            for device in 0..self.vms[vm].devices.len() {
                if self.vms[vm].devices[device].attached {
                    self.attach(vm, device);
                    self.check();
                }
            }
        }
        for page in 0..PAGES {
            self.take(page);
        }
        self.check();
        let kept = |page: &Option<(usize, MemoryId)>| page.is_some();
        if !self.first_is_lost() {
            assert!(!self.pages.iter().any(kept), "what is over is anybody's");
        }
        // A VM elsewhere comes and goes as ever, and leaves nothing behind.
        let live = self.boards[0].frames.live_blocks();
        let free = self.pages.iter().position(|page| !kept(page));
        self.attach(ELSEWHERE, 0);
        if let Some(page) = free {
            self.give(page, ELSEWHERE);
            self.dma(ELSEWHERE, 0, page);
            self.take(page);
        }
        self.attach(ELSEWHERE, 0);
        self.check();
        assert_eq!(self.boards[0].frames.live_blocks(), live);
    }
}

/// All VMs have their devices, and a page each, which they have just used.
fn busy() -> World {
    let mut world = World::new();
    for (vm, devices) in VMS.iter().enumerate() {
        world.give(vm, vm);
        for device in 0..devices.len() {
            world.attach(vm, device);
        }
    }
    for (vm, devices) in VMS.iter().enumerate() {
        for device in 0..devices.len() {
            world.dma(vm, device, vm);
        }
    }
    world
}

/// One of them breaks, and is noticed by a command that concerns no VM.
fn broken(broken: Broken) -> World {
    let mut world = busy();
    world.boards[0].hardware.broken.set(broken);
    let unit = world.core.backend_mut().unit_mut(UnitId::new(0)).unwrap();
    assert_eq!(unit.send(&[Command::CFGI_ALL]), Err(Error::Timeout));
    world
}

#[test]
fn an_access_is_under_way_until_a_sync_behind_an_invalidation() {
    // What the other tests rely on.
    let mut world = busy();
    let (pa, _) = place(0);
    assert!(world.is_under_way(pa));
    let unit = world.core.backend_mut().unit_mut(UnitId::new(0)).unwrap();
    unit.send(&[Command::CFGI_ALL]).unwrap();
    assert!(!world.is_under_way(pa));
    world.end();
}

#[test]
fn whoever_had_a_device_behind_a_lost_smmu_keeps_its_memory_and_nobody_else_does() {
    for kind in [Broken::Queue, Broken::Frozen, Broken::Everything] {
        let mut world = broken(kind);
        assert!(world.first_is_lost());
        // VM 2 has another device, behind the other one.
        for (page, vm) in [(0, 0), (2, 2), (3, 3)] {
            world.take(page);
            assert_eq!(world.pages[page].map(|page| page.0), Some(vm), "{kind:?}");
        }
        world.take(ELSEWHERE);
        assert!(world.pages[ELSEWHERE].is_none());
        world.end();
        let left = world.pages.map(|page| page.map(|page| page.0));
        assert_eq!(left, [Some(0), None, Some(2), Some(3), None, None]);
    }
}

#[test]
fn one_that_only_got_stuck_keeps_nothing() {
    let mut world = broken(Broken::Stuck);
    let unit = &world.core.backend().units()[0];
    assert!(unit.is_off() && !unit.is_lost());
    world.end();
    assert!(world.pages.iter().all(Option::is_none));
}

#[test]
fn a_vm_that_left_a_lost_smmu_before_keeps_nothing() {
    let mut world = busy();
    world.attach(0, 0);
    let mut world = {
        world.boards[0].hardware.broken.set(Broken::Queue);
        let unit = world.core.backend_mut().unit_mut(UnitId::new(0)).unwrap();
        assert_eq!(unit.send(&[Command::CFGI_ALL]), Err(Error::Timeout));
        world
    };
    assert!(world.first_is_lost());
    world.take(0);
    assert!(world.pages[0].is_none());
    world.end();
}

#[test]
fn what_an_smmu_read_just_before_it_got_lost_is_kept() {
    let mut world = World::new();
    world.give(0, 0);
    let (pa, span) = place(0);
    let hardware = world.boards[0].hardware;
    // The device tries all the time, and succeeds when the entry is there, which the SMMU is still to be told.
    *hardware.watch.borrow_mut() = Some(Box::new(move |hardware| {
        let access = Access {
            sid: VMS[0][0].1,
            ssid: None,
            at: span.start().bits(),
            write: true,
        };
        if let Ok(at) = hardware.look(access, &mut Engine::default()) {
            hardware.under_way.borrow_mut().insert(at, false);
            hardware.broken.set(Broken::Queue);
        }
    }));
    world.attach(0, 0);
    let is_attached = world.vms[0].devices[0].attached;
    assert_eq!((is_attached, world.first_is_lost()), (false, true));
    assert!(world.is_under_way(pa));
    world.take(0);
    assert!(world.pages[0].is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn no_memory_gets_another_owner_under_an_access(
        before in proptest::collection::vec(any::<[u8; 3]>(), 0..40),
        kind in 0..6_u8,
        after in proptest::collection::vec(any::<[u8; 3]>(), 0..60),
    ) {
        let mut world = busy();
        before.into_iter().for_each(|step| world.step(step));
        let kind = match kind {
            0 => Broken::No,
            1 => Broken::Stuck,
            2 => Broken::Everything,
            3 => Broken::Command { nth: 0, times: 99 },
            4 => Broken::Frozen,
            _ => Broken::Queue,
        };
        world.boards[0].hardware.broken.set(kind);
        after.into_iter().for_each(|step| world.step(step));
        world.end();
    }
}
