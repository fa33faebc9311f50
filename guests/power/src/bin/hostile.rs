//! A guest that does everything wrong: hypercalls and run-time services at random, from privileged and
//! problem state; blocks that lie, overlap or straddle the end of memory; accesses and jumps to where
//! nothing is; instructions at random; the decrementer's extremes; invalidations without end; process
//! tables and translations of garbage; a second CPU that is started and stops, and at the end loops with
//! interrupts off.
//!
//! Options: `seed=N` (default 1), `ops=N` (default 100000), `doorbells=1` (instructions at random may be
//! `msgsndp`, which makes QEMU stop while it counts instructions; default 0). The same seed does the same again, as far
//! as interrupts come at the same moments. What would end the VM is left out until the end.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(unsafe_code, reason = "the guest attacks the hypervisor")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "parts of registers, and addresses below 4 GiB"
)]

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use power_guests::cage::{self, Left};
use power_guests::options::Options;
use power_guests::random::Random;
use power_guests::{cpu, guest, hcall, println, rtas};

guest! { main: main, secondary: secondary }

/// Where the guest plays: nothing of it depends on what is there.
const SCRATCH: u64 = 0x100_0000;
const SCRATCH_BYTES: u64 = 0x40_0000;
/// The guest's own translation, for problem state: a process table, a root, a table below it.
const PROCESS_TABLE: u64 = 0x80_0000;
const ROOT: u64 = 0x81_0000;
const TABLE: u64 = 0x82_0000;
/// Where the machine has registers of devices, which are none of the guest's.
const MACHINE_REGISTERS: u64 = 0x2000_8000_0000;
/// Instructions that are written at random.
const CODE: u64 = 0x90_0000;
const CODE_WORDS: u64 = 64;

/// The hypercalls there are, and a few that are not.
const NUMBERS: [u64; 36] = [
    0x24, 0x2c, 0x3c, 0x40, 0x48, 0x4c, 0x54, 0x64, 0x68, 0x6c, 0x70, 0x74, 0xdc, 0xe0, 0xe4, 0xe8,
    0x104, 0x1c8, 0x2ec, 0x2fc, 0x300, 0x37c, 0x380, 0xf000, 0x04, 0x08, 0x1c, 0x20, 0x138, 0x244,
    0x31c, 0x3fc, 0xf001, 0xf002, 0xf800, 0xf804,
];
/// The second CPU's: none that waits, and none that only the first takes back.
const SECOND: [u64; 14] = [
    0x2c, 0x3c, 0x40, 0x54, 0x64, 0x68, 0x6c, 0x70, 0x74, 0xdc, 0xe4, 0xe8, 0x2ec, 0xf000,
];

/// Lives of the second CPU, and what it has done.
static LIVES: AtomicU64 = AtomicU64::new(0);
static SECOND_OPS: AtomicU64 = AtomicU64::new(0);

/// Whether there may be doorbells.
static DOORBELLS: AtomicBool = AtomicBool::new(false);

/// How operations have ended.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    completed: u64,
    machine_checks: u64,
    programs: u64,
    interrupts: u64,
    system_calls: u64,
    others: u64,
    privileged: u64,
    refused: u64,
}

fn main(options: Options) -> ! {
    let seed = options.number("seed").unwrap_or(1);
    let ops = options.number("ops").unwrap_or(100_000);
    let end = options.memory();
    DOORBELLS.store(options.number("doorbells") == Some(1), Ordering::Relaxed);
    println!("hostile start: seed={seed} ops={ops}");
    let mut random = Random::new(seed, 0);
    let mut count = Count::default();
    prepare();
    let mut done = 0;
    while done < ops {
        done += 1;
        attack(&mut random, end, &mut count, done);
        if done.is_multiple_of(64) {
            tidy();
        }
    }
    tidy();
    let second = SECOND_OPS.load(Ordering::Relaxed);
    let lives = LIVES.load(Ordering::Relaxed);
    endless();
    println!(
        "hostile end: seed={seed} ops={done} completed={} machine_checks={} programs={} \
         interrupts={} system_calls={} others={} privileged={} refused={} second={second} \
         lives={lives}",
        count.completed,
        count.machine_checks,
        count.programs,
        count.interrupts,
        count.system_calls,
        count.others,
        count.privileged,
        count.refused,
    );
    // With the second CPU in its loop.
    rtas::power_off()
}

