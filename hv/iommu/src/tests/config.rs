//! The stage-1 configuration record, and the rule for every record.

use super::*;
use crate::{
    CodecError, ContextFormat, Declared, DefaultSubstream, NestedConfig, StageOne, Translate,
};

fn translate() -> NestedConfig {
    super::nested::TRANSLATE
}

fn bytes() -> [u8; NestedConfig::KNOWN] {
    translate().encode()
}

fn decode(bytes: &[u8]) -> Result<NestedConfig, CodecError> {
    NestedConfig::decode(bytes.len(), bytes)
}

/// The encoding with one byte changed.
fn changed(at: usize, value: u8) -> Result<NestedConfig, CodecError> {
    let mut record = bytes();
    record[at] = value;
    decode(&record)
}

#[test]
fn a_configuration_survives_its_encoding() {
    for ats in [Ats::Off, Ats::On] {
        for format in [
            ContextFormat::Linear,
            ContextFormat::TwoLevel4K,
            ContextFormat::TwoLevel64K,
        ] {
            for default_substream in [
                DefaultSubstream::Terminate,
                DefaultSubstream::Bypass,
                DefaultSubstream::Substream0,
            ] {
                let stage_one = StageOne::Translate(Translate {
                    format,
                    default_substream,
                    substream_bits: 20,
                    base: 0xff_ffff_ffff_ffc0,
                });
                let config = NestedConfig { stage_one, ats };
                assert_eq!(decode(&config.encode()), Ok(config));
            }
        }
    }
    for config in [
        NestedConfig::ABORT,
        NestedConfig::BYPASS,
        NestedConfig::INVALID,
    ] {
        assert_eq!(decode(&config.encode()), Ok(config));
    }
}

#[test]
fn the_encoding_is_this_byte_for_byte() {
    assert_eq!(
        bytes(),
        [
            1, 0, 2, 2, 2, 5, 0, 0, 0x40, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 0
        ]
    );
}

#[test]
fn a_record_of_the_first_size_reads_as_if_filled_with_zeros() {
    let record = bytes();
    let short = NestedConfig::decode(NestedConfig::LEAST, &record[..NestedConfig::LEAST]);
    assert_eq!(short, Ok(translate()));
}

#[test]
fn a_record_one_byte_short_of_the_first_size_is_refused() {
    let record = bytes();
    assert_eq!(
        NestedConfig::decode(NestedConfig::LEAST - 1, &record),
        Err(CodecError::TooShort {
            declared: 23,
            least: 24
        })
    );
}

#[test]
fn bytes_beyond_what_was_declared_are_not_looked_at() {
    let mut record = bytes().to_vec();
    record[24] = 1;
    record.extend([0xff; 8]);
    let short = NestedConfig::decode(NestedConfig::LEAST, &record);
    assert_eq!(short.map(|config| config.ats), Ok(Ats::Off));
}

#[test]
fn a_longer_record_is_read_when_the_rest_is_zero() {
    let mut record = bytes().to_vec();
    record.extend([0; 16]);
    assert_eq!(decode(&record), Ok(translate()));
}

#[test]
fn a_longer_record_is_refused_when_the_rest_is_not_zero() {
    for at in 32..48 {
        let mut record = bytes().to_vec();
        record.extend([0; 16]);
        record[at] = 1;
        assert_eq!(decode(&record), Err(CodecError::UnknownTail { at }));
    }
}

#[test]
fn declaring_more_than_is_passed_is_refused() {
    assert_eq!(
        NestedConfig::decode(33, &bytes()),
        Err(CodecError::Missing {
            declared: 33,
            passed: 32
        })
    );
    assert!(NestedConfig::decode(usize::MAX, &bytes()).is_err());
}

#[test]
fn another_version_is_not_supported() {
    assert_eq!(
        changed(0, 2),
        Err(CodecError::Unsupported { at: 0, value: 2 })
    );
    assert!(changed(0, 0).is_err());
}

#[test]
fn an_unknown_mode_is_not_supported() {
    assert_eq!(
        changed(2, 4),
        Err(CodecError::Unsupported { at: 2, value: 4 })
    );
}

#[test]
fn unknown_formats_and_defaults_are_bad_values() {
    assert_eq!(changed(3, 3), Err(CodecError::BadValue { at: 3, value: 3 }));
    assert_eq!(changed(4, 3), Err(CodecError::BadValue { at: 4, value: 3 }));
}

#[test]
fn more_than_twenty_substream_bits_are_a_bad_value() {
    assert!(changed(5, 20).is_ok());
    assert_eq!(
        changed(5, 21),
        Err(CodecError::BadValue { at: 5, value: 21 })
    );
}

#[test]
fn a_base_that_is_misaligned_or_too_large_is_a_bad_value() {
    assert!(matches!(
        changed(8, 0x20),
        Err(CodecError::BadValue { at: 8, .. })
    ));
    assert!(matches!(
        changed(15, 1),
        Err(CodecError::BadValue { at: 8, .. })
    ));
}

#[test]
fn reserved_fields_must_be_zero() {
    for at in [6, 7, 16, 23] {
        assert!(
            matches!(changed(at, 1), Err(CodecError::Unsupported { .. })),
            "{at}"
        );
    }
    assert!(matches!(
        changed(28, 1),
        Err(CodecError::Unsupported { .. })
    ));
    assert!(matches!(
        changed(24, 2),
        Err(CodecError::Unsupported { .. })
    ));
}

#[test]
fn fields_without_meaning_in_the_mode_must_be_zero() {
    for mode in [
        NestedConfig::ABORT,
        NestedConfig::BYPASS,
        NestedConfig::INVALID,
    ] {
        for at in [3, 4, 5, 8, 24] {
            let mut record = mode.encode();
            record[at] = 1;
            assert!(
                matches!(decode(&record), Err(CodecError::BadValue { .. })),
                "{at}"
            );
        }
    }
}

#[test]
fn fields_that_were_not_declared_read_as_zero() {
    let declared = Declared::new(3, &[1, 2, 3, 4], 1, 8).unwrap();
    assert_eq!(declared.u8(2), 3);
    assert_eq!(declared.u8(3), 0);
    assert_eq!(declared.u16(2), 3);
    assert_eq!(declared.u32(0), 0x0003_0201);
    assert_eq!(declared.u64(usize::MAX), 0);
}
