//! An SMMU of the guest's own: its stage 1 decides, its faults are told, its commands take effect.

use core::sync::atomic::Ordering;

use guests::edu::{BUFFER, Direction, Edu};
use guests::options::Options;
use guests::platform::{DOORBELL, SMMU_EVENT, SMMU_GERROR};
use guests::smmu::{
    self, ASID, CMDQEN, EVENTQEN, Event, SMMUEN, STE_ABORT, STE_BYPASS, Smmu, command,
};
use guests::{cpu, gic, mmio, println};

use crate::memory::{self, SOURCE, TARGET};
use crate::{
    Devices, Failure, RECEIVED, Summary, Verdict, attempt, await_lpis, lpis, shared, start_messages,
};

/// Where the source and the target are for the device: no address of the guest's.
const IO_SOURCE: u64 = 0x10_0000_0000;
const IO_TARGET: u64 = 0x20_1234_5000;
pub(crate) const F_TRANSLATION: u64 = 0x10;
pub(crate) const C_BAD_STE: u64 = 0x04;
/// Bytes of a DMA that is to be refused: each refused word is an event.
pub(crate) const FEW: u64 = 16;
/// A page that has no translation.
pub(crate) const NOWHERE: u64 = 0x30_0000_0000;
/// The window in which messages are written: one page table's worth, of which the doorbell is a page.
const WINDOW: core::ops::Range<u64> = 0x0800_0000..0x0810_0000;
const RUNS: usize = 64;

