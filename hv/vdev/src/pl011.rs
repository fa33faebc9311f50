//! The console: a PL011 UART, revision r1p5 [DDI 0183].
//!
//! | | |
//! |---|---|
//! | receive FIFO | 32 entries, watermarks, one entry with FEN clear |
//! | receive time-out interrupt | as if 32 bit periods had passed whenever input pauses |
//! | transmit FIFO | drains at once: never full, never busy |
//! | modem lines | CTS, DSR and DCD on, RI off, constant |
//! | loopback (LBE) | data lines |
//! | DMA, IrDA, break, parity and framing errors, baud rate | registers only |
//! | an access of 64 bits | as one of 32; the upper half reads 0 |
//!
//! The device starts as firmware leaves it, enabled with FIFOs on, because kernels print to it
//! before they set it up. For the same reason a byte is transmitted even when the guest has
//! switched the transmitter off.

use crate::{Effects, Line, Width, Wire, identification, lanes};

/// Entries of the receive FIFO: 32 from r1p5 on, which is how Linux's driver sizes it.
pub const FIFO_DEPTH: usize = 32;

/// Register offsets [DDI 0183 §3.2].
mod register {
    pub(super) const DR: u64 = 0x000;
    pub(super) const RSR_ECR: u64 = 0x004;
    pub(super) const FR: u64 = 0x018;
    pub(super) const ILPR: u64 = 0x020;
    pub(super) const IBRD: u64 = 0x024;
    pub(super) const FBRD: u64 = 0x028;
    pub(super) const LCR_H: u64 = 0x02c;
    pub(super) const CR: u64 = 0x030;
    pub(super) const IFLS: u64 = 0x034;
    pub(super) const IMSC: u64 = 0x038;
    pub(super) const RIS: u64 = 0x03c;
    pub(super) const MIS: u64 = 0x040;
    pub(super) const ICR: u64 = 0x044;
    pub(super) const DMACR: u64 = 0x048;
}

/// UARTPeriphID0 to 3 and UARTPCellID0 to 3. Bits 7:4 of the third are the revision, 3 for r1p5.
const IDENTIFICATION: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

const FR_CTS: u32 = 1 << 0;
const FR_DSR: u32 = 1 << 1;
const FR_DCD: u32 = 1 << 2;
const FR_RXFE: u32 = 1 << 4;
const FR_RXFF: u32 = 1 << 6;
const FR_TXFE: u32 = 1 << 7;

const LCR_H_FEN: u32 = 1 << 4;
const LCR_H_WLEN_8: u32 = 3 << 5;

const CR_UARTEN: u32 = 1 << 0;
const CR_LBE: u32 = 1 << 7;
const CR_TXE: u32 = 1 << 8;
const CR_RXE: u32 = 1 << 9;

const INT_RX: u32 = 1 << 4;
const INT_TX: u32 = 1 << 5;
const INT_RT: u32 = 1 << 6;
const INT_ALL: u32 = 0x7ff;

/// Half full, both directions.
const IFLS_RESET: u32 = 0x12;

/// A ring of received bytes.
#[derive(Clone, Debug)]
struct Fifo {
    bytes: [u8; FIFO_DEPTH],
    first: usize,
    len: usize,
}

impl Fifo {
    const fn new() -> Self {
        Self {
            bytes: [0; FIFO_DEPTH],
            first: 0,
            len: 0,
        }
    }

    fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds a byte; the caller has seen that there is room.
    fn push(&mut self, byte: u8) {
        let at = self.first.wrapping_add(self.len) % FIFO_DEPTH;
        if let Some(slot) = self.bytes.get_mut(at) {
            *slot = byte;
            self.len = self.len.saturating_add(1);
        }
    }

    fn pop(&mut self) -> Option<u8> {
        self.len = self.len.checked_sub(1)?;
        let byte = self.bytes.get(self.first).copied();
        self.first = self.first.wrapping_add(1) % FIFO_DEPTH;
        byte
    }
}

/// A PL011.
#[derive(Clone, Debug)]
pub struct Pl011 {
    received: Fifo,
    ilpr: u32,
    ibrd: u32,
    fbrd: u32,
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
    ris: u32,
    dmacr: u32,
    wire: Wire,
}

impl Default for Pl011 {
    fn default() -> Self {
        Self::new()
    }
}