/// Lets the second CPU loop with interrupts off for the rest of the VM's life.
fn endless() {
    while !rtas::second_is_stopped() {
        // It may wait for a prod.
        hcall::call(hcall::PROD, [1, 0, 0, 0]);
    }
    LIVES.store(u64::MAX, Ordering::SeqCst);
    if rtas::start_second(7) != 0 {
        println!("hostile lost: the second CPU does not start");
    }
    let until = cpu::now() + cpu::ticks(100_000);
    while cpu::now() < until {}
}

fn word_at(at: u64) -> *mut u64 {
    core::ptr::with_exposed_provenance_mut(at as usize)
}

fn put(at: u64, value: u64) {
    // SAFETY: memory that nothing of the guest's depends on.
    unsafe { word_at(at).write_volatile(value) };
}

fn put_word(at: u64, value: u32) {
    let at = core::ptr::with_exposed_provenance_mut::<u32>(at as usize);
    // SAFETY: as in `put`.
    unsafe { at.write_volatile(value) };
}

/// A translation of the first gibibyte to itself, for problem state.
fn prepare() {
    // 52 bits, a root of 2^13 entries.
    put(PROCESS_TABLE, (2 << 61 | 5 << 5 | 13 | ROOT).to_be());
    put(ROOT, (1 << 63 | TABLE | 9_u64).to_be());
    // A leaf: referenced, changed, read, write, execute, problem state too.
    put(TABLE, (3 << 62 | 0x187_u64).to_be());
    // Something that may be an area of a vCPU's, of 640 bytes.
    for at in (SCRATCH..SCRATCH + SCRATCH_BYTES).step_by(4096) {
        put_word(at + 4, 0x0280_0000_u32.to_be());
    }
    register();
}

fn register() {
    let (status, _) = hcall::call(hcall::REGISTER_PROC_TBL, [0x1d, PROCESS_TABLE, 0, 0]);
    if status != 0 {
        println!("hostile lost: the process table is refused with {status}");
    }
}

/// Puts back what operations may have changed that the next ones count on.
fn tidy() {
    cpu::set_decrementer(i64::from(i32::MAX));
    hcall::call(hcall::CPPR, [0xff, 0, 0, 0]);
    accept();
    register();
}

/// Takes what interrupts there are.
fn accept() {
    for _ in 0..4 {
        let (_, accepted) = hcall::call(hcall::XIRR, [0; 4]);
        match accepted & 0xff_ffff {
            0 => return,
            2 => {
                hcall::call(hcall::IPI, [0, 0xff, 0, 0]);
            }
            _ => {}
        }
        hcall::call(hcall::EOI, [accepted, 0, 0, 0]);
    }
}

/// A guest real address that is somehow interesting; never the guest's own.
fn address(random: &mut Random, end: u64) -> u64 {
    let scratch = SCRATCH + random.below(SCRATCH_BYTES);
    match random.below(10) {
        0..4 => scratch & !127,
        4 => scratch,
        5 => scratch & !4095,
        6 => end.wrapping_sub(random.below(64)),
        7 if random.one_in(2) => MACHINE_REGISTERS + random.below(1 << 20),
        7 => end.wrapping_add(random.below(1 << 40)),
        8 => u64::MAX.wrapping_sub(random.below(8192)),
        _ => 1 << random.below(64) | 1 << 41,
    }
}

