//! Records from outside: sized, versioned by their size, read exactly as declared.
//!
//! Every record begins where its caller says and is as long as its caller declares. It is read by
//! one rule: shorter than the first version is refused; longer than the version we know is
//! accepted when the rest is zero and refused otherwise; bytes beyond the declared length are
//! never looked at. A record shorter than the version we know reads as if zero-filled.

/// Why a record was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The declared length is below that of the record's first version.
    #[error("{declared} bytes are declared, {least} are the least")]
    TooShort {
        /// Bytes declared.
        declared: usize,
        /// Bytes of the first version.
        least: usize,
    },
    /// More bytes are declared than were passed.
    #[error("{declared} bytes are declared, {passed} were passed")]
    Missing {
        /// Bytes declared.
        declared: usize,
        /// Bytes there are.
        passed: usize,
    },
    /// A byte beyond the version we know is not zero.
    #[error("byte {at} is beyond the version known here, and not zero")]
    UnknownTail {
        /// Its offset.
        at: usize,
    },
    /// No such operation.
    #[error("operation {0:#x} is unknown")]
    UnknownOperation(u32),
    /// A field holds a value that is understood but not supported, or reserved bits are set.
    #[error("field at {at} has the unsupported value {value:#x}")]
    Unsupported {
        /// The field's offset.
        at: usize,
        /// Its value.
        value: u64,
    },
    /// A field holds a value that can never be right.
    #[error("field at {at} has the bad value {value:#x}")]
    BadValue {
        /// The field's offset.
        at: usize,
        /// Its value.
        value: u64,
    },
}

/// The declared bytes of a record, with an unknown tail already judged.
#[derive(Clone, Copy, Debug)]
pub struct Declared<'a> {
    bytes: &'a [u8],
}

impl<'a> Declared<'a> {
    /// Applies the rule. `least` and `known` are the lengths of the first and of the newest
    /// version we know, in bytes.
    ///
    /// # Errors
    /// [`CodecError::TooShort`], [`CodecError::Missing`], [`CodecError::UnknownTail`].
    pub fn new(
        declared: usize,
        passed: &'a [u8],
        least: usize,
        known: usize,
    ) -> Result<Self, CodecError> {
        if declared < least {
            return Err(CodecError::TooShort { declared, least });
        }
        let bytes = passed.get(..declared).ok_or(CodecError::Missing {
            declared,
            passed: passed.len(),
        })?;
        let tail = bytes.get(known..).unwrap_or_default();
        if let Some(at) = tail.iter().position(|byte| *byte != 0) {
            return Err(CodecError::UnknownTail {
                at: at.saturating_add(known),
            });
        }
        Ok(Self { bytes })
    }

    /// The byte at an offset; zero when it was not declared.
    #[must_use]
    pub fn u8(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    /// The little-endian 16 bits at an offset; zero-filled.
    #[must_use]
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    /// The little-endian 32 bits at an offset; zero-filled.
    #[must_use]
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    /// The little-endian 64 bits at an offset; zero-filled.
    #[must_use]
    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        core::array::from_fn(|i| at.checked_add(i).map_or(0, |at| self.u8(at)))
    }

    /// Refuses a reserved field that is not zero.
    ///
    /// # Errors
    /// [`CodecError::Unsupported`].
    pub fn reserved_u32(&self, at: usize) -> Result<(), CodecError> {
        match self.u32(at) {
            0 => Ok(()),
            value => Err(CodecError::Unsupported {
                at,
                value: value.into(),
            }),
        }
    }

    /// Flags of which only `known` may be set.
    ///
    /// # Errors
    /// [`CodecError::Unsupported`].
    pub fn flags(&self, at: usize, known: u32) -> Result<u32, CodecError> {
        let flags = self.u32(at);
        if flags & !known == 0 {
            Ok(flags)
        } else {
            Err(CodecError::Unsupported {
                at,
                value: flags.into(),
            })
        }
    }
}
