//! How a program of the architecture that it is built for enters, and how it calls its kernel.
#![expect(
    unsafe_code,
    reason = "the entry, and instructions that call the kernel"
)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "powerpc64")]
mod powerpc64;

#[cfg(target_arch = "aarch64")]
use aarch64 as arch;
#[cfg(target_arch = "powerpc64")]
use powerpc64 as arch;

pub(crate) use arch::{Call, KEXEC_ARCH, O_DIRECT, barrier};

use crate::linux::{Arguments, Errno, exit};

// SAFETY: the only function of this name; the entry code calls it once, with the first stack pointer.
#[unsafe(no_mangle)]
extern "C" fn linux_start(stack: *const usize) -> ! {
    exit(crate::main(Arguments { stack }))
}

/// # Safety
/// What the arguments point to is as the call wants it, and what it changes is no Rust object that is in use.
pub(crate) unsafe fn call(call: Call, arguments: [usize; 6]) -> Result<usize, Errno> {
    // SAFETY: the caller's promise.
    let result = unsafe { arch::call(call, arguments) };
    match usize::try_from(result) {
        Ok(value) => Ok(value),
        Err(_) => Err(Errno(
            u16::try_from(result.unsigned_abs()).unwrap_or(u16::MAX),
        )),
    }
}
