//! What an EFI boot stub leaves for Linux: a system table, a configuration table and the memory
//! map. There are no runtime services, and a table says so.

use alloc::vec::Vec;

use types::{Address, Ipa, PageSize, Span};

use super::{Bytes, Identity};
use crate::platform::GuestPlatform;

/// Where the parts lie, in bytes from the start of the region.
mod at {
    pub(super) const SYSTEM_TABLE: u64 = 0;
    pub(super) const VENDOR: u64 = 0x100;
    pub(super) const RUNTIME_PROPERTIES: u64 = 0x200;
    pub(super) const CONFIGURATION: u64 = 0x300;
    pub(super) const MEMORY_MAP: u64 = 0x1000;
    pub(super) const MEMORY_RESERVATIONS: u64 = 0x2000;
}

/// EFI GUIDs as they lie in memory: the first three fields little-endian.
mod guid {
    /// 8868e871-e4f1-11d3-bc22-0080c73c8881
    pub(super) const ACPI_20: [u8; 16] =
        *b"\x71\xe8\x68\x88\xf1\xe4\xd3\x11\xbc\x22\x00\x80\xc7\x3c\x88\x81";
    /// eb66918a-7eef-402a-842e-931d21c38ae9
    pub(super) const RT_PROPERTIES: [u8; 16] =
        *b"\x8a\x91\x66\xeb\xef\x7e\x2a\x40\x84\x2e\x93\x1d\x21\xc3\x8a\xe9";
    /// 888eb0c6-8ede-4ff5-a8f0-9aee5cb977c2
    pub(super) const LINUX_MEMRESERVE: [u8; 16] =
        *b"\xc6\xb0\x8e\x88\xde\x8e\xf5\x4f\xa8\xf0\x9a\xee\x5c\xb9\x77\xc2";
}

/// The length of a memory descriptor.
const DESCRIPTOR_BYTES: u32 = 40;

/// The kinds of memory in the map [UEFI §7.2].
///
/// The EFI region is of the kind that Linux keeps as it is, although it has copied what it needs when
/// it is up: the next kernel, by kexec, finds its memory and its tables there again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MemoryType {
    Conventional,
    AcpiReclaim,
}

impl MemoryType {
    fn code(self) -> u32 {
        match self {
            Self::Conventional => 7,
            Self::AcpiReclaim => 9,
        }
    }
}

/// What the device tree says of the EFI tables.
pub(crate) struct EfiPointers {
    /// The system table.
    pub(crate) system_table: Ipa,
    /// The memory map.
    pub(crate) memory_map: Ipa,
    /// Its length in bytes.
    pub(crate) memory_map_bytes: u32,
    /// The length of one of its entries.
    pub(crate) descriptor_bytes: u32,
    /// The version of its entries.
    pub(crate) descriptor_version: u32,
}

/// The EFI tables and where each goes.
pub(super) struct Efi {
    pub(super) parts: Vec<(Ipa, Vec<u8>)>,
    pub(super) pointers: EfiPointers,
}

impl Efi {
    /// Writes the tables from `base`, for ACPI tables in `acpi`, which follows them.
    pub(super) fn new(
        platform: &GuestPlatform,
        base: Ipa,
        acpi: Span<Ipa>,
        identity: &Identity,
    ) -> Option<Self> {
        let efi = Span::new(base, acpi.start().checked_sub(1)?)?;
        let place = |offset| base.checked_add(offset);
        let map = memory_map(platform, efi, acpi)?;
        let pointers = EfiPointers {
            system_table: place(at::SYSTEM_TABLE)?,
            memory_map: place(at::MEMORY_MAP)?,
            memory_map_bytes: u32::try_from(map.len()).ok()?,
            descriptor_bytes: DESCRIPTOR_BYTES,
            descriptor_version: 1,
        };
        let entries = [
            (guid::ACPI_20, acpi.start()),
            (guid::RT_PROPERTIES, place(at::RUNTIME_PROPERTIES)?),
            (guid::LINUX_MEMRESERVE, place(at::MEMORY_RESERVATIONS)?),
        ];
        let configuration = entries
            .iter()
            .fold(Bytes::default(), |bytes, (guid, address)| {
                bytes.raw(guid).u64(address.bits())
            });
        let vendor = identity
            .vendor
            .encode_utf16()
            .chain([0])
            .fold(Bytes::default(), Bytes::u16);
        let parts = Vec::from([
            (
                pointers.system_table,
                system_table(place(at::VENDOR)?, &entries, place(at::CONFIGURATION)?),
            ),
            (place(at::VENDOR)?, vendor.0),
            (place(at::RUNTIME_PROPERTIES)?, runtime_properties()),
            (place(at::CONFIGURATION)?, configuration.0),
            (pointers.memory_map, map),
            (place(at::MEMORY_RESERVATIONS)?, memory_reservations()),
        ]);
        Some(Self { parts, pointers })
    }
}

fn system_table(vendor: Ipa, entries: &[([u8; 16], Ipa)], configuration: Ipa) -> Vec<u8> {
    /// 2.70.
    const REVISION: u32 = 0x0002_0046;
    const BYTES: u32 = 120;
    Bytes::default()
        .raw(b"IBI SYST")
        .u32(REVISION)
        .u32(BYTES)
        // The checksum is for boot services to check.
        .u32(0)
        .u32(0)
        .u64(vendor.bits())
        .u32(1)
        .u32(0)
        // Console handles and interfaces, runtime services, boot services: none.
        .zeros(8 * 8)
        .u64(entries.len() as u64)
        .u64(configuration.bits())
        .0
}

/// No runtime service is supported; without this Linux calls them.
fn runtime_properties() -> Vec<u8> {
    Bytes::default().u16(1).u16(8).u32(0).0
}

/// Room for Linux to note memory that a later kernel must leave alone: the ITS driver's tables. The
/// list fills a page, as Linux makes them.
fn memory_reservations() -> Vec<u8> {
    const ENTRIES: u32 = 255;
    Bytes::default().u32(ENTRIES).u32(0).u64(0).0
}

/// The memory map: RAM, with the EFI and the ACPI region marked where they lie in it.
fn memory_map(platform: &GuestPlatform, efi: Span<Ipa>, acpi: Span<Ipa>) -> Option<Vec<u8>> {
    let mut map = Bytes::default();
    let describe = |map: Bytes, kind: MemoryType, span: Span<Ipa>| {
        const WRITE_BACK: u64 = 8;
        Some(
            map.u32(kind.code())
                .u32(0)
                .u64(span.start().bits())
                .u64(0)
                .u64(span.len()?.checked_div(PageSize::SIZE_4K.bytes())?)
                .u64(WRITE_BACK),
        )
    };
    for ram in &platform.memory {
        if !ram.contains_span(efi) || !ram.contains_span(acpi) {
            map = describe(map, MemoryType::Conventional, *ram)?;
            continue;
        }
        let before = efi.start().checked_sub(1);
        if let Some(before) = before.and_then(|last| Span::new(ram.start(), last)) {
            map = describe(map, MemoryType::Conventional, before)?;
        }
        map = describe(map, MemoryType::AcpiReclaim, efi)?;
        map = describe(map, MemoryType::AcpiReclaim, acpi)?;
        let after = acpi.last().checked_add(1);
        if let Some(after) = after.and_then(|first| Span::new(first, ram.last())) {
            map = describe(map, MemoryType::Conventional, after)?;
        }
    }
    Some(map.0)
}
