//! A guest that does everything a guest must not, at random and for ever the same.
//!
//! Options: `seed=N`, `ops=N` (random operations of all CPUs together). One operation is up to four
//! instruction words of some kind, run with random registers and a random stack pointer (`cage.rs`),
//! or a wait. CPUs 0 and 1 go on to the end; CPU 2 is turned on and off by both at once; near the end
//! CPU 2 turns translation on with a table that is nowhere, and CPU 3 is turned on at zeroes: both then
//! fault for ever.
//!
//! The last line counts what happened. A guest that loses control of itself says so instead.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "the guest runs random code")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "random numbers and addresses of a 64-bit guest, cut on purpose"
)]

mod cage;
mod memory;
mod tables;
mod words;

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guests::exception::Frame;
use guests::options::Options;
use guests::platform::{GICR, GICR_STRIDE, UART, VIRTUAL_TIMER};
use guests::random::Random;
use guests::{cpu, gic, guest, mmio, println, psci, write_register};

use cage::{Cage, Context, ENDED_BY_INTERRUPT};
use tables::Tables;
use words::tame;

guest! { main: main, secondary: secondary, exception: exception }

const CPUS: usize = 4;
/// Ticks that a piece of code may run before the timer ends it.
const WATCHDOG: u64 = 10_000;
/// Operations of CPU 2 each time that it is on.
const SHORT_LIFE: u64 = 200;
/// Operations between two repairs of the interrupt controller.
const REPAIR: u64 = 64;

static SEED: AtomicU64 = AtomicU64::new(0);
static WANTED: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);
/// CPU 2 and 3 may end for good.
static LAST_PART: AtomicBool = AtomicBool::new(false);
/// How often CPU 2 has come on.
static LIVES: AtomicU64 = AtomicU64::new(0);

/// What ended the operations.
struct Counts {
    completed: AtomicU64,
    data_aborts: AtomicU64,
    instruction_aborts: AtomicU64,
    undefined: AtomicU64,
    interrupts: AtomicU64,
    others: AtomicU64,
}

static COUNTS: Counts = Counts {
    completed: AtomicU64::new(0),
    data_aborts: AtomicU64::new(0),
    instruction_aborts: AtomicU64::new(0),
    undefined: AtomicU64::new(0),
    interrupts: AtomicU64::new(0),
    others: AtomicU64::new(0),
};

