//! The guest's streams: what its tables say of each, and what the hardware is told.

use iommu::NestedConfig;
use smmuv3::spec::{Event, EventId};
use types::StreamId;

use super::outcome::Health;
use super::{MOST_STREAMS, Outcome, Run, STREAM_COST, VSmmu};
use crate::command;
use crate::entry::{BadSte, Missing, StreamTable};
use crate::events;
use crate::memory::GuestMemory;
use crate::physical::{Invalidation, Physical, Refusal};
use crate::registers::{ABORT, RECINVSID, SMMUEN, UPDATE};

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
    pub(super) live: NestedConfig,
    pub(super) verdict: Verdict,
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
pub(super) enum Cause {
    /// `CR0.SMMUEN` or `GBPA` changed: complete when all streams follow.
    Control,
    /// A command, which is consumed when all its streams follow.
    Command,
}

/// Streams that are to be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sweep {
    pub(super) next: u32,
    pub(super) last: u32,
    pub(super) cause: Cause,
}

impl VSmmu {
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

    pub(super) fn start_control_sweep(&mut self) {
        self.sweep = Some(Sweep {
            next: 0,
            last: u32::MAX,
            cause: Cause::Control,
        });
    }

    pub(super) fn drop_command_sweep(&mut self) {
        if self
            .sweep
            .is_some_and(|sweep| sweep.cause == Cause::Command)
        {
            self.sweep = None;
        }
    }

    /// Reads one more stream of a sweep again, or completes it.
    pub(super) fn step<M: GuestMemory, P: Physical>(
        &mut self,
        sweep: Sweep,
        run: &mut Run<'_, M, P>,
    ) {
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

    pub(super) fn finish<M: GuestMemory, P: Physical>(
        &mut self,
        sweep: Sweep,
        run: &mut Run<'_, M, P>,
    ) {
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
    pub(super) fn evaluate<M: GuestMemory, P: Physical>(
        &mut self,
        at: usize,
        run: &mut Run<'_, M, P>,
    ) {
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
    pub(super) fn emulated(&self, stream: &Stream) -> Option<Event> {
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
}
