//! The run-time services of EEH, as Linux calls them.

use crate::pe::{Effect, Enabled, Pe, Reset, State};

/// A service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// `ibm,set-eeh-option`: configuration address, unique id (2 cells), option.
    SetOption,
    /// `ibm,get-config-addr-info2`: configuration address, unique id (2), function → information.
    AddressInfo,
    /// `ibm,read-slot-reset-state2`: configuration address, unique id (2) → state, support, waiting
    /// time (and, with five results, recovery information).
    ReadState,
    /// `ibm,set-slot-reset`: configuration address, unique id (2), kind.
    SetReset,
    /// `ibm,configure-pe`: configuration address, unique id (2).
    Configure,
    /// `ibm,slot-error-detail`: configuration address, unique id (2), two buffers (address, length
    /// each), severity.
    ErrorDetail,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::SetOption,
        Self::AddressInfo,
        Self::ReadState,
        Self::SetReset,
        Self::Configure,
        Self::ErrorDetail,
    ];

    /// What the device tree calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SetOption => "ibm,set-eeh-option",
            Self::AddressInfo => "ibm,get-config-addr-info2",
            Self::ReadState => "ibm,read-slot-reset-state2",
            Self::SetReset => "ibm,set-slot-reset",
            Self::Configure => "ibm,configure-pe",
            Self::ErrorDetail => "ibm,slot-error-detail",
        }
    }

    /// The token that QEMU gives it.
    #[must_use]
    pub const fn token(self) -> u32 {
        match self {
            Self::SetOption => 0x2020,
            Self::AddressInfo => 0x2021,
            Self::ReadState => 0x2022,
            Self::SetReset => 0x2023,
            Self::Configure => 0x2024,
            Self::ErrorDetail => 0x2025,
        }
    }
}

const PARAMETER: i32 = -3;
/// The PE is in a state from which this leads nowhere: to be asked for again.
const UNEXPECTED: i32 = -7;
/// `ibm,slot-error-detail`: there is no log.
const NO_LOG: i32 = 1;

/// That the PE has error handling.
const SUPPORTED: u32 = 1;
/// Devices share the PE.
const SHARED: u32 = 2;

/// What a service comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The status. [LoPAPR §7.2.8]
    pub status: i32,
    /// What is to be done before the guest hears of it.
    pub effect: Effect,
    values: [u32; 4],
    count: usize,
    has_log: bool,
}

impl Outcome {
    /// Whether [`Pe::log`] is to be put where the arguments say ([`log_buffer`]).
    #[must_use]
    pub fn has_log(&self) -> bool {
        self.has_log
    }

    /// The results behind the status.
    #[must_use]
    pub fn values(&self) -> &[u32] {
        self.values.get(..self.count).unwrap_or_default()
    }

    const fn status(status: i32) -> Self {
        Self {
            status,
            effect: Effect::None,
            values: [0; 4],
            count: 0,
            has_log: false,
        }
    }

    const fn done(effect: Effect) -> Self {
        Self {
            effect,
            ..Self::status(0)
        }
    }

    fn of<const N: usize>(values: [u32; N]) -> Self {
        let mut outcome = Self {
            count: N,
            ..Self::status(0)
        };
        for (to, value) in outcome.values.iter_mut().zip(values) {
            *to = value;
        }
        outcome
    }
}

/// Where a log goes, and how much of it, by the arguments of [`Service::ErrorDetail`].
#[must_use]
pub fn log_buffer(arguments: &[u32]) -> Option<(u32, usize)> {
    match arguments {
        [_, _, _, _, _, at, room, _] => Some((*at, usize::try_from(*room).ok()?)),
        _ => None,
    }
}

impl Pe {
    /// Whether a service's arguments may name this PE: its unique id, and its own configuration address or
    /// one that a device of it may have.
    #[must_use]
    pub fn is_meant(&self, arguments: &[u32]) -> bool {
        match arguments {
            [address, high, low, ..] => {
                let buid = u64::from(*high) << 32 | u64::from(*low);
                buid == self.buid() && self.is_named_by(*address)
            }
            _ => false,
        }
    }

