//! A physical SMMU that translates.

use alloc::vec::Vec;

use hal::{Clock, FrameAllocator, Mmio, NotMemory, OutOfFrames, SharedMemory};
use types::{Address, Pa, StreamId};

use crate::errata::Errata;
use crate::frames::Within;
use crate::identity::Identity;
use crate::locked::{Locked, Pages};
use crate::shared::Shared;
use crate::spec::queue::{self, Shape};
use crate::spec::{
    Command, Completion, Cr0, Depth, Event, Gbpa, Recording, Ste, Walks, command, event, regs,
};
use crate::stream::{Levels, Plan, StreamTable};

/// Log2 of the entries of the command queue: one page.
const COMMANDS: u8 = 8;
/// Log2 of the entries of the event queue: 256 KiB. One access of a device may be many records
/// (QEMU: one for each four bytes), all before a CPU can read any: a smaller queue loses those of neighbours.
const EVENTS: u8 = 13;
/// The most commands between two `CMD_SYNC`s: few enough for SMMUs that hang behind too many
/// ([`Errata`]; Linux sends 62 to those).
const BATCH: u32 = 32;
/// How often a command that the SMMU refuses is got rid of in one batch.
const RECOVERIES: u32 = 8;

/// `GERROR` bits. [IHI 0070 §6.3.18]
const CMDQ_ERR: u32 = 1 << 0;
/// The global error by which an SMMU says that it has entered service failure mode: `GERROR.SFM_ERR`.
/// [IHI 0070 §6.3.18]
pub const SERVICE_FAILURE: u32 = 1 << 8;

/// An SMMU did not do as it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It cannot serve VMs at all.
    #[error(transparent)]
    Unusable(#[from] crate::Unusable),
    /// A register did not follow.
    #[error(transparent)]
    Locked(#[from] crate::locked::Error),
    /// No memory for a table or a queue.
    #[error("no memory for its tables and queues")]
    OutOfMemory,
    /// Memory that was given to it is not memory: a bug.
    #[error("its tables are not in memory")]
    NotMemory,
    /// The stream ID is beyond its stream table.
    #[error("the stream is beyond its stream table")]
    NoSuchStream,
    /// Commands were not consumed in [`Locked::TIMEOUT_US`]. It is turned off: everything aborts.
    #[error("commands were not consumed in time: it is off, and everything behind it aborts")]
    Timeout,
    /// It refused a command: `CMDQ_CONS.ERR`. The others of the batch were carried out.
    #[error("it refused a command, reason {0}")]
    Refused(u8),
    /// It was turned off before.
    #[error("it is off, and everything behind it aborts")]
    Off,
}

impl From<OutOfFrames> for Error {
    fn from(_: OutOfFrames) -> Self {
        Self::OutOfMemory
    }
}

impl From<NotMemory> for Error {
    fn from(_: NotMemory) -> Self {
        Self::NotMemory
    }
}

#[derive(Debug)]
struct Ring {
    base: Pa,
    shape: Shape,
    index: u32,
    /// Log2 of its frames.
    order: u8,
}

impl Ring {
    fn new<P: SharedMemory, F: FrameAllocator>(
        memory: &Shared<P>,
        frames: &F,
        log2: u8,
        bytes: usize,
    ) -> Result<Self, Error> {
        let shape = Shape::new(log2);
        let frames_needed = (bytes << log2).div_ceil(4096).next_power_of_two();
        let order = frames_needed.trailing_zeros().to_le_bytes()[0];
        let base = frames.alloc_zeroed(order)?;
        // Zeroes that were left in a cache would come down on what an SMMU has written that does not snoop.
        memory.cleaned(base, 4096 << order);
        Ok(Self {
            base,
            shape,
            index: 0,
            order,
        })
    }

    fn free<F: FrameAllocator>(&self, frames: &F) {
        frames.free(self.base, self.order);
    }

    #[inline(always)]
    fn at(&self, index: u32, bytes: usize) -> Result<Pa, Error> {
        let offset = u64::from(self.shape.entry(index)) * bytes as u64;
        self.base.checked_add(offset).ok_or(Error::NotMemory)
    }
}

/// A stream whose faults are not recorded, or not all of them: the entry that stands for this one.
#[derive(Clone, Copy, Debug)]
struct Muted {
    sid: StreamId,
    recording: Recording,
    entry: Ste,
}

/// What [`Smmu::drain`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Records read.
    pub records: usize,
    /// Records were lost before these.
    pub lost: bool,
    /// There are more.
    pub more: bool,
}

