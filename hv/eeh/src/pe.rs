//! One PE, and what happens to it.

use types::Iova;

/// What a PE lets through. The numbers are what `ibm,read-slot-reset-state2` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// 0: everything.
    Normal,
    /// 1: nothing, the bus is in reset.
    Reset,
    /// 2: nothing, after an error.
    Stopped,
    /// 4: accesses to registers, no DMA.
    DmaStopped,
    /// 5: nothing, until the VM starts again.
    Gone,
}

impl State {
    /// What the service answers.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Normal => 0,
            Self::Reset => 1,
            Self::Stopped => 2,
            Self::DmaStopped => 4,
            Self::Gone => 5,
        }
    }

    /// Whether registers and configuration space answer. Where not, a read is all ones and a write is
    /// lost.
    #[must_use]
    pub const fn allows_registers(self) -> bool {
        matches!(self, Self::Normal | Self::DmaStopped)
    }

    /// Whether DMA gets through to what is mapped.
    #[must_use]
    pub const fn allows_dma(self) -> bool {
        matches!(self, Self::Normal)
    }
}

/// Why a PE is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A device accessed a bus address that nothing is mapped at, or not for that.
    Dma {
        /// Where.
        at: Iova,
    },
    /// A register of a device did not answer.
    Registers {
        /// The bus address.
        at: u64,
    },
    /// A test, or the monitor.
    Injected,
}

/// How a bus is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// 1: the bus's reset line, or its like.
    Hot,
    /// 3: with everything that survives a hot one.
    Fundamental,
}

/// What the caller has to do to the hardware now. Each is complete before the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what the guest is told is true only once this is done"]
pub enum Effect {
    /// Nothing.
    None,
    /// Registers away (a read is all ones), bus mastering off, DMA to nothing.
    Stop,
    /// Registers back.
    AllowRegisters,
    /// DMA back, to what is mapped. Bus mastering is the guest's to turn on.
    AllowDma,
    /// As [`Effect::Stop`], and the bus goes into reset.
    AssertReset(Reset),
    /// The bus comes out of reset; registers and DMA back. Configuration spaces are as after power-on.
    DeassertReset,
}

/// What an error did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frozen {
    /// The PE is stopped now.
    Now,
    /// It was stopped already, or in reset; the error adds nothing.
    Already,
    /// It is gone: this was one too many.
    TooMany,
}

/// How many errors are remembered at most.
pub const MOST_REMEMBERED: usize = 16;

/// When a PE is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// As many errors in the time below end it: 1 to [`MOST_REMEMBERED`].
    pub freezes: u8,
    /// The time, in seconds.
    pub seconds: u64,
}

impl Limits {
    /// Eight in an hour. Linux gives a device up after the fifth, and gets the chance to.
    pub const USUAL: Self = Self {
        freezes: 8,
        seconds: 3600,
    };
}

/// The PE of a guest's host bridge: all devices behind it.
#[derive(Clone, Debug)]
pub struct Pe {
    buid: u64,
    bus: u8,
    state: State,
    /// The guest asked for error handling.
    enabled: bool,
    cause: Option<Cause>,
    limits: Limits,
    /// When the last errors were, in seconds; a ring.
    times: [u64; MOST_REMEMBERED],
    /// Errors so far.
    freezes: u64,
    /// Its hardware does not follow: it stays gone.
    dead: bool,
}

impl Pe {
    /// The PE of the host bridge with this unique id, whose devices are on bus `bus`; all is well.
    #[must_use]
    pub fn new(buid: u64, bus: u8, limits: Limits) -> Self {
        Self {
            buid,
            bus,
            state: State::Normal,
            enabled: false,
            cause: None,
            limits,
            times: [0; MOST_REMEMBERED],
            freezes: 0,
            dead: false,
        }
    }

    /// The unique id of its host bridge.
    #[must_use]
    pub fn buid(&self) -> u64 {
        self.buid
    }

    /// What it lets through.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Why it stopped last.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.cause
    }

    /// How often it was stopped.
    #[must_use]
    pub fn freezes(&self) -> u64 {
        self.freezes
    }

    /// Whether the guest asked for error handling. It is stopped either way.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Its name to the services: 00BB0001, with the bus in the place of BB.
    #[must_use]
    pub fn address(&self) -> u32 {
        u32::from(self.bus) << 16 | 1
    }

    /// Whether a configuration address is the PE's, or may be of a device of it, on its bus or behind a
    /// bridge.
    pub(crate) fn is_named_by(&self, address: u32) -> bool {
        let is_device = address >> 24 == 0 && address & 0xff == 0;
        address == self.address() || is_device
    }

    /// An error happened, `now` seconds after some beginning.
    pub fn freeze(&mut self, cause: Cause, now: u64) -> (Frozen, Effect) {
        if !self.state.allows_dma() && self.state != State::DmaStopped {
            return (Frozen::Already, Effect::None);
        }
        self.cause = Some(cause);
        let limit = usize::from(self.limits.freezes).clamp(1, MOST_REMEMBERED);
        let place = |number: u64| {
            let ring = u64::try_from(MOST_REMEMBERED).unwrap_or(1).max(1);
            usize::try_from(number.checked_rem(ring).unwrap_or(0)).unwrap_or(0)
        };
        if let Some(time) = self.times.get_mut(place(self.freezes)) {
            *time = now;
        }
        self.freezes = self.freezes.saturating_add(1);
        // The one that is the limit's number back, this one counted, was when?
        let first = self
            .freezes
            .checked_sub(u64::try_from(limit).unwrap_or(u64::MAX));
        let first = first.and_then(|number| self.times.get(place(number)));
        if first.is_some_and(|first| now.saturating_sub(*first) < self.limits.seconds) {
            self.state = State::Gone;
            return (Frozen::TooMany, Effect::Stop);
        }
        self.state = State::Stopped;
        (Frozen::Now, Effect::Stop)
    }

    /// An [`Effect`] could not be carried out: the PE is gone for good. The effect is [`Effect::Stop`] as far as
    /// the hardware does anything.
    pub fn fail(&mut self) -> Effect {
        self.dead = true;
        self.state = State::Gone;
        Effect::Stop
    }

    /// The VM is reset, or has the host bridge again: all is well, as far as the hardware follows. Errors are not
    /// forgotten: where there were too many, the next one is. To be called again after each effect, until that is
    /// [`Effect::None`]. [LoPAR ibm,slot-error-detail, R1-13]
    pub fn restart(&mut self) -> Effect {
        self.enabled = false;
        match self.state {
            State::Normal => Effect::None,
            State::Gone if self.dead => Effect::None,
            State::Reset => self.to(State::Normal, Effect::DeassertReset),
            State::Stopped | State::DmaStopped | State::Gone => {
                // By way of a reset, which leaves nothing of what stopped it.
                self.to(State::Reset, Effect::AssertReset(Reset::Hot))
            }
        }
    }

    pub(crate) fn to(&mut self, state: State, effect: Effect) -> Effect {
        self.state = state;
        effect
    }

    pub(crate) fn enable(&mut self, enabled: Enabled) {
        self.enabled = enabled == Enabled::Yes;
    }
}

/// What the guest wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Enabled {
    Yes,
    No,
}
