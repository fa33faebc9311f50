//! The crate's SMMU in host memory, and hardware that notes what it is told.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use bulkhead_vsmmuv3::{
    AtReset, BATCH, Delivery, Failure, Features, GuestMemory, Interrupts, Invalidation, Line,
    Messages, NotGuestMemory, Options, Outcome, Physical, Refusal, SingleAddress, VSmmu, Width,
    Work,
};
use iommu::{Ats, NestedConfig, StageOne};
use smmuv3::Identity;
use smmuv3::spec::{Event, Idr0, Idr1, Idr3, Idr5, Iidr};
use types::{Ipa, StreamId};

use crate::model::{MUTE, Need, REFUSED};
use crate::tables::{DOORBELL, Does, Memory, Promise, RAM, RAM_BYTES};

/// Guest memory that notes writes, counts reads, and may change behind every read.
#[derive(Debug)]
pub(crate) struct Ram {
    pub(crate) memory: RefCell<Memory>,
    pub(crate) records: RefCell<Vec<(u64, [u64; 4])>>,
    /// Messages, with whether something took them.
    pub(crate) messages: RefCell<Vec<(u64, u32, bool)>>,
    pub(crate) reads: Cell<usize>,
    /// 0: it changes only when it is written. Else the seed of what other vCPUs write.
    pub(crate) restless: Cell<u64>,
}

impl Ram {
    fn new() -> Self {
        Self {
            memory: RefCell::new(Memory::new()),
            records: RefCell::default(),
            messages: RefCell::default(),
            reads: Cell::new(0),
            restless: Cell::new(0),
        }
    }

    fn place(ipa: Ipa, bytes: usize) -> Result<usize, NotGuestMemory> {
        let fail = NotGuestMemory { ipa, bytes };
        let offset = ipa.bits().checked_sub(RAM).ok_or(fail)?;
        match offset.checked_add(bytes as u64) {
            Some(end) if end <= RAM_BYTES => Ok(offset as usize),
            _ => Err(fail),
        }
    }

    /// Another vCPU writes a word somewhere: anything, or an entry or a command that means something.
    fn change(&self) {
        let mut seed = self.restless.get();
        if seed == 0 {
            return;
        }
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        self.restless.set(seed);
        let word = match seed >> 60 {
            0 => seed,
            1 => 1 | 5 << 1 | (RAM + (seed & 0xffc0)),
            2 => 1 | 4 << 1,
            3 => (RAM + (seed & 0xffc0)) | 9,
            4 => 4 | (seed & 0x1ff) << 32,
            5 => 0x46,
            _ => return,
        };
        let at = RAM + (seed >> 20) % (RAM_BYTES / 8) * 8;
        self.memory.borrow_mut().put(at, &[word]);
    }
}

impl GuestMemory for Ram {
    fn read(&self, ipa: Ipa, buffer: &mut [u8]) -> Result<(), NotGuestMemory> {
        self.reads.set(self.reads.get() + 1);
        let at = Self::place(ipa, buffer.len())?;
        buffer.copy_from_slice(&self.memory.borrow().0[at..at + buffer.len()]);
        self.change();
        Ok(())
    }

    fn read_words(&self, ipa: Ipa, words: &mut [u64]) -> Result<(), NotGuestMemory> {
        self.reads.set(self.reads.get() + 1);
        let at = Self::place(ipa, 8 * words.len())?;
        let memory = self.memory.borrow();
        for (word, bytes) in words.iter_mut().zip(memory.0[at..].as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        drop(memory);
        self.change();
        Ok(())
    }

    fn write(&self, ipa: Ipa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        Self::place(ipa, bytes.len())?;
        let (words, rest) = bytes.as_chunks::<8>();
        assert!(
            words.len() == 4 && rest.is_empty(),
            "only records are written"
        );
        let words = std::array::from_fn(|i| u64::from_le_bytes(words[i]));
        self.records.borrow_mut().push((ipa.bits(), words));
        assert!(self.memory.borrow_mut().put(ipa.bits(), &words));
        Ok(())
    }

    fn send(&self, ipa: Ipa, data: u32) -> Result<(), NotGuestMemory> {
        let at = ipa.bits();
        assert_eq!(at & 3, 0, "a word");
        let taken = at == DOORBELL || self.memory.borrow_mut().put_word(at, data);
        self.messages.borrow_mut().push((at, data, taken));
        match taken {
            true => Ok(()),
            false => Err(NotGuestMemory { ipa, bytes: 4 }),
        }
    }
}

/// What is to go wrong with the hardware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wrong {
    #[default]
    Nothing,
    /// The next switch fails.
    Switch,
    /// The next batch fails.
    Batch,
}

