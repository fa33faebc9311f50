//! arm64 Linux.

use core::arch::{asm, global_asm};

// At its entry a program finds its arguments on its stack. [System V ABI for AArch64]
global_asm!(
    ".global _start",
    "_start:",
    "mov x29, xzr",
    "mov x30, xzr",
    "mov x0, sp",
    "bl linux_start",
    "brk #0",
);

/// System calls by number. [Linux, include/uapi/asm-generic/unistd.h]
#[derive(Clone, Copy)]
pub(crate) enum Call {
    Eventfd2 = 19,
    Ioctl = 29,
    Openat = 56,
    Getdents64 = 61,
    Lseek = 62,
    Read = 63,
    Write = 64,
    Pread64 = 67,
    Pwrite64 = 68,
    Readlinkat = 78,
    Sync = 81,
    ExitGroup = 94,
    Nanosleep = 101,
    KexecLoad = 104,
    Reboot = 142,
    Close = 57,
    Socket = 198,
    Connect = 203,
    Setsockopt = 208,
    Mmap = 222,
}

// [Linux, arch/arm64/include/uapi/asm/fcntl.h]
pub(crate) const O_DIRECT: usize = 0o20_0000;
// [Linux, include/uapi/linux/kexec.h]
pub(crate) const KEXEC_ARCH: usize = 183 << 16;

/// What the call returns; negative is an error.
///
/// # Safety
/// What the arguments point to is as the call wants it, and what it changes is no Rust object that is in use.
pub(super) unsafe fn call(call: Call, arguments: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the caller's promise; the kernel changes no register but x0.
    unsafe {
        asm!(
            "svc #0",
            in("x8") call as usize,
            inlateout("x0") arguments[0] => result,
            in("x1") arguments[1],
            in("x2") arguments[2],
            in("x3") arguments[3],
            in("x4") arguments[4],
            in("x5") arguments[5],
            options(nostack),
        );
    }
    result
}

/// What was written before is seen by devices before what is written after.
pub(crate) fn barrier() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) };
}
