//! How wide an access to a register is.

/// The width of one access to a device's register.
///
/// The order is that of the widths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Half,
    /// 32 bits.
    Word,
    /// 64 bits.
    Double,
}

impl Width {
    /// All widths, narrowest first.
    pub const ALL: [Self; 4] = [Self::Byte, Self::Half, Self::Word, Self::Double];

    /// The width that `ESR_ELx.ISS.SAS` of a data abort names; only the low two bits count.
    #[must_use]
    pub const fn from_sas(sas: u8) -> Self {
        match sas & 3 {
            0 => Self::Byte,
            1 => Self::Half,
            2 => Self::Word,
            _ => Self::Double,
        }
    }

    /// Bytes of the access: 1, 2, 4 or 8.
    #[must_use]
    pub const fn bytes(self) -> u8 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
            Self::Double => 8,
        }
    }

    /// The bits that an access carries: as many low ones as it is wide.
    #[must_use]
    pub const fn mask(self) -> u64 {
        match self {
            Self::Byte => 0xff,
            Self::Half => 0xffff,
            Self::Word => 0xffff_ffff,
            Self::Double => u64::MAX,
        }
    }

    /// Whether an offset in bytes is a multiple of the width.
    #[must_use]
    pub const fn is_aligned(self, offset: u32) -> bool {
        match self {
            Self::Byte => true,
            Self::Half => offset & 1 == 0,
            Self::Word => offset & 3 == 0,
            Self::Double => offset & 7 == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Width;

    #[test]
    fn bytes_mask_and_alignment_are_of_one_width() {
        for (sas, width) in (0_u8..).zip(Width::ALL) {
            let bytes = u32::from(width.bytes());
            assert_eq!(Width::from_sas(sas), width);
            assert_eq!(Width::from_sas(sas | 0xfc), width);
            assert_eq!(bytes, 1 << sas);
            assert_eq!(width.mask().count_ones(), 8 * bytes);
            assert_eq!(width.mask().trailing_ones(), 8 * bytes);
            for offset in 0..16 {
                assert_eq!(width.is_aligned(offset), offset.is_multiple_of(bytes));
            }
        }
        assert!(Width::ALL.is_sorted());
    }
}
