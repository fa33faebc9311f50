//! The SMMU backend does what every backend must.

use std::boxed::Box;
use std::panic::catch_unwind;
use std::vec;
use std::vec::Vec;

use hal::fake::{FakeClock, FakeFrames, FakeMemory};
use iommu::conformance::{self, Subject};
use iommu::{Backend, Binding, Endpoint, Permissions, TableId, TableOptions, UnitId};
use types::{Iova, Pa, StreamId};

use super::hardware::{Hardware, READ, Ranges, Vmids, WRITE};
use crate::{Locked, Platform, Smmu, SmmuBackend};

type Under =
    SmmuBackend<&'static Hardware, &'static FakeMemory, &'static FakeFrames<'static>, FakeClock>;

struct Rig {
    backend: Under,
    hardware: &'static Hardware,
    frames: &'static FakeFrames<'static>,
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

impl Rig {
    fn new(ranges: Ranges) -> Self {
        Self::with_vmids(ranges, Vmids::Short)
    }

    fn with_vmids(ranges: Ranges, vmids: Vmids) -> Self {
        let memory = leak(FakeMemory::new(Pa::new(0x4000_0000).unwrap(), 16 << 20));
        let hardware = leak(Hardware::new(memory, ranges, vmids));
        let frames = leak(FakeFrames::new(memory));
        let locked = Locked::take(hardware, &FakeClock::default()).unwrap();
        let smmu = Smmu::enable(locked, memory, frames, FakeClock::default()).unwrap();
        let platform = Platform {
            input_bits: 42,
            coherent: true,
        };
        Self {
            backend: SmmuBackend::new(vec![smmu], memory, frames, platform),
            hardware,
            frames,
        }
    }
}

impl Subject for Rig {
    type Backend = Under;

    fn backend(&mut self) -> &mut Under {
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
        assert!(self.backend.is_sure());
    }
}

#[test]
fn it_conforms_with_ranges() {
    conformance::check(|| Rig::new(Ranges::Yes));
}

#[test]
fn it_conforms_without_ranges() {
    conformance::check(|| Rig::new(Ranges::No));
}

#[test]
fn an_smmu_that_forgets_nothing_is_noticed() {
    let deaf = || {
        let rig = Rig::new(Ranges::Yes);
        rig.hardware.deaf.set(true);
        rig
    };
    let noticed: Vec<&str> = conformance::names::<Rig>()
        .filter(|name| catch_unwind(|| conformance::check_one(name, deaf)).is_err())
        .collect();
    assert!(noticed.len() > 5, "{noticed:?}");
}

/// Tables until there is no VMID left, or `most`.
fn tables(vmids: Vmids, most: usize) -> (usize, Rig) {
    let mut rig = Rig::with_vmids(Ranges::Yes, vmids);
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
