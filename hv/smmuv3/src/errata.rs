//! What is known to be wrong with products, by `SMMU_IIDR`.

use core::fmt;

use crate::spec::Iidr;

/// One erratum: its number in Arm's notice to users, as Linux names it (`Documentation/arch/arm64/silicon-errata.rst`,
/// arm-smmu-v3's `arm_smmu_device_iidr_probe`), and what the driver makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Erratum {
    numbers: &'static str,
    becomes: &'static str,
}

const NO_NESTING: &str = "no guest gets an SMMU of its own";
const NO_SEV: &str = "waits poll, and ask for no event";
const SHORT_BATCHES: &str = "a CMD_SYNC behind 32 commands at most";

/// A product, and what its errata forbid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errata {
    iidr: Iidr,
    known: &'static [Erratum],
}

/// Arm's JEP106 code.
const ARM: u16 = 0x43b;
const MMU_600: u16 = 0x483;
const MMU_700: u16 = 0x487;

impl Errata {
    /// The errata of a product.
    #[must_use]
    pub const fn of(iidr: Iidr) -> Self {
        const SEV: Erratum = Erratum {
            numbers: "1076982",
            becomes: NO_SEV,
        };
        const NESTING: Erratum = Erratum {
            numbers: "1209401",
            becomes: NO_NESTING,
        };
        const LATER_NESTING: Erratum = Erratum {
            numbers: "2268618, 2812531",
            becomes: NO_NESTING,
        };
        const BATCHES: Erratum = Erratum {
            numbers: "2812531",
            becomes: SHORT_BATCHES,
        };
        let known: &[Erratum] = match (iidr.implementer(), iidr.product_id()) {
            (ARM, MMU_600) => match (iidr.variant(), iidr.revision()) {
                (0, 0..=2) => &[SEV, NESTING],
                (0 | 1, _) => &[NESTING],
                _ => &[],
            },
            (ARM, MMU_700) => &[LATER_NESTING, BATCHES],
            _ => &[],
        };
        Self { iidr, known }
    }

    /// Whether stage 1 over stage 2 does not work.
    #[must_use]
    pub fn forbid_nesting(&self) -> bool {
        self.known
            .iter()
            .any(|erratum| erratum.becomes == NO_NESTING)
    }

    /// Whether any is known.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

/// One line: the product, its errata, and what becomes of them.
impl fmt::Display for Errata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (implementer, product) = (self.iidr.implementer(), self.iidr.product_id());
        if self.iidr == Iidr::new() {
            return f.write_str("names no product, no erratum known");
        }
        match (implementer, product) {
            (ARM, MMU_600) => f.write_str("Arm MMU-600"),
            (ARM, MMU_700) => f.write_str("Arm MMU-700"),
            _ => write!(f, "product {product:#05x} of {implementer:#05x}"),
        }?;
        write!(f, " r{}p{}, ", self.iidr.variant(), self.iidr.revision())?;
        if self.is_empty() {
            return f.write_str("no erratum known");
        }
        for (at, erratum) in self.known.iter().enumerate() {
            let between = if at == 0 { "errata" } else { ";" };
            write!(f, "{between} {}: {}", erratum.numbers, erratum.becomes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

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
        let nesting = |id, variant, revision| product(id, variant, revision).forbid_nesting();
        assert!(nesting(0x483, 0, 2) && nesting(0x483, 0, 3) && nesting(0x483, 1, 0));
        assert!(!nesting(0x483, 2, 0) && product(0x483, 2, 0).is_empty());
        assert!(nesting(0x487, 0, 0) && nesting(0x487, 1, 1));
        assert!(product(0x48a, 0, 0).is_empty());
        assert!(Errata::of(Iidr::new()).is_empty());
        let other = Iidr::new().with_implementer(0x436).with_product_id(0x487);
        assert!(Errata::of(other).is_empty(), "another implementer's");
    }

    #[test]
    fn the_report_says_what_becomes_of_them() {
        for (errata, line) in [
            (
                product(0x483, 0, 2),
                "Arm MMU-600 r0p2, errata 1076982: waits poll, and ask for no event; 1209401: no guest \
                 gets an SMMU of its own",
            ),
            (
                product(0x483, 0, 3),
                "Arm MMU-600 r0p3, errata 1209401: no guest gets an SMMU of its own",
            ),
            (product(0x483, 2, 1), "Arm MMU-600 r2p1, no erratum known"),
            (
                product(0x487, 1, 0),
                "Arm MMU-700 r1p0, errata 2268618, 2812531: no guest gets an SMMU of its own; 2812531: a \
                 CMD_SYNC behind 32 commands at most",
            ),
            (
                product(0x48a, 1, 2),
                "product 0x48a of 0x43b r1p2, no erratum known",
            ),
            // QEMU's.
            (
                Errata::of(Iidr::new()),
                "names no product, no erratum known",
            ),
        ] {
            assert_eq!(errata.to_string(), line);
        }
    }
}
