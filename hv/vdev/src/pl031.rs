//! The clock: a PL031 real-time clock [DDI 0224].
//!
//! | | |
//! |---|---|
//! | counter | 32 bits, one a second; set by RTCLR |
//! | match interrupt | when the counter comes to equal RTCMR |
//! | RTCCR | reads 1: the clock never stops |
//! | an access of 64 bits | as one of 32; the upper half reads 0 |
//!
//! Every call is told the time, in seconds of a clock that never runs backwards; the model sets no
//! timer itself.

use crate::{Effects, Line, Width, Wire, identification, lanes};

/// Register offsets [DDI 0224 §3.2].
mod register {
    pub(super) const DR: u64 = 0x00;
    pub(super) const MR: u64 = 0x04;
    pub(super) const LR: u64 = 0x08;
    pub(super) const CR: u64 = 0x0c;
    pub(super) const IMSC: u64 = 0x10;
    pub(super) const RIS: u64 = 0x14;
    pub(super) const MIS: u64 = 0x18;
    pub(super) const ICR: u64 = 0x1c;
}

/// RTCPeriphID0 to 3 and RTCPCellID0 to 3.
const IDENTIFICATION: [u8; 8] = [0x31, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// A PL031.
#[derive(Clone, Debug)]
pub struct Pl031 {
    /// What the counter is ahead of the caller's clock, modulo 2^32.
    ahead: u32,
    match_register: u32,
    load_register: u32,
    /// The caller's time at which counter and match register next agree; never, before the guest
    /// has set either.
    match_at: u64,
    unmasked: bool,
    pending: bool,
    wire: Wire,
}

impl Pl031 {
    /// A clock that shows `counter` (seconds since 1970 by custom) at time `now`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the counter has 32 bits")]
    pub fn new(counter: u32, now: u64) -> Self {
        Self {
            ahead: counter.wrapping_sub(now as u32),
            match_register: 0,
            load_register: counter,
            match_at: u64::MAX,
            unmasked: false,
            pending: false,
            wire: Wire { asserted: false },
        }
    }

    /// As after a reset at time `now`: the counter goes on, all else is forgotten.
    pub fn reset(&mut self, now: u64) {
        *self = Self::new(self.counter(now), now);
    }

    /// The interrupt line as of the last call that was told the time.
    #[must_use]
    pub fn line(&self) -> Line {
        self.wire.line()
    }

    /// The time at which to call [`Pl031::advance`] next, if nothing happens before; `None` while
    /// the guest has the interrupt masked, when nothing would come of it.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        (self.unmasked && !self.pending).then_some(self.match_at)
    }

    /// Lets the clock notice that it is `now`.
    pub fn advance(&mut self, now: u64) -> Effects {
        if now >= self.match_at {
            self.pending = true;
            self.aim(now.saturating_add(1));
        }
        self.effects()
    }

    /// Reads the register at `offset` from the base.
    pub fn read(&mut self, offset: u64, width: Width, now: u64) -> (u64, Effects) {
        let effects = self.advance(now);
        let value = match offset & !3 {
            register::DR => self.counter(now),
            register::MR => self.match_register,
            register::LR => self.load_register,
            register::CR => 1,
            register::IMSC => u32::from(self.unmasked),
            register::RIS => u32::from(self.pending),
            register::MIS => u32::from(self.pending && self.unmasked),
            other => identification(IDENTIFICATION, other).unwrap_or(0),
        };
        (lanes(value, offset, width), effects)
    }

    /// Writes the register at `offset` from the base. Writes that do not start at a register's
    /// first byte, and writes to registers that cannot be written, do nothing.
    #[expect(clippy::cast_possible_truncation, reason = "registers have 32 bits")]
    pub fn write(&mut self, offset: u64, width: Width, value: u64, now: u64) -> Effects {
        let earlier = self.advance(now);
        let value = (value & width.mask()) as u32;
        match offset {
            register::MR => {
                self.match_register = value;
                self.aim(now);
            }
            register::LR => {
                self.load_register = value;
                self.ahead = value.wrapping_sub(now as u32);
                self.aim(now);
            }
            register::IMSC => self.unmasked = value & 1 != 0,
            register::ICR if value & 1 != 0 => self.pending = false,
            _ => {}
        }
        let later = self.advance(now);
        Effects {
            line: later.line.or(earlier.line),
            transmitted: None,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the counter has 32 bits")]
    fn counter(&self, now: u64) -> u32 {
        (now as u32).wrapping_add(self.ahead)
    }

    /// Computes the first match at or after `now`.
    fn aim(&mut self, now: u64) {
        let until = self.match_register.wrapping_sub(self.counter(now));
        self.match_at = now.saturating_add(u64::from(until));
    }

    fn effects(&mut self) -> Effects {
        Effects {
            line: self.wire.drive(self.pending && self.unmasked),
            transmitted: None,
        }
    }
}
