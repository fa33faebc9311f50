use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use types::{Pa, PageSize};

use super::{
    Effects, Pin, Refusal, Row, Seat, Siblings, Structure, TABLE, Treatment, Upstream,
    VirtualFunction, Width,
};
use crate::fake::{Below, FakeFunction, FakeId, FakePci};
use crate::{
    BarKind, BusRange, Function, HostBridge, PlacePolicy, PortType, ScanPolicy, Window, WindowKind,
    enumerate, place,
};

const SEAT: Seat = Seat {
    siblings: Siblings::None,
    upstream: Upstream::RootBus,
    page: PageSize::SIZE_4K,
    pin: Pin::Shown,
};

/// A machine with one function at 00:01.0, enumerated and placed.
struct Bench {
    pci: FakePci,
    id: FakeId,
    function: Function,
}

impl Bench {
    fn new(function: FakeFunction) -> Self {
        let mut pci = FakePci::new();
        let id = pci.add(Below::Root(0), 1, 0, function);
        let window = |kind, bus, size| Window {
            kind,
            bus,
            cpu: Pa::truncated(bus | 1 << 44),
            size,
        };
        let host = HostBridge {
            segment: 0,
            buses: BusRange::ALL,
            windows: Vec::from([
                window(WindowKind::Io, 0, 0x1_0000),
                window(WindowKind::Memory, 0x1000_0000, 0x3000_0000),
                window(WindowKind::Memory, 1 << 39, 1 << 39),
            ]),
        };
        let mut topology = enumerate(&pci, &host, ScanPolicy::default());
        place(&pci, &host, &mut topology, PlacePolicy::default()).unwrap();
        let function = topology.functions()[0].clone();
        Self { pci, id, function }
    }

    fn guest(&self, seat: Seat) -> VirtualFunction {
        VirtualFunction::new(&self.pci, &self.function, seat).unwrap()
    }

    fn device(&self) -> Vec<u32> {
        (0..1024)
            .map(|i| self.pci.register(self.id, i * 4))
            .collect()
    }
}

/// An NVMe controller with everything a guest may see, and things it may not.
fn rich() -> FakeFunction {
    let mut device = FakeFunction::endpoint(0x1b36, 0x0010, 0x01_0802)
        .bar(0, BarKind::Memory64, 16 << 10)
        .bar(2, BarKind::Io, 64)
        .bar(3, BarKind::Prefetchable32, 256)
        .rom(64 << 10);
    let vpd = device.add_capability(0x03, 8);
    device.set(vpd + 4, 0xdead_beef, u32::MAX);
    let power = device.add_capability(0x01, 8);
    device.bytes_mut()[power + 2..power + 4].copy_from_slice(&[0x23, 0xfe]);
    let mut device = device
        .msi(3, 0x180)
        .msix(65, (0, 0x2000), (0, 0x3000))
        .express(PortType::Endpoint)
        .function_level_reset();
    let vendor = device.add_capability(0x09, 8);
    device.set(vendor + 4, 0x1234_5678, u32::MAX);
    device.bytes_mut()[vendor + 2] = 8;
    let mut device = device.acs(0x5f);
    device.add_extended(0x000f, 8);
    device.with(0x3c, 0x0000_0100, 0xff)
}

/// The guest's capability list: (ID, offset).
fn list(guest: &VirtualFunction, pci: &FakePci) -> Vec<(u32, u16)> {
    let mut found = Vec::new();
    let mut at = guest.read(pci, 0x34, Width::Byte);
    while at != 0 {
        assert!(
            (0x40..0x100).contains(&at) && at.is_multiple_of(4),
            "{at:#x}"
        );
        assert!(found.len() < 48, "the guest's list loops");
        let offset = u16::try_from(at).unwrap();
        let header = guest.read(pci, offset, Width::Half);
        found.push((header & 0xff, offset));
        at = header >> 8;
    }
    found
}

fn find(guest: &VirtualFunction, pci: &FakePci, id: u32) -> u16 {
    let found = list(guest, pci);
    found.iter().find(|(found, _)| *found == id).unwrap().1
}

