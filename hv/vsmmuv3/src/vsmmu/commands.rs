//! The guest's command queue: fetched from a copy, judged, carried out.

use smmuv3::spec::Completion;
use smmuv3::spec::command::Raw;
use smmuv3::spec::queue::Shape;

use super::outcome::{Health, Line};
use super::streams::{Cause, Sweep};
use super::{AHEAD, Run, SYNC_COST, VSmmu};
use crate::command::{self, Judged};
use crate::events;
use crate::memory::{GuestMemory, words_into};
use crate::physical::{Failure, Invalidation, Physical};
use crate::registers::{CMDQ_ERR, CMDQEN, CONS_ERR_SHIFT, INDEX};

/// `CMDQ_CONS.ERR`. [IHI 0070 §7.1]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum CommandError {
    Illegal = 1,
    Abort = 2,
    AtcInvSync = 3,
}

impl VSmmu {
    fn commands(&self) -> Shape {
        events::shape(self.registers.cmdq_base, self.features.idr1.cmdqs())
    }

    /// A producer index beyond a lap gets no more than a lap consumed.
    pub(super) fn measure_lap(&mut self) {
        let shape = self.commands();
        let waiting = shape.between(self.registers.cmdq_cons, self.registers.cmdq_prod);
        self.lap = waiting.min(shape.entries());
    }

    pub(super) fn may_consume(&self) -> bool {
        self.registers.cr0 & CMDQEN != 0
            && self.registers.active_errors() & CMDQ_ERR == 0
            && self.health == Health::Good
            && self.lap > 0
    }

    pub(super) fn advance(&mut self) {
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
    pub(super) fn consume<M: GuestMemory, P: Physical>(&mut self, run: &mut Run<'_, M, P>) {
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
        if let Completion::Interrupt { address, data } = completion {
            // A source has a wire, messages, or both: this one has a wire where there are no messages, because
            // a wire would be pulsed with each of them, for nobody. [IHI 0070 §3.18.2]
            if self.features.msi() {
                self.send_sync(address, data, run);
            } else {
                run.interrupts.add(Line::Sync);
            }
        }
    }

    fn command_error<M: GuestMemory, P>(&mut self, error: CommandError, run: &mut Run<'_, M, P>) {
        self.counters.errors = self.counters.errors.wrapping_add(1);
        let index = self.registers.cmdq_cons & INDEX;
        self.registers.cmdq_cons = index | (error as u32) << CONS_ERR_SHIFT;
        self.error(CMDQ_ERR, run.memory, &mut run.interrupts);
    }

    pub(super) fn collect<M: GuestMemory, P: Physical>(
        &mut self,
        entry: Invalidation,
        run: &mut Run<'_, M, P>,
    ) {
        if self.batch.is_full() {
            self.flush(run);
        }
        self.batch.push(entry);
    }

    /// Hands what was collected to the hardware.
    pub(super) fn flush<M: GuestMemory, P: Physical>(&mut self, run: &mut Run<'_, M, P>) {
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
}
