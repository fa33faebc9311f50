//! What a partition and its platform agree on: `ibm,client-architecture-support`. [LoPAPR §B.6.2.3]

/// An interrupt controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offer {
    Xics,
    Xive,
    Either,
    /// It does not say.
    Unsaid,
}

/// What the platform offers, from `/chosen/ibm,arch-vec-5-platform-support`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Support {
    interrupts: Offer,
    radix: Translation,
}

/// Whether the platform translates by radix trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Translation {
    Offered,
    NotOffered,
}

/// Bytes of option vector 5, by their numbers, which count from 1. [LoPAPR §B.6.2.3, table 244]
const INTERRUPTS: u8 = 23;
const MMU: u8 = 24;

impl Support {
    /// Reads the property: pairs of a byte's number and what may stand in it. An absent one is empty.
    #[must_use]
    pub fn parse(property: &[u8]) -> Self {
        let mut support = Self {
            interrupts: Offer::Unsaid,
            radix: Translation::NotOffered,
        };
        for pair in property.chunks_exact(2) {
            match *pair {
                [INTERRUPTS, value] => {
                    support.interrupts = match value >> 6 {
                        0 => Offer::Xics,
                        1 => Offer::Xive,
                        2 => Offer::Either,
                        _ => Offer::Unsaid,
                    }
                }
                [MMU, value] if value >> 6 != 0 => support.radix = Translation::Offered,
                _ => {}
            }
        }
        support
    }

    /// What is to be done about a wish.
    ///
    /// # Errors
    /// [`NotOffered`]: asking all the same would end the machine.
    pub fn agree(self, wish: Wish) -> Result<Agreement, NotOffered> {
        match (wish, self.interrupts) {
            // The platform begins with XICS where it has it. What `docs/power-boot.md` measures is why this
            // is what is best.
            (Wish::Best, Offer::Either | Offer::Xive)
            | (Wish::Xive, Offer::Either | Offer::Xive) => Ok(Agreement::Xive),
            (Wish::Best, Offer::Xics | Offer::Unsaid) => Ok(Agreement::AsFound),
            (Wish::Xics, Offer::Either | Offer::Xics) => Ok(Agreement::Xics),
            (Wish::AsFound, _) => Ok(Agreement::AsFound),
            (Wish::Xive | Wish::Xics, _) => Err(NotOffered(wish)),
        }
    }
}

/// What the boot command line asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// What works best of what there is.
    #[default]
    Best,
    /// XICS, agreed on.
    Xics,
    /// XIVE, agreed on.
    Xive,
    /// Nothing is asked of the platform.
    AsFound,
}

/// What the platform is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// Nothing.
    AsFound,
    /// XICS.
    Xics,
    /// XIVE.
    Xive,
}

impl core::fmt::Display for Agreement {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::AsFound => "as the platform has them",
            Self::Xics => "XICS, agreed on with the platform",
            Self::Xive => "XIVE, agreed on with the platform",
        })
    }
}

/// The platform has not what was wished for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotOffered(pub Wish);

impl core::fmt::Display for NotOffered {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "the platform does not offer {:?}", self.0)
    }
}

/// Bytes of a request.
pub const REQUEST_BYTES: usize = 54;

