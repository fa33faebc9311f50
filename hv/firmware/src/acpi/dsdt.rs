//! The devices of the namespace: CPUs, console, PCI host.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, BufferData, Device, EISAName, Equal, If, Interrupt,
    Memory32Fixed, Method, Name, ONE, Package, ResourceTemplate, Return, Scope, Uuid, ZERO,
};
use acpi_tables::{Aml, AmlSink};
use types::{Ipa, Span};

use super::{Identity, tables};
use crate::platform::{GuestPlatform, PRIMECELL_BYTES, PciHost, PciWindow, Peripheral, WindowKind};

/// The functions of a PCI host bridge [PCI Firmware Specification §4.6].
const PCI_DSM: &str = "e5c937d0-3553-4d7a-9117-ea4d19c3434d";

/// Writes the table.
pub(super) fn build(platform: &GuestPlatform, identity: &Identity) -> Vec<u8> {
    let mut devices: Vec<Raw> = (0_u32..)
        .zip(&platform.cpus)
        .map(|(uid, _)| cpu(uid))
        .collect();
    devices.extend(platform.uart.map(console));
    if let Some(host) = &platform.pci {
        devices.push(root_bridge(host));
        devices.extend(host.ecam_span().map(ecam_reservation));
    }
    let children = devices.iter().map(|device| device as &dyn Aml).collect();
    let mut body = Vec::new();
    Scope::new("\\_SB_".into(), children).to_aml_bytes(&mut body);
    tables::table(identity, *b"DSDT", 2, &body)
}

/// An object already encoded.
struct Raw(Vec<u8>);

impl Raw {
    fn new(object: &dyn Aml) -> Self {
        let mut bytes = Vec::new();
        object.to_aml_bytes(&mut bytes);
        Self(bytes)
    }
}

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn name(path: &str, value: &dyn Aml) -> Raw {
    Raw::new(&Name::new(path.into(), value))
}

fn device(path: &str, objects: &[Raw]) -> Raw {
    let objects = objects.iter().map(|object| object as &dyn Aml).collect();
    Raw::new(&Device::new(path.into(), objects))
}

fn resources(list: &[Box<dyn Aml>]) -> Raw {
    let list = list.iter().map(AsRef::as_ref).collect();
    name("_CRS", &ResourceTemplate::new(list))
}

fn cpu(uid: u32) -> Raw {
    device(
        &format!("C{uid:03X}"),
        &[name("_HID", &"ACPI0007"), name("_UID", &uid)],
    )
}

fn console(uart: Peripheral) -> Raw {
    let registers: Box<dyn Aml> = match (
        u32::try_from(uart.base.bits()),
        u32::try_from(PRIMECELL_BYTES),
    ) {
        (Ok(base), Ok(bytes)) => Box::new(Memory32Fixed::new(true, base, bytes)),
        _ => Box::new(WideRange::registers(uart.base, PRIMECELL_BYTES)),
    };
    let interrupt = Interrupt::new(true, false, false, false, uart.interrupt.intid());
    device(
        "COM0",
        &[
            name("_HID", &"ARMH0011"),
            name("_UID", &ZERO),
            resources(&[registers, Box::new(interrupt)]),
        ],
    )
}

/// The host bridge. Linux needs `_CID` to find it, `_CCA` for any DMA, and `_DSM` 5 to keep what is
/// configured, on which it makes reserved mappings depend.
fn root_bridge(host: &PciHost) -> Raw {
    let first_bus = u16::from(*host.buses.start());
    let last_bus = u16::from(*host.buses.end());
    let mut list: Vec<Box<dyn Aml>> =
        vec![Box::new(AddressSpace::new_bus_number(first_bus, last_bus))];
    list.extend(host.windows.iter().map(window));
    device(
        "PCI0",
        &[
            name("_HID", &EISAName::new("PNP0A08")),
            name("_CID", &EISAName::new("PNP0A03")),
            name("_UID", &ZERO),
            name("_SEG", &ZERO),
            name("_BBN", &first_bus),
            name("_CCA", &ONE),
            resources(&list),
            routing(host),
            dsm(),
        ],
    )
}

/// `_PRT`: which interrupt a device's pins raise. Each entry is a device with any function, a pin from 0
/// on, no link device, and the interrupt's number [ACPI 6.x §6.2.13].
fn routing(host: &PciHost) -> Raw {
    let mut table = Vec::new();
    for device in 0..32_u8 {
        for pin in 0..4_u8 {
            let address = u32::from(device) << 16 | 0xffff;
            let interrupt = host.pin(device, pin.saturating_add(1)).intid();
            table.push(Raw::new(&Package::new(vec![
                &address, &pin, &ZERO, &interrupt,
            ])));
        }
    }
    let entries = table.iter().map(|entry| entry as &dyn Aml).collect();
    name("_PRT", &Package::new(entries))
}

