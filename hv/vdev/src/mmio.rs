//! What a trapped access of a guest asks for.
//!
//! [`from_syndrome`] reads the syndrome of a data abort taken to EL2. Where the processor left the
//! details out (`ISV` clear: pairs, SIMD registers, write-back and the like), it returns `None`,
//! and [`from_instruction`] reads them from the A64 instruction instead. The result is the same
//! [`Access`], to be carried out element by element.

mod instruction;
mod syndrome;

pub use instruction::{Unsupported, from_instruction};
pub use syndrome::from_syndrome;

use crate::Width;

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the device into registers.
    Load,
    /// From registers to the device.
    Store,
}

/// The size of one element of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// One byte.
    Byte,
    /// Two bytes.
    Half,
    /// Four bytes.
    Word,
    /// Eight bytes.
    Double,
    /// Sixteen bytes: a SIMD register.
    Quad,
}

impl Size {
    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u8 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
            Self::Double => 8,
            Self::Quad => 16,
        }
    }

    /// The widest device access within an element, and how many of them make it up, in ascending
    /// order of address.
    #[must_use]
    pub const fn device_accesses(self) -> (Width, u8) {
        match self {
            Self::Byte => (Width::Byte, 1),
            Self::Half => (Width::Half, 1),
            Self::Word => (Width::Word, 1),
            Self::Double => (Width::Double, 1),
            Self::Quad => (Width::Double, 2),
        }
    }

    const fn from_log2(log2: u32) -> Option<Self> {
        Some(match log2 {
            0 => Self::Byte,
            1 => Self::Half,
            2 => Self::Word,
            3 => Self::Double,
            4 => Self::Quad,
            _ => return None,
        })
    }

    const fn log2(self) -> u8 {
        match self {
            Self::Byte => 0,
            Self::Half => 1,
            Self::Word => 2,
            Self::Double => 3,
            Self::Quad => 4,
        }
    }
}

/// How a loaded element fills its register. Bits above the result are zero in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// With zeroes.
    Zero,
    /// With copies of the sign bit, to 32 bits.
    SignTo32,
    /// With copies of the sign bit, to 64 bits.
    SignTo64,
}

/// A register that data comes from or goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// `X0` to `X30`.
    General(u8),
    /// `XZR`: reads zero, writes are lost.
    Zero,
    /// `V0` to `V31`.
    Vector(u8),
}

impl Register {
    const fn general(number: u8) -> Self {
        match number {
            31 => Self::Zero,
            number => Self::General(number),
        }
    }
}

/// A register that holds an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// `X0` to `X30`.
    General(u8),
    /// The stack pointer in use.
    StackPointer,
}

/// What is added to the base register for the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offset {
    /// A constant number of bytes.
    Bytes(i64),
    /// A register, extended and then shifted left.
    Register {
        /// The register ([`Register::General`] or [`Register::Zero`]).
        index: Register,
        /// How it is made 64 bits wide.
        extend: IndexExtend,
        /// Bits to shift by, 0 to 4.
        shift: u8,
    },
}

/// How an index register is made 64 bits wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexExtend {
    /// The low 32 bits, with zeroes.
    Uxtw,
    /// The low 32 bits, with the sign.
    Sxtw,
    /// All 64 bits.
    Full,
}

/// The address an instruction computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The base register.
    pub base: Base,
    /// What is added to it.
    pub offset: Offset,
}

impl Address {
    /// The guest virtual address of the first element.
    ///
    /// Usually the faulting address says the same; it does not when a pair begins below the
    /// trapped page.
    #[must_use]
    pub fn resolve(
        &self,
        base: impl FnOnce(Base) -> u64,
        general: impl FnOnce(Register) -> u64,
    ) -> u64 {
        let base = base(self.base);
        match self.offset {
            Offset::Bytes(bytes) => base.wrapping_add_signed(bytes),
            Offset::Register {
                index,
                extend,
                shift,
            } => {
                let index = general(index);
                let index = match extend {
                    IndexExtend::Uxtw => index & 0xffff_ffff,
                    IndexExtend::Sxtw => sign_extend(index, 32),
                    IndexExtend::Full => index,
                };
                base.wrapping_add(index.wrapping_shl(u32::from(shift)))
            }
        }
    }
}

