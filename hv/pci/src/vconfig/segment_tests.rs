use alloc::vec::Vec;
use core::cell::RefCell;

use proptest::collection::vec;
use proptest::prelude::{any, prop_assert, proptest};
use types::{Bdf, Pa, PageSize};

use super::{Change, Effects, GuestSegment, MsixTable, Pin, Seat, SeatError, Siblings, Upstream};
use super::{VirtualFunction, Width};
use crate::fake::{Below, FakeFunction, FakePci};
use crate::{
    BarKind, BusNumbers, BusRange, ConfigSpace, Extent, FirmwarePlaces, HostBridge, InBar, MsiX,
    PlacePolicy, PortType, ScanPolicy, Topology, Window, WindowKind, enumerate, place,
};

fn bdf(bus: u8, device: u8, function: u8) -> Bdf {
    Bdf::new(bus, device, function).unwrap()
}

fn host() -> HostBridge {
    let window = |kind, bus, size| Window {
        kind,
        bus,
        cpu: Pa::truncated(bus),
        size,
    };
    HostBridge {
        segment: 0,
        buses: BusRange::new(0, 15).unwrap(),
        windows: Vec::from([
            window(WindowKind::Memory, 0x1000_0000, 0x2000_0000),
            window(WindowKind::Memory, 1 << 39, 1 << 38),
        ]),
    }
}

/// The machine: an NVMe controller, a device of two functions below a port, an `edu`.
fn machine() -> (FakePci, Topology) {
    let mut pci = FakePci::new();
    pci.add(Below::Root(0), 1, 0, FakeFunction::nvme());
    let port = pci.add(Below::Root(0), 2, 0, FakeFunction::root_port());
    for number in 0..2 {
        let function = FakeFunction::endpoint(0x8086, 0x10c9, 0x02_0000)
            .bar(0, BarKind::Memory32, 128 << 10)
            .bar(3, BarKind::Prefetchable64, 16 << 10)
            .express(PortType::Endpoint)
            .multifunction();
        pci.add(Below::Bridge(port), 0, number, function);
    }
    pci.add(Below::Root(0), 3, 0, FakeFunction::edu());
    let mut topology = enumerate(&pci, &host(), ScanPolicy::default());
    place(&pci, &host(), &mut topology, PlacePolicy::default()).unwrap();
    (pci, topology)
}

/// A guest that has all of it, at other addresses.
fn segment(pci: &FakePci, topology: &Topology) -> GuestSegment {
    let mut segment = GuestSegment::new(BusRange::new(0, 15).unwrap());
    segment.add_port(bdf(0, 4, 0), Siblings::None, 7).unwrap();
    let mut give = |from, to: Bdf, siblings| {
        let upstream = match to.bus() {
            0 => Upstream::RootBus,
            _ => Upstream::Port,
        };
        let seat = Seat {
            siblings,
            upstream,
            page: PageSize::SIZE_4K,
            pin: Pin::Shown,
        };
        let function = topology.function(from).unwrap();
        let function = VirtualFunction::new(pci, function, seat).unwrap();
        segment.add(to, function).unwrap();
    };
    give(bdf(0, 1, 0), bdf(0, 9, 0), Siblings::None);
    give(bdf(1, 0, 0), bdf(7, 0, 0), Siblings::Several);
    give(bdf(1, 0, 1), bdf(7, 0, 1), Siblings::Several);
    give(bdf(0, 3, 0), bdf(0, 10, 0), Siblings::None);
    segment
}

/// Configuration space as the guest's own software has it.
struct Inside<'a> {
    segment: RefCell<GuestSegment>,
    pci: &'a FakePci,
}

impl Inside<'_> {
    fn get(&self, bdf: Bdf, offset: u16, width: Width) -> u32 {
        self.segment.borrow().read(self.pci, bdf, offset, width)
    }

    fn put(&self, bdf: Bdf, offset: u16, width: Width, value: u32) {
        let mut segment = self.segment.borrow_mut();
        let _ = segment.write(self.pci, bdf, offset, width, value);
    }
}