/// Hardware that takes nothing but what is legal.
#[derive(Debug)]
pub(crate) struct Hardware {
    promise: Promise,
    pub(crate) streams: BTreeSet<u32>,
    pub(crate) told: BTreeMap<u32, NestedConfig>,
    pub(crate) switches: usize,
    pub(crate) batches: Vec<Vec<Invalidation>>,
    pub(crate) wrong: Wrong,
}

impl Hardware {
    fn check(&self, entry: &Invalidation) {
        match entry {
            Invalidation::All => {}
            Invalidation::Asid(asid) => self.check_asid(asid.bits()),
            Invalidation::Va { asid, at } => {
                self.check_asid(asid.bits());
                self.check_range(at);
            }
            Invalidation::Vaa(at) => self.check_range(at),
            // The stream may have changed since it was asked for, but is still the guest's.
            Invalidation::Context { stream, .. } => self.check_stream(*stream),
            Invalidation::Atc {
                stream,
                first,
                last,
                ..
            } => {
                assert!(self.promise.idr0 >> 10 & 1 == 1 && first <= last);
                assert!(first & 0xfff == 0 && last & 0xfff == 0xfff);
                self.check_stream(*stream);
            }
        }
    }

    fn check_stream(&self, stream: StreamId) {
        assert!(self.streams.contains(&stream.bits()), "none of the guest's");
    }

    fn check_asid(&self, asid: u16) {
        assert!(self.promise.idr0 >> 12 & 1 == 1 || asid < 0x100);
    }

    fn check_range(&self, at: &bulkhead_vsmmuv3::VaRange) {
        let range = at.range;
        if range.granule == 0 {
            assert!(!self.promise.widens && (range.num, range.scale, range.level) == (0, 0, 0));
            assert_eq!(at.va & 0xfff, 0);
            return;
        }
        assert!(self.promise.idr3 >> 10 & 1 == 1, "ranges are not promised");
        assert!(range.num < 32 && range.scale < 32 && range.level < 4);
        assert!(
            (range.num, range.scale, range.level) != (0, 0, 0),
            "reserved"
        );
        let granule = usize::from(range.granule);
        assert!(self.promise.idr5 >> [0, 4, 5, 6][granule] & 1 == 1);
        assert!(granule == 1 || range.level != 1, "no such level");
        let shift = [0, 12, 14, 16][granule];
        assert_eq!(at.va & ((1 << shift) - 1), 0);
        let bytes = (u128::from(range.num) + 1) << range.scale << shift;
        assert!(u128::from(at.va) + bytes <= 1 << 64, "endless");
    }
}

impl Physical for Hardware {
    fn set_stream(&mut self, stream: StreamId, config: &NestedConfig) -> Result<(), Refusal> {
        self.switches += 1;
        let stream = stream.bits();
        assert!(
            self.streams.contains(&stream),
            "none of the guest's streams"
        );
        if let StageOne::Translate(t) = config.stage_one {
            assert!(u64::from(t.substream_bits) <= self.promise.idr1 >> 6 & 0x1f);
            assert!(t.format as u8 == 0 || self.promise.idr0 >> 19 & 1 == 1);
            assert!(t.base & 63 == 0 && t.base >> self.promise.address_bits() == 0);
            if t.base & REFUSED != 0 {
                return Err(Refusal::Refused);
            }
        }
        assert!(config.ats == Ats::Off || self.promise.idr0 >> 10 & 1 == 1);
        if self.wrong == Wrong::Switch {
            self.wrong = Wrong::Nothing;
            return Err(Refusal::Failed);
        }
        self.told.insert(stream, *config);
        Ok(())
    }

    fn invalidate(&mut self, batch: &[Invalidation]) -> Result<(), Failure> {
        assert!(!batch.is_empty() && batch.len() <= BATCH);
        for entry in batch {
            self.check(entry);
        }
        self.batches.push(batch.to_vec());
        if self.wrong == Wrong::Batch {
            self.wrong = Wrong::Nothing;
            return Err(Failure::Failed);
        }
        let mute = |entry: &Invalidation| matches!(entry, Invalidation::Atc { stream, .. } if stream.bits() == MUTE);
        if batch.iter().any(mute) {
            return Err(Failure::AtcTimeout);
        }
        Ok(())
    }
}

