//! A small driver of a guest's own SMMUv3: stage 1 alone. [IHI 0070]
//!
//! One linear stream table, one context descriptor and one set of tables (4 KiB granule, 39 bits) for all
//! streams that are attached, command and event queue in memory of the guest.

use crate::its::clear;
use crate::{cpu, mmio, platform};

/// `SMMU_IDR0`.
pub const IDR0: usize = 0x00;
/// `SMMU_IDR1`.
pub const IDR1: usize = 0x04;
/// `SMMU_CR0`.
pub const CR0: usize = 0x20;
/// `SMMU_CR0ACK`.
pub const CR0ACK: usize = 0x24;
const CR1: usize = 0x28;
const CR2: usize = 0x2c;
/// `SMMU_GBPA`.
pub const GBPA: usize = 0x44;
/// `SMMU_IRQ_CTRL`.
pub const IRQ_CTRL: usize = 0x50;
/// `SMMU_GERROR`.
pub const GERROR: usize = 0x60;
/// `SMMU_GERRORN`.
pub const GERRORN: usize = 0x64;
/// `SMMU_GERROR_IRQ_CFG0`: where the message for errors goes.
pub const GERROR_IRQ_CFG0: usize = 0x68;
/// `SMMU_EVENTQ_IRQ_CFG0`: where the message for records goes.
pub const EVENTQ_IRQ_CFG0: usize = 0xb0;
/// `SMMU_STRTAB_BASE`.
pub const STRTAB_BASE: usize = 0x80;
/// `SMMU_STRTAB_BASE_CFG`.
pub const STRTAB_BASE_CFG: usize = 0x88;
/// `SMMU_CMDQ_BASE`.
pub const CMDQ_BASE: usize = 0x90;
/// `SMMU_CMDQ_PROD`.
pub const CMDQ_PROD: usize = 0x98;
/// `SMMU_CMDQ_CONS`.
pub const CMDQ_CONS: usize = 0x9c;
/// `SMMU_EVENTQ_BASE`.
pub const EVENTQ_BASE: usize = 0xa0;
/// `SMMU_EVENTQ_PROD`, in page 1.
pub const EVENTQ_PROD: usize = 0x1_00a8;
/// `SMMU_EVENTQ_CONS`, in page 1.
pub const EVENTQ_CONS: usize = 0x1_00ac;
/// `CR0`: translation is on.
pub const SMMUEN: u32 = 1 << 0;
/// `CR0`: the event queue is on.
pub const EVENTQEN: u32 = 1 << 2;
/// `CR0`: the command queue is on.
pub const CMDQEN: u32 = 1 << 3;
/// `GERROR`: a command was wrong; `CMDQ_CONS` has the reason in 30:24.
pub const CMDQ_ERR: u32 = 1 << 0;
/// `IDR0`: there is a stage 1.
const S1P: u32 = 1 << 1;
/// `GBPA`: take this value.
const UPDATE: u32 = 1 << 31;
/// `GBPA`: what nobody translates is aborted.
const ABORT: u32 = 1 << 20;
/// Interrupts for events and global errors.
pub const IRQS: u32 = 1 << 2 | 1;
/// `IDR0`: it sends messages of its own.
const MSI: u32 = 1 << 13;
/// Log2 of the stream table's entries: bus 0 and what else is in 256 requester IDs.
pub const STREAM_BITS: u32 = 8;
const STE_BYTES: u64 = 64;
/// A valid entry, stage 1 alone.
pub const STE_STAGE_1: u64 = 5 << 1 | 1;
/// A valid entry that lets everything through.
pub const STE_BYPASS: u64 = 4 << 1 | 1;
/// A valid entry that lets nothing through, without a word.
pub const STE_ABORT: u64 = 1;
/// Its context descriptor is read write-back, inner shareable.
const STE_1: u64 = 1 << 2 | 1 << 4 | 3 << 6;
/// Bytes that a table translates an address by: 39 bits.
const T0SZ: u64 = 25;
/// The address space of all streams.
pub const ASID: u64 = 1;
/// Polls of a register.
const PATIENCE: u64 = 1_000_000_000;

