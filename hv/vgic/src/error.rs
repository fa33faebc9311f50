//! Why a virtual GIC cannot be built.

/// A refusal to build a [`Vgic`](crate::Vgic).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The number of vCPUs is zero or above [`MAX_VCPUS`](crate::MAX_VCPUS).
    #[error("{vcpus} vCPUs: 1 to 64 are possible")]
    VcpuCount {
        /// What was asked for.
        vcpus: usize,
    },
    /// The number of SPIs is above [`MAX_SPIS`](crate::MAX_SPIS).
    #[error("{spis} SPIs: at most 988 are possible")]
    SpiCount {
        /// What was asked for.
        spis: usize,
    },
    /// The CPU's list registers are zero or more than the architecture's 16.
    #[error("{list_registers} list registers: 1 to 16 are possible")]
    ListRegisterCount {
        /// What was asked for.
        list_registers: usize,
    },
    /// Two vCPUs have one affinity.
    #[error("vCPUs {first} and {second} have one affinity")]
    SameAffinity {
        /// The lower of the two.
        first: usize,
        /// The higher of the two.
        second: usize,
    },
}
