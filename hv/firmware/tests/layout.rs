//! Where a guest's parts go, for every kernel format, and what is refused.

use bulkhead_firmware::kernel::{Kernel, Packing};
use bulkhead_firmware::{
    FirmwareError, FirmwareKind, GuestPlatform, Item, KernelError, KernelFormat, Layout, Payload,
    plan,
};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use types::{Ipa, Span};

const MIB: u64 = 1 << 20;
const RAM: u64 = 0x4000_0000;

fn ipa(bits: u64) -> Ipa {
    Ipa::new(bits).unwrap()
}

fn image(text_offset: u64, image_size: u64, flags: u64, file_bytes: usize) -> Vec<u8> {
    let mut file = vec![0xa5; file_bytes.max(64)];
    file[..8].copy_from_slice(&[0x4d, 0x5a, 0, 0x91, 0xff, 0xff, 0x5b, 0x14]);
    file[8..16].copy_from_slice(&text_offset.to_le_bytes());
    file[16..24].copy_from_slice(&image_size.to_le_bytes());
    file[24..32].copy_from_slice(&flags.to_le_bytes());
    file[56..60].copy_from_slice(b"ARM\x64");
    file
}

/// A loadable segment: where it is meant to go and its bytes.
struct Load {
    virtual_address: u64,
    physical_address: u64,
    bytes: Vec<u8>,
    memory_size: u64,
}

fn elf(entry: u64, loads: &[Load]) -> Vec<u8> {
    let mut file = vec![0; 64 + 56 * loads.len()];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..20].copy_from_slice(&[2, 0, 183, 0]);
    file[20] = 1;
    file[24..32].copy_from_slice(&entry.to_le_bytes());
    file[32] = 64;
    file[52] = 64;
    file[54] = 56;
    file[56] = loads.len().try_into().unwrap();
    for (index, load) in loads.iter().enumerate() {
        let words = [
            0x5_0000_0001,
            file.len() as u64,
            load.virtual_address,
            load.physical_address,
            load.bytes.len() as u64,
            load.memory_size,
            0x1000,
        ];
        for (word, value) in words.into_iter().enumerate() {
            let at = 64 + 56 * index + 8 * word;
            file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        file.extend(&load.bytes);
    }
    file
}

fn load(at: u64, memory_size: u64) -> Load {
    Load {
        virtual_address: at,
        physical_address: at,
        bytes: vec![0x5a; 16],
        memory_size,
    }
}

fn payload(kernel: &[u8]) -> Payload<'_> {
    Payload {
        kernel,
        format: KernelFormat::Auto,
        initrd: None,
        tree: None,
        firmware: FirmwareKind::DeviceTree,
    }
}

fn plan_in(ram: u64, kernel: &[u8]) -> Result<Layout<'_>, FirmwareError> {
    plan(&GuestPlatform::virt(ram, 1).unwrap(), &payload(kernel))
}