/// A physical SMMU that translates what [`Smmu::install`] told it to, and aborts everything else.
#[derive(Debug)]
pub struct Smmu<M, P, F, C> {
    mmio: M,
    identity: Identity,
    pages: Pages,
    errata: Errata,
    memory: Shared<P>,
    frames: F,
    clock: C,
    streams: StreamTable,
    commands: Ring,
    events: Ring,
    /// `EVENTQ_CONS.OVACKFLG` as it was written last.
    overflow: u32,
    /// It was told to translate.
    has_translated: bool,
    is_off: bool,
    /// What it had let through when it was turned off may not be over.
    is_lost: bool,
    /// Streams whose faults are not recorded, or not all of them.
    muted: Vec<Muted>,
    /// `CMD_SYNC`s sent, for the account of what an operation costs.
    syncs: u64,
    /// Commands sent, `CMD_SYNC`s not counted.
    sent: u64,
}

impl<M: Mmio, P: SharedMemory, F: FrameAllocator, C: Clock> Smmu<M, P, F, C> {
    /// Turns a locked SMMU on, with a stream table in which every stream aborts. `GBPA.ABORT` stays:
    /// it holds whenever the SMMU is off.
    ///
    /// # Errors
    /// [`Error`]; the SMMU is off and aborts everything.
    pub fn enable(locked: Locked<M>, memory: P, frames: F, clock: C) -> Result<Self, Error> {
        let (mmio, identity, pages) = locked.into_parts();
        identity.usable()?;
        let walks = match identity.idr0.cohacc() {
            true => Walks::Coherent,
            false => Walks::NonCoherent,
        };
        let memory = Shared::new(memory, walks);
        let sid_bits = identity.idr1.sidsize();
        let within = Within {
            frames: &frames,
            bits: identity.idr5.oas_bits(),
        };
        let streams = StreamTable::new(
            &memory,
            &within,
            sid_bits,
            Levels::of(identity.idr0.st_level(), sid_bits),
        )?;
        let log2 = COMMANDS.min(identity.idr1.cmdqs());
        let commands = Ring::new(&memory, &within, log2, command::BYTES);
        let log2 = EVENTS.min(identity.idr1.evtqs());
        let events = Ring::new(&memory, &within, log2, event::BYTES);
        let (commands, events) = match (commands, events) {
            (Ok(commands), Ok(events)) => (commands, events),
            (commands, events) => {
                for ring in [commands, events].into_iter().flatten() {
                    ring.free(&frames);
                }
                streams.free(&frames);
                return Err(Error::OutOfMemory);
            }
        };
        let mut smmu = Self {
            errata: Errata::of(identity.iidr),
            mmio,
            identity,
            pages,
            memory,
            frames,
            clock,
            streams,
            commands,
            events,
            overflow: 0,
            has_translated: false,
            is_off: false,
            is_lost: false,
            muted: Vec::new(),
            syncs: 0,
            sent: 0,
        };
        if let Err(error) = smmu.start() {
            smmu.turn_off();
            if !smmu.is_lost {
                smmu.commands.free(&smmu.frames);
                smmu.events.free(&smmu.frames);
                smmu.streams.free(&smmu.frames);
            }
            return Err(error);
        }
        Ok(smmu)
    }

