//! Registers of other devices by DMA: of the guest's own ones where that is granted, and of no others.

use power_guests::edu::{Direction, Edu};
use power_guests::options::Options;
use power_guests::pci::{Function, MASTER, MEMORY};
use power_guests::tce::{self, READ, WRITE};
use power_guests::{cpu, mmio, println, rtas, wait};

use crate::memory::{self, LIST, TARGET};
use crate::{Failure, fail};

const RIGHTS: u64 = READ | WRITE;
/// Bus addresses: of memory, and of the registers.
const TO: u64 = 0x5000;
const PEER: u64 = 0x9000;
/// What an `edu` says that it is, in the order of the bus, which is not a CPU's that is little-endian; and what its
/// liveness register turns over.
const IDENTITY: u64 = 0xed00_0001;
const VALUE: u32 = 0x1234_5678;
const LIVENESS: u64 = 4;

/// With `other=N` an `edu` of the guest's own behind host bridge N, and `foreign=N` one of another VM's; with
/// `granted=0` the guest's own may not be reached either.
pub(crate) fn run(edu: Edu, bridge: u64, options: Options) -> Result<(), Failure> {
    let window = tce::default_window(bridge);
    let number = |name| options.number(name).unwrap_or(0);
    let other = Function::new(number("other"), 0, 0);
    let Some(own) = Edu::open(other) else {
        return Err("there is no other edu".into());
    };
    let registers = other.bar();
    // Bus addresses of BARs are the same behind each bridge.
    let foreign = registers - number("other") * (1 << 31) + number("foreign") * (1 << 31);
    for (tce, what) in [
        (foreign, "registers of another VM's"),
        (foreign + 0x4_0000, "its buffer"),
    ] {
        if tce::put(window, PEER, tce | RIGHTS) == 0 {
            return fail(
                "an entry of another VM's device is taken",
                [tce, what.len() as u64],
            );
        }
    }
    memory::write(LIST, (TARGET | RIGHTS).to_be());
    memory::write(LIST + 8, (foreign | RIGHTS).to_be());
    if tce::put_list(window, PEER, LIST, 2) == 0 || tce::get(window, PEER) != Ok(0) {
        return fail("a list with another VM's device is taken", [foreign, 0]);
    }
    let taken = tce::put(window, PEER, registers | RIGHTS) == 0;
    if number("granted") == 0 {
        if taken {
            return fail("registers are reached without a grant", [registers, 0]);
        }
        println!("dma verdict: peer ok: refused=1");
        return Ok(());
    }
    if !taken || tce::put(window, TO, TARGET | RIGHTS) != 0 {
        return fail("what is granted is refused", [registers, 0]);
    }
    let identity = || {
        memory::write(TARGET, 0);
        edu.dma(Direction::Read, PEER, 0, 4);
        edu.dma(Direction::Write, TO, 0, 4);
        memory::read(TARGET) & 0xffff_ffff
    };
    let read = identity();
    if read != IDENTITY {
        return fail("DMA does not read the registers", [read, registers]);
    }
    // And writes: what is in the buffer goes to a register that turns its bits over.
    memory::write(TARGET, VALUE.swap_bytes().into());
    edu.dma(Direction::Read, TO, 8, 4);
    edu.dma(Direction::Write, PEER + LIVENESS, 8, 4);
    let live = mmio::read32(registers + LIVENESS);
    if live != !VALUE {
        return fail("DMA does not write the registers", [live.into(), 0]);
    }
    // As long as they answer.
    other.write(4, 2, MASTER);
    let read = identity();
    if read == IDENTITY {
        return fail("registers are reached that do not answer", [read, 0]);
    }
    other.write(4, 2, MASTER | MEMORY);
    let again = identity();
    if again != IDENTITY || !own.answers() {
        return fail("registers that answer again are not reached", [again, 0]);
    }
    // In place of memory, and memory in place of them.
    let exchanged = [
        tce::put(window, PEER, TARGET | RIGHTS),
        tce::put(window, PEER, registers | READ),
    ];
    if exchanged != [0, 0] || identity() != IDENTITY {
        return fail("registers do not take the place of memory", [registers, 0]);
    }
    if tce::put(window, PEER, 0) != 0 || identity() == IDENTITY {
        return fail(
            "registers are reached by an entry that is gone",
            [registers, 0],
        );
    }
    println!("dma verdict: peer ok: read=2 written=1 silent=1 foreign=3");
    Ok(())
}

