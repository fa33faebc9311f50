use core::cell::Cell;

use hal::fake::{Access, FakeMmio};
use hal::{Clock, Mmio};

use super::{bdf, scan, virt};
use crate::fake::{Below, FakeFunction, FakeId, FakePci};
use crate::{
    BarKind, ConfigSpace, Error, Message, MsixMode, Permission, PlacePolicy, Progress, Reset,
    Topology, place, set_mastering, set_pin,
};

const ROOT: Below = Below::Root(0);

/// A clock that only moves when told: 1 tick a µs.
#[derive(Default)]
struct Hand(Cell<u64>);

impl Clock for Hand {
    fn ticks(&self) -> u64 {
        self.0.get()
    }
    fn frequency(&self) -> u64 {
        1_000_000
    }
}

fn placed(pci: &FakePci) -> Topology {
    let mut topology = scan(pci);
    place(pci, &virt(), &mut topology, PlacePolicy::default()).unwrap();
    topology
}

/// Runs a reset to its end, always waiting as long as it says.
fn finish(
    mut reset: Reset,
    pci: &FakePci,
    topology: &Topology,
    clock: &Hand,
) -> Result<u64, Error> {
    let begin = clock.ticks();
    for _ in 0..10_000 {
        match reset.poll(pci, topology, clock)? {
            Progress::Done => return Ok(clock.ticks() - begin),
            Progress::Wait(until) => {
                assert!(until > clock.ticks(), "a wait that is over");
                clock.0.set(until);
            }
        }
    }
    panic!("the reset never ends");
}

#[test]
fn mastering_is_granted_through_all_bridges_and_denied_at_the_function() {
    let mut pci = FakePci::new();
    let port = pci.add(ROOT, 1, 0, FakeFunction::root_port());
    let nvme = pci.add(Below::Bridge(port), 0, 0, FakeFunction::nvme());
    let other = pci.add(ROOT, 2, 0, FakeFunction::nvme().with(4, 0, 3));
    let topology = placed(&pci);
    let masters = |id: FakeId| pci.register(id, 4) & 4 != 0;
    set_mastering(&pci, &topology, bdf("01:00.0"), Permission::Granted).unwrap();
    assert!(masters(port) && masters(nvme) && !masters(other));
    set_mastering(&pci, &topology, bdf("01:00.0"), Permission::Denied).unwrap();
    assert!(masters(port) && !masters(nvme));
    let stuck = set_mastering(&pci, &topology, bdf("00:02.0"), Permission::Granted);
    let at = bdf("00:02.0");
    assert_eq!(stuck, Err(Error::NotTaken { bdf: at, offset: 4 }));
    let nowhere = set_mastering(&pci, &topology, bdf("00:03.0"), Permission::Granted);
    assert_eq!(nowhere, Err(Error::NotFound(bdf("00:03.0"))));
    set_pin(&pci, bdf("01:00.0"), Permission::Denied).unwrap();
    assert_eq!(pci.register(nvme, 4) & 0x400, 0x400);
    set_pin(&pci, bdf("01:00.0"), Permission::Granted).unwrap();
    assert_eq!(pci.register(nvme, 4) & 0x400, 0);
}

#[test]
fn a_function_level_reset_waits_and_puts_everything_back() {
    let mut pci = FakePci::new();
    let nvme = pci.add(ROOT, 1, 0, FakeFunction::nvme());
    let topology = placed(&pci);
    let at = bdf("00:01.0");
    set_mastering(&pci, &topology, at, Permission::Granted).unwrap();
    let before = [0x10, 0x14].map(|register| pci.register(nvme, register));
    assert_ne!(before[0], 4);
    pci.set_reset_reads(3);
    let clock = Hand::default();
    let reset = Reset::function(&pci, &topology, at, &clock).unwrap();
    assert_eq!(pci.register(nvme, 4) & 4, 0, "silent from the beginning");
    let took = finish(reset, &pci, &topology, &clock).unwrap();
    assert_eq!(pci.resets(nvme), 1);
    assert_eq!(took, 103_000, "100 ms of silence and three looks");
    assert_eq!(
        [0x10, 0x14].map(|register| pci.register(nvme, register)),
        before
    );
    assert_eq!(pci.register(nvme, 4) & 7, 2);
}