#[test]
fn the_list_is_linked_past_what_is_hidden_and_extended_space_is_empty() {
    let bench = Bench::new(rich());
    let guest = bench.guest(SEAT);
    let ids: Vec<_> = list(&guest, &bench.pci).iter().map(|c| c.0).collect();
    assert_eq!(ids, [0x01, 0x05, 0x11, 0x10, 0x09]);
    assert_eq!(bench.function.capabilities.list[0].offset, 0x40);
    // Where the VPD is, and in all of extended space, the guest reads nothing.
    assert_eq!(guest.read(&bench.pci, 0x40, Width::Word), 0);
    assert_eq!(guest.read(&bench.pci, 0x44, Width::Word), 0);
    assert_ne!(bench.pci.register(bench.id, 0x100), 0);
    for offset in (0x100..0x1000).step_by(4) {
        assert_eq!(guest.read(&bench.pci, offset, Width::Word), 0);
    }
    assert_eq!(guest.read(&bench.pci, 6, Width::Half) & 0x10, 0x10);
    let bare = Bench::new(FakeFunction::endpoint(1, 1, 0));
    let guest = bare.guest(SEAT);
    assert!(list(&guest, &bare.pci).is_empty());
    assert_eq!(guest.read(&bare.pci, 6, Width::Half) & 0x10, 0);
}

#[test]
fn bars_are_sized_and_moved_on_the_copy_alone() {
    let bench = Bench::new(rich());
    let mut guest = bench.guest(SEAT);
    let before = bench.device();
    let mut sized = |offset| {
        let _ = guest.write(&bench.pci, offset, Width::Word, u32::MAX);
        guest.read(&bench.pci, offset, Width::Word)
    };
    assert_eq!(sized(0x10), 0xffff_c004);
    assert_eq!(sized(0x14), 0xffff_ffff);
    assert_eq!(sized(0x18), 0, "I/O is hidden");
    assert_eq!(sized(0x1c), 0xffff_f008, "256 bytes are shown as a page");
    assert_eq!(sized(0x20), 0);
    assert_eq!(sized(0x30), 0, "no ROM");
    let effects = guest.write(&bench.pci, 0x10, Width::Word, 0x1234_5678);
    assert_eq!(effects, Effects::empty(), "not decoded yet");
    let _ = guest.write(&bench.pci, 0x14, Width::Word, 0x80);
    assert_eq!(guest.bar_address(0), Some(0x80_1234_4000));
    assert_eq!(guest.mapping(0), None);
    let effects = guest.write(&bench.pci, 4, Width::Half, 2);
    assert_eq!(effects, Effects::MAPPING);
    assert_eq!(guest.mapping(0), Some(0x80_1234_4000));
    let effects = guest.write(&bench.pci, 0x14, Width::Byte, 0x81);
    assert_eq!(effects, Effects::MAPPING);
    assert_eq!(guest.mapping(0), Some(0x81_1234_4000));
    assert_eq!(bench.device(), before);
    guest.reset();
    assert_eq!(guest.bar_address(0), Some(0));
    assert_eq!(guest.mapping(0), None);
}

#[test]
fn a_bar_that_was_not_placed_is_not_shown() {
    let device = FakeFunction::endpoint(1, 1, 0)
        .bar(0, BarKind::Memory64, 1 << 45)
        .bar(2, BarKind::Memory32, 4096)
        .msix(1, (0, 0), (2, 0));
    let bench = Bench::new(device);
    assert!(bench.function.capabilities.msix.is_some());
    let mut guest = bench.guest(SEAT);
    let _ = guest.write(&bench.pci, 0x10, Width::Word, u32::MAX);
    assert_eq!(guest.read(&bench.pci, 0x10, Width::Word), 0);
    assert_eq!(guest.bars().len(), 1);
    // MSI-X needs the BAR its table is in.
    assert!(list(&guest, &bench.pci).is_empty());
    assert_eq!(guest.msix(), None);
    assert!(guest.trapped(PageSize::SIZE_4K).is_empty());
}

#[test]
fn the_command_register_asks_and_the_device_is_never_told_by_the_guest() {
    let bench = Bench::new(rich());
    let mut guest = bench.guest(SEAT);
    let before = bench.device();
    let mut command = |value| guest.write(&bench.pci, 4, Width::Half, value);
    assert_eq!(command(0x0004), Effects::MASTERING);
    assert_eq!(command(0x0404), Effects::INTX);
    assert_eq!(command(0x0404), Effects::empty());
    assert_eq!(command(0xffff), Effects::MAPPING);
    assert_eq!(
        command(0x0000),
        Effects::MAPPING | Effects::MASTERING | Effects::INTX
    );
    let _ = command(0xffff);
    assert_eq!(guest.read(&bench.pci, 4, Width::Half), 0x0546);
    assert!(guest.mastering() && !guest.intx());
    assert_eq!(bench.device(), before);
    assert!(!bench.pci.ever_mastered());
}