/// What is in a connector.
const GET_SENSOR: u32 = 0x201d;
const ENTITY: u32 = 9003;
/// How long the slot must stay as it is, in microseconds.
const PATIENCE_US: u64 = 60_000_000;

/// With `other=N` an `edu` of the guest's own behind host bridge N, whose registers it may reach by DMA: until that
/// bridge is taken away, and again when it is given back and an entry is written anew.
pub(crate) fn orphan(edu: Edu, bridge: u64, options: Options) -> Result<(), Failure> {
    let window = tce::default_window(bridge);
    let number = options.number("other").unwrap_or(0);
    let other = Function::new(number, 0, 0);
    let Some(own) = Edu::open(other) else {
        return Err("there is no other edu".into());
    };
    let registers = other.bar();
    // Two entries, by two calls; one of memory between them stays.
    memory::write(LIST, (registers | RIGHTS).to_be());
    memory::write(LIST + 8, (TARGET | RIGHTS).to_be());
    let put = [
        tce::put(window, PEER, registers | RIGHTS),
        tce::put_list(window, PEER + 0x1000, LIST, 2),
        tce::put(window, TO, TARGET | RIGHTS),
    ];
    if put != [0; 3] {
        return fail("what is granted is refused", [registers, 0]);
    }
    let identity = |at| {
        memory::write(TARGET, 0);
        edu.dma(Direction::Read, at, 0, 4);
        edu.dma(Direction::Write, TO, 0, 4);
        memory::read(TARGET) & 0xffff_ffff
    };
    let both = || [identity(PEER), identity(PEER + 0x1000)];
    if both() != [IDENTITY; 2] {
        return fail("DMA does not read the registers", [registers, 0]);
    }
    println!("dma orphan: both entries lead to the other device's registers");
    let slot = 0x4000_0000 | (number as u32) << 16;
    let until = |state| {
        let end = cpu::now() + cpu::ticks(PATIENCE_US);
        while rtas::service(0, GET_SENSOR, &[ENTITY, slot]) != [0, state] {
            if cpu::now() > end {
                return fail("the slot stays as it is", [u64::from(slot), 0]);
            }
            wait::until(cpu::now() + cpu::ticks(1000));
        }
        Ok(())
    };
    until(0)?;
    let left = [PEER, PEER + 0x1000, PEER + 0x2000].map(|at| tce::get(window, at));
    if left != [Ok(0), Ok(0), Ok(TARGET | RIGHTS)] {
        return fail(
            "entries of a device that is away",
            [left[0].unwrap_or(1), left[2].unwrap_or(1)],
        );
    }
    if both().contains(&IDENTITY) {
        return fail("registers of a device that is away are reached", [0; 2]);
    }
    if tce::put(window, PEER, registers | RIGHTS) == 0 {
        return fail("an entry of a device that is away is taken", [registers, 0]);
    }
    println!("dma orphan: nothing leads to registers that are away");
    until(1)?;
    other.write(4, 2, MASTER | MEMORY);
    if !own.answers() || both().contains(&IDENTITY) {
        return fail("an entry comes back by itself, or no device", [0; 2]);
    }
    if tce::put(window, PEER, registers | RIGHTS) != 0 || identity(PEER) != IDENTITY {
        return fail("registers that are back are not reached", [registers, 0]);
    }
    println!("dma verdict: orphan ok: reached=2 gone=2 kept=1 again=1");
    Ok(())
}
