//! Addresses of the four spaces, and inclusive spans of them.

use core::fmt;

use crate::{OutOfRange, PageSize};

/// What the four address spaces have in common.
///
/// Arithmetic is checked: an address never wraps.
pub trait Address: Copy + Ord + fmt::Debug + fmt::Display {
    /// The largest address of the space.
    const MAX: u64;

    /// The address with this value, or [`OutOfRange`] beyond [`Address::MAX`].
    fn try_new(bits: u64) -> Result<Self, OutOfRange>;

    /// The address with this value, cut to the width of the space. For values that something has
    /// already bounded.
    #[must_use]
    fn truncated(bits: u64) -> Self;

    /// The raw value.
    fn bits(self) -> u64;

    /// `self + bytes`, or `None` when that leaves the space.
    #[must_use]
    fn checked_add(self, bytes: u64) -> Option<Self> {
        self.bits()
            .checked_add(bytes)
            .and_then(|bits| Self::try_new(bits).ok())
    }

    /// `self - bytes`, or `None` below zero.
    #[must_use]
    fn checked_sub(self, bytes: u64) -> Option<Self> {
        self.bits()
            .checked_sub(bytes)
            .and_then(|bits| Self::try_new(bits).ok())
    }

    /// Bytes from `base` up to `self`, or `None` when `self` is below `base`.
    #[must_use]
    fn offset_from(self, base: Self) -> Option<u64> {
        self.bits().checked_sub(base.bits())
    }

    /// Whether the address is a multiple of the page size.
    #[must_use]
    fn is_aligned(self, page: PageSize) -> bool {
        self.bits() & page.mask() == 0
    }

    /// The start of the page the address is in.
    #[must_use]
    fn align_down(self, page: PageSize) -> Self;

    /// The address itself if aligned, else the start of the next page; `None` past the end of the
    /// space.
    #[must_use]
    fn align_up(self, page: PageSize) -> Option<Self> {
        self.bits()
            .checked_add(page.mask())
            .and_then(|bits| Self::try_new(bits & !page.mask()).ok())
    }
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, bits: $bits:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Address zero.
            pub const ZERO: Self = Self(0);
            /// The largest address of the space.
            pub const MAX: u64 = u64::MAX >> (64 - $bits);

            /// The address with this value.
            ///
            /// # Errors
            /// [`OutOfRange`] beyond the largest address of the space.
            pub const fn new(bits: u64) -> Result<Self, OutOfRange> {
                if bits <= Self::MAX {
                    Ok(Self(bits))
                } else {
                    Err(OutOfRange { kind: stringify!($name), value: bits })
                }
            }

            /// The address with this value, cut to the width of the space. For constants and for
            /// values a register field has already bounded.
            #[must_use]
            pub const fn truncated(bits: u64) -> Self {
                Self(bits & Self::MAX)
            }

            /// The raw value.
            #[must_use]
            pub const fn bits(self) -> u64 {
                self.0
            }
        }

        impl Address for $name {
            const MAX: u64 = Self::MAX;

            fn try_new(bits: u64) -> Result<Self, OutOfRange> {
                Self::new(bits)
            }

            fn truncated(bits: u64) -> Self {
                Self::truncated(bits)
            }

            fn bits(self) -> u64 {
                self.0
            }

            fn align_down(self, page: PageSize) -> Self {
                Self(self.0 & !page.mask())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// A physical address of the machine Bulkhead runs on. 56 bits: the widest that SMMUv3
    /// (IDR5.OAS) and VMSAv8-64 with `FEAT_D128` describe.
    Pa, bits: 56
}
address! {
    /// An intermediate physical address: what a guest believes is physical (on POWER: a guest real
    /// address).
    Ipa, bits: 56
}
address! {
    /// A virtual address of the hypervisor or of a guest.
    Va, bits: 64
}
address! {
    /// An address as a device puts it on the bus, before any translation. All 64 bits: POWER's
    /// large DMA window starts at 2^59.
    Iova, bits: 64
}

/// A non-empty range of addresses with an inclusive end, so that the last page of a space can be
/// described.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span<A> {
    start: A,
    last: A,
}

