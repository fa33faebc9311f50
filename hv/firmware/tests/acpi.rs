//! The ACPI tables as Linux reads them. Linux says nothing of most mistakes here; so these tests do.

use bulkhead_firmware::acpi::{Table, tables};
use bulkhead_firmware::{
    Conduit, DevicePath, FirmwareKind, GuestPlatform, Item, KernelFormat, Layout, Payload,
    PciWindow, Remapping, Rmr, WindowKind, plan,
};
use dtoolkit::fdt::Fdt;
use dtoolkit::model::DeviceTree;
use dtoolkit::{Node, Property};
use proptest::prelude::{any, proptest};
use types::{Bdf, Ipa, Span};

const BASE: u64 = 0x4a01_0000;

fn span(start: u64, bytes: u64) -> Span<Ipa> {
    Span::from_len(Ipa::truncated(start), bytes).unwrap()
}

fn with_pci() -> GuestPlatform {
    GuestPlatform::virt(1 << 30, 2).unwrap().with_virt_pci()
}

fn write(platform: &GuestPlatform) -> Vec<Table> {
    tables(platform, Ipa::truncated(BASE)).unwrap()
}

fn find(tables: &[Table], signature: &[u8; 4]) -> Vec<u8> {
    let table = tables.iter().find(|table| table.signature == *signature);
    table.unwrap().bytes.clone()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Follows the pointers from the RSDP as an operating system does, and checks each header.
fn walk(all: &[Table]) -> Vec<[u8; 4]> {
    let at = |address: u64| {
        let table = all.iter().find(|table| table.at.bits() == address);
        table.expect("a pointer that leads to no table")
    };
    let rsdp = &at(BASE).bytes;
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((rsdp[15], word(rsdp, 16), word(rsdp, 20)), (2, 0, 36));
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));

    let xsdt = at(long(rsdp, 24));
    let entries: Vec<u64> = xsdt.bytes[36..]
        .chunks(8)
        .map(|entry| long(entry, 0))
        .collect();
    let mut found = vec![xsdt];
    found.extend(entries.iter().map(|address| at(*address)));
    let fadt = at(entries[0]);
    assert_eq!(&fadt.signature, b"FACP");
    found.push(at(long(&fadt.bytes, 140)));
    for table in &found {
        let bytes = &table.bytes;
        assert_eq!(bytes[..4], table.signature);
        assert_eq!(word(bytes, 4) as usize, bytes.len());
        assert_eq!(sum(bytes), 0, "{:?}", table.signature);
        assert_eq!(&bytes[10..16], b"BLKHD ");
    }
    assert_eq!(found.len() + 1, all.len(), "a table nothing points to");
    found.iter().map(|table| table.signature).collect()
}

#[test]
fn every_table_is_reached_and_sums_to_zero() {
    let found = walk(&write(&with_pci()));
    let expected = [
        b"XSDT", b"FACP", b"APIC", b"GTDT", b"SPCR", b"MCFG", b"IORT", b"DSDT",
    ];
    assert_eq!(found, expected.map(|signature| *signature));
}

#[test]
fn a_guest_without_pci_has_no_word_of_it() {
    let all = write(&GuestPlatform::virt(1 << 30, 1).unwrap());
    let expected = [b"XSDT", b"FACP", b"APIC", b"GTDT", b"SPCR", b"DSDT"];
    assert_eq!(walk(&all), expected.map(|signature| *signature));
    let dsdt = find(&all, b"DSDT");
    assert!(contains(&dsdt, b"ACPI0007") && contains(&dsdt, b"ARMH0011"));
    for absent in [b"PCI0", b"RES0", b"_CCA", b"_DSM"] {
        assert!(!contains(&dsdt, absent));
    }
    // The negative control.
    let dsdt = find(&write(&with_pci()), b"DSDT");
    for present in [b"PCI0", b"RES0", b"_CCA", b"_DSM", b"_CID", b"_CRS"] {
        assert!(contains(&dsdt, present));
    }
}

#[test]
fn a_wrong_byte_is_noticed_by_the_sum() {
    for table in write(&with_pci()) {
        for at in [0, table.bytes.len() - 1] {
            let mut bytes = table.bytes.clone();
            bytes[at] ^= 0x40;
            assert_ne!(sum(&bytes), 0);
        }
    }
}

#[test]
fn the_fixed_description_says_reduced_hardware_and_psci() {
    let mut platform = with_pci();
    let fadt = find(&write(&platform), b"FACP");
    assert_eq!((fadt[8], fadt.len()), (6, 276));
    assert_eq!(word(&fadt, 112) & 1 << 20, 1 << 20);
    assert_eq!(fadt[129..131], [3, 0]);
    assert_eq!(word(&fadt, 40), 0);
    platform.conduit = Conduit::Smc;
    assert_eq!(find(&write(&platform), b"FACP")[129..131], [1, 0]);
}