#[test]
fn sleep_takes_everything_away_and_waking_gives_it_back() {
    let bench = Bench::new(rich());
    let mut guest = bench.guest(SEAT);
    let _ = guest.write(&bench.pci, 4, Width::Half, 6);
    let status = find(&guest, &bench.pci, 0x01) + 4;
    let all = Effects::MAPPING | Effects::MASTERING | Effects::INTX;
    assert_eq!(guest.write(&bench.pci, status, Width::Half, 3), all);
    assert!(!guest.mastering() && guest.mapping(0).is_none());
    assert_eq!(guest.read(&bench.pci, status, Width::Half), 0x000b);
    assert_eq!(guest.write(&bench.pci, status, Width::Half, 0), all);
    assert!(guest.mastering() && guest.mapping(0).is_some());
    // No wake-up events and no states in between are offered.
    let capabilities = guest.read(&bench.pci, status - 2, Width::Half);
    assert_eq!(capabilities, 0x0023);
}

#[test]
fn msi_is_kept_in_the_copy_in_each_of_its_forms() {
    for (flags, data_at, mask_at) in [
        (0x000, 0x8, None),
        (0x080, 0xc, None),
        (0x100, 0x8, Some(0xc)),
        (0x180, 0xc, Some(0x10)),
    ] {
        let device = FakeFunction::endpoint(1, 1, 0).msi(2, flags);
        let bench = Bench::new(device);
        let before = bench.device();
        let mut guest = bench.guest(SEAT);
        let at = find(&guest, &bench.pci, 0x05);
        let wide = flags & 0x80 != 0;
        let mut write = |offset, width, value| {
            guest.write(&bench.pci, at + offset, width, value);
        };
        write(4, Width::Word, 0x0809_0043);
        if wide {
            write(8, Width::Word, 0x12);
        }
        write(data_at, Width::Word, 0xffff_4321);
        if let Some(mask_at) = mask_at {
            write(mask_at, Width::Word, u32::MAX);
        }
        let _ = guest.write(&bench.pci, 4, Width::Half, 4);
        let effects = guest.write(&bench.pci, at + 2, Width::Half, 0xffff);
        assert_eq!(effects, Effects::MSI);
        let state = guest.msi().unwrap();
        assert!(state.enabled);
        assert_eq!(state.vectors, 4, "no more than the device has");
        let high = if wide { 0x12 << 32 } else { 0 };
        assert_eq!(state.address, high | 0x0809_0040);
        assert_eq!(state.data, 0x4321);
        assert_eq!(state.masked, if mask_at.is_some() { 0xf } else { 0 });
        assert_eq!(bench.device(), before);
        // Without mastering there is no message.
        let effects = guest.write(&bench.pci, 4, Width::Half, 0);
        assert!(effects.contains(Effects::MSI));
        assert!(!guest.msi().unwrap().enabled);
    }
}

#[test]
fn msix_is_kept_in_the_copy_and_its_pages_are_trapped() {
    let bench = Bench::new(rich());
    let before = bench.device();
    let mut guest = bench.guest(SEAT);
    let at = find(&guest, &bench.pci, 0x11);
    assert_eq!(guest.read(&bench.pci, at + 2, Width::Half), 64);
    assert_eq!(guest.read(&bench.pci, at + 4, Width::Word), 0x2000);
    let _ = guest.write(&bench.pci, 4, Width::Half, 4);
    let effects = guest.write(&bench.pci, at, Width::Word, u32::MAX);
    assert_eq!(effects, Effects::MSIX);
    let state = guest.msix().unwrap();
    assert!(state.enabled && state.masked);
    assert_eq!(guest.read(&bench.pci, at + 2, Width::Half), 0xc040);
    assert_eq!(guest.read(&bench.pci, at, Width::Byte), 0x11);
    assert_eq!(bench.device(), before);
    // 65 entries from 0x2000 and 16 bytes from 0x3000: neighbours, so one span.
    assert_eq!(guest.trapped(PageSize::SIZE_4K), [(0, 0x2000, 0x2000)]);
    assert_eq!(guest.trapped(PageSize::SIZE_64K), [(0, 0, 0x1_0000)]);
}

