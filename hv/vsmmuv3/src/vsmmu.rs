//! One guest SMMU: registers, command consumer, streams.

use alloc::vec::Vec;

use iommu::NestedConfig;
use smmuv3::spec::command::Raw;
use smmuv3::spec::{Completion, Event, EventId};
use types::StreamId;

use crate::command::{self, Judged};
use crate::entry::{BadSte, Missing, StreamTable};
use crate::events::{self, Events, Put};
use crate::features::{AtReset, Features};
use crate::memory::{GuestMemory, words_into};
use crate::physical::{Batch, Failure, Invalidation, Physical, Refusal};
use crate::registers::{
    ABORT, CMDQ_ERR, CMDQEN, CONS_ERR_SHIFT, EVENTQ_ABT_ERR, EVENTQEN, INDEX, IRQ_EVENTQ,
    IRQ_GERROR, Part, RECINVSID, Register, Registers, SFM_ERR, SMMUEN, UPDATE, Width, event_index,
    queue_base,
};

/// The most streams of one guest SMMU.
pub const MOST_STREAMS: usize = 256;

/// What one call may cost, about in commands.
pub const BUDGET: u32 = 128;
/// Commands that one read of the queue fetches.
const AHEAD: usize = 4;
/// A stream read again and switched costs as much as so many commands.
const STREAM_COST: u32 = 8;
/// A batch handed to the hardware, with its wait.
const SYNC_COST: u32 = 8;

/// `CMDQ_CONS.ERR`. [IHI 0070 §7.1]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum CommandError {
    Illegal = 1,
    Abort = 2,
    AtcInvSync = 3,
}

/// A wired interrupt of the guest's SMMU. All are edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// `eventq`: a record was written.
    Event,
    /// `gerror`: an error became active.
    Gerror,
    /// `cmdq-sync`: a `CMD_SYNC` that asked for it is complete.
    Sync,
}

/// Interrupts to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interrupts(u8);

impl Interrupts {
    /// None.
    pub const NONE: Self = Self(0);

    const fn bit(line: Line) -> u8 {
        match line {
            Line::Event => 1,
            Line::Gerror => 2,
            Line::Sync => 4,
        }
    }

    /// Whether a line is to be pulsed.
    #[must_use]
    pub const fn contains(self, line: Line) -> bool {
        self.0 & Self::bit(line) != 0
    }

    fn add(&mut self, line: Line) {
        self.0 |= Self::bit(line);
    }
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Nothing until the guest's next access.
    Done,
    /// The budget is spent: [`VSmmu::run`] goes on. Other vCPUs may run, and access the SMMU,
    /// before.
    More,
}

/// Whether the guest's SMMU still stands for what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Good,
    /// The hardware did not confirm something: no further command is consumed, the guest sees
    /// service failure mode. The integrator stops the VM and takes its devices away.
    Broken,
}

/// What a call asks of the world outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Outcome {
    /// Interrupts to send to the guest.
    pub interrupts: Interrupts,
    /// Whether to call [`VSmmu::run`].
    pub work: Work,
    /// Whether all is well.
    pub health: Health,
}

/// What became of a hardware event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The guest has a record of it.
    Delivered,
    /// It is not the guest's to see.
    Filtered,
    /// The guest does not look: its event queue is off.
    Off,
    /// The guest's queue is full, or not in memory.
    Lost,
}

/// Why a stream cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The stream ID is beyond the guest's `IDR1.SIDSIZE`.
    #[error("stream {0} is beyond the guest's stream IDs")]
    OutOfRange(StreamId),
    /// It is there already.
    #[error("stream {0} is there already")]
    Exists(StreamId),
    /// There are [`MOST_STREAMS`], or no memory.
    #[error("no room for a stream")]
    NoRoom,
}

/// Counts since the SMMU was made, for the monitor and for tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commands consumed.
    pub commands: u64,
    /// Commands refused or not fetched.
    pub errors: u64,
    /// Invalidations handed to the hardware.
    pub invalidations: u64,
    /// Batches of them.
    pub batches: u64,
    /// Streams switched.
    pub switches: u64,
    /// Stream table entries read.
    pub entries_read: u64,
    /// Records put into the guest's event queue.
    pub events: u64,
    /// Records lost because that queue was full, off or not in memory.
    pub events_lost: u64,
}