#[test]
fn each_vcpu_has_an_interface_and_a_device() {
    let mut platform = GuestPlatform::virt(1 << 30, 18).unwrap();
    platform.pmu_ppi = Some(23);
    let all = write(&platform);
    let madt = find(&all, b"APIC");
    let mut at = 44;
    let mut affinities = Vec::new();
    let mut kinds = Vec::new();
    while at < madt.len() {
        let entry = &madt[at..at + usize::from(madt[at + 1])];
        if entry[0] == 11 {
            assert_eq!(entry.len(), 80);
            assert_eq!(word(entry, 8) as usize, affinities.len(), "uid");
            assert_eq!((word(entry, 12), word(entry, 20)), (1, 23));
            affinities.push(long(entry, 68));
        } else {
            kinds.push(entry[0]);
        }
        at += entry.len();
    }
    assert_eq!(kinds, [12, 14], "no ITS without PCI");
    assert_eq!(affinities.len(), 18);
    assert_eq!(affinities[15..], [15, 0x100, 0x101]);
    let dsdt = find(&all, b"DSDT");
    assert!(contains(&dsdt, b"C011") && !contains(&dsdt, b"C012"));
}

#[test]
fn the_host_bridge_is_one_that_linux_finds_and_lets_do_dma() {
    let dsdt = find(&write(&with_pci()), b"DSDT");
    // EISA IDs: PNP0A08 and PNP0A03.
    assert!(contains(&dsdt, b"_HID\x0c\x41\xd0\x0a\x08"));
    assert!(contains(&dsdt, b"_CID\x0c\x41\xd0\x0a\x03"));
    assert!(contains(&dsdt, b"_CCA\x01"));
    // Configuration space is reserved by a device that consumes it.
    assert!(contains(&dsdt, b"_HID\x0c\x41\xd0\x0c\x02"));
    let ecam = [&[0x8a, 43, 0, 0, 0x0d, 0x01, 0, 0, 0, 0, 0, 0, 0, 0][..]].concat();
    let base = 0x40_1000_0000_u64.to_le_bytes();
    assert!(contains(&dsdt, &[&ecam[..], &base].concat()));
}

#[test]
fn pins_are_routed_as_a_bridge_above_them_would_move_them() {
    let dsdt = find(&write(&with_pci()), b"DSDT");
    // Device and any function, pin, no link device, interrupt: in AML a package of four.
    let entry = |device: u32, pin: u8, interrupt: u8| {
        let mut address = vec![0x0c];
        address.extend((device << 16 | 0xffff).to_le_bytes());
        let pin = match pin {
            0 | 1 => vec![pin],
            _ => vec![0x0a, pin],
        };
        let body = [&[4][..], &address, &pin, &[0, 0x0a, interrupt]].concat();
        let length = u8::try_from(body.len() + 1).unwrap();
        [&[0x12, length][..], &body].concat()
    };
    // Device 0's address would be a shorter number.
    for (device, pin, interrupt) in [(4, 0, 35), (1, 0, 36), (1, 3, 35), (6, 2, 35), (31, 3, 37)] {
        let entry = entry(device, pin, interrupt);
        assert!(contains(&dsdt, &entry), "device {device} pin {pin}");
    }
    assert!(!contains(&dsdt, &entry(1, 0, 35)));
}

#[test]
fn an_io_window_is_ports_reached_through_memory() {
    let mut platform = with_pci();
    platform.pci.as_mut().unwrap().windows.push(PciWindow {
        kind: WindowKind::Io,
        cpu: Ipa::truncated(0x3eff_1000),
        bus: 0x1000,
        bytes: 0xf000,
    });
    let dsdt = find(&write(&platform), b"DSDT");
    let mut range = vec![0x8a, 43, 0, 1, 0x0c, 0x13];
    for value in [0, 0x1000, 0xffff, 0x3eff_0000, 0xf000_u64] {
        range.extend(value.to_le_bytes());
    }
    assert!(contains(&dsdt, &range));
}

