//! What a guest may try against its SMMU, one attack after the other, each with what must become of it: the code of the
//! error, the record, or nothing at all. After each, the SMMU is set up again, data goes by its stage 1, and a page
//! that nobody wrote to is as it was.
//!
//! A second CPU, if there is one, rewrites queues and tables or rings bells in those that say so.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guests::edu::{BUFFER, Direction};
use guests::options::Options;
use guests::platform::{GICD, ITS, SMMU, UART};
use guests::smmu::{
    self, ASID, CMDQ_BASE, CMDQ_CONS, CMDQ_PROD, CMDQEN, CR0, EVENTQ_BASE, EVENTQ_CONS,
    EVENTQ_PROD, EVENTQEN, Fault, GBPA, GERROR, GERRORN, QUEUE_BITS, SMMUEN, STE_BYPASS,
    STE_STAGE_1, STRTAB_BASE, STRTAB_BASE_CFG, Smmu, command,
};
use guests::{cpu, mmio, println};

use crate::memory::{self, BIG_COMMANDS, BIG_EVENTS, BYSTANDER};
use crate::smmu::{C_BAD_STE, F_TRANSLATION, FEW, NOWHERE};
use crate::{Devices, Failure, ROLE, ROLE_ATTACKS, Summary, Verdict};

const SALT: u64 = 47;
/// Everything on.
const ON: u32 = SMMUEN | CMDQEN | EVENTQEN;
const ILLEGAL: u32 = 1;
const ABORTED: u32 = 2;
/// `GERROR`: the event queue cannot be written.
const EVENTQ_ABT_ERR: u32 = 1 << 2;
/// `GERROR`: a message was taken by nothing: of a `CMD_SYNC`, of a record, of an error.
const SYNC_ABORTED: u32 = 1 << 4;
const EVENT_ABORTED: u32 = 1 << 5;
const GERROR_ABORTED: u32 = 1 << 7;
const F_STE_FETCH: u64 = 0x03;
const C_BAD_STREAMID: u64 = 0x02;
const F_CD_FETCH: u64 = 0x09;
const C_BAD_CD: u64 = 0x0a;
const F_WALK_EABT: u64 = 0x0b;
const F_ADDR_SIZE: u64 = 0x11;
/// Where a guest's tables and queues have no business: registers, the window below RAM, another VM's place, the end
/// of the address space and beyond.
const ELSEWHERE: [u64; 8] = [
    UART as u64 & !0xffff,
    GICD as u64,
    ITS as u64,
    SMMU as u64,
    0x2000_0000,
    0x80_0000_0000 - 0x1_0000,
    1 << 40,
    0xf_ffff_ffff_0000,
];

/// The window for messages, in which devices have the doorbell.
const WINDOW: u64 = GICD as u64;
/// What the second CPU does.
static SECOND: AtomicU64 = AtomicU64::new(REST);
const REST: u64 = 0;
/// It writes into the command queue and the stream table.
const SCRIBBLE: u64 = 1;
/// It rings every bell and reads every register.
const RING: u64 = 2;
static OVER: AtomicBool = AtomicBool::new(false);
static TURNS: AtomicU64 = AtomicU64::new(0);

pub(crate) fn second_cpu() -> ! {
    let mut turn = 0_u64;
    while !OVER.load(Ordering::SeqCst) {
        turn = turn.wrapping_add(1);
        match SECOND.load(Ordering::SeqCst) {
            SCRIBBLE => {
                let value = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                memory::write(
                    memory::SMMU.commands() + 8 * (turn % 512),
                    value & !0xff | 0x46,
                );
                memory::write(memory::SMMU.streams() + 64 * (turn % 256) + 16, value);
            }
            RING => {
                smmu::write(CMDQ_PROD, smmu::read(CMDQ_PROD));
                smmu::write(EVENTQ_CONS, smmu::read(EVENTQ_PROD));
                smmu::write(GERRORN, smmu::read(GERROR));
                let _ = smmu::read(usize::try_from(turn % 0x40).unwrap_or(0) * 4);
            }
            _ => cpu::sleep_us(1_000),
        }
        TURNS.fetch_add(1, Ordering::SeqCst);
        cpu::give_way();
    }
    loop {
        cpu::wait();
    }
}

/// An attack: with the SMMU as it was set up; what fails is what should have come, and did not.
type Attack = fn(&mut Smmu, &Devices) -> Result<(), Failure>;

