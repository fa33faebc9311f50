//! Page sizes.

use core::fmt;

use crate::OutOfRange;

/// A page size: a power of two between 512 bytes and 2^52.
///
/// Below 4 KiB only a mock IOMMU has pages; they exist so that tests can make the IOMMU's page
/// smaller than the CPU's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize {
    shift: u8,
}

impl PageSize {
    /// 4 KiB.
    pub const SIZE_4K: Self = Self { shift: 12 };
    /// 16 KiB.
    pub const SIZE_16K: Self = Self { shift: 14 };
    /// 64 KiB.
    pub const SIZE_64K: Self = Self { shift: 16 };
    /// 2 MiB.
    pub const SIZE_2M: Self = Self { shift: 21 };
    /// 16 MiB.
    pub const SIZE_16M: Self = Self { shift: 24 };
    /// 1 GiB.
    pub const SIZE_1G: Self = Self { shift: 30 };
    /// 512 GiB.
    pub const SIZE_512G: Self = Self { shift: 39 };

    /// The page size `1 << shift` bytes.
    ///
    /// # Errors
    /// [`OutOfRange`] unless `shift` is 9 to 52.
    pub const fn from_shift(shift: u8) -> Result<Self, OutOfRange> {
        if shift >= 9 && shift <= 52 {
            Ok(Self { shift })
        } else {
            Err(OutOfRange {
                kind: "PageSize (shift)",
                value: shift as u64,
            })
        }
    }

    /// The page size of `bytes` bytes.
    ///
    /// # Errors
    /// [`OutOfRange`] unless `bytes` is a power of two from 2^9 to 2^52.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "trailing_zeros() is at most 64"
    )]
    pub const fn from_bytes(bytes: u64) -> Result<Self, OutOfRange> {
        let shift = bytes.trailing_zeros() as u8;
        if bytes.is_power_of_two() && shift >= 9 && shift <= 52 {
            Ok(Self { shift })
        } else {
            Err(OutOfRange {
                kind: "PageSize",
                value: bytes,
            })
        }
    }

    /// Log2 of the size.
    #[must_use]
    pub const fn shift(self) -> u8 {
        self.shift
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// The low bits that an aligned address has clear: size - 1.
    #[must_use]
    pub const fn mask(self) -> u64 {
        self.bytes() - 1
    }
}

impl fmt::Debug for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageSize({self})")
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = match self.shift {
            0..10 => (0, ""),
            10..20 => (10, "K"),
            20..30 => (20, "M"),
            30..40 => (30, "G"),
            _ => (40, "T"),
        };
        write!(f, "{}{unit}", self.bytes() >> shift)
    }
}

#[cfg(test)]
mod tests {
    use super::PageSize;

    #[test]
    fn only_powers_of_two_in_range_are_page_sizes() {
        assert_eq!(PageSize::from_bytes(4096), Ok(PageSize::SIZE_4K));
        for bytes in [0, 1, 256, 4095, 4097, 3 << 12, 1 << 53, u64::MAX] {
            assert!(PageSize::from_bytes(bytes).is_err(), "{bytes:#x}");
        }
        assert!(PageSize::from_shift(8).is_err());
        assert!(PageSize::from_shift(53).is_err());
    }

    #[test]
    fn sizes_print_as_people_say_them() {
        extern crate alloc;
        use alloc::string::ToString;
        assert_eq!(PageSize::SIZE_64K.to_string(), "64K");
        assert_eq!(PageSize::SIZE_2M.to_string(), "2M");
        assert_eq!(PageSize::SIZE_512G.to_string(), "512G");
        assert_eq!(PageSize::from_shift(9).unwrap().to_string(), "512");
    }
}