#[test]
fn reserved_ranges_name_their_streams_and_say_if_they_may_go() {
    let mut platform = with_pci();
    let device = |bus, device| DevicePath::new(vec![], Bdf::new(bus, device, 0).unwrap());
    platform.rmrs = vec![Rmr {
        window: span(0x0800_0000, 0x10_0000),
        remapping: Remapping::Permitted,
        devices: vec![device(0, 1), device(1, 0)],
    }];
    let all = write(&platform);
    walk(&all);
    let iort = find(&all, b"IORT");
    assert!(
        iort[8] >= 5,
        "Linux reads no reserved range before revision 5"
    );
    let rmr = &iort[0xd8..];
    assert_eq!((rmr[0], word(rmr, 8), word(rmr, 12)), (6, 2, 28));
    assert_eq!(u16::from_le_bytes([rmr[1], rmr[2]]) as usize, rmr.len());
    assert_eq!((word(rmr, 16), word(rmr, 20), word(rmr, 24)), (1, 1, 68));
    for (at, stream) in [(28, 0x008), (48, 0x100)] {
        let smmu = 0x48;
        let mapping = [0, 4, 8, 12, 16].map(|field| word(rmr, at + field));
        assert_eq!(mapping, [stream, 0, stream, smmu, 0]);
    }
    assert_eq!((long(rmr, 68), long(rmr, 76)), (0x0800_0000, 0x10_0000));
}

fn dump(table: &[u8]) -> String {
    let lines: Vec<String> = table
        .chunks(16)
        .enumerate()
        .map(|(line, bytes)| {
            let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{:04x}  {}", line * 16, bytes.join(" "))
        })
        .collect();
    lines.join("\n")
}

#[test]
fn the_iort_of_a_guest_with_all_of_it() {
    let mut platform = with_pci();
    platform.rmrs = vec![Rmr {
        window: span(0x0800_0000, 0x10_0000),
        remapping: Remapping::Denied,
        devices: vec![DevicePath::new(vec![], Bdf::new(0, 1, 0).unwrap())],
    }];
    insta::assert_snapshot!(dump(&find(&write(&platform), b"IORT")));
}

#[test]
fn a_guest_without_a_console_is_told_of_none() {
    let has = |all: &[Table], text: &[u8]| {
        let dsdt = find(all, b"DSDT");
        dsdt.windows(text.len()).any(|bytes| bytes == text)
    };
    let mut platform = with_pci();
    let all = write(&platform);
    assert!(has(&all, b"ARMH0011") && all.iter().any(|table| table.signature == *b"SPCR"));
    platform.uart = None;
    let all = write(&platform);
    walk(&all);
    assert!(!has(&all, b"ARMH0011") && has(&all, b"ACPI0007"));
    assert!(all.iter().all(|table| table.signature != *b"SPCR"));
}

fn stage_2_only() -> GuestPlatform {
    let platform = GuestPlatform::virt(1 << 30, 2).unwrap();
    platform.with_virt_pci_and_no_smmu(15)
}

#[test]
fn the_iort_of_a_guest_without_an_smmu() {
    let all = write(&stage_2_only());
    walk(&all);
    insta::assert_snapshot!(dump(&find(&all, b"IORT")));
}

#[test]
fn the_its_of_the_iort_is_that_of_the_madt_with_and_without_an_smmu() {
    for platform in [with_pci(), stage_2_only()] {
        let all = write(&platform);
        let madt = find(&all, b"APIC");
        let mut entries = Vec::new();
        let mut at = 44;
        while at < madt.len() {
            let bytes = usize::from(madt[at + 1]);
            if madt[at] == 15 {
                entries.push(madt[at..at + bytes].to_vec());
            }
            at += bytes;
        }
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].len(), 20);
        let (id, base) = (word(&entries[0], 4), long(&entries[0], 8));
        assert_eq!(base, 0x0808_0000);
        let iort = find(&all, b"IORT");
        let group = &iort[0x30..];
        // An ITS group of one, which is that.
        assert_eq!((group[0], word(group, 16), word(group, 20)), (0, 1, id));
    }
}

#[test]
fn configuration_space_has_the_buses_of_the_bridge() {
    for (platform, last) in [(with_pci(), 255), (stage_2_only(), 15)] {
        let all = write(&platform);
        let mcfg = find(&all, b"MCFG");
        assert_eq!(long(&mcfg, 44), 0x40_1000_0000);
        assert_eq!((mcfg[54], mcfg[55]), (0, last));
    }
}

/// Devices behind three of the machine's SMMUs, which are called 7, 3 and 5 there.
fn three_smmus() -> GuestPlatform {
    let mut platform = stage_2_only();
    let bdf = |bits| Bdf::from_bits(bits);
    let functions = [(0x10, 7), (0x100, 3), (0x08, 7), (0x200, 5), (0x108, 3)];
    let functions = functions.map(|(bits, unit)| (bdf(bits), unit));
    platform.add_virt_smmus(functions.into_iter()).unwrap();
    platform.rmrs = vec![Rmr {
        window: span(0x0800_0000, 0x10_0000),
        remapping: Remapping::Permitted,
        devices: functions
            .map(|(function, _)| DevicePath::new(vec![], function))
            .into(),
    }];
    platform
}