    fn start(&mut self) -> Result<(), Error> {
        let (cacheability, shareability) = self.memory.walks().attributes();
        let [cacheability, ..] = cacheability.to_le_bytes();
        let [shareability, ..] = shareability.to_le_bytes();
        let (cache, share) = (u32::from(cacheability), u32::from(shareability));
        // TABLE_SH, TABLE_OC, TABLE_IC, QUEUE_SH, QUEUE_OC, QUEUE_IC. [IHI 0070 §6.3.11]
        let cr1 = share << 10 | cache << 8 | cache << 6 | share << 4 | cache << 2 | cache;
        self.mmio.write32(regs::CR1, cr1);
        // PTM: broadcast TLB maintenance of CPUs is ignored. RECINVSID: an unknown stream is recorded.
        self.mmio.write32(regs::CR2, 1 << 2 | 1 << 1);
        self.memory.barrier();
        self.mmio
            .write64(regs::STRTAB_BASE, 1 << 62 | self.streams.base().bits());
        self.mmio
            .write32(regs::STRTAB_BASE_CFG, self.streams.config());
        // An error that was left unacknowledged would keep commands from being consumed. [IHI 0070 §7.1]
        self.mmio
            .write32(regs::GERRORN, self.mmio.read32(regs::GERROR));
        let cr0 = self.start_commands()?;
        // What caches held before us is of no table of ours.
        self.send(&[Command::CFGI_ALL, Command::TlbiNsnhAll])?;
        let base = queue::base(self.events.base.bits(), self.events.shape);
        self.mmio.write64(regs::EVENTQ_BASE, base);
        self.mmio.write32(self.pages.at(regs::EVENTQ_PROD), 0);
        self.mmio.write32(self.pages.at(regs::EVENTQ_CONS), 0);
        let cr0 = cr0.with_eventqen(true);
        self.set_cr0(cr0)?;
        if self.identity.idr0.msi() {
            // Wired interrupts: no messages. [IHI 0070 §3.18]
            self.mmio.write64(regs::GERROR_IRQ_CFG0, 0);
            self.mmio.write64(regs::EVENTQ_IRQ_CFG0, 0);
        }
        self.mmio.write32(regs::IRQ_CTRL, 1 << 2 | 1);
        self.wait(regs::IRQ_CTRLACK, "IRQ_CTRLACK", 1 << 2 | 1)?;
        self.has_translated = true;
        self.set_cr0(cr0.with_smmuen(true))
    }

    /// Starts the command queue, empty, while it is off and nothing else is on; returns what `CR0` is then.
    fn start_commands(&mut self) -> Result<Cr0, Error> {
        let base = queue::base(self.commands.base.bits(), self.commands.shape);
        self.mmio.write64(regs::CMDQ_BASE, base);
        self.mmio.write32(regs::CMDQ_PROD, 0);
        self.mmio.write32(regs::CMDQ_CONS, 0);
        self.commands.index = 0;
        // One that is frozen would seem to have consumed what it is to be told.
        let consumer = self.mmio.read32(regs::CMDQ_CONS);
        if consumer != 0 {
            return Err(Error::Locked(crate::locked::Error::Timeout {
                register: "CMDQ_CONS",
                offset: regs::CMDQ_CONS,
                value: consumer,
            }));
        }
        let cr0 = self.checks().with_cmdqen(true);
        self.set_cr0(cr0)?;
        Ok(cr0)
    }

    /// What stays in `CR0` whatever else changes. Without `ATSCHK`, an SMMU with ATS lets pass what a device calls
    /// translated, and looks at no stream table entry: each of ours forbids it (`EATS` 0). [IHI 0070 §3.9]
    fn checks(&self) -> Cr0 {
        Cr0::new().with_atschk(self.identity.idr0.ats())
    }

    fn set_cr0(&self, cr0: Cr0) -> Result<(), Error> {
        self.mmio.write32(regs::CR0, cr0.into_bits());
        self.wait(regs::CR0ACK, "CR0ACK", cr0.into_bits())
    }

    fn wait(&self, offset: usize, register: &'static str, value: u32) -> Result<(), Error> {
        crate::locked::wait(&self.mmio, &self.clock, offset, register, |v| v == value)?;
        Ok(())
    }

    /// What it says of itself.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What is known to be wrong with it.
    pub fn errata(&self) -> &Errata {
        &self.errata
    }

    /// How it walks.
    pub fn walks(&self) -> Walks {
        self.memory.walks()
    }

    /// Bits of a stream ID that its stream table covers.
    pub fn stream_bits(&self) -> u8 {
        self.streams.bits()
    }

    /// Whether it was turned off because it did not answer.
    pub fn is_off(&self) -> bool {
        self.is_off
    }

