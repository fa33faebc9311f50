//! A guest that looks at every register which the platform below leaves to the hypervisor to switch, plants
//! a value of its own in each that takes one, and sees for a while that it stays.
//!
//! Options: `seed=N` (whose values; default 1), `rounds=N` (default 20): each gives the thread to others once
//! and waits once. A VM that has just started must find all registers as they are in a new CPU, whoever ran on
//! the thread before. At the end it looks again as if it had just started, and must find its own values: so
//! the look is able to find something.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(unsafe_code, reason = "the guest is about registers")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use power_guests::cage::{self, Left};
use power_guests::options::Options;
use power_guests::{cpu, guest, hcall, println, rtas};

guest! { main: main, secondary: secondary }

/// What was read last.
static VALUE: AtomicU64 = AtomicU64::new(0);

/// A register: how it is read into [`VALUE`], how it is written, what is planted.
struct Register {
    name: &'static str,
    read: extern "C" fn(u64, u64),
    write: extern "C" fn(u64, u64),
    /// The bits in which VMs differ.
    plant: u64,
    /// As it is in a new CPU.
    new: u64,
}

macro_rules! registers {
    ($count:ident: $($name:ident $read:literal $write:literal $plant:literal $new:literal;)*) => {
        const $count: usize = [$(stringify!($name)),*].len();

        static REGISTERS: [Register; $count] = [$({
            extern "C" fn read(_: u64, _: u64) {
                let value: u64;
                // SAFETY: reads a register, or is an exception, which the cage takes.
                unsafe { asm!($read, inout("r4") 0_u64 => value, out("r5") _) };
                VALUE.store(value, Ordering::Relaxed);
            }
            extern "C" fn write(value: u64, _: u64) {
                // SAFETY: nothing of the guest's depends on the register.
                unsafe { asm!($write, inout("r4") value => _, out("r5") _) };
            }
            Register { name: stringify!($name), read, write, plant: $plant, new: $new }
        }),*];
    };
}

// FSCR comes first: with all its facilities on, the others can be read. DAR and DSISR come next, before the
// first exception. MMCR0 freezes the counters before they are written. Instructions that the assembler is told
// not to know, for want of vector registers in compiled code, are words; they take r4.
registers! { COUNT:
    fscr   "mfspr 4, 153"       "mtspr 153, 4"      0x0000_0000_0000_0300 0;
    dar    "mfspr 4, 19"        "mtspr 19, 4"       0x0123_4567_89ab_cdef 0;
    dsisr  "mfspr 4, 18"        "mtspr 18, 4"       0x0000_0000_7654_3210 0;
    dscr   "mfspr 4, 17"        "mtspr 17, 4"       0x0000_0000_01ff_ffff 0;
    ctrl   "mfspr 4, 136"       "mtspr 152, 4"      0x0000_0000_0000_0001 1;
    amr    "mfspr 4, 29"        "mtspr 29, 4"       0x5555_5555_5555_5555 0;
    iamr   "mfspr 4, 61"        "mtspr 61, 4"       0x5555_5555_5555_5555 0;
    uamor  "mfspr 4, 157"       "mtspr 157, 4"      0xffff_0000_ffff_0000 0;
    pspb   "mfspr 4, 159"       "mtspr 159, 4"      0x0000_0000_0f0f_0f0f 0;
    vrsave "mfspr 4, 256"       "mtspr 256, 4"      0x0000_0000_1357_9bdf 0;
    mmcr0  "mfspr 4, 795"       "mtspr 795, 4"      0x0000_0000_8000_0000 0x0000_0000_8000_0000;
    mmcr1  "mfspr 4, 798"       "mtspr 798, 4"      0x0000_0000_1212_3434 0;
    mmcr2  "mfspr 4, 785"       "mtspr 785, 4"      0x1212_3434_5656_7878 0;
    mmcra  "mfspr 4, 786"       "mtspr 786, 4"      0x0000_0000_0101_0101 0;
    mmcr3  "mfspr 4, 754"       "mtspr 754, 4"      0x0123_0123_0123_0123 0;
    pmc1   "mfspr 4, 787"       "mtspr 787, 4"      0x0000_0000_0111_1111 0;
    pmc2   "mfspr 4, 788"       "mtspr 788, 4"      0x0000_0000_0222_2222 0;
    pmc3   "mfspr 4, 789"       "mtspr 789, 4"      0x0000_0000_0333_3333 0;
    pmc4   "mfspr 4, 790"       "mtspr 790, 4"      0x0000_0000_0444_4444 0;
    pmc5   "mfspr 4, 791"       "mtspr 791, 4"      0x0000_0000_0555_5555 0;
    pmc6   "mfspr 4, 792"       "mtspr 792, 4"      0x0000_0000_0666_6666 0;
    siar   "mfspr 4, 796"       "mtspr 796, 4"      0x1010_2020_3030_4040 0;
    sdar   "mfspr 4, 797"       "mtspr 797, 4"      0x5050_6060_7070_8080 0;
    sier   "mfspr 4, 784"       "mtspr 784, 4"      0x0101_0202_0303_0404 0;
    sier2  "mfspr 4, 752"       "mtspr 752, 4"      0x0101_0202_0303_0404 0;
    sier3  "mfspr 4, 753"       "mtspr 753, 4"      0x0101_0202_0303_0404 0;
    ebbhr  "mfspr 4, 804"       "mtspr 804, 4"      0x1111_2222_3333_4444 0;
    ebbrr  "mfspr 4, 805"       "mtspr 805, 4"      0x5555_6666_7777_8888 0;
    bescr  "mfspr 4, 806"       "mtspr 806, 4"      0x0000_0000_0000_0007 0;
    tar    "mfspr 4, 815"       "mtspr 815, 4"      0x0123_4567_89ab_cdef 0;
    tidr   "mfspr 4, 144"       "mtspr 144, 4"      0x0000_0000_0000_7654 0;
    psscr  "mfspr 4, 823"       "mtspr 823, 4"      0x0000_0000_0000_000f 0;
    wort   "mfspr 4, 895"       "mtspr 895, 4"      0x0123_4567_89ab_cdef 0;
    hashkeyr "mfspr 4, 468"     "mtspr 468, 4"      0x0123_4567_89ab_cdef 0;
    sprg0  "mfspr 4, 272"       "mtspr 272, 4"      0x0101_0101_0101_0101 0;
    sprg3  "mfspr 4, 275"       "mtspr 275, 4"      0x0303_0303_0303_0303 0;
    pid    "mfspr 4, 48"        "mtspr 48, 4"       0x0000_0000_0000_0555 0;
    vs0    ".long 0x7c040066" ".long 0x7c040166" 0x0123_4567_89ab_cdef 0;
    vs31   ".long 0x7fe40066"   ".long 0x7fe40166"  0x1123_4567_89ab_cdef 0;
    vs32   ".long 0x7c040067"   ".long 0x7c040167"  0x2123_4567_89ab_cdef 0;
    vs63   ".long 0x7fe40067"   ".long 0x7fe40167"  0x3123_4567_89ab_cdef 0;
    // By way of vs1 and vs33: mffs, mtfsf; mfvscr, mtvscr.
    fpscr  ".long 0xfc20048e, 0x7c240066" ".long 0x7c240166, 0xfffe0d8e" 0x0000_0000_0000_00f2 0;
    vscr   ".long 0x10200604, 0x7c240267" ".long 0x7c242367, 0x10000e44" 0x0000_0000_0001_0001 0;
}

