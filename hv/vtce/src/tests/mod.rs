//! Guests' calls down to a platform in memory.

mod calls;
mod hostile;
mod model;
mod windows;

use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use iommu::{
    Ats, Coherence, DeviceDescription, DeviceId, DomainId, Extent, IoasId, Iommu, MemoryId,
    MsiRoute, OwnerId, Path, Permissions, Residence, Target, UnitId,
};
use tce::fake::{BUID, FakePlatform};
use tce::{AuditScope, PaprBackend, Tce};
use types::{Ipa, Pa, PageSize, Span};

use crate::{
    Answer, BridgeOptions, Dma, GuestMemory, NotMemory, Outcome, Policy, Service, Slot, Status,
};

pub(super) const GET: u64 = 0x1c;
pub(super) const PUT: u64 = 0x20;
pub(super) const STUFF: u64 = 0x138;
pub(super) const INDIRECT: u64 = 0x13c;

pub(super) const VM: OwnerId = OwnerId::new(1);
pub(super) const OTHER_VM: OwnerId = OwnerId::new(2);
/// The default window's table, as the guest knows it.
pub(super) const LIOBN: u64 = 0x8000_0000;
/// The other guest's.
pub(super) const OTHER_LIOBN: u64 = 0x8000_0300;
pub(super) const MEG: u64 = 1 << 20;
/// Guest memory in three ranges: where, how much, from which physical address on, for what. The first
/// two follow one another for the guest and not in the machine; the second is not even aligned alike.
pub(super) const RAM: [(u64, u64, u64, Permissions); 3] = [
    (0, 64 * MEG, 0x10_0000_0000, Permissions::ReadWrite),
    (64 * MEG, 64 * MEG, 0x20_0001_0000, Permissions::ReadWrite),
    (256 * MEG, 32 * MEG, 0x30_0000_0000, Permissions::Read),
];
pub(super) const OTHER_RAM: u64 = 0x40_0000_0000;
/// Where lists are put.
pub(super) const LIST: u64 = 0x10_0000;

/// Guest memory of which the first few pages are really there.
pub(super) struct Ram {
    bytes: RefCell<Vec<u8>>,
    /// How often it was read.
    pub(super) reads: Cell<u32>,
}

impl Ram {
    pub(super) fn put_list(&self, at: u64, list: &[u64]) {
        let mut bytes = self.bytes.borrow_mut();
        let from = usize::try_from(at - LIST).unwrap();
        for (slot, tce) in bytes[from..].chunks_mut(8).zip(list) {
            slot.copy_from_slice(&tce.to_be_bytes());
        }
    }
}

impl GuestMemory for Ram {
    fn read(&self, at: Ipa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        self.reads.set(self.reads.get() + 1);
        let wrong = NotMemory {
            at,
            bytes: buffer.len(),
        };
        let from = at.bits().checked_sub(LIST).ok_or(wrong)?;
        let from = usize::try_from(from).map_err(|_| wrong)?;
        let bytes = self.bytes.borrow();
        let there = bytes.get(from..from + buffer.len()).ok_or(wrong)?;
        buffer.copy_from_slice(there);
        Ok(())
    }
}

pub(super) type Core = Iommu<PaprBackend<FakePlatform>>;

/// A VM behind the first host bridge, and another one behind the second.
pub(super) struct Rig {
    pub(super) core: Core,
    pub(super) dma: Dma,
    pub(super) other: Dma,
    pub(super) ram: Ram,
    pub(super) memories: Vec<MemoryId>,
    pub(super) ioas: IoasId,
    pub(super) domain: DomainId,
    pub(super) device: DeviceId,
}

fn attached(core: &mut Core, unit: u32, owner: OwnerId) -> (IoasId, DomainId, DeviceId) {
    let group = core.add_group(UnitId::new(unit), Residence::Free).unwrap();
    // Two devices that the host bridge cannot tell apart.
    let devices = [(); 2].map(|()| {
        core.add_device(&DeviceDescription {
            group,
            sources: &[],
            aliases: &[0],
            reserved: &[],
            path: Path::Redirected,
            msi: MsiRoute::Checked,
            coherence: Coherence::Coherent,
            ats: Ats::Off,
        })
        .unwrap()
    });
    let ioas = core.create_ioas(owner).unwrap();
    let domains = devices.map(|device| {
        core.bind(device, owner).unwrap();
        core.attach(device, Target::Ioas(ioas)).unwrap()
    });
    assert_eq!(domains[0], domains[1]);
    (ioas, domains[0], devices[0])
}

fn slot(memory: MemoryId, at: u64, bytes: u64, permissions: Permissions, page: PageSize) -> Slot {
    Slot {
        span: Span::from_len(Ipa::new(at).unwrap(), bytes).unwrap(),
        memory,
        offset: 0,
        permissions,
        page: Some(page),
    }
}

