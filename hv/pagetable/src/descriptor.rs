//! The bits common to both stages [DDI 0487 D8].

/// The entry is a table, block or page.
pub(crate) const VALID: u64 = 1 << 0;
/// With [`VALID`]: a table above level 3, a page at level 3.
pub(crate) const TABLE: u64 = 1 << 1;
/// The access flag. Always set: nothing here depends on hardware doing it.
pub(crate) const ACCESSED: u64 = 1 << 10;
/// Inner shareable.
pub(crate) const INNER_SHAREABLE: u64 = 3 << 8;
/// Output address or next table, for 4 KiB tables and 48 bits.
pub(crate) const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// Entries of a table.
pub(crate) const ENTRIES: u64 = 512;
/// The level whose leaves are pages.
pub(crate) const LAST: u8 = 3;

/// Software bits of a table entry, which walkers ignore: how many other trees use the table.
const SHARES: u64 = 7 << SHARES_SHIFT;
const SHARES_SHIFT: u32 = 55;
/// Borrowers that the bits can count.
pub(crate) const MAX_SHARES: u64 = SHARES >> SHARES_SHIFT;
/// Software bit of a table entry: the table belongs to another tree.
const BORROWED: u64 = 1 << 58;

/// Log2 of what one entry of this level translates.
pub(crate) const fn shift(level: u8) -> u8 {
    39 - 9 * level
}

/// The low address bits within one entry of this level.
pub(crate) const fn mask(level: u8) -> u64 {
    (1 << shift(level)) - 1
}

/// What an entry says, by level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Invalid,
    Table(Link),
    /// A block or page: the whole descriptor.
    Leaf(u64),
}

impl Entry {
    #[inline]
    pub(crate) fn decode(descriptor: u64, level: u8) -> Self {
        match (descriptor & VALID != 0, descriptor & TABLE != 0, level) {
            (true, true, 0..LAST) => Self::Table(Link(descriptor)),
            (true, true, _) | (true, false, 1 | 2) => Self::Leaf(descriptor),
            // Reserved at level 3; at level 0 blocks need TCR.DS, which changes the format.
            _ => Self::Invalid,
        }
    }
}

/// A table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link(u64);

impl Link {
    pub(crate) fn to(table: u64) -> Self {
        Self(table & ADDRESS | TABLE | VALID)
    }

    /// A link to a table of another tree.
    pub(crate) fn borrowed(table: u64) -> Self {
        Self(Self::to(table).0 | BORROWED)
    }

    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    pub(crate) fn table(self) -> u64 {
        self.0 & ADDRESS
    }

    pub(crate) fn is_borrowed(self) -> bool {
        self.0 & BORROWED != 0
    }

    /// The link with another number of borrowers, at most [`MAX_SHARES`].
    pub(crate) fn with_shares(self, shares: u64) -> Self {
        Self(self.0 & !SHARES | shares << SHARES_SHIFT & SHARES)
    }

    /// Trees, other than its owner, that use the table.
    pub(crate) fn shares(self) -> u64 {
        (self.0 & SHARES) >> SHARES_SHIFT
    }
}

/// The leaf that maps `output` at `level`.
#[inline]
pub(crate) fn leaf(level: u8, output: u64, attributes: u64) -> u64 {
    let kind = if level == LAST { TABLE | VALID } else { VALID };
    output & ADDRESS | attributes & !(ADDRESS | TABLE | VALID) | kind
}
