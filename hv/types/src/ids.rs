//! Identities of devices, VMs and translation tables.

use core::fmt;

use crate::OutOfRange;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty), bits: $bits:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name($int);

        impl $name {
            /// The largest value.
            pub const MAX: $int = <$int>::MAX >> (<$int>::BITS - $bits);

            /// The identity with this value.
            ///
            /// # Errors
            /// [`OutOfRange`] beyond [`Self::MAX`].
            pub const fn new(bits: $int) -> Result<Self, OutOfRange> {
                if bits <= Self::MAX {
                    Ok(Self(bits))
                } else {
                    Err(OutOfRange { kind: stringify!($name), value: bits as u64 })
                }
            }

            /// The raw value.
            #[must_use]
            pub const fn bits(self) -> $int {
                self.0
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
    };
}

id! {
    /// The identity an SMMU knows a device by. 32 bits [IHI 0070 §3.2].
    StreamId(u32), bits: 32
}
id! {
    /// A process address space of a device (PCI: PASID). 20 bits [IHI 0070 §3.2].
    SubstreamId(u32), bits: 20
}
id! {
    /// The tag of a VM's stage-2 translations. 16 bits; SMMUs and CPUs may implement only 8.
    Vmid(u16), bits: 16
}
id! {
    /// The tag of a process's stage-1 translations.
    Asid(u16), bits: 16
}
id! {
    /// A logical I/O bus number: the name of a TCE table on a PAPR platform [LoPAPR §14.5.4].
    Liobn(u32), bits: 32
}
id! {
    /// A partitionable endpoint: the smallest unit that POWER's PCI host bridge isolates.
    PeNumber(u16), bits: 16
}

/// A PCI function: bus, device, function. The segment is kept by whoever owns the host bridge.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Bdf(u16);

impl Bdf {
    /// The function with these numbers.
    ///
    /// # Errors
    /// [`OutOfRange`] for a device above 31 or a function above 7.
    pub const fn new(bus: u8, device: u8, function: u8) -> Result<Self, OutOfRange> {
        if device > 31 {
            return Err(OutOfRange {
                kind: "Bdf (device)",
                value: device as u64,
            });
        }
        if function > 7 {
            return Err(OutOfRange {
                kind: "Bdf (function)",
                value: function as u64,
            });
        }
        Ok(Self(
            (bus as u16) << 8 | (device as u16) << 3 | function as u16,
        ))
    }

    /// The function with this requester ID: bus in bits 15:8, device in 7:3, function in 2:0.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The requester ID.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// The bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    /// The device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.0.to_be_bytes()[1] >> 3
    }

    /// The function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.0.to_be_bytes()[1] & 7
    }
}

impl fmt::Debug for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bdf({self})")
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}:{:02x}.{}",
            self.bus(),
            self.device(),
            self.function()
        )
    }
}

#[cfg(test)]
mod tests {
    extern crate alloc;
    use alloc::string::ToString;

    use super::{Bdf, SubstreamId};

    #[test]
    fn bdf_fields_are_where_a_requester_id_has_them() {
        let bdf = Bdf::new(0x41, 0x1f, 7).unwrap();
        assert_eq!(bdf.bits(), 0x41ff);
        assert_eq!((bdf.bus(), bdf.device(), bdf.function()), (0x41, 0x1f, 7));
        assert_eq!(bdf.to_string(), "41:1f.7");
        assert!(Bdf::new(0, 32, 0).is_err());
        assert!(Bdf::new(0, 0, 8).is_err());
    }

    #[test]
    fn a_substream_has_twenty_bits() {
        assert!(SubstreamId::new(0xf_ffff).is_ok());
        assert!(SubstreamId::new(0x10_0000).is_err());
    }
}