/// What each register held after it was planted.
static PLANTED: [AtomicU64; COUNT] = [const { AtomicU64::new(0) }; COUNT];

fn main(options: Options) -> ! {
    let seed = options.number("seed").unwrap_or(1);
    let rounds = options.number("rounds").unwrap_or(20);
    cpu::set_decrementer(i64::from(i32::MAX));
    let stale = look();
    println!("registers start: seed={seed} stale={stale} of {COUNT}");
    let taken = plant(seed);
    let mut lost = 0;
    for _ in 0..rounds {
        hcall::call(hcall::CONFER, [u64::MAX, 0, 0, 0]);
        cpu::set_decrementer(cpu::ticks(2_000).cast_signed());
        // The decrementer's interrupt, or what comes before it, ends the wait.
        let _ = cage::run(wait, 0, 0);
        cpu::set_decrementer(i64::from(i32::MAX));
        lost += check();
    }
    let control = look();
    println!("registers end: seed={seed} taken={taken} lost={lost} control={control}");
    rtas::power_off()
}

extern "C" fn wait(_: u64, _: u64) {
    hcall::call(hcall::CEDE, [0; 4]);
}

/// Lets vector registers be used: instructions that do are in no compiled code.
fn vectors_on() {
    // SAFETY: sets MSR[FP], MSR[VEC] and MSR[VSX].
    unsafe {
        asm!(
            "mfmsr {0}", "lis {1}, 0x0280", "ori {1}, {1}, 0x2000", "or {0}, {0}, {1}", "mtmsrd {0}", "isync",
            out(reg) _, out(reg) _,
        );
    }
}

fn read(register: &Register) -> Option<u64> {
    vectors_on();
    match cage::run(register.read, 0, 0) {
        Left::Completed => Some(VALUE.load(Ordering::Relaxed)),
        Left::Exception(_) => None,
    }
}

fn write(register: &Register, value: u64) {
    vectors_on();
    // One that is not there stays as it is.
    let _ = cage::run(register.write, value, 0);
}

/// How many registers are not as in a new CPU.
fn look() -> usize {
    let mut stale = 0;
    for (number, register) in REGISTERS.iter().enumerate() {
        let value = read(register);
        // Of CTRL, RUN alone is the register; the rest says which threads run.
        let value = value.map(|value| {
            if register.name == "ctrl" {
                value & 1
            } else {
                value
            }
        });
        if let Some(value) = value
            && value != register.new
        {
            stale += 1;
            if PLANTED[number].load(Ordering::Relaxed) == 0 {
                println!("registers: {} is {value:#x}", register.name);
            }
        }
        if register.name == "fscr" {
            write(register, u64::MAX);
        }
    }
    stale
}

/// Puts a value of this VM's into each register; how many took one.
fn plant(seed: u64) -> usize {
    let mut taken = 0;
    for (register, planted) in REGISTERS.iter().zip(&PLANTED).skip(1) {
        let mix = seed.wrapping_mul(0x0101_0101_0101_0101);
        let value = match register.name {
            "ctrl" => seed & 1,
            "mmcr0" => register.plant | 0x2000_0000 << (seed & 1),
            _ => (register.plant ^ mix) & (register.plant | register.plant >> 1),
        };
        write(register, value);
        let Some(held) = read(register) else { continue };
        planted.store(held, Ordering::Relaxed);
        taken += usize::from(held != register.new);
    }
    taken
}

/// How many registers no longer hold what was planted.
fn check() -> usize {
    let mut lost = 0;
    for (register, planted) in REGISTERS.iter().zip(&PLANTED).skip(1) {
        let held = planted.load(Ordering::Relaxed);
        // One that is not there has held nothing.
        let value = read(register).unwrap_or(0);
        if value != held {
            lost += 1;
            println!(
                "registers: {} held {held:#x}, holds {value:#x}",
                register.name
            );
        }
    }
    lost
}

fn secondary(_: usize) -> ! {
    panic!("there is one CPU")
}