/// The request: which CPU we are made for, which is the one we run on as it is; then option vectors 1 to 5, each
/// behind its length less 1. `None` when nothing is to be asked.
///
/// Vector 1: architectures up to 3.1. Vectors 2 to 4 ask for nothing. Vector 5: one interrupt controller, and
/// radix trees where there are any, for whoever asks neither gets a hash table made.
#[must_use]
pub fn request(pvr: u32, support: Support, agreement: Agreement) -> Option<[u8; REQUEST_BYTES]> {
    const VECTOR_1: [u8; 4] = [2, 0, 0xff, 0xc0];
    const VECTORS_2_TO_4: [u8; 6] = [0, 0, 0, 0, 0, 0];
    const RADIX: u8 = 0x40;
    const GUEST_INVALIDATES: u8 = 0x40;
    let interrupts = match agreement {
        Agreement::AsFound => return None,
        Agreement::Xics => 0,
        Agreement::Xive => 0x40,
    };
    let (mmu, invalidates) = match support.radix {
        Translation::Offered => (RADIX, GUEST_INVALIDATES),
        Translation::NotOffered => (0, 0),
    };
    let [v0, v1, v2, v3] = pvr.to_be_bytes();
    let cpus = [
        [0xff, 0xff, 0xff, 0xff, v0, v1, v2, v3],
        // The end of the list: bits that the mask leaves out are set.
        [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
    ];
    let mut bytes = [0; REQUEST_BYTES];
    let vector_5 = (1..=26).map(|byte| match byte {
        INTERRUPTS => interrupts,
        MMU => mmu,
        26 => invalidates,
        _ => 0,
    });
    let content = cpus
        .into_iter()
        .flatten()
        // Five vectors, less 1.
        .chain([4])
        .chain(VECTOR_1)
        .chain(VECTORS_2_TO_4)
        .chain([25])
        .chain(vector_5);
    for (byte, value) in bytes.iter_mut().zip(content) {
        *byte = value;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::{Agreement, NotOffered, REQUEST_BYTES, Support, Wish, request};

    /// What QEMU's property is with `ic-mode=dual`, `xics`, `xive`.
    const DUAL: [u8; 8] = [0x17, 0x80, 0x18, 0xc0, 0x19, 0, 0x1a, 0x40];
    const XICS: [u8; 8] = [0x17, 0x00, 0x18, 0xc0, 0x19, 0, 0x1a, 0x40];
    const XIVE: [u8; 8] = [0x17, 0x40, 0x18, 0xc0, 0x19, 0, 0x1a, 0x40];

    #[test]
    fn nothing_is_asked_for_that_would_end_the_machine() {
        let agree = |property: &[u8], wish| Support::parse(property).agree(wish);
        for property in [&DUAL[..], &XICS, &XIVE, &[], &[0x17], &[0x17, 0xc0]] {
            assert_eq!(agree(property, Wish::AsFound), Ok(Agreement::AsFound));
        }
        assert_eq!(agree(&DUAL, Wish::Best), Ok(Agreement::Xive));
        assert_eq!(agree(&XIVE, Wish::Best), Ok(Agreement::Xive));
        assert_eq!(agree(&XICS, Wish::Best), Ok(Agreement::AsFound));
        assert_eq!(agree(&[], Wish::Best), Ok(Agreement::AsFound));
        assert_eq!(agree(&[0x17, 0xc0], Wish::Best), Ok(Agreement::AsFound));
        assert_eq!(agree(&DUAL, Wish::Xics), Ok(Agreement::Xics));
        assert_eq!(agree(&XICS, Wish::Xics), Ok(Agreement::Xics));
        assert_eq!(agree(&XIVE, Wish::Xics), Err(NotOffered(Wish::Xics)));
        assert_eq!(agree(&DUAL, Wish::Xive), Ok(Agreement::Xive));
        assert_eq!(agree(&XICS, Wish::Xive), Err(NotOffered(Wish::Xive)));
        assert_eq!(agree(&[], Wish::Xive), Err(NotOffered(Wish::Xive)));
    }

    /// Where vector 5 begins, by walking over the others as the platform does.
    fn vector_5(request: &[u8]) -> &[u8] {
        let mut at = 16;
        assert_eq!(request[at], 4, "five vectors, less 1");
        at += 1;
        for _ in 1..5 {
            at += usize::from(request[at]) + 2;
        }
        let length = usize::from(request[at]) + 1;
        assert_eq!(request.len(), at + 1 + length, "nothing is left over");
        &request[at + 1..]
    }

    #[test]
    fn the_request_names_this_cpu_one_controller_and_one_translation() {
        let support = Support::parse(&DUAL);
        let bytes = request(0x004e_1202, support, Agreement::Xive).unwrap();
        assert_eq!(bytes.len(), REQUEST_BYTES);
        assert_eq!(
            bytes[..16],
            [
                0xff, 0xff, 0xff, 0xff, 0x00, 0x4e, 0x12, 0x02, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff
            ]
        );
        let vector = vector_5(&bytes);
        // Byte numbers count from 1.
        assert_eq!([vector[22], vector[23], vector[25]], [0x40, 0x40, 0x40]);
        assert_eq!(vector.iter().filter(|byte| **byte != 0).count(), 3);

        let bytes = request(0x004e_1202, support, Agreement::Xics).unwrap();
        let vector = vector_5(&bytes);
        assert_eq!([vector[22], vector[23], vector[25]], [0, 0x40, 0x40]);
        assert_eq!(request(0x004e_1202, support, Agreement::AsFound), None);
    }

    #[test]
    fn radix_is_not_asked_for_where_there_is_none() {
        let support = Support::parse(&[0x17, 0x80, 0x18, 0x00]);
        let bytes = request(0x004e_1202, support, Agreement::Xive).unwrap();
        let vector = vector_5(&bytes);
        assert_eq!([vector[22], vector[23], vector[25]], [0x40, 0, 0]);
    }
}