impl ConfigSpace for Inside<'_> {
    fn extent(&self) -> Extent {
        Extent::Extended
    }
    fn read8(&self, bdf: Bdf, offset: u16) -> u8 {
        self.get(bdf, offset, Width::Byte).try_into().unwrap()
    }
    fn read16(&self, bdf: Bdf, offset: u16) -> u16 {
        self.get(bdf, offset, Width::Half).try_into().unwrap()
    }
    fn read32(&self, bdf: Bdf, offset: u16) -> u32 {
        self.get(bdf, offset, Width::Word)
    }
    fn write8(&self, bdf: Bdf, offset: u16, value: u8) {
        self.put(bdf, offset, Width::Byte, value.into());
    }
    fn write16(&self, bdf: Bdf, offset: u16, value: u16) {
        self.put(bdf, offset, Width::Half, value.into());
    }
    fn write32(&self, bdf: Bdf, offset: u16, value: u32) {
        self.put(bdf, offset, Width::Word, value);
    }
}

#[test]
fn a_guest_enumerates_and_places_what_it_was_given_and_the_device_does_not_notice() {
    let (pci, topology) = machine();
    let inside = Inside {
        segment: RefCell::new(segment(&pci, &topology)),
        pci: &pci,
    };
    pci.take_writes();
    let mut seen = enumerate(&inside, &host(), ScanPolicy::default());
    let found: Vec<_> = seen.functions().iter().map(|f| f.bdf).collect();
    assert_eq!(
        found,
        [
            bdf(0, 0, 0),
            bdf(0, 4, 0),
            bdf(0, 9, 0),
            bdf(0, 10, 0),
            bdf(7, 0, 0),
            bdf(7, 0, 1)
        ]
    );
    assert!(seen.functions().iter().all(|f| f.defects.is_empty()));
    let policy = PlacePolicy {
        firmware: FirmwarePlaces::Replace,
        ..PlacePolicy::default()
    };
    let placement = place(&inside, &host(), &mut seen, policy).unwrap();
    assert_eq!((placement.placed, placement.unplaced.len()), (6, 0));
    let segment = inside.segment.borrow();
    for function in seen.functions() {
        for bar in &function.bars {
            let mapped = segment.mapping(function.bdf, bar.index);
            assert_eq!(mapped, bar.place.map(|place| place.bus), "{bar}");
        }
        assert!(!segment.mastering(function.bdf));
    }
    assert_eq!(pci.take_writes(), []);
}

#[test]
fn a_guest_cannot_renumber_a_port_and_is_told_so_by_reading_back() {
    let (pci, topology) = machine();
    let inside = Inside {
        segment: RefCell::new(segment(&pci, &topology)),
        pci: &pci,
    };
    let policy = ScanPolicy {
        buses: BusNumbers::Assign,
        ..ScanPolicy::default()
    };
    let seen = enumerate(&inside, &host(), policy);
    let port = seen.function(bdf(0, 4, 0)).unwrap();
    assert_eq!(port.defects, [crate::Defect::BusNumbersDoNotHold]);
    assert_eq!(inside.read32(bdf(0, 4, 0), 0x18), 0x0007_0700);
}