const ATTACKS: [(&str, u64, Attack); 16] = [
    ("command queues elsewhere", REST, command_queues_elsewhere),
    ("stream tables elsewhere", REST, stream_tables_elsewhere),
    (
        "level-2 stream tables elsewhere",
        REST,
        second_levels_elsewhere,
    ),
    ("event queues elsewhere", REST, event_queues_elsewhere),
    ("context descriptors elsewhere", REST, descriptors_elsewhere),
    ("stage-1 tables elsewhere", REST, tables_elsewhere),
    (
        "an event queue over the command queue",
        REST,
        events_over_commands,
    ),
    ("every opcode", REST, every_opcode),
    ("reserved bits of commands and entries", REST, reserved_bits),
    ("a producer beyond a lap", REST, beyond_a_lap),
    ("queues of 2^19 entries filled at once", REST, all_at_once),
    ("enables in a storm", REST, enables_in_a_storm),
    ("entries in a storm", REST, entries_in_a_storm),
    ("messages elsewhere", REST, messages_elsewhere),
    (
        "queues and tables that change as they are read",
        SCRIBBLE,
        entries_in_a_storm,
    ),
    ("every vCPU at every bell", RING, enables_in_a_storm),
];

pub(crate) fn run(_: &Options) -> Verdict {
    let devices = Devices::open()?;
    memory::fill(BYSTANDER, BUFFER, SALT);
    ROLE.store(ROLE_ATTACKS, Ordering::SeqCst);
    let second = cpu::start(1) == 0;
    for (number, (name, second, attack)) in (1..).zip(ATTACKS) {
        let mut smmu = crate::smmu::start(&devices)?;
        let before = TURNS.load(Ordering::SeqCst);
        SECOND.store(second, Ordering::SeqCst);
        let outcome = attack(&mut smmu, &devices);
        SECOND.store(REST, Ordering::SeqCst);
        // Whatever it was at, it is over.
        cpu::sleep_us(3_000);
        let turns = TURNS.load(Ordering::SeqCst) - before;
        outcome.inspect_err(|_| println!("dma attack {number}: {name}"))?;
        smmu::write(GERRORN, smmu::read(GERROR));
        let _again = crate::smmu::start(&devices)?;
        crate::smmu::translated_round_trip(devices.first(), number)?;
        if memory::spoilt(BYSTANDER, BUFFER, SALT).is_some() {
            return Err("a page changed that nobody wrote to".into());
        }
        println!("dma attack {number}: {name}: held ({turns} turns of another vCPU)");
    }
    OVER.store(true, Ordering::SeqCst);
    Ok(Summary::new(&[
        ("attacks", ATTACKS.len() as u64),
        ("vcpus", 1 + u64::from(second)),
    ]))
}

/// The reason for which the command queue stands still; 0 when it does not.
fn reason() -> u32 {
    match (smmu::read(GERROR) ^ smmu::read(GERRORN)) & smmu::CMDQ_ERR {
        0 => 0,
        _ => smmu::read(CMDQ_CONS) >> 24 & 0x7f,
    }
}

fn expect(what: &'static str, found: u64, wanted: u64, at: u64) -> Result<(), Failure> {
    if found == wanted {
        Ok(())
    } else {
        Err(Failure(what, [found, wanted, at]))
    }
}

/// What a DMA of the first device leaves: the record's type, or 0.
fn record(smmu: &mut Smmu, devices: &Devices) -> Result<u64, Failure> {
    smmu.drain();
    let edu = devices.first();
    edu.transfer(Direction::Read, NOWHERE, 0, FEW)?;
    cpu::sleep_us(5_000);
    let event = smmu.event();
    smmu.drain();
    match event {
        Some(event) if event.stream() != u64::from(edu.function.0) => {
            Err(Failure("an event of another stream", [event.0[0], 0, 0]))
        }
        Some(event) => Ok(event.kind()),
        None => Ok(0),
    }
}

fn command_queues_elsewhere(_: &mut Smmu, _: &Devices) -> Result<(), Failure> {
    for at in ELSEWHERE {
        smmu::control(0)?;
        smmu::write64(CMDQ_BASE, at | 6);
        smmu::write(CMDQ_PROD, 0);
        smmu::write(CMDQ_CONS, 0);
        smmu::control(CMDQEN)?;
        smmu::write(CMDQ_PROD, 1);
        expect(
            "a command queue elsewhere",
            reason().into(),
            ABORTED.into(),
            at,
        )?;
        smmu::control(0)?;
        smmu::write(GERRORN, smmu::read(GERROR));
    }
    Ok(())
}

