//! What is known to be wrong with products, by `SMMU_IIDR`.

use crate::spec::Iidr;

/// What a product's errata forbid. The numbers are those of Arm's errata notices, as Linux's
/// arm-smmu-v3 driver names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errata {
    /// Stage 1 over stage 2 does not work (MMU-600 before r2p0: 1209401; MMU-700: 2268618,
    /// 2812531).
    pub no_nesting: bool,
    /// More than 62 commands without a `CMD_SYNC` may hang it (MMU-700: 2812531). No batch of this
    /// driver is that long.
    pub short_batches: bool,
    /// Events on completion of `CMD_SYNC` are not reliable (MMU-600 r0p0 to r0p2: 1076982). This
    /// driver never asks for them; a guest's SMMU must not offer them.
    pub no_sev: bool,
}

/// Arm's JEP106 code.
const ARM: u16 = 0x43b;
const MMU_600: u16 = 0x483;
const MMU_700: u16 = 0x487;

impl Errata {
    /// The errata of a product.
    #[must_use]
    pub fn of(iidr: Iidr) -> Self {
        match (iidr.implementer(), iidr.product_id()) {
            (ARM, MMU_600) => Self {
                no_nesting: iidr.variant() < 2,
                no_sev: iidr.variant() == 0 && iidr.revision() <= 2,
                short_batches: false,
            },
            (ARM, MMU_700) => Self {
                no_nesting: true,
                short_batches: true,
                no_sev: false,
            },
            _ => Self::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Errata;
    use crate::spec::Iidr;

    fn product(id: u16, variant: u8, revision: u8) -> Errata {
        let iidr = Iidr::new()
            .with_implementer(0x43b)
            .with_product_id(id)
            .with_variant(variant)
            .with_revision(revision);
        Errata::of(iidr)
    }

    #[test]
    fn errata_follow_product_and_revision() {
        let first = product(0x483, 0, 2);
        assert!(first.no_sev && first.no_nesting);
        let second = product(0x483, 1, 0);
        assert!(!second.no_sev && second.no_nesting);
        assert_eq!(product(0x483, 2, 0), Errata::default());
        let newer = product(0x487, 1, 0);
        assert!(newer.no_nesting && newer.short_batches && !newer.no_sev);
        assert_eq!(product(0x48a, 0, 0), Errata::default());
        assert_eq!(Errata::of(Iidr::new()), Errata::default());
    }
}
