//! Entry, CPUs, the counter and the virtual timer.

use core::arch::{asm, global_asm};

use crate::psci;

/// CPUs there are stacks for.
pub const MAX_CPUS: usize = 8;
/// Bytes of stack of each.
const STACK: usize = 0x8000;

global_asm!(
    r#"
    .section .head, "ax"
    .global _start
_start:
    msr     daifset, #0xf
    mov     x19, x0
    adrp    x9, __bss_start
    add     x9, x9, :lo12:__bss_start
    adrp    x10, __bss_end
    add     x10, x10, :lo12:__bss_end
1:  cmp     x9, x10
    b.hs    2f
    stp     xzr, xzr, [x9], #16
    b       1b
2:  adrp    x9, __stacks
    add     x9, x9, #{stack}
    msr     spsel, #1
    mov     sp, x9
    mov     x29, xzr
    mov     x0, x19
    bl      guest_main
    b       .

// x0 = number of the CPU.
    .global secondary_start
secondary_start:
    msr     daifset, #0xf
    adrp    x9, __stacks
    mov     x10, #{stack}
    add     x11, x0, #1
    madd    x9, x10, x11, x9
    msr     spsel, #1
    mov     sp, x9
    mov     x29, xzr
    bl      guest_secondary
    b       .
    "#,
    stack = const STACK,
);

unsafe extern "C" {
    fn secondary_start();
}

/// Reads a system register by name.
#[macro_export]
macro_rules! read_register {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading the register changes nothing.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack)) };
        value
    }};
}

/// Writes a system register by name, and synchronises.
#[macro_export]
macro_rules! write_register {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the guest's own register; the code around knows what it does to itself.
        unsafe { core::arch::asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) value, options(nostack)) };
    }};
}

/// Points this CPU at the vectors. Called by [`crate::guest!`].
pub fn use_vectors() {
    write_register!("vbar_el1", crate::exception::vectors());
}

/// Turns CPU `cpu` on, which then runs the guest's `secondary`. Returns PSCI's status.
pub fn start(cpu: usize) -> u64 {
    let entry = (secondary_start as *const ()).addr() as u64;
    let index = cpu.min(MAX_CPUS - 1) as u64;
    psci::hvc(psci::CPU_ON, [index, entry, index])
}

/// The number of this CPU.
pub fn index() -> usize {
    (read_register!("mpidr_el1") & 0xff) as usize
}

/// The virtual counter.
pub fn now() -> u64 {
    read_register!("cntvct_el0")
}

/// Ticks of the counter in a second.
pub fn frequency() -> u64 {
    read_register!("cntfrq_el0")
}

/// The virtual timer fires at this count.
pub fn set_timer(at: u64) {
    write_register!("cntv_cval_el0", at);
    write_register!("cntv_ctl_el0", 1);
}

/// The virtual timer is off.
pub fn stop_timer() {
    write_register!("cntv_ctl_el0", 0);
}

/// Lets interrupts in.
pub fn unmask() {
    // SAFETY: the vectors are set up.
    unsafe { asm!("msr daifclr, #2", options(nostack)) };
}

/// Keeps interrupts out.
pub fn mask() {
    // SAFETY: masks only.
    unsafe { asm!("msr daifset, #2", options(nostack)) };
}

/// Waits for an interrupt, masked or not.
pub fn wait() {
    // SAFETY: goes on with the next instruction.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) };
}

/// Waits until the counter has reached `at`, or `done` says so; returns what `done` said last. Called
/// and left with interrupts masked; they are let in while it waits, so that none is lost between the look
/// and WFI, which wakes all the same. The handler must turn the timer off with [`stop_timer`].
pub fn wait_until(at: u64, mut done: impl FnMut() -> bool) -> bool {
    loop {
        if done() {
            stop_timer();
            return true;
        }
        if now() >= at {
            stop_timer();
            return false;
        }
        set_timer(at);
        wait();
        // A pending interrupt is taken here: left pending, the next WFI would not wait.
        unmask();
        mask();
    }
}

/// Ticks of the counter in so many microseconds.
pub fn ticks(us: u64) -> u64 {
    frequency().saturating_mul(us) / 1_000_000
}

/// Waits. As [`wait_until`].
pub fn sleep_us(us: u64) {
    wait_until(now().saturating_add(ticks(us)), || false);
}

/// Lets another CPU run where CPUs share one host thread; nothing on hardware.
pub fn give_way() {
    // SAFETY: a hint.
    unsafe { asm!("yield", options(nostack, nomem)) };
}