    /// Whether accesses that it let through before it was turned off may be under way still: it did not confirm that
    /// it is off, or carried no `CMD_SYNC` out after that. Then no memory that a device behind it could reach,
    /// tables included, may be used for anything else.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Commands and `CMD_SYNC`s sent since it was turned on.
    pub fn sent(&self) -> (u64, u64) {
        (self.sent, self.syncs)
    }

    /// Whether it translates, and aborts when it does not: `CR0` and `GBPA` as they read now.
    pub fn state(&self) -> crate::Found {
        crate::Found {
            cr0: Cr0::from_bits(self.mmio.read32(regs::CR0)),
            gbpa: Gbpa::from_bits(self.mmio.read32(regs::GBPA)),
        }
    }

    /// Makes table writes visible to it.
    pub(crate) fn publish(&self) {
        self.memory.barrier();
    }

    /// Carries commands out: when it returns, all are complete.
    ///
    /// # Errors
    /// [`Error::Refused`]: all others are complete. [`Error::Timeout`]: the SMMU is off, and nothing
    /// gets through it. [`Error::Off`]: it was.
    pub fn send(&mut self, commands: &[Command]) -> Result<(), Error> {
        let mut sending = self.sending()?;
        for command in commands {
            sending.add(*command)?;
        }
        sending.finish()
    }