/// What the guest's tables say of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its SMMU is off: `GBPA` decides.
    Off,
    /// The entry is legal.
    Legal,
    /// There is no entry: `C_BAD_STREAMID`.
    NoEntry,
    /// A table is not in the guest's memory: `F_STE_FETCH`.
    NotFetched {
        /// Where.
        at: u64,
    },
    /// The entry is illegal: `C_BAD_STE`.
    Illegal(BadSte),
    /// The entry is legal, but the hardware has no room for it: the stream aborts, and the guest
    /// is told `C_BAD_STE`.
    Refused,
}

/// A stream of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    id: StreamId,
    live: NestedConfig,
    verdict: Verdict,
}

impl Stream {
    /// The guest's stream ID.
    #[must_use]
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// What the hardware was told last.
    #[must_use]
    pub fn live(&self) -> NestedConfig {
        self.live
    }

    /// What the guest's tables said when they were read last.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }
}

/// Why streams are read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// `CR0.SMMUEN` or `GBPA` changed: complete when all streams follow.
    Control,
    /// A command, which is consumed when all its streams follow.
    Command,
}

/// Streams that are to be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sweep {
    next: u32,
    last: u32,
    cause: Cause,
}

/// An SMMUv3 as one guest sees it.
#[derive(Debug)]
pub struct VSmmu {
    features: Features,
    registers: Registers,
    events: Events,
    streams: Vec<Stream>,
    batch: Batch,
    /// A device did not answer since the last `CMD_SYNC`.
    atc_timeout: bool,
    sweep: Option<Sweep>,
    /// What was cached before a reset is to go once all streams have followed it.
    forget: bool,
    /// Commands that may still be consumed for the last `CMDQ_PROD`: at most one lap.
    lap: u32,
    health: Health,
    counters: Counters,
}

/// What is done within one call.
struct Run<'a, M, P> {
    memory: &'a M,
    physical: &'a mut P,
    left: u32,
    interrupts: Interrupts,
    ahead: Ahead,
}

/// Commands that one read of the guest's queue brought: it is the emulation's until they are consumed, and
/// what the guest writes there meanwhile is not looked at.
#[derive(Default)]
struct Ahead {
    entries: [Raw; AHEAD],
    next: usize,
    count: usize,
}

impl<'a, M, P> Run<'a, M, P> {
    fn new(memory: &'a M, physical: &'a mut P) -> Self {
        Self {
            memory,
            physical,
            left: BUDGET,
            interrupts: Interrupts::NONE,
            ahead: Ahead::default(),
        }
    }

    fn spend(&mut self, cost: u32) {
        self.left = self.left.saturating_sub(cost);
    }
}

impl VSmmu {
    /// A guest's SMMU out of reset, without streams.
    #[must_use]
    pub fn new(features: Features) -> Self {
        Self {
            features,
            registers: Registers::at_reset(abort_at_reset(&features)),
            events: Events::default(),
            streams: Vec::new(),
            batch: Batch::new(),
            atc_timeout: false,
            sweep: None,
            forget: false,
            lap: 0,
            health: Health::Good,
            counters: Counters::default(),
        }
    }

