//! The locks of the hypervisor, and how a CPU waits for another.

use spin::RelaxStrategy;

/// A lock whose waiters come in any order.
pub type Mutex<T> = spin::mutex::SpinMutex<T, Patience>;
/// What a locked [`Mutex`] is reached by.
pub type MutexGuard<'a, T> = spin::mutex::SpinMutexGuard<'a, T, Patience>;
/// A lock whose waiters come in turn.
pub type TicketMutex<T> = spin::mutex::TicketMutex<T, Patience>;

/// What a CPU does between two looks at what another CPU is to do: [`relax`].
#[derive(Clone, Copy, Debug)]
pub struct Patience;

impl RelaxStrategy for Patience {
    #[inline(always)]
    fn relax() {
        relax();
    }
}

/// Lets others go first for a moment: a CPU that waits for another one says so.
///
/// `ISB` alone, which [`core::hint::spin_loop`] is on Arm, holds the CPU back, but tells nobody. `YIELD`, and POWER's low
/// priority, are hints to hardware threads of the same core, and to an emulator that runs all CPUs on one thread of the host
/// (QEMU with `-icount`): without them a CPU that waits for a lock uses up its whole turn, up to 100 ms, before the one that
/// holds the lock can go on.
/// [Arm DDI 0487 C6.2, YIELD; Power ISA 3.1B, Book II, 3.2; QEMU, `trans_YIELD`, `gen_or`]
#[inline(always)]
pub fn relax() {
    core::hint::spin_loop();
    #[cfg(target_arch = "aarch64")]
    #[expect(unsafe_code, reason = "a hint is an instruction")]
    // SAFETY: a hint, which changes nothing.
    unsafe {
        core::arch::asm!("yield", options(nomem, nostack, preserves_flags));
    }
    #[cfg(target_arch = "powerpc64")]
    #[expect(unsafe_code, reason = "a hint is an instruction")]
    // SAFETY: hints: low priority, and medium again. They change nothing.
    unsafe {
        core::arch::asm!(
            "or 1, 1, 1",
            "or 2, 2, 2",
            options(nomem, nostack, preserves_flags)
        );
    }
}