    /// Begins to carry commands out, which are handed over one by one.
    ///
    /// # Errors
    /// [`Error::Off`].
    pub(crate) fn sending(&mut self) -> Result<Sending<'_, M, P, F, C>, Error> {
        if self.is_off {
            return Err(Error::Off);
        }
        let first = self.commands.index;
        let most = self.batch();
        Ok(Sending {
            smmu: self,
            first,
            count: 0,
            most,
            result: Ok(()),
        })
    }

    /// Makes the SMMU consume what is in the queue from `first` on, `count` commands and a `CMD_SYNC`, and
    /// waits.
    fn go(&mut self, first: u32, count: u32) -> Result<(), Error> {
        self.put(Command::Sync(Completion::None))?;
        self.sent += u64::from(count);
        self.syncs += 1;
        let count = count + 1;
        let start = self.commands.at(first, command::BYTES)?;
        let end = self.commands.shape.entry(first) + count;
        if end <= self.commands.shape.entries() {
            self.memory.publish(start, count as usize * command::BYTES);
        } else {
            let all = self.commands.shape.entries() as usize * command::BYTES;
            self.memory.publish(self.commands.base, all);
        }
        self.mmio.write32(regs::CMDQ_PROD, self.commands.index);
        match self.consumed() {
            Err(error) if !matches!(error, Error::Refused(_)) => {
                self.turn_off();
                Err(error)
            }
            done => done,
        }
    }

    /// The most commands of a batch: the queue is empty before each.
    fn batch(&self) -> u32 {
        let entries = self.commands.shape.entries();
        BATCH.min(entries.saturating_sub(1)).max(1)
    }

    #[inline(always)]
    fn put(&mut self, command: Command) -> Result<(), Error> {
        let at = self.commands.at(self.commands.index, command::BYTES)?;
        self.memory.write_pair(at, command.encode())?;
        self.commands.index = self.commands.shape.advance(self.commands.index, 1);
        Ok(())
    }

    /// Waits until the queue is empty.
    fn consumed(&mut self) -> Result<(), Error> {
        let limit = self.clock.ticks_of_us(Locked::<&dyn Mmio>::TIMEOUT_US);
        let mut start = None;
        let mut result = Ok(());
        let mut recoveries = 0;
        loop {
            let consumer = self.mmio.read32(regs::CMDQ_CONS);
            if self.commands.shape.mask(consumer) == self.commands.index {
                return result;
            }
            if consumer >> 24 & 0x7f != 0 && self.errors() & CMDQ_ERR != 0 {
                recoveries += 1;
                if recoveries > RECOVERIES {
                    return Err(Error::Timeout);
                }
                result = Err(self.recover(consumer)?);
                continue;
            }
            let now = self.clock.ticks();
            if now.wrapping_sub(*start.get_or_insert(now)) > limit {
                return Err(Error::Timeout);
            }
        }
    }

    /// Global errors that are active.
    fn errors(&self) -> u32 {
        self.mmio.read32(regs::GERROR) ^ self.mmio.read32(regs::GERRORN)
    }

    /// Puts a `CMD_SYNC` in the place of a command that the SMMU refuses, and lets it go on.
    /// [IHI 0070 §7.1]
    fn recover(&mut self, consumer: u32) -> Result<Error, Error> {
        const ILLEGAL: u8 = 1;
        let [_, _, _, reason] = consumer.to_le_bytes();
        let reason = reason & 0x7f;
        if reason == ILLEGAL {
            let at = self.commands.at(consumer, command::BYTES)?;
            let sync = Command::Sync(Completion::None).encode();
            self.memory.write_pair(at, sync)?;
            self.memory.publish(at, command::BYTES);
        }
        let errors = self.mmio.read32(regs::GERRORN) ^ CMDQ_ERR;
        self.mmio.write32(regs::GERRORN, errors);
        Ok(Error::Refused(reason))
    }

    /// Off for good: everything behind it aborts, by `GBPA`, and what it let through before is over, or it is lost.
    #[cold]
    fn turn_off(&mut self) {
        self.is_off = true;
        let settled = |gbpa: u32| !Gbpa::from_bits(gbpa).update();
        let mut sure = crate::locked::wait(&self.mmio, &self.clock, regs::GBPA, "GBPA", settled);
        let gbpa = Gbpa::from_bits(self.mmio.read32(regs::GBPA));
        if !gbpa.abort() {
            let abort = gbpa.with_abort(true).with_update(true);
            self.mmio.write32(regs::GBPA, abort.into_bits());
            sure = crate::locked::wait(&self.mmio, &self.clock, regs::GBPA, "GBPA", |v| {
                settled(v) && Gbpa::from_bits(v).abort()
            });
        }
        let off = self.set_cr0(self.checks());
        let over = self.outlast();
        self.is_lost = off.is_err() || sure.is_err() || over.is_err();
    }

    /// Waits until all that it let through is over. That `SMMUEN` is off says of accesses only that new ones abort
    /// [IHI 0070 §6.3.9.6]; those that had looked up an entry or a translation are seen to their end by a
    /// `CMD_SYNC` behind an invalidation of it [IHI 0070 §4.3.8]. The command queue is started anew for that: it may have
    /// got stuck.
    fn outlast(&mut self) -> Result<(), Error> {
        if !self.has_translated {
            return Ok(());
        }
        let refused = self.errors() & CMDQ_ERR;
        let errors = self.mmio.read32(regs::GERRORN) ^ refused;
        self.mmio.write32(regs::GERRORN, errors);
        self.start_commands()?;
        let sync = Command::Sync(Completion::None);
        for command in [Command::CFGI_ALL, Command::TlbiNsnhAll, sync] {
            let at = self.commands.at(self.commands.index, command::BYTES)?;
            self.put(command)?;
            self.memory.publish(at, command::BYTES);
            self.mmio.write32(regs::CMDQ_PROD, self.commands.index);
            // What it refuses, it does not go beyond.
            let (shape, end) = (self.commands.shape, self.commands.index);
            let done = |consumer: u32| shape.mask(consumer) == end;
            crate::locked::wait(&self.mmio, &self.clock, regs::CMDQ_CONS, "CMDQ_CONS", done)?;
        }
        self.set_cr0(self.checks())
    }

    /// Stops translating: every stream aborts, caches are empty, and the SMMU is off.
    pub fn disable(&mut self) {
        if !self.is_off {
            self.turn_off();
        }
    }

    /// The entry of a stream as it stands in memory.
    ///
    /// # Errors
    /// [`Error::NoSuchStream`].
    pub fn entry(&self, sid: StreamId) -> Result<Ste, Error> {
        let Some(slot) = self.streams.find(sid)? else {
            return Ok(Ste::INVALID);
        };
        self.read_entry(slot)
    }

    fn read_entry(&self, slot: Pa) -> Result<Ste, Error> {
        let mut words = [0; 8];
        for (at, word) in (0_u64..).zip(&mut words) {
            *word = self
                .memory
                .word(slot.checked_add(at * 8).ok_or(Error::NotMemory)?)?;
        }
        Ok(Ste(words))
    }

    /// Changes the entry of a stream. The stream does what the old entry says or what the new one
    /// does, and where two words have to change at once, aborts for a moment. When it returns, the
    /// SMMU has forgotten the old entry, and every access under it is over.
    ///
    /// Only an entry for a stream that never had one needs memory.
    ///
    /// # Errors
    /// [`Error::NoSuchStream`], [`Error::OutOfMemory`], with the old entry live; errors of
    /// [`Smmu::send`].
    pub fn install(&mut self, sid: StreamId, ste: Ste) -> Result<(), Error> {
        if self.is_off {
            // Everything aborts, whatever the entry says.
            return if matches!(ste, Ste::ABORT | Ste::INVALID) {
                Ok(())
            } else {
                Err(Error::Off)
            };
        }
        if ste == Ste::ABORT && self.streams.find(sid)?.is_none() {
            return Ok(());
        }
        // A guest that writes its entry anew is not heard before its time is over.
        let muted = self.muted.iter_mut().find(|muted| muted.sid == sid);
        let recording = muted.map_or(Recording::On, |muted| {
            muted.entry = ste;
            muted.recording
        });
        self.change(sid, ste.with_recording(recording))
    }

    /// Changes the entry of a stream to what is said, step by step.
    fn change(&mut self, sid: StreamId, ste: Ste) -> Result<(), Error> {
        let within = Within {
            frames: &self.frames,
            bits: self.identity.idr5.oas_bits(),
        };
        let (slot, is_new) = self.streams.make(&self.memory, &within, sid)?;
        if is_new {
            self.forget(sid, Depth::All)?;
        }
        let old = self.read_entry(slot)?;
        for step in Plan::new(old, ste).steps() {
            self.write_entry(slot, *step)?;
            self.forget(sid, Depth::Leaf)?;
        }
        Ok(())
    }

    /// Has faults of a stream recorded or not: against a device that floods. They terminate either way. It holds
    /// for every entry that is installed for the stream, until [`Recording::On`]; less is not muted before.
    ///
    /// # Errors
    /// As of [`Smmu::install`].
    pub fn set_recording(&mut self, sid: StreamId, recording: Recording) -> Result<(), Error> {
        if self.is_off || self.streams.find(sid)?.is_none() {
            // Nothing of ours is recorded there.
            return Ok(());
        }
        let known = self.muted.iter().position(|muted| muted.sid == sid);
        let muted = known.and_then(|at| self.muted.get_mut(at));
        let (entry, level) = match (muted, recording) {
            (None, Recording::On) => return Ok(()),
            (Some(muted), Recording::On) => (muted.entry, recording),
            (Some(muted), _) => {
                muted.recording = muted.recording.max(recording);
                (muted.entry, muted.recording)
            }
            (None, _) => {
                let entry = self.entry(sid)?;
                if self.muted.try_reserve(1).is_err() {
                    return Err(Error::OutOfMemory);
                }
                self.muted.push(Muted {
                    sid,
                    recording,
                    entry,
                });
                (entry, recording)
            }
        };
        if let (Recording::On, Some(at)) = (recording, known) {
            self.muted.swap_remove(at);
        }
        self.change(sid, entry.with_recording(level))
    }

    /// Makes it read the entry of a stream again. An SMMU that refuses that twice is turned off: it
    /// cannot be said which entry it follows.
    fn forget(&mut self, sid: StreamId, depth: Depth) -> Result<(), Error> {
        match self.send(&[Command::CfgiSte { sid, depth }]) {
            Err(Error::Refused(_)) => {}
            outcome => return outcome,
        }
        let again = self.send(&[Command::CFGI_ALL]);
        if let Err(Error::Refused(_)) = again {
            self.turn_off();
        }
        again
    }

    fn write_entry(&self, slot: Pa, ste: Ste) -> Result<(), Error> {
        for (at, word) in (0_u64..).zip(ste.0) {
            let at = slot.checked_add(at * 8).ok_or(Error::NotMemory)?;
            // A word that stays is not written: the SMMU may be reading it.
            if self.memory.word(at)? != word {
                self.memory.write(at, word)?;
            }
        }
        self.memory.publish(slot, Ste::BYTES);
        Ok(())
    }

    /// Reads event records, at most `budget` of them, in the order they were written. For the handler of the event queue's
    /// interrupt; allocates nothing.
    pub fn drain(&mut self, budget: usize, mut each: impl FnMut(Event)) -> Drained {
        let mut drained = Drained::default();
        let at_producer = self.pages.at(regs::EVENTQ_PROD);
        let producer = self.mmio.read32(at_producer);
        drained.lost = (producer ^ self.overflow) & queue::OVERFLOW != 0;
        // Records are read after the index that says they are there.
        self.memory.barrier();
        let shape = self.events.shape;
        let waiting = shape
            .between(self.events.index, producer)
            .min(shape.entries());
        for _ in 0..waiting {
            if drained.records == budget {
                drained.more = true;
                break;
            }
            let Ok(at) = self.events.at(self.events.index, event::BYTES) else {
                break;
            };
            self.memory.refresh(at, event::BYTES);
            let mut words = [0; 4];
            for (offset, word) in (0_u64..).zip(&mut words) {
                let read = at
                    .checked_add(offset * 8)
                    .and_then(|at| self.memory.word(at).ok());
                *word = read.unwrap_or(0);
            }
            each(Event(words));
            self.events.index = shape.advance(self.events.index, 1);
            drained.records += 1;
        }
        // The records have been read before their places are given back.
        self.memory.barrier();
        self.overflow = producer & queue::OVERFLOW;
        let consumer = self.events.index | self.overflow;
        self.mmio
            .write32(self.pages.at(regs::EVENTQ_CONS), consumer);
        // Only a queue that was empty interrupts when a record comes: for one that came since the producer was read there
        // is no interrupt. [IHI 0070 §3.18]
        let producer = self.mmio.read32(at_producer);
        drained.more |= !shape.is_empty(self.events.index, shape.mask(producer));
        drained
    }

    /// Acknowledges global errors other than the command queue's, and returns them: `GERROR` bits.
    /// Bit 2: records of events were lost. [`SERVICE_FAILURE`]: it has stopped to work, and is turned off, so
    /// that everything behind it aborts whatever becomes of it. [IHI 0070 §12.3]
    pub fn acknowledge_errors(&mut self) -> u32 {
        let active = self.errors() & !CMDQ_ERR;
        if active != 0 {
            let acknowledged = self.mmio.read32(regs::GERRORN) ^ active;
            self.mmio.write32(regs::GERRORN, acknowledged);
        }
        if active & SERVICE_FAILURE != 0 && !self.is_off {
            self.turn_off();
        }
        active
    }
}

