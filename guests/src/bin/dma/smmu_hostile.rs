//! An SMMU under fire: garbage entries, descriptors, commands, registers; queues that are overfull, that
//! change while they are read, that are where nothing is; on and off without end; DMA all the time.
//!
//! Left out is a context descriptor with `IPS` 6 or 7: QEMU 10 ends itself when it walks by one, hypervisor
//! or not. Two-level stream tables are garbage only with `formats=1`: QEMU's own SMMU does not come back
//! from that format until it is reset, a hypervisor's must.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guests::edu::{AtTheEnd, BUFFER, Direction};
use guests::options::Options;
use guests::platform::{ITS, SMMU, UART};
use guests::random::Random;
use guests::smmu::{
    self, ASID, CMDQ_BASE, CMDQ_CONS, CMDQ_PROD, CMDQEN, CR0, EVENTQ_BASE, EVENTQ_CONS,
    EVENTQ_PROD, EVENTQEN, GBPA, GERROR, GERRORN, IDR1, QUEUE_BITS, SMMUEN, STE_STAGE_1,
    STRTAB_BASE, STRTAB_BASE_CFG, Smmu, command,
};
use guests::{cpu, mmio, println};

use crate::memory::{self, BIG_COMMANDS, BIG_EVENTS, BYSTANDER};
use crate::{Devices, ROLE, ROLE_QUEUES, Summary, Verdict, attempt};

/// Operations after which the SMMU is set up anew.
const ANEW: u64 = 64;
/// `STRTAB_BASE_CFG.FMT`.
const LEVELS: u32 = 3 << 16;
const SALT: u64 = 31;
static OVER: AtomicBool = AtomicBool::new(false);
/// Where the second CPU scribbles; 0 as long as it is to wait.
static SCRIBBLE_AT: AtomicU64 = AtomicU64::new(0);
static SCRIBBLED: AtomicU64 = AtomicU64::new(0);

/// Rewrites the command queue and the stream table while they are read.
pub(crate) fn second_cpu() -> ! {
    let mut random = Random::new(7, 1);
    while !OVER.load(Ordering::SeqCst) {
        let at = SCRIBBLE_AT.load(Ordering::SeqCst);
        if at != 0 {
            let entry = memory::SMMU.streams() + 64 * random.below(1 << smmu::STREAM_BITS);
            let value = garbage(&mut random);
            memory::write(at + 8 * random.below(1 << 9), value);
            // No live entry gets a context pointer of chance: see above.
            memory::write(entry + 16 + 8 * random.below(6), random.bits());
            SCRIBBLED.fetch_add(1, Ordering::SeqCst);
            cpu::give_way();
        } else {
            // Asleep, so that time passes for the devices.
            cpu::sleep_us(1_000);
        }
    }
    loop {
        cpu::wait();
    }
}

