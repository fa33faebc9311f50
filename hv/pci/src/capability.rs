//! Capability lists and what the ones that matter say.

use alloc::vec::Vec;
use core::fmt;

use types::Bdf;

use crate::config::{ConfigSpace, Extent};
use crate::defect::Defect;
use crate::regs;

/// Which capability structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CapabilityId {
    /// One of the list that starts at the pointer in the header.
    Standard(u8),
    /// One of the list that starts at offset 0x100.
    Extended {
        /// The capability's number.
        id: u16,
        /// Its version.
        version: u8,
    },
}

/// A capability structure and where it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Which.
    pub id: CapabilityId,
    /// Its offset in configuration space, a multiple of 4.
    pub offset: u16,
}

/// What kind of PCI Express function it is: bits 7:4 of its capabilities register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortType {
    /// An endpoint.
    Endpoint,
    /// An endpoint that may still use I/O and locked requests.
    LegacyEndpoint,
    /// A port of the root complex.
    RootPort,
    /// The port of a switch that faces the root complex.
    Upstream,
    /// A port of a switch that faces away from the root complex.
    Downstream,
    /// A bridge from PCI Express to conventional PCI or PCI-X.
    ToConventional,
    /// A bridge from conventional PCI or PCI-X to PCI Express.
    FromConventional,
    /// An endpoint inside the root complex.
    IntegratedEndpoint,
    /// The root complex's event collector.
    EventCollector,
    /// An encoding without a meaning.
    Unknown(u8),
}

impl PortType {
    fn decode(bits: u8) -> Self {
        match bits {
            0 => Self::Endpoint,
            1 => Self::LegacyEndpoint,
            4 => Self::RootPort,
            5 => Self::Upstream,
            6 => Self::Downstream,
            7 => Self::ToConventional,
            8 => Self::FromConventional,
            9 => Self::IntegratedEndpoint,
            10 => Self::EventCollector,
            other => Self::Unknown(other),
        }
    }

    /// Whether exactly one device, number 0, can be on the bus below: the other end of a link.
    #[must_use]
    pub const fn heads_a_link(self) -> bool {
        matches!(self, Self::RootPort | Self::Downstream)
    }
}

impl fmt::Display for PortType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Endpoint => "endpoint",
            Self::LegacyEndpoint => "legacy-endpoint",
            Self::RootPort => "root-port",
            Self::Upstream => "upstream",
            Self::Downstream => "downstream",
            Self::ToConventional => "pcie-to-pci",
            Self::FromConventional => "pci-to-pcie",
            Self::IntegratedEndpoint => "integrated",
            Self::EventCollector => "event-collector",
            Self::Unknown(_) => "unknown-type",
        })
    }
}

/// Whether the function can be reset by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionReset {
    /// It has a function-level reset.
    Supported,
    /// It has none.
    Missing,
}

/// The PCI Express capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Express {
    /// Where it is.
    pub offset: u16,
    /// Its version, 1 or 2.
    pub version: u8,
    /// What the function is.
    pub port: PortType,
    /// Function-level reset by the device control register.
    pub reset: FunctionReset,
}

/// The advanced features capability: function-level reset for conventional devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdvancedFeatures {
    /// Where it is.
    pub offset: u16,
    /// Function-level reset by its control register.
    pub reset: FunctionReset,
}

/// The MSI capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Where it is.
    pub offset: u16,
    /// Vectors the function asks for: 1 to 32.
    pub vectors: u8,
    /// Whether the message address has 64 bits.
    pub wide: bool,
    /// Whether each vector can be masked.
    pub maskable: bool,
}

impl Msi {
    /// Bytes of the structure.
    #[must_use]
    pub const fn bytes(&self) -> u16 {
        match (self.wide, self.maskable) {
            (false, false) => 10,
            (true, false) => 14,
            (false, true) => 20,
            (true, true) => 24,
        }
    }