pub(crate) fn run(options: &Options) -> Verdict {
    if attempt(|| smmu::read(smmu::IDR0)).is_none() {
        return Err("there is no SMMU".into());
    }
    let devices = Devices::open()?;
    let edu = devices.first();
    let stream = u32::from(edu.function.0);
    let mut smmu = start(&devices)?;
    gic::enable_shared(SMMU_EVENT, gic::Trigger::Edge);
    gic::enable_shared(SMMU_GERROR, gic::Trigger::Edge);
    println!(
        "dma beat 1: IDR0 {:#x}, stream {stream:#x} attached",
        smmu::read(smmu::IDR0)
    );

    // Mapped: data goes by the guest's tables, in both directions.
    round_trip(edu, IO_SOURCE, IO_TARGET, 1)?;
    quiet(&mut smmu, "a DMA that is mapped")?;
    // What the guest's tables do not have is refused, though it is the guest's own memory.
    refused(&mut smmu, edu, Direction::Read, SOURCE, F_TRANSLATION)?;
    let event = refused(&mut smmu, edu, Direction::Write, TARGET, F_TRANSLATION)?;
    println!("dma event: {:#x?}", event.0);
    let wires = shared(SMMU_EVENT);
    if wires == 0 {
        return Err("the events came without their interrupt".into());
    }
    println!("dma beat 2: what is not mapped is refused, and told by {wires} interrupts");

    // Removed, and forgotten: the same DMA faults; mapped again, it does not.
    smmu.unmap(IO_TARGET)?;
    let event = refused(&mut smmu, edu, Direction::Write, IO_TARGET, F_TRANSLATION)?;
    println!(
        "dma event: type {:#x} stream {:#x} address {:#x} read {} stage 2 {} class {}",
        event.kind(),
        event.stream(),
        event.address(),
        event.is_read(),
        event.is_stage_2(),
        event.class()
    );
    smmu.map(IO_TARGET, TARGET)?;
    round_trip(edu, IO_SOURCE, IO_TARGET, 2)?;
    println!("dma beat 3: a mapping that is removed faults, put back it serves");

    // Messages go by stage 1, too. Where the device writes them: with policy `rmr`, the window's first page.
    let page = options.number("messages").unwrap_or(DOORBELL as u64);
    if !WINDOW.contains(&page) {
        smmu.map(page, page)?;
    }
    let _its = start_messages(&devices)?;
    let before = lpis(0);
    edu.raise(1);
    await_lpis(0, before + 1)?;
    edu.acknowledge(1);
    smmu.unmap(page)?;
    smmu.drain();
    edu.raise(1);
    edu.acknowledge(1);
    cpu::sleep_us(10_000);
    let without = lpis(0) - before - 1;
    smmu.map(page, page)?;
    smmu.run(&[command::tlbi_asid(ASID)])?;
    smmu.drain();
    println!("dma beat 4: a message by stage 1 arrives, without its page {without}");

    let stale = elsewhere(&mut smmu, edu)?;
    println!("dma messages: elsewhere they fault or are data, after a mapping is removed {stale}");
    states(&mut smmu, edu)?;
    println!("dma beat 5: abort, bypass, invalid and stage 1 follow each other");
    off_and_on(&mut smmu, edu)?;
    println!("dma beat 6: off, on, and what is while it is off");

    if options.number("ips").unwrap_or(0) != 0 {
        println!("dma beat 7: a context descriptor with IPS 6, and a DMA by it");
        smmu.widen_context(edu.function.0.into())?;
        edu.raise(1);
        edu.transfer(Direction::Read, IO_SOURCE, 0, FEW)?;
        return Ok(Summary::new(&[]));
    }
    let (one, many, entry) = costs(&mut smmu, stream)?;
    println!(
        "bench tlbi-sync {} {} {}",
        one[RUNS / 2],
        one[0],
        one[RUNS - 1]
    );
    println!(
        "bench tlbi-in-batch {} {} {}",
        many[RUNS / 2],
        many[0],
        many[RUNS - 1]
    );
    println!(
        "bench cfgi-ste {} {} {}",
        entry[RUNS / 2],
        entry[0],
        entry[RUNS - 1]
    );
    for (name, how) in [
        ("tlbi-sync-index", Wait::Index),
        ("tlbi-sync-word", Wait::Word),
    ] {
        let times = waits(&mut smmu, how)?;
        println!(
            "bench {name} {} {} {}",
            times[RUNS / 2],
            times[0],
            times[RUNS - 1]
        );
    }
    let fault = faults(&mut smmu, edu, page)?;
    println!(
        "bench fault-to-handler {} {} {}",
        fault[RUNS / 2],
        fault[0],
        fault[RUNS - 1]
    );
    round_trip(edu, IO_SOURCE, IO_TARGET, 3)?;
    quiet(&mut smmu, "the end")?;
    if options.number("leave").unwrap_or(0) == 0 {
        smmu::control(0)?;
    }
    Ok(Summary::new(&[
        ("events", shared(SMMU_EVENT)),
        ("gerrors", shared(SMMU_GERROR)),
        ("without_doorbell", without),
        ("tlbi_sync", one[RUNS / 2]),
        ("tlbi_in_batch", many[RUNS / 2]),
        ("cfgi_ste", entry[RUNS / 2]),
        ("fault", fault[RUNS / 2]),
    ]))
}

/// Translation on, with source, target and the message window mapped, and all devices attached.
pub(crate) fn start(devices: &Devices) -> Result<Smmu, Failure> {
    let mut smmu = Smmu::start(memory::SMMU)?;
    prepare(&mut smmu, devices)?;
    Ok(smmu)
}

pub(crate) fn prepare(smmu: &mut Smmu, devices: &Devices) -> Result<(), Failure> {
    smmu.map(IO_SOURCE, SOURCE)?;
    smmu.map(IO_TARGET, TARGET)?;
    for page in WINDOW.step_by(0x1000) {
        smmu.map(page, page)?;
    }
    for edu in devices.iter() {
        smmu.attach(edu.function.0.into())?;
    }
    Ok(())
}

/// A round trip by the guest's stage 1.
pub(crate) fn translated_round_trip(edu: Edu, salt: u64) -> Result<(), Failure> {
    round_trip(edu, IO_SOURCE, IO_TARGET, salt)
}

fn round_trip(edu: Edu, source: u64, target: u64, salt: u64) -> Result<(), Failure> {
    memory::fill(SOURCE, BUFFER, salt);
    memory::fill_with(TARGET, BUFFER, 0);
    edu.transfer(Direction::Read, source, 0, BUFFER)?;
    edu.transfer(Direction::Write, target, 0, BUFFER)?;
    match memory::differs(SOURCE, TARGET, BUFFER) {
        None => Ok(()),
        Some(at) => Err(Failure(
            "DMA by stage 1 lost data: where, salt",
            [at, salt, memory::read(at)],
        )),
    }
}

