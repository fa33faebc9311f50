//! EL2 stage 1, one address range (`HCR_EL2.E2H` = 0) [DDI 0487 D8].

use types::Va;

use crate::Stage;
use crate::format::{Format, Vmsav8};

const ATTR_INDEX_SHIFT: u32 = 2;
const ATTR_INDEX: u64 = 7 << ATTR_INDEX_SHIFT;
/// AP[1]: RES1 for a regime with one privilege level.
const AP1: u64 = 1 << 6;
/// AP[2]: read-only.
const AP2: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 3 << 8;
const XN: u64 = 1 << 54;

/// The `MAIR_EL2` value that the attribute indices of [`El2Memory`] mean:
///
/// | index | byte | memory |
/// |---|---|---|
/// | 0 | 0x04 | Device-nGnRE |
/// | 1 | 0xff | Normal, write-back, read and write allocate, inner and outer |
/// | 2 | 0x00 | Device-nGnRnE |
/// | 3 | 0x44 | Normal, not cacheable |
pub const MAIR_EL2: u64 = 0x4400_ff04;

/// The hypervisor's own map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum El2 {}

/// What the hypervisor may do. Nothing is both writable and executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum El2Access {
    /// Read and execute: code.
    ReadExecute,
    /// Read: constants.
    Read,
    /// Read and write: data and devices.
    ReadWrite,
}

/// A memory type, as an index into [`MAIR_EL2`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum El2Memory {
    /// Device registers; writes may be acknowledged early.
    DeviceNgnre,
    /// Memory.
    NormalWriteBack,
    /// Device registers that must answer before a write completes (PCI configuration).
    DeviceNgnrne,
    /// Memory shared with a device that does not snoop.
    NormalNonCacheable,
    /// An index this crate gives no meaning.
    Other(u8),
}

impl El2Memory {
    fn index(self) -> u64 {
        match self {
            Self::DeviceNgnre => 0,
            Self::NormalWriteBack => 1,
            Self::DeviceNgnrne => 2,
            Self::NormalNonCacheable => 3,
            Self::Other(index) => u64::from(index & 7),
        }
    }

    fn from_index(index: u8) -> Self {
        match index {
            0 => Self::DeviceNgnre,
            1 => Self::NormalWriteBack,
            2 => Self::DeviceNgnrne,
            3 => Self::NormalNonCacheable,
            other => Self::Other(other),
        }
    }
}

/// Permissions and memory type of a piece of the hypervisor's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct El2Attributes {
    /// What may be done.
    pub access: El2Access,
    /// The memory type.
    pub memory: El2Memory,
}

impl El2Attributes {
    /// Code in memory.
    pub const CODE: Self = Self::normal(El2Access::ReadExecute);
    /// Constants in memory.
    pub const CONSTANTS: Self = Self::normal(El2Access::Read);
    /// Data in memory.
    pub const DATA: Self = Self::normal(El2Access::ReadWrite);
    /// Registers of a device.
    pub const DEVICE: Self = Self {
        access: El2Access::ReadWrite,
        memory: El2Memory::DeviceNgnre,
    };

    const fn normal(access: El2Access) -> Self {
        Self {
            access,
            memory: El2Memory::NormalWriteBack,
        }
    }
}

impl Stage for El2 {
    type Input = Va;
    type Attributes = El2Attributes;
    type Format = Vmsav8;

    const MAX_ROOT_TABLES: u64 = 1;
    const PERMISSIONS: u64 = AP2 | XN;

    fn encode(attributes: El2Attributes) -> u64 {
        let access = match attributes.access {
            El2Access::ReadExecute => AP2,
            El2Access::Read => AP2 | XN,
            El2Access::ReadWrite => XN,
        };
        access
            | AP1
            | attributes.memory.index() << ATTR_INDEX_SHIFT
            | INNER_SHAREABLE
            | Vmsav8::ACCESSED
    }

    fn decode(descriptor: u64) -> Option<El2Attributes> {
        let access = match (descriptor & AP2 != 0, descriptor & XN != 0) {
            (true, false) => El2Access::ReadExecute,
            (true, true) => El2Access::Read,
            (false, true) => El2Access::ReadWrite,
            (false, false) => return None,
        };
        let [index, ..] = ((descriptor & ATTR_INDEX) >> ATTR_INDEX_SHIFT).to_le_bytes();
        Some(El2Attributes {
            access,
            memory: El2Memory::from_index(index),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{El2, El2Access, El2Attributes, El2Memory, MAIR_EL2};
    use crate::Stage;

    #[test]
    fn attributes_have_the_bits_the_architecture_gives_them() {
        // AF, SH=inner, AP[1], AttrIndx 1; then AP[2] and XN by access.
        assert_eq!(El2::encode(El2Attributes::CODE), 0x7c4);
        assert_eq!(El2::encode(El2Attributes::CONSTANTS), 1 << 54 | 0x7c4);
        assert_eq!(El2::encode(El2Attributes::DATA), 1 << 54 | 0x744);
        assert_eq!(El2::encode(El2Attributes::DEVICE), 1 << 54 | 0x740);
    }

    #[test]
    fn every_attribute_survives_encoding_and_nothing_is_writable_and_executable() {
        for access in [
            El2Access::ReadExecute,
            El2Access::Read,
            El2Access::ReadWrite,
        ] {
            for index in 0..8 {
                let attributes = El2Attributes {
                    access,
                    memory: El2Memory::from_index(index),
                };
                let bits = El2::encode(attributes);
                assert_eq!(El2::decode(bits), Some(attributes));
                assert!(bits & (1 << 7) != 0 || bits & (1 << 54) != 0);
            }
        }
        assert_eq!(El2::decode(0x744), None);
    }

    #[test]
    fn mair_holds_the_types_at_their_indices() {
        assert_eq!(MAIR_EL2.to_le_bytes(), [0x04, 0xff, 0x00, 0x44, 0, 0, 0, 0]);
    }
}