impl Counts {
    fn count(&self, esr: u64) {
        let counter = match esr >> 26 & 0x3f {
            0x15 => &self.completed,
            0x24 | 0x25 => &self.data_aborts,
            0x20 | 0x21 => &self.instruction_aborts,
            0x00 => &self.undefined,
            _ if esr == ENDED_BY_INTERRUPT => &self.interrupts,
            _ => &self.others,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The contexts of the CPUs.
struct Contexts(UnsafeCell<[Context; CPUS]>);

// SAFETY: each CPU uses its own element alone.
unsafe impl Sync for Contexts {}

static CONTEXTS: Contexts = Contexts(UnsafeCell::new([const { Context::new() }; CPUS]));

/// Stacks for interrupts.
#[repr(align(16))]
struct Stacks(UnsafeCell<[[u8; 4096]; CPUS]>);

// SAFETY: as for the contexts.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; 4096]; CPUS]));

fn main(options: Options) -> ! {
    let seed = options.number("seed").unwrap_or(1);
    let ops = options.number("ops").unwrap_or(100_000);
    SEED.store(seed, Ordering::Relaxed);
    WANTED.store(ops, Ordering::Relaxed);
    println!("hostile start: seed={seed} ops={ops}");
    let mut attacker = Attacker::new(0);
    let entry = cpu::start(1);
    let before_the_end = ops - ops / 50;
    let mut tenth = 1;
    while DONE.load(Ordering::Relaxed) < ops {
        attacker.operate();
        while DONE.load(Ordering::Relaxed) >= ops / 10 * tenth && tenth < 10 {
            clear_console();
            println!("hostile: {tenth}0 %");
            tenth += 1;
        }
        if DONE.load(Ordering::Relaxed) >= before_the_end
            && !LAST_PART.swap(true, Ordering::Relaxed)
        {
            // At zeroes, which are no instructions; its vectors are nowhere.
            psci::hvc(psci::CPU_ON, [3, 0x4080_0000, 0]);
        }
    }
    attacker.repair();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    clear_console();
    println!(
        "hostile end: seed={seed} ops={} completed={} data_aborts={} instruction_aborts={} \
         undefined={} interrupts={} others={} cpu1={entry} lives={}",
        count(&DONE),
        count(&COUNTS.completed),
        count(&COUNTS.data_aborts),
        count(&COUNTS.instruction_aborts),
        count(&COUNTS.undefined),
        count(&COUNTS.interrupts),
        count(&COUNTS.others),
        count(&LIVES),
    );
    psci::system_off()
}

fn secondary(cpu: usize) -> ! {
    if cpu == 2 {
        LIVES.fetch_add(1, Ordering::Relaxed);
    }
    let mut attacker = Attacker::new(cpu.min(CPUS - 1));
    let mut left = SHORT_LIFE;
    loop {
        attacker.operate();
        if cpu == 2 {
            if LAST_PART.load(Ordering::Relaxed) {
                tables::jump_into_the_void(&mut attacker.random);
            }
            left -= 1;
            if left == 0 {
                attacker.tables_off();
                psci::hvc(psci::CPU_OFF, [0; 3]);
            }
        }
    }
}

/// Before the CPU has its own vectors.
fn exception(frame: &mut Frame) {
    panic!("{:?} at {:#x}", frame.kind(), frame.pc)
}

/// Makes the console one's own again: random writes may have turned it into a loop, and what they sent
/// is in the middle of a line.
fn clear_console() {
    const UARTCR: usize = 0x30;
    const ENABLED: u32 = 0x301;
    mmio::write32(UART + UARTCR, ENABLED);
    println!();
}

/// The guest itself has failed, not the random code.
fn fail(esr: u64, far: u64, elr: u64, spsr: u64) -> ! {
    write_register!("sctlr_el1", 0x30d0_0800);
    clear_console();
    println!(
        "hostile lost: cpu {} esr {esr:#x} far {far:#x} elr {elr:#x} spsr {spsr:#x} after {} ops",
        cpu::index(),
        DONE.load(Ordering::Relaxed)
    );
    psci::system_off()
}

/// A CPU that attacks.
struct Attacker {
    cpu: usize,
    random: Random,
    cage: Cage,
    tables: Tables,
    since_repair: u64,
}

impl Attacker {
    fn new(cpu: usize) -> Self {
        let lives = LIVES.load(Ordering::Relaxed) << 32;
        let seed = SEED.load(Ordering::Relaxed) ^ if cpu == 2 { lives } else { 0 };
        // SAFETY: in bounds, and this CPU's own.
        let context = unsafe { CONTEXTS.0.get().cast::<Context>().add(cpu) };
        // SAFETY: likewise; the end of the element.
        let stack = unsafe { STACKS.0.get().cast::<[u8; 4096]>().add(cpu + 1) };
        let mut attacker = Self {
            cpu,
            random: Random::new(seed, cpu),
            cage: Cage::build(cpu, context, stack.expose_provenance() as u64),
            tables: Tables::of(cpu),
            since_repair: 0,
        };
        for index in 0..31 {
            attacker.cage.context().x[index] = memory::value(&mut attacker.random);
        }
        attacker.repair();
        attacker
    }

    /// The interrupt controller as this CPU needs it to be woken.
    fn repair(&mut self) {
        const GICR_ICACTIVER0: usize = 0x1_0380;
        gic::start_distributor();
        gic::start_cpu(0xffff | 1 << VIRTUAL_TIMER);
        mmio::write32(GICR + self.cpu * GICR_STRIDE + GICR_ICACTIVER0, u32::MAX);
        self.since_repair = 0;
    }

    fn tables_off(&mut self) {
        write_register!("sctlr_el1", 0x30d0_0800);
    }

    /// What random code may have changed of this CPU, and the watchdog.
    fn prepare(&mut self) {
        write_register!("cntp_ctl_el0", 0);
        write_register!("cpacr_el1", 3 << 20);
        write_register!("mdscr_el1", 0);
        write_register!("cntkctl_el1", 0);
        write_register!("icc_ctlr_el1", 0);
        write_register!("icc_pmr_el1", 0xff);
        write_register!("icc_igrpen1_el1", 1);
        write_register!("s3_0_c12_c8_4", 0); // ICC_AP0R0
        write_register!("s3_0_c12_c9_0", 0); // ICC_AP1R0
        cpu::set_timer(cpu::now() + WATCHDOG);
    }

    /// One operation.
    fn operate(&mut self) {
        self.since_repair += 1;
        if self.since_repair >= REPAIR {
            self.repair();
        }
        self.prepare();
        for _ in 0..4 {
            let index = self.random.below(31) as usize;
            self.cage.context().x[index] = memory::value(&mut self.random);
        }
        let sp = match self.random.one_in(8) {
            true => memory::value(&mut self.random),
            false => memory::scratch(&mut self.random) & !15,
        };
        self.cage.context().sp = sp;
        let esr = self.one_kind();
        COUNTS.count(esr);
        DONE.fetch_add(1, Ordering::Relaxed);
    }

    fn one_kind(&mut self) -> u64 {
        let random = &mut self.random;
        // Where ERET goes: by default to the end, at EL1.
        write_register!("elr_el1", self.cage.end());
        write_register!("spsr_el1", 0x3c5);
        let x = &mut self.cage.context().x;
        match random.below(100) {
            0..=29 => {
                x[1] = if random.one_in(4) {
                    memory::value(random)
                } else {
                    memory::device(random)
                };
                let words = [(); 2].map(|()| tame(words::load_or_store(random)));
                self.cage.run(&words)
            }
            30..=39 => {
                x[1] = memory::device(random);
                let words = [(); 2].map(|()| words::access_at_x1(random));
                self.cage.run(&words)
            }
            40..=47 => {
                let words = [(); 2].map(|()| tame(words::system(random)));
                self.cage.run(&words)
            }
            48..=56 => {
                let words = [(); 3].map(|()| tame(words::system_register(random)));
                self.cage.run(&words)
            }
            57..=64 => {
                x[0] = call_identifier(random);
                self.cage.run(&[words::call(random)])
            }
            65..=67 => self.race(),
            68..=72 => {
                for register in x.iter_mut().take(4) {
                    *register = sgi(random);
                }
                let words = [(); 4].map(|()| words::write_of(random, &words::SGIS));
                self.cage.run(&words)
            }
            73..=76 => {
                for register in x.iter_mut().take(4) {
                    *register = deadline(random);
                }
                let words = [(); 3].map(|()| words::write_of(random, &words::TIMERS));
                self.cage.run(&words)
            }
            77..=79 => {
                let words = [(); 3].map(|()| words::write_of(random, &words::CPU_INTERFACE));
                self.cage.run(&words)
            }
            80..=86 => {
                let words = [(); 4].map(|()| tame(random.word()));
                self.cage.run(&words)
            }
            87..=89 => {
                x[1] = memory::target(random);
                let word = random.of(&[words::JUMP, words::CALL]);
                self.cage.run(&[word])
            }
            90 | 91 => {
                let mode = random.word();
                write_register!("spsr_el1", u64::from(mode & !0x1f | random.word() & 0xf));
                write_register!("elr_el1", memory::target(random));
                self.cage.run(&[words::ERET])
            }
            92 => {
                // AArch32, at an address with nothing at it: zeroes are instructions there.
                write_register!("spsr_el1", u64::from(random.word() | 0x10));
                write_register!("elr_el1", memory::empty_target(random));
                self.cage.run(&[words::ERET])
            }
            93 | 94 => {
                self.cage.context().sp = memory::value(random);
                self.cage.run(&[words::PUSH, words::POP, words::PUSH])
            }
            95 | 96 => {
                let words = [(); 2].map(|()| words::maintenance(random));
                self.cage.run(&words)
            }
            97 | 98 => {
                self.tables.change(random);
                x[1] = memory::value(random);
                self.cage.run(&[tame(words::load_or_store(random))])
            }
            _ => self.wait(),
        }
    }

    /// CPU_ON and its like: of a CPU that others turn on as well, and with bad arguments.
    fn race(&mut self) -> u64 {
        let random = &mut self.random;
        if random.one_in(4) {
            cpu::start(2);
        }
        let bad = memory::nowhere(random);
        let x = &mut self.cage.context().x;
        let target = random.of(&[0, 1, 2, 3, 4, 0x100, 1 << 32, u64::MAX]);
        x[0] = random.of(&[psci::CPU_ON, 0x8400_0003, 0xc400_0004, 0x8400_0004]);
        x[1] = if random.one_in(3) {
            random.bits()
        } else {
            target
        };
        x[2] = bad;
        x[3] = random.bits();
        self.cage.run(&[words::call(random)])
    }

    /// WFI with a timer that fires soon, has fired long ago, or is CPU 2's and off.
    fn wait(&mut self) -> u64 {
        self.repair();
        let now = cpu::now();
        match self.random.below(3) {
            0 => cpu::set_timer(now + self.random.below(WATCHDOG)),
            1 => cpu::set_timer(0),
            _ => cpu::set_timer(now),
        }
        cpu::wait();
        // WFE, WFET and WFIT beside it, with the watchdog.
        self.prepare();
        let word = self.random.of(&[0xd503_205f, 0xd503_1000, 0xd503_1020_u32]);
        self.cage.run(&[word
            | if word & 0xffff_fc00 == 0xd503_1000 {
                self.random.word() & 0x1f
            } else {
                0
            }])
    }
}

/// An identifier of the SMC calling convention, but for what would turn this CPU or the machine off.
fn call_identifier(random: &mut Random) -> u64 {
    let identifier = match random.below(4) {
        0 => random.bits(),
        1 => u64::from(0x8400_0000 | random.word() & 0x4000_001f),
        2 => u64::from(random.word() & 0xff00_001f),
        _ => u64::from(random.word()),
    };
    let is_psci = identifier as u32 & 0xbf00_0000 == 0x8400_0000;
    // CPU_OFF, CPU_ON (`race` has it), SYSTEM_OFF and RESET, CPU_FREEZE, SYSTEM_SUSPEND, RESET2.
    if is_psci && matches!(identifier & 0xffff, 2 | 3 | 8 | 9 | 0xb | 0xe | 0x12) {
        return 0x8400_0000;
    }
    identifier
}

/// A value for `ICC_SGI1R`: half of them name CPUs that there are.
fn sgi(random: &mut Random) -> u64 {
    match random.below(3) {
        0 => random.bits(),
        1 => random.below(16) << 24 | random.below(16),
        _ => random.below(16) << 24 | 1 << 40,
    }
}

/// A value for a timer: the past, now, soon, never, control bits.
fn deadline(random: &mut Random) -> u64 {
    match random.below(6) {
        0 => 0,
        1 => u64::MAX,
        2 => random.below(4),
        3 => cpu::now(),
        4 => cpu::now() + random.below(10_000),
        _ => random.bits(),
    }
}
