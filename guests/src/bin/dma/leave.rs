//! Queues longer than what a call of the hypervisor's does of them, by a guest that waits for their end and does nothing
//! meanwhile by which it would leave: it has no timer, and lets no interrupt in.
//!
//! Each stage has its line; what never comes to an end is a stage without one.

use core::sync::atomic::{AtomicU64, Ordering};

use guests::its::{self, Its};
use guests::options::Options;
use guests::platform::DOORBELL;
use guests::smmu::{self, ASID, CMDQ_PROD, QUEUE_BITS, Smmu, command};
use guests::{cpu, println, psci};

use crate::memory::{self, BIG_COMMANDS, BIG_EVENTS, FREE};
use crate::{Devices, Failure, ROLE, ROLE_LEAVES, Summary, Verdict, lpis};

/// Log2 of the queue's entries.
const COMMANDS: u32 = 10;
/// What is before the one that is waited for; as many of the ITS's.
const BEFORE: u64 = (1 << COMMANDS) - 2;
/// The SMMU's own messages: its DeviceID, one of its events, and the place of their LPI.
const OWN: u32 = 0xff00;
const EVENT: u32 = 1;
const PLACE: usize = 16;
/// How long a word is looked at.
const PATIENCE_US: u64 = 200_000;
/// What the second CPU is to write to `CMDQ_PROD`.
static PRODUCED: AtomicU64 = AtomicU64::new(0);

/// Rings, and is gone.
pub(crate) fn second_cpu() -> ! {
    let produced = PRODUCED.load(Ordering::SeqCst);
    smmu::write(CMDQ_PROD, u32::try_from(produced).unwrap_or(0));
    loop {
        psci::hvc(psci::CPU_OFF, [0; 3]);
    }
}

pub(crate) fn run(options: &Options) -> Verdict {
    let only = options.number("only");
    let wanted = |stage| only.is_none_or(|only| only == stage);
    let devices = Devices::open()?;
    let mut smmu = Smmu::start_with(
        memory::SMMU,
        (BIG_COMMANDS, COMMANDS),
        (BIG_EVENTS, QUEUE_BITS),
    )?;
    crate::smmu::prepare(&mut smmu, &devices)?;
    if !smmu::has_messages() || !Its::start_lpis(memory::ITS) {
        return Err("the SMMU sends no messages, or there are no LPIs".into());
    }
    let mut its = Its::start(memory::ITS);
    let lpi = its::FIRST_LPI + u32::try_from(PLACE).unwrap_or(0);
    its.route(OWN, PLACE as u64, EVENT, lpi)?;
    cpu::stop_timer();
    if wanted(1) {
        fill(&mut smmu, command::sync_to(FREE, 1));
        smmu.ring();
        let took = await_word(1)?;
        println!("dma beat 1: a word, after {took} ticks");
    }
    if wanted(2) {
        fill(&mut smmu, command::sync_to(FREE, 2));
        PRODUCED.store(smmu.produced().into(), Ordering::SeqCst);
        ROLE.store(ROLE_LEAVES, Ordering::SeqCst);
        if cpu::start(1) != 0 {
            return Err("there is no second CPU".into());
        }
        let took = await_word(2)?;
        println!("dma beat 2: a word that a CPU asked for which is gone, after {took} ticks");
    }
    if wanted(3) {
        fill(&mut smmu, command::sync_to(DOORBELL as u64, EVENT));
        smmu.ring();
        let times = await_message(1);
        println!("dma beat 3: a message, asleep {times} times");
    }
    if wanted(4) {
        let before = lpis(PLACE);
        for _ in 0..BEFORE {
            its.add(its::command::about(its::command::INV, OWN, EVENT));
        }
        its.add(its::command::about(its::command::INT, OWN, EVENT));
        its.ring();
        let times = await_message(before + 1);
        println!("dma beat 4: an ITS's message, asleep {times} times");
    }
    smmu.flush()?;
    let edu = devices.first();
    crate::smmu::translated_round_trip(edu, 1)?;
    Ok(Summary::new(&[("commands", BEFORE)]))
}

/// A queue of invalidations, and a last command.
fn fill(smmu: &mut Smmu, last: command::Command) {
    for _ in 0..BEFORE {
        smmu.add(command::tlbi_asid(ASID));
    }
    smmu.add(last);
}

/// Ticks until the word is there: what looks at it is the loop alone.
fn await_word(wanted: u64) -> Result<u64, Failure> {
    let start = cpu::now();
    let end = start + cpu::ticks(PATIENCE_US);
    while memory::read(FREE) & 0xffff_ffff != wanted {
        if cpu::now() >= end {
            let consumed = smmu::read(smmu::CMDQ_CONS);
            return Err(Failure(
                "a SYNC's word does not come: wanted, consumed",
                [wanted, consumed.into(), 0],
            ));
        }
    }
    Ok(cpu::now() - start)
}

/// Sleeps until so many have come; returns how often. Nothing but they, or what is none of the guest's business, wakes
/// it.
fn await_message(wanted: u64) -> u64 {
    let mut times = 0;
    while lpis(PLACE) < wanted {
        cpu::wait();
        times += 1;
        cpu::unmask();
        cpu::mask();
    }
    times
}
