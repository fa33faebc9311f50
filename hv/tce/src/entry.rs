//! The format of an entry.

use core::fmt;

use iommu::Permissions;
use types::{Address, Pa, PageSize};

/// A translation control entry: where one page of a window leads, and for what. In memory it is 64
/// bits, big-endian; this type holds its value. [LoPAPR §14.5.4]
///
/// The two low bits are the rights, the rest is the address of the page. A device's read of memory
/// needs bit 0, its write bit 1; with neither the entry is empty, whatever its address says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Tce(u64);

impl Tce {
    /// Nothing gets through.
    pub const EMPTY: Self = Self(0);
    /// The device may read the page.
    pub const READ: u64 = 1;
    /// The device may write the page.
    pub const WRITE: u64 = 2;
    /// Both rights.
    pub const RIGHTS: u64 = Self::READ | Self::WRITE;

    /// An entry that shows the page of `page` bytes at `pa`; `None` unless `pa` is its start.
    #[must_use]
    pub fn new(pa: Pa, permissions: Permissions, page: PageSize) -> Option<Self> {
        if !pa.is_aligned(page) || page.mask() & Self::RIGHTS != Self::RIGHTS {
            return None;
        }
        Some(Self(pa.bits() | Self::rights(permissions)))
    }

    /// The entry that shows the page at `pa`, its start.
    #[inline(always)]
    pub(crate) const fn of_page(pa: Pa, permissions: Permissions) -> Self {
        Self(pa.bits() & !Self::RIGHTS | Self::rights(permissions))
    }

    /// The rights bits of these permissions.
    #[must_use]
    #[inline(always)]
    pub const fn rights(permissions: Permissions) -> u64 {
        match permissions {
            Permissions::Read => Self::READ,
            Permissions::Write => Self::WRITE,
            Permissions::ReadWrite => Self::RIGHTS,
        }
    }

    /// The entry with these bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether nothing gets through.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 & Self::RIGHTS == 0
    }

    /// What the device may do; `None` for nothing.
    #[must_use]
    pub const fn permissions(self) -> Option<Permissions> {
        match self.0 & Self::RIGHTS {
            Self::READ => Some(Permissions::Read),
            Self::WRITE => Some(Permissions::Write),
            Self::RIGHTS => Some(Permissions::ReadWrite),
            _ => None,
        }
    }

    /// Everything but the rights: an address, if its writer kept to the format.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0 & !Self::RIGHTS
    }
}

impl iommu::Entry for Tce {
    #[inline(always)]
    fn is_empty(self) -> bool {
        Self::is_empty(self)
    }

    #[inline(always)]
    fn next(self, step: u64) -> Self {
        Self(self.0.wrapping_add(step))
    }
}

impl fmt::Debug for Tce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tce({:#x})", self.0)
    }
}

impl fmt::LowerHex for Tce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use iommu::Permissions;
    use types::{Pa, PageSize};

    use super::Tce;

    #[test]
    fn an_entry_is_an_address_with_two_rights() {
        let pa = Pa::new(0x12_3456_7000).unwrap();
        let of = |permissions| Tce::new(pa, permissions, PageSize::SIZE_4K).unwrap().bits();
        assert_eq!(of(Permissions::Read), 0x12_3456_7001);
        assert_eq!(of(Permissions::Write), 0x12_3456_7002);
        assert_eq!(of(Permissions::ReadWrite), 0x12_3456_7003);
        // In memory, big-endian: the rights are in the last byte.
        assert_eq!(
            of(Permissions::ReadWrite).to_be_bytes(),
            [0, 0, 0, 0x12, 0x34, 0x56, 0x70, 0x03]
        );
    }

    #[test]
    fn an_address_within_a_page_makes_no_entry() {
        for (pa, page) in [
            (0x1_0800, PageSize::SIZE_4K),
            (0x1_1000, PageSize::SIZE_64K),
            (0x10_0000, PageSize::SIZE_2M),
            (0x80_0000, PageSize::SIZE_16M),
        ] {
            let pa = Pa::new(pa).unwrap();
            assert_eq!(Tce::new(pa, Permissions::Read, page), None, "{pa} {page}");
        }
        assert!(Tce::new(Pa::ZERO, Permissions::Read, PageSize::SIZE_16M).is_some());
    }

    #[test]
    fn without_rights_an_entry_is_empty_whatever_its_address() {
        assert!(Tce::from_bits(0xdead_b000).is_empty());
        assert_eq!(Tce::from_bits(0xdead_b000).permissions(), None);
        for (bits, permissions) in [
            (1, Permissions::Read),
            (2, Permissions::Write),
            (3, Permissions::ReadWrite),
        ] {
            assert!(!Tce::from_bits(bits).is_empty());
            assert_eq!(Tce::from_bits(bits).permissions(), Some(permissions));
            assert_eq!(Tce::rights(permissions), bits);
        }
    }
}
