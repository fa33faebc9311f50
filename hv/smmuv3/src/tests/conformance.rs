//! The SMMU backend does what every backend must.

use std::panic::catch_unwind;
use std::vec;
use std::vec::Vec;

use hal::fake::{FakeCache, FakeClock, FakeFrames, FakeMemory, StaleFrames};
use hal::{FrameAllocator, SharedMemory};
use iommu::conformance::{self, Subject};
use iommu::{Backend, Binding, Endpoint, Permissions, TableId, TableOptions, UnitId};
use types::{Iova, Pa, StreamId};

use super::hardware::{Hardware, READ, Ranges, Vmids, WRITE};
use super::leak;
use crate::spec::{Event, Walks};
use crate::{Locked, Platform, Smmu, SmmuBackend};

/// On memory that the SMMU sees as the CPU does, or not: `P`, and frames of it.
struct Rig<P, F> {
    backend: SmmuBackend<&'static Hardware, P, F, FakeClock>,
    hardware: &'static Hardware,
    frames: &'static FakeFrames<'static>,
}

type Snooping = Rig<&'static FakeMemory, &'static FakeFrames<'static>>;
type Cached = Rig<&'static FakeCache<'static>, &'static StaleFrames<'static>>;

fn memory() -> &'static FakeMemory {
    leak(FakeMemory::new(Pa::new(0x4000_0000).unwrap(), 16 << 20))
}

impl Snooping {
    fn new(ranges: Ranges) -> Self {
        Self::with_vmids(ranges, Vmids::Short)
    }

    fn with_vmids(ranges: Ranges, vmids: Vmids) -> Self {
        let memory = memory();
        let frames = leak(FakeFrames::new(memory));
        let hardware = Hardware::new(memory, ranges, vmids, Walks::Coherent);
        Self::on(leak(hardware), memory, frames, frames, Walks::Coherent)
    }
}

impl Cached {
    /// With a cache between the CPU and memory, and an SMMU that says this of its walks.
    fn new(says: Walks) -> Self {
        Self::told(says, Walks::Coherent)
    }

    /// And a platform that says that of them.
    fn told(says: Walks, told: Walks) -> Self {
        let memory = memory();
        let cache = leak(FakeCache::new(memory));
        let frames = leak(StaleFrames::new(cache));
        let hardware = Hardware::new(memory, Ranges::Yes, Vmids::Short, says);
        let hardware = leak(hardware.with_two_levels());
        if says == Walks::Coherent {
            // A lie, but for its commands: without them nothing would work at all.
            hardware.snoops_commands.set(Some(cache));
        }
        Self::on(hardware, cache, frames, frames.frames(), told)
    }
}

impl<P: SharedMemory + Copy, F: FrameAllocator + Copy> Rig<P, F> {
    fn on(
        hardware: &'static Hardware,
        memory: P,
        frames: F,
        failing: &'static FakeFrames<'static>,
        told: Walks,
    ) -> Self {
        let mut locked = Locked::take(hardware, &FakeClock::default()).unwrap();
        if told == Walks::NonCoherent {
            locked = locked.without_snooping();
        }
        let smmu = Smmu::enable(locked, memory, frames, FakeClock::default()).unwrap();
        let platform = Platform {
            input_bits: 42,
            coherent: true,
        };
        Self {
            backend: SmmuBackend::new(vec![smmu], memory, frames, platform),
            hardware,
            frames: failing,
        }
    }
}

impl<P: SharedMemory + Copy, F: FrameAllocator + Copy> Subject for Rig<P, F> {
    type Backend = SmmuBackend<&'static Hardware, P, F, FakeClock>;

    fn backend(&mut self) -> &mut Self::Backend {
        &mut self.backend
    }

    fn endpoints(&self) -> [Endpoint; 2] {
        [3, 4].map(|source| Endpoint {
            unit: UnitId::new(0),
            source,
        })
    }

    fn reach(&mut self, endpoint: Endpoint, at: Iova) -> Option<(Pa, Permissions)> {
        let (pa, rights) = self.hardware.dma(endpoint.source, at.bits())?;
        let permissions = match rights {
            READ => Permissions::Read,
            WRITE => Permissions::Write,
            rights if rights == READ | WRITE => Permissions::ReadWrite,
            _ => return None,
        };
        Some((Pa::new(pa).unwrap(), permissions))
    }

    fn fail_allocations_after(&mut self, allocations: Option<u64>) {
        let nth = allocations.map(|nth| usize::try_from(nth).unwrap());
        self.frames.fail_from(nth);
    }

