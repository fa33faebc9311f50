//! One guest SMMU: registers, command consumer, streams.

mod commands;
mod controls;
mod messages;
mod outcome;
mod records;
mod streams;

use alloc::vec::Vec;

use smmuv3::spec::command::Raw;
use types::Width;

use crate::events::Events;
use crate::features::{AtReset, Features};
use crate::memory::GuestMemory;
use crate::physical::{Batch, Physical};
use crate::registers::{ABORT, Part, Registers};

pub use outcome::{Counters, Delivery, Health, Interrupts, Line, Outcome, Work};
use streams::Sweep;
pub use streams::{Stream, StreamError, Verdict};

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
/// A message sent.
const MESSAGE_COST: u32 = 2;

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

    /// Reads a register. What is not there reads as zero.
    #[must_use]
    pub fn read(&self, offset: u64, width: Width) -> u64 {
        let Some(part) = Part::at(offset, width) else {
            return 0;
        };
        part.extract(self.value(part.register()))
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
}

fn abort_at_reset(features: &Features) -> u32 {
    match features.options.at_reset {
        AtReset::Abort => ABORT,
        AtReset::Bypass => 0,
    }
}