#[test]
fn a_device_that_never_finishes_its_requests_is_reset_anyway() {
    let mut pci = FakePci::new();
    let mut nvme = FakeFunction::nvme();
    // Transactions pending, for ever: MSI-X at 0x40, PCI Express at 0x4c.
    nvme.bytes_mut()[0x4c + 0xa] = 1 << 5;
    let nvme = pci.add(ROOT, 1, 0, nvme);
    let topology = placed(&pci);
    let clock = Hand::default();
    let reset = Reset::function(&pci, &topology, bdf("00:01.0"), &clock).unwrap();
    assert_eq!(finish(reset, &pci, &topology, &clock), Ok(200_000));
    assert_eq!(pci.resets(nvme), 1);
}

#[test]
fn a_device_that_does_not_come_back_is_an_error_in_bounded_time() {
    let mut pci = FakePci::new();
    pci.add(ROOT, 1, 0, FakeFunction::nvme());
    let topology = placed(&pci);
    pci.set_reset_reads(usize::MAX);
    let clock = Hand::default();
    let at = bdf("00:01.0");
    let reset = Reset::function(&pci, &topology, at, &clock).unwrap();
    let result = finish(reset, &pci, &topology, &clock);
    assert_eq!(result, Err(Error::DoesNotAnswer(at)));
    assert_eq!(clock.ticks(), 1_100_000);
}

#[test]
fn a_bus_reset_puts_back_bridges_and_what_is_below_them() {
    let mut pci = FakePci::new();
    let port = pci.add(ROOT, 1, 0, FakeFunction::root_port());
    let up = pci.add(Below::Bridge(port), 0, 0, FakeFunction::upstream());
    let down = FakeFunction::downstream().acs(0x5f);
    let down = pci.add(Below::Bridge(up), 2, 0, down);
    let edu = pci.add(Below::Bridge(down), 0, 0, FakeFunction::edu());
    let beside = pci.add(ROOT, 2, 0, FakeFunction::nvme());
    let topology = placed(&pci);
    let registers = |id| [0x04, 0x10, 0x18, 0x20, 0x24, 0x104].map(|at| pci.register(id, at));
    let before = [up, down, edu].map(registers);
    let clock = Hand::default();
    let none = Reset::function(&pci, &topology, bdf("03:00.0"), &clock);
    assert_eq!(none.err(), Some(Error::NoReset(bdf("03:00.0"))));
    let none = Reset::bus(&pci, &topology, bdf("00:02.0"), &clock);
    assert_eq!(none.err(), Some(Error::NoReset(bdf("00:02.0"))));
    set_mastering(&pci, &topology, bdf("03:00.0"), Permission::Granted).unwrap();
    let reset = Reset::bus(&pci, &topology, bdf("00:01.0"), &clock).unwrap();
    assert_eq!(pci.read32(bdf("01:00.0"), 0), u32::MAX, "held");
    finish(reset, &pci, &topology, &clock).unwrap();
    assert_eq!([up, down, edu].map(registers), before);
    assert_eq!(
        [up, down, edu, beside, port].map(|id| pci.resets(id)),
        [1, 1, 1, 0, 0]
    );
    assert_eq!(pci.register(port, 0x3c) & 0x40_0000, 0);
}

fn offsets(pci: &FakePci) -> alloc::vec::Vec<u16> {
    pci.take_writes().iter().map(|write| write.offset).collect()
}

#[test]
fn msi_stays_on_while_its_masks_alone_change() {
    let mut pci = FakePci::new();
    let wide = pci.add(ROOT, 1, 0, FakeFunction::endpoint(1, 1, 0).msi(2, 0x180));
    // Without masks, and without a wide address.
    pci.add(ROOT, 2, 0, FakeFunction::endpoint(1, 1, 0).msi(2, 0));
    let topology = placed(&pci);
    let message = Message {
        address: 0x0809_0040,
        data: 0x20,
    };
    for (text, mask) in [("00:01.0", &[0x50][..]), ("00:02.0", &[])] {
        let at = bdf(text);
        let msi = topology.function(at).unwrap().capabilities.msi.unwrap();
        msi.enable(&pci, at, message, 2, 0).unwrap();
        pci.take_writes();
        for masked in [1, 0xf, 0] {
            msi.enable(&pci, at, message, 2, masked).unwrap();
            assert_eq!(offsets(&pci), mask);
        }
    }
    assert_eq!(pci.register(wide, 0x50), 0);
    // The control: each of the others is a change of the message.
    let at = bdf("00:01.0");
    let msi = topology.function(at).unwrap().capabilities.msi.unwrap();
    let changes = [
        (0x1_0809_0040, 0x20, 2),
        (0x1_0809_0044, 0x20, 2),
        (0x1_0809_0044, 0x24, 2),
        (0x1_0809_0044, 0x24, 1),
    ];
    for (address, data, log2) in changes {
        let message = Message { address, data };
        msi.enable(&pci, at, message, log2, 1).unwrap();
        assert_eq!(offsets(&pci)[0], 0x42, "off first");
        assert_eq!(pci.register(wide, 0x40) >> 16 & 1, 1);
    }
}