/// Where things are: 64 KiB boundaries, outside of the image. They take [`AREA_BYTES`].
#[derive(Clone, Copy, Debug)]
pub struct Area(pub u64);

/// Bytes of an [`Area`].
pub const AREA_BYTES: u64 = 0x20_0000;
/// Log2 of the entries of the usual queues.
pub const QUEUE_BITS: u32 = 8;

impl Area {
    /// The stream table.
    pub const fn streams(self) -> u64 {
        self.0
    }

    /// The context descriptor.
    pub const fn context(self) -> u64 {
        self.0 + 0x1_0000
    }

    /// The command queue of usual size.
    pub const fn commands(self) -> u64 {
        self.0 + 0x2_0000
    }

    const fn events(self) -> u64 {
        self.0 + 0x3_0000
    }

    /// The first stage-1 table; more of them follow.
    pub const fn tables(self) -> u64 {
        self.0 + 0x10_0000
    }
}

/// Commands. [IHI 0070 §4]
pub mod command {
    /// A command: two words.
    pub type Command = [u64; 2];
    /// `CMD_CFGI_STE`, for entry and what it leads to.
    pub const fn cfgi_ste(stream: u32) -> Command {
        [(stream as u64) << 32 | 0x03, 1]
    }
    /// `CMD_CFGI_ALL`.
    pub const CFGI_ALL: Command = [0x04, 31];
    /// `CMD_CFGI_CD`.
    pub const fn cfgi_cd(stream: u32) -> Command {
        [(stream as u64) << 32 | 0x05, 1]
    }
    /// `CMD_TLBI_NH_ASID`.
    pub const fn tlbi_asid(asid: u64) -> Command {
        [asid << 48 | 0x11, 0]
    }
    /// `CMD_TLBI_NH_VA`: one page, the last level alone.
    pub const fn tlbi_va(asid: u64, address: u64) -> Command {
        [asid << 48 | 0x12, address & !0xfff | 1]
    }
    /// `CMD_TLBI_NSNH_ALL`.
    pub const TLBI_ALL: Command = [0x30, 0];
    /// `CMD_SYNC`, without a message or a signal.
    pub const SYNC: Command = [0x46, 0];
    /// `CMD_SYNC` that writes a word to an address when it is complete.
    pub const fn sync_to(address: u64, word: u32) -> Command {
        [(word as u64) << 32 | 1 << 12 | 0x46, address]
    }
}

/// An event record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event(pub [u64; 4]);

impl Event {
    /// Its type: 0x10 is `F_TRANSLATION`.
    pub fn kind(&self) -> u64 {
        self.0[0] & 0xff
    }

    /// The stream.
    pub fn stream(&self) -> u64 {
        self.0[0] >> 32
    }

    /// Whether it was a read.
    pub fn is_read(&self) -> bool {
        self.0[1] & 1 << 35 != 0
    }

    /// Whether stage 2 found it.
    pub fn is_stage_2(&self) -> bool {
        self.0[1] & 1 << 39 != 0
    }

    /// 0 for a context descriptor, 1 for a table, 2 for the access itself.
    pub fn class(&self) -> u64 {
        self.0[1] >> 40 & 3
    }

    /// The address that the device used.
    pub fn address(&self) -> u64 {
        self.0[2]
    }
}

/// What goes wrong with an SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is none, or it has no stage 1.
    Absent,
    /// A register does not follow: offset, wanted, found.
    Register(usize, u32, u32),
    /// Commands are not consumed: `CMDQ_PROD`, `CMDQ_CONS`, `GERROR`.
    Commands(u32, u32, u32),
    /// No room for tables.
    Tables,
}

/// Whether the SMMU sends messages of its own.
pub fn has_messages() -> bool {
    read(IDR0) & MSI != 0
}

/// Reads a register.
pub fn read(register: usize) -> u32 {
    mmio::read32(platform::SMMU + register)
}