fn window(window: &PciWindow) -> Box<dyn Aml> {
    let range = WideRange::window(window);
    let narrow = (
        u32::try_from(range.first),
        u32::try_from(range.last),
        u32::try_from(range.translation),
    );
    match (window.kind, narrow) {
        (WindowKind::Memory32, (Ok(first), Ok(last), Ok(translation))) => {
            Box::new(AddressSpace::new_memory(
                AddressSpaceCacheable::NotCacheable,
                true,
                first,
                last,
                Some(translation),
            ))
        }
        _ => Box::new(range),
    }
}

/// `_DSM`: function 0 says that functions 0 and 5 exist; function 5 returns 0, "keep the boot
/// configuration".
fn dsm() -> Raw {
    let uuid = Uuid::new(PCI_DSM);
    let supported = BufferData::new(vec![0x21]);
    let none = BufferData::new(vec![0]);
    let five = 5_u8;
    let is_query = Equal::new(&Arg(2), &ZERO);
    let is_preserve = Equal::new(&Arg(2), &five);
    let return_supported = Return::new(&supported);
    let return_keep = Return::new(&ZERO);
    let query = If::new(&is_query, vec![&return_supported]);
    let preserve = If::new(&is_preserve, vec![&return_keep]);
    let is_ours = Equal::new(&Arg(0), &uuid);
    let ours = If::new(&is_ours, vec![&query, &preserve]);
    let otherwise = Return::new(&none);
    Raw::new(&Method::new(
        "_DSM".into(),
        4,
        false,
        vec![&ours, &otherwise],
    ))
}

/// Says that configuration space is in use, so that nothing else is placed there.
fn ecam_reservation(ecam: Span<Ipa>) -> Raw {
    let bytes = ecam.len().unwrap_or_default();
    device(
        "RES0",
        &[
            name("_HID", &EISAName::new("PNP0C02")),
            name("_UID", &ZERO),
            resources(&[Box::new(WideRange::registers(ecam.start(), bytes))]),
        ],
    )
}

/// A QWord address space descriptor [ACPI 6.x §6.4.3.5.1] with the flags that the generic encoder
/// has no word for: a range the device consumes itself, and I/O ports reached through memory.
struct WideRange {
    /// 0 for memory, 1 for I/O.
    kind: u8,
    general_flags: u8,
    type_flags: u8,
    first: u64,
    last: u64,
    translation: u64,
    bytes: u64,
}

impl WideRange {
    /// Both ends are fixed.
    const FIXED: u8 = 1 << 2 | 1 << 3;
    const CONSUMER: u8 = 1;
    const READ_WRITE: u8 = 1;
    /// All ports, reached through memory.
    const PORTS_IN_MEMORY: u8 = 3 | 1 << 4;

    fn registers(base: Ipa, bytes: u64) -> Self {
        let last = bytes.saturating_sub(1).saturating_add(base.bits());
        Self {
            kind: 0,
            general_flags: Self::FIXED | Self::CONSUMER,
            type_flags: Self::READ_WRITE,
            first: base.bits(),
            last,
            translation: 0,
            bytes,
        }
    }

    fn window(window: &PciWindow) -> Self {
        let (kind, type_flags) = match window.kind {
            WindowKind::Io => (1, Self::PORTS_IN_MEMORY),
            WindowKind::Memory32 | WindowKind::Memory64 => (0, Self::READ_WRITE),
        };
        Self {
            kind,
            general_flags: Self::FIXED,
            type_flags,
            first: window.bus,
            last: window.bytes.saturating_sub(1).saturating_add(window.bus),
            // Added to bus addresses, modulo 2^64.
            translation: window.cpu.bits().wrapping_sub(window.bus),
            bytes: window.bytes,
        }
    }
}

impl Aml for WideRange {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const QWORD_ADDRESS_SPACE: u8 = 0x8a;
        sink.byte(QWORD_ADDRESS_SPACE);
        sink.word(43);
        sink.byte(self.kind);
        sink.byte(self.general_flags);
        sink.byte(self.type_flags);
        sink.qword(0);
        sink.qword(self.first);
        sink.qword(self.last);
        sink.qword(self.translation);
        sink.qword(self.bytes);
    }
}
