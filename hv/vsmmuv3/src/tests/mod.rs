//! A guest with an SMMU, in host memory.
#![expect(
    clippy::cast_possible_truncation,
    reason = "offsets into host memory of a few hundred kilobytes"
)]

use std::cell::{Cell, RefCell};
use std::vec;
use std::vec::Vec;

use iommu::{Ats, NestedConfig, StageOne};
use smmuv3::Identity;
use smmuv3::spec::command::Raw;
use smmuv3::spec::{Event, Idr0, Idr1, Idr3, Idr5, Iidr, regs};
use types::{Ipa, StreamId};

use crate::{
    AtReset, Delivery, Failure, Features, GuestMemory, Health, Interrupts, Invalidation, Line,
    Messages, NotGuestMemory, Options, Outcome, Physical, Refusal, VSmmu, Width, Work,
};

mod commands;
mod events;
mod hostile;
mod messages;
mod promise;
mod registers;
mod streams;
mod walk;

/// The register of an ITS that takes messages.
pub(crate) const DOORBELL: u64 = 0x0809_0040;
/// Where the guest's RAM begins.
pub(crate) const RAM: u64 = 0x4000_0000;
/// How much there is.
pub(crate) const RAM_BYTES: usize = 0x4_0000;
/// Where the rig puts things.
pub(crate) const CMDQ: u64 = RAM + 0x1000;
pub(crate) const EVTQ: u64 = RAM + 0x3000;
pub(crate) const L1: u64 = RAM + 0x4000;
pub(crate) const L2: u64 = RAM + 0x8000;
pub(crate) const CD: u64 = RAM + 0xc000;
pub(crate) const LINEAR: u64 = RAM + 0x2_0000;

/// Guest RAM that counts reads, can lose its later reads, and can change under a reader.
#[derive(Debug)]
pub(crate) struct Ram {
    pub(crate) bytes: RefCell<Vec<u8>>,
    pub(crate) reads: Cell<usize>,
    pub(crate) writes: RefCell<Vec<(u64, usize)>>,
    /// Messages that something took.
    pub(crate) messages: RefCell<Vec<(u64, u32)>>,
    /// At the n-th read from now: words written before the read is done.
    pub(crate) ambush: RefCell<Vec<(usize, u64, u64)>>,
}

impl Ram {
    pub(crate) fn new() -> Self {
        Self {
            bytes: RefCell::new(vec![0; RAM_BYTES]),
            reads: Cell::new(0),
            writes: RefCell::default(),
            messages: RefCell::default(),
            ambush: RefCell::default(),
        }
    }

    fn place(ipa: Ipa, len: usize) -> Result<usize, NotGuestMemory> {
        let fail = NotGuestMemory { ipa, bytes: len };
        let at = ipa.bits().checked_sub(RAM).ok_or(fail)? as usize;
        if at.checked_add(len).is_some_and(|end| end <= RAM_BYTES) {
            Ok(at)
        } else {
            Err(fail)
        }
    }

