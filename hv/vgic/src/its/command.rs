//! The commands of an ITS, out of the 32 bytes each has in the queue [IHI 0069 §5.3].

use super::CommandFault;
use crate::bits::{high, low};

/// Bytes of a command.
pub(super) const COMMAND_BYTES: u64 = 32;

/// A command as the guest wrote it: nothing is judged but the opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// `MAPD` with V = 1: the device has an interrupt translation table of `1 << bits` events.
    MapDevice { device: u32, bits: u32 },
    /// `MAPD` with V = 0.
    UnmapDevice { device: u32 },
    /// `MAPC` with V = 1: the collection is at the vCPU.
    MapCollection { collection: u16, vcpu: u64 },
    /// `MAPC` with V = 0.
    UnmapCollection { collection: u16 },
    /// `MAPTI`, and `MAPI`, whose INTID is its EventID.
    MapEvent {
        device: u32,
        event: u32,
        intid: u32,
        collection: u16,
    },
    /// `MOVI`.
    Move {
        device: u32,
        event: u32,
        collection: u16,
    },
    /// `MOVALL`.
    MoveAll { from: u64, to: u64 },
    /// `INT`.
    Interrupt { device: u32, event: u32 },
    /// `CLEAR`.
    Clear { device: u32, event: u32 },
    /// `DISCARD`.
    Discard { device: u32, event: u32 },
    /// `INV`.
    Invalidate { device: u32, event: u32 },
    /// `INVALL`.
    InvalidateAll { collection: u16 },
    /// `SYNC`: every command before it has taken effect already.
    Sync,
}

impl Command {
    /// The command in these bytes.
    pub(super) fn decode(bytes: &[u8; 32]) -> Result<Self, CommandFault> {
        let [first, second, third, fourth] = words(bytes);
        let device = high(first);
        let event = low(second);
        let collection = low(third).to_le_bytes();
        let collection = u16::from_le_bytes([collection[0], collection[1]]);
        let valid = third >> 63 != 0;
        let opcode = low(first) & 0xff;
        Ok(match opcode {
            0x01 => Self::Move {
                device,
                event,
                collection,
            },
            0x03 => Self::Interrupt { device, event },
            0x04 => Self::Clear { device, event },
            0x05 => Self::Sync,
            0x08 if valid => Self::MapDevice {
                device,
                bits: (event & 0x1f).wrapping_add(1),
            },
            0x08 => Self::UnmapDevice { device },
            0x09 if valid => Self::MapCollection {
                collection,
                vcpu: target(third),
            },
            0x09 => Self::UnmapCollection { collection },
            0x0a => Self::MapEvent {
                device,
                event,
                intid: high(second),
                collection,
            },
            0x0b => Self::MapEvent {
                device,
                event,
                intid: event,
                collection,
            },
            0x0c => Self::Invalidate { device, event },
            0x0d => Self::InvalidateAll { collection },
            0x0e => Self::MoveAll {
                from: target(third),
                to: target(fourth),
            },
            0x0f => Self::Discard { device, event },
            opcode => return Err(CommandFault::Unknown { opcode }),
        })
    }
}

/// `RDbase`, which with `GITS_TYPER.PTA` = 0 is a processor number.
const fn target(word: u64) -> u64 {
    (word >> 16) & 0xf_ffff_ffff
}

/// The four little-endian double words of a command.
fn words(bytes: &[u8; 32]) -> [u64; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}
