//! The interrupt presentation controllers of the machine's CPUs: used for one thing, to make a CPU
//! leave a guest. [LoPAPR §14.5.4.5]

use crate::hcall::{self, Hcall};

/// What `H_XIRR` names when another CPU asked.
const IPI: u64 = 2;
/// What `H_XIRR` gives beside a priority.
const SOURCE: u64 = 0x00ff_ffff;
/// The priority that lets everything through, or asks for nothing.
const LEAST: u64 = 0xff;
/// The priority that lets nothing through, or asks most urgently.
const MOST: u64 = 0;

/// Lets interrupts reach this CPU, which makes it leave a guest. Its own interrupts stay off.
pub(crate) fn open() {
    set_priority(LEAST);
}

/// Lets none reach it.
pub(crate) fn close() {
    set_priority(MOST);
}

fn set_priority(priority: u64) {
    // SAFETY: interrupts are off on this CPU, so nothing arrives.
    let _ = unsafe { hcall::call(Hcall::Cppr, [priority, 0, 0, 0]) };
}

/// Makes the CPU with this server number leave its guest.
pub(crate) fn kick(server: u64) {
    // SAFETY: whoever runs guests expects it.
    let _ = unsafe { hcall::call(Hcall::Ipi, [server, MOST, 0, 0]) };
}

/// What a CPU has accepted: nothing less favoured reaches it until that is ended.
#[derive(Debug)]
#[must_use = "the CPU hears nothing until it is ended"]
pub(crate) struct Accepted(u64);

/// Takes back what made this CPU, `server`, leave its guest or wake; `None` when there is nothing.
pub(crate) fn accept(server: u64) -> Option<Accepted> {
    // SAFETY: accepts what is pending for this CPU, which is done with below, or by the caller.
    let outcome = unsafe { hcall::call(Hcall::Xirr, [0; 4]) };
    let [accepted, ..] = outcome.values;
    match accepted & SOURCE {
        0 => return None,
        IPI => {
            // SAFETY: as above.
            let _ = unsafe { hcall::call(Hcall::Ipi, [server, LEAST, 0, 0]) };
        }
        _ => {}
    }
    Some(Accepted(accepted))
}

impl Accepted {
    /// The source of a device, if it is one.
    pub(crate) fn source(&self) -> Option<u32> {
        let source = self.0 & SOURCE;
        u32::try_from(source).ok().filter(|_| source != IPI)
    }

    /// Ends it: a level that is not masked by now comes again as long as it is up.
    pub(crate) fn end(self) {
        // SAFETY: it was accepted on this CPU.
        let _ = unsafe { hcall::call(Hcall::Eoi, [self.0, 0, 0, 0]) };
    }
}

/// Takes back a call of another CPU's, and whatever else there is.
pub(crate) fn acknowledge(server: u64) {
    if let Some(accepted) = accept(server) {
        accepted.end();
    }
}