fn stream_tables_elsewhere(smmu: &mut Smmu, devices: &Devices) -> Result<(), Failure> {
    for at in ELSEWHERE {
        smmu::control(CMDQEN | EVENTQEN)?;
        smmu::write64(STRTAB_BASE, at);
        smmu::control(ON)?;
        let kind = record(smmu, devices)?;
        expect("a stream table elsewhere", kind, F_STE_FETCH, at)?;
    }
    Ok(())
}

/// `STRTAB_BASE_CFG`: two levels, split 8, 16 bits.
const TWO_LEVELS: u32 = 1 << 16 | 8 << 6 | 16;

fn second_levels_elsewhere(smmu: &mut Smmu, devices: &Devices) -> Result<(), Failure> {
    let level1 = memory::FREE;
    memory::fill_with(level1, 0x1000, 0);
    smmu::control(CMDQEN | EVENTQEN)?;
    smmu::write64(STRTAB_BASE, level1);
    smmu::write(STRTAB_BASE_CFG, TWO_LEVELS);
    smmu::control(ON)?;
    let kind = record(smmu, devices)?;
    expect("a stream without a level 2", kind, C_BAD_STREAMID, 0)?;
    for at in ELSEWHERE {
        memory::write(level1, at | 9);
        smmu.run(&[command::CFGI_ALL])?;
        let kind = record(smmu, devices)?;
        expect("a level-2 table elsewhere", kind, F_STE_FETCH, at)?;
    }
    // Spans that there are not.
    for span in [0, 10, 31] {
        memory::write(level1, memory::SMMU.streams() | span);
        smmu.run(&[command::CFGI_ALL])?;
        let kind = record(smmu, devices)?;
        expect("a span that is none", kind, C_BAD_STREAMID, span)?;
    }
    Ok(())
}

fn event_queues_elsewhere(smmu: &mut Smmu, devices: &Devices) -> Result<(), Failure> {
    for at in ELSEWHERE {
        smmu::control(CMDQEN | SMMUEN)?;
        smmu::write64(EVENTQ_BASE, at | 6);
        smmu::write(EVENTQ_PROD, 0);
        smmu::write(EVENTQ_CONS, 0);
        smmu::control(ON)?;
        devices.first().transfer(Direction::Read, NOWHERE, 0, FEW)?;
        cpu::sleep_us(5_000);
        let errors = (smmu::read(GERROR) ^ smmu::read(GERRORN)) & EVENTQ_ABT_ERR;
        expect(
            "an event queue elsewhere",
            errors.into(),
            EVENTQ_ABT_ERR.into(),
            at,
        )?;
        expect("a record there", smmu::read(EVENTQ_PROD).into(), 0, at)?;
        smmu::write(GERRORN, smmu::read(GERROR));
        // Commands go on.
        smmu.run(&[command::TLBI_ALL])?;
    }
    Ok(())
}

fn descriptors_elsewhere(smmu: &mut Smmu, devices: &Devices) -> Result<(), Failure> {
    let stream = devices.first().function.0.into();
    for at in ELSEWHERE {
        smmu.set_stream(stream, STE_STAGE_1 | at)?;
        let kind = record(smmu, devices)?;
        let wanted = match at {
            // Devices have the doorbell there: what it reads as is no descriptor.
            WINDOW => C_BAD_CD,
            // Beyond the address space the entry itself is wrong.
            _ if at >> 40 != 0 => C_BAD_STE,
            _ => F_CD_FETCH,
        };
        expect("a context descriptor elsewhere", kind, wanted, at)?;
    }
    Ok(())
}

fn tables_elsewhere(smmu: &mut Smmu, devices: &Devices) -> Result<(), Failure> {
    let stream = devices.first().function.0.into();
    for at in ELSEWHERE {
        smmu.describe_context(at);
        smmu.run(&[command::cfgi_cd(stream), command::TLBI_ALL])?;
        let kind = record(smmu, devices)?;
        let is_right = match at >> 40 {
            0 if at == WINDOW => kind == F_TRANSLATION,
            0 => kind == F_WALK_EABT,
            // Emulators and products differ in when they look at the size.
            _ => [C_BAD_CD, F_ADDR_SIZE, F_WALK_EABT].contains(&kind),
        };
        expect(
            "stage-1 tables elsewhere",
            is_right.into(),
            1,
            kind << 56 | at,
        )?;
    }
    Ok(())
}

