//! A guest that looks for what it must not have, and tries what it has.
//!
//! Registers and instructions of features that the identification registers hide must be undefined, and a
//! hardware breakpoint, which they show, must stop it. A line each, and a last one with the count of what
//! was not as it must be.
//!
//! With `locks` it looks so many times, longer apart than a turn of the CPU, whether the locks over its debug
//! exceptions are as it has set them: with `locked=1` set, else off, with breakpoints that work.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "the guest runs instructions that may not exist")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use guests::exception::Frame;
use guests::options::Options;
use guests::platform::UART;
use guests::{cpu, guest, println, psci, read_register, write_register};

guest! { main: main, secondary: secondary, exception: exception }

/// `ESR_EL1` of the last exception; none came while it is [`NONE`].
static SYNDROME: AtomicU64 = AtomicU64::new(NONE);
/// `ELR_EL1` of it.
static PLACE: AtomicU64 = AtomicU64::new(0);
const NONE: u64 = u64::MAX;
/// The classes of exceptions that are looked for. [DDI 0487 D24.2.40]
const UNKNOWN: u64 = 0;
const BREAKPOINT: u64 = 0x31;
const STEPPED: u64 = 0x33;

/// What a piece of code was stopped by.
fn class_of(code: impl FnOnce()) -> Option<u64> {
    SYNDROME.store(NONE, Ordering::Relaxed);
    code();
    let syndrome = SYNDROME.load(Ordering::Relaxed);
    (syndrome != NONE).then_some(syndrome >> 26 & 0x3f)
}

/// Runs an instruction, by its encoding or its text, for its exception.
macro_rules! probes {
    ($($name:literal: $instruction:literal;)*) => {
        [$(($name, class_of(|| {
            // SAFETY: the register is clobbered, and nothing else is changed by what must not exist.
            unsafe { asm!($instruction, out("x0") _, options(nostack)) };
        }))),*]
    };
}

/// A field of an identification register that must read 0.
macro_rules! fields {
    ($($name:literal: $register:literal $shift:literal;)*) => {
        [$(($name, read_register!($register) >> $shift & 0xf)),*]
    };
}

fn main(options: Options) -> ! {
    if let Some(rounds) = options.number("locks") {
        let locked = options.number("locked").unwrap_or(0);
        let wrong = changed_locks(rounds, locked);
        println!("hidden locks: {rounds} rounds with {locked}, {wrong} wrong");
        psci::system_off()
    }
    let mut wrong = 0;
    write_register!("oslar_el1", 0);
    // What the guest's own register would trap is the guest's own matter: all of it is turned on.
    write_register!("cpacr_el1", 3 << 24 | 3 << 20 | 3 << 16);
    let probes = probes! {
        "PMU PMCR_EL0": "mrs x0, s3_3_c9_c12_0";
        "PMU PMCCNTR_EL0": "mrs x0, s3_3_c9_c13_0";
        "PMU PMMIR_EL1": "mrs x0, s3_0_c9_c14_6";
        "SVE ZCR_EL1": "mrs x0, s3_0_c1_c2_0";
        "SVE RDVL": ".inst 0x04bf5020";
        "SVE PTRUE": ".inst 0x2518e3e0";
        "SME SMCR_EL1": "mrs x0, s3_0_c1_c2_6";
        "SME SVCR": "mrs x0, s3_3_c4_c2_2";
        "SME SMSTART": ".inst 0xd503477f";
        "SME RDSVL": ".inst 0x04bf5820";
        "MTE GCR_EL1": "mrs x0, s3_0_c1_c0_6";
        "MTE RGSR_EL1": "mrs x0, s3_0_c1_c0_5";
        "MTE TFSR_EL1": "mrs x0, s3_0_c5_c6_0";
        "RAS ERRIDR_EL1": "mrs x0, s3_0_c5_c3_0";
        "LOR LORC_EL1": "mrs x0, s3_0_c10_c4_3";
        "trace TRCOSLSR": "mrs x0, s2_1_c1_c1_4";
        "profiling PMSCR_EL1": "mrs x0, s3_0_c9_c9_0";
        "buffer TRBLIMITR_EL1": "mrs x0, s3_0_c9_c11_0";
        "AMU AMCR_EL0": "mrs x0, s3_3_c13_c2_0";
        "MPAM MPAM1_EL1": "mrs x0, s3_0_c10_c5_0";
        "SCXTNUM_EL1": "mrs x0, s3_0_c13_c0_7";
        "EL2 HCR_EL2": "mrs x0, hcr_el2";
    };
    for (name, class) in probes {
        if class == Some(UNKNOWN) {
            println!("hidden {name}: undefined");
        } else {
            println!("hidden {name}: WRONG, class {class:x?}");
            wrong += 1;
        }
    }
    let fields = fields! {
        "EL2": "id_aa64pfr0_el1" 8;
        "EL3": "id_aa64pfr0_el1" 12;
        "RAS": "id_aa64pfr0_el1" 28;
        "SVE": "id_aa64pfr0_el1" 32;
        "MPAM": "id_aa64pfr0_el1" 40;
        "AMU": "id_aa64pfr0_el1" 44;
        "MTE": "id_aa64pfr1_el1" 8;
        "SME": "id_aa64pfr1_el1" 24;
        "trace": "id_aa64dfr0_el1" 4;
        "PMU": "id_aa64dfr0_el1" 8;
        "profiling": "id_aa64dfr0_el1" 32;
        "buffer": "id_aa64dfr0_el1" 44;
        "LOR": "id_aa64mmfr1_el1" 16;
        "SVE features": "s3_0_c0_c4_4" 0;
        "SME features": "s3_0_c0_c4_5" 60;
    };
    for (name, value) in fields {
        if value == 0 {
            println!("hidden field {name}: 0");
        } else {
            println!("hidden field {name}: WRONG, {value:#x}");
            wrong += 1;
        }
    }
    if breakpoint_works() {
        println!("shown breakpoint: it stops");
    } else {
        println!("shown breakpoint: WRONG, it does not stop");
        wrong += 1;
    }
    if step_works() {
        println!("shown step: it ends behind a load that traps");
    } else {
        let place = PLACE.load(Ordering::Relaxed);
        println!("shown step: WRONG, it ends at {place:#x}");
        wrong += 1;
    }
    println!("hidden end: {wrong} wrong");
    psci::system_off()
}