    /// What it promises.
    #[must_use]
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// What it did.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether all is well.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health
    }

    /// The guest's streams, ordered by ID.
    #[must_use]
    pub fn streams(&self) -> &[Stream] {
        &self.streams
    }

    /// A stream.
    #[must_use]
    pub fn stream(&self, id: StreamId) -> Option<&Stream> {
        self.streams.get(self.find(id).ok()?)
    }

    fn find(&self, id: StreamId) -> Result<usize, usize> {
        self.streams.binary_search_by_key(&id, |stream| stream.id)
    }

    /// Adds a stream, whose hardware aborts everything so far, and switches it to what the guest
    /// configured for it.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn add_stream(
        &mut self,
        id: StreamId,
        memory: &impl GuestMemory,
        physical: &mut impl Physical,
    ) -> Result<Outcome, StreamError> {
        if id.bits().checked_shr(self.features.idr1.sidsize().into()) != Some(0) {
            return Err(StreamError::OutOfRange(id));
        }
        let Err(at) = self.find(id) else {
            return Err(StreamError::Exists(id));
        };
        if self.streams.len() >= MOST_STREAMS || self.streams.try_reserve(1).is_err() {
            return Err(StreamError::NoRoom);
        }
        let stream = Stream {
            id,
            live: NestedConfig::ABORT,
            verdict: Verdict::Off,
        };
        self.streams.insert(at, stream);
        let mut run = Run::new(memory, physical);
        self.evaluate(at, &mut run);
        Ok(self.outcome(&run))
    }

    /// Forgets a stream, and what the guest asked for it and the hardware has not been told. What its
    /// hardware goes through is the caller's to change.
    pub fn remove_stream(&mut self, id: StreamId) {
        if let Ok(at) = self.find(id) {
            self.streams.remove(at);
            self.batch.drop_stream(id);
        }
    }

    /// Reads a register. What is not there reads as zero.
    #[must_use]
    pub fn read(&self, offset: u64, width: Width) -> u64 {
        let Some(part) = Part::at(offset, width) else {
            return 0;
        };
        part.extract(self.value(part.register()))
    }

    fn value(&self, register: Register) -> u64 {
        match register {
            Register::EventqBase => self.events.base,
            Register::EventqProd => self.events.prod.into(),
            Register::EventqCons => self.events.cons.into(),
            other => self.registers.read(other, &self.features),
        }
    }

    /// Writes a register, and does what follows from it, as far as the budget goes.
    pub fn write(
        &mut self,
        offset: u64,
        width: Width,
        value: u64,
        memory: &impl GuestMemory,
        physical: &mut impl Physical,
    ) -> Outcome {
        let mut run = Run::new(memory, physical);
        if let Some(part) = Part::at(offset, width) {
            self.store(part, value, &mut run);
        }
        self.go_on(&mut run);
        self.outcome(&run)
    }

    /// Goes on with what a call left undone.
    pub fn run(&mut self, memory: &impl GuestMemory, physical: &mut impl Physical) -> Outcome {
        let mut run = Run::new(memory, physical);
        self.go_on(&mut run);
        self.outcome(&run)
    }

    /// Puts the SMMU back to its reset state, as far as the budget goes: every stream goes to what
    /// [`AtReset`] says, and what was cached of its stage 1 goes.
    pub fn reset(&mut self, memory: &impl GuestMemory, physical: &mut impl Physical) -> Outcome {
        self.registers = Registers::at_reset(abort_at_reset(&self.features));
        self.events = Events::default();
        self.lap = 0;
        self.atc_timeout = false;
        self.forget = true;
        let mut run = Run::new(memory, physical);
        self.start_control_sweep();
        self.go_on(&mut run);
        self.outcome(&run)
    }

    /// Tells the guest of a hardware event of one of its streams, as far as it may see it.
    ///
    /// Neither waits nor touches hardware. `interrupts` of the outcome are to be sent.
    pub fn report(
        &mut self,
        stream: StreamId,
        hardware: &Event,
        memory: &impl GuestMemory,
    ) -> (Delivery, Interrupts) {
        let mut interrupts = Interrupts::NONE;
        let Some(known) = self.stream(stream).copied() else {
            return (Delivery::Filtered, interrupts);
        };
        if !self.registers.is_on(SMMUEN) {
            return (Delivery::Filtered, interrupts);
        }
        let record = match (hardware.id(), known.verdict) {
            // What the hardware calls a bad entry is one that was made for a missing one.
            (EventId::CBadSte, Verdict::NoEntry | Verdict::NotFetched { .. }) => {
                self.emulated(&known)
            }
            // A driver's hardware, not a guest's.
            _ if self.features.has_stage_two() => Some(hardware.with_sid(stream.bits())),
            _ => events::for_guest(hardware, stream, self.features.substream_bits()),
        };
        let delivery = match record {
            None => Delivery::Filtered,
            Some(record) => self.put(&record, memory, &mut interrupts),
        };
        (delivery, interrupts)
    }

    fn outcome<M, P>(&self, run: &Run<'_, M, P>) -> Outcome {
        let work = if self.has_work() {
            Work::More
        } else {
            Work::Done
        };
        Outcome {
            interrupts: run.interrupts,
            work,
            health: self.health,
        }
    }

    fn has_work(&self) -> bool {
        self.sweep.is_some() || self.may_consume()
    }

    fn store<M: GuestMemory, P: Physical>(
        &mut self,
        part: Part,
        value: u64,
        run: &mut Run<'_, M, P>,
    ) {
        let registers = &mut self.registers;
        let word = low(value);
        match part.register() {
            Register::Cr0 => self.write_cr0(word, run),
            Register::Cr1 => registers.write_cr1(word),
            Register::Cr2 => registers.write_cr2(word),
            Register::Gbpa => self.write_gbpa(word),
            Register::IrqCtrl => registers.irq_ctrl = word & (IRQ_GERROR | IRQ_EVENTQ),
            Register::Gerrorn => registers.write_gerrorn(word),
            Register::StrtabBase => registers.write_strtab_base(part, value),
            Register::StrtabBaseCfg => registers.write_strtab_base_cfg(word),
            Register::CmdqBase => registers.write_cmdq_base(part, value),
            Register::CmdqProd => {
                registers.cmdq_prod = word & INDEX;
                self.measure_lap();
            }
            Register::CmdqCons => {
                if !registers.is_on(CMDQEN) {
                    registers.cmdq_cons = word & INDEX;
                }
            }
            Register::EventqBase => {
                if !registers.is_on(EVENTQEN) {
                    self.events.base = queue_base(part.merge(self.events.base, value));
                }
            }
            Register::EventqProd => {
                if !registers.is_on(EVENTQEN) {
                    self.events.prod = event_index(word);
                }
            }
            Register::EventqCons => self.events.cons = event_index(word),
            Register::Idr0
            | Register::Idr1
            | Register::Idr3
            | Register::Idr5
            | Register::Aidr
            | Register::Cr0Ack
            | Register::IrqCtrlAck
            | Register::Gerror => {}
        }
    }

    fn write_cr0<M: GuestMemory, P: Physical>(&mut self, value: u32, run: &mut Run<'_, M, P>) {
        let old = self.registers.cr0;
        let new = value & Registers::cr0_mask(&self.features);
        self.registers.cr0 = new;
        if old & !new & CMDQEN != 0 {
            // What was consumed is complete before the queue says that it is off.
            self.drop_command_sweep();
            self.flush(run);
        }
        let pending = self.registers.cr0ack & SMMUEN;
        self.registers.cr0ack = new & !SMMUEN | pending;
        if new & !old & CMDQEN != 0 {
            self.measure_lap();
        }
        if (old ^ new) & SMMUEN != 0 {
            self.start_control_sweep();
        }
    }

    fn write_gbpa(&mut self, value: u32) {
        if value & UPDATE == 0 || self.registers.gbpa & UPDATE != 0 {
            return;
        }
        let new = Registers::gbpa_of(value);
        if self.registers.cr0 & SMMUEN != 0 {
            self.registers.gbpa = new;
        } else {
            self.registers.gbpa = new | UPDATE;
            self.start_control_sweep();
        }
    }

    fn start_control_sweep(&mut self) {
        self.sweep = Some(Sweep {
            next: 0,
            last: u32::MAX,
            cause: Cause::Control,
        });
    }

    fn drop_command_sweep(&mut self) {
        if self
            .sweep
            .is_some_and(|sweep| sweep.cause == Cause::Command)
        {
            self.sweep = None;
        }
    }

    fn commands(&self) -> smmuv3::spec::queue::Shape {
        events::shape(self.registers.cmdq_base, self.features.idr1.cmdqs())
    }

    /// A producer index beyond a lap gets no more than a lap consumed.
    fn measure_lap(&mut self) {
        let shape = self.commands();
        let waiting = shape.between(self.registers.cmdq_cons, self.registers.cmdq_prod);
        self.lap = waiting.min(shape.entries());
    }

    fn may_consume(&self) -> bool {
        self.registers.cr0 & CMDQEN != 0
            && self.registers.active_errors() & CMDQ_ERR == 0
            && self.health == Health::Good
            && self.lap > 0
    }

    fn go_on<M: GuestMemory, P: Physical>(&mut self, run: &mut Run<'_, M, P>) {
        while run.left > 0 {
            if let Some(sweep) = self.sweep {
                self.step(sweep, run);
            } else if self.may_consume() {
                self.consume(run);
            } else {
                break;
            }
        }
    }

    /// Reads one more stream of a sweep again, or completes it.
    fn step<M: GuestMemory, P: Physical>(&mut self, sweep: Sweep, run: &mut Run<'_, M, P>) {
        let at = self
            .streams
            .partition_point(|stream| stream.id.bits() < sweep.next);
        let next = self
            .streams
            .get(at)
            .map(|stream| stream.id.bits())
            .filter(|id| *id <= sweep.last);
        match next {
            Some(id) => {
                self.evaluate(at, run);
                match id.checked_add(1) {
                    Some(next) => self.sweep = Some(Sweep { next, ..sweep }),
                    None => self.finish(sweep, run),
                }
            }
            None => self.finish(sweep, run),
        }
    }

    fn finish<M, P: Physical>(&mut self, sweep: Sweep, run: &mut Run<'_, M, P>) {
        run.spend(1);
        self.sweep = None;
        match sweep.cause {
            Cause::Control => {
                if core::mem::take(&mut self.forget) {
                    self.batch.clear();
                    self.batch.push(Invalidation::All);
                    self.flush(run);
                }
                if self.health == Health::Good {
                    self.registers.cr0ack = self.registers.cr0;
                    self.registers.gbpa &= !UPDATE;
                }
            }
            // What was not confirmed is never said to be done.
            Cause::Command if self.health == Health::Broken => {}
            Cause::Command => self.advance(),
        }
    }

    fn advance(&mut self) {
        self.registers.cmdq_cons = self.commands().advance(self.registers.cmdq_cons, 1);
        self.lap = self.lap.saturating_sub(1);
        self.counters.commands = self.counters.commands.wrapping_add(1);
    }

    /// The next command, from a copy; `None` when it does not lie in the guest's memory.
    fn fetch<M: GuestMemory, P>(&self, run: &mut Run<'_, M, P>) -> Option<Raw> {
        let ahead = &mut run.ahead;
        if ahead.next >= ahead.count {
            let shape = self.commands();
            let index = self.registers.cmdq_cons;
            let at = events::slot(self.registers.cmdq_base, shape, index, 4);
            // Neither past the last command nor past the end of the queue.
            let to_end = shape.entries().saturating_sub(shape.entry(index));
            let count = usize::try_from(self.lap.min(to_end)).unwrap_or(AHEAD);
            ahead.next = 0;
            ahead.count = count.clamp(1, AHEAD);
            let mut entries = [0; 2 * AHEAD];
            let mut read = |count: usize| {
                let entries = entries
                    .get_mut(..count.saturating_mul(2))
                    .unwrap_or_default();
                words_into(run.memory, at, entries)
            };
            if read(ahead.count).is_err() {
                // One of the later ones may be to blame.
                ahead.count = 0;
                read(1).ok()?;
                ahead.count = 1;
            }
            for (entry, [low, high]) in ahead.entries.iter_mut().zip(entries.as_chunks().0) {
                *entry = [*low, *high];
            }
        }
        let raw = ahead.entries.get(ahead.next).copied();
        ahead.next = ahead.next.saturating_add(1);
        raw
    }

    /// Fetches, judges and carries out one command.
    fn consume<M: GuestMemory, P: Physical>(&mut self, run: &mut Run<'_, M, P>) {
        run.spend(1);
        let Some(raw) = self.fetch(run) else {
            self.command_error(CommandError::Abort, run);
            return;
        };
        let Ok(judged) = command::judge(raw, &self.features) else {
            self.command_error(CommandError::Illegal, run);
            return;
        };
        let entry = match judged {
            Judged::Nothing => None,
            Judged::Invalidate(invalidation) => Some(invalidation),
            Judged::Context { stream, substream } => self
                .stream(stream)
                .and_then(|known| command::context_of(&known.live, stream, substream)),
            Judged::Atc {
                stream,
                substream,
                first,
                last,
            } => self
                .stream(stream)
                .filter(|known| command::has_atc(&known.live))
                .map(|_| Invalidation::Atc {
                    stream,
                    substream,
                    first,
                    last,
                }),
            Judged::Entries { first, last } => {
                self.sweep = Some(Sweep {
                    next: first,
                    last,
                    cause: Cause::Command,
                });
                return;
            }
            Judged::Sync(completion) => {
                self.sync(completion, run);
                return;
            }
        };
        if let Some(entry) = entry {
            self.collect(entry, run);
        }
        self.advance();
    }

    fn sync<M: GuestMemory, P: Physical>(
        &mut self,
        completion: Completion,
        run: &mut Run<'_, M, P>,
    ) {
        self.flush(run);
        if self.health == Health::Broken {
            // What it waits for did not happen: it is never complete.
            return;
        }
        if core::mem::take(&mut self.atc_timeout) {
            self.command_error(CommandError::AtcInvSync, run);
            return;
        }
        self.advance();
        // Without MSIs the address and the data of the command are RES0, whatever they hold.
        if let Completion::Interrupt { .. } = completion {
            run.interrupts.add(Line::Sync);
        }
    }

    fn command_error<M, P>(&mut self, error: CommandError, run: &mut Run<'_, M, P>) {
        self.counters.errors = self.counters.errors.wrapping_add(1);
        let index = self.registers.cmdq_cons & INDEX;
        self.registers.cmdq_cons = index | (error as u32) << CONS_ERR_SHIFT;
        self.error(CMDQ_ERR, &mut run.interrupts);
    }

    fn error(&mut self, bit: u32, interrupts: &mut Interrupts) {
        if self.registers.raise_error(bit) && self.registers.irq_ctrl & IRQ_GERROR != 0 {
            interrupts.add(Line::Gerror);
        }
    }

    fn broken<M, P>(&mut self, run: &mut Run<'_, M, P>) {
        self.health = Health::Broken;
        self.error(SFM_ERR, &mut run.interrupts);
    }

    fn collect<M, P: Physical>(&mut self, entry: Invalidation, run: &mut Run<'_, M, P>) {
        if self.batch.is_full() {
            self.flush(run);
        }
        self.batch.push(entry);
    }

    /// Hands what was collected to the hardware.
    fn flush<M, P: Physical>(&mut self, run: &mut Run<'_, M, P>) {
        let entries = self.batch.entries();
        if entries.is_empty() {
            return;
        }
        run.spend(SYNC_COST);
        let count = u64::try_from(entries.len()).unwrap_or(0);
        self.counters.invalidations = self.counters.invalidations.wrapping_add(count);
        self.counters.batches = self.counters.batches.wrapping_add(1);
        let done = run.physical.invalidate(entries);
        self.batch.clear();
        match done {
            Ok(()) => {}
            Err(Failure::AtcTimeout) => self.atc_timeout = true,
            Err(Failure::Failed) => self.broken(run),
        }
    }

    /// The stream table as the registers have it.
    pub(crate) fn table(&self) -> StreamTable {
        StreamTable::new(
            self.registers.strtab_base,
            self.registers.strtab_base_cfg,
            self.features.idr1.sidsize(),
        )
    }

    /// What holds while the guest's SMMU is off; `None` when it is on.
    pub(crate) fn while_off(&self) -> Option<NestedConfig> {
        if self.registers.cr0 & SMMUEN != 0 {
            None
        } else if self.registers.gbpa & ABORT != 0 {
            Some(NestedConfig::ABORT)
        } else {
            Some(NestedConfig::BYPASS)
        }
    }

    /// What the guest wants of a stream now.
    fn wanted(&mut self, id: StreamId, memory: &impl GuestMemory) -> (NestedConfig, Verdict) {
        if let Some(config) = self.while_off() {
            return (config, Verdict::Off);
        }
        self.counters.entries_read = self.counters.entries_read.wrapping_add(1);
        match self.table().find(memory, id) {
            Ok(found) => match found.ste.judge(&self.features) {
                Ok(config) => (config, Verdict::Legal),
                Err(bad) => (NestedConfig::INVALID, Verdict::Illegal(bad)),
            },
            // Nobody wants records of these.
            Err(Missing::StreamId) if self.registers.cr2 & RECINVSID == 0 => {
                (NestedConfig::ABORT, Verdict::NoEntry)
            }
            Err(Missing::StreamId) => (NestedConfig::INVALID, Verdict::NoEntry),
            Err(Missing::Fetch(at)) => (NestedConfig::INVALID, Verdict::NotFetched { at }),
        }
    }

    /// Reads a stream's entry again and lets the hardware follow.
    fn evaluate<M: GuestMemory, P: Physical>(&mut self, at: usize, run: &mut Run<'_, M, P>) {
        run.spend(STREAM_COST);
        let Some(stream) = self.streams.get(at).copied() else {
            return;
        };
        let (config, mut verdict) = self.wanted(stream.id, run.memory);
        let mut live = config;
        if config == stream.live {
            // The entry is the same; its context descriptors need not be. [IHI 0070 §4.3.1]
            if let Some(context) = command::context_of(&config, stream.id, None) {
                self.collect(context, run);
            }
        } else {
            self.counters.switches = self.counters.switches.wrapping_add(1);
            let mut done = run.physical.set_stream(stream.id, &config);
            if done == Err(Refusal::Refused) && config != NestedConfig::INVALID {
                verdict = Verdict::Refused;
                live = NestedConfig::INVALID;
                done = run.physical.set_stream(stream.id, &live);
            }
            if done == Err(Refusal::Refused) {
                live = NestedConfig::ABORT;
                done = run.physical.set_stream(stream.id, &live);
            }
            if done.is_err() {
                self.broken(run);
            }
        }
        let now = Stream {
            id: stream.id,
            live,
            verdict,
        };
        if let Some(slot) = self.streams.get_mut(at) {
            *slot = now;
        }
        // An SMMU records these when a transaction meets them, and so does the hardware by its entry
        // that is not valid. Where there is no room for even that, the record comes now.
        let said = live != NestedConfig::ABORT || config == NestedConfig::ABORT;
        if !said && let Some(record) = self.emulated(&now) {
            let _ = self.put(&record, run.memory, &mut run.interrupts);
        }
    }

    /// The record for a transaction of a stream that the tables do not allow.
    fn emulated(&self, stream: &Stream) -> Option<Event> {
        match stream.verdict {
            Verdict::Off | Verdict::Legal => None,
            Verdict::NoEntry if self.registers.cr2 & RECINVSID == 0 => None,
            Verdict::NoEntry => Some(events::emulated(EventId::CBadStreamid, stream.id, 0)),
            Verdict::NotFetched { at } => Some(events::emulated(EventId::FSteFetch, stream.id, at)),
            Verdict::Illegal(_) | Verdict::Refused => {
                Some(events::emulated(EventId::CBadSte, stream.id, 0))
            }
        }
    }

    fn put(
        &mut self,
        record: &Event,
        memory: &impl GuestMemory,
        interrupts: &mut Interrupts,
    ) -> Delivery {
        if self.registers.cr0 & EVENTQEN == 0 {
            self.counters.events_lost = self.counters.events_lost.wrapping_add(1);
            return Delivery::Off;
        }
        let most = self.features.idr1.evtqs();
        match self.events.put(record, memory, most) {
            Put::Queued => {
                self.counters.events = self.counters.events.wrapping_add(1);
                if self.registers.irq_ctrl & IRQ_EVENTQ != 0 {
                    interrupts.add(Line::Event);
                }
                return Delivery::Delivered;
            }
            Put::Overflow => {}
            Put::NotWritable => self.error(EVENTQ_ABT_ERR, interrupts),
        }
        self.counters.events_lost = self.counters.events_lost.wrapping_add(1);
        Delivery::Lost
    }
}

fn abort_at_reset(features: &Features) -> u32 {
    match features.options.at_reset {
        AtReset::Abort => ABORT,
        AtReset::Bypass => 0,
    }
}

fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