pub(crate) fn does(config: &NestedConfig) -> Does {
    match config.stage_one {
        StageOne::Abort => Does::Abort,
        StageOne::Invalid => Does::Invalid,
        StageOne::Bypass => Does::Bypass,
        StageOne::Translate(t) => Does::Translate {
            format: t.format as u64,
            default: t.default_substream as u64,
            bits: t.substream_bits.into(),
            base: t.base,
            ats: config.ats == Ats::On,
        },
    }
}

/// Whether an invalidation does at least what is needed.
pub(crate) fn covers(done: &Invalidation, need: &Need) -> bool {
    let same = |asid: &Option<u64>, own: Option<u16>| own.is_none() || *asid == own.map(u64::from);
    let (asid, at) = match *done {
        Invalidation::All => {
            return !matches!(need, Need::Context { .. } | Need::Atc { .. } | Need::Wait);
        }
        Invalidation::Asid(asid) => return *need == Need::Asid(asid.bits().into()),
        Invalidation::Va { asid, at } => (Some(asid.bits()), at),
        Invalidation::Vaa(at) => (None, at),
        Invalidation::Context { stream, substream } => {
            return matches!(need, Need::Context { stream: s, substream: n }
                if *s == stream.bits()
                    && (substream.is_none() || *n == substream.map(|n| n.bits().into())));
        }
        Invalidation::Atc {
            stream,
            substream,
            first,
            last,
        } => {
            return matches!(need, Need::Atc { stream: s, substream: n, first: from, last: to }
                if *s == stream.bits() && *n == substream.map(|n| n.bits().into())
                    && first <= *from && *to <= last);
        }
    };
    let everything = at.depth == smmuv3::spec::Depth::All;
    match need {
        Need::Leaf {
            asid: wanted,
            at: address,
            tables,
        } => {
            at.range.granule == 0
                && same(wanted, asid)
                && at.va == *address
                && (everything || !tables)
        }
        Need::Span {
            asid: wanted,
            first,
            last,
            level,
            tables,
        } => {
            let shift = match at.range.granule {
                1 => 12,
                2 => 14,
                3 => 16,
                _ => return false,
            };
            let bytes = (u128::from(at.range.num) + 1) << at.range.scale << shift;
            let to = u128::from(at.va) + bytes - 1;
            let hint = at.range.level == 0 || u64::from(at.range.level) == *level;
            same(wanted, asid)
                && at.va <= *first
                && u128::from(*last) <= to
                && hint
                && (everything || !tables)
        }
        _ => false,
    }
}

/// Takes away what is done of what is needed, in order. What is left is not waited for yet.
///
/// A batch counts for what was asked for before the wait that it is followed by, and for nothing
/// after it. Translations that are to go behind a context descriptor go by what stands behind its
/// invalidation: until then the hardware may make them anew.
pub(crate) fn settle(needs: &mut Vec<Need>, batches: Vec<Vec<Invalidation>>) {
    let mut batches = batches.into_iter();
    let mut open: Vec<Need> = Vec::new();
    for need in std::mem::take(needs) {
        if need != Need::Wait {
            open.push(need);
            continue;
        }
        while !open.is_empty() {
            let batch = batches.next();
            let Some(batch) = batch else {
                panic!("a wait is over, and this is not done: {open:x?}");
            };
            take_away(&batch, &mut open);
        }
    }
    for batch in batches {
        take_away(&batch, &mut open);
    }
    *needs = open;
}

/// Takes away what a batch does, in order.
fn take_away(batch: &[Invalidation], open: &mut Vec<Need>) {
    for done in batch {
        let mut context_is_old = false;
        open.retain(|need| {
            let is_done = covers(done, need);
            match need {
                Need::Context { .. } => {
                    context_is_old |= !is_done;
                    !is_done
                }
                Need::Atc { .. } => !is_done,
                _ => context_is_old || !is_done,
            }
        });
    }
}

