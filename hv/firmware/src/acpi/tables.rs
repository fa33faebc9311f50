//! The tables with fixed formats [ACPI 6.x, chapter 5.2].

use acpi_tables::sdt::Sdt;
use alloc::vec::Vec;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use types::Ipa;

use super::{Bytes, Identity};
use crate::platform::{Conduit, GuestPlatform, PciHost, Peripheral};

/// The length of a revision 2 RSDP.
pub(super) const RSDP_BYTES: usize = 36;

/// The length of the header that every other table begins with.
const HEADER_BYTES: u32 = 36;

/// Where the header has the creator's identity and revision.
const CREATOR_AT: usize = 28;

/// A table: header, body, checksum.
pub(super) fn table(identity: &Identity, signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut sdt = Sdt::new(
        signature,
        HEADER_BYTES,
        revision,
        identity.oem_id,
        identity.oem_table_id,
        1,
    );
    let creator = Bytes::default()
        .raw(&identity.creator_id)
        .u32(identity.creator_revision);
    sdt.write_bytes(CREATOR_AT, &creator.0);
    sdt.append_slice(body);
    sdt.as_slice().to_vec()
}

/// The root pointer, revision 2: no RSDT.
pub(super) fn rsdp(xsdt: Ipa, identity: &Identity) -> Vec<u8> {
    let mut bytes = Vec::new();
    Rsdp::new(identity.oem_id, xsdt.bits()).to_aml_bytes(&mut bytes);
    bytes
}

/// The length of an XSDT that names this many tables.
pub(super) fn xsdt_bytes(entries: usize) -> usize {
    entries.saturating_mul(8).saturating_add(36)
}

/// The list of tables.
pub(super) fn xsdt(tables: &[Ipa], identity: &Identity) -> Vec<u8> {
    let body = tables
        .iter()
        .fold(Bytes::default(), |body, at| body.u64(at.bits()));
    table(identity, *b"XSDT", 1, &body.0)
}

/// The fixed description, revision 6: hardware-reduced, PSCI, and where the DSDT is.
pub(super) fn fadt(platform: &GuestPlatform, dsdt: Ipa, identity: &Identity) -> Vec<u8> {
    const HW_REDUCED_ACPI: u32 = 1 << 20;
    const PSCI_COMPLIANT: u16 = 1 << 0;
    const PSCI_USE_HVC: u16 = 1 << 1;
    let arm_boot = match platform.conduit {
        Conduit::Hvc => PSCI_COMPLIANT | PSCI_USE_HVC,
        Conduit::Smc => PSCI_COMPLIANT,
    };
    // Bytes 36 to 275. Everything left zero is either absent on hardware-reduced ACPI or not there.
    let body = Bytes::default()
        .zeros(112 - 36)
        .u32(HW_REDUCED_ACPI)
        .zeros(129 - 116)
        .u16(arm_boot)
        .zeros(140 - 131)
        .u64(dsdt.bits())
        .zeros(268 - 148)
        // The hypervisor vendor identity.
        .raw(b"Bulkhead");
    table(identity, *b"FACP", 6, &body.0)
}

/// The interrupt controllers: one CPU interface per vCPU, the distributor, the redistributors and
/// the ITS.
pub(super) fn madt(platform: &GuestPlatform, identity: &Identity) -> Vec<u8> {
    const GICC: u8 = 11;
    const GICD: u8 = 12;
    const GICR: u8 = 14;
    const ITS: u8 = 15;
    const ENABLED: u32 = 1;
    const GIC_VERSION_3: u8 = 3;
    let gic = &platform.gic;
    let mut body = Bytes::default()
        // No local interrupt controller address, no 8259s.
        .zeros(8)
        .u8(GICD)
        .u8(24)
        .zeros(6)
        .u64(gic.distributor.bits())
        .u32(0)
        .u8(GIC_VERSION_3)
        .zeros(3);
    for (uid, mpidr) in (0_u32..).zip(&platform.cpus) {
        body = body
            .u8(GICC)
            .u8(80)
            .u16(0)
            .u32(uid)
            .u32(uid)
            .u32(ENABLED)
            .u32(0)
            .u32(platform.pmu_ppi.map_or(0, u32::from))
            // Parked address, GICC, GICV, GICH, maintenance interrupt, GICR: none, or told below.
            .zeros(8 + 8 + 8 + 8 + 4 + 8)
            .u64(mpidr.bits())
            .u32(0);
    }
    let redistributors = gic.redistributors;
    let length = redistributors.len().unwrap_or(u64::MAX);
    body = body
        .u8(GICR)
        .u8(16)
        .u16(0)
        .u64(redistributors.start().bits())
        .u32(u32::try_from(length).unwrap_or(u32::MAX));
    if let Some(its) = gic.its {
        body = body.u8(ITS).u8(20).u16(0).u32(0).u64(its.bits()).u32(0);
    }
    table(identity, *b"APIC", 4, &body.0)
}

/// The generic timer: the four per-CPU interrupts, no memory-mapped frames.
pub(super) fn gtdt(identity: &Identity) -> Vec<u8> {
    const ABSENT: u64 = u64::MAX;
    const LEVEL_HIGH: u32 = 0;
    const ALWAYS_ON: u32 = 1 << 2;
    let body = Bytes::default()
        .u64(ABSENT)
        .u32(0)
        // Secure EL1, EL1, virtual EL1, EL2.
        .u32(29)
        .u32(LEVEL_HIGH)
        .u32(30)
        .u32(LEVEL_HIGH | ALWAYS_ON)
        .u32(27)
        .u32(LEVEL_HIGH | ALWAYS_ON)
        .u32(26)
        .u32(LEVEL_HIGH)
        .u64(ABSENT)
        .u32(0)
        .u32(0);
    table(identity, *b"GTDT", 2, &body.0)
}

/// The console.
pub(super) fn spcr(uart: Peripheral, identity: &Identity) -> Vec<u8> {
    const PL011: u8 = 3;
    const SYSTEM_MEMORY: u8 = 0;
    const ACCESS_32: u8 = 3;
    const INTERRUPT_GIC: u8 = 1 << 3;
    const ANSI: u8 = 3;
    let body = Bytes::default()
        .u8(PL011)
        .zeros(3)
        .u8(SYSTEM_MEMORY)
        .u8(32)
        .u8(0)
        .u8(ACCESS_32)
        .u64(uart.base.bits())
        .u8(INTERRUPT_GIC)
        .u8(0)
        .u32(uart.interrupt.intid())
        // Baud rate as it is, no parity, one stop bit, no flow control.
        .raw(&[0, 0, 1, 0])
        .u8(ANSI)
        .u8(0)
        // Not a PCI device.
        .u16(0xffff)
        .u16(0xffff)
        .zeros(3 + 4 + 1 + 4);
    table(identity, *b"SPCR", 2, &body.0)
}

/// Configuration space of the PCI host.
pub(super) fn mcfg(host: &PciHost, identity: &Identity) -> Vec<u8> {
    let body = Bytes::default()
        .zeros(8)
        .u64(host.ecam.bits())
        .u16(0)
        .u8(*host.buses.start())
        .u8(*host.buses.end())
        .u32(0);
    table(identity, *b"MCFG", 1, &body.0)
}
