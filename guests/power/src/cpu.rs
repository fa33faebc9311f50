//! Registers of the CPU.

use core::arch::asm;

/// Ticks of the time base in a second.
pub const FREQUENCY: u64 = 512_000_000;

/// The time base.
pub fn now() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mftb {}", out(reg) value, options(nomem, nostack)) };
    value
}

/// Ticks of so many microseconds.
pub const fn ticks(us: u64) -> u64 {
    us.saturating_mul(FREQUENCY / 1_000_000)
}

/// Sets the decrementer.
pub fn set_decrementer(ticks: i64) {
    // SAFETY: whoever lets it interrupt is in a cage.
    unsafe { asm!("mtdec {}", in(reg) ticks, options(nomem, nostack)) };
}

/// Lets interrupts through: in a cage only.
pub fn unmask() {
    // SAFETY: sets MSR[EE] and MSR[RI].
    unsafe { asm!("mtmsrd {}, 1", in(reg) 0x8002_u64, options(nostack)) };
}

/// Lets no interrupt through.
pub fn mask() {
    // SAFETY: clears MSR[EE].
    unsafe { asm!("mtmsrd {}, 1", in(reg) 2_u64, options(nostack)) };
}
