//! The filter, field by field.

use core::fmt;

use crate::regs;

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// Reads come from the device at that moment.
    Passed,
    /// The guest has a copy, made when it got the device; writes change the copy alone.
    Shadowed,
    /// The hypervisor makes the value up, or acts on writes.
    Emulated,
    /// Reads as zero, writes do nothing.
    Hidden,
}

/// Which part of configuration space a field belongs to; offsets count from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structure {
    /// The header of an endpoint.
    Header,
    /// Power management.
    Power,
    /// MSI, in its largest form (64-bit address, masks); smaller forms leave fields out.
    Msi,
    /// MSI-X.
    MsiX,
    /// PCI Express.
    Express,
    /// Advanced features.
    Advanced,
    /// A structure of the vendor's own.
    Vendor,
    /// Everything from offset 0x100 on.
    Extended,
}

impl Structure {
    /// The structures that are capabilities a guest may see.
    pub(crate) const CAPABILITIES: [Self; 6] = [
        Self::Power,
        Self::Msi,
        Self::MsiX,
        Self::Express,
        Self::Advanced,
        Self::Vendor,
    ];

    /// The capability's number.
    pub(crate) const fn id(self) -> Option<u8> {
        match self {
            Self::Power => Some(regs::CAP_PM),
            Self::Msi => Some(regs::CAP_MSI),
            Self::MsiX => Some(regs::CAP_MSIX),
            Self::Express => Some(regs::CAP_EXPRESS),
            Self::Advanced => Some(regs::CAP_AF),
            Self::Vendor => Some(regs::CAP_VENDOR),
            Self::Header | Self::Extended => None,
        }
    }
}

/// One field of the filter. Masks are those of a little-endian number as wide as the field, or, in
/// a field wider than 4 bytes, of each 4 bytes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which structure it is in.
    pub structure: Structure,
    /// Bytes from the start of the structure.
    pub offset: u16,
    /// Its length in bytes.
    pub bytes: u16,
    /// Its name.
    pub name: &'static str,
    /// What becomes of it.
    pub treatment: Treatment,
    /// Bits copied from the device when the guest gets it, and again after a reset.
    pub copied: u32,
    /// Bits read from the device each time.
    pub live: u32,
    /// Bits of the copy that the guest can write.
    pub writable: u32,
    /// Bits whose ones are written to the device, which clears them there.
    pub cleared: u32,
    /// What else there is to say.
    pub note: &'static str,
}

const fn row(
    structure: Structure,
    offset: u16,
    bytes: u16,
    name: &'static str,
    treatment: Treatment,
) -> Row {
    Row {
        structure,
        offset,
        bytes,
        name,
        treatment,
        copied: 0,
        live: 0,
        writable: 0,
        cleared: 0,
        note: "",
    }
}

impl Row {
    const fn copied(self, copied: u32) -> Self {
        Self { copied, ..self }
    }

    const fn live(self, live: u32) -> Self {
        Self { live, ..self }
    }

    const fn writable(self, writable: u32) -> Self {
        Self { writable, ..self }
    }

    const fn cleared(self, cleared: u32) -> Self {
        Self { cleared, ..self }
    }

    const fn note(self, note: &'static str) -> Self {
        Self { note, ..self }
    }

    /// The fields of a structure.
    pub(crate) fn of(structure: Structure) -> impl Iterator<Item = &'static Self> {
        TABLE.iter().filter(move |row| row.structure == structure)
    }
}

use Structure::{Advanced, Express, Extended, Header, Msi, MsiX, Power, Vendor};
use Treatment::{Emulated, Hidden, Passed, Shadowed};