    fn invariants(&mut self) {
        let mut tables = (0..8).map(TableId::new);
        assert!(tables.all(|table| self.backend.is_sure(table)));
    }
}

#[test]
fn it_conforms_with_ranges() {
    conformance::check(|| Snooping::new(Ranges::Yes));
}

#[test]
fn it_conforms_without_ranges() {
    conformance::check(|| Snooping::new(Ranges::No));
}

#[test]
fn an_smmu_that_forgets_nothing_is_noticed() {
    let deaf = || {
        let rig = Snooping::new(Ranges::Yes);
        rig.hardware.deaf.set(true);
        rig
    };
    let noticed: Vec<&str> = conformance::names::<Snooping>()
        .filter(|name| catch_unwind(|| conformance::check_one(name, deaf)).is_err())
        .collect();
    assert!(noticed.len() > 5, "{noticed:?}");
}

#[test]
fn it_conforms_where_the_smmu_does_not_snoop() {
    conformance::check(|| Cached::new(Walks::NonCoherent));
}

#[test]
fn a_write_that_stays_in_a_cache_is_noticed() {
    // The SMMU says that it snoops, and does not.
    let lying = || Cached::new(Walks::Coherent);
    let all = conformance::names::<Cached>().count();
    let noticed = conformance::names::<Cached>()
        .filter(|name| catch_unwind(|| conformance::check_one(name, lying)).is_err())
        .count();
    assert!(noticed * 2 > all, "{noticed} of {all}");
}

/// Record number n: a fault, whose address tells it from all others.
fn record(number: u64) -> Event {
    Event([0x10 | 3 << 32, 0, number << 12, 0])
}

/// Whether all of so many records are read as they were written, a few at a time, several times around the queue.
fn reads_records<P, F>(rig: &mut Rig<P, F>) -> bool
where
    P: SharedMemory + Copy,
    F: FrameAllocator + Copy,
{
    let mut written = 0;
    let mut read = Vec::new();
    for burst in (0..600).map(|round| round % 7) {
        for _ in 0..burst {
            rig.hardware.record(record(written));
            written += 1;
        }
        let smmu = rig.backend.unit_mut(UnitId::new(0)).unwrap();
        let drained = smmu.drain(5, |event| read.push(event));
        assert!(!drained.lost);
    }
    let smmu = rig.backend.unit_mut(UnitId::new(0)).unwrap();
    smmu.drain(100, |event| read.push(event));
    read.into_iter().eq((0..written).map(record))
}

#[test]
fn records_of_an_smmu_that_does_not_snoop_are_read_from_memory() {
    assert!(reads_records(&mut Snooping::new(Ranges::Yes)));
    assert!(reads_records(&mut Cached::new(Walks::NonCoherent)));
    let mut told = Cached::told(Walks::Coherent, Walks::NonCoherent);
    // Now nothing sees a cache.
    told.hardware.snoops_commands.set(None);
    assert!(reads_records(&mut told));
    // What a cache had of the queue is not what is there.
    assert!(!reads_records(&mut Cached::new(Walks::Coherent)));
}

/// Tables until there is no VMID left, or `most`.
fn tables(vmids: Vmids, most: usize) -> (usize, Snooping) {
    let mut rig = Snooping::with_vmids(Ranges::Yes, vmids);
    let endpoint = rig.endpoints()[0];
    let options = TableOptions {
        nest_parent: false,
        dirty: false,
    };
    let made = (0..most).take_while(|_| rig.backend.create_table(endpoint, options).is_ok());
    (made.count(), rig)
}

#[test]
fn every_table_has_a_vmid_of_its_own_as_long_as_there_are_any() {
    // VMID 0 is nobody's.
    let (made, mut rig) = tables(Vmids::Short, 300);
    assert_eq!(made, 255);
    // The last one of 8 bits is told in full, and one that is free again is used again.
    let endpoint = rig.endpoints()[0];
    let last = TableId::new(254);
    rig.backend
        .install(endpoint, &Binding::Table(last))
        .unwrap();
    let entry = rig.backend.units()[0].entry(StreamId::new(3).unwrap());
    assert_eq!(entry.unwrap().vmid(), 255);
    rig.backend.destroy_table(TableId::new(7));
    let options = TableOptions {
        nest_parent: false,
        dirty: false,
    };
    assert!(rig.backend.create_table(endpoint, options).is_ok());
    assert!(rig.backend.create_table(endpoint, options).is_err());
    let (made, _) = tables(Vmids::Long, 300);
    assert_eq!(made, 300);
}