/// Writes a register.
pub fn write(register: usize, value: u32) {
    mmio::write32(platform::SMMU + register, value);
}

/// Writes a 64-bit register.
pub fn write64(register: usize, value: u64) {
    mmio::write64(platform::SMMU + register, value);
}

/// Writes `CR0` and waits until it is acknowledged.
///
/// # Errors
/// It is not.
pub fn control(bits: u32) -> Result<(), Fault> {
    write(CR0, bits);
    settle(CR0ACK, |found| found == bits, bits)
}

/// Sets what becomes of transactions while translation is off, and waits until it has come true.
///
/// # Errors
/// It does not.
pub fn bypass(abort: bool) -> Result<(), Fault> {
    write(GBPA, UPDATE | if abort { ABORT } else { 0 });
    settle(GBPA, |found| found & UPDATE == 0, 0)
}

fn settle(register: usize, done: impl Fn(u32) -> bool, wanted: u32) -> Result<(), Fault> {
    let end = cpu::now().saturating_add(PATIENCE);
    loop {
        let found = read(register);
        if done(found) {
            return Ok(());
        }
        if cpu::now() >= end {
            return Err(Fault::Register(register, wanted, found));
        }
        cpu::give_way();
    }
}

/// The SMMU with its queues.
#[derive(Debug)]
pub struct Smmu {
    area: Area,
    /// Where the command queue is, and log2 of its entries.
    commands: (u64, u32),
    events: (u64, u32),
    produced: u32,
    consumed: u32,
    tables: u64,
}

impl Smmu {
    /// Takes it: everything aborts, queues are on, translation is on.
    ///
    /// # Errors
    /// It is not there, or does not follow.
    pub fn start(area: Area) -> Result<Self, Fault> {
        Self::start_with(
            area,
            (area.commands(), QUEUE_BITS),
            (area.events(), QUEUE_BITS),
        )
    }

    /// The same with queues elsewhere: address, log2 of the entries.
    ///
    /// # Errors
    /// As [`Smmu::start`].
    pub fn start_with(area: Area, commands: (u64, u32), events: (u64, u32)) -> Result<Self, Fault> {
        // The caller has made sure that there is something at this address.
        if read(IDR0) & S1P == 0 || read(IDR0) == u32::MAX {
            return Err(Fault::Absent);
        }
        control(0)?;
        bypass(true)?;
        clear(area.streams(), STE_BYTES << STREAM_BITS);
        clear(area.tables(), 0x1000);
        let mut smmu = Self {
            area,
            commands,
            events,
            produced: 0,
            consumed: 0,
            tables: 1,
        };
        smmu.describe_context(area.tables());
        // Write-back, inner shareable, tables and queues.
        write(CR1, 1 | 1 << 2 | 3 << 4 | 1 << 6 | 1 << 8 | 3 << 10);
        // Record bad stream IDs.
        write(CR2, 1 << 1);
        const ALLOCATE: u64 = 1 << 62;
        write64(STRTAB_BASE, area.streams() | ALLOCATE);
        write(STRTAB_BASE_CFG, STREAM_BITS);
        write64(CMDQ_BASE, commands.0 | u64::from(commands.1) | ALLOCATE);
        write(CMDQ_PROD, 0);
        write(CMDQ_CONS, 0);
        write64(EVENTQ_BASE, events.0 | u64::from(events.1) | ALLOCATE);
        write(EVENTQ_PROD, 0);
        write(EVENTQ_CONS, 0);
        // What an earlier life left is taken for known.
        write(GERRORN, read(GERROR));
        write(IRQ_CTRL, 0);
        write64(GERROR_IRQ_CFG0, 0);
        write64(EVENTQ_IRQ_CFG0, 0);
        write(IRQ_CTRL, IRQS);
        control(CMDQEN)?;
        smmu.run(&[command::CFGI_ALL, command::TLBI_ALL])?;
        control(CMDQEN | EVENTQEN)?;
        control(CMDQEN | EVENTQEN | SMMUEN)?;
        Ok(smmu)
    }