fn kernel_error(kernel: &[u8]) -> KernelError {
    match plan_in(64 * MIB, kernel) {
        Err(FirmwareError::Kernel(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_image_starts_at_its_offset_from_a_2_mib_boundary() {
    for text_offset in [0, 0x1000, 0x8_0000] {
        let file = image(text_offset, 40 * MIB, 0xa, 4096);
        let layout = plan_in(64 * MIB, &file).unwrap();
        assert_eq!(layout.entry.pc, ipa(RAM + text_offset));
        assert_eq!(layout.placements[0].at, layout.entry.pc);
        assert_eq!(layout.placements[0].bytes, file);
        let tree = layout.placements.last().unwrap();
        assert_eq!(tree.item, Item::DeviceTree);
        assert_eq!(layout.entry.x0, tree.at);
        assert!(tree.at.bits() >= RAM + text_offset + 40 * MIB);
        assert!(tree.bytes.starts_with(&[0xd0, 0x0d, 0xfe, 0xed]));
    }
}

#[test]
fn memory_the_kernel_clears_is_kept_free() {
    let file = image(0, 62 * MIB + 1, 0xa, 4096);
    let error = plan_in(64 * MIB, &file).unwrap_err();
    assert!(
        matches!(
            error,
            FirmwareError::NoRoom {
                item: Item::DeviceTree,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(plan_in(64 * MIB, &image(0, 62 * MIB, 0xa, 4096)).is_ok());
    let error = plan_in(64 * MIB, &image(0, 65 * MIB, 0xa, 4096)).unwrap_err();
    let at = ipa(RAM);
    let bytes = 65 * MIB;
    assert_eq!(
        error,
        FirmwareError::NotRam {
            item: Item::Kernel,
            at,
            bytes
        }
    );
}

#[test]
fn an_image_without_a_size_is_an_old_one() {
    let file = image(0x1234_5678_9abc, 0, 0, 8192);
    let layout = plan_in(64 * MIB, &file).unwrap();
    assert_eq!(layout.entry.pc, ipa(RAM + 0x8_0000));
}

#[test]
fn a_file_without_a_header_goes_half_a_mib_up() {
    let layout = plan_in(4 * MIB, b"\x1f\x20\x03\xd5").unwrap();
    assert_eq!(layout.entry.pc, ipa(RAM + 0x8_0000));
    assert!(layout.entry.x0 > layout.entry.pc);
}

#[test]
fn elf_segments_go_where_they_say() {
    let mut high = load(RAM + 3 * MIB, 2 * MIB);
    high.virtual_address = 0xffff_0000_0000_0000;
    let file = elf(high.virtual_address + 8, &[load(RAM, 0x1000), high]);
    let layout = plan_in(16 * MIB, &file).unwrap();
    assert_eq!(layout.entry.pc, ipa(RAM + 3 * MIB + 8));
    assert_eq!(layout.placements[0].at, ipa(RAM));
    assert_eq!(layout.placements[1].at, ipa(RAM + 3 * MIB));
    assert_eq!(layout.placements[1].bytes, vec![0x5a; 16]);
}

#[test]
fn an_elf_segment_outside_ram_is_refused() {
    for at in [0, RAM - 8, RAM + 16 * MIB - 8] {
        let error = plan_in(16 * MIB, &elf(at, &[load(at, 16)])).unwrap_err();
        assert!(
            matches!(
                error,
                FirmwareError::NotRam {
                    item: Item::Kernel,
                    ..
                }
            ),
            "{error:?}"
        );
    }
    let overlapping = elf(RAM, &[load(RAM, 32), load(RAM + 31, 16)]);
    assert_eq!(
        plan_in(16 * MIB, &overlapping),
        Err(FirmwareError::Overlap {
            item: Item::Kernel,
            at: ipa(RAM + 31)
        })
    );
}

#[test]
fn a_vmlinux_is_loaded_as_the_image_it_holds() {
    let base = 0xffff_8000_8000_0000;
    let mut text = load(base, 0x1_0000);
    text.bytes = image(0, 8 * MIB, 0xa, 0x1000);
    let data = load(base + 2 * MIB, MIB);
    let file = elf(base, &[text, data]);
    let layout = plan_in(64 * MIB, &file).unwrap();
    assert_eq!(layout.entry.pc, ipa(RAM));
    assert_eq!(layout.placements[0].at, ipa(RAM));
    assert_eq!(layout.placements[1].at, ipa(RAM + 2 * MIB));

    let plain = elf(base, &[load(base, 16)]);
    assert_eq!(kernel_error(&plain), KernelError::ElfSegment(0));
}

#[test]
fn a_packed_kernel_is_named_as_such() {
    let packed: [(&[u8], Packing); 6] = [
        (b"\x1f\x8b\x08\0", Packing::Gzip),
        (b"MZ\0\0zimg", Packing::EfiZboot),
        (b"\xfd7zXZ\0", Packing::Xz),
        (b"BZh9", Packing::Bzip2),
        (b"\x28\xb5\x2f\xfd", Packing::Zstd),
        (b"\x02\x21\x4c\x18", Packing::Lz4),
    ];
    for (file, packing) in packed {
        assert_eq!(kernel_error(file), KernelError::Packed(packing));
        // Asked for by name, the same bytes are a flat binary.
        assert!(Kernel::parse(file, KernelFormat::Flat).is_ok());
    }
}

#[test]
fn a_damaged_kernel_is_refused_with_the_reason() {
    assert_eq!(kernel_error(b""), KernelError::Empty);
    assert_eq!(kernel_error(&image(0, MIB, 1, 64)), KernelError::BigEndian);
    let text_offset = 2 * MIB;
    let image_size = MIB;
    assert_eq!(
        kernel_error(&image(text_offset, image_size, 0, 64)),
        KernelError::ImageHeader {
            text_offset,
            image_size
        }
    );
    assert_eq!(
        Kernel::parse(&[0; 64], KernelFormat::Image),
        Err(KernelError::NotAnImage)
    );
    assert_eq!(kernel_error(b"\x7fELF\x01\x01"), KernelError::NotElf64);

    let good = elf(RAM, &[load(RAM, 16)]);
    assert!(plan_in(64 * MIB, &good).is_ok());
    let damaged = |at: usize, value: u8| {
        let mut file = good.clone();
        file[at] = value;
        kernel_error(&file)
    };
    assert_eq!(damaged(18, 62), KernelError::ElfMachine(62));
    assert_eq!(damaged(16, 1), KernelError::ElfType(1));
    assert_eq!(damaged(54, 55), KernelError::ElfHeaders);
    assert_eq!(damaged(38, 1), KernelError::ElfHeaders);
    assert_eq!(damaged(64 + 8, 255), KernelError::ElfSegment(0));
    assert_eq!(damaged(64 + 40, 8), KernelError::ElfSegment(0));
    assert_eq!(damaged(24, 16), KernelError::ElfEntry(RAM + 16));
    assert_eq!(damaged(64, 2), KernelError::ElfEntry(RAM));
}

#[test]
fn a_large_initrd_goes_past_the_first_gib() {
    let kernel = image(0, 8 * MIB, 0xa, 64);
    let platform = GuestPlatform::virt(2 << 30, 1).unwrap();
    let small = vec![1; 3];
    let payload = Payload {
        initrd: Some(&small),
        ..payload(&kernel)
    };
    let layout = plan(&platform, &payload).unwrap();
    let initrd = &layout.placements[1];
    assert_eq!(initrd.item, Item::Initrd);
    assert_eq!(initrd.at, ipa(RAM + (1 << 30) - 0x1_0000));

    // The first GiB has no room when the kernel says it needs nearly all of it.
    let kernel = image(0, 1023 * MIB, 0xa, 64);
    let payload = Payload {
        kernel: &kernel,
        ..payload
    };
    let layout = plan(&platform, &payload).unwrap();
    assert!(layout.entry.x0 >= ipa(RAM + (1 << 30)));
}

fn reach(layout: &Layout<'_>) -> Vec<Span<Ipa>> {
    let spans = layout
        .placements
        .iter()
        .filter_map(|p| Span::from_len(p.at, p.bytes.len() as u64));
    spans.collect()
}

fn kernels() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (0..3 * MIB, 0..80 * MIB, any::<u8>()).prop_map(|(offset, size, flags)| image(
            offset,
            size,
            flags.into(),
            4096
        )),
        (0..64 * MIB, 1..64 * MIB)
            .prop_map(|(at, size)| elf(RAM, &[load(RAM, 0x1000), load(RAM + at, size)])),
        Just(vec![0; 100_000]),
    ]
}

proptest! {
    #[test]
    fn placements_are_in_ram_and_apart(
        kernel in kernels(),
        initrd in 0_usize..300_000,
        ram in 1_u64..64,
    ) {
        let initrd = vec![7; initrd];
        let platform = GuestPlatform::virt(ram * MIB, 4).unwrap();
        let payload = Payload { initrd: Some(&initrd), ..payload(&kernel) };
        if let Ok(layout) = plan(&platform, &payload) {
            let spans = reach(&layout);
            for (index, span) in spans.iter().enumerate() {
                assert!(platform.memory[0].contains_span(*span));
                assert!(spans[..index].iter().all(|other| !other.overlaps(*span)));
            }
            if let Kernel::Image(image) = Kernel::parse(&kernel, KernelFormat::Auto).unwrap() {
                let kept = Span::from_len(layout.entry.pc, image.image_size).unwrap();
                assert!(platform.memory[0].contains_span(kept));
                assert!(spans[1..].iter().all(|span| !span.overlaps(kept)));
            }
        }
    }

    #[test]
    fn no_file_makes_the_parser_panic(
        mut file in proptest::collection::vec(any::<u8>(), 0..400),
        format in prop_oneof![
            Just(KernelFormat::Auto), Just(KernelFormat::Image), Just(KernelFormat::Elf)
        ],
    ) {
        let _ = Kernel::parse(&file, format);
        let good = elf(RAM, &[load(RAM, 16), load(RAM + 32, 16)]);
        let len = file.len().min(good.len());
        // Keep the identification, damage the rest.
        for at in 20..len {
            if file[at] < 200 {
                file[at] = good[at];
            }
        }
        file[..len.min(20)].copy_from_slice(&good[..len.min(20)]);
        let _ = Kernel::parse(&file, KernelFormat::Elf);
    }
}

#[test]
fn devices_use_tables_of_the_cpus_where_memory_is_and_no_bar_can_be() {
    const GIB: u64 = 1 << 30;
    let units = |memory: &[(u64, u64)], has_pci: bool| -> Vec<(u64, u64)> {
        let mut platform = GuestPlatform::virt(GIB, 1).unwrap();
        platform.memory = memory
            .iter()
            .map(|(start, bytes)| Span::from_len(ipa(*start), *bytes).unwrap())
            .collect();
        if has_pci {
            platform = platform.with_virt_pci_and_no_smmu(0xff);
        }
        let runs = platform.memory_units();
        let runs = runs
            .iter()
            .map(|run| (run.start().bits(), run.len().unwrap()));
        runs.map(|(start, bytes)| (start / GIB, bytes / GIB))
            .collect()
    };
    for has_pci in [false, true] {
        assert_eq!(units(&[(RAM, 512 * MIB)], has_pci), [(1, 1)]);
        assert_eq!(units(&[(RAM, 6 * GIB)], has_pci), [(1, 6)]);
        // In one unit, in two, and in two runs of them.
        let memory = [(RAM, MIB), (RAM + 2 * MIB, MIB), (RAM + 5 * MIB, GIB)];
        assert_eq!(units(&memory, has_pci), [(1, 2)]);
        assert_eq!(
            units(&[(RAM, MIB), (8 * GIB, MIB)], has_pci),
            [(1, 1), (8, 1)]
        );
    }
    // The window below 4 GiB is in the first unit, that above from 512 GiB on.
    assert_eq!(units(&[(0, MIB)], false), [(0, 1)]);
    assert_eq!(units(&[(0, MIB)], true), []);
    assert_eq!(units(&[(GIB - MIB, 3 * GIB)], false), [(0, 4)]);
    assert_eq!(units(&[(GIB - MIB, 3 * GIB)], true), [(1, 3)]);
    assert_eq!(units(&[(511 * GIB, GIB)], true), [(511, 1)]);
    assert_eq!(units(&[(511 * GIB, 2 * GIB)], true), [(511, 1)]);
}
