//! The console: the platform's virtual terminal, and the clock for its log.

use core::sync::atomic::{AtomicU64, Ordering};

use boot::Guard;
use hal::{Clock, Console};

use crate::hcall::{self, Hcall, SUCCESS};
use crate::spr;

/// The terminal's unit address; 0 means the first one.
static UNIT: AtomicU64 = AtomicU64::new(0);

/// The time base's ticks in a second; what every POWER since POWER6 has, until the device tree
/// says.
static FREQUENCY: AtomicU64 = AtomicU64::new(512_000_000);

/// The time base.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeBase;

impl TimeBase {
    /// What the device tree says of the rate.
    pub(crate) fn set_frequency(hz: u64) {
        FREQUENCY.store(hz, Ordering::Relaxed);
    }
}

impl Clock for TimeBase {
    fn ticks(&self) -> u64 {
        spr::timebase()
    }

    fn frequency(&self) -> u64 {
        FREQUENCY.load(Ordering::Relaxed)
    }
}

/// The terminal. A call to the platform takes up to 16 bytes and is complete in itself, so the last words
/// need no lock and no other way out; they are what is written by [`core::fmt::Write`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terminal;

/// What the guest prints and what is logged passes this. The last words do not: whoever holds the lock
/// may be who failed.
static GUARD: spin::Mutex<Guard> = spin::Mutex::new(Guard::new());

/// What was read and not yet asked for: a call gives up to 16 bytes at once.
static INPUT: spin::Mutex<Input> = spin::Mutex::new(Input {
    block: [0; 16],
    next: 0,
    end: 0,
});

struct Input {
    block: [u8; 16],
    next: usize,
    end: usize,
}

impl Terminal {
    /// Uses the terminal with this unit address.
    pub(crate) fn select(unit: u64) {
        UNIT.store(unit, Ordering::Relaxed);
    }

    /// Writes a guest's bytes, without any of our own.
    pub(crate) fn write_raw(bytes: &[u8]) {
        let mut guard = GUARD.lock();
        for chunk in bytes.chunks(16) {
            let mut block = [0; 16];
            for (to, byte) in block.iter_mut().zip(chunk) {
                *to = guard.pass(*byte);
            }
            if let Some(bytes) = block.get(..chunk.len()) {
                Self::put(bytes);
            }
        }
    }

    /// Ends a line that a guest has begun.
    pub(crate) fn finish_line() {
        if GUARD.try_lock().is_none_or(|guard| !guard.is_at_start()) {
            Self::put(b"\r\n");
        }
    }

    fn write_lines(bytes: &[u8], mut pass: impl FnMut(u8) -> u8) {
        let mut block = [0; 16];
        let mut used = 0;
        let mut push = |byte| {
            block[used] = byte;
            used += 1;
            if used == block.len() {
                Self::put(&block);
                used = 0;
            }
        };
        for &byte in bytes {
            if byte == b'\n' {
                push(b'\r');
            }
            push(pass(byte));
        }
        if used > 0 {
            Self::put(&block[..used]);
        }
    }

    fn put(bytes: &[u8]) {
        /// A terminal that is still busy after so many tries has nobody reading it; losing the
        /// bytes beats hanging the machine.
        const TRIES: u32 = 1_000_000;
        let mut block = [0; 16];
        block[..bytes.len()].copy_from_slice(bytes);
        let [first, second] = halves(block);
        for _ in 0..TRIES {
            let arguments = [
                UNIT.load(Ordering::Relaxed),
                bytes.len() as u64,
                first,
                second,
            ];
            // SAFETY: the call reads registers only.
            let outcome = unsafe { hcall::call(Hcall::PutTermChar, arguments) };
            // A positive status is one of the ways to say busy.
            if outcome.status <= SUCCESS {
                return;
            }
            spr::relax();
        }
    }
}

/// The first character is the most significant byte of the first register. [LoPAPR §16.3.2]
fn halves(block: [u8; 16]) -> [u64; 2] {
    let value = u128::from_be_bytes(block);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the halves of a 128-bit number"
    )]
    [(value >> 64) as u64, value as u64]
}

impl Console for Terminal {
    fn write(&self, bytes: &[u8]) {
        let mut guard = GUARD.lock();
        Self::write_lines(bytes, |byte| guard.pass(byte));
    }

    fn read(&self) -> Option<u8> {
        let mut input = INPUT.lock();
        if input.next == input.end {
            let arguments = [UNIT.load(Ordering::Relaxed), 0, 0, 0];
            // SAFETY: the call changes registers only.
            let outcome = unsafe { hcall::call(Hcall::GetTermChar, arguments) };
            let [count, first, second] = outcome.values;
            if outcome.status != SUCCESS {
                return None;
            }
            let value = u128::from(first) << 64 | u128::from(second);
            *input = Input {
                block: value.to_be_bytes(),
                next: 0,
                end: usize::try_from(count).map_or(0, |count| count.min(16)),
            };
        }
        let byte = *input.block[..input.end].get(input.next)?;
        input.next += 1;
        Some(byte)
    }
}

impl core::fmt::Write for Terminal {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        Self::write_lines(text.as_bytes(), |byte| byte);
        Ok(())
    }
}
