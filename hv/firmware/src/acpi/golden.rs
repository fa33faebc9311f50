//! Our bytes against those that were seen to boot Linux.

use std::vec::Vec;

use types::{Bdf, Ipa, Span};

use super::{Blob, Identity, Table, build_tables};
use crate::platform::{DevicePath, GuestPlatform, Remapping, Rmr};

extern crate std;

/// What the golden tables are signed with.
const ACORN: Identity = Identity {
    vendor: "ACORN",
    oem_id: *b"ACORN ",
    oem_table_id: *b"ACORNVM ",
    creator_id: *b"ACRN",
    creator_revision: 1,
};

const BLOB: u64 = 0x4a00_0000;

/// The machine the golden tables describe.
fn platform() -> GuestPlatform {
    let mut platform = GuestPlatform::virt(1 << 30, 2).unwrap().with_virt_pci();
    platform.pmu_ppi = Some(23);
    platform.rmrs = Vec::from([Rmr {
        window: Span::from_len(Ipa::truncated(0x0800_0000), 0x10_0000).unwrap(),
        remapping: Remapping::Denied,
        devices: Vec::from([DevicePath::new(Vec::new(), Bdf::new(0, 1, 0).unwrap())]),
    }]);
    platform
}

/// The bytes of a dump, and which of them it shows.
fn golden(dump: &str) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = Vec::new();
    let mut shown = Vec::new();
    for line in dump.lines().filter(|line| !line.starts_with('#')) {
        let (offset, values) = line.split_once("  ").unwrap();
        let offset = usize::from_str_radix(offset, 16).unwrap();
        bytes.resize(offset, 0);
        for value in values.split(' ') {
            shown.push(bytes.len());
            bytes.push(u8::from_str_radix(value, 16).unwrap());
        }
    }
    (bytes, shown)
}

fn find(tables: &[Table], signature: &[u8; 4]) -> Vec<u8> {
    let table = tables.iter().find(|table| table.signature == *signature);
    table.unwrap().bytes.clone()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn the_efi_tables_are_the_golden_ones() {
    let (mut expected, shown) = golden(include_str!("golden/efi.txt"));
    // The golden map splits the memory after the tables in two; ours has it in one piece.
    expected.truncate(0x10a0);
    expected[0x1090..0x1098].copy_from_slice(&0x3_5fe0_u64.to_le_bytes());
    // Its EFI region is memory that the kernel uses again once it is up: nothing for the next kernel.
    assert_eq!(expected[0x1028], 2);
    expected[0x1028] = 9;
    let shown = shown.into_iter().filter(|at| *at < expected.len());

    let platform = platform();
    let bytes = Blob::bytes_needed(&platform).unwrap();
    assert_eq!(bytes, 0x2_0000);
    let span = Span::from_len(Ipa::truncated(BLOB), bytes).unwrap();
    let blob = Blob::signed(&platform, span, &ACORN).unwrap();
    for at in shown {
        assert_eq!(blob.bytes[at], expected[at], "at {at:#x}");
    }
    assert_eq!(blob.efi.system_table.bits(), BLOB);
    assert_eq!(blob.efi.memory_map.bits(), BLOB + 0x1000);
    assert_eq!(blob.efi.memory_map_bytes, 160);
    assert_eq!(
        blob.bytes[0x2000..0x2010],
        *b"\xff\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    assert_eq!(blob.bytes[0x1_0000..0x1_0008], *b"RSD PTR ");
}

#[test]
fn the_iort_is_the_golden_one() {
    let (expected, _) = golden(include_str!("golden/iort.txt"));
    let tables = build_tables(&platform(), Ipa::ZERO, &ACORN).unwrap();
    assert_eq!(find(&tables, b"IORT"), expected);
}

/// The golden DSDT is by another encoder, which writes small numbers and identities in a longer
/// way. What has one form only is equal.
#[test]
fn the_host_bridge_has_the_golden_resources() {
    let (expected, _) = golden(include_str!("golden/dsdt.txt"));
    let tables = build_tables(&platform(), Ipa::ZERO, &ACORN).unwrap();
    let dsdt = find(&tables, b"DSDT");
    let resources = &expected[0x98..0xfc];
    assert_eq!(&resources[1..5], b"_CRS");
    assert!(contains(&dsdt, resources));
    let uuid_comparison = &expected[0x105..0x11b];
    assert_eq!(&uuid_comparison[..2], b"\x93\x68");
    assert!(contains(&dsdt, uuid_comparison));
}

#[test]
fn the_sizes_are_the_golden_ones() {
    let tables = build_tables(&platform(), Ipa::ZERO, &ACORN).unwrap();
    let sizes = [
        (b"RSDP", 36),
        (b"XSDT", 84),
        (b"FACP", 276),
        (b"APIC", 264),
        (b"GTDT", 96),
        (b"SPCR", 80),
        (b"MCFG", 60),
        (b"IORT", 284),
    ];
    for (signature, size) in sizes {
        assert_eq!(find(&tables, signature).len(), size, "{signature:?}");
    }
}