/// Messages to addresses of the guest's choice go where its tables lead: to the ITS by any address, to a fault, to
/// memory. Returns how many arrive by an address that led to the ITS when it was written and does not any more.
fn elsewhere(smmu: &mut Smmu, edu: Edu) -> Result<u64, Failure> {
    /// Another way to the doorbell.
    const ALIAS: u64 = 0x38_0000_0000;
    let offset = DOORBELL as u64 & 0xfff;
    let msi = edu.msi().ok_or("edu has no MSI capability")?;
    let send = |smmu: &mut Smmu, address: Option<u64>| {
        smmu.drain();
        if let Some(address) = address {
            msi.disable();
            msi.enable(address, 0);
        }
        let before = lpis(0);
        edu.raise(1);
        edu.acknowledge(1);
        cpu::unmask();
        cpu::sleep_us(10_000);
        cpu::mask();
        let event = smmu.event();
        smmu.drain();
        gic::enable_shared(SMMU_EVENT, gic::Trigger::Edge);
        (lpis(0) - before, event)
    };
    smmu.map(ALIAS, DOORBELL as u64)?;
    let (arrived, event) = send(smmu, Some(ALIAS + offset));
    if arrived != 1 || event.is_some() {
        return Err(Failure(
            "a message by an alias of the doorbell",
            [arrived, 0, 0],
        ));
    }
    let (arrived, event) = send(smmu, Some(NOWHERE + offset));
    let told = event.is_some_and(|event| {
        event.kind() == F_TRANSLATION && event.address() == NOWHERE + offset && !event.is_read()
    });
    if arrived != 0 || !told {
        return Err(Failure("a message to nowhere", [arrived, told.into(), 0]));
    }
    memory::fill_with(TARGET, BUFFER, u64::MAX);
    let (arrived, event) = send(smmu, Some(IO_TARGET));
    let written = memory::read(TARGET);
    if arrived != 0 || event.is_some() || written >> 32 != 0xffff_ffff || written == u64::MAX {
        return Err(Failure("a message to memory", [arrived, written, 0]));
    }
    // What was written when it led to the doorbell.
    let (arrived, _) = send(smmu, Some(ALIAS + offset));
    smmu.unmap(ALIAS)?;
    let (stale, _) = send(smmu, None);
    // Written again, it is what it leads to now.
    let (again, event) = send(smmu, Some(ALIAS + offset));
    if arrived != 1 || again != 0 || event.is_none() {
        return Err(Failure(
            "a message by an alias that was removed",
            [arrived, again, 0],
        ));
    }
    msi.enable(DOORBELL as u64, 0);
    Ok(stale)
}

/// A DMA that must do nothing but leave events, the first of which is returned.
fn refused(
    smmu: &mut Smmu,
    edu: Edu,
    way: Direction,
    address: u64,
    kind: u64,
) -> Result<Event, Failure> {
    smmu.drain();
    memory::fill_with(TARGET, BUFFER, 0x55);
    edu.transfer(way, address, 0, FEW)?;
    // The record may take a moment.
    let end = cpu::now() + cpu::ticks(200_000);
    let mut found = None;
    cpu::wait_until(end, || {
        found = found.or_else(|| smmu.event());
        found.is_some()
    });
    cpu::sleep_us(1_000);
    smmu.drain();
    gic::enable_shared(SMMU_EVENT, gic::Trigger::Edge);
    if way == Direction::Write
        && (0..FEW)
            .step_by(8)
            .any(|at| memory::read(TARGET + at) != 0x55)
    {
        return Err("a DMA that was to be refused has written".into());
    }
    let event = found.ok_or(Failure(
        "a refused DMA left no event: address",
        [address, 0, 0],
    ))?;
    let words = [event.0[0], event.0[1], event.0[2]];
    if event.kind() != kind || event.stream() != u64::from(edu.function.0) {
        return Err(Failure("an event of another kind or stream", words));
    }
    if kind == F_TRANSLATION {
        let is_right = event.is_read() == (way == Direction::Read)
            && !event.is_stage_2()
            && event.class() == 2
            && event.address() & !0xfff == address & !0xfff;
        if !is_right {
            return Err(Failure("an event that tells something else", words));
        }
    }
    Ok(event)
}