    pub(crate) fn put(&self, at: u64, words: &[u64]) {
        for (i, word) in words.iter().enumerate() {
            let at = (at - RAM) as usize + 8 * i;
            self.bytes.borrow_mut()[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
    }

    pub(crate) fn get<const N: usize>(&self, at: u64) -> [u64; N] {
        std::array::from_fn(|i| {
            let at = (at - RAM) as usize + 8 * i;
            u64::from_le_bytes(self.bytes.borrow()[at..at + 8].try_into().unwrap())
        })
    }
}

impl GuestMemory for Ram {
    fn read(&self, ipa: Ipa, buffer: &mut [u8]) -> Result<(), NotGuestMemory> {
        let at = Self::place(ipa, buffer.len())?;
        let n = self.reads.get();
        self.reads.set(n + 1);
        let due: Vec<_> = self
            .ambush
            .borrow()
            .iter()
            .filter(|(at, ..)| *at == n)
            .copied()
            .collect();
        buffer.copy_from_slice(&self.bytes.borrow()[at..at + buffer.len()]);
        // The guest is just too late for this read, and in time for the next one.
        for (_, at, word) in due {
            self.put(at, &[word]);
        }
        Ok(())
    }

    fn read_words(&self, ipa: Ipa, words: &mut [u64]) -> Result<(), NotGuestMemory> {
        let mut bytes = vec![0; 8 * words.len()];
        self.read(ipa, &mut bytes)?;
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok(())
    }

    fn write(&self, ipa: Ipa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        let at = Self::place(ipa, bytes.len())?;
        self.writes.borrow_mut().push((ipa.bits(), bytes.len()));
        self.bytes.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn send(&self, ipa: Ipa, data: u32) -> Result<(), NotGuestMemory> {
        assert_eq!(ipa.bits() & 3, 0, "a word");
        if ipa.bits() != DOORBELL {
            let at = Self::place(ipa, 4)?;
            self.bytes.borrow_mut()[at..at + 4].copy_from_slice(&data.to_le_bytes());
        }
        self.messages.borrow_mut().push((ipa.bits(), data));
        Ok(())
    }
}

/// What the hardware was asked for.
#[derive(Debug, Default)]
pub(crate) struct Hardware {
    pub(crate) streams: Vec<(StreamId, NestedConfig)>,
    pub(crate) batches: Vec<Vec<Invalidation>>,
    /// Answers to the next switches, last first.
    pub(crate) refusals: Vec<Result<(), Refusal>>,
    pub(crate) failures: Vec<Result<(), Failure>>,
}

impl Physical for Hardware {
    fn set_stream(&mut self, stream: StreamId, config: &NestedConfig) -> Result<(), Refusal> {
        self.streams.push((stream, *config));
        self.refusals.pop().unwrap_or(Ok(()))
    }

    fn invalidate(&mut self, batch: &[Invalidation]) -> Result<(), Failure> {
        assert!(!batch.is_empty() && batch.len() <= crate::BATCH);
        self.batches.push(batch.to_vec());
        self.failures.pop().unwrap_or(Ok(()))
    }
}

/// A physical SMMU like QEMU's, with what it lacks switched on or off by the tests.
pub(crate) fn qemu() -> Identity {
    Identity {
        idr0: Idr0::from_bits(0x0d44_101b),
        idr1: Idr1::from_bits(0x0273_0010),
        idr3: Idr3::from_bits(0x1414),
        idr5: Idr5::from_bits(0x74),
        iidr: Iidr::from_bits(0),
        minor: 1,
    }
}

/// One with everything this crate can pass on.
pub(crate) fn rich() -> Identity {
    let qemu = qemu();
    Identity {
        idr0: qemu.idr0.with_ats(true).with_cd2l(true),
        idr1: qemu.idr1.with_ssidsize(16),
        ..qemu
    }
}

pub(crate) fn sid(bits: u32) -> StreamId {
    StreamId::new(bits).unwrap()
}

/// A guest, its SMMU and the hardware below.
pub(crate) struct Guest {
    pub(crate) ram: Ram,
    pub(crate) hardware: Hardware,
    pub(crate) smmu: VSmmu,
    pub(crate) prod: u32,
    /// Pulses since they were last looked at: event, gerror, sync.
    pub(crate) pulses: [u32; 3],
}

impl Guest {
    pub(crate) fn of(identity: &Identity, options: Options) -> Self {
        let features = Features::derive(identity, options).unwrap();
        Self {
            ram: Ram::new(),
            hardware: Hardware::default(),
            smmu: VSmmu::new(features),
            prod: 0,
            pulses: [0; 3],
        }
    }

    /// With streams 8 and 0x100, over QEMU's SMMU, out of reset.
    pub(crate) fn new() -> Self {
        Self::with(&qemu(), Options::default())
    }

    pub(crate) fn with(identity: &Identity, options: Options) -> Self {
        let mut guest = Self::of(identity, options);
        guest.add(8);
        guest.add(0x100);
        guest.hardware.streams.clear();
        guest
    }

    /// Over an SMMU with substreams and ATS, which the guest is offered.
    pub(crate) fn rich() -> Self {
        let options = Options {
            ats: Ats::On,
            ..Options::default()
        };
        Self::with(&rich(), options)
    }

    /// Over QEMU's SMMU, with messages of its own.
    pub(crate) fn with_messages() -> Self {
        let options = Options {
            messages: Messages::Offered,
            ..Options::default()
        };
        Self::with(&qemu(), options)
    }

    /// Messages since they were last looked at.
    pub(crate) fn take_messages(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut *self.ram.messages.borrow_mut())
    }

    pub(crate) fn add(&mut self, stream: u32) {
        let added = self
            .smmu
            .add_stream(sid(stream), &self.ram, &mut self.hardware);
        let outcome = added.unwrap();
        self.count(outcome.interrupts);
    }

    pub(crate) fn count(&mut self, interrupts: Interrupts) {
        for (at, line) in [Line::Event, Line::Gerror, Line::Sync]
            .into_iter()
            .enumerate()
        {
            self.pulses[at] += u32::from(interrupts.contains(line));
        }
    }

    pub(crate) fn take_pulses(&mut self) -> [u32; 3] {
        std::mem::take(&mut self.pulses)
    }

    pub(crate) fn write_once(&mut self, offset: usize, width: Width, value: u64) -> Outcome {
        let outcome = self
            .smmu
            .write(offset as u64, width, value, &self.ram, &mut self.hardware);
        self.count(outcome.interrupts);
        outcome
    }

    pub(crate) fn go_on(&mut self) -> Outcome {
        let outcome = self.smmu.run(&self.ram, &mut self.hardware);
        self.count(outcome.interrupts);
        outcome
    }

    /// Until nothing is left to do.
    pub(crate) fn finish(&mut self, mut outcome: Outcome) -> Health {
        for _ in 0..100_000 {
            if outcome.work == Work::Done {
                return outcome.health;
            }
            outcome = self.go_on();
        }
        panic!("work without end");
    }

    pub(crate) fn w32(&mut self, offset: usize, value: u32) {
        let outcome = self.write_once(offset, Width::Word, value.into());
        self.finish(outcome);
    }

    pub(crate) fn w64(&mut self, offset: usize, value: u64) {
        let outcome = self.write_once(offset, Width::Double, value);
        self.finish(outcome);
    }

    pub(crate) fn r32(&self, offset: usize) -> u32 {
        u32::try_from(self.smmu.read(offset as u64, Width::Word)).unwrap()
    }

    pub(crate) fn r64(&self, offset: usize) -> u64 {
        self.smmu.read(offset as u64, Width::Double)
    }

    /// Sets queues of 2^6 commands and 2^5 events up, and turns both on, with interrupts.
    pub(crate) fn queues_on(&mut self) {
        self.w64(regs::CMDQ_BASE, 1 << 62 | CMDQ | 6);
        self.w32(regs::CMDQ_PROD, 0);
        self.w32(regs::CMDQ_CONS, 0);
        self.w64(regs::EVENTQ_BASE, 1 << 62 | EVTQ | 5);
        self.w32(regs::EVENTQ_PROD, 0);
        self.w32(regs::EVENTQ_CONS, 0);
        self.w32(regs::IRQ_CTRL, 5);
        self.w32(regs::CR0, 0xc);
        self.prod = 0;
    }

    /// Puts commands into the queue without telling.
    pub(crate) fn put(&mut self, commands: &[Raw]) {
        for command in commands {
            self.ram.put(CMDQ + u64::from(self.prod & 63) * 16, command);
            self.prod = (self.prod + 1) & 127;
        }
    }

    /// Puts commands into the queue, rings, and waits.
    pub(crate) fn send(&mut self, commands: &[Raw]) {
        self.put(commands);
        self.w32(regs::CMDQ_PROD, self.prod);
    }

    pub(crate) fn cons(&self) -> u32 {
        self.r32(regs::CMDQ_CONS)
    }

    /// A two-level stream table whose first leaf covers stream IDs 0 to 0xff.
    pub(crate) fn two_level(&mut self) {
        self.w64(regs::STRTAB_BASE, 1 << 62 | L1);
        self.w32(regs::STRTAB_BASE_CFG, 1 << 16 | 8 << 6 | 16);
        self.ram.put(L1, &[L2 | 9]);
    }

    /// A linear stream table of 2^9 entries.
    pub(crate) fn linear(&mut self) {
        self.w64(regs::STRTAB_BASE, 1 << 62 | LINEAR);
        self.w32(regs::STRTAB_BASE_CFG, 9);
    }

    pub(crate) fn ste(&self, stream: u32, words: [u64; 4]) {
        let at = L2 + u64::from(stream) * 64;
        self.ram.put(at, &words);
    }

    /// Queues, a two-level stream table, stream 8 translating, everything on.
    pub(crate) fn nested() -> Self {
        let mut guest = Self::new();
        guest.bring_up();
        guest
    }

    pub(crate) fn bring_up(&mut self) {
        self.queues_on();
        self.w32(regs::CR2, 6);
        self.two_level();
        self.ste(8, [S1 | CD, 0, 0, 0]);
        self.w32(regs::CR0, 0xd);
        self.hardware.streams.clear();
        self.hardware.batches.clear();
        self.take_pulses();
    }

    pub(crate) fn live(&self, stream: u32) -> NestedConfig {
        self.smmu.stream(sid(stream)).unwrap().live()
    }

    pub(crate) fn translates(&self, stream: u32) -> bool {
        matches!(self.live(stream).stage_one, StageOne::Translate(_))
    }

    /// A device's access as the hardware meets it where the entry is not valid; `None` where it meets another.
    pub(crate) fn access(&mut self, stream: u32) -> Option<Delivery> {
        if self.live(stream) != NestedConfig::INVALID {
            return None;
        }
        // With what real hardware may have in it besides: the stream's own number is not the guest's.
        let event = Event([0x4100 << 32 | 4, 0, 0, u64::MAX]);
        let (delivery, interrupts) = self.smmu.report(sid(stream), &event, &self.ram);
        self.count(interrupts);
        Some(delivery)
    }

    /// Records in the event queue, oldest first; the guest has then read them.
    pub(crate) fn take_events(&mut self) -> Vec<[u64; 4]> {
        let prod = self.r32(regs::EVENTQ_PROD);
        let mut cons = self.r32(regs::EVENTQ_CONS);
        let mut records = Vec::new();
        while (cons ^ prod) & 63 != 0 {
            records.push(self.ram.get(EVTQ + u64::from(cons & 31) * 32));
            cons = (cons + 1) & 63;
        }
        self.w32(regs::EVENTQ_CONS, prod & 1 << 31 | cons);
        records
    }
}

/// `V` and `Config` of entries.
pub(crate) const S1: u64 = 5 << 1 | 1;
pub(crate) const BYPASS: u64 = 4 << 1 | 1;
pub(crate) const ABORTS: u64 = 1;

pub(crate) fn cfgi_ste(stream: u32) -> Raw {
    [u64::from(stream) << 32 | 3, 1]
}

pub(crate) fn cfgi_range(stream: u32, range: u64) -> Raw {
    [u64::from(stream) << 32 | 4, range]
}

pub(crate) const CFGI_ALL: Raw = [4, 31];
pub(crate) const NSNH_ALL: Raw = [0x30, 0];
pub(crate) const NH_ALL: Raw = [0x10, 0];
/// As Linux sends it: CS = SEV.
pub(crate) const SYNC: Raw = [0x46 | 2 << 12, 0];

pub(crate) fn cold() -> Options {
    Options {
        at_reset: AtReset::Abort,
        ..Options::default()
    }
}