    /// Serves a service with its argument cells, of which there are as many as the guest said, and as
    /// many results (the status included) as it has room for. `device` says whether a device with a
    /// configuration address exists. A number of cells that the service does not have, and a PE that is
    /// not this one, answer −3.
    pub fn service(
        &mut self,
        service: Service,
        arguments: &[u32],
        results: usize,
        device: impl Fn(u32) -> bool,
    ) -> Outcome {
        let named = arguments.first().copied().unwrap_or(0);
        if !self.is_meant(arguments) || named != self.address() && !device(named) {
            return Outcome::status(PARAMETER);
        }
        match (service, arguments, results) {
            (Service::SetOption, &[_, _, _, option], 1) => self.set_option(option),
            (Service::AddressInfo, &[_, _, _, function], 2) => match function {
                0 => Outcome::of([self.address()]),
                1 => Outcome::of([SHARED]),
                _ => Outcome::status(PARAMETER),
            },
            (Service::ReadState, &[_, _, _], 4 | 5) => {
                // The time to wait until it may be better: none, it will not.
                let (state, wait) = (self.state().bits(), 0);
                if results == 5 {
                    Outcome::of([state, SUPPORTED, wait, 0])
                } else {
                    Outcome::of([state, SUPPORTED, wait])
                }
            }
            (Service::SetReset, &[_, _, _, kind], 1) => self.set_reset(kind),
            // The bridges have nothing that an error or a reset takes away; nor is this where a guest
            // hears of hardware that does not follow.
            (Service::Configure, &[_, _, _], 1) => Outcome::status(0),
            (Service::ErrorDetail, &[_, _, _, _, _, _, _, severity @ (1 | 2)], 1) => {
                self.error_detail(severity)
            }
            _ => Outcome::status(PARAMETER),
        }
    }

    fn set_option(&mut self, option: u32) -> Outcome {
        const DISABLE: u32 = 0;
        const ENABLE: u32 = 1;
        const THAW_REGISTERS: u32 = 2;
        const THAW_DMA: u32 = 3;
        // [LoPAR ibm,set-slot-reset, PE State Control]
        match (option, self.state()) {
            (DISABLE, _) => {
                self.enable(Enabled::No);
                Outcome::status(0)
            }
            (ENABLE, _) => {
                self.enable(Enabled::Yes);
                Outcome::status(0)
            }
            (THAW_REGISTERS, State::Stopped) => {
                Outcome::done(self.to(State::DmaStopped, Effect::AllowRegisters))
            }
            (THAW_DMA, State::DmaStopped) => {
                Outcome::done(self.to(State::Normal, Effect::AllowDma))
            }
            // What lets it through is not to be let through.
            (THAW_REGISTERS, State::Normal | State::DmaStopped) | (THAW_DMA, State::Normal) => {
                Outcome::status(PARAMETER)
            }
            // Registers come first; a reset is ended, not thawed; what is gone is gone.
            (THAW_REGISTERS | THAW_DMA, _) => Outcome::status(UNEXPECTED),
            _ => Outcome::status(PARAMETER),
        }
    }

    /// What stopped it, as long as it is stopped. An error that the guest calls permanent ends the PE. [LoPAR
    /// ibm,slot-error-detail, R1-4 to R1-12]
    fn error_detail(&mut self, severity: u32) -> Outcome {
        const PERMANENT: u32 = 2;
        let before = self.state();
        let has_log = !matches!(before, State::Normal | State::Reset);
        let effect = if severity == PERMANENT && before != State::Gone {
            self.to(State::Gone, Effect::Stop)
        } else {
            Effect::None
        };
        Outcome {
            has_log,
            effect,
            ..Outcome::status(if has_log { 0 } else { NO_LOG })
        }
    }

    fn set_reset(&mut self, kind: u32) -> Outcome {
        let kind = match kind {
            0 => None,
            1 => Some(Reset::Hot),
            3 => Some(Reset::Fundamental),
            _ => return Outcome::status(PARAMETER),
        };
        match (kind, self.state()) {
            (_, State::Gone) | (None, State::Stopped) => Outcome::status(UNEXPECTED),
            (None, State::DmaStopped) => Outcome::status(PARAMETER),
            (None, State::Normal) | (Some(_), State::Reset) => Outcome::status(0),
            (None, State::Reset) => Outcome::done(self.to(State::Normal, Effect::DeassertReset)),
            (Some(kind), _) => Outcome::done(self.to(State::Reset, Effect::AssertReset(kind))),
        }
    }
}
