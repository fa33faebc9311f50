//! Stage 2 [DDI 0487 D8]. The encodings are those of `HCR_EL2.FWB` = 0, which an SMMU
//! shares (`STE.S2FWB` = 0).

use core::marker::PhantomData;

use types::Address;

use crate::format::{Format, Vmsav8};

use crate::{Geometry, Stage};

const MEM_ATTR_SHIFT: u32 = 2;
const MEM_ATTR: u64 = 15 << MEM_ATTR_SHIFT;
const INNER_SHAREABLE: u64 = 3 << 8;
const READ: u64 = 1 << 6;
pub(crate) const WRITE: u64 = 1 << 7;
/// With [`WRITE`] clear: writable, and hardware sets [`WRITE`] at the first write.
pub(crate) const DIRTY_MODIFIER: u64 = 1 << 51;
const XN_SHIFT: u32 = 53;
const XN: u64 = 3 << XN_SHIFT;

/// The stage 2 of a VM: as its CPUs use it (`Stage2<Ipa>`) or as its devices do (`Stage2<Iova>`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2<A>(PhantomData<A>);

/// `S2AP`: what stage 2 allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage2Access {
    /// Nothing, which is still a permission fault and not a translation fault.
    None,
    /// Read.
    Read,
    /// Write. Not to be relied on: a cached entry of a write may let a read through on some SMMUs.
    Write,
    /// Read and write.
    ReadWrite,
}

/// `XN[1:0]`: at which exception level stage 2 allows execution. Without `FEAT_XNX` the CPU looks at
/// the upper bit alone, so only [`Execute::Always`] and [`Execute::Never`] are portable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execute {
    /// At EL1 and EL0.
    Always,
    /// At EL0, not at EL1.
    El0,
    /// At neither.
    Never,
    /// At EL1, not at EL0.
    El1,
}

/// `MemAttr[3:0]`: a bound on what stage 1 asks for; the stricter of both wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage2Memory {
    /// Memory, write-back: stage 1 decides.
    NormalWriteBack,
    /// Memory that nothing may cache.
    NormalNonCacheable,
    /// Device registers; writes may be acknowledged early.
    DeviceNgnre,
    /// Device registers, strictest.
    DeviceNgnrne,
    /// Another encoding of the field.
    Other(u8),
}

/// Permissions and memory type of a piece of a VM's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Attributes {
    /// Reads and writes.
    pub access: Stage2Access,
    /// Execution.
    pub execute: Execute,
    /// The memory type.
    pub memory: Stage2Memory,
}

impl Stage2Attributes {
    /// A VM's RAM.
    pub const RAM: Self = Self {
        access: Stage2Access::ReadWrite,
        execute: Execute::Always,
        memory: Stage2Memory::NormalWriteBack,
    };
    /// Memory the VM may only read.
    pub const ROM: Self = Self {
        access: Stage2Access::Read,
        ..Self::RAM
    };
    /// Registers of a device that the VM owns.
    pub const DEVICE: Self = Self {
        access: Stage2Access::ReadWrite,
        execute: Execute::Never,
        memory: Stage2Memory::DeviceNgnre,
    };
}

impl<A: Address> Stage for Stage2<A> {
    type Input = A;
    type Attributes = Stage2Attributes;
    type Format = Vmsav8;

    const MAX_ROOT_TABLES: u64 = 16;
    const PERMISSIONS: u64 = READ | WRITE | XN | DIRTY_MODIFIER;

    fn encode(attributes: Stage2Attributes) -> u64 {
        let access = match attributes.access {
            Stage2Access::None => 0,
            Stage2Access::Read => READ,
            Stage2Access::Write => WRITE,
            Stage2Access::ReadWrite => READ | WRITE,
        };
        let execute: u64 = match attributes.execute {
            Execute::Always => 0,
            Execute::El0 => 1,
            Execute::Never => 2,
            Execute::El1 => 3,
        };
        let memory = match attributes.memory {
            Stage2Memory::NormalWriteBack => 0b1111,
            Stage2Memory::NormalNonCacheable => 0b0101,
            Stage2Memory::DeviceNgnre => 0b0001,
            Stage2Memory::DeviceNgnrne => 0b0000,
            Stage2Memory::Other(field) => u64::from(field & 15),
        };
        access | execute << XN_SHIFT | memory << MEM_ATTR_SHIFT | INNER_SHAREABLE | Vmsav8::ACCESSED
    }

