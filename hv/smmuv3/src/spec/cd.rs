//! Context descriptors: a guest's stage 1. The hypervisor reads them, it never writes one.

use core::fmt;

use bitfield_struct::bitfield;

/// Doubleword 0 of a [`Cd`].
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cd0 {
    /// 64 minus the bits of the lower range.
    #[bits(6)]
    pub t0sz: u8,
    /// Granule of the lower range: 0 4K, 1 64K, 2 16K.
    #[bits(2)]
    pub tg0: u8,
    /// Inner cacheability of walks of the lower range.
    #[bits(2)]
    pub ir0: u8,
    /// Outer cacheability.
    #[bits(2)]
    pub or0: u8,
    /// Shareability.
    #[bits(2)]
    pub sh0: u8,
    /// The lower range is not walked.
    pub epd0: bool,
    /// The tables are big-endian.
    pub endi: bool,
    /// 64 minus the bits of the upper range.
    #[bits(6)]
    pub t1sz: u8,
    /// Granule of the upper range: 1 16K, 2 4K, 3 64K.
    #[bits(2)]
    pub tg1: u8,
    /// Inner cacheability of walks of the upper range.
    #[bits(2)]
    pub ir1: u8,
    /// Outer cacheability.
    #[bits(2)]
    pub or1: u8,
    /// Shareability.
    #[bits(2)]
    pub sh1: u8,
    /// The upper range is not walked.
    pub epd1: bool,
    /// The descriptor is valid.
    pub v: bool,
    /// Output size, encoded as in `IDR5.OAS`.
    #[bits(3)]
    pub ips: u8,
    /// A clear access flag does not fault.
    pub affd: bool,
    /// Writable memory is never executable.
    pub wxn: bool,
    /// The same, for memory that unprivileged code may write.
    pub uwxn: bool,
    /// The top byte of lower addresses is ignored.
    pub tbi0: bool,
    /// The top byte of upper addresses is ignored.
    pub tbi1: bool,
    /// Privileged accesses to unprivileged memory fault.
    pub pan: bool,
    /// The tables are AArch64's.
    pub aa64: bool,
    /// Hardware sets the dirty state.
    pub hd: bool,
    /// Hardware sets the access flag.
    pub ha: bool,
    /// Faults stall.
    pub s: bool,
    /// Faults are recorded.
    pub r: bool,
    /// Faults abort, rather than read as zero.
    pub a: bool,
    /// The ASID is not shared with CPUs.
    pub aset: bool,
    /// The tag of translations.
    pub asid: u16,
}

/// Doublewords 1 and 2 of a [`Cd`]: the root of a range.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct CdTtb {
    _reserved: bool,
    /// Hierarchical attributes are disabled.
    pub had: bool,
    #[bits(2)]
    _reserved: u8,
    /// Bits 51:4 of the root table's address.
    #[bits(48)]
    pub ttb_51_4: u64,
    #[bits(12)]
    _reserved: u16,
}

impl CdTtb {
    /// The root table's address.
    #[must_use]
    pub const fn ttb(self) -> u64 {
        self.ttb_51_4() << 4
    }
}

/// A context descriptor: one stage 1. [IHI 0070 §5.4]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Cd {
    /// Shape and behaviour.
    pub dw0: Cd0,
    /// The lower range.
    pub ttb0: CdTtb,
    /// The upper range.
    pub ttb1: CdTtb,
    /// Memory attributes.
    pub mair: u64,
    /// Implementation defined ones.
    pub amair: u64,
    /// Later additions.
    pub rest: [u64; 3],
}

const _: () = assert!(size_of::<Cd>() == Cd::BYTES);

impl Cd {
    /// Its size in memory, and its alignment.
    pub const BYTES: usize = 64;