    fn decode(offset: u16, control: u16) -> Self {
        let log2 = (control.to_le_bytes()[0] >> 1) & 7;
        Self {
            offset,
            vectors: 1 << log2.min(5),
            wide: control & (1 << 7) != 0,
            maskable: control & (1 << 8) != 0,
        }
    }
}

/// A place inside a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InBar {
    /// Which BAR, 0 to 5 (6 and 7 are encodings without a meaning).
    pub bar: u8,
    /// Bytes from its start, a multiple of 8.
    pub offset: u32,
}

impl InBar {
    fn decode(register: u32) -> Self {
        Self {
            bar: register.to_le_bytes()[0] & 7,
            offset: register & !7,
        }
    }
}

/// The MSI-X capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiX {
    /// Where it is.
    pub offset: u16,
    /// Entries of the table: 1 to 2048.
    pub vectors: u16,
    /// Where the table is; 16 bytes an entry.
    pub table: InBar,
    /// Where the pending bits are; 8 bytes for every 64 entries.
    pub pending: InBar,
}

impl MsiX {
    /// Bytes of the table.
    #[must_use]
    pub fn table_bytes(&self) -> u32 {
        u32::from(self.vectors) << 4
    }

    /// Bytes of the pending bit array.
    #[must_use]
    pub fn pending_bytes(&self) -> u32 {
        u32::from(self.vectors.div_ceil(64)) << 3
    }
}

/// The access control services capability of a port or of a multi-function device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acs {
    /// Where it is.
    pub offset: u16,
    /// What the function can do.
    pub capability: u16,
    /// What is switched on.
    pub control: u16,
}

impl Acs {
    /// Requests whose requester ID is not of a bus below the port are blocked.
    pub const SOURCE_VALIDATION: u16 = 1 << 0;
    /// Peer-to-peer requests go up to the root complex.
    pub const REQUEST_REDIRECT: u16 = 1 << 2;
    /// Peer-to-peer completions go up to the root complex.
    pub const COMPLETION_REDIRECT: u16 = 1 << 3;
    /// What the port does not claim is forwarded up.
    pub const UPSTREAM_FORWARDING: u16 = 1 << 4;
    /// Requests that are not untranslated are blocked.
    pub const TRANSLATION_BLOCKING: u16 = 1 << 1;
    /// Peer-to-peer requests that say that their address is translated go directly, whatever is to be
    /// redirected.
    pub const DIRECT_TRANSLATED: u16 = 1 << 6;
    /// What isolation asks for: all but the last two.
    pub const ISOLATION: u16 = Self::SOURCE_VALIDATION
        | Self::REQUEST_REDIRECT
        | Self::COMPLETION_REDIRECT
        | Self::UPSTREAM_FORWARDING;

    /// The control with which requests meet an IOMMU that gives nobody translated addresses: isolation
    /// and translation blocking where they are offered, nothing that goes directly.
    #[must_use]
    pub const fn wanted(&self) -> u16 {
        let on = (Self::ISOLATION | Self::TRANSLATION_BLOCKING) & self.capability;
        self.control & !Self::DIRECT_TRANSLATED | on
    }

    /// What isolation asks for, is offered, and is not as it should be.
    #[must_use]
    pub const fn missing(&self) -> u16 {
        Self::ISOLATION & self.capability & !self.control | self.direct()
    }

    /// What isolation asks for and is not so, offered or not.
    #[must_use]
    pub const fn absent(&self) -> u16 {
        Self::ISOLATION & !(self.capability & self.control) | self.direct()
    }

    /// [`Acs::DIRECT_TRANSLATED`] where it is on and counts: what is blocked goes nowhere.
    const fn direct(&self) -> u16 {
        match self.control & Self::TRANSLATION_BLOCKING {
            0 => self.control & Self::DIRECT_TRANSLATED,
            _ => 0,
        }
    }
}