/// There is no event.
fn quiet(smmu: &mut Smmu, after: &'static str) -> Result<(), Failure> {
    cpu::sleep_us(1_000);
    match smmu.event() {
        None => Ok(()),
        Some(event) => {
            println!("dma event after {after}: {:#x?}", event.0);
            Err(Failure(
                "an event that nobody provoked",
                [event.0[0], event.0[1], event.0[2]],
            ))
        }
    }
}

/// Whether a DMA reaches the target at this address.
fn reaches(edu: Edu, address: u64) -> Result<bool, Failure> {
    memory::fill(SOURCE, FEW, 0x17);
    memory::fill_with(TARGET, BUFFER, 0);
    edu.transfer(Direction::Write, address, 0, FEW)?;
    Ok(memory::read(TARGET) != 0)
}

fn expect(what: &'static str, found: bool, wanted: bool) -> Result<(), Failure> {
    if found == wanted {
        Ok(())
    } else {
        Err(what.into())
    }
}

/// A stream's entry: each state in turn, with DMA.
fn states(smmu: &mut Smmu, edu: Edu) -> Result<(), Failure> {
    let stream = u32::from(edu.function.0);
    smmu.set_stream(stream, STE_ABORT)?;
    expect(
        "an aborting stream reached memory",
        reaches(edu, IO_TARGET)?,
        false,
    )?;
    expect(
        "an aborting stream reached memory",
        reaches(edu, TARGET)?,
        false,
    )?;
    quiet(smmu, "a stream that aborts in silence")?;
    smmu.set_stream(stream, STE_BYPASS)?;
    expect(
        "a bypassing stream did not reach memory",
        reaches(edu, TARGET)?,
        true,
    )?;
    quiet(smmu, "a stream that bypasses")?;
    smmu.set_stream(stream, 0)?;
    quiet(
        smmu,
        "an entry that is not valid, and that no device has met",
    )?;
    refused(smmu, edu, Direction::Write, TARGET, C_BAD_STE)?;
    smmu.attach(stream)?;
    expect(
        "an attached stream did not reach memory",
        reaches(edu, IO_TARGET)?,
        true,
    )?;
    refused(smmu, edu, Direction::Write, TARGET, F_TRANSLATION)?;
    Ok(())
}

/// Translation off: what becomes of transactions is `GBPA`'s. On again: stage 1.
fn off_and_on(smmu: &mut Smmu, edu: Edu) -> Result<(), Failure> {
    smmu::bypass(false)?;
    smmu::control(CMDQEN | EVENTQEN)?;
    expect(
        "a DMA past an SMMU that is off did not arrive",
        reaches(edu, TARGET)?,
        true,
    )?;
    smmu::bypass(true)?;
    expect(
        "a DMA arrived although GBPA aborts",
        reaches(edu, TARGET)?,
        false,
    )?;
    smmu.run(&[command::CFGI_ALL, command::TLBI_ALL])?;
    smmu::control(CMDQEN | EVENTQEN | SMMUEN)?;
    expect(
        "a DMA by stage 1 did not arrive",
        reaches(edu, IO_TARGET)?,
        true,
    )?;
    refused(smmu, edu, Direction::Write, NOWHERE, F_TRANSLATION)?;
    Ok(())
}

type Costs = [u64; RUNS];

/// Ticks of one invalidation with its SYNC, of one more in a batch, of one entry read anew.
fn costs(smmu: &mut Smmu, stream: u32) -> Result<(Costs, Costs, Costs), Failure> {
    const BATCH: usize = 64;
    let (mut one, mut many, mut entry) = ([0; RUNS], [0; RUNS], [0; RUNS]);
    for run in 0..RUNS {
        one[run] = measure(smmu, &[command::tlbi_va(ASID, NOWHERE)])?;
        let batch = [command::tlbi_va(ASID, NOWHERE); BATCH];
        many[run] = measure(smmu, &batch)?.saturating_sub(one[run]) / (BATCH as u64 - 1);
        entry[run] = measure(smmu, &[command::cfgi_ste(stream)])?;
    }
    one.sort_unstable();
    many.sort_unstable();
    entry.sort_unstable();
    Ok((one, many, entry))
}

