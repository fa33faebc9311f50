//! QEMU's recording of a run, as far as it tells how many instructions had been executed when a byte was
//! written to the console.
//!
//! The file is a header and a list of events [QEMU, docs/system/replay.rst, replay/replay-internal.h]: a
//! byte for the kind, then what belongs to it, big-endian. The order of kinds belongs to a version, which is
//! in the header.

use anyhow::{Context as _, Result, bail, ensure};

/// The version whose kinds are known: that of QEMU 7.1 and later.
const VERSION: u32 = 0x00e0_200c;
/// Bytes of the header: the version, and an offset.
const HEADER: usize = 4 + 8;

/// Instructions executed, by bytes of the console.
#[derive(Debug)]
pub(super) struct Record {
    /// After each write: bytes in all, and instructions in all.
    writes: Vec<(u64, u64)>,
}

impl Record {
    /// Reads a recording.
    ///
    /// # Errors
    /// Another version, an unknown event, or an end inside of one.
    pub(super) fn parse(file: &[u8]) -> Result<Self> {
        let mut left = Left(file);
        let version = left.word()?;
        ensure!(
            version == VERSION,
            "a recording of version {version:#x}, not {VERSION:#x}"
        );
        left.skip(HEADER - 4)?;
        let (mut bytes, mut instructions) = (0, 0);
        let mut writes = Vec::new();
        while let Some(kind) = left.kind() {
            match kind {
                0 => instructions += u64::from(left.word()?),
                // Interrupts, exceptions; the ends of the machine; checkpoints and the end of the file.
                1 | 2 | 10..=21 | 30..=39 => {}
                // Work of the main loop, and blocks; clocks.
                3 | 4 | 8 | 28 | 29 => left.skip(8)?,
                7 => {
                    left.skip(1)?;
                    left.array()?;
                }
                9 => {
                    left.skip(5)?;
                    left.array()?;
                }
                22 => {
                    bytes += u64::from(left.word()?);
                    left.skip(4)?;
                    writes.push((bytes, instructions));
                }
                27 => {
                    left.skip(4)?;
                    left.array()?;
                }
                _ => bail!("a recording with an event of kind {kind}"),
            }
        }
        Ok(Self { writes })
    }

    /// Instructions that had been executed when the console had so many bytes.
    pub(super) fn at(&self, bytes: usize) -> Option<u64> {
        let bytes = u64::try_from(bytes).ok()?;
        let index = self.writes.partition_point(|(written, _)| *written < bytes);
        self.writes
            .get(index)
            .map(|(_, instructions)| *instructions)
    }
}

/// What is left of the file.
struct Left<'a>(&'a [u8]);

impl Left<'_> {
    fn kind(&mut self) -> Option<u8> {
        let (kind, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*kind)
    }

    fn word(&mut self) -> Result<u32> {
        let (word, rest) = (self.0.split_first_chunk()).context("a recording that is cut off")?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*word))
    }

    fn skip(&mut self, bytes: usize) -> Result<()> {
        self.0 = (self.0.get(bytes..)).context("a recording that is cut off")?;
        Ok(())
    }

    /// A length, and so many bytes.
    fn array(&mut self) -> Result<()> {
        let length = self.word()?;
        self.skip(usize::try_from(length)?)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A recording in which so many instructions come before each byte of the console.
    pub(in crate::bench) fn recording(before: &[u32]) -> Vec<u8> {
        let mut file = [VERSION.to_be_bytes().as_slice(), &[0; 8]].concat();
        for instructions in before {
            // What comes in between counts for nothing.
            file.extend_from_slice(&[1, 2, 28, 9, 9, 9, 9, 9, 9, 9, 9, 30]);
            file.push(0);
            file.extend_from_slice(&instructions.to_be_bytes());
            file.extend_from_slice(&[22, 0, 0, 0, 1, 0, 0, 0, 0]);
        }
        file
    }

    #[test]
    fn instructions_are_added_up_to_each_byte() {
        let mut file = recording(&[5, 10, 1]);
        file.extend_from_slice(&[27, 0, 0, 0, 0, 0, 0, 0, 2, 22, 22, 39]);
        let record = Record::parse(&file).unwrap();
        let at: Vec<_> = (0..5).map(|bytes| record.at(bytes)).collect();
        assert_eq!(at, [Some(5), Some(5), Some(15), Some(16), None]);
    }

    #[test]
    fn another_version_an_unknown_event_and_a_cut_are_errors() {
        let good = recording(&[5]);
        let mut other = good.clone();
        other[3] ^= 1;
        assert!(Record::parse(&other).is_err());
        assert!(Record::parse(&[good.as_slice(), &[5]].concat()).is_err());
        assert!(Record::parse(&good[..good.len() - 1]).is_err());
        assert!(Record::parse(&good).is_ok());
    }
}