#[test]
fn a_function_level_reset_is_asked_for_only_where_the_device_has_one() {
    let bench = Bench::new(rich());
    let mut guest = bench.guest(SEAT);
    let before = bench.device();
    let control = find(&guest, &bench.pci, 0x10) + 8;
    let effects = guest.write(&bench.pci, control, Width::Half, 0x8000);
    assert_eq!(effects, Effects::RESET);
    assert_eq!(guest.read(&bench.pci, control, Width::Half) & 0x8000, 0);
    let effects = guest.write(&bench.pci, control + 1, Width::Byte, 0x80);
    assert_eq!(effects, Effects::RESET);
    let effects = guest.write(&bench.pci, control, Width::Word, 0x7fff_7fff);
    assert_eq!(effects, Effects::empty());
    assert_eq!(bench.device(), before);
    let without = Bench::new(FakeFunction::endpoint(1, 1, 0).express(PortType::Endpoint));
    let mut guest = without.guest(SEAT);
    let control = find(&guest, &without.pci, 0x10) + 8;
    let effects = guest.write(&without.pci, control, Width::Half, 0x8000);
    assert_eq!(effects, Effects::empty());

    let mut device = FakeFunction::endpoint(1, 1, 0);
    let at = device.add_capability(0x13, 6);
    device.bytes_mut()[at + 2..at + 4].copy_from_slice(&[6, 3]);
    let advanced = Bench::new(device);
    let mut guest = advanced.guest(SEAT);
    let control = find(&guest, &advanced.pci, 0x13) + 4;
    let effects = guest.write(&advanced.pci, control, Width::Byte, 1);
    assert_eq!(effects, Effects::RESET);
    let effects = guest.write(&advanced.pci, control, Width::Byte, 2);
    assert_eq!(effects, Effects::empty());
}

#[test]
fn error_bits_are_read_from_the_device_and_cleared_there() {
    // The model of the device has no bits that ones clear: a write shows as the value written.
    let bench = Bench::new(rich().with(4, 0x2018_0000, 0xffff_0000));
    let mut guest = bench.guest(SEAT);
    assert_eq!(guest.read(&bench.pci, 6, Width::Half), 0x2018);
    assert_eq!(guest.read(&bench.pci, 7, Width::Byte), 0x20);
    // Command in the same dword: not told to the device.
    let _ = guest.write(&bench.pci, 4, Width::Word, 0xffff_0006);
    assert_eq!(bench.pci.register(bench.id, 4) >> 16, 0xf900);
    assert_eq!(bench.pci.register(bench.id, 4) & 4, 0);
    let _ = guest.write(&bench.pci, 7, Width::Byte, 0x21);
    assert_eq!(bench.pci.register(bench.id, 4) >> 16, 0x2100);
    let _ = guest.write(&bench.pci, 6, Width::Byte, 0xff);
    assert_eq!(bench.pci.register(bench.id, 4) >> 16, 0x2100);
}

#[test]
fn what_sits_on_a_root_bus_is_part_of_the_root_complex_and_has_no_link() {
    let device = FakeFunction::endpoint(1, 1, 0).express(PortType::Endpoint);
    let at = 0x40;
    let device = device
        .with(at + 0xc, 0x0141_2c11, 0)
        .with(at + 0x10, 0x3011_0003, 0xffff);
    let bench = Bench::new(device);
    let read = |seat, offset, width| bench.guest(seat).read(&bench.pci, offset, width);
    assert_eq!(read(SEAT, 0x42, Width::Half), 0x0092);
    assert_eq!(read(SEAT, 0x4c, Width::Word), 0);
    assert_eq!(read(SEAT, 0x50, Width::Word), 0);
    let below = Seat {
        upstream: Upstream::Port,
        siblings: Siblings::Several,
        ..SEAT
    };
    assert_eq!(read(below, 0x42, Width::Half), 0x0002);
    assert_eq!(read(below, 0x4c, Width::Word), 0x0001_2011);
    assert_eq!(read(below, 0x50, Width::Word), 0x3011_0000);
    assert_eq!(read(below, 0x0e, Width::Byte), 0x80);
    assert_eq!(read(SEAT, 0x0e, Width::Byte), 0x00);
}

#[test]
fn bridges_are_not_given_away() {
    let bench = Bench::new(FakeFunction::bridge(1, 1));
    let refused = VirtualFunction::new(&bench.pci, &bench.function, SEAT);
    assert_eq!(
        refused.err(),
        Some(Refusal::NotAnEndpoint(bench.function.bdf))
    );
}

