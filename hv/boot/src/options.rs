//! The hypervisor's own words on the boot command line.

use log::LevelFilter;

/// A failure to provoke, so that tests can see each fatal path end in a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfTest {
    /// `panic`: a Rust panic.
    Panic,
    /// `exception`: an access to unmapped memory or an illegal instruction.
    Exception,
    /// `stack-overflow`: recursion until the guard is hit.
    StackOverflow,
    /// `out-of-memory`: heap allocations until none is left.
    OutOfMemory,
    /// `panic-in-panic`: a panic while a panic is being reported.
    PanicInPanic,
    /// `write-text`: a store to the hypervisor's own code.
    WriteText,
    /// `execute-data`: a jump into writable memory.
    ExecuteData,
    /// `overflow`: a sum that does not fit its type. Only an image with the checks of a debug build notices it.
    Overflow,
}

impl SelfTest {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "panic" => Self::Panic,
            "exception" => Self::Exception,
            "stack-overflow" => Self::StackOverflow,
            "out-of-memory" => Self::OutOfMemory,
            "panic-in-panic" => Self::PanicInPanic,
            "write-text" => Self::WriteText,
            "execute-data" => Self::ExecuteData,
            "overflow" => Self::Overflow,
            _ => return None,
        })
    }
}

/// Whether what reads the hypervisor's tables sees the CPUs' caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Snooping {
    /// As the device tree says.
    #[default]
    AsTold,
    /// `noncoherent`: they do not, whatever it says.
    Never,
}

/// What is asked of a PAPR platform's interrupt controllers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interrupts {
    /// What works best of what it offers.
    #[default]
    Best,
    /// `xics`: XICS, agreed on with the platform.
    Xics,
    /// `xive`: XIVE, agreed on with the platform.
    Xive,
    /// `as-found`: nothing is asked.
    AsFound,
}

impl Interrupts {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "best" => Self::Best,
            "xics" => Self::Xics,
            "xive" => Self::Xive,
            "as-found" => Self::AsFound,
            _ => return None,
        })
    }
}

/// A `bulkhead.…` word that means nothing to this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown<'a>(pub &'a str);

/// What the boot arguments ask of the hypervisor: words `bulkhead.KEY=VALUE`. All other words are
/// ignored; they are for somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `bulkhead.log=error|warn|info|debug|trace`; info when absent.
    pub log: LevelFilter,
    /// `bulkhead.test=…`: see [`SelfTest`].
    pub self_test: Option<SelfTest>,
    /// ITSs and redistributors: `bulkhead.its=noncoherent` (Arm).
    pub its: Snooping,
    /// SMMUs: `bulkhead.smmu=noncoherent` (Arm).
    pub smmu: Snooping,
    /// `bulkhead.interrupts=best|xics|xive|as-found` (POWER).
    pub interrupts: Interrupts,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            log: LevelFilter::Info,
            self_test: None,
            its: Snooping::AsTold,
            smmu: Snooping::AsTold,
            interrupts: Interrupts::Best,
        }
    }
}

impl Options {
    /// Reads the boot arguments; `unknown` is called for each `bulkhead.` word that is not
    /// understood, and that word changes nothing.
    pub fn parse<'a>(bootargs: &'a str, mut unknown: impl FnMut(Unknown<'a>)) -> Self {
        let mut options = Self::default();
        for word in bootargs.split_ascii_whitespace() {
            let Some(ours) = word.strip_prefix("bulkhead.") else {
                continue;
            };
            let understood = match ours.split_once('=') {
                Some(("log", level)) => level.parse().map(|level| options.log = level).is_ok(),
                Some(("test", test)) => SelfTest::parse(test)
                    .map(|test| options.self_test = Some(test))
                    .is_some(),
                Some(("its", "noncoherent")) => {
                    options.its = Snooping::Never;
                    true
                }
                Some(("smmu", "noncoherent")) => {
                    options.smmu = Snooping::Never;
                    true
                }
                Some(("interrupts", word)) => Interrupts::parse(word)
                    .map(|interrupts| options.interrupts = interrupts)
                    .is_some(),
                _ => false,
            };
            if !understood {
                unknown(Unknown(word));
            }
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use log::LevelFilter;

    use super::{Interrupts, Options, SelfTest, Snooping, Unknown};

    #[test]
    fn words_of_others_are_ignored_and_wrong_ones_are_named() {
        let mut unknown = Vec::new();
        let options = Options::parse(
            "console=hvc0 bulkhead.log=debug bulkhead.colour=red bulkhead.test=panic bulkhead.log=loud bulkhead.its=noncoherent bulkhead.its=coherent bulkhead.smmu=noncoherent bulkhead.smmu=no bulkhead.interrupts=xive bulkhead.interrupts=gic",
            |word| unknown.push(word),
        );
        assert_eq!(
            options,
            Options {
                log: LevelFilter::Debug,
                self_test: Some(SelfTest::Panic),
                its: Snooping::Never,
                smmu: Snooping::Never,
                interrupts: Interrupts::Xive,
            }
        );
        assert_eq!(
            unknown,
            [
                Unknown("bulkhead.colour=red"),
                Unknown("bulkhead.log=loud"),
                Unknown("bulkhead.its=coherent"),
                Unknown("bulkhead.smmu=no"),
                Unknown("bulkhead.interrupts=gic"),
            ]
        );
    }

    #[test]
    fn no_arguments_means_the_defaults() {
        assert_eq!(
            Options::parse("", |_| panic!("nothing to complain of")),
            Options::default()
        );
    }
}