pub(crate) fn run(options: &Options) -> Verdict {
    let seed = options.number("seed").unwrap_or(1);
    let ops = options.number("ops").unwrap_or(5_000);
    let formats = options.number("formats").unwrap_or(0) != 0;
    if attempt(|| smmu::read(smmu::IDR0)).is_none() {
        return Err("there is no SMMU".into());
    }
    let devices = Devices::open()?;
    memory::fill(BYSTANDER, BUFFER, SALT);
    let mut smmu = crate::smmu::start(&devices)?;
    crate::smmu::translated_round_trip(devices.first(), SALT)?;
    let consumed = all_at_once(&devices)?;
    println!("dma beat 0: seed={seed} ops={ops}, {consumed} commands at once");
    ROLE.store(ROLE_QUEUES, Ordering::SeqCst);
    let second = cpu::start(1) == 0;
    SCRIBBLE_AT.store(memory::SMMU.commands(), Ordering::SeqCst);
    let mut random = Random::new(seed, 0);
    let (mut dmas, mut anew) = (0, 0);
    for number in 1..=ops {
        operate(&mut random, &mut smmu, &devices, formats);
        for edu in devices.iter() {
            if !edu.is_busy() {
                let way = random.of(&[Direction::Read, Direction::Write]);
                let address =
                    random.of(&[0x10_0000_0000, 0x20_1234_5000, 0x30_0000_0000, 0x0808_0000]);
                edu.start(way, address, 0, 64, AtTheEnd::Silence);
                dmas += 1;
            }
        }
        if number % ANEW == 0 {
            SCRIBBLE_AT.store(0, Ordering::SeqCst);
            // What was started goes by the garbage that is there now.
            for edu in devices.iter() {
                edu.wait()?;
            }
            // The control in between: it can always be set up again.
            smmu = crate::smmu::start(&devices)?;
            anew += 1;
            SCRIBBLE_AT.store(memory::SMMU.commands(), Ordering::SeqCst);
        }
        if number % (ops / 10).max(1) == 0 {
            println!("dma beat {number}: {dmas} DMAs, set up anew {anew} times");
        }
    }
    OVER.store(true, Ordering::SeqCst);
    for edu in devices.iter() {
        edu.wait()?;
    }
    if memory::spoilt(BYSTANDER, BUFFER, SALT).is_some() {
        return Err("a page changed that nobody wrote to".into());
    }
    let _smmu = crate::smmu::start(&devices)?;
    for (index, edu) in devices.iter().enumerate() {
        crate::smmu::translated_round_trip(edu, index as u64 + 100)?;
    }
    Ok(Summary::new(&[
        ("seed", seed),
        ("ops", ops),
        ("at_once", consumed),
        ("dmas", dmas),
        ("anew", anew),
        (
            "scribbled",
            if second {
                SCRIBBLED.load(Ordering::SeqCst)
            } else {
                0
            },
        ),
    ]))
}

/// A queue of the greatest size, all of it given at once.
fn all_at_once(devices: &Devices) -> Result<u64, crate::Failure> {
    let sizes = smmu::read(IDR1);
    let (commands, events) = ((sizes >> 21 & 31).min(19), (sizes >> 16 & 31).min(19));
    let mut smmu = Smmu::start_with(memory::SMMU, (BIG_COMMANDS, commands), (BIG_EVENTS, events))?;
    crate::smmu::prepare(&mut smmu, devices)?;
    let count = 1_u64 << commands;
    for _ in 0..count {
        smmu.add(command::tlbi_va(ASID, 0x30_0000_0000));
    }
    smmu.flush()?;
    // Once more, with every command a SYNC.
    for _ in 0..count {
        smmu.add(command::SYNC);
    }
    smmu.flush()?;
    crate::smmu::translated_round_trip(devices.first(), SALT + 1)?;
    Ok(2 * count)
}