#[test]
fn a_port_takes_away_what_it_does_not_forward() {
    let (pci, topology) = machine();
    let mut segment = segment(&pci, &topology);
    let (port, function) = (bdf(0, 4, 0), bdf(7, 0, 0));
    let mut write = |at, offset, width, value| segment.write(&pci, at, offset, width, value);
    let _ = write(function, 0x10, Width::Word, 0x1010_0000);
    let change = write(function, 4, Width::Half, 6);
    let both = Effects::MAPPING | Effects::MASTERING;
    assert_eq!(change, Some(Change::Function(function, both)));
    assert_eq!(segment.mapping(function, 0), None);
    assert!(!segment.mastering(function));
    let mut write = |at, offset, width, value| segment.write(&pci, at, offset, width, value);
    assert_eq!(
        write(port, 0x20, Width::Word, 0x1010_1010),
        None,
        "not decoded"
    );
    let change = write(port, 4, Width::Half, 6);
    assert_eq!(change, Some(Change::Below(port, both)));
    assert_eq!(segment.mapping(function, 0), Some(0x1010_0000));
    assert!(segment.mastering(function));
    assert_eq!(segment.below(port).count(), 2);
    // Beside the window.
    let mut write = |at, offset, width, value| segment.write(&pci, at, offset, width, value);
    let _ = write(function, 0x10, Width::Word, 0x1020_0000);
    assert_eq!(segment.mapping(function, 0), None);
    let _ = segment.write(&pci, function, 0x10, Width::Word, 0x1010_0000);
    // Secondary bus reset: asked for once, and nothing passes while it is held.
    let reset = segment.write(&pci, port, 0x3e, Width::Half, 0x40);
    assert_eq!(reset, Some(Change::Below(port, Effects::RESET)));
    assert!(segment.mapping(function, 0).is_none() && !segment.mastering(function));
    assert_eq!(segment.write(&pci, port, 0x3e, Width::Half, 0), None);
    assert_eq!(segment.mapping(function, 0), Some(0x1010_0000));
    // Mastering off at the port alone.
    let change = segment.write(&pci, port, 4, Width::Byte, 2);
    assert_eq!(change, Some(Change::Below(port, Effects::MASTERING)));
    assert!(!segment.mastering(function));
}

#[test]
fn seats_that_make_no_sense_are_refused() {
    let (pci, topology) = machine();
    let mut segment = segment(&pci, &topology);
    let function = segment.function(bdf(0, 9, 0)).unwrap().clone();
    let mut add = |bdf| segment.add(bdf, function.clone());
    let taken = bdf(0, 0, 0);
    assert_eq!(add(taken), Err(SeatError::Taken(taken)));
    assert_eq!(add(bdf(3, 0, 0)), Err(SeatError::NoBus(bdf(3, 0, 0))));
    assert_eq!(
        add(bdf(7, 1, 0)),
        Err(SeatError::NotDeviceZero(bdf(7, 1, 0)))
    );
    let mut port = |bdf, bus| segment.add_port(bdf, Siblings::None, bus);
    let at = bdf(0, 5, 0);
    for bus in [0, 7, 16] {
        assert_eq!(port(at, bus), Err(SeatError::BusTaken { port: at, bus }));
    }
    assert_eq!(
        port(bdf(7, 0, 2), 8),
        Err(SeatError::PortOffRoot(bdf(7, 0, 2)))
    );
    assert!(segment.remove(bdf(0, 4, 0)).is_none());
    assert!(segment.remove(bdf(0, 9, 0)).is_some());
    assert!(segment.add(bdf(0, 9, 0), function).is_ok());
}

#[test]
fn pins_come_out_at_the_port_above() {
    let mut pci = FakePci::new();
    for device in 1..3 {
        pci.add(
            Below::Root(0),
            device,
            0,
            FakeFunction::edu().with(0x3c, 0x300, 0),
        );
    }
    let topology = enumerate(&pci, &host(), ScanPolicy::default());
    let mut segment = GuestSegment::new(BusRange::new(0, 15).unwrap());
    segment.add_port(bdf(0, 4, 0), Siblings::None, 7).unwrap();
    let seats = [(bdf(0, 1, 0), bdf(7, 0, 0)), (bdf(0, 2, 0), bdf(0, 6, 0))];
    for (from, to) in seats {
        let seat = Seat {
            siblings: Siblings::None,
            upstream: Upstream::RootBus,
            page: PageSize::SIZE_4K,
            pin: Pin::Shown,
        };
        let function = topology.function(from).unwrap();
        let function = VirtualFunction::new(&pci, function, seat).unwrap();
        segment.add(to, function).unwrap();
    }
    assert_eq!(segment.root_pin(bdf(7, 0, 0)), Some((bdf(0, 4, 0), 3)));
    assert_eq!(segment.root_pin(bdf(0, 6, 0)), Some((bdf(0, 6, 0), 3)));
    assert_eq!(segment.root_pin(bdf(0, 4, 0)), None);
}

