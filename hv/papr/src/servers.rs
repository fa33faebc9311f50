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
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MOST_CPUS).filter(move |vcpu| self.contains(*vcpu))
    }
}
