//! What a host bridge knows of a table: one entry of its translation validation table.

use types::{Pa, PageSize};

/// The shape of a table: how many levels, and how many entries each table of it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// 1 to 5.
    levels: u8,
    /// Log2 of the entries of a table, the same at every level: 9 to 39.
    bits: u8,
}

/// Log2 of the entries of the largest table that is used here: 64 KiB of memory in one piece.
const WIDEST: u8 = 13;
/// Log2 of the entries of the smallest: 4 KiB.
const NARROWEST: u8 = 9;

impl Shape {
    /// What a host bridge can have at most.
    pub const MOST_LEVELS: u8 = 5;

    /// The fewest levels of tables of at most 64 KiB that hold `1 << entries` entries; `None` beyond
    /// what five levels of those can.
    #[must_use]
    pub const fn for_entries(entries: u8) -> Option<Self> {
        let levels = entries.div_ceil(WIDEST);
        let levels = if levels == 0 { 1 } else { levels };
        if levels > Self::MOST_LEVELS {
            return None;
        }
        let bits = entries.div_ceil(levels);
        let bits = if bits < NARROWEST { NARROWEST } else { bits };
        Some(Self { levels, bits })
    }

    /// The levels: 1 for a table that holds the pages itself.
    #[must_use]
    pub const fn levels(self) -> u8 {
        self.levels
    }

    /// How many bits of a bus address its tables and the page take.
    #[must_use]
    pub const fn bits(self, page: PageSize) -> u8 {
        self.bits
            .saturating_mul(self.levels)
            .saturating_add(page.shift())
    }

    /// The bytes of each table: a power of two of at least 4096.
    #[must_use]
    pub const fn table_bytes(self) -> u64 {
        8 << self.bits
    }

    /// The order of a block of frames that holds a table.
    #[must_use]
    pub const fn order(self) -> u8 {
        self.bits.saturating_sub(NARROWEST)
    }

    /// The entries of each table.
    #[must_use]
    pub const fn entries(self) -> u64 {
        1 << self.bits
    }

    /// The number, within its table, of the entry of `level` (0: of pages) that leads to page `index`.
    #[must_use]
    pub const fn place(self, level: u8, index: u64) -> u64 {
        let shift = self.bits.saturating_mul(level);
        let part = match index.checked_shr(shift as u32) {
            Some(part) => part,
            None => 0,
        };
        part & self.entries().saturating_sub(1)
    }
}

/// A translation validation table entry of an IODA3 host bridge: the top table, the shape and the page
/// size of a window. Fields as in the PHB4's register definitions (`IODA3_TVT_…`): the table's address
/// in units of 4 KiB in bits 63:16, levels − 1 in 15:13, log2 of a table's entries − 8 in 12:8, log2 of
/// the page size − 11 in 4:0.
///
/// An entry with a table size of zero is invalid: no access gets through. A *page* size of zero with any
/// other table size would let every access through untranslated; no value of this type says that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Tve(u64);

impl Tve {
    /// Nothing gets through.
    pub const INVALID: Self = Self(0);

    const ADDRESS: u32 = 16;
    const LEVELS: u32 = 13;
    const TABLE: u32 = 8;

    /// The entry of a window whose top table is at `root`; `None` unless that is aligned to a table.
    #[must_use]
    pub const fn new(root: Pa, shape: Shape, page: PageSize) -> Option<Self> {
        let mask = shape.table_bytes().saturating_sub(1);
        let shift = page.shift();
        if root.bits() & mask != 0 || shift < 12 || shift > 42 || root.bits() >> 60 != 0 {
            return None;
        }
        let address = (root.bits() >> 12) << Self::ADDRESS;
        let levels = (shape.levels.saturating_sub(1) as u64) << Self::LEVELS;
        let table = (shape.bits.saturating_sub(8) as u64) << Self::TABLE;
        Some(Self(
            address | levels | table | shift.saturating_sub(11) as u64,
        ))
    }

    /// The register's value.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether nothing gets through.
    #[must_use]
    pub const fn is_invalid(self) -> bool {
        self.0 == 0
    }

    /// The top table.
    #[must_use]
    pub const fn root(self) -> u64 {
        (self.0 >> Self::ADDRESS) << 12
    }

    /// The levels, 1 to 5.
    #[must_use]
    pub const fn levels(self) -> u64 {
        (self.0 >> Self::LEVELS & 7).saturating_add(1)
    }

    /// The bytes of a table; 0 for an invalid entry. What `OPAL_PCI_MAP_PE_DMA_WINDOW` takes.
    #[must_use]
    pub const fn table_bytes(self) -> u64 {
        if self.is_invalid() {
            0
        } else {
            1 << (self.0 >> Self::TABLE & 31).saturating_add(11)
        }
    }

    /// The bytes of a page; 0 for an invalid entry.
    #[must_use]
    pub const fn page_bytes(self) -> u64 {
        if self.is_invalid() {
            0
        } else {
            1 << (self.0 & 31).saturating_add(11)
        }
    }
}

#[cfg(test)]
mod tests {
    use types::{Pa, PageSize};

    use super::{Shape, Tve};

    #[test]
    fn a_window_has_as_few_levels_as_tables_of_64k_allow() {
        let of = |entries| Shape::for_entries(entries).map(|s| (s.levels(), s.table_bytes()));
        assert_eq!(of(0), Some((1, 4096)));
        assert_eq!(of(9), Some((1, 4096)));
        assert_eq!(of(13), Some((1, 65536)));
        assert_eq!(of(14), Some((2, 4096)));
        assert_eq!(of(18), Some((2, 4096)));
        assert_eq!(of(26), Some((2, 65536)));
        assert_eq!(of(27), Some((3, 4096)));
        assert_eq!(of(65), Some((5, 65536)));
        assert_eq!(of(66), None);
    }

    #[test]
    fn a_tve_is_exact_to_the_bit() {
        let root = Pa::new(0x12_3456_0000).unwrap();
        let shape = Shape::for_entries(26).unwrap();
        let tve = Tve::new(root, shape, PageSize::SIZE_64K).unwrap();
        // Two levels (1), 2^13 entries (5), pages of 2^16 (5).
        assert_eq!(tve.bits(), 0x0123_4560 << 16 | 1 << 13 | 5 << 8 | 5);
        assert_eq!(tve.root(), 0x12_3456_0000);
        assert_eq!(tve.levels(), 2);
        assert_eq!(tve.table_bytes(), 65536);
        assert_eq!(tve.page_bytes(), 65536);
        assert_eq!(Tve::INVALID.table_bytes(), 0);
        // Never a page size of zero, which would be no translation at all.
        for (page, code) in [(12, 1), (16, 5), (21, 10), (30, 19)] {
            let page = PageSize::from_shift(page).unwrap();
            let tve = Tve::new(root, shape, page).unwrap();
            assert_eq!(tve.bits() & 31, code);
        }
        let crooked = Pa::new(0x12_3456_1000).unwrap();
        assert_eq!(Tve::new(crooked, shape, PageSize::SIZE_4K), None);
    }

    #[test]
    fn every_page_has_its_place() {
        let shape = Shape::for_entries(27).unwrap();
        let index = 0x103 << 18 | 0x105 << 9 | 7;
        assert_eq!(shape.place(0, index), 7);
        assert_eq!(shape.place(1, index), 0x105);
        assert_eq!(shape.place(2, index), 0x103);
    }
}
