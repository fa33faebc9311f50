//! What hypercalls answer.

use iommu::{BackendError, Error};

/// The status of a hypercall: what goes to r3. [LoPAPR Table 170]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(i64);

impl Status {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// The hardware did not confirm.
    pub const HARDWARE: Self = Self(-1);
    /// No such window, address, count, list, page or right.
    pub const PARAMETER: Self = Self(-4);
    /// The hypervisor has no memory for it.
    pub const RESOURCE: Self = Self(-16);

    /// The value of r3.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0.cast_unsigned()
    }
}

impl From<Error> for Status {
    /// What a refusal of the core is to the guest whose request it was.
    fn from(error: Error) -> Self {
        match error {
            Error::OutOfMemory
            | Error::TooManyAreas { .. }
            | Error::Backend(BackendError::OutOfMemory) => Self::RESOURCE,
            Error::Backend(BackendError::Timeout | BackendError::Unsupported) => Self::HARDWARE,
            _ => Self::PARAMETER,
        }
    }
}

impl From<tce::OutOfMemory> for Status {
    fn from(_: tce::OutOfMemory) -> Self {
        Self::RESOURCE
    }
}