fn argument(random: &mut Random, end: u64) -> u64 {
    match random.below(8) {
        0 => random.below(4),
        1 => random.bits(),
        2 => 1 << random.below(64),
        3 => 0xff,
        4 => random.below(3) << 45,
        _ => address(random, end),
    }
}

/// Arguments of a call. Those that write are kept off the guest itself, and those that change how its
/// interrupts arrive are made wrong.
fn arguments(random: &mut Random, number: u64, end: u64) -> [u64; 4] {
    let mut all = [0; 4].map(|_| argument(random, end));
    match number {
        0x2c => all[1] = address(random, end),
        0x3c | 0x40 => {
            all[0] = 1 << random.below(5);
            all[1] = address(random, end);
        }
        0x6c | 0xe8 | 0x70 | 0xe4 => all[0] = random.below(3),
        0xdc => {
            all[0] = random.below(8) << 45;
            all[1] = random.below(3);
            all[2] = address(random, end);
        }
        0x31c => all[2] |= 1,
        0x37c if random.one_in(2) => all[0] = random.below(32),
        0x380 => all[0] = random.below(4).wrapping_sub(2),
        0xf000 => all[0] = block(random, end),
        _ => {}
    }
    all
}

/// Writes a block of a run-time service somewhere, and says where. It may say that it is elsewhere.
fn block(random: &mut Random, end: u64) -> u64 {
    const COUNTS: [u32; 8] = [0, 1, 2, 3, 6, 7, 16, 17];
    let mut token = 0x2000 + random.below(0x30) as u32;
    let mut inputs = random.of(&COUNTS);
    let mut outputs = random.of(&COUNTS);
    if random.one_in(16) {
        [token, inputs, outputs] = [0; 3].map(|_| random.word());
    }
    // What ends the VM, or this CPU, or prints.
    let last = matches!(token, 0x2000 | 0x2003 | 0x2004 | 0x2007 | 0x201f);
    if last {
        inputs = 17;
    }
    // Now and then it ends behind the end of memory.
    let at = if random.one_in(8) {
        end - 4 * (3 + random.below(40))
    } else {
        (SCRATCH + random.below(SCRATCH_BYTES - 256)) & !3
    };
    let mut cell = at;
    for value in [token, inputs, outputs] {
        if cell + 4 <= end {
            put_word(cell, value.to_be());
        }
        cell += 4;
    }
    for i in 0..16 {
        if cell + 4 <= end {
            let value = match random.below(6) {
                0 => random.below(4) as u32,
                1 => 0x1100,
                2 => random.word(),
                3 => (SCRATCH + random.below(SCRATCH_BYTES)) as u32,
                4 => (end - random.below(40)) as u32,
                _ => 5,
            };
            // A start of the second CPU is its own operation: elsewhere it must not begin.
            let start = token == 0x2006 && i == 0;
            put_word(cell, if start { 0xffff } else { value }.to_be());
        }
        cell += 4;
    }
    if random.one_in(16) {
        address(random, end)
    } else {
        at
    }
}

