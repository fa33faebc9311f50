//! Why guests leave for the hypervisor, and how often.

use core::sync::atomic::{AtomicU64, Ordering};

/// Why a vCPU left its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCause {
    /// A device's message.
    Message,
    /// The guest's timer.
    Timer,
    /// Another core wants something of this one.
    Kick,
    /// List registers are to be looked at.
    Maintenance,
    /// The hypervisor's timer: a turn is over, or something is to be looked at.
    Turn,
    /// Another interrupt of the machine's: console, IOMMU.
    OtherInterrupt,
    /// A register of the guest's UART or clock.
    Console,
    /// A register of the guest's interrupt controller.
    InterruptController,
    /// A register of the guest's ITS.
    Its,
    /// A register of the guest's SMMU.
    Smmu,
    /// Configuration space.
    Configuration,
    /// A trapped page of a BAR.
    Bar,
    /// A system register.
    SystemRegister,
    /// A call to the interrupt presentation of POWER.
    Presentation,
    /// A call for entries of POWER's DMA windows.
    Translation,
    /// Any other call.
    Call,
    /// It waits.
    Wait,
    /// What becomes an exception of its own.
    Abort,
}

impl ExitCause {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Message,
        Self::Timer,
        Self::Kick,
        Self::Maintenance,
        Self::Turn,
        Self::OtherInterrupt,
        Self::Console,
        Self::InterruptController,
        Self::Its,
        Self::Smmu,
        Self::Configuration,
        Self::Bar,
        Self::SystemRegister,
        Self::Presentation,
        Self::Translation,
        Self::Call,
        Self::Wait,
        Self::Abort,
    ];

    /// A word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Timer => "timer",
            Self::Kick => "kick",
            Self::Maintenance => "maintenance",
            Self::Turn => "turn",
            Self::OtherInterrupt => "other-interrupt",
            Self::Console => "console",
            Self::InterruptController => "gic",
            Self::Its => "its",
            Self::Smmu => "smmu",
            Self::Configuration => "config",
            Self::Bar => "bar",
            Self::SystemRegister => "system-register",
            Self::Presentation => "xics",
            Self::Translation => "tce",
            Self::Call => "call",
            Self::Wait => "wait",
            Self::Abort => "abort",
        }
    }
}

/// The exits of a vCPU by cause. One core counts at a time.
#[derive(Debug, Default)]
pub struct ExitCounts([AtomicU64; ExitCause::ALL.len()]);

impl ExitCounts {
    /// Counts one.
    pub fn count(&self, cause: ExitCause) {
        if let Some(count) = self.0.get(cause as usize) {
            let now = count.load(Ordering::Relaxed);
            count.store(now.wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// How many there were.
    pub fn of(&self, cause: ExitCause) -> u64 {
        let count = self.0.get(cause as usize);
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::{ExitCause, ExitCounts};

    #[test]
    fn each_cause_has_its_own_place_and_name() {
        let counts = ExitCounts::default();
        for (number, cause) in (0..).zip(ExitCause::ALL) {
            for _ in 0..number {
                counts.count(cause);
            }
        }
        for (number, cause) in (0..).zip(ExitCause::ALL) {
            assert_eq!(counts.of(cause), number, "{}", cause.name());
            let alike = ExitCause::ALL.iter().filter(|c| c.name() == cause.name());
            assert_eq!(alike.count(), 1);
        }
    }
}