    /// Writes the context descriptor: 4 KiB granule, 39 bits, table at `ttb`. [IHI 0070 §5.4]
    pub fn describe_context(&mut self, ttb: u64) {
        let size = self.output_size();
        let cached = 1 << 8 | 1 << 10 | 3 << 12;
        // No upper half; AArch64, faults recorded and aborted, not shared.
        let flags = 1 << 30 | 1 << 41 | 1 << 45 | 1 << 46 | 1 << 47;
        let words = [
            T0SZ | cached | flags | size << 32 | ASID << 48,
            ttb,
            0,
            0x0444,
        ];
        let at = word(self.area.context());
        clear(self.area.context(), 64);
        for index in (1..4).rev() {
            mmio::write64(at + 8 * index, words[index]);
        }
        mmio::write64(at, words[0]);
        mmio::barrier();
        // Valid last.
        mmio::write64(at, words[0] | 1 << 31);
        mmio::barrier();
    }

    /// `CD.IPS` of what the SMMU can put out. [IHI 0070 §6.3.6]
    fn output_size(&self) -> u64 {
        const IDR5: usize = 0x14;
        // 52 bits need another granule.
        u64::from(read(IDR5) & 7).min(5)
    }

    /// Writes a stream's entry, valid last, and has it read.
    ///
    /// # Errors
    /// As [`Smmu::run`].
    pub fn set_stream(&mut self, stream: u32, first: u64) -> Result<(), Fault> {
        self.write_entry(stream, [first, STE_1, 0, 0, 0, 0, 0, 0]);
        self.run(&[command::cfgi_ste(stream)])
    }

    /// Writes a stream's entry as it is, first word last; nothing is invalidated.
    pub fn write_entry(&self, stream: u32, words: [u64; 8]) {
        let index = u64::from(stream) % (1 << STREAM_BITS);
        let at = word(self.area.streams() + STE_BYTES * index);
        mmio::write64(at, 0);
        for (index, word) in words.into_iter().enumerate().skip(1) {
            mmio::write64(at + 8 * index, word);
        }
        mmio::barrier();
        mmio::write64(at, words[0]);
        mmio::barrier();
    }

    /// Attaches a stream to stage 1.
    ///
    /// # Errors
    /// As [`Smmu::run`].
    pub fn attach(&mut self, stream: u32) -> Result<(), Fault> {
        let first = STE_STAGE_1 | self.area.context();
        self.set_stream(stream, first)
    }

    /// Maps a page for reads and writes, to `to`. Nothing is invalidated.
    ///
    /// # Errors
    /// [`Fault::Tables`].
    pub fn map(&mut self, address: u64, to: u64) -> Result<(), Fault> {
        // Valid page, attribute 1 (normal, not cached), read-write, inner shareable, accessed, not global.
        const PAGE: u64 = 3 | 1 << 2 | 1 << 6 | 3 << 8 | 1 << 10 | 1 << 11;
        let entry = self.entry(address)?;
        mmio::write64(entry, to & !0xfff | PAGE);
        mmio::barrier();
        Ok(())
    }

    /// Takes a page out, and has the SMMU forget it.
    ///
    /// # Errors
    /// [`Fault::Tables`], or as [`Smmu::run`].
    pub fn unmap(&mut self, address: u64) -> Result<(), Fault> {
        let entry = self.entry(address)?;
        mmio::write64(entry, 0);
        mmio::barrier();
        self.run(&[command::tlbi_va(ASID, address)])
    }

    /// Where the last-level entry of an address is; tables on the way are made.
    fn entry(&mut self, address: u64) -> Result<usize, Fault> {
        const MOST_TABLES: u64 = 128;
        let mut table = self.area.tables();
        for shift in [30, 21] {
            let at = word(table) + 8 * index(address, shift);
            let mut found = mmio::read64(at);
            if found & 1 == 0 {
                if self.tables >= MOST_TABLES {
                    return Err(Fault::Tables);
                }
                let fresh = self.area.tables() + 0x1000 * self.tables;
                self.tables += 1;
                clear(fresh, 0x1000);
                mmio::barrier();
                found = fresh | 3;
                mmio::write64(at, found);
            }
            table = found & 0xffff_ffff_f000;
        }
        Ok(word(table) + 8 * index(address, 12))
    }