fn attack(random: &mut Random, end: u64, count: &mut Count, number: u64) {
    // Whatever waits or loops is called back.
    cpu::set_decrementer(cpu::ticks(50).cast_signed());
    let left = match random.below(100) {
        0..48 => call(random, end, count),
        48..66 => {
            let at = block(random, end);
            cage::run(hcall_at, hcall::RTAS, put_arguments([at, 0, 0, 0]))
        }
        66..74 => {
            register();
            // A call, then a system call; or instructions at random.
            if random.one_in(2) {
                call_code(random.of(&NUMBERS));
            } else {
                write_code(random);
            }
            let left = cage::run(problem_state, CODE, 0);
            count.privileged += u64::from(left == Left::Exception(0xc00));
            left
        }
        74..80 => cage::run(access, outside(random, end), random.below(2)),
        80..83 => cage::run(jump, outside(random, end) & !3, 0),
        83..90 => {
            write_code(random);
            cage::run(jump, CODE, 0)
        }
        90..93 => cage::run(decrement, extreme(random), 0),
        93..95 => cage::run(invalidate, random.bits(), random.bits()),
        95 => mistranslated(random),
        96..98 => second(random),
        _ => {
            let table = [
                random.below(32),
                argument(random, end),
                random.below(2),
                random.below(30),
            ];
            let left = cage::run(hcall_at, hcall::REGISTER_PROC_TBL, put_arguments(table));
            register();
            left
        }
    };
    match left {
        Left::Completed => count.completed += 1,
        Left::Exception(0x200) => count.machine_checks += 1,
        Left::Exception(0x700) => count.programs += 1,
        Left::Exception(0x500) => {
            count.interrupts += 1;
            accept();
        }
        Left::Exception(0x900 | 0x100) => count.interrupts += 1,
        Left::Exception(0xc00) => count.system_calls += 1,
        Left::Exception(vector) => {
            count.others += 1;
            if count.others <= 4 {
                let [at, dar] = cage::last(0);
                println!("hostile: op {number}: vector {vector:#x} at {at:#x}, {dar:#x}");
            }
        }
    }
}

/// Where the arguments of a call are while it is made in a cage.
static ARGUMENTS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

fn put_arguments(arguments: [u64; 4]) -> u64 {
    for (to, value) in ARGUMENTS.iter().zip(arguments) {
        to.store(value, Ordering::Relaxed);
    }
    0
}

/// Makes a call; with `open` not 0, with interrupts on.
extern "C" fn hcall_at(number: u64, open: u64) {
    let arguments = core::array::from_fn(|i| ARGUMENTS[i].load(Ordering::Relaxed));
    if open != 0 {
        cpu::unmask();
    }
    let (status, _) = hcall::call(number, arguments);
    REFUSED.fetch_add(u64::from(status < 0), Ordering::Relaxed);
}

static REFUSED: AtomicU64 = AtomicU64::new(0);

fn call(random: &mut Random, end: u64, count: &mut Count) -> Left {
    let number = match random.below(16) {
        0 => random.bits(),
        1 => random.below(0x500) & !3,
        _ => random.of(&NUMBERS),
    };
    let mut arguments = arguments(random, number, end);
    let mut open = u64::from(random.one_in(4));
    match number {
        // Printing is for what is to be read: mostly it is refused.
        hcall::PUT_TERM_CHAR => arguments[1] = 17 + random.below(1000),
        // With interrupts off it would wait for ever, unless nobody else runs.
        hcall::JOIN if !rtas::second_is_stopped() => open = 1,
        // To itself it would, too.
        hcall::CONFER if arguments[0] == 0 => open = 1,
        // Big-endian interrupts would be the guest's end.
        hcall::SET_MODE => arguments[2] |= 1,
        _ => {}
    }
    let before = REFUSED.load(Ordering::Relaxed);
    put_arguments(arguments);
    let left = cage::run(hcall_at, number, open);
    count.refused += REFUSED.load(Ordering::Relaxed) - before;
    left
}

/// Problem state by tables of garbage. Whatever it leads to is beyond memory, or nowhere.
fn mistranslated(random: &mut Random) -> Left {
    call_code(random.of(&NUMBERS));
    let at = random.of(&[PROCESS_TABLE, ROOT, TABLE]);
    put(at, (random.bits() | 1 << 40).to_be());
    if random.one_in(2) {
        // So that what was cached is not used.
        register();
    }
    let left = cage::run(problem_state, CODE, 0);
    prepare();
    left
}

fn outside(random: &mut Random, end: u64) -> u64 {
    match random.below(4) {
        0 => end + random.below(1 << 16),
        1 => end + random.below(1 << 34),
        2 => 1 << (30 + random.below(20)),
        _ => (1 << 50) - 8 - random.below(1 << 20),
    }
}

extern "C" fn access(at: u64, store: u64) {
    if store == 0 {
        // SAFETY: nothing is there.
        let _ = unsafe { word_at(at).read_volatile() };
    } else {
        // SAFETY: nothing is there.
        unsafe { word_at(at).write_volatile(at) };
    }
}

