//! Configuration space at random: every width, every offset, own functions and others, there or not.

use guests::edu::REG_SCRATCH;
use guests::options::Options;
use guests::pci::{BAR0, COMMAND, Function, INTERRUPT_LINE};
use guests::platform::{ECAM, PCI_WINDOW, PCI_WINDOW_BYTES};
use guests::random::Random;
use guests::{mmio, println};

use crate::memory::{self, BYSTANDER};
use crate::{Devices, Failure, Summary, Verdict, attempt, await_lpis, lpis, start_messages};

/// Buses whose space is tried: those of the guest's host bridge, and some after.
const BUSES: u64 = 18;
/// The capability ID of power management.
const CAP_POWER: u8 = 0x01;
const SALT: u64 = 99;

pub(crate) fn run(options: &Options) -> Verdict {
    let seed = options.number("seed").unwrap_or(1);
    let ops = options.number("ops").unwrap_or(100_000);
    let devices = Devices::open()?;
    let _its = start_messages(&devices)?;
    memory::fill(BYSTANDER, 0x1000, SALT);
    println!("dma beat 0: seed={seed} ops={ops}");
    let mut random = Random::new(seed, 0);
    let (mut reads, mut writes, mut aborted, mut used) = (0, 0, 0, 0);
    for number in 1..=ops {
        let function = function(&mut random, &devices);
        let at = function.config() + offset(&mut random);
        let width = random.below(4);
        let at = at & !((1 << width) - 1);
        let value = value(&mut random);
        let done = if random.one_in(3) {
            reads += 1;
            attempt(|| read(at, width)).map(|_| ())
        } else {
            writes += 1;
            attempt(|| write(at, width, value))
        };
        aborted += u64::from(done.is_none());
        // The device is used meanwhile, wherever it is now.
        if random.one_in(32) && use_device(&mut random, &devices).is_some() {
            used += 1;
        }
        if number % (ops / 10).max(1) == 0 {
            println!("dma beat {number}: {aborted} aborts, {used} uses");
        }
    }
    if memory::spoilt(BYSTANDER, 0x1000, SALT).is_some() {
        return Err("a page changed that nobody wrote to".into());
    }
    // All is as it was, once it is set up anew.
    for edu in devices.iter() {
        edu.function.command(0);
        if let Some(at) = edu.function.capability(CAP_POWER) {
            edu.function.write16(at + 4, 0);
        }
        if let Some(msi) = edu.msi() {
            msi.disable();
        }
    }
    let again = Devices::open()?;
    if again.count() != devices.count() {
        return Err(Failure(
            "devices are gone: before, after",
            [devices.count(), again.count(), 0],
        ));
    }
    let _its = start_messages(&again)?;
    for (index, edu) in again.iter().enumerate() {
        edu.acknowledge(u32::MAX);
        crate::probe::round_trip(edu, index as u64)?;
        let before = lpis(index);
        edu.raise(1);
        await_lpis(index, before + 1)?;
    }
    Ok(Summary::new(&[
        ("seed", seed),
        ("reads", reads),
        ("writes", writes),
        ("aborts", aborted),
        ("uses", used),
    ]))
}

fn function(random: &mut Random, devices: &Devices) -> Function {
    let any = |random: &mut Random| u16::try_from(random.below(BUSES << 8)).unwrap_or(0);
    match random.below(8) {
        0 => Function(any(random)),
        1 => Function(any(random) & 0xff),
        2 => Function(0),
        _ => {
            let which = random.below(devices.count());
            let which = usize::try_from(which).unwrap_or(0);
            devices
                .iter()
                .nth(which)
                .unwrap_or(devices.first())
                .function
        }
    }
}

fn offset(random: &mut Random) -> usize {
    let chosen = [
        COMMAND,
        BAR0,
        BAR0 + 4,
        0x30,
        0x34,
        INTERRUPT_LINE,
        0x40,
        0x42,
        0x44,
        0x48,
        0x4c,
    ];
    let any = match random.below(4) {
        0 => random.below(4096),
        1 | 2 => random.below(256),
        _ => random.of(&chosen) as u64 + random.below(4),
    };
    usize::try_from(any).unwrap_or(0)
}

fn value(random: &mut Random) -> u64 {
    match random.below(6) {
        0 => u64::MAX,
        1 => 0,
        2 => 1 << random.below(64),
        // An address in the window, in both halves: for BARs.
        3 => {
            let offset = random.below(PCI_WINDOW_BYTES as u64) & !0xf_ffff;
            let address = PCI_WINDOW as u64 + offset;
            address | address << 32
        }
        // Registers, memory.
        4 => random.of(&[
            ECAM as u64,
            0x0800_0000,
            0x0808_0000,
            0x4000_0000,
            BYSTANDER,
        ]),
        _ => random.bits(),
    }
}

pub(crate) fn read(at: usize, width: u64) -> u64 {
    match width {
        0 => mmio::read8(at).into(),
        1 => mmio::read16(at).into(),
        2 => mmio::read32(at).into(),
        _ => mmio::read64(at),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "random numbers, cut on purpose"
)]
pub(crate) fn write(at: usize, width: u64, value: u64) {
    match width {
        0 => mmio::write8(at, value as u8),
        1 => mmio::write16(at, value as u16),
        2 => mmio::write32(at, value as u32),
        _ => mmio::write64(at, value),
    }
}

/// Accesses a device's scratch register where its BAR says it is, if that is in the window.
fn use_device(random: &mut Random, devices: &Devices) -> Option<()> {
    let function = devices.first().function;
    let base = function.read32(BAR0) & !0xf;
    let base = usize::try_from(base).unwrap_or(0);
    let fits = (PCI_WINDOW..PCI_WINDOW + PCI_WINDOW_BYTES - 0x10_0000).contains(&base);
    if !fits {
        return None;
    }
    let word = random.word();
    let at = base + REG_SCRATCH;
    attempt(|| {
        mmio::write32(at, word);
        mmio::read32(at)
    })?;
    Some(())
}
