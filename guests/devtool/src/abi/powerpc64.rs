//! ppc64le Linux.

use core::arch::{asm, global_asm};

// At its entry a program finds its arguments on its stack, and no address of its own in r2; all of it lies below
// 2 GiB. [ELFv2 ABI §2.2.3, §3.3]
global_asm!(
    ".global _start",
    "_start:",
    "lis 2, .TOC.@ha",
    "addi 2, 2, .TOC.@l",
    "mr 3, 1",
    "li 0, 0",
    "stdu 0, -64(1)",
    "bl linux_start",
    "trap",
);

/// System calls by number. [Linux, arch/powerpc/kernel/syscalls/syscall.tbl]
#[derive(Clone, Copy)]
pub(crate) enum Call {
    Read = 3,
    Write = 4,
    Close = 6,
    Lseek = 19,
    Sync = 36,
    Ioctl = 54,
    Reboot = 88,
    Mmap = 90,
    Nanosleep = 162,
    Pread64 = 179,
    Pwrite64 = 180,
    Getdents64 = 202,
    ExitGroup = 234,
    KexecLoad = 268,
    Openat = 286,
    Readlinkat = 296,
    Eventfd2 = 314,
    Socket = 326,
    Connect = 328,
    Setsockopt = 339,
}

// [Linux, arch/powerpc/include/uapi/asm/fcntl.h]
pub(crate) const O_DIRECT: usize = 0o40_0000;
// [Linux, include/uapi/linux/kexec.h]
pub(crate) const KEXEC_ARCH: usize = 21 << 16;

/// What the call returns; negative is an error.
///
/// # Safety
/// What the arguments point to is as the call wants it, and what it changes is no Rust object that is in use.
pub(super) unsafe fn call(call: Call, arguments: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the caller's promise; the kernel changes no registers but these, and says by the summary overflow
    // whether r3 is an error. [Linux, Documentation/arch/powerpc/syscall64-abi.rst]
    unsafe {
        asm!(
            "sc",
            "bns 2f",
            "neg 3, 3",
            "2:",
            inlateout("r0") call as usize => _,
            inlateout("r3") arguments[0] => result,
            inlateout("r4") arguments[1] => _,
            inlateout("r5") arguments[2] => _,
            inlateout("r6") arguments[3] => _,
            inlateout("r7") arguments[4] => _,
            inlateout("r8") arguments[5] => _,
            lateout("r9") _,
            lateout("r10") _,
            lateout("r11") _,
            lateout("r12") _,
            lateout("cr0") _,
            lateout("ctr") _,
            lateout("xer") _,
            options(nostack),
        );
    }
    result
}

/// What was written before is seen by devices before what is written after.
pub(crate) fn barrier() {
    // SAFETY: a barrier.
    unsafe { asm!("sync", options(nostack)) };
}