fn events_over_commands(_: &mut Smmu, devices: &Devices) -> Result<(), Failure> {
    smmu::control(CMDQEN | SMMUEN)?;
    smmu::write64(
        EVENTQ_BASE,
        memory::SMMU.commands() | u64::from(QUEUE_BITS - 1),
    );
    smmu::write(EVENTQ_PROD, 0);
    smmu::write(EVENTQ_CONS, 0);
    smmu::control(ON)?;
    devices
        .first()
        .transfer(Direction::Read, NOWHERE, 0, BUFFER)?;
    cpu::sleep_us(5_000);
    for _ in 0..16 {
        smmu::write(CMDQ_PROD, smmu::read(CMDQ_PROD).wrapping_add(64) & 0x1ff);
        smmu::write(GERRORN, smmu::read(GERROR));
    }
    Ok(())
}

/// Commands that a guest has; all others are illegal.
const KNOWN: [u64; 13] = [1, 2, 3, 4, 5, 6, 0x10, 0x11, 0x12, 0x13, 0x30, 0x46, 0x100];

fn every_opcode(smmu: &mut Smmu, _: &Devices) -> Result<(), Failure> {
    for opcode in 0..=0xff {
        let outcome = smmu.run(&[[opcode, 0]]);
        let wanted = if KNOWN.contains(&opcode) { 0 } else { ILLEGAL };
        expect("an opcode", reason().into(), wanted.into(), opcode)?;
        match outcome {
            Ok(()) => {}
            Err(Fault::Commands(..)) => {
                // As Linux does: a SYNC in its place, then the acknowledgement.
                let consumed = smmu::read(CMDQ_CONS) & ((1 << QUEUE_BITS) - 1);
                let at = memory::SMMU.commands() + 16 * u64::from(consumed);
                memory::write(at, 0x46);
                memory::write(at + 8, 0);
                mmio::barrier();
                smmu::write(GERRORN, smmu::read(GERROR));
                smmu.flush()?;
            }
            Err(other) => return Err(other.into()),
        }
    }
    Ok(())
}

fn reserved_bits(smmu: &mut Smmu, devices: &Devices) -> Result<(), Failure> {
    let stream = u32::from(devices.first().function.0);
    // Bits that the manual gives no meaning, and words of stage 2, which there is none of.
    let first = STE_STAGE_1 | memory::SMMU.context();
    let words = [
        first,
        0xd4 | 1 << 44,
        u64::MAX,
        u64::MAX,
        u64::MAX,
        u64::MAX,
        u64::MAX,
        u64::MAX,
    ];
    smmu.write_entry(stream, words);
    let id = u64::from(stream) << 32;
    smmu.run(&[
        [id | 0x03 | 0x3ff << 12, u64::MAX],
        [id | 0x06 | 0xf_ffff << 12, u64::MAX],
        [0x10 | 0xffff_ffff << 32, u64::MAX],
        [0x11 | ASID << 48 | 0xffff << 32, u64::MAX],
        [0x30 | u64::MAX << 12, u64::MAX],
        [0x46 | 2 << 12 | 0xffff_ffff << 32, u64::MAX],
    ])?;
    crate::smmu::translated_round_trip(devices.first(), SALT)?;
    let kind = record(smmu, devices)?;
    expect("a stream with reserved bits", kind, F_TRANSLATION, 0)
}

fn beyond_a_lap(smmu: &mut Smmu, _: &Devices) -> Result<(), Failure> {
    let entries = 1_u32 << QUEUE_BITS;
    let consumed = smmu::read(CMDQ_CONS) & 0xf_ffff;
    for _ in 0..entries {
        smmu.add(command::SYNC);
    }
    mmio::barrier();
    // Further ahead than there are places: a lap is consumed, and no more.
    let beyond = consumed.wrapping_add(entries + entries / 2) & (2 * entries - 1);
    smmu::write(CMDQ_PROD, beyond);
    cpu::sleep_us(50_000);
    let moved = smmu::read(CMDQ_CONS).wrapping_sub(consumed) & (2 * entries - 1);
    expect(
        "more than a lap",
        u64::from(moved),
        entries.into(),
        beyond.into(),
    )?;
    expect("an error beyond a lap", reason().into(), 0, 0)
}