extern "C" fn jump(at: u64, _: u64) {
    // SAFETY: it comes back by the cage.
    unsafe { asm!("mtctr {0}", "bctr", in(reg) at, options(noreturn)) };
}

extern "C" fn decrement(ticks: u64, _: u64) {
    cpu::set_decrementer(ticks.cast_signed());
    cpu::unmask();
    for _ in 0..64 {
        core::hint::spin_loop();
    }
    cpu::mask();
}

fn extreme(random: &mut Random) -> u64 {
    match random.below(6) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => 1 << 63,
        4 => (1 << 55) - 1,
        _ => random.bits(),
    }
}

/// `tlbie` and `tlbiel` of every kind; those that are no kind are program interrupts.
extern "C" fn invalidate(first: u64, second: u64) {
    // RB: an address, and which translations are meant.
    let second = second & !0xfff | first & 0xc00;
    macro_rules! storm {
        ($($word:literal)*) => {$(
            // SAFETY: translations are walked anew.
            unsafe {
                asm!(concat!(".long ", $word), in("r4") first, in("r5") second, options(nostack))
            };
        )*};
    }
    // tlbie and tlbiel r4,r5 with RIC 0 to 2 and PRS 1, R 1.
    storm!("0x7c832a64" "0x7c872a64" "0x7c8b2a64" "0x7c832a24" "0x7c872a24" "0x7c8b2a24");
    // SAFETY: as above.
    unsafe { asm!("ptesync") };
}

/// The second CPU is started, or found running.
fn second(random: &mut Random) -> Left {
    cage::run(start, random.bits() & 0x7fff_ffff, 0)
}

extern "C" fn start(argument: u64, _: u64) {
    rtas::start_second(argument as u32);
    // Once more, while it comes.
    rtas::start_second(argument as u32);
}

/// The second CPU does a little and stops.
fn secondary(argument: usize) -> ! {
    if LIVES.load(Ordering::SeqCst) == u64::MAX {
        // SAFETY: loops.
        unsafe { asm!("1: b 1b", options(noreturn)) };
    }
    LIVES.fetch_add(1, Ordering::SeqCst);
    // A system reset may come at any moment: after this, it only comes back here once more.
    cage::run(life, argument as u64, 0);
    hcall::call(hcall::PROD, [0; 4]);
    rtas::stop_self(1)
}

