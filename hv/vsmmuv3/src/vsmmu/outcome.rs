//! What a call leaves to the world outside, and what the SMMU counts.

/// A wired interrupt of the guest's SMMU. All are edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// `eventq`: a record was written.
    Event,
    /// `gerror`: an error became active.
    Gerror,
    /// `cmdq-sync`: a `CMD_SYNC` that asked for it is complete. Not with messages.
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

    pub(super) fn add(&mut self, line: Line) {
        self.0 |= Self::bit(line);
    }
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Nothing until the guest's next access.
    Done,
    /// The budget is spent: [`VSmmu::run`](super::VSmmu::run) goes on. Other vCPUs may run, and access the SMMU,
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
    /// Whether to call [`VSmmu::run`](super::VSmmu::run).
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
    /// Messages of the SMMU's own that were sent.
    pub messages: u64,
    /// Messages that nothing took.
    pub messages_aborted: u64,
    /// Records lost because that queue was full, off or not in memory.
    pub events_lost: u64,
}
