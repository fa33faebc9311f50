//! How wide an access is.

/// The width of one access to a register frame.
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
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
            Self::Double => 8,
        }
    }

    /// Whether `offset` is a multiple of the width.
    pub(crate) const fn aligned(self, offset: u32) -> bool {
        match self {
            Self::Byte => true,
            Self::Half => offset & 1 == 0,
            Self::Word => offset & 3 == 0,
            Self::Double => offset & 7 == 0,
        }
    }
}