#[test]
fn each_smmu_has_its_own_node_registers_wires_and_requesters() {
    let platform = three_smmus();
    assert_eq!(platform.check(), Ok(()));
    let all = write(&platform);
    walk(&all);
    let iort = find(&all, b"IORT");
    assert_eq!(
        word(&iort, 36),
        6,
        "an ITS group, three SMMUs, the root complex, an RMR"
    );
    let smmus = [0x48, 0x48 + 108, 0x48 + 2 * 108];
    for (number, at) in smmus.into_iter().enumerate() {
        let node = &iort[at..];
        assert_eq!((node[0], word(node, 8)), (4, 2));
        assert_eq!(long(node, 16), 0x0905_0000 + 0x2_0000 * number as u64);
        let first = 106 + 4 * u32::try_from(number).unwrap();
        let wires = [44, 48, 52, 56].map(|field| word(node, field));
        // Events, page requests (there are none), errors, waits (which have messages).
        assert_eq!(wires, [first, 0, first + 3, 0]);
        assert_eq!(
            word(node, 68 + 12),
            0x30,
            "its devices' messages go to the ITS"
        );
        // Its own, too: revision 5, coherent, the index counts. One mapping without an input, to its own DeviceID.
        assert_eq!((node[3], word(node, 24), word(node, 64)), (5, 0x11, 1));
        let own = [88, 92, 96, 100, 104].map(|field| word(node, field));
        let device = 0xff00 + u32::try_from(number).unwrap();
        assert_eq!(own, [0, 0, device, 0x30, 1]);
    }
    let root = &iort[smmus[2] + 108..];
    let count = word(root, 8);
    assert_eq!(root[0], 2);
    let mapping = |node: &[u8], index: usize| {
        let at = word(node, 12) as usize + 20 * index;
        [0, 4, 8, 12].map(|field| word(node, at + field))
    };
    let ranges: Vec<_> = (0..count as usize)
        .map(|index| mapping(root, index))
        .collect();
    let [first, second, third] = smmus.map(|at| u32::try_from(at).unwrap());
    assert_eq!(
        ranges,
        [
            [0, 0xff, 0, first],
            [0x100, 0, 0x100, second],
            [0x101, 6, 0x101, first],
            [0x108, 0, 0x108, second],
            [0x109, 0xf6, 0x109, first],
            [0x200, 0, 0x200, third],
            [0x201, 0xfdfe, 0x201, first],
        ]
    );
    let rmr = &iort[smmus[2] + 108 + word(root, 12) as usize + 20 * count as usize..];
    assert_eq!((rmr[0], word(rmr, 8)), (6, 5));
    let reserved: Vec<_> = (0..5).map(|index| mapping(rmr, index)).collect();
    let of = |stream, smmu| [stream, 0, stream, smmu];
    assert_eq!(
        reserved,
        [
            of(0x10, first),
            of(0x100, second),
            of(0x08, first),
            of(0x200, third),
            of(0x108, second),
        ]
    );
}

/// Where every DeviceID may be a requester's, the SMMU has wires alone, and its node is as it was.
#[test]
fn an_smmu_whose_messages_would_be_a_requesters_sends_none() {
    let platform = GuestPlatform::virt(1 << 30, 2).unwrap().with_virt_pci();
    assert_eq!(platform.check(), Ok(()));
    let iort = find(&write(&platform), b"IORT");
    let node = &iort[0x48..];
    assert_eq!((node[0], node[3], word(node, 8)), (4, 4, 1));
    assert_eq!((word(node, 24), word(node, 48)), (1, 107));
}

#[test]
fn without_an_smmu_requesters_go_straight_to_the_its() {
    let mut platform = stage_2_only();
    let iort = find(&write(&platform), b"IORT");
    assert_eq!(word(&iort, 36), 2, "the ITS group and the root complex");
    let root = &iort[0x48..];
    assert_eq!((root[0], word(root, 8)), (2, 1));
    assert_eq!(word(root, 36 + 12), 0x30, "the ITS group");
    platform.gic.its = None;
    let all = write(&platform);
    assert!(!walk(&all).contains(b"IORT"));
}

fn image(image_size: u64) -> Vec<u8> {
    let mut file = vec![0; 4096];
    file[16..24].copy_from_slice(&image_size.to_le_bytes());
    file[56..60].copy_from_slice(b"ARM\x64");
    file
}