/// Commands on their way to an SMMU: they go out a batch at a time, each with one wait.
pub(crate) struct Sending<'a, M, P, F, C> {
    smmu: &'a mut Smmu<M, P, F, C>,
    /// Where the batch begins in the queue, how many are in it, and how many may be.
    first: u32,
    count: u32,
    most: u32,
    /// The first refusal; all others are complete.
    result: Result<(), Error>,
}

impl<M: Mmio, P: SharedMemory, F: FrameAllocator, C: Clock> Sending<'_, M, P, F, C> {
    /// Adds a command, and has a full batch carried out.
    ///
    /// # Errors
    /// [`Error::Timeout`] and what [`Smmu::send`] says of it.
    pub(crate) fn add(&mut self, command: Command) -> Result<(), Error> {
        if self.count >= self.most {
            self.go()?;
        }
        self.smmu.put(command)?;
        self.count += 1;
        Ok(())
    }

    fn go(&mut self) -> Result<(), Error> {
        if self.smmu.is_off {
            return Err(Error::Off);
        }
        let done = self.smmu.go(self.first, self.count);
        self.first = self.smmu.commands.index;
        self.count = 0;
        match done {
            Err(error @ Error::Refused(_)) => {
                self.result = Err(error);
                Ok(())
            }
            done => done,
        }
    }

    /// Waits for the rest: all are complete.
    ///
    /// # Errors
    /// Those of [`Smmu::send`].
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        if self.count > 0 {
            self.go()?;
        }
        self.result
    }
}