/// A change of the base register that the access brings with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteBack {
    /// The register.
    pub base: Base,
    /// What is added to it, in bytes.
    pub delta: i64,
}

/// One memory access of a guest: one or two elements at ascending addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Which way the data goes.
    pub direction: Direction,
    /// The size of each element.
    pub size: Size,
    /// How loaded elements fill their registers.
    pub extension: Extension,
    /// The register of the element at the address.
    pub first: Register,
    /// The register of the element right after it.
    pub second: Option<Register>,
    /// How the address came about; `None` from a syndrome, where the faulting address is it.
    pub address: Option<Address>,
    /// What happens to the base register once all elements are done.
    pub write_back: Option<WriteBack>,
}

impl Access {
    /// The registers with the offset of their element from the address, in bytes.
    pub fn elements(&self) -> impl Iterator<Item = (Register, u8)> {
        let second = self.second.map(|register| (register, self.size.bytes()));
        [(self.first, 0)].into_iter().chain(second)
    }

    /// What a loaded element leaves in its register.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "only elements of up to eight bytes have a sign"
    )]
    pub fn loaded(&self, element: u128) -> u128 {
        let bits = u32::from(self.size.bytes()).saturating_mul(8);
        let mask = u128::MAX.wrapping_shr(128_u32.saturating_sub(bits));
        let element = element & mask;
        match self.extension {
            Extension::Zero => element,
            Extension::SignTo32 => u128::from(sign_extend(element as u64, bits) as u32),
            Extension::SignTo64 => u128::from(sign_extend(element as u64, bits)),
        }
    }

    /// What a register's content leaves in memory: the low bytes of the element's size.
    #[must_use]
    pub fn stored(&self, register: u128) -> u128 {
        let bits = u32::from(self.size.bytes()).saturating_mul(8);
        register & u128::MAX.wrapping_shr(128_u32.saturating_sub(bits))
    }
}

/// Why an access is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Cache maintenance by address: there is nothing to clean behind a device register.
    #[error("cache maintenance on a device address")]
    CacheMaintenance,
    /// The walk of the guest's own translation tables touched the address.
    #[error("the guest's translation tables lie at a device address")]
    TableWalk,
    /// The abort was no access to an address this processor could name.
    #[error("an external abort")]
    External,
    /// An instruction that accesses memory in a way that devices do not support here.
    #[error("{0:?} on a device address")]
    Unsupported(Unsupported),
    /// The architecture leaves the instruction's behaviour open: the base register is also loaded
    /// or stored with write-back, or a pair is loaded into one register twice.
    #[error("the instruction {0:#010x} is constrained unpredictable")]
    Unpredictable(u32),
    /// The word is not an allocated instruction of the load and store group.
    #[error("{0:#010x} is no load or store")]
    NotAnAccess(u32),
}

/// Bits `high` to `low` of a word.
const fn field(word: u32, high: u32, low: u32) -> u32 {
    word.wrapping_shr(low) & u32::MAX.wrapping_shr(31_u32.wrapping_sub(high.wrapping_sub(low)))
}

/// A five-bit register number.
const fn number(word: u32, low: u32) -> u8 {
    (word.wrapping_shr(low) & 0x1f) as u8
}

/// The low `bits` (1 to 64) of a value as a signed number.
const fn sign_extend(value: u64, bits: u32) -> u64 {
    let unused = 64_u32.wrapping_sub(bits);
    value
        .wrapping_shl(unused)
        .cast_signed()
        .wrapping_shr(unused)
        .cast_unsigned()
}
