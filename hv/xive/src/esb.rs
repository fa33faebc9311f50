//! A source's event state buffer: two bits, P (an event is on its way or being handled) and Q (another came
//! meanwhile), read and changed by loads from its management page. [Linux arch/powerpc/include/asm/xive-regs.h, as
//! a fact]

/// A load here makes a level source that is heard interrupt again while its line is up.
pub const LOOK_AGAIN: u64 = 0x000;
/// A load here clears both bits and gives the old ones. The source is heard from now on.
pub const CLEAR: u64 = 0xc00;
/// A load here sets Q alone: the source is not heard, and what comes is forgotten.
pub const OFF: u64 = 0xd00;
/// A store here, in the page for it, is an event.
pub const TRIGGER: u64 = 0x000;

/// What a load gives: Q.
const QUEUED: u64 = 1;

/// What the platform says of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// How its bits are reached.
    pub access: Access,
    /// Whether its interrupts are a level.
    pub kind: Kind,
}

/// How a source's bits are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// By loads and stores, at these addresses.
    Pages {
        /// For loads.
        manage: u64,
        /// For stores, each of which is an event.
        trigger: u64,
    },
    /// By a call to the platform.
    Calls,
}

/// Kinds of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each event is one.
    Edge,
    /// A line that is up is an event as often as the last one ends.
    Level,
}

impl Source {
    /// From what `H_INT_GET_SOURCE_INFO` gives: flags, and the two addresses.
    #[must_use]
    pub fn from_platform([flags, manage, trigger]: [u64; 3]) -> Self {
        const BY_CALL: u64 = 1 << 3;
        const LEVEL: u64 = 1 << 2;
        const NONE: u64 = u64::MAX;
        let access = if flags & BY_CALL != 0 || manage == NONE {
            Access::Calls
        } else {
            Access::Pages {
                manage,
                // Where there is no page for it, the other one takes stores.
                trigger: if trigger == NONE { manage } else { trigger },
            }
        };
        let kind = if flags & LEVEL != 0 {
            Kind::Level
        } else {
            Kind::Edge
        };
        Self { access, kind }
    }

    /// Whether an event came while the last one was being handled, by what a load of [`CLEAR`] gave: it has to be
    /// made anew. A level source keeps none: it is to look again.
    #[must_use]
    #[inline]
    pub fn again(self, loaded: u64) -> bool {
        self.kind == Kind::Edge && loaded & QUEUED != 0
    }
}

#[cfg(test)]
mod tests {
    use super::{Access, Kind, Source};

    #[test]
    fn a_source_is_what_the_platform_says() {
        let edge = Source::from_platform([0, 0x6010_0000_1000, 0x6010_0000_0000]);
        let access = Access::Pages {
            manage: 0x6010_0000_1000,
            trigger: 0x6010_0000_0000,
        };
        assert_eq!((edge.access, edge.kind), (access, Kind::Edge));
        let level = Source::from_platform([0xc, u64::MAX, u64::MAX]);
        assert_eq!((level.access, level.kind), (Access::Calls, Kind::Level));
        let one_page = Source::from_platform([2, 0x1000, u64::MAX]);
        let access = Access::Pages {
            manage: 0x1000,
            trigger: 0x1000,
        };
        assert_eq!((one_page.access, one_page.kind), (access, Kind::Edge));
    }

    #[test]
    fn only_an_edge_that_came_meanwhile_is_made_anew() {
        let edge = Source::from_platform([0, 0x1000, 0]);
        let level = Source::from_platform([4, 0x1000, 0]);
        for (loaded, again) in [(0b00, false), (0b01, true), (0b10, false), (0b11, true)] {
            assert_eq!(edge.again(loaded), again);
            assert!(!level.again(loaded));
        }
    }
}
