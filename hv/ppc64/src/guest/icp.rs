//! The interrupt presentation of one guest CPU. [LoPAPR §14.5.4.5 and appendix A]

/// Priorities: 0 is the most favoured, 0xff accepts everything or asks for nothing.
const LEAST: u8 = 0xff;
/// The source number of an interprocessor interrupt.
const IPI: u32 = 2;

/// A presentation controller with no source but the interprocessor interrupt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Icp {
    /// Only what is more favoured than this interrupts.
    priority: u8,
    /// The priority of a pending interprocessor interrupt.
    request: u8,
}

impl Icp {
    /// As a CPU finds it: nothing pending, nothing let through.
    pub(crate) const fn new() -> Self {
        Self {
            priority: 0,
            request: LEAST,
        }
    }

    /// Whether the CPU shall be interrupted.
    pub(crate) fn is_pending(self) -> bool {
        self.request < self.priority
    }

    /// `H_CPPR`.
    pub(crate) fn set_priority(&mut self, priority: u8) {
        self.priority = priority;
    }

    /// `H_IPI`.
    pub(crate) fn set_request(&mut self, priority: u8) {
        self.request = priority;
    }

    /// `H_XIRR`: accepts what is pending. The priority before, and the source; source 0 is none.
    pub(crate) fn accept(&mut self) -> u32 {
        let before = u32::from(self.priority) << 24;
        if !self.is_pending() {
            return before;
        }
        self.priority = self.request;
        before | IPI
    }

    /// `H_EOI`: the priority that [`Icp::accept`] gave is back.
    pub(crate) fn end(&mut self, accepted: u32) {
        self.priority = accepted.to_be_bytes()[0];
    }

    /// `H_IPOLL`: what `H_XIRR` would give, and the request.
    pub(crate) fn poll(self) -> [u64; 2] {
        let mut copy = self;
        [copy.accept().into(), self.request.into()]
    }
}
