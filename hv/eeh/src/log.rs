//! The log of what stopped a PE, which `ibm,slot-error-detail` answers.

use crate::pe::{Cause, Pe, State};

/// Bytes of a log.
pub const LOG: usize = FIXED + EXTENDED;
/// Of its fixed part.
const FIXED: usize = 8;
/// Of what follows: a head, and sections `PH`, `UH`, `PS`.
const EXTENDED: usize = 16 + 48 + 24 + 80;

/// Where sections begin.
const PH: usize = FIXED + 16;
const UH: usize = PH + 48;
const PS: usize = UH + 24;

impl Pe {
    /// The log of what stopped it last: version 6, a platform error. It names no part to be replaced: what stops a
    /// PE here is none's fault, or the guest's own. [LoPAR RTAS Event Return Format]
    #[must_use]
    pub fn log(&self) -> [u8; LOG] {
        /// Version 6; an error, not recovered, more follows; by PCI; of type platform error.
        const SUMMARY: [u8; 4] = [6, 4 << 5 | 2 << 3 | 1 << 2, 2 << 4, 224];
        /// Valid, new, big-endian; a platform event in PowerPC format.
        const V6: [u8; 4] = [0x86, 0, 0x8e, 0];
        /// The subsystem: a bridge's bus.
        const BUS: u8 = 0x30;
        /// How bad: not recovered; and without the function.
        const ERROR: u8 = 0x40;
        const LOST: u8 = 0x48;
        let severity = match self.state() {
            State::Gone => LOST,
            _ => ERROR,
        };
        let (name, code, at): (&[u8], u8, u64) = match self.cause() {
            None => (b"EEH", 0, 0),
            Some(Cause::Dma { at }) => (b"EEH DMA", 1, at.bits()),
            Some(Cause::Registers { at }) => (b"EEH REGISTERS", 2, at),
            Some(Cause::Injected) => (b"EEH INJECTED", 3, 0),
        };
        let extended = u32::try_from(EXTENDED).unwrap_or(0).to_be_bytes();
        let parts: [(usize, &[u8]); 14] = [
            (0, &SUMMARY),
            (4, &extended),
            (FIXED, &V6),
            (FIXED + 12, b"IBM\0"),
            (PH, &[b'P', b'H', 0, 48, 1]),
            // Made by the hypervisor, of three sections.
            (PH + 0x18, b"H"),
            (PH + 0x1b, &[3]),
            (UH, &[b'U', b'H', 0, 24, 1]),
            (UH + 8, &[BUS, 0, severity]),
            (PS, &[b'P', b'S', 0, 80, 1, 0, 0, 0, 2]),
            // Further words: why, where, and in which PE.
            (PS + 0x13, &[code]),
            (PS + 0x14, &at.to_be_bytes()),
            (PS + 0x1c, &self.address().to_be_bytes()),
            (PS + 0x30, name),
        ];
        let mut log = [0; LOG];
        for to in log.iter_mut().skip(PS + 0x30) {
            *to = b' ';
        }
        for (at, bytes) in parts {
            for (to, from) in log.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        }
        log
    }
}
