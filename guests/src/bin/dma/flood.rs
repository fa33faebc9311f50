//! An ITS under fire: garbage commands, tables and registers, while messages come in.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guests::edu::{self, REG_RAISE};
use guests::its::{self, BASER, CBASER, CREADR, CTLR, CWRITER, Command, Its, command};
use guests::options::Options;
use guests::pci::{self, BUS_MASTER, Function, MEMORY_SPACE, MsiX};
use guests::platform::{DOORBELL, ITS, UART};
use guests::random::Random;
use guests::{cpu, mmio, println};

use crate::memory;
use crate::{
    Devices, Failure, RECEIVED, ROLE, ROLE_MESSAGES, Summary, Verdict, attempt, await_lpis, lpis,
    start_messages,
};

/// Operations after which the ITS is set up anew: garbage may have stopped it for good.
const ANEW: u64 = 128;
/// Where the second CPU finds the device's register; 0 as long as it is to wait.
static RAISE_AT: AtomicU64 = AtomicU64::new(0);
/// An MSI-X table that the second CPU rewrites, and how many vectors it has.
static TABLE: (AtomicU64, AtomicU64) = (AtomicU64::new(0), AtomicU64::new(0));
static REWRITTEN: AtomicU64 = AtomicU64::new(0);
static OVER: AtomicBool = AtomicBool::new(false);
static SENT: AtomicU64 = AtomicU64::new(0);

/// Sends messages without a pause, and takes those that are sent to it.
pub(crate) fn second_cpu() -> ! {
    Its::start_lpis(memory::ITS);
    cpu::unmask();
    let mut random = Random::new(1, 1);
    while !OVER.load(Ordering::SeqCst) {
        let table = usize::try_from(TABLE.0.load(Ordering::SeqCst)).unwrap_or(0);
        if table != 0 {
            rewrite(&mut random, table, TABLE.1.load(Ordering::SeqCst));
        }
        let at = usize::try_from(RAISE_AT.load(Ordering::SeqCst)).unwrap_or(0);
        if at != 0 {
            mmio::write32(at, 1);
            SENT.fetch_add(1, Ordering::SeqCst);
        }
        cpu::give_way();
    }
    cpu::mask();
    loop {
        cpu::wait();
    }
}

/// Writes a part of a vector: its address, data or mask, sensible or not.
fn rewrite(random: &mut Random, table: usize, vectors: u64) {
    let vector = usize::try_from(random.below(vectors)).unwrap_or(0);
    let part = usize::try_from(random.below(4)).unwrap_or(0);
    let low = u32::try_from(DOORBELL).unwrap_or(0);
    let value = match (part, random.below(4)) {
        (0, 0..3) => low,
        (1, 0..3) => 0,
        (2, 0..3) => u32::try_from(random.below(8)).unwrap_or(0),
        (3, _) => u32::try_from(random.below(2)).unwrap_or(0),
        _ => random.word(),
    };
    mmio::write32(table + 16 * vector + 4 * part, value);
    REWRITTEN.fetch_add(1, Ordering::SeqCst);
}

/// Finds a function with MSI-X that is no `edu`, and turns it on: its places are addresses.
pub(crate) fn find_table() -> Result<Option<MsiX>, Failure> {
    let mut others = Function::all().filter(|function| function.read32(pci::IDS) != edu::IDS);
    let Some(function) = others.find(|f| f.capability(pci::CAP_MSIX).is_some()) else {
        return Ok(None);
    };
    function.command(0);
    let base = crate::bar_address(2 * crate::MOST_DEVICES);
    let mut msix = function.start_msix().ok_or("MSI-X went away")?;
    if function.place(msix.bar, base as u64) != base as u64 {
        return Err("a BAR does not keep the address that it is given".into());
    }
    function.command(MEMORY_SPACE | BUS_MASTER);
    msix.table += base;
    msix.pending += base;
    Ok(Some(msix))
}

pub(crate) fn run(options: &Options) -> Verdict {
    let seed = options.number("seed").unwrap_or(1);
    let ops = options.number("ops").unwrap_or(10_000);
    let devices = Devices::open()?;
    let mut its = start_messages(&devices)?;
    let edu = devices.first();
    ROLE.store(ROLE_MESSAGES, Ordering::SeqCst);
    let second = cpu::start(1) == 0;
    RAISE_AT.store((edu.base + REG_RAISE) as u64, Ordering::SeqCst);
    if let Some(msix) = find_table()? {
        // The second CPU writes it from now on.
        TABLE.1.store(msix.vectors as u64, Ordering::SeqCst);
        TABLE.0.store(msix.table as u64, Ordering::SeqCst);
    }
    println!("dma beat 0: seed={seed} ops={ops}, a second CPU: {second}");
    let mut random = Random::new(seed, 0);
    let mut commands = 0;
    for number in 1..=ops {
        commands += operate(&mut random, &mut its, edu.function.0.into());
        edu.raise(1);
        cpu::give_way();
        // What has come in is taken, whatever it is.
        cpu::unmask();
        cpu::mask();
        if number % ANEW == 0 {
            its = Its::start(memory::ITS);
            its.route(edu.function.0.into(), 0, 0, its::FIRST_LPI)?;
        }
        if number % (ops / 10).max(1) == 0 {
            println!("dma beat {number}: {commands} commands, {} LPIs", lpis(0));
        }
    }
    OVER.store(true, Ordering::SeqCst);
    its::clear(memory::ITS.configuration(), 1 << 13);
    let mut its = start_messages(&devices)?;
    its.run(&[command::invall(0)])?;
    for (index, edu) in devices.iter().enumerate() {
        its.configure(its::FIRST_LPI + u32::try_from(index).unwrap_or(0), true);
        its.run(&[command::invall(0)])?;
        edu.acknowledge(u32::MAX);
        cpu::sleep_us(1_000);
        let before = lpis(index);
        edu.raise(1);
        await_lpis(index, before + 1)?;
        edu.acknowledge(1);
    }
    println!(
        "dma beat {ops}: {} writes of an MSI-X table meanwhile",
        REWRITTEN.load(Ordering::SeqCst)
    );
    Ok(Summary::new(&[
        ("seed", seed),
        ("ops", ops),
        ("commands", commands),
        ("sent", SENT.load(Ordering::SeqCst) + ops),
        ("lpis", lpis(0)),
        ("strange", RECEIVED.strange.load(Ordering::SeqCst)),
    ]))
}

