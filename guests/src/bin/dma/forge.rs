//! Messages that are not the device's: numbers that it was not given, addresses that are no doorbell, and
//! plain DMA to the doorbell. None may become an interrupt, or reach anything else.

use core::sync::atomic::Ordering;

use guests::edu::{BUFFER, Direction};
use guests::options::Options;
use guests::platform::{DOORBELL, ECAM, GICD, GICR, ITS, PCI_WINDOW, SMMU, UART};
use guests::{cpu, println};

use crate::memory::{self, BYSTANDER, SOURCE};
use crate::{Devices, Failure, RECEIVED, Summary, Verdict, await_lpis, lpis, start_messages};

const SALT: u64 = 31;
/// `GICD_SETSPI_NSR`, which takes messages where a GIC has no ITS.
const SETSPI: usize = GICD + 0x40;
/// `GICR_SETLPIR`.
const SETLPI: usize = GICR + 0x40;
/// What is no doorbell.
const ELSEWHERE: [u64; 12] = [
    BYSTANDER,
    DOORBELL as u64 - 0x40,
    DOORBELL as u64 + 4,
    DOORBELL as u64 ^ 1 << 20,
    ITS as u64,
    SETSPI as u64,
    SETLPI as u64,
    UART as u64,
    SMMU as u64 + 0x20,
    ECAM as u64 + 0x3c,
    PCI_WINDOW as u64 + 4,
    !3,
];

pub(crate) fn run(options: &Options) -> Verdict {
    let numbers = options.number("numbers").unwrap_or(48);
    let devices = Devices::open()?;
    let _its = start_messages(&devices)?;
    memory::fill(BYSTANDER, BUFFER, SALT);
    let edu = devices.first();
    let msi = edu.msi().ok_or("edu has no MSI capability")?;
    let mut forged = 0;
    let mut send = |address: u64, data: u16| {
        msi.enable(address, data);
        edu.raise(1);
        edu.acknowledge(1);
        forged += 1;
    };
    // The control: it is the same way that a right one goes.
    send(DOORBELL as u64, 0);
    await_lpis(0, 1)?;
    for bit in 0..16 {
        send(DOORBELL as u64, 1 << bit);
        send(DOORBELL as u64, u16::MAX << bit & !1 | 2);
    }
    for address in ELSEWHERE {
        send(address, 0);
        send(address, 1);
    }
    settle();
    nothing_came(
        "a message with a number or an address that was not given",
        1,
    )?;
    println!("dma beat 1: {forged} messages sent");
    // What is written there says itself which event it is; who writes cannot be chosen. Where a DMA counts as
    // the device's own, its own event may come.
    msi.enable(DOORBELL as u64, 0);
    let mut written = 0;
    for number in 1..numbers {
        memory::write(
            SOURCE,
            if number % 8 == 7 {
                number << 13
            } else {
                number
            },
        );
        edu.transfer(Direction::Read, SOURCE, 0, 8)?;
        edu.transfer(Direction::Write, DOORBELL as u64, 0, 4)?;
        written += 1;
    }
    settle();
    nothing_came("plain DMA to the doorbell", 1)?;
    println!("dma beat 2: {written} numbers written to the doorbell");
    if let Some(at) = memory::spoilt(BYSTANDER, BUFFER, SALT) {
        return Err(Failure(
            "a message was written to memory",
            [at, memory::read(at), 0],
        ));
    }
    for (index, edu) in devices.iter().enumerate() {
        let before = lpis(index);
        edu.raise(1);
        await_lpis(index, before + 1)?;
        edu.acknowledge(1);
    }
    Ok(Summary::new(&[("forged", forged), ("written", written)]))
}

/// Lets come what may come.
fn settle() {
    cpu::unmask();
    cpu::sleep_us(5_000);
    cpu::mask();
}

/// The first device has had `wanted` messages, and nobody else any.
fn nothing_came(what: &'static str, wanted: u64) -> Result<(), Failure> {
    let strange = RECEIVED.strange.load(Ordering::SeqCst);
    let others: u64 = (1..crate::LPIS).map(lpis).sum();
    if strange + others > 0 || lpis(0) != wanted {
        return Err(Failure(what, [lpis(0), others, strange]));
    }
    Ok(())
}