fn boot<'a>(platform: &GuestPlatform, kernel: &'a [u8], initrd: &'a [u8]) -> Layout<'a> {
    let payload = Payload {
        kernel,
        format: KernelFormat::Auto,
        initrd: Some(initrd),
        tree: None,
        firmware: FirmwareKind::Acpi,
    };
    plan(platform, &payload).unwrap()
}

fn placed(layout: &Layout<'_>, item: Item) -> (Ipa, Vec<u8>) {
    let placement = layout.placements.iter().find(|p| p.item == item).unwrap();
    (placement.at, placement.bytes.to_vec())
}

#[test]
fn the_device_tree_has_chosen_and_nothing_else() {
    let mut platform = with_pci();
    platform.bootargs = "earlycon".into();
    let kernel = image(32 << 20);
    let layout = boot(&platform, &kernel, b"initrd");
    let (tree_at, tree) = placed(&layout, Item::DeviceTree);
    assert_eq!(layout.entry.x0, tree_at);
    let (blob, bytes) = placed(&layout, Item::Acpi);
    assert!(blob.bits().is_multiple_of(0x1_0000));

    let tree = DeviceTree::from_fdt(&Fdt::new(&tree).unwrap());
    let names: Vec<_> = tree
        .root
        .children()
        .map(|node| node.name().to_owned())
        .collect();
    assert_eq!(names, ["chosen"]);
    let chosen = tree.find_node("/chosen").unwrap();
    let long = |name| chosen.property(name).unwrap().value_as::<u64>().unwrap();
    let word = |name| chosen.property(name).unwrap().value_as::<u32>().unwrap();
    assert_eq!(long("linux,uefi-system-table"), blob.bits());
    assert_eq!(long("linux,uefi-mmap-start"), blob.bits() + 0x1000);
    assert_eq!(word("linux,uefi-mmap-size"), 160);
    assert_eq!(word("linux,uefi-mmap-desc-size"), 40);
    assert_eq!(word("linux,uefi-mmap-desc-ver"), 1);
    assert_eq!(word("linux,uefi-secure-boot"), 2);
    let (initrd, _) = placed(&layout, Item::Initrd);
    assert_eq!(long("linux,initrd-start"), initrd.bits());
    assert_eq!(long("linux,initrd-end"), initrd.bits() + 6);
    assert_eq!(&bytes[..8], b"IBI SYST");
}

/// The memory map's entries: kind, start and length in bytes.
fn memory_map(blob: &[u8], entries: usize) -> Vec<(u32, u64, u64)> {
    let entry = |index| {
        let entry = &blob[0x1000 + 40 * index..];
        assert_eq!(long(entry, 32), 8, "write-back");
        (word(entry, 0), long(entry, 8), long(entry, 24) * 4096)
    };
    (0..entries).map(entry).collect()
}

proptest! {
    #[test]
    fn the_memory_map_is_the_ram_without_gap_or_overlap(
        mib in 64_u64..3000, cpus in 1_u16..123, second in any::<bool>(), pci in any::<bool>(),
    ) {
        let mut platform = GuestPlatform::virt(mib << 20, cpus).unwrap();
        if pci {
            platform = platform.with_virt_pci();
        }
        if second {
            platform.memory.push(span(0x20_0000_0000, 1 << 30));
        }
        let kernel = image(16 << 20);
        let layout = boot(&platform, &kernel, &[1; 5000]);
        let (at, blob) = placed(&layout, Item::Acpi);
        let entries = if second { 5 } else { 4 };
        let map = memory_map(&blob, entries);
        let kinds: Vec<_> = map.iter().map(|(kind, ..)| *kind).collect();
        assert_eq!(kinds, if second { vec![7, 9, 9, 7, 7] } else { vec![7, 9, 9, 7] });
        // Both regions are kept for the next kernel.
        assert_eq!(map[1], (9, at.bits(), 0x1_0000));
        assert_eq!(map[2].1 + map[2].2, at.bits() + blob.len() as u64);
        let mut next = platform.memory[0].start().bits();
        for (_, start, bytes) in &map[..4] {
            assert_eq!(*start, next);
            next += bytes;
        }
        assert_eq!(next - 1, platform.memory[0].last().bits());
        // Tables in guest memory are the tables, and they lie in the ACPI region.
        for table in tables(&platform, Ipa::truncated(at.bits() + 0x1_0000)).unwrap() {
            let offset = usize::try_from(table.at.bits() - at.bits()).unwrap();
            assert_eq!(blob[offset..offset + table.bytes.len()], table.bytes);
        }
    }
}