#[test]
fn an_ecam_offset_names_a_register() {
    let segment = GuestSegment::new(BusRange::new(4, 5).unwrap());
    let at = |bus: u64, device: u64, function: u64, register: u64| {
        segment.locate(bus << 20 | device << 15 | function << 12 | register)
    };
    assert_eq!(at(0, 31, 7, 0xffc), Some((bdf(4, 31, 7), 0xffc)));
    assert_eq!(at(1, 1, 0, 0x10), Some((bdf(5, 1, 0), 0x10)));
    assert_eq!(at(2, 0, 0, 0), None);
    assert_eq!(segment.locate(u64::MAX), None);
}

#[test]
fn the_msix_table_is_a_copy_that_starts_masked() {
    let place = |offset| InBar { bar: 0, offset };
    let msix = MsiX {
        offset: 0x40,
        vectors: 3,
        table: place(0),
        pending: place(0x1000),
    };
    let mut table = MsixTable::new(&msix);
    assert!((0..3).all(|i| table.vector(i).unwrap().masked));
    assert_eq!(table.write(0x10, 0x0809_0043), Some(1));
    assert_eq!(table.write(0x14, 1), Some(1));
    assert_eq!(table.write(0x18, 5), Some(1));
    assert_eq!(table.write(0x1c, u32::MAX), None, "masked before");
    assert_eq!(table.write(0x1c, 0xffff_fffe), Some(1));
    assert_eq!(table.write(0x1c, 0), None);
    let vector = table.vector(1).unwrap();
    assert_eq!((vector.address, vector.data), (1 << 32 | 0x0809_0040, 5));
    assert!(!vector.masked);
    assert_eq!(
        [0x10, 0x14, 0x18, 0x1c].map(|at| table.read(at)),
        [0x0809_0040, 1, 5, 0]
    );
    for outside in [0x30, 0x12, !3] {
        assert_eq!(table.write(outside, u32::MAX), None);
        assert_eq!(table.read(outside), 0);
    }
    table.reset();
    assert!(table.vector(1).unwrap().masked);
    assert_eq!(table.vector(3), None);
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_is_too_much(
        accesses in vec((any::<u32>(), 0..3_u8, any::<u32>(), any::<bool>()), 0..100),
    ) {
        let (pci, topology) = machine();
        let mut segment = segment(&pci, &topology);
        pci.take_writes();
        for (offset, width, value, dense) in accesses {
            let width = [Width::Byte, Width::Half, Width::Word][usize::from(width)];
            // Mostly registers of functions that are there.
            let seats = [bdf(0, 4, 0), bdf(0, 9, 0), bdf(7, 0, 0), bdf(7, 0, 1), bdf(0, 0, 0)];
            let seat = seats[offset as usize % 5];
            let dense_offset = u64::from(seat.bits()) << 12 | u64::from(offset >> 8 & 0x7c);
            let offset = if dense { dense_offset } else { offset.into() };
            let Some((at, register)) = segment.locate(offset) else { continue };
            let _ = segment.read(&pci, at, register, width);
            let _ = segment.write(&pci, at, register, width, value);
            for (at, function) in segment.functions() {
                for bar in function.bars() {
                    if let Some(address) = segment.mapping(at, bar.index) {
                        prop_assert!(function.mapping(bar.index) == Some(address));
                    }
                }
                prop_assert!(function.mastering() || !segment.mastering(at));
            }
        }
        let reached = pci.take_writes();
        prop_assert!(reached.iter().all(|w| w.width == 2 && matches!(w.offset, 6 | 0x56 | 0x4a)));
    }
}