impl<A: Address> Span<A> {
    /// The span from `start` to `last`, both included; `None` when `last` is below `start`.
    #[must_use]
    pub fn new(start: A, last: A) -> Option<Self> {
        (start <= last).then_some(Self { start, last })
    }

    /// The span of `bytes` bytes from `start`; `None` when empty or past the end of the space.
    #[must_use]
    pub fn from_len(start: A, bytes: u64) -> Option<Self> {
        let last = start.checked_add(bytes.checked_sub(1)?)?;
        Some(Self { start, last })
    }

    /// The first address.
    #[must_use]
    pub fn start(self) -> A {
        self.start
    }

    /// The last address, included.
    #[must_use]
    pub fn last(self) -> A {
        self.last
    }

    /// The length in bytes; `None` for all 2^64 addresses.
    #[must_use]
    pub fn len(self) -> Option<u64> {
        (self.last.bits() - self.start.bits()).checked_add(1)
    }

    /// Never: a span holds at least one address.
    #[must_use]
    pub fn is_empty(self) -> bool {
        false
    }

    /// Whether the address lies in the span.
    #[must_use]
    pub fn contains(self, address: A) -> bool {
        self.start <= address && address <= self.last
    }

    /// Whether all of `other` lies in the span.
    #[must_use]
    pub fn contains_span(self, other: Self) -> bool {
        self.start <= other.start && other.last <= self.last
    }

    /// Whether the spans share an address.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.start <= other.last && other.start <= self.last
    }

    /// What the spans share.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.last.min(other.last))
    }

    /// Whether the span starts and ends on page boundaries.
    #[must_use]
    pub fn is_aligned(self, page: PageSize) -> bool {
        self.start.is_aligned(page) && self.last.bits() & page.mask() == page.mask()
    }
}

impl<A: Address> fmt::Debug for Span<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}..={}]", self.start, self.last)
    }
}

impl<A: Address> fmt::Display for Span<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start.bits(), self.last.bits())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{Address, Iova, Pa, Span};
    use crate::PageSize;

    #[test]
    fn an_address_beyond_its_space_is_refused() {
        assert_eq!(Pa::new(Pa::MAX).map(Pa::bits), Ok(Pa::MAX));
        assert!(Pa::new(Pa::MAX + 1).is_err());
        assert!(Iova::new(u64::MAX).is_ok());
    }

    #[test]
    fn arithmetic_never_wraps() {
        let top = Pa::truncated(u64::MAX);
        assert_eq!(top.checked_add(1), None);
        assert_eq!(Pa::ZERO.checked_sub(1), None);
        assert_eq!(top.align_up(PageSize::SIZE_4K), None);
        assert_eq!(Iova::truncated(u64::MAX).align_up(PageSize::SIZE_4K), None);
    }

    #[test]
    fn the_whole_space_is_a_span_without_a_length() {
        let all = Span::new(Iova::ZERO, Iova::truncated(u64::MAX)).unwrap();
        assert_eq!(all.len(), None);
        assert!(all.is_aligned(PageSize::SIZE_1G));
        assert_eq!(
            Span::from_len(Iova::truncated(u64::MAX), 1).unwrap().len(),
            Some(1)
        );
        assert_eq!(Span::from_len(Iova::truncated(u64::MAX), 2), None);
        assert_eq!(Span::from_len(Iova::ZERO, 0), None);
    }

    proptest! {
        #[test]
        fn overlap_is_a_non_empty_intersection(a in any::<[u16; 2]>(), b in any::<[u16; 2]>()) {
            let span = |[x, y]: [u16; 2]| {
                Span::new(Pa::truncated(x.min(y).into()), Pa::truncated(x.max(y).into())).unwrap()
            };
            let (a, b) = (span(a), span(b));
            assert_eq!(a.overlaps(b), a.intersection(b).is_some());
            if let Some(both) = a.intersection(b) {
                assert!(a.contains_span(both) && b.contains_span(both));
            }
        }
    }
}
