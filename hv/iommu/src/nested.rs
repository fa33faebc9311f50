//! What a guest says about its own stage 1: a versioned, sized record.

use crate::codec::{CodecError, Declared};

/// What becomes of a stream under a guest's stage 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StageOne {
    /// The guest stopped the stream: every access aborts.
    Abort,
    /// The guest translates nothing: its bus addresses are guest-physical.
    Bypass,
    /// The guest translates.
    Translate(Translate),
    /// The guest configured nothing that is legal: every access aborts, and the hardware says so.
    Invalid,
}

/// How the guest's context descriptors are laid out [IHI 0070 §5.2, S1Fmt].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContextFormat {
    /// One array.
    Linear,
    /// Two levels, leaf tables of 4 KiB.
    TwoLevel4K,
    /// Two levels, leaf tables of 64 KiB.
    TwoLevel64K,
}

/// What becomes of an access without a substream when there are substreams [IHI 0070 §5.2, S1DSS].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DefaultSubstream {
    /// It aborts.
    Terminate,
    /// It bypasses stage 1.
    Bypass,
    /// It uses context descriptor 0.
    Substream0,
}

/// Whether the guest promises to invalidate the device's own translation cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ats {
    /// Translation requests are refused.
    Off,
    /// The guest wants them, and sends the invalidations.
    On,
}

/// The stage-1 tables of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Translate {
    /// The layout of the context descriptors.
    pub format: ContextFormat,
    /// What an access without a substream gets.
    pub default_substream: DefaultSubstream,
    /// Log2 of the number of substreams; 0 when there are none. At most 20.
    pub substream_bits: u8,
    /// The guest-physical address of the context descriptors; a multiple of 64.
    pub base: u64,
}

/// A checked stage-1 configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NestedConfig {
    /// What becomes of the stream.
    pub stage_one: StageOne,
    /// Whether the device may cache translations.
    pub ats: Ats,
}

impl NestedConfig {
    /// Every access aborts.
    pub const ABORT: Self = Self {
        stage_one: StageOne::Abort,
        ats: Ats::Off,
    };
    /// Every access aborts and is recorded, as one by an entry that is not valid.
    pub const INVALID: Self = Self {
        stage_one: StageOne::Invalid,
        ats: Ats::Off,
    };
    /// Stage 1 does nothing.
    pub const BYPASS: Self = Self {
        stage_one: StageOne::Bypass,
        ats: Ats::Off,
    };

    /// Bytes of the first version.
    pub const LEAST: usize = 24;
    /// Bytes of the newest version.
    pub const KNOWN: usize = 32;
    /// The version this codec writes.
    pub const VERSION: u16 = 1;

    /// Reads a record.
    ///
    /// Little-endian: version u16 at 0 (1), mode u8 at 2 (0 abort, 1 bypass, 2 translate, 3 invalid), format
    /// u8 at 3 (0 linear, 1 two-level 4K, 2 two-level 64K), `s1dss` u8 at 4 (0, 1, 2), substream
    /// bits u8 at 5, reserved u16 at 6, base u64 at 8, reserved u64 at 16; and since the second
    /// size: flags u32 at 24 (bit 0: ATS), reserved u32 at 28.
    ///
    /// # Errors
    /// [`CodecError`]. Fields that mean nothing in the mode must be zero.
    pub fn decode(declared: usize, passed: &[u8]) -> Result<Self, CodecError> {
        let record = Declared::new(declared, passed, Self::LEAST, Self::KNOWN)?;
        let bad = |at, value| Err(CodecError::BadValue { at, value });
        let version = record.u16(0);
        if version != Self::VERSION {
            return Err(CodecError::Unsupported {
                at: 0,
                value: version.into(),
            });
        }
        for (at, value) in [(6, u64::from(record.u16(6))), (16, record.u64(16))] {
            if value != 0 {
                return Err(CodecError::Unsupported { at, value });
            }
        }
        let ats = match record.flags(24, 1)? {
            0 => Ats::Off,
            _ => Ats::On,
        };
        record.reserved_u32(28)?;
        let (mode, base, bits) = (record.u8(2), record.u64(8), record.u8(5));
        let stage_one = match mode {
            0 | 1 | 3 => {
                for at in [3, 4, 5] {
                    if record.u8(at) != 0 {
                        return bad(at, record.u8(at).into());
                    }
                }
                if base != 0 {
                    return bad(8, base);
                }
                if ats == Ats::On {
                    return bad(24, 1);
                }
                match mode {
                    0 => StageOne::Abort,
                    1 => StageOne::Bypass,
                    _ => StageOne::Invalid,
                }
            }
            2 => {
                let format = match record.u8(3) {
                    0 => ContextFormat::Linear,
                    1 => ContextFormat::TwoLevel4K,
                    2 => ContextFormat::TwoLevel64K,
                    other => return bad(3, other.into()),
                };
                let default_substream = match record.u8(4) {
                    0 => DefaultSubstream::Terminate,
                    1 => DefaultSubstream::Bypass,
                    2 => DefaultSubstream::Substream0,
                    other => return bad(4, other.into()),
                };
                if bits > 20 {
                    return bad(5, bits.into());
                }
                if base & 63 != 0 || base >> 56 != 0 {
                    return bad(8, base);
                }
                StageOne::Translate(Translate {
                    format,
                    default_substream,
                    substream_bits: bits,
                    base,
                })
            }
            other => {
                return Err(CodecError::Unsupported {
                    at: 2,
                    value: other.into(),
                });
            }
        };
        Ok(Self { stage_one, ats })
    }

    /// Writes the newest version of the record.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::KNOWN] {
        let (mode, format, s1dss, bits, base) = match self.stage_one {
            StageOne::Abort => (0, 0, 0, 0, 0),
            StageOne::Bypass => (1, 0, 0, 0, 0),
            StageOne::Invalid => (3, 0, 0, 0, 0),
            StageOne::Translate(t) => (
                2,
                t.format as u8,
                t.default_substream as u8,
                t.substream_bits,
                t.base,
            ),
        };
        let [v0, v1] = Self::VERSION.to_le_bytes();
        let [b0, b1, b2, b3, b4, b5, b6, b7] = u64::to_le_bytes(base);
        let head = [v0, v1, mode, format, s1dss, bits, 0, 0];
        let tail = [self.ats as u8, 0, 0, 0, 0, 0, 0, 0];
        let parts = [head, [b0, b1, b2, b3, b4, b5, b6, b7], [0; 8], tail];
        let mut record = [0; Self::KNOWN];
        for (to, from) in record.iter_mut().zip(parts.iter().flatten()) {
            *to = *from;
        }
        record
    }
}
