//! Sets of vCPUs.

/// The most vCPUs of a VM.
pub const MOST_CPUS: usize = 64;

/// A set of vCPUs by their server numbers, which count from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Servers(u64);

impl Servers {
    /// None.
    pub const NONE: Self = Self(0);

    /// One vCPU; none, when there cannot be such a one.
    #[must_use]
    pub const fn one(vcpu: usize) -> Self {
        if vcpu < MOST_CPUS {
            Self(1 << vcpu)
        } else {
            Self::NONE
        }
    }

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the vCPU is one of them.
    #[must_use]
    pub const fn contains(self, vcpu: usize) -> bool {
        vcpu < MOST_CPUS && self.0 >> vcpu & 1 == 1
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// A bit for each.
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// Each of them, ascending.
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        core::iter::from_fn(move || take_lowest(&mut left))
    }
}

/// Takes the lowest bit that is set out of a word: its number, below 64.
#[inline]
pub(crate) fn take_lowest(word: &mut u64) -> Option<usize> {
    let lowest = word.trailing_zeros();
    // Without a bit there is none to take, and the word stays 0.
    *word &= word.wrapping_sub(1);
    (lowest < u64::BITS).then_some(lowest as usize)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::Servers;

    #[test]
    fn a_set_gives_each_of_its_vcpus_once_and_ascending() {
        let all = |set: Servers| set.iter().collect::<Vec<_>>();
        assert!(all(Servers::NONE).is_empty());
        let three = Servers::one(63).and(Servers::one(0)).and(Servers::one(17));
        assert_eq!(all(three), [0, 17, 63]);
        assert_eq!(all(Servers::one(64)), [], "no such vCPU");
    }
}
