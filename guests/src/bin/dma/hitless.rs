//! A live stream that goes back and forth between bypass and stage 1, with messages and DMA all the time.
//!
//! Stage 1 maps what is used to itself, so that every access has the same end under both. One that is lost, goes
//! elsewhere or leaves an event met a state that is neither.

use core::sync::atomic::{AtomicU64, Ordering};

use guests::edu::{BUFFER, Direction};
use guests::options::Options;
use guests::smmu::{STE_ABORT, STE_BYPASS};
use guests::{cpu, println};

use crate::memory::{self, SOURCE, TARGET};
use crate::{Devices, Failure, ROLE, ROLE_TRAFFIC, Summary, Verdict, lpis, start_messages};

/// Messages that the second CPU is to have sent.
static WANTED: AtomicU64 = AtomicU64::new(0);
/// How far it is; [`LOST`] when one of them did not come.
static SENT: AtomicU64 = AtomicU64::new(0);
static MOVED: AtomicU64 = AtomicU64::new(0);
const LOST: u64 = u64::MAX;
/// DMAs there and back, each of which takes 200 ms.
const TRIPS: u64 = 2;
const PATIENCE_US: u64 = 500_000;

/// Sends messages, one after the other, then moves data.
pub(crate) fn second_cpu() -> ! {
    let sent = traffic().unwrap_or(LOST);
    MOVED.store(sent, Ordering::SeqCst);
    loop {
        cpu::wait();
    }
}

fn traffic() -> Option<u64> {
    let devices = Devices::open().ok()?;
    let edu = devices.first();
    let wanted = WANTED.load(Ordering::SeqCst);
    let before = lpis(0);
    for number in 1..=wanted {
        // Short sleeps, of other lengths each time: where CPUs share a host thread, their ends are where this one
        // cuts into what the other does.
        cpu::sleep_us(1 + number % 23);
        edu.raise(1);
        let end = cpu::now() + cpu::ticks(PATIENCE_US);
        while lpis(0) < before + number && cpu::now() < end {
            cpu::sleep_us(2);
        }
        edu.acknowledge(1);
        if lpis(0) < before + number {
            SENT.store(LOST, Ordering::SeqCst);
            return None;
        }
        SENT.store(number, Ordering::SeqCst);
    }
    for trip in 0..TRIPS {
        memory::fill(SOURCE, BUFFER, trip);
        memory::fill_with(TARGET, BUFFER, 0);
        edu.transfer(Direction::Read, SOURCE, 0, BUFFER).ok()?;
        edu.transfer(Direction::Write, TARGET, 0, BUFFER).ok()?;
        if memory::differs(SOURCE, TARGET, BUFFER).is_some() {
            return None;
        }
    }
    Some(TRIPS)
}

pub(crate) fn run(options: &Options) -> Verdict {
    let messages = options.number("messages").unwrap_or(2_000);
    // The control: an aborting entry in between is noticed.
    let spoil = options.number("spoil").unwrap_or(0) != 0;
    let devices = Devices::open()?;
    let edu = devices.first();
    let stream = u32::from(edu.function.0);
    let mut smmu = crate::smmu::start(&devices)?;
    smmu.map(SOURCE, SOURCE)?;
    smmu.map(TARGET, TARGET)?;
    let _its = start_messages(&devices)?;
    WANTED.store(messages, Ordering::SeqCst);
    ROLE.store(ROLE_TRAFFIC, Ordering::SeqCst);
    if cpu::start(1) != 0 {
        return Err("there is no second CPU".into());
    }
    let mut switches = 0_u64;
    cpu::unmask();
    while MOVED.load(Ordering::SeqCst) == 0 {
        smmu.set_stream(stream, STE_BYPASS)?;
        if spoil && switches.is_multiple_of(16) {
            smmu.set_stream(stream, STE_ABORT)?;
        }
        smmu.attach(stream)?;
        switches += 2;
    }
    cpu::mask();
    let (sent, moved) = (SENT.load(Ordering::SeqCst), MOVED.load(Ordering::SeqCst));
    if sent != messages || moved != TRIPS {
        return Err(Failure(
            "something was lost: messages, trips, switches",
            [sent, moved, switches],
        ));
    }
    if let Some(event) = smmu.event() {
        println!("dma event: {:#x?}", event.0);
        return Err("an access met an entry that is neither".into());
    }
    Ok(Summary::new(&[
        ("messages", sent),
        ("trips", moved),
        ("switches", switches),
    ]))
}