/// A function's capabilities: the lists as found, and the ones this crate reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Every structure, in list order: first the standard list, then the extended one.
    pub list: Vec<Capability>,
    /// Power management: the offset of the structure.
    pub power: Option<u16>,
    /// MSI.
    pub msi: Option<Msi>,
    /// MSI-X.
    pub msix: Option<MsiX>,
    /// PCI Express.
    pub express: Option<Express>,
    /// Advanced features of a conventional device.
    pub advanced: Option<AdvancedFeatures>,
    /// Access control services.
    pub acs: Option<Acs>,
    /// Address translation services: the offset of the structure.
    pub ats: Option<u16>,
    /// Page requests: the offset of the structure.
    pub pri: Option<u16>,
    /// Process address spaces: the offset of the structure.
    pub pasid: Option<u16>,
    /// Single-root I/O virtualisation: the offset of the structure.
    pub sriov: Option<u16>,
    /// Resizable BARs: the offset of the structure.
    pub resizable: Option<u16>,
}

impl Capabilities {
    /// Whether the function can be reset by itself, by either mechanism.
    #[must_use]
    pub fn function_reset(&self) -> FunctionReset {
        let express = self.express.map(|e| e.reset);
        let advanced = self.advanced.map(|a| a.reset);
        if [express, advanced].contains(&Some(FunctionReset::Supported)) {
            FunctionReset::Supported
        } else {
            FunctionReset::Missing
        }
    }

    /// Reads both lists of a function. `first` is the offset of the header's list pointer.
    pub(crate) fn read(
        space: &dyn ConfigSpace,
        bdf: Bdf,
        first: u16,
        defects: &mut Vec<Defect>,
    ) -> Self {
        let mut found = Self::default();
        if space.read16(bdf, regs::STATUS) & regs::STATUS_CAPABILITIES != 0 {
            found.read_standard(space, bdf, first, defects);
        }
        if space.extent() == Extent::Extended && found.express.is_some() {
            found.read_extended(space, bdf, defects);
        }
        found
    }

    fn read_standard(
        &mut self,
        space: &dyn ConfigSpace,
        bdf: Bdf,
        first: u16,
        defects: &mut Vec<Defect>,
    ) {
        // One bit a dword of the 256 bytes: a structure is visited once, so the walk ends.
        let mut visited = 0_u64;
        let mut at = u16::from(space.read8(bdf, first) & !3);
        while at != 0 {
            let bit = 1_u64.checked_shl(u32::from(at >> 2)).unwrap_or(0);
            if at < 0x40 {
                return defects.push(Defect::CapabilityPointer { at });
            }
            if visited & bit != 0 {
                return defects.push(Defect::CapabilityLoop { at });
            }
            visited |= bit;
            let [id, next, control @ ..] = space.read32(bdf, at).to_le_bytes();
            if id == u8::MAX {
                return defects.push(Defect::CapabilityPointer { at });
            }
            self.list.push(Capability {
                id: CapabilityId::Standard(id),
                offset: at,
            });
            self.decode_standard(space, bdf, id, at, u16::from_le_bytes(control), defects);
            at = u16::from(next & !3);
        }
    }