#[test]
fn structures_that_overlap_are_shown_once() {
    let mut device = FakeFunction::endpoint(1, 1, 0)
        .bar(0, BarKind::Memory32, 8192)
        .msi(0, 0x180);
    // MSI-X in the middle of MSI, and a vendor structure longer than the space.
    device.set(0x48, 0x0000_f011, 0);
    device.set(0x4c, 0, 0);
    device.set(0x50, 0x1000, 0);
    device.bytes_mut()[0x41] = 0x48;
    device.set(0xf0, 0x0020_0009, 0);
    let bench = Bench::new(device);
    assert!(bench.function.capabilities.msix.is_some());
    let guest = bench.guest(SEAT);
    assert_eq!(list(&guest, &bench.pci), [(0x05, 0x40)]);
    assert_eq!(guest.msix(), None);
}

#[test]
fn accesses_across_their_width_or_the_end_do_nothing() {
    let bench = Bench::new(rich());
    let mut guest = bench.guest(SEAT);
    for (offset, width) in [(5, Width::Half), (2, Width::Word), (4096, Width::Byte)] {
        assert_eq!(guest.read(&bench.pci, offset, width), u32::MAX);
        let effects = guest.write(&bench.pci, offset, width, u32::MAX);
        assert_eq!(effects, Effects::empty());
    }
    assert_eq!(guest.read(&bench.pci, 4, Width::Half), 0);
}

fn masks(row: &Row) -> [u32; 4] {
    [row.copied, row.live, row.writable, row.cleared]
}

#[test]
fn the_table_is_sound() {
    for pair in TABLE.windows(2) {
        let [a, b] = pair else { continue };
        assert!(
            a.structure != b.structure || a.offset + a.bytes <= b.offset,
            "{}",
            b.name
        );
    }
    for row in TABLE {
        let [copied, live, writable, cleared] = masks(row);
        let width = if row.bytes >= 4 {
            u32::MAX
        } else {
            (1 << (8 * row.bytes)) - 1
        };
        assert_eq!((copied | live | writable) & !width, 0, "{}", row.name);
        assert_eq!(cleared & !live, 0, "{}", row.name);
        assert_eq!((copied | writable) & live, 0, "{}", row.name);
        // Ones go to the device by halves, and only in status registers.
        assert!(cleared == 0 || row.bytes == 2 && row.offset % 2 == 0);
        match row.treatment {
            Treatment::Hidden => assert_eq!(masks(row), [0; 4], "{}", row.name),
            Treatment::Passed => assert!(live != 0 && copied | writable == 0, "{}", row.name),
            Treatment::Shadowed => assert!(live == 0 && copied | writable != 0, "{}", row.name),
            Treatment::Emulated => assert_eq!(live, 0, "{}", row.name),
        }
    }
}

/// The tables of the docs page, as the rows say them.
fn page() -> String {
    let mut page = String::new();
    let mut last = None;
    let mask = |mask: u32| match mask {
        0 => String::new(),
        mask => format!("`{mask:#x}`"),
    };
    for row in TABLE {
        if last != Some(row.structure) {
            if last.is_some() {
                page.push('\n');
            }
            page += &format!("### {}\n\n", row.structure);
            page += "| at | bytes | field | treatment | copied | live | writable | cleared by ones | |\n";
            page += "|---|---|---|---|---|---|---|---|---|\n";
            last = Some(row.structure);
        }
        let [copied, live, writable, cleared] = masks(row).map(mask);
        page += &format!(
            "| `{:#04x}` | {} | {} | {} | {copied} | {live} | {writable} | {cleared} | {} |\n",
            row.offset, row.bytes, row.name, row.treatment, row.note
        );
    }
    page
}

#[test]
fn the_docs_page_says_what_the_table_says() {
    let docs = include_str!("../../../../docs/pci-config-filter.md");
    let (_, tables) = docs.split_once("<!-- table -->\n\n").unwrap();
    let (tables, _) = tables.split_once("\n<!-- end of table -->").unwrap();
    assert_eq!(tables, page(), "the page should say:\n{}", page());
    assert!(TABLE.iter().any(|row| row.structure == Structure::Extended));
}

/// What a guest tries.
#[derive(Clone, Debug)]
struct Try {
    offset: u16,
    width: Width,
    value: u32,
}