    /// The descriptor of these doublewords.
    #[must_use]
    pub const fn from_words(words: [u64; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = words;
        Self {
            dw0: Cd0::from_bits(a),
            ttb0: CdTtb::from_bits(b),
            ttb1: CdTtb::from_bits(c),
            mair: d,
            amair: e,
            rest: [f, g, h],
        }
    }

    /// Its doublewords.
    #[must_use]
    pub const fn into_words(self) -> [u64; 8] {
        let [f, g, h] = self.rest;
        [
            self.dw0.into_bits(),
            self.ttb0.into_bits(),
            self.ttb1.into_bits(),
            self.mair,
            self.amair,
            f,
            g,
            h,
        ]
    }

    /// The descriptor in memory.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Self::from_words(words)
    }
}

impl fmt::Debug for Cd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Cd(v {} asid {:#x} ttb0 {:#x} ttb1 {:#x}; {:#x})",
            u8::from(self.dw0.v()),
            self.dw0.asid(),
            self.ttb0.ttb(),
            self.ttb1.ttb(),
            self.dw0.into_bits()
        )
    }
}

/// A level-1 context descriptor table entry. [IHI 0070 §5.3]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct L1Cd {
    /// The entry is valid.
    pub v: bool,
    #[bits(11)]
    _reserved: u16,
    /// Bits 51:12 of the address of the leaf table.
    #[bits(40)]
    pub l2ptr_51_12: u64,
    #[bits(12)]
    _reserved: u16,
}

#[cfg(test)]
mod tests {
    use super::{Cd, Cd0, L1Cd};

    #[test]
    fn fields_are_where_linux_has_them() {
        let bits = |cd: Cd0| cd.into_bits();
        assert_eq!(bits(Cd0::new().with_t0sz(63)), 63);
        assert_eq!(bits(Cd0::new().with_tg0(3)), 3 << 6);
        assert_eq!(bits(Cd0::new().with_sh0(3)), 3 << 12);
        assert_eq!(bits(Cd0::new().with_epd0(true)), 1 << 14);
        assert_eq!(bits(Cd0::new().with_endi(true)), 1 << 15);
        assert_eq!(bits(Cd0::new().with_t1sz(63)), 63 << 16);
        assert_eq!(bits(Cd0::new().with_epd1(true)), 1 << 30);
        assert_eq!(bits(Cd0::new().with_v(true)), 1 << 31);
        assert_eq!(bits(Cd0::new().with_ips(7)), 7 << 32);
        assert_eq!(bits(Cd0::new().with_affd(true)), 1 << 35);
        assert_eq!(bits(Cd0::new().with_tbi0(true)), 1 << 38);
        assert_eq!(bits(Cd0::new().with_aa64(true)), 1 << 41);
        assert_eq!(bits(Cd0::new().with_s(true)), 1 << 44);
        assert_eq!(bits(Cd0::new().with_r(true)), 1 << 45);
        assert_eq!(bits(Cd0::new().with_a(true)), 1 << 46);
        assert_eq!(bits(Cd0::new().with_aset(true)), 1 << 47);
        assert_eq!(bits(Cd0::new().with_asid(0xffff)), 0xffff << 48);
    }

    #[test]
    fn a_descriptor_survives_decoding_bit_by_bit() {
        let bytes = core::array::from_fn(|i| u8::try_from(i * 3 + 1).unwrap());
        let cd = Cd::from_bytes(&bytes);
        let again: alloc::vec::Vec<u8> = cd
            .into_words()
            .into_iter()
            .flat_map(u64::to_le_bytes)
            .collect();
        assert_eq!(again, bytes);
        assert_eq!(
            Cd::from_words([0, 0x000f_1234_5678_9ab7, 0, 0, 0, 0, 0, 0])
                .ttb0
                .ttb(),
            0x000f_1234_5678_9ab0
        );
    }

    #[test]
    fn a_level_1_entry_points_to_a_page() {
        let entry = L1Cd::from_bits(0x8765_4001);
        assert!(entry.v());
        assert_eq!(entry.l2ptr_51_12() << 12, 0x8765_4000);
    }
}