/// Kinds of machines, by the bits of a number.
pub(crate) fn promise(kind: u8) -> (Features, Promise) {
    let bit = |at: u8| kind >> at & 1 == 1;
    let mut identity = Identity {
        idr0: Idr0::from_bits(0x0d44_101b),
        idr1: Idr1::from_bits(0x0273_0010),
        idr3: Idr3::from_bits(0x1414),
        idr5: Idr5::from_bits(0x74),
        iidr: Iidr::from_bits(0),
        minor: 1,
    };
    if bit(1) {
        identity.idr0 = identity.idr0.with_ats(true).with_cd2l(true);
        identity.idr1 = identity.idr1.with_ssidsize(10);
    }
    if bit(2) {
        identity.idr3 = identity.idr3.with_ril(false);
        identity.idr0 = identity.idr0.with_asid16(false);
    }
    if bit(3) {
        identity.idr5 = identity.idr5.with_gran16k(false);
    }
    let options = Options {
        ipa_bits: if bit(3) { 36 } else { 40 },
        stream_bits: if bit(2) { 9 } else { 16 },
        commands_log2: 8,
        events_log2: 7,
        ats: Ats::On,
        messages: if bit(7) {
            Messages::Off
        } else {
            Messages::Offered
        },
        at_reset: if bit(4) {
            AtReset::Bypass
        } else {
            AtReset::Abort
        },
        single_address: if bit(5) {
            SingleAddress::FourKilobytes
        } else {
            SingleAddress::WholeLeaf
        },
    };
    let features = Features::derive(&identity, options).unwrap();
    let (idr0, idr1, idr3, idr5) = features.identification();
    let promise = Promise {
        idr0: idr0.into_bits().into(),
        idr1: idr1.into_bits().into(),
        idr3: idr3.into_bits().into(),
        idr5: idr5.into_bits().into(),
        aborts: !bit(4),
        widens: bit(5),
    };
    (features, promise)
}

/// A guest with its SMMU.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) ram: Ram,
    pub(crate) hardware: Hardware,
    pub(crate) smmu: VSmmu,
    /// Lines pulsed since this was looked at: event, gerror, sync.
    pub(crate) pulses: [bool; 3],
    pub(crate) last: Work,
}

impl Rig {
    pub(crate) fn new(kind: u8) -> (Self, Promise) {
        let (features, promise) = promise(kind);
        let rig = Self {
            ram: Ram::new(),
            hardware: Hardware {
                promise,
                streams: BTreeSet::new(),
                told: BTreeMap::new(),
                switches: 0,
                batches: Vec::new(),
                wrong: Wrong::Nothing,
            },
            smmu: VSmmu::new(features),
            pulses: [false; 3],
            last: Work::Done,
        };
        (rig, promise)
    }

    fn pulse(&mut self, interrupts: Interrupts) {
        for (at, line) in [Line::Event, Line::Gerror, Line::Sync]
            .into_iter()
            .enumerate()
        {
            self.pulses[at] |= interrupts.contains(line);
        }
    }

    fn note(&mut self, outcome: Outcome) {
        self.pulse(outcome.interrupts);
        self.last = outcome.work;
    }

    pub(crate) fn add(&mut self, stream: u32) {
        let id = StreamId::new(stream).unwrap();
        self.hardware.streams.insert(stream);
        self.hardware.told.insert(stream, NestedConfig::ABORT);
        if let Ok(outcome) = self.smmu.add_stream(id, &self.ram, &mut self.hardware) {
            self.note(outcome);
        }
    }

    pub(crate) fn remove(&mut self, stream: u32) {
        self.smmu.remove_stream(StreamId::new(stream).unwrap());
        self.hardware.streams.remove(&stream);
        self.hardware.told.remove(&stream);
    }

    pub(crate) fn write(&mut self, at: u64, width: Width, value: u64) {
        let outcome = self
            .smmu
            .write(at, width, value, &self.ram, &mut self.hardware);
        self.note(outcome);
    }

    pub(crate) fn run(&mut self) {
        let outcome = self.smmu.run(&self.ram, &mut self.hardware);
        self.note(outcome);
    }

    pub(crate) fn reset(&mut self) {
        let outcome = self.smmu.reset(&self.ram, &mut self.hardware);
        self.note(outcome);
    }

    /// Until nothing is left to do, which is after a bounded number of turns.
    pub(crate) fn finish(&mut self) {
        for _ in 0..200 {
            if self.last == Work::Done {
                return;
            }
            self.run();
        }
        panic!("work without end");
    }

    pub(crate) fn report(&mut self, stream: u32, words: [u64; 4]) -> Delivery {
        let id = StreamId::new(stream).unwrap();
        let (delivery, interrupts) = self.smmu.report(id, &Event(words), &self.ram);
        self.pulse(interrupts);
        delivery
    }

    pub(crate) fn read(&self, at: u64) -> u64 {
        self.smmu.read(at, Width::Word)
    }
}
