//! How descriptors are written: VMSAv8-64 [DDI 0487 D8] and POWER's radix trees.
//!
//! Both have the same four levels here, of 9 bits each below a root that may be larger, and leaves
//! of 1 GiB, 2 MiB and 4 KiB.

/// Entries of a table below the root.
pub(crate) const ENTRIES: u64 = 512;
/// The level whose leaves are pages.
pub(crate) const LAST: u8 = 3;

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
pub enum Entry {
    /// Nothing, for a walker.
    Invalid,
    /// The next table.
    Table(Link),
    /// A block or page: the whole descriptor.
    Leaf(u64),
}

/// A table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Where the table is.
    pub table: u64,
    /// Trees, other than its owner, that use the table.
    pub shares: u64,
    /// Whether the table belongs to another tree.
    pub borrowed: bool,
}

impl Link {
    /// To a table of the own tree.
    #[must_use]
    pub const fn to(table: u64) -> Self {
        Self {
            table,
            shares: 0,
            borrowed: false,
        }
    }
}

/// A descriptor format.
pub trait Format: Copy + Eq + core::fmt::Debug {
    /// The output address in a leaf.
    const ADDRESS: u64;
    /// The bit without which an entry is nothing. Never part of a physical address.
    const VALID: u64;
    /// The bit of a leaf without which the first access faults. Always set.
    const ACCESSED: u64;

    /// What a descriptor at `level` says.
    fn decode(descriptor: u64, level: u8) -> Entry;

    /// The descriptor of a link.
    fn link(link: Link) -> u64;

    /// The descriptor that maps `output` at `level`; other bits of both arguments are ignored.
    fn leaf(level: u8, output: u64, attributes: u64) -> u64;

    /// The descriptor in a word of memory. Its own inverse.
    fn in_memory(word: u64) -> u64;
}

/// VMSAv8-64 with the 4 KiB granule and 48-bit output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vmsav8 {}

impl Vmsav8 {
    /// With `VALID`: a table above level 3, a page at level 3.
    const TABLE: u64 = 1 << 1;
    /// Software bits of a table entry, which walkers ignore: how many other trees use the table.
    const SHARES: u64 = 7 << Self::SHARES_SHIFT;
    const SHARES_SHIFT: u32 = 55;
    /// Software bit of a table entry: the table belongs to another tree.
    const BORROWED: u64 = 1 << 58;
}

/// Borrowers that the software bits can count.
pub(crate) const MAX_SHARES: u64 = Vmsav8::SHARES >> Vmsav8::SHARES_SHIFT;

impl Format for Vmsav8 {
    const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
    const VALID: u64 = 1 << 0;
    const ACCESSED: u64 = 1 << 10;

    #[inline]
    fn decode(descriptor: u64, level: u8) -> Entry {
        let valid = descriptor & Self::VALID != 0;
        match (valid, descriptor & Self::TABLE != 0, level) {
            (true, true, 0..LAST) => Entry::Table(Link {
                table: descriptor & Self::ADDRESS,
                shares: (descriptor & Self::SHARES) >> Self::SHARES_SHIFT,
                borrowed: descriptor & Self::BORROWED != 0,
            }),
            (true, true, _) | (true, false, 1 | 2) => Entry::Leaf(descriptor),
            // Reserved at level 3; at level 0 blocks need TCR.DS, which changes the format.
            _ => Entry::Invalid,
        }
    }

    #[inline]
    fn link(link: Link) -> u64 {
        let borrowed = if link.borrowed { Self::BORROWED } else { 0 };
        let shares = link.shares << Self::SHARES_SHIFT & Self::SHARES;
        link.table & Self::ADDRESS | shares | borrowed | Self::TABLE | Self::VALID
    }

    #[inline]
    fn leaf(level: u8, output: u64, attributes: u64) -> u64 {
        let page = if level == LAST { Self::TABLE } else { 0 };
        let attributes = attributes & !(Self::ADDRESS | Self::TABLE | Self::VALID);
        output & Self::ADDRESS | attributes | page | Self::VALID
    }

    #[inline]
    fn in_memory(word: u64) -> u64 {
        word.to_le()
    }
}

/// POWER's radix trees of 13, 9, 9 and 9 bits: big-endian whatever the CPU's byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RadixFormat {}

impl RadixFormat {
    /// With `VALID`: a leaf at any level.
    const LEAF: u64 = 1 << 62;
    /// Next level base.
    const NEXT: u64 = 0x0fff_ffff_ffff_ff00;
    /// Next level size: 9 bits of index below every table but the last.
    const NEXT_SIZE: u64 = 9;
}

impl Format for RadixFormat {
    const ADDRESS: u64 = 0x01ff_ffff_ffff_f000;
    const VALID: u64 = 1 << 63;
    const ACCESSED: u64 = 1 << 8;

    #[inline]
    fn decode(descriptor: u64, level: u8) -> Entry {
        let valid = descriptor & Self::VALID != 0;
        match (valid, descriptor & Self::LEAF != 0, level) {
            (true, false, 0..LAST) => Entry::Table(Link::to(descriptor & Self::NEXT)),
            (true, true, 1..=LAST) => Entry::Leaf(descriptor),
            _ => Entry::Invalid,
        }
    }

    #[inline]
    fn link(link: Link) -> u64 {
        link.table & Self::NEXT | Self::NEXT_SIZE | Self::VALID
    }

    #[inline]
    fn leaf(_level: u8, output: u64, attributes: u64) -> u64 {
        let attributes = attributes & !(Self::ADDRESS | Self::LEAF | Self::VALID);
        output & Self::ADDRESS | attributes | Self::LEAF | Self::VALID
    }

    #[inline]
    fn in_memory(word: u64) -> u64 {
        word.to_be()
    }
}
