//! PSCI and the SMC calling convention, by HVC. [DEN 0022, DEN 0028]

use core::arch::asm;

/// `CPU_ON`, 64 bit.
pub const CPU_ON: u64 = 0xc400_0003;
/// `CPU_OFF`.
pub const CPU_OFF: u64 = 0x8400_0002;
/// `SYSTEM_OFF`.
pub const SYSTEM_OFF: u64 = 0x8400_0008;
/// `SYSTEM_RESET`.
pub const SYSTEM_RESET: u64 = 0x8400_0009;

/// A call by HVC; returns x0.
pub fn hvc(function: u64, arguments: [u64; 3]) -> u64 {
    let result;
    // SAFETY: what a call does is the hypervisor's matter; it keeps x4 to x30. [DEN 0028 §2.6]
    unsafe {
        asm!(
            "hvc #0",
            inout("x0") function => result,
            inout("x1") arguments[0] => _,
            inout("x2") arguments[1] => _,
            inout("x3") arguments[2] => _,
            options(nostack)
        );
    }
    result
}

/// Turns the machine off.
pub fn system_off() -> ! {
    loop {
        hvc(SYSTEM_OFF, [0; 3]);
    }
}

/// Starts the machine anew.
pub fn system_reset() -> ! {
    loop {
        hvc(SYSTEM_RESET, [0; 3]);
    }
}