fn all_at_once(_: &mut Smmu, devices: &Devices) -> Result<(), Failure> {
    // What is more than was promised is cut.
    let promised = (smmu::read(smmu::IDR1) >> 21 & 31).min(19);
    let mut smmu = Smmu::start_with(
        memory::SMMU,
        (BIG_COMMANDS, promised),
        (BIG_EVENTS, promised),
    )?;
    smmu::control(0)?;
    smmu::write64(CMDQ_BASE, BIG_COMMANDS | 31);
    smmu::control(CMDQEN)?;
    for at in (BIG_COMMANDS..BIG_COMMANDS + (16 << 19)).step_by(16) {
        memory::write(at, 0x12 | ASID << 48);
        memory::write(at + 8, NOWHERE | 1);
    }
    for _ in 0..1 << promised {
        smmu.add(command::tlbi_va(ASID, NOWHERE));
    }
    smmu.flush()?;
    crate::smmu::prepare(&mut smmu, devices)?;
    Ok(())
}

fn enables_in_a_storm(smmu: &mut Smmu, _: &Devices) -> Result<(), Failure> {
    for turn in 0..2_000_u32 {
        smmu::write(CR0, turn.wrapping_mul(5) & ON);
        smmu::write(GBPA, 1 << 31 | (turn & 1) << 20);
        if turn % 16 == 0 {
            smmu.add(command::CFGI_ALL);
            smmu.ring();
        }
    }
    smmu::control(ON)?;
    Ok(())
}

fn entries_in_a_storm(smmu: &mut Smmu, devices: &Devices) -> Result<(), Failure> {
    let context = STE_STAGE_1 | memory::SMMU.context();
    let entries = [context, STE_BYPASS, 1, 0, 7 << 1 | 1, context | 1 << 59];
    for entry in entries.into_iter().cycle().take(1_200) {
        for edu in devices.iter() {
            let stream = edu.function.0.into();
            smmu.write_entry(stream, [entry, 0xd4, 0, 0, 0, 0, 0, 0]);
            smmu.add(command::cfgi_ste(stream));
        }
        smmu.ring();
        smmu::write(GERRORN, smmu::read(GERROR));
    }
    Ok(())
}

/// Both registers' messages go there.
fn send_to(at: u64) {
    smmu::write(smmu::IRQ_CTRL, 0);
    smmu::write64(smmu::GERROR_IRQ_CFG0, at);
    smmu::write64(smmu::EVENTQ_IRQ_CFG0, at);
    smmu::write(smmu::IRQ_CTRL, smmu::IRQS);
}

/// Errors that are active, which are acknowledged.
fn errors() -> u32 {
    let found = smmu::read(GERROR);
    let active = found ^ smmu::read(GERRORN);
    smmu::write(GERRORN, found);
    active
}

fn messages_elsewhere(smmu: &mut Smmu, devices: &Devices) -> Result<(), Failure> {
    if !smmu::has_messages() {
        return Err("the SMMU sends no messages".into());
    }
    // The control: memory takes one, four bytes of it.
    memory::write(memory::FREE, u64::MAX);
    smmu.run(&[command::sync_to(memory::FREE + 4, 0x1234)])?;
    let word = memory::read(memory::FREE);
    expect("a message to memory", word, 0x1234_ffff_ffff, 0)?;
    expect("an error of it", errors().into(), 0, 0)?;
    for at in ELSEWHERE {
        smmu.run(&[command::sync_to(at, 7)])?;
        let found = errors().into();
        expect("a wait's message elsewhere", found, SYNC_ABORTED.into(), at)?;
        send_to(at);
        let kind = record(smmu, devices)?;
        expect("a record beside it", kind, F_TRANSLATION, at)?;
        // A register keeps no address bits that were not promised: without any, nothing is sent.
        let wanted = if at << 24 == 0 {
            0
        } else {
            EVENT_ABORTED | GERROR_ABORTED
        };
        expect(
            "a record's message elsewhere",
            errors().into(),
            wanted.into(),
            at,
        )?;
        send_to(0);
    }
    Ok(())
}