    fn decode_standard(
        &mut self,
        space: &dyn ConfigSpace,
        bdf: Bdf,
        id: u8,
        at: u16,
        control: u16,
        defects: &mut Vec<Defect>,
    ) {
        let msi = Msi::decode(at, control);
        let bytes = match id {
            regs::CAP_PM => 8,
            regs::CAP_MSI => msi.bytes(),
            regs::CAP_MSIX => 12,
            regs::CAP_EXPRESS => 20,
            regs::CAP_AF => 6,
            _ => 4,
        };
        let register = |offset: u16| space.read32(bdf, at.saturating_add(offset));
        if at.saturating_add(bytes) > Extent::Conventional.bytes() {
            return defects.push(Defect::CapabilityTruncated {
                id: CapabilityId::Standard(id),
                at,
            });
        }
        let again = match id {
            regs::CAP_PM => self.power.replace(at).is_some(),
            regs::CAP_MSI => self.msi.replace(msi).is_some(),
            regs::CAP_MSIX => {
                let msix = MsiX {
                    offset: at,
                    vectors: (control & 0x7ff).saturating_add(1),
                    table: InBar::decode(register(4)),
                    pending: InBar::decode(register(8)),
                };
                self.msix.replace(msix).is_some()
            }
            regs::CAP_EXPRESS => {
                let [low, _] = control.to_le_bytes();
                let express = Express {
                    offset: at,
                    version: low & 0xf,
                    port: PortType::decode(low >> 4),
                    reset: reset(register(4) & (1 << 28) != 0),
                };
                self.express.replace(express).is_some()
            }
            regs::CAP_AF => {
                let [_, features] = control.to_le_bytes();
                let advanced = AdvancedFeatures {
                    offset: at,
                    reset: reset(features & (1 << 1) != 0),
                };
                self.advanced.replace(advanced).is_some()
            }
            _ => false,
        };
        if again {
            defects.push(Defect::CapabilityTwice {
                id: CapabilityId::Standard(id),
                at,
            });
        }
    }

    fn read_extended(&mut self, space: &dyn ConfigSpace, bdf: Bdf, defects: &mut Vec<Defect>) {
        let mut visited = [0_u64; 16];
        let mut at = 0x100;
        while at != 0 {
            let header = space.read32(bdf, at);
            // A device without extended space shows nothing here, or its first 256 bytes again.
            let empty = matches!(header, 0 | u32::MAX);
            if at == 0x100 && (empty || header == space.read32(bdf, regs::VENDOR)) {
                return;
            }
            let (word, bit) = (usize::from(at >> 8), 1_u64 << ((at >> 2) & 63));
            let Some(word) = visited.get_mut(word).filter(|_| at >= 0x100) else {
                return defects.push(Defect::CapabilityPointer { at });
            };
            if *word & bit != 0 {
                return defects.push(Defect::CapabilityLoop { at });
            }
            *word |= bit;
            if empty {
                return defects.push(Defect::CapabilityPointer { at });
            }
            let [low, high, versions, next] = header.to_le_bytes();
            let id = u16::from_le_bytes([low, high]);
            let capability = CapabilityId::Extended {
                id,
                version: versions & 0xf,
            };
            self.list.push(Capability {
                id: capability,
                offset: at,
            });
            let slot = match id {
                regs::EXT_ATS => Some(&mut self.ats),
                regs::EXT_PRI => Some(&mut self.pri),
                regs::EXT_PASID => Some(&mut self.pasid),
                regs::EXT_SRIOV => Some(&mut self.sriov),
                regs::EXT_RESIZABLE => Some(&mut self.resizable),
                _ => None,
            };
            let mut again = slot.is_some_and(|slot| slot.replace(at).is_some());
            if id == regs::EXT_ACS {
                let registers = space.read32(bdf, at.saturating_add(4));
                let acs = Acs {
                    offset: at,
                    capability: registers.to_le_bytes().first_chunk().map_or(0, le16),
                    control: registers.to_le_bytes().last_chunk().map_or(0, le16),
                };
                again = self.acs.replace(acs).is_some();
            }
            if again {
                defects.push(Defect::CapabilityTwice { id: capability, at });
            }
            at = u16::from(next) << 4 | u16::from(versions >> 4) & 0xc;
        }
    }
}

fn le16(bytes: &[u8; 2]) -> u16 {
    u16::from_le_bytes(*bytes)
}

fn reset(supported: bool) -> FunctionReset {
    if supported {
        FunctionReset::Supported
    } else {
        FunctionReset::Missing
    }
}

impl fmt::Display for CapabilityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Standard(id) => write!(f, "capability {id:#04x}"),
            Self::Extended { id, version } => {
                write!(f, "extended capability {id:#06x} version {version}")
            }
        }
    }
}