/// One operation; returns how many commands it gave.
fn operate(random: &mut Random, its: &mut Its, device: u32) -> u64 {
    match random.below(12) {
        0 | 1 => batch(random, its, |random| {
            [random.bits(), random.bits(), random.bits(), random.bits()]
        }),
        2..=4 => batch(random, its, |random| plausible(random, device)),
        // The event of the message that is under way comes and goes.
        5..=7 => {
            for _ in 0..16 {
                its.add(command::about(command::DISCARD, device, 0));
                its.add(command::mapti(device, 0, its::FIRST_LPI, 0));
            }
            its.add(command::about(command::INT, device, 0));
            // Whether it is stuck shows when it is set up anew.
            its.ring();
            33
        }
        8 => {
            let at = ITS + usize::try_from(random.below(0x2_0000)).unwrap_or(0);
            let value = random.bits();
            access(random, at, value);
            0
        }
        9 => {
            let (register, value) = match random.below(5) {
                0 => (CWRITER, random.bits()),
                1 => (CBASER, table(random)),
                2 => (
                    BASER + 8 * usize::try_from(random.below(8)).unwrap_or(0),
                    table(random),
                ),
                3 => (CREADR, random.bits()),
                _ => (CTLR, random.below(4)),
            };
            if random.one_in(2) {
                mmio::write32(ITS + CTLR, 0);
            }
            access(random, ITS + register, value);
            mmio::write32(ITS + CTLR, 1);
            0
        }
        10 => {
            let at = memory::ITS.configuration() + random.below(1 << 13);
            let byte = random.of(&[0, 0xa0, 0xa1, 0xff, 1_u8]);
            mmio::write8(usize::try_from(at).unwrap_or(0), byte);
            its.add(command::invall(u16::try_from(random.below(4)).unwrap_or(0)));
            its.ring();
            1
        }
        _ => {
            // All of the queue at once, the same again and again, or what was left there.
            let write = random.below(its::QUEUE_BYTES) & !(its::COMMAND_BYTES - 1);
            mmio::write64(ITS + CWRITER, write);
            its::QUEUE_BYTES / its::COMMAND_BYTES / 2
        }
    }
}

fn batch(random: &mut Random, its: &mut Its, mut one: impl FnMut(&mut Random) -> Command) -> u64 {
    let count = 1 + random.below(64);
    for _ in 0..count {
        let command = one(random);
        its.add(command);
    }
    its.ring();
    count
}

/// A command that could be right.
fn plausible(random: &mut Random, device: u32) -> Command {
    let device = if random.one_in(4) {
        random.word()
    } else {
        device
    };
    let event = u32::try_from(random.below(70)).unwrap_or(0);
    let event = if random.one_in(8) {
        random.word()
    } else {
        event
    };
    let lpi = match random.below(4) {
        0 => random.word(),
        1 => u32::try_from(random.below(16)).unwrap_or(0),
        _ => its::FIRST_LPI + u32::try_from(random.below(40)).unwrap_or(0),
    };
    let collection = u16::try_from(random.below(70)).unwrap_or(0);
    let cpu = random.below(3);
    match random.below(12) {
        0 => command::mapd(
            device,
            memory::ITS.events(random.below(16)),
            1 + random.below(32),
        ),
        1 => command::mapd(
            device,
            table(random) & 0xf_ffff_ffff_ff00,
            1 + random.below(16),
        ),
        2 => command::unmapd(device),
        3 => command::mapc(
            collection,
            if random.one_in(4) {
                random.below(1 << 20)
            } else {
                cpu
            },
        ),
        4 | 5 => command::mapti(device, event, lpi, collection),
        6 => command::movi(device, event, collection),
        7 => command::about(command::INT, device, event),
        8 => command::about(command::CLEAR, device, event),
        9 => command::about(command::INV, device, event),
        // MOVALL.
        10 => [0x0e, 0, cpu << 16, random.below(4) << 16],
        _ => command::sync(random.below(4)),
    }
}

/// An address that is no place for a table, with whatever else is in such a register.
fn table(random: &mut Random) -> u64 {
    let address = random.of(&[
        UART as u64,
        ITS as u64,
        0,
        0x4000_0000,
        1 << 40,
        0xf_ffff_f000,
        0x3fff_f000,
    ]);
    let flags = random.bits() & !0xffff_ffff_f000;
    address | flags | 1 << 63 | random.below(256)
}

fn access(random: &mut Random, at: usize, value: u64) {
    let width = random.below(4);
    let at = at & !((1 << width) - 1);
    attempt(|| {
        if random.one_in(2) {
            crate::config::write(at, width, value);
        } else {
            crate::config::read(at, width);
        }
    });
}