/// Every field that a guest may see something of, and the notable ones it does not.
///
/// What no row names is hidden. Fields of one structure are in ascending order and do not overlap.
pub const TABLE: &[Row] = &[
    row(Header, 0x00, 2, "Vendor ID", Shadowed).copied(0xffff),
    row(Header, 0x02, 2, "Device ID", Shadowed).copied(0xffff),
    row(Header, 0x04, 2, "Command", Emulated)
        .writable(0x0546)
        .note("memory space, bus master and interrupt disable are acted on; I/O space stays off"),
    row(Header, 0x06, 2, "Status", Passed)
        .live(0xf908)
        .cleared(0xf900)
        .note("bit 4 tells whether the guest's capability list is empty"),
    row(Header, 0x08, 1, "Revision ID", Shadowed).copied(0xff),
    row(Header, 0x09, 3, "Class code", Shadowed).copied(0xff_ffff),
    row(Header, 0x0c, 1, "Cache line size", Shadowed).writable(0xff),
    row(Header, 0x0d, 1, "Latency timer", Hidden),
    row(Header, 0x0e, 1, "Header type", Emulated)
        .note("type 0; bit 7 as the guest's device has several functions"),
    row(Header, 0x0f, 1, "Built-in self test", Hidden),
    row(Header, 0x10, 24, "BARs", Emulated).note(
        "memory BARs that were placed, of at least a page; sized and moved on the copy; I/O BARs hidden",
    ),
    row(Header, 0x28, 4, "CardBus CIS", Hidden),
    row(Header, 0x2c, 4, "Subsystem IDs", Shadowed).copied(0xffff_ffff),
    row(Header, 0x30, 4, "Expansion ROM", Hidden),
    row(Header, 0x34, 1, "Capabilities pointer", Emulated)
        .note("the first structure the guest sees"),
    row(Header, 0x35, 7, "Reserved", Hidden),
    row(Header, 0x3c, 1, "Interrupt line", Shadowed).writable(0xff),
    row(Header, 0x3d, 1, "Interrupt pin", Emulated).note("the device's if it is 1 to 4 and pins are served, else 0"),
    row(Header, 0x3e, 2, "Min_Gnt, Max_Lat", Shadowed).copied(0xffff),
    row(Power, 0x00, 2, "ID, next", Emulated).note("linked past what is hidden"),
    row(Power, 0x02, 2, "Capabilities", Shadowed)
        .copied(0x0027)
        .note("no D1, D2, PME"),
    row(Power, 0x04, 2, "Control/status", Emulated)
        .writable(0x0003)
        .note("D0 and D3hot; the device itself stays in D0; No_Soft_Reset reads 1"),
    row(Power, 0x06, 2, "Bridge, data", Hidden),
    row(Msi, 0x00, 2, "ID, next", Emulated).note("linked past what is hidden"),
    row(Msi, 0x02, 2, "Message control", Emulated)
        .copied(0x018e)
        .writable(0x0071)
        .note("enable and vector count are acted on"),
    row(Msi, 0x04, 4, "Message address", Shadowed).writable(0xffff_fffc),
    row(Msi, 0x08, 4, "Message upper address", Shadowed)
        .writable(0xffff_ffff)
        .note("only with 64-bit addresses"),
    row(Msi, 0x0c, 2, "Message data", Shadowed)
        .writable(0xffff)
        .note("at 0x8 without 64-bit addresses"),
    row(Msi, 0x0e, 2, "Extended message data", Hidden),
    row(Msi, 0x10, 4, "Mask bits", Emulated)
        .writable(0xffff_ffff)
        .note("only with masks, one bit a vector; at 0xc without 64-bit addresses"),
    row(Msi, 0x14, 4, "Pending bits", Passed)
        .live(0xffff_ffff)
        .note("only with masks; at 0x10 without 64-bit addresses"),
    row(MsiX, 0x00, 2, "ID, next", Emulated).note("linked past what is hidden"),
    row(MsiX, 0x02, 2, "Message control", Emulated)
        .copied(0x07ff)
        .writable(0xc000)
        .note("enable and function mask are acted on"),
    row(MsiX, 0x04, 4, "Table", Shadowed)
        .copied(0xffff_ffff)
        .note("the pages it is in are trapped"),
    row(MsiX, 0x08, 4, "Pending bits", Shadowed)
        .copied(0xffff_ffff)
        .note("the pages they are in are trapped"),
    row(Express, 0x00, 2, "ID, next", Emulated).note("linked past what is hidden"),
    row(Express, 0x02, 2, "PCI Express capabilities", Emulated)
        .copied(0x3e0f)
        .note("type: integrated endpoint on a root bus, else endpoint or legacy endpoint"),
    row(Express, 0x04, 4, "Device capabilities", Shadowed).copied(0x1000_8fe7),
    row(Express, 0x08, 2, "Device control", Emulated)
        .copied(0x79ff)
        .writable(0x79ff)
        .note("bit 15 asks for a function-level reset and reads 0; the rest stays in the copy"),
    row(Express, 0x0a, 2, "Device status", Passed).live(0x002f).cleared(0x000f),
    row(Express, 0x0c, 4, "Link capabilities", Shadowed)
        .copied(0x0003_f3ff)
        .note("hidden on a root bus"),
    row(Express, 0x10, 2, "Link control", Hidden),
    row(Express, 0x12, 2, "Link status", Passed)
        .live(0x33ff)
        .note("hidden on a root bus"),
    row(Express, 0x14, 16, "Slot, root", Hidden),
    row(Express, 0x24, 4, "Device capabilities 2", Shadowed)
        .copied(0x0000_001f)
        .note("only in version 2"),
    row(Express, 0x28, 2, "Device control 2", Shadowed)
        .copied(0x001f)
        .writable(0x001f)
        .note("only in version 2"),
    row(Express, 0x2a, 18, "Device status 2, link 2, slot 2", Hidden),
    row(Advanced, 0x00, 2, "ID, next", Emulated).note("linked past what is hidden"),
    row(Advanced, 0x02, 1, "Length", Shadowed).copied(0xff),
    row(Advanced, 0x03, 1, "Capabilities", Shadowed).copied(0x03),
    row(Advanced, 0x04, 1, "Control", Emulated)
        .note("bit 0 asks for a function-level reset and reads 0"),
    row(Advanced, 0x05, 1, "Status", Passed).live(0x01),
    row(Vendor, 0x00, 2, "ID, next", Emulated).note("linked past what is hidden"),
    row(Vendor, 0x02, 1, "Length", Shadowed).copied(0xff),
    row(Vendor, 0x03, 1, "First byte", Shadowed).copied(0xff),
    row(Vendor, 0x04, 252, "Body", Shadowed)
        .copied(0xffff_ffff)
        .note("as long as Length says"),
    row(Extended, 0x100, 3840, "Extended capabilities", Hidden)
        .note("AER, ATS, PRI, PASID, SR-IOV, resizable BARs and all others"),
];

impl fmt::Display for Treatment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Shadowed => "shadowed",
            Self::Emulated => "emulated",
            Self::Hidden => "hidden",
        })
    }
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "Header",
            Self::Power => "Power management (0x01)",
            Self::Msi => "MSI (0x05)",
            Self::MsiX => "MSI-X (0x11)",
            Self::Express => "PCI Express (0x10)",
            Self::Advanced => "Advanced features (0x13)",
            Self::Vendor => "Vendor-specific (0x09)",
            Self::Extended => "Extended space",
        })
    }
}
