//! Secondary CPUs: started by PSCI, each on a stack of its own.

use crate::cpu::Cpu;

/// The first Rust of a secondary CPU: MMU on, own stack, `TPIDR_EL2` set.
pub(crate) extern "C" fn secondary(_cpu: &'static Cpu) -> ! {
    crate::panic::park()
}