    fn decode(descriptor: u64) -> Option<Stage2Attributes> {
        let writable = descriptor & (WRITE | DIRTY_MODIFIER) != 0;
        let access = match (descriptor & READ != 0, writable) {
            (false, false) => Stage2Access::None,
            (true, false) => Stage2Access::Read,
            (false, true) => Stage2Access::Write,
            (true, true) => Stage2Access::ReadWrite,
        };
        let execute = match (descriptor & XN) >> XN_SHIFT {
            0 => Execute::Always,
            1 => Execute::El0,
            2 => Execute::Never,
            _ => Execute::El1,
        };
        let [memory, ..] = ((descriptor & MEM_ATTR) >> MEM_ATTR_SHIFT).to_le_bytes();
        let memory = match memory {
            0b1111 => Stage2Memory::NormalWriteBack,
            0b0101 => Stage2Memory::NormalNonCacheable,
            0b0001 => Stage2Memory::DeviceNgnre,
            0b0000 => Stage2Memory::DeviceNgnrne,
            field => Stage2Memory::Other(field),
        };
        Some(Stage2Attributes {
            access,
            execute,
            memory,
        })
    }
}

/// `VTCR_EL2` for a stage 2 of this shape: 4 KiB granule, tables walked write-back and inner
/// shareable, no hardware update of flags. `vmid_bits` is 8 or 16.
#[must_use]
pub fn vtcr(geometry: Geometry, vmid_bits: u8) -> u64 {
    const RES1: u64 = 1 << 31;
    const SH0_INNER: u64 = 3 << 12;
    const ORGN0_WRITE_BACK: u64 = 1 << 10;
    const IRGN0_WRITE_BACK: u64 = 1 << 8;
    RES1 | u64::from(vmid_bits > 8) << 19
        | geometry.output().encoding() << 16
        | SH0_INNER
        | ORGN0_WRITE_BACK
        | IRGN0_WRITE_BACK
        | geometry.sl0() << 6
        | geometry.t0sz()
}

#[cfg(test)]
mod tests {
    use types::Ipa;

    use super::{
        DIRTY_MODIFIER, Execute, Stage2, Stage2Access, Stage2Attributes, Stage2Memory, WRITE, vtcr,
    };
    use crate::{Geometry, OutputSize, Stage};

    type Cpu = Stage2<Ipa>;

    #[test]
    fn attributes_have_the_bits_the_architecture_gives_them() {
        assert_eq!(Cpu::encode(Stage2Attributes::RAM), 0x7fc);
        assert_eq!(Cpu::encode(Stage2Attributes::ROM), 0x77c);
        assert_eq!(Cpu::encode(Stage2Attributes::DEVICE), 2 << 53 | 0x7c4);
    }

    #[test]
    fn every_attribute_survives_encoding() {
        for access in [
            Stage2Access::None,
            Stage2Access::Read,
            Stage2Access::Write,
            Stage2Access::ReadWrite,
        ] {
            for execute in [Execute::Always, Execute::El0, Execute::Never, Execute::El1] {
                for memory in [
                    Stage2Memory::NormalWriteBack,
                    Stage2Memory::NormalNonCacheable,
                    Stage2Memory::DeviceNgnre,
                    Stage2Memory::DeviceNgnrne,
                    Stage2Memory::Other(0b1010),
                ] {
                    let attributes = Stage2Attributes {
                        access,
                        execute,
                        memory,
                    };
                    assert_eq!(Cpu::decode(Cpu::encode(attributes)), Some(attributes));
                }
            }
        }
    }

    #[test]
    fn a_page_that_is_writable_and_clean_is_writable() {
        let clean = Cpu::encode(Stage2Attributes::RAM) & !WRITE | DIRTY_MODIFIER;
        assert_eq!(Cpu::decode(clean), Some(Stage2Attributes::RAM));
    }

    #[test]
    fn vtcr_of_a_40_bit_guest_on_a_44_bit_machine() {
        let geometry = Geometry::new::<Cpu>(40, OutputSize::Bits44).unwrap();
        // RES1, PS=4, SH0=3, ORGN0=IRGN0=1, SL0=1, T0SZ=24.
        assert_eq!(vtcr(geometry, 8), 0x8004_3558);
        assert_eq!(vtcr(geometry, 16), 0x800c_3558);
    }
}