/// How a driver waits for a `CMD_SYNC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// It reads `CMDQ_CONS`.
    Index,
    /// The SMMU writes zero over the command's first word, which the driver looks at. Without messages it reads
    /// `CMDQ_CONS`, too.
    Word,
}

/// Ticks of one invalidation with its SYNC, from the bell until the driver knows.
fn waits(smmu: &mut Smmu, how: Wait) -> Result<Costs, Failure> {
    let mut times = [0; RUNS];
    let by_word = how == Wait::Word && smmu::has_messages();
    for time in &mut times {
        smmu.add(command::tlbi_va(ASID, NOWHERE));
        let slot = smmu.slot();
        smmu.add(match by_word {
            true => command::sync_to(slot, 0),
            false => command::SYNC,
        });
        mmio::barrier();
        let before = cpu::now();
        smmu.ring();
        let mut looks = 0;
        let is_over = |smmu: &Smmu| match by_word {
            true => memory::read(slot) & 0xffff_ffff == 0,
            false => smmu::read(smmu::CMDQ_CONS) & 0xf_ffff == smmu.produced(),
        };
        while !is_over(smmu) && looks < 10_000 {
            looks += 1;
        }
        *time = cpu::now() - before;
        smmu.flush()?;
        if looks != 0 {
            return Err(Failure("a wait was not over at once", [looks, slot, 0]));
        }
    }
    times.sort_unstable();
    Ok(times)
}

/// Ticks from the write that has a device send a message to a page that has no translation to the vector of
/// the event's handler.
fn faults(smmu: &mut Smmu, edu: Edu, page: u64) -> Result<Costs, Failure> {
    let mut times = [0; RUNS];
    smmu.unmap(page)?;
    for time in &mut times {
        // What is still pending from before comes now.
        gic::enable_shared(SMMU_EVENT, gic::Trigger::Edge);
        cpu::sleep_us(1_000);
        smmu.drain();
        gic::enable_shared(SMMU_EVENT, gic::Trigger::Edge);
        let wanted = shared(SMMU_EVENT) + 1;
        cpu::unmask();
        let before = cpu::now();
        edu.raise(1);
        for _ in 0..10_000 {
            if shared(SMMU_EVENT) >= wanted {
                break;
            }
            core::hint::spin_loop();
        }
        cpu::mask();
        edu.acknowledge(1);
        if shared(SMMU_EVENT) < wanted {
            return Err(Failure(
                "a message to a page without translation left no event: produced, consumed, before",
                [
                    smmu::read(smmu::EVENTQ_PROD).into(),
                    smmu::read(smmu::EVENTQ_CONS).into(),
                    wanted - 1,
                ],
            ));
        }
        let entered = RECEIVED.entered.load(Ordering::SeqCst);
        *time = entered.saturating_sub(before);
    }
    smmu.map(page, page)?;
    smmu.run(&[command::tlbi_asid(ASID)])?;
    smmu.drain();
    times.sort_unstable();
    Ok(times)
}

/// From the write of `CMDQ_PROD` until it returns, by when all is consumed where no SMMU runs beside the CPU.
fn measure(smmu: &mut Smmu, commands: &[command::Command]) -> Result<u64, Failure> {
    for &command in commands {
        smmu.add(command);
    }
    smmu.add(command::SYNC);
    mmio::barrier();
    let before = cpu::now();
    smmu.ring();
    let took = cpu::now() - before;
    let is_done = smmu::read(smmu::CMDQ_CONS) & 0xf_ffff == smmu.produced();
    smmu.flush()?;
    if is_done {
        Ok(took)
    } else {
        Err("commands went on behind the write of their index".into())
    }
}
