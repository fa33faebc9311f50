//! What hypercalls answer.

/// The status of a hypercall, as it goes to r3. [LoPAPR Table 170]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(i64);

impl Status {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// All other CPUs have joined already.
    pub const CONTINUE: Self = Self(18);
    /// The hardware (or the guest's memory) cannot do it.
    pub const HARDWARE: Self = Self(-1);
    /// No such call.
    pub const FUNCTION: Self = Self(-2);
    /// Called in problem state.
    pub const PRIVILEGE: Self = Self(-3);
    /// An argument is wrong.
    pub const PARAMETER: Self = Self(-4);
    /// Not in this state of the CPU.
    pub const BAD_MODE: Self = Self(-5);
    /// Something else has to be given back before.
    pub const RESOURCE: Self = Self(-16);
    /// The second argument is wrong.
    pub const P2: Self = Self(-55);
    /// The third.
    pub const P3: Self = Self(-56);
    /// The fourth.
    pub const P4: Self = Self(-57);
    /// A flag is not supported: the first of a range that PAPR sets apart for this.
    pub const UNSUPPORTED_FLAG: Self = Self(-256);

    /// The value of r3.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0.cast_unsigned()
    }
}