pub(super) fn options(number: u8, ioas: IoasId, domain: DomainId) -> BridgeOptions {
    BridgeOptions {
        number,
        buid: BUID + u64::from(number),
        ioas,
        domain,
        policy: Policy::usual(),
    }
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(Policy::usual())
    }

    /// The first VM may have what this policy says.
    pub(super) fn with(policy: Policy) -> Self {
        let bridges = [FakePlatform::bridge(0), FakePlatform::bridge(1)];
        let backend = PaprBackend::new(FakePlatform::new(2), &bridges).unwrap();
        let mut core = Iommu::new(backend);
        let mut dma = Dma::new().unwrap();
        let mut memories = Vec::new();
        for (at, bytes, pa, permissions) in RAM {
            let extent = Extent {
                pa: Pa::new(pa).unwrap(),
                bytes,
            };
            let memory = core.add_ram(VM, &[extent]).unwrap();
            let page = PageSize::SIZE_64K;
            dma.add_slot(slot(memory, at, bytes, permissions, page))
                .unwrap();
            memories.push(memory);
        }
        let (ioas, domain, device) = attached(&mut core, 0, VM);
        let its = BridgeOptions {
            policy,
            ..options(0, ioas, domain)
        };
        dma.add_bridge(&mut core, its).unwrap();

        let mut other = Dma::new().unwrap();
        let extent = Extent {
            pa: Pa::new(OTHER_RAM).unwrap(),
            bytes: 64 * MEG,
        };
        let memory = core.add_ram(OTHER_VM, &[extent]).unwrap();
        other
            .add_slot(slot(
                memory,
                0,
                64 * MEG,
                Permissions::ReadWrite,
                PageSize::SIZE_2M,
            ))
            .unwrap();
        let (other_ioas, other_domain, _) = attached(&mut core, 1, OTHER_VM);
        let other_options = options(3, other_ioas, other_domain);
        other.add_bridge(&mut core, other_options).unwrap();
        Self {
            core,
            dma,
            other,
            ram: Ram {
                bytes: RefCell::new(alloc::vec![0; 0x4000]),
                reads: Cell::new(0),
            },
            memories,
            ioas,
            domain,
            device,
        }
    }

    pub(super) fn call(&mut self, number: u64, arguments: [u64; 4]) -> Answer {
        let answer = self
            .dma
            .hypercall(&mut self.core, &self.ram, number, arguments);
        answer.unwrap()
    }

    pub(super) fn put(&mut self, at: u64, tce: u64) -> Status {
        self.call(PUT, [LIOBN, at, tce, 0]).status
    }

    pub(super) fn get(&mut self, at: u64) -> Option<u64> {
        let answer = self.call(GET, [LIOBN, at, 0, 0]);
        assert_eq!(answer.value.is_some(), answer.status == Status::SUCCESS);
        answer.value
    }

    pub(super) fn stuff(&mut self, at: u64, tce: u64, count: u64) -> Status {
        self.call(STUFF, [LIOBN, at, tce, count]).status
    }

    pub(super) fn indirect(&mut self, liobn: u64, at: u64, list: &[u64]) -> Status {
        self.ram.put_list(LIST, list);
        self.call(INDIRECT, [liobn, at, LIST, list.len() as u64])
            .status
    }

    pub(super) fn service(
        &mut self,
        service: Service,
        arguments: &[u32],
        results: usize,
    ) -> Outcome {
        self.dma
            .service(&mut self.core, service, arguments, results)
    }

    pub(super) fn create(&mut self, page: u32, window: u32) -> Outcome {
        let arguments = [0, BUID_HIGH, BUID_LOW, page, window];
        self.service(Service::Create, &arguments, 4)
    }

    pub(super) fn platform(&self) -> &FakePlatform {
        self.core.backend().platform()
    }

    /// What the platform's tables hold for a host bridge: rights and address, by bus address.
    pub(super) fn real(&self, bridge: u32) -> BTreeMap<u64, u64> {
        let entries = self.platform().entries(bridge).into_iter();
        entries.map(|(at, tce)| (at, tce.bits())).collect()
    }

    /// Asserts that three books agree: the guest's entries, the core's pages, the platform's tables.
    pub(super) fn audit(&self) {
        for dma in [&self.dma, &self.other] {
            dma.audit(&self.core, &mut |wrong| panic!("{wrong:?}"));
        }
        for unit in 0..2 {
            let unit = UnitId::new(unit);
            self.core
                .backend()
                .audit(unit, AuditScope::Used, &mut |wrong| {
                    panic!("{wrong:?}");
                });
        }
        let live: u64 = self.dma.bridges()[0]
            .windows()
            .iter()
            .map(crate::GuestWindow::live)
            .sum();
        assert_eq!(self.real(0).len() as u64, live);
    }
}

pub(super) const BUID_HIGH: u32 = 0x0800_0000;
pub(super) const BUID_LOW: u32 = 0x2000_0000;

/// Where the machine has a page of guest memory, looked up naively.
pub(super) fn physical(tce: u64, page: u64) -> Option<u64> {
    let tce = Tce::from_bits(tce);
    let permissions = tce.permissions()?;
    let address = tce.address();
    if address & (page - 1) != 0 {
        return None;
    }
    for (at, bytes, pa, allowed) in RAM {
        if address >= at && address < at + bytes {
            let whole = address + page <= at + bytes;
            let pa = pa + (address - at);
            let fits = whole && pa & (page - 1) == 0 && allowed.covers(permissions);
            return fits.then_some(pa | tce.bits() & 3);
        }
    }
    None
}