#[test]
fn msi_is_off_while_its_message_changes() {
    let mut pci = FakePci::new();
    let wide = pci.add(ROOT, 1, 0, FakeFunction::endpoint(1, 1, 0).msi(2, 0x180));
    let narrow = pci.add(ROOT, 2, 0, FakeFunction::endpoint(1, 1, 0).msi(0, 0));
    let topology = placed(&pci);
    let msi = |text| {
        topology
            .function(bdf(text))
            .unwrap()
            .capabilities
            .msi
            .unwrap()
    };
    let message = Message {
        address: 0x1_0809_0040,
        data: 0x20,
    };
    let at = bdf("00:01.0");
    msi("00:01.0").enable(&pci, at, message, 2, 0).unwrap();
    assert_eq!(pci.register(wide, 0x40) >> 16, 0x1a5);
    let words = [0x44, 0x48, 0x4c].map(|register| pci.register(wide, register));
    assert_eq!(words, [0x0809_0040, 1, 0x20]);
    pci.take_writes();
    msi("00:01.0").enable(&pci, at, message, 0, 0xe).unwrap();
    assert_eq!(offsets(&pci), [0x42, 0x44, 0x48, 0x4c, 0x50, 0x42]);
    assert_eq!(pci.register(wide, 0x50), 0xe);
    let at = bdf("00:02.0");
    let refused = msi("00:02.0").enable(&pci, at, message, 0, 0);
    assert_eq!(refused, Err(Error::TooWide { bdf: at }));
    let low = Message {
        address: 0x0809_0040,
        ..message
    };
    msi("00:02.0").enable(&pci, at, low, 0, 0).unwrap();
    assert_eq!(pci.register(narrow, 0x48), 0x20);
    msi("00:02.0").disable(&pci, at).unwrap();
    assert_eq!(pci.register(narrow, 0x40) & 0x1_0000, 0);
}

#[test]
fn an_msix_vector_is_masked_while_its_message_changes() {
    let mut pci = FakePci::new();
    let device = FakeFunction::endpoint(1, 1, 0)
        .bar(0, BarKind::Memory32, 8192)
        .msix(4, (0, 0), (0, 0x1000));
    let device = pci.add(ROOT, 1, 0, device);
    let topology = placed(&pci);
    let at = bdf("00:01.0");
    let msix = topology.function(at).unwrap().capabilities.msix.unwrap();
    for (mode, bits) in [
        (MsixMode::Masked, 0xc000),
        (MsixMode::On, 0x8000),
        (MsixMode::Off, 0),
    ] {
        msix.set_mode(&pci, at, mode).unwrap();
        assert_eq!(pci.register(device, 0x40) >> 16, bits | 3);
    }
    let table = FakeMmio::new();
    let message = Message {
        address: 0x1_0809_0040,
        data: 9,
    };
    msix.write_vector(&table, 2, Some(message));
    assert_eq!(
        table.take_log(),
        [
            Access::Write(0x2c, 4, 1),
            Access::Read(0x2c, 4),
            Access::Write(0x20, 4, 0x0809_0040),
            Access::Write(0x24, 4, 1),
            Access::Write(0x28, 4, 9),
            Access::Write(0x2c, 4, 0),
        ]
    );
    msix.write_vector(&table, 2, None);
    assert_eq!(table.read32(0x2c), 1);
    table.take_log();
    msix.write_vector(&table, 4, Some(message));
    assert_eq!(table.take_log(), []);
}