impl Pl011 {
    /// A console as firmware leaves it: enabled, 8 bits, FIFOs on, no interrupts.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            received: Fifo::new(),
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            lcr_h: LCR_H_WLEN_8 | LCR_H_FEN,
            cr: CR_UARTEN | CR_TXE | CR_RXE,
            ifls: IFLS_RESET,
            imsc: 0,
            ris: 0,
            dmacr: 0,
            wire: Wire { asserted: false },
        }
    }

    /// The interrupt line now.
    #[must_use]
    pub fn line(&self) -> Line {
        self.wire.line()
    }

    /// How many bytes [`Pl011::receive`] would take: none while the guest has the receiver off.
    /// Grows only by a guest's access, so that is when to ask again.
    #[must_use]
    pub fn receive_room(&self) -> usize {
        let on = CR_UARTEN | CR_RXE;
        // In loopback the receiver listens to the transmitter alone.
        if self.cr & on == on && self.cr & CR_LBE == 0 {
            self.depth().saturating_sub(self.received.len)
        } else {
            0
        }
    }

    /// Takes input from the start of `bytes`; returns how many bytes were taken.
    pub fn receive(&mut self, bytes: &[u8]) -> (usize, Effects) {
        let count = bytes.len().min(self.receive_room());
        for byte in bytes.iter().take(count) {
            self.accept(*byte);
        }
        (count, self.effects(None))
    }

    /// Reads the register at `offset` from the base.
    pub fn read(&mut self, offset: u64, width: Width) -> (u64, Effects) {
        let value = match offset & !3 {
            // Only the low byte lane holds data; the others are status and read the same entry.
            register::DR if offset == register::DR => {
                let data = self.take();
                return (u64::from(data), self.effects(None));
            }
            register::FR => self.flags(),
            register::ILPR => self.ilpr,
            register::IBRD => self.ibrd,
            register::FBRD => self.fbrd,
            register::LCR_H => self.lcr_h,
            register::CR => self.cr,
            register::IFLS => self.ifls,
            register::IMSC => self.imsc,
            register::RIS => self.ris,
            register::MIS => self.ris & self.imsc,
            register::DMACR => self.dmacr,
            other => identification(IDENTIFICATION, other).unwrap_or(0),
        };
        (lanes(value, offset, width), Effects::default())
    }

    /// Writes the register at `offset` from the base. Writes that do not start at a register's
    /// first byte, and writes to registers that cannot be written, do nothing.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "registers are 32 bits wide, data 8"
    )]
    pub fn write(&mut self, offset: u64, width: Width, value: u64) -> Effects {
        let value = (value & width.mask()) as u32;
        match offset {
            register::DR => return self.transmit(value as u8),
            // Writing clears the error flags; there are none.
            register::RSR_ECR => {}
            register::ILPR => self.ilpr = value & 0xff,
            register::IBRD => self.ibrd = value & 0xffff,
            register::FBRD => self.fbrd = value & 0x3f,
            register::LCR_H => self.write_lcr_h(value & 0xff),
            register::CR => self.cr = value & 0xff87,
            register::IFLS => self.ifls = value & 0x3f,
            register::IMSC => self.imsc = value & INT_ALL,
            register::ICR => self.ris &= !value,
            register::DMACR => self.dmacr = value & 7,
            _ => {}
        }
        self.effects(None)
    }

    fn effects(&mut self, transmitted: Option<u8>) -> Effects {
        Effects {
            line: self.wire.drive(self.ris & self.imsc != 0),
            transmitted,
        }
    }

    fn depth(&self) -> usize {
        if self.lcr_h & LCR_H_FEN == 0 {
            1
        } else {
            FIFO_DEPTH
        }
    }

    /// Received bytes that raise the receive interrupt [DDI 0183 §3.3.9, UARTIFLS].
    fn watermark(&self) -> usize {
        if self.lcr_h & LCR_H_FEN == 0 {
            return 1;
        }
        match (self.ifls >> 3) & 7 {
            0 => 4,
            1 => 8,
            2 => 16,
            3 => 24,
            // 5 to 7 are reserved.
            _ => 28,
        }
    }

    fn flags(&self) -> u32 {
        let mut flags = FR_CTS | FR_DSR | FR_DCD | FR_TXFE;
        if self.received.len == 0 {
            flags |= FR_RXFE;
        }
        if self.received.len >= self.depth() {
            flags |= FR_RXFF;
        }
        flags
    }

    fn accept(&mut self, byte: u8) {
        self.received.push(byte);
        if self.received.len >= self.watermark() {
            self.ris |= INT_RX;
        }
        self.pause();
    }

    /// The time-out that follows when no more data arrives: at once, since input comes in bursts.
    fn pause(&mut self) {
        if self.lcr_h & LCR_H_FEN != 0 && self.received.len != 0 {
            self.ris |= INT_RT;
        }
    }

    fn take(&mut self) -> u8 {
        let byte = self.received.pop().unwrap_or(0);
        if self.received.len < self.watermark() {
            self.ris &= !INT_RX;
        }
        if self.received.len == 0 {
            self.ris &= !INT_RT;
        }
        // What is left waits for another time-out, even if the guest has cleared the first.
        self.pause();
        byte
    }

    fn transmit(&mut self, byte: u8) -> Effects {
        // The FIFO fills and drains through its watermark in one step.
        self.ris |= INT_TX;
        if self.cr & CR_LBE == 0 {
            return self.effects(Some(byte));
        }
        if self.received.len < self.depth() {
            self.accept(byte);
        }
        self.effects(None)
    }

    fn write_lcr_h(&mut self, value: u32) {
        if (self.lcr_h ^ value) & LCR_H_FEN != 0 {
            self.received.clear();
            self.ris &= !(INT_RX | INT_RT);
        }
        self.lcr_h = value;
    }
}