/// How often the locks were not as they were set, or a breakpoint did not do what they say.
fn changed_locks(rounds: u64, locked: u64) -> u64 {
    const APART_US: u64 = 3000;
    write_register!("oslar_el1", locked);
    write_register!("osdlr_el1", locked);
    let set = locks();
    let round = || {
        let until = cpu::now() + cpu::ticks(APART_US);
        while cpu::now() < until {}
        u64::from(locks() != set || locked == 0 && !breakpoint_works())
    };
    (0..rounds).map(|_| round()).sum()
}

/// The OS lock, and the double lock where there is one.
fn locks() -> (u64, u64) {
    (
        read_register!("oslsr_el1") >> 1 & 1,
        read_register!("osdlr_el1"),
    )
}

/// Whether a hardware breakpoint at an instruction is taken there. [DDI 0487 D2.8]
fn breakpoint_works() -> bool {
    /// Enabled, at EL1, four bytes.
    const CONTROL: u64 = 0xf << 5 | 1 << 1 | 1;
    /// Monitor debug events, at EL1 too.
    const MONITOR: u64 = 1 << 15 | 1 << 13;
    let place: u64;
    // SAFETY: the label's address.
    unsafe {
        asm!("adr {}, 77f", "b 78f", "77: nop", "ret", "78:", out(reg) place, options(nostack))
    };
    write_register!("dbgbvr0_el1", place);
    write_register!("dbgbcr0_el1", CONTROL);
    write_register!("mdscr_el1", MONITOR);
    let class = class_of(|| {
        // SAFETY: calls the two instructions at the label, one of which returns.
        unsafe {
            asm!(
                "msr daifclr, #8", "blr {}", "msr daifset, #8",
                in(reg) place, out("x30") _, options(nostack)
            );
        };
    });
    write_register!("mdscr_el1", 0);
    write_register!("dbgbcr0_el1", 0);
    class == Some(BREAKPOINT) && PLACE.load(Ordering::Relaxed) == place
}

/// Whether a step over a load that the hypervisor does for the guest ends behind that load. [DDI 0487 D2.11]
fn step_works() -> bool {
    /// Kernel debug events, software step.
    const STEP: u64 = 1 << 13 | 1;
    /// UARTFR.
    const FLAGS: usize = UART + 0x18;
    let mut behind = 0_u64;
    write_register!("mdscr_el1", STEP);
    let class = class_of(|| {
        // SAFETY: returns to the load, at the same level with debug exceptions on, to be stepped; the exception's
        // handler turns stepping off.
        unsafe {
            asm!(
                "adr x1, 81f",
                "msr elr_el1, x1",
                "mov x1, #0x1c5",
                "movk x1, #0x20, lsl #16",
                "msr spsr_el1, x1",
                "isb",
                "eret",
                "81: ldr w1, [{flags}]",
                "82: nop",
                "nop",
                "nop",
                "msr daifset, #8",
                "adr {behind}, 82b",
                flags = in(reg) FLAGS, behind = out(reg) behind, out("x1") _, options(nostack)
            );
        };
    });
    write_register!("mdscr_el1", 0);
    class == Some(STEPPED) && PLACE.load(Ordering::Relaxed) == behind
}

fn secondary(_: usize) -> ! {
    panic!("this guest has one CPU")
}

fn exception(frame: &mut Frame) {
    SYNDROME.store(read_register!("esr_el1"), Ordering::Relaxed);
    PLACE.store(frame.pc, Ordering::Relaxed);
    if read_register!("esr_el1") >> 26 & 0x3f == STEPPED {
        write_register!("mdscr_el1", 0);
    } else {
        frame.skip();
    }
}