    /// Carries out commands and a `CMD_SYNC`.
    ///
    /// # Errors
    /// They are not consumed, or one is wrong.
    pub fn run(&mut self, commands: &[command::Command]) -> Result<(), Fault> {
        for &command in commands {
            self.add(command);
        }
        self.add(command::SYNC);
        self.flush()
    }

    /// Puts a command into the queue, which must have room.
    pub fn add(&mut self, command: command::Command) {
        let mask = (1_u32 << self.commands.1) - 1;
        let at = word(self.commands.0) + 16 * (self.produced & mask) as usize;
        mmio::write64(at, command[0]);
        mmio::write64(at + 8, command[1]);
        // The bit above the index tells the laps apart.
        self.produced = (self.produced + 1) & (mask << 1 | 1);
    }

    /// Where the next command will be.
    pub fn slot(&self) -> u64 {
        let mask = (1_u32 << self.commands.1) - 1;
        self.commands.0 + 16 * u64::from(self.produced & mask)
    }

    /// Tells the SMMU about what is in the queue, and does not wait.
    pub fn ring(&self) {
        mmio::barrier();
        write(CMDQ_PROD, self.produced);
    }

    /// `CMDQ_PROD` as it is or is to be written: index and lap.
    pub fn produced(&self) -> u32 {
        self.produced
    }

    /// Gives the context descriptor an output size of 52 bits (`IPS` 6), and makes it take effect for a stream.
    ///
    /// # Errors
    /// As [`Smmu::run`].
    pub fn widen_context(&mut self, stream: u32) -> Result<(), Fault> {
        let at = word(self.area.context());
        mmio::write64(at, mmio::read64(at) & !(7 << 32) | 6 << 32);
        self.run(&[command::cfgi_cd(stream), command::TLBI_ALL])
    }

    /// Has the queue carried out.
    ///
    /// # Errors
    /// It is not, in time, or a command is wrong.
    pub fn flush(&mut self) -> Result<(), Fault> {
        self.ring();
        let end = cpu::now().saturating_add(PATIENCE);
        loop {
            // 19 bits of index, the lap.
            let consumed = read(CMDQ_CONS);
            if consumed & 0xf_ffff == self.produced {
                return Ok(());
            }
            let error = (read(GERROR) ^ read(GERRORN)) & CMDQ_ERR != 0;
            if error || cpu::now() >= end {
                return Err(Fault::Commands(self.produced, consumed, read(GERROR)));
            }
            cpu::give_way();
        }
    }

    /// The next event, which is consumed.
    pub fn event(&mut self) -> Option<Event> {
        let mask = (1_u32 << self.events.1) - 1;
        let produced = read(EVENTQ_PROD) & 0xf_ffff;
        if produced == self.consumed {
            return None;
        }
        let at = word(self.events.0) + 32 * (self.consumed & mask) as usize;
        let event = Event([0, 1, 2, 3].map(|index| mmio::read64(at + 8 * index)));
        self.consumed = (self.consumed + 1) & (mask << 1 | 1);
        // The overflow flag is passed on: it is acknowledged.
        write(EVENTQ_CONS, self.consumed | read(EVENTQ_PROD) & 1 << 31);
        Some(event)
    }

    /// Consumes all events; returns how many there were, and the first.
    pub fn drain(&mut self) -> (u64, Option<Event>) {
        let (mut count, mut first) = (0, None);
        // Twice what the queue holds: a device may still be at it.
        for _ in 0..2_u64 << self.events.1 {
            let Some(event) = self.event() else { break };
            first = first.or(Some(event));
            count += 1;
        }
        (count, first)
    }
}

fn word(address: u64) -> usize {
    usize::try_from(address).unwrap_or(0)
}

fn index(address: u64, shift: u32) -> usize {
    word(address >> shift) & 511
}
