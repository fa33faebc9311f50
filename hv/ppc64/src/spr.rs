//! Special purpose registers and the machine state register: every access is here.

use core::arch::asm;

macro_rules! read {
    ($(#[$doc:meta])* $name:ident, $number:literal) => {
        $(#[$doc])*
        pub(crate) fn $name() -> u64 {
            let value: u64;
            // SAFETY: reading this register has no side effect.
            unsafe {
                asm!(concat!("mfspr {}, ", $number), out(reg) value, options(nomem, nostack));
            }
            value
        }
    };
}

read! {
    /// The processor version.
    pvr, 287
}
read! {
    /// The time base, which counts from power-on at a fixed rate.
    timebase, 268
}
read! {
    /// Data address register: what the last data access fault touched.
    dar, 19
}
read! {
    /// Data storage interrupt status.
    dsisr, 18
}

/// The decrementer, with its sign.
pub(crate) fn decrementer() -> i64 {
    let value: i64;
    // SAFETY: reading this register has no side effect.
    unsafe { asm!("mfdec {}", out(reg) value, options(nomem, nostack)) };
    value
}

/// SPRG0: where this CPU's `Cpu` is.
pub(crate) fn sprg0() -> usize {
    let value: usize;
    // SAFETY: reading a scratch register has no side effect.
    unsafe { asm!("mfsprg {}, 0", out(reg) value, options(nomem, nostack)) };
    value
}

/// Sets SPRG0.
///
/// # Safety
/// `value` must be the address of a `Cpu` that is never freed.
pub(crate) unsafe fn set_sprg0(value: usize) {
    // SAFETY: nothing but `cpu::this` and the vectors read it, and the caller vouches for them.
    unsafe { asm!("mtsprg 0, {}", in(reg) value, options(nomem, nostack)) };
}

/// The machine state register.
pub(crate) fn msr() -> u64 {
    let value: u64;
    // SAFETY: reading this register has no side effect.
    unsafe { asm!("mfmsr {}", out(reg) value, options(nomem, nostack)) };
    value
}

/// The stack pointer: the newest frame's back chain.
pub(crate) fn stack_pointer() -> u64 {
    let value: u64;
    // SAFETY: reading a register has no side effect.
    unsafe { asm!("mr {}, 1", out(reg) value, options(nomem, nostack)) };
    value
}

/// Sets the decrementer as far off as 32 bits allow: four seconds or more.
pub(crate) fn postpone_decrementer() {
    // SAFETY: nothing counts on the decrementer, and its vector returns.
    unsafe { asm!("mtdec {}", in(reg) i32::MAX, options(nomem, nostack)) };
}

/// Sets DAR: while a guest CPU is loaded, it is the guest's.
pub(crate) fn set_dar(value: u64) {
    // SAFETY: nothing of ours depends on it.
    unsafe { asm!("mtspr 19, {}", in(reg) value, options(nomem, nostack)) };
}

/// Sets DSISR: while a guest CPU is loaded, it is the guest's.
pub(crate) fn set_dsisr(value: u64) {
    // SAFETY: nothing of ours depends on it.
    unsafe { asm!("mtspr 18, {}", in(reg) value, options(nomem, nostack)) };
}

/// Sets the decrementer.
pub(crate) fn set_decrementer(ticks: i64) {
    // SAFETY: interrupts are off; while they are on, its vector returns.
    unsafe { asm!("mtdec {}", in(reg) ticks, options(nomem, nostack)) };
}

/// Turns interrupts off, after a call that turned them on.
pub(crate) fn interrupts_off() {
    const RECOVERABLE: u64 = 1 << 1;
    // SAFETY: this form changes MSR[EE] and MSR[RI] only: interrupts off, state recoverable.
    unsafe { asm!("mtmsrd {}, 1", in(reg) RECOVERABLE, options(nostack)) };
}

/// Takes back a directed privileged doorbell of this thread.
pub(crate) fn clear_doorbell() {
    /// The message type of a doorbell, for thread 0 of the core.
    const SERVER: u64 = 5 << 27;
    // SAFETY: nothing of ours rings one. It is a word, because the assembler is told of an older CPU.
    unsafe {
        asm!(".long 0x7c00395c # msgclrp 7", in("r7") SERVER, options(nomem, nostack));
    }
}

/// A random number from the CPU's own source; `None` when it has failed too often.
/// [Power ISA 3.1B Book I §3.3.9, darn]
pub(crate) fn random() -> Option<u64> {
    /// As often as the architecture asks software to try.
    const TRIES: u32 = 10;
    for _ in 0..TRIES {
        let value: u64;
        // SAFETY: changes a register only. It is a word, because the assembler is told of an older
        // CPU than any that runs guests.
        unsafe { asm!(".long 0x7c6105e6 # darn 3, 1", out("r3") value, options(nomem, nostack)) };
        if value != u64::MAX {
            return Some(value);
        }
    }
    None
}

/// The general registers as they are here: for the report of a panic.
#[inline(always)]
pub(crate) fn general_registers() -> [u64; 32] {
    let mut gpr = [0; 32];
    macro_rules! store {
        ($($number:literal)*) => {
            // SAFETY: writes the registers to the array and changes none.
            unsafe {
                asm!(
                    $(concat!("std ", $number, ", 8*", $number, "({0})"),)*
                    in(reg_nonzero) gpr.as_mut_ptr(),
                    options(nostack),
                );
            }
        };
    }
    store!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
    gpr
}