/// What the second CPU does until it is called back.
extern "C" fn life(argument: u64, _: u64) {
    let mut random = Random::new(argument, 1);
    for _ in 0..random.below(40) {
        let number = random.of(&SECOND);
        let mut all = [0; 4].map(|_| argument_of_second(&mut random));
        match number {
            0x2c | 0x3c | 0x40 => all[1] = address(&mut random, END_OF_SECOND),
            0x6c | 0xe8 | 0x70 => all[0] = random.below(3),
            // Not to itself, which would wait.
            0xe4 => all[0] = 2 * random.below(2),
            0xf000 => all[0] = SCRATCH | 1,
            _ => {}
        }
        hcall::call(number, all);
        SECOND_OPS.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where the second CPU believes that memory ends.
const END_OF_SECOND: u64 = 0x200_0000;

fn argument_of_second(random: &mut Random) -> u64 {
    match random.below(3) {
        0 => random.below(4),
        _ => address(random, END_OF_SECOND),
    }
}

// Instructions in problem state: r3 is what they are to call.
extern "C" fn problem_state(at: u64, _: u64) {
    const PROBLEM: u64 = 1 << 63 | 0x4000 | 0x8000 | 0x1000 | 0x30 | 3;
    // SAFETY: it comes back by the cage.
    unsafe {
        asm!(
            "mtsrr0 {0}", "mtsrr1 {1}", "rfid",
            in(reg) at, in(reg) PROBLEM, options(noreturn),
        );
    }
}

global_asm!(
    r#"
    .section .rodata.problem, "a"
    .balign 4
    .global hostile_call
hostile_call:
    .long   0x44000022              // sc 1
    cmpdi   3, -3
    bne     1f
    .long   0x44000002              // sc
1:  tw      31, 0, 0
    .text
    "#
);

unsafe extern "C" {
    static hostile_call: [u32; 5];
}

/// Code that makes a call, and a system call if it was refused as one of problem state.
fn call_code(number: u64) {
    // li r3,number: as far as it fits.
    put_word(CODE, 0x3860_0000 | number as u32 & 0x7fff);
    for (at, i) in (CODE + 4..).step_by(4).zip(0..5) {
        // SAFETY: the assembler put the words there.
        let word = unsafe { (&raw const hostile_call[i]).read() };
        put_word(at, word);
    }
    flush();
}

/// Instructions at random, of kinds that cannot write to memory that is the guest's own: calls,
/// privileged registers, translation, doorbells, what does not exist. A trap ends them.
fn write_code(random: &mut Random) {
    let words = 1 + random.below(CODE_WORDS - 2);
    for i in 0..words {
        let word = match random.below(16) {
            // mfspr rN,any but those of a facility that is off, of which QEMU prints; N is 7 to 10
            0..3 => 0x7c00_02a6 | register_field(random) | spr(random.below(1024) & !0x380),
            // mtspr any hypervisor's,rN: those are 300 to 399.
            3 => 0x7c00_03a6 | register_field(random) | spr(300 + random.below(100)),
            // Nothing.
            4 => random.of(&[0, 0x0400_0000, 0x1800_0000, 0x7c00_0000]),
            // hrfid, stop, slbia, slbie.
            5 => random.of(&[0x4c00_0224, 0x4c00_02e4, 0x7c00_03e4, 0x7c00_3b64]),
            // tlbie, tlbiel at random.
            6 => 0x7c00_0264 | random.word() & 0x001f_f800 & !0x001f_0000 | register_field(random),
            // lis r7,0x2800: a doorbell for this thread.
            7 if random.one_in(2) => 0x3ce0_2800,
            // msgsndp, msgclrp r7.
            7 if DOORBELLS.load(Ordering::Relaxed) => random.of(&[0x7c00_391c, 0x7c00_395c]),
            // msgsnd, msgclr r7.
            7 => random.of(&[0x7c00_399c, 0x7c00_39dc]),
            // darn, mftb, mfmsr.
            8 => random.of(&[0x7ce1_05e6, 0x7cec_42a6, 0x7ce0_00a6]),
            // Floating point, vector: perhaps not available.
            9 => random.of(&[0xfc00_002a, 0x1000_0484, 0xf000_0496]),
            // sc 1 with whatever is in r3, after li r3,any.
            10 => 0x3860_0000 | random.of(&[0x3fc, 0x70, 0x74, 0x68, 0x300]),
            11 => 0x4400_0022,
            // mtmsrd r7,1: interrupts on or off.
            12 => 0x7ce1_0164,
            // li r7..r10, any
            _ => 0x38e0_0000 | register_field(random) | random.word() & 0xffff,
        };
        put_word(CODE + 4 * i, word);
    }
    // tw 31,0,0
    put_word(CODE + 4 * words, 0x7fe0_0008);
    flush();
}

/// r7 to r10 as the target.
fn register_field(random: &mut Random) -> u32 {
    (7 + random.below(4) as u32) << 21
}

/// A special purpose register in its two fields.
fn spr(number: u64) -> u32 {
    let number = number as u32;
    (number & 31) << 16 | (number >> 5) << 11
}

fn flush() {
    for at in (CODE..CODE + 4 * CODE_WORDS).step_by(128) {
        // SAFETY: cache maintenance.
        unsafe { asm!("dcbst 0, {0}", "sync", "icbi 0, {0}", "isync", in(reg) at) };
    }
}
