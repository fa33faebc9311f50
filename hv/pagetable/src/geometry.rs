//! How wide addresses are and where the walk starts.

use crate::Stage;
use crate::format::{ENTRIES, Vmsav8, shift};

/// A width of physical addresses, as `ID_AA64MMFR0_EL1.PARange`, `VTCR_EL2.PS` and an SMMU's
/// `IDR5.OAS` and `STE.S2PS` encode it. 52 bits need another descriptor format and are not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum OutputSize {
    /// 4 GiB.
    Bits32 = 0,
    /// 64 GiB.
    Bits36 = 1,
    /// 1 TiB.
    Bits40 = 2,
    /// 4 TiB.
    Bits42 = 3,
    /// 16 TiB.
    Bits44 = 4,
    /// 256 TiB.
    Bits48 = 5,
}

impl OutputSize {
    /// The size an ID register field encodes, at most 48 bits.
    #[must_use]
    pub const fn from_encoding(field: u64) -> Self {
        match field {
            0 => Self::Bits32,
            1 => Self::Bits36,
            2 => Self::Bits40,
            3 => Self::Bits42,
            4 => Self::Bits44,
            _ => Self::Bits48,
        }
    }

    /// The field value.
    #[must_use]
    pub const fn encoding(self) -> u64 {
        self as u64
    }

    /// The width in bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::Bits32 => 32,
            Self::Bits36 => 36,
            Self::Bits40 => 40,
            Self::Bits42 => 42,
            Self::Bits44 => 44,
            Self::Bits48 => 48,
        }
    }
}

/// Input and output widths that no table describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no table has {input_bits} bits of input and {output:?} output")]
pub struct BadGeometry {
    /// The input width asked for.
    pub input_bits: u8,
    /// The output width asked for.
    pub output: OutputSize,
}

/// The shape of a tree: input width, output width and the level of its root.
///
/// The root is at level 1 whenever that can be, at level 0 otherwise. Stage 2 reaches 43 bits from
/// level 1 with up to 16 tables side by side [DDI 0487 D8].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    input_bits: u8,
    output_bits: u8,
    root_level: u8,
}

impl Geometry {
    /// POWER's: 52 bits in, a root of 16 tables.
    pub(crate) const RADIX: Self = Self {
        input_bits: 52,
        output_bits: 56,
        root_level: 0,
    };

    /// The shape for `input_bits` (32 to 48) of the stage `S`.
    ///
    /// # Errors
    /// [`BadGeometry`] outside that range, and for a stage 2 whose input is wider than its output:
    /// the CPU would fault at once [DDI 0487 D8].
    pub fn new<S: Stage<Format = Vmsav8>>(
        input_bits: u8,
        output: OutputSize,
    ) -> Result<Self, BadGeometry> {
        let concatenates = S::MAX_ROOT_TABLES > 1;
        if !(32..=48).contains(&input_bits) || concatenates && input_bits > output.bits() {
            return Err(BadGeometry { input_bits, output });
        }
        let entries_at_1 = 1 << (input_bits - shift(1));
        let root_level = u8::from(entries_at_1 <= ENTRIES * S::MAX_ROOT_TABLES);
        Ok(Self {
            input_bits,
            output_bits: output.bits(),
            root_level,
        })
    }

    /// The width of input addresses.
    #[must_use]
    pub fn input_bits(self) -> u8 {
        self.input_bits
    }

    /// The width of output addresses, for `VTCR_EL2.PS` or `STE.S2PS`.
    #[must_use]
    pub fn output(self) -> OutputSize {
        match self.output_bits {
            ..36 => OutputSize::Bits32,
            36..40 => OutputSize::Bits36,
            40..42 => OutputSize::Bits40,
            42..44 => OutputSize::Bits42,
            44..48 => OutputSize::Bits44,
            48.. => OutputSize::Bits48,
        }
    }

    /// The width of output addresses in bits.
    #[must_use]
    pub fn output_bits(self) -> u8 {
        self.output_bits
    }

    /// The level of the root table: 0 or 1.
    #[must_use]
    pub fn root_level(self) -> u8 {
        self.root_level
    }

    /// Log2 of the number of 4 KiB tables that make up the root; it is aligned to its size.
    #[must_use]
    pub fn root_order(self) -> u8 {
        self.input_bits.saturating_sub(shift(self.root_level) + 9)
    }

    /// `TCR.T0SZ`, `VTCR_EL2.T0SZ` or `STE.S2T0SZ`.
    #[must_use]
    pub fn t0sz(self) -> u64 {
        u64::from(64 - self.input_bits)
    }

    /// `VTCR_EL2.SL0` or `STE.S2SL0` for the 4 KiB granule: 2 for level 0, 1 for level 1.
    #[must_use]
    pub fn sl0(self) -> u64 {
        u64::from(2 - self.root_level)
    }
}

#[cfg(test)]
mod tests {
    use types::Ipa;

    use super::{Geometry, OutputSize};
    use crate::{El2, Stage2};

    #[test]
    fn stage_2_starts_at_level_1_up_to_43_bits_with_tables_side_by_side() {
        let shape = |bits| {
            let g = Geometry::new::<Stage2<Ipa>>(bits, OutputSize::Bits48).unwrap();
            (g.root_level(), g.root_order(), g.t0sz(), g.sl0())
        };
        assert_eq!(shape(32), (1, 0, 32, 1));
        assert_eq!(shape(39), (1, 0, 25, 1));
        assert_eq!(shape(40), (1, 1, 24, 1));
        assert_eq!(shape(43), (1, 4, 21, 1));
        assert_eq!(shape(44), (0, 0, 20, 2));
        assert_eq!(shape(48), (0, 0, 16, 2));
    }

    #[test]
    fn stage_1_has_one_root_table() {
        let shape = |bits| {
            let g = Geometry::new::<El2>(bits, OutputSize::Bits40).unwrap();
            (g.root_level(), g.root_order())
        };
        assert_eq!(shape(39), (1, 0));
        assert_eq!(shape(40), (0, 0));
        assert_eq!(shape(48), (0, 0));
    }

    #[test]
    fn an_input_wider_than_the_machine_is_refused_at_stage_2() {
        let new = Geometry::new::<Stage2<Ipa>>;
        assert!(new(40, OutputSize::Bits40).is_ok());
        assert!(new(41, OutputSize::Bits40).is_err());
        assert!(new(31, OutputSize::Bits40).is_err());
        assert!(new(49, OutputSize::Bits48).is_err());
    }

    #[test]
    fn a_52_bit_machine_is_used_as_a_48_bit_one() {
        assert_eq!(OutputSize::from_encoding(6), OutputSize::Bits48);
        for field in 0..6 {
            assert_eq!(OutputSize::from_encoding(field).encoding(), field);
        }
    }
}
