//! ACPI for a guest that runs no firmware: the tables, and what an EFI boot stub would have left
//! for Linux to find them by.
//!
//! Linux is silent about the mistakes that matter most: a root bridge without `_CID` gives no PCI,
//! one without `_CCA` no DMA, an IORT before revision 5 or a missing `_DSM` 5 no reserved mappings,
//! anything but `/chosen` in the device tree no ACPI. Each of these has a test.

mod dsdt;
mod efi;
#[cfg(test)]
mod golden;
mod iort;
mod tables;

use alloc::vec;
use alloc::vec::Vec;

use types::{Address, Ipa, Span};

pub(crate) use efi::EfiPointers;

use crate::platform::{GuestPlatform, PlatformError};

/// What every table is signed with.
#[derive(Clone, Copy, Debug)]
struct Identity {
    /// The firmware vendor, as EFI shows it.
    vendor: &'static str,
    oem_id: [u8; 6],
    oem_table_id: [u8; 8],
    creator_id: [u8; 4],
    creator_revision: u32,
}

impl Identity {
    const BULKHEAD: Self = Self {
        vendor: "Bulkhead",
        oem_id: *b"BLKHD ",
        oem_table_id: *b"GUEST   ",
        creator_id: *b"BLKH",
        creator_revision: 1,
    };
}

/// One ACPI table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The signature; `RSDP` for the root pointer, which has none of four bytes.
    pub signature: [u8; 4],
    /// Where it lies.
    pub at: Ipa,
    /// The table, checksum included.
    pub bytes: Vec<u8>,
}

/// Writes the ACPI tables of a guest, one after the other from `base`: `RSDP`, `XSDT`, `DSDT`,
/// `FACP`, `APIC`, `GTDT`, `SPCR`, and with a PCI host `MCFG` and `IORT`.
///
/// # Errors
/// What [`GuestPlatform::check`] finds; [`PlatformError::Memory`] when `base` leaves no room for the
/// tables in the IPA space.
pub fn tables(platform: &GuestPlatform, base: Ipa) -> Result<Vec<Table>, PlatformError> {
    platform.check()?;
    build_tables(platform, base, &Identity::BULKHEAD).ok_or(PlatformError::Memory)
}

/// Bytes between the starts of tables are a multiple of this.
const TABLE_ALIGNMENT: u64 = 16;

fn build_tables(platform: &GuestPlatform, base: Ipa, identity: &Identity) -> Option<Vec<Table>> {
    let mut described = Vec::from([
        (*b"APIC", tables::madt(platform, identity)),
        (*b"GTDT", tables::gtdt(identity)),
    ]);
    if let Some(uart) = platform.uart {
        described.push((*b"SPCR", tables::spcr(uart, identity)));
    }
    if let Some(host) = &platform.pci {
        described.push((*b"MCFG", tables::mcfg(host, identity)));
        if !platform.smmus.is_empty() || platform.gic.its.is_some() {
            described.push((*b"IORT", iort::build(platform, identity)));
        }
    }

    // The XSDT names all of these and the FADT.
    let entries = described.len().checked_add(1)?;
    let mut end = base;
    let mut place = |bytes: usize| {
        let at = end;
        let length = u64::try_from(bytes).ok()?;
        end = at.checked_add(length.checked_next_multiple_of(TABLE_ALIGNMENT)?)?;
        Some(at)
    };
    let rsdp_at = place(tables::RSDP_BYTES)?;
    let xsdt_at = place(tables::xsdt_bytes(entries))?;
    let dsdt = dsdt::build(platform, identity);
    let dsdt_at = place(dsdt.len())?;
    let fadt = tables::fadt(platform, dsdt_at, identity);
    let mut listed = Vec::from([Table {
        signature: *b"FACP",
        at: place(fadt.len())?,
        bytes: fadt,
    }]);
    for (signature, bytes) in described {
        let at = place(bytes.len())?;
        listed.push(Table {
            signature,
            at,
            bytes,
        });
    }
    let addresses: Vec<Ipa> = listed.iter().map(|table| table.at).collect();
    let mut all = Vec::from([
        Table {
            signature: *b"RSDP",
            at: rsdp_at,
            bytes: tables::rsdp(xsdt_at, identity),
        },
        Table {
            signature: *b"XSDT",
            at: xsdt_at,
            bytes: tables::xsdt(&addresses, identity),
        },
        Table {
            signature: *b"DSDT",
            at: dsdt_at,
            bytes: dsdt,
        },
    ]);
    all.append(&mut listed);
    Some(all)
}

/// The memory a guest with ACPI finds its machine by: EFI tables in the first 64 KiB, ACPI tables
/// in the rest. One region each, so that no table crosses a memory descriptor.
pub(crate) struct Blob {
    /// The whole of it.
    pub(crate) bytes: Vec<u8>,
    /// What the device tree must say of it.
    pub(crate) efi: EfiPointers,
}

/// The granule of the two regions, in bytes: the largest page size of Linux.
const REGION: u64 = 0x1_0000;

impl Blob {
    /// How many bytes the blob of this guest takes.
    pub(crate) fn bytes_needed(platform: &GuestPlatform) -> Option<u64> {
        // The lengths do not depend on the address.
        let tables = build_tables(platform, Ipa::ZERO, &Identity::BULKHEAD)?;
        let last = tables.last()?;
        let end = last.at.bits().checked_add(last.bytes.len() as u64)?;
        end.checked_next_multiple_of(REGION)?.checked_add(REGION)
    }

    /// Writes the blob for `span`, which has [`Blob::bytes_needed`] bytes on a 64 KiB boundary in
    /// one of the guest's memory spans.
    pub(crate) fn new(platform: &GuestPlatform, span: Span<Ipa>) -> Option<Self> {
        Self::signed(platform, span, &Identity::BULKHEAD)
    }

    fn signed(platform: &GuestPlatform, span: Span<Ipa>, identity: &Identity) -> Option<Self> {
        let base = span.start();
        let acpi = Span::new(base.checked_add(REGION)?, span.last())?;
        let tables = build_tables(platform, acpi.start(), identity)?;
        let efi = efi::Efi::new(platform, base, acpi, identity)?;
        let mut bytes = vec![0; usize::try_from(span.len()?).ok()?];
        let tables = tables.iter().map(|table| (table.at, &table.bytes));
        for (at, content) in efi.parts.iter().map(|(at, part)| (*at, part)).chain(tables) {
            let offset = usize::try_from(at.offset_from(base)?).ok()?;
            bytes
                .get_mut(offset..)?
                .get_mut(..content.len())?
                .copy_from_slice(content);
        }
        Some(Self {
            bytes,
            efi: efi.pointers,
        })
    }
}

/// Little-endian bytes, appended.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn u16(self, value: u16) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len().saturating_add(count), 0);
        self
    }
}