fn tries() -> impl Strategy<Value = Vec<Try>> {
    let offset = prop_oneof![4 => 0..0x100_u16, 1 => 0..0x1100_u16];
    let width = prop_oneof![Just(Width::Byte), Just(Width::Half), Just(Width::Word)];
    let value = prop_oneof![any::<u32>(), Just(u32::MAX), Just(0)];
    let one = (offset, width, value).prop_map(|(offset, width, value)| Try {
        // Mostly aligned.
        offset: if value % 7 == 0 {
            offset
        } else {
            offset & !(width.bytes() - 1)
        },
        width,
        value,
    });
    vec(one, 0..60)
}

/// Where a guest's write may reach the device and with which bits: the two status registers.
fn reachable(guest: &VirtualFunction, pci: &FakePci) -> Vec<(u16, u32)> {
    let mut places = Vec::from([(6, 0xf900)]);
    if let Some(&(_, at)) = list(guest, pci).iter().find(|(id, _)| *id == 0x10) {
        places.push((at + 0xa, 0x000f));
    }
    places
}

proptest! {
    #[test]
    fn no_guest_write_reaches_the_device_and_no_width_sees_more(
        tries in tries(),
        noise in vec((0..64_u16, any::<u32>()), 0..30),
        lies in any::<bool>(),
        port in any::<bool>(),
    ) {
        let mut device = rich();
        if lies {
            for (dword, value) in noise {
                if !(3..12).contains(&dword) {
                    device.set(usize::from(dword) * 4, value, u32::MAX);
                }
            }
            // Still there, and still an endpoint.
            device.set(0, 0x0010_1b36, 0);
        }
        let bench = Bench::new(device);
        let upstream = if port { Upstream::Port } else { Upstream::RootBus };
        let seat = Seat { upstream, ..SEAT };
        let mut guest = bench.guest(seat);
        let fresh = guest.clone();
        bench.pci.take_writes();
        let reachable = reachable(&guest, &bench.pci);
        for Try { offset, width, value } in tries {
            let mapping = [0, 1, 2, 3, 4, 5].map(|bar| guest.mapping(bar));
            let effects = guest.write(&bench.pci, offset, width, value);
            let after = [0, 1, 2, 3, 4, 5].map(|bar| guest.mapping(bar));
            prop_assert_eq!(effects.contains(Effects::MAPPING), mapping != after);
            for write in bench.pci.take_writes() {
                let place = reachable.iter().find(|(at, _)| *at == write.offset);
                prop_assert!(place.is_some_and(|(_, bits)| write.value & !bits == 0), "{write:x?}");
                prop_assert_eq!((write.bdf, write.width), (bench.function.bdf, 2));
            }
            for bar in guest.bars() {
                let address = guest.bar_address(bar.index).unwrap();
                prop_assert_eq!(address % bar.size, 0);
                prop_assert!(bar.size >= 4096);
            }
            if let Some(msi) = guest.msi() {
                prop_assert!(msi.vectors.is_power_of_two() && msi.vectors <= 32);
            }
        }
        // The same list as at first, and each width sees the same bytes.
        prop_assert_eq!(list(&guest, &bench.pci), list(&fresh, &bench.pci));
        for offset in (0..0x1000_u16).step_by(4) {
            let word = guest.read(&bench.pci, offset, Width::Word);
            let halves = [0, 2].map(|i| guest.read(&bench.pci, offset + i, Width::Half));
            let bytes = [0, 1, 2, 3].map(|i| guest.read(&bench.pci, offset + i, Width::Byte));
            prop_assert_eq!(word, halves[0] | halves[1] << 16);
            let bytes = bytes.map(|byte| u8::try_from(byte).unwrap());
            prop_assert_eq!(word, u32::from_le_bytes(bytes));
            if offset >= 0x100 {
                prop_assert_eq!(word, 0);
            }
        }
        guest.reset();
        for offset in (0..0x100_u16).step_by(4) {
            let [a, b] = [&guest, &fresh].map(|g| g.read(&bench.pci, offset, Width::Word));
            prop_assert_eq!(a, b);
        }
    }
}

#[test]
fn a_hidden_pin_is_none_and_never_asked_for() {
    let bench = Bench::new(rich());
    let shown = bench.guest(SEAT);
    assert!(shown.pin().is_some());
    let mut guest = bench.guest(Seat {
        pin: Pin::Hidden,
        ..SEAT
    });
    assert_eq!(guest.read(&bench.pci, 0x3d, Width::Byte), 0);
    assert!(guest.pin().is_none() && !guest.intx());
    assert_eq!(
        guest.write(&bench.pci, 4, Width::Half, 0x0400),
        Effects::empty()
    );
}