fn operate(random: &mut Random, smmu: &mut Smmu, devices: &Devices, formats: bool) {
    let stream = u32::from(devices.first().function.0);
    match random.below(12) {
        0..=2 => {
            let words = entry(random);
            let stream = if random.one_in(4) {
                random.word() & 0xff
            } else {
                stream
            };
            smmu.write_entry(stream, words);
            smmu.add(command::cfgi_ste(stream));
            ring(smmu);
        }
        3 => {
            descriptor(random);
            smmu.add(command::cfgi_cd(stream));
            ring(smmu);
        }
        4 | 5 => {
            for _ in 0..1 + random.below(100) {
                let command = [garbage(random), random.bits()];
                smmu.add(command);
            }
            ring(smmu);
        }
        6 => {
            smmu::write(CMDQ_PROD, random.word());
            acknowledge();
        }
        7 => {
            for _ in 0..1 + random.below(64) {
                let bits = random.of(&[
                    0,
                    SMMUEN,
                    CMDQEN,
                    EVENTQEN,
                    SMMUEN | CMDQEN | EVENTQEN,
                    u32::MAX,
                ]);
                smmu::write(CR0, bits);
            }
        }
        8 => {
            // Where nothing is, where registers are, where others are.
            smmu::write(CR0, 0);
            let base = random.of(&[
                UART as u64,
                ITS as u64,
                SMMU as u64,
                0,
                1 << 40,
                0xf_ffff_ffff_0000,
                1 << 32,
            ]);
            let size = random.below(32);
            let register = random.of(&[CMDQ_BASE, EVENTQ_BASE, STRTAB_BASE]);
            smmu::write64(register, base & !0x1f | size);
            let format = if formats { u32::MAX } else { !LEVELS };
            smmu::write(STRTAB_BASE_CFG, random.word() & format);
            smmu::write(CR0, SMMUEN | CMDQEN | EVENTQEN);
            smmu::write(CMDQ_PROD, 1 + (random.word() & 0xf));
            smmu.add(command::CFGI_ALL);
            acknowledge();
        }
        9 => {
            let register = random.of(&[GBPA, GERRORN, CMDQ_CONS, EVENTQ_CONS, EVENTQ_PROD]);
            smmu::write(register, random.word());
        }
        10 => {
            let at = SMMU + usize::try_from(random.below(0x2_0000)).unwrap_or(0);
            let width = random.below(4);
            let value = random.bits();
            let at = at & !((1 << width) - 1);
            if !formats && at & !7 == SMMU + STRTAB_BASE_CFG {
                return;
            }
            attempt(|| {
                if value & 1 == 0 {
                    crate::config::write(at, width, value);
                } else {
                    crate::config::read(at, width);
                }
            });
        }
        _ => {
            // Between stage 1, bypass and abort, as fast as it goes.
            for _ in 0..1 + random.below(QUEUE_BITS.into()) {
                let first = random.of(&[1, 4 << 1 | 1, STE_STAGE_1 | memory::SMMU.context()]);
                smmu.write_entry(stream, [first, 0xd4, 0, 0, 0, 0, 0, 0]);
                smmu.add(command::cfgi_ste(stream));
                ring(smmu);
            }
        }
    }
}

/// Tells the SMMU about what is in the queue, does not wait, and acknowledges what was wrong.
fn ring(smmu: &mut Smmu) {
    // The second CPU's turn.
    cpu::give_way();
    smmu.ring();
    acknowledge();
}

fn acknowledge() {
    smmu::write(GERRORN, smmu::read(GERROR));
}

/// An entry that could be right in places. Its context pointer is the good one, or where no descriptor is:
/// memory of chance could hold the one that ends QEMU.
fn entry(random: &mut Random) -> [u64; 8] {
    let mut words = [0; 8].map(|_: u64| if random.one_in(2) { random.bits() } else { 0 });
    let pointer = random.of(&[
        memory::SMMU.context(),
        memory::SMMU.context(),
        1 << 40,
        UART as u64,
        0,
    ]);
    let flags = if random.one_in(2) {
        random.bits() & !0x000f_ffff_ffff_ffc0
    } else {
        0
    };
    words[0] = pointer | flags | random.below(16);
    words
}

/// The context descriptor, with bits changed; never with an `IPS` that ends QEMU.
fn descriptor(random: &mut Random) {
    let at = memory::SMMU.context();
    for _ in 0..1 + random.below(4) {
        let word = at + 8 * random.below(8);
        let value = match random.below(3) {
            0 => random.bits(),
            _ => memory::read(word) ^ 1 << random.below(64),
        };
        // IPS is in bits 34:32 of the first word.
        let value = if word == at {
            value & !(2 << 32)
        } else {
            value
        };
        memory::write(word, value);
    }
    mmio::barrier();
}

/// The first word of a command: an opcode that is or is not, and anything above.
fn garbage(random: &mut Random) -> u64 {
    let codes = [
        1, 2, 3, 4, 5, 6, 0x10, 0x11, 0x12, 0x13, 0x20, 0x28, 0x2a, 0x30, 0x40, 0x44, 0x45, 0x46,
        0xff,
    ];
    random.bits() & !0xff | random.of(&codes)
}
