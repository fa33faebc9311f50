//! The older interrupt presentation controller, by the platform's calls. [LoPAPR §14.5.4.5]

use super::{Heard, Listener};
use crate::hcall::{self, Hcall};

/// The priority at which devices interrupt the machine's CPUs.
pub(super) const PRIORITY: u32 = 5;
/// What `H_XIRR` names when another CPU asked.
const IPI: u64 = 2;
/// The priority that lets everything through, or asks for nothing.
const LEAST: u64 = 0xff;
/// The priority that lets nothing through, or asks most urgently.
const MOST: u64 = 0;

pub(super) fn open() {
    set_priority(LEAST);
}

pub(super) fn close() {
    set_priority(MOST);
}

fn set_priority(priority: u64) {
    // SAFETY: interrupts are off on this CPU, so nothing arrives.
    let _ = unsafe { hcall::call(Hcall::Cppr, [priority, 0, 0, 0]) };
}

/// Makes the CPU with this server number leave its guest.
pub(super) fn kick(server: u64) {
    // SAFETY: whoever runs guests expects it.
    let _ = unsafe { hcall::call(Hcall::Ipi, [server, MOST, 0, 0]) };
}

/// Takes back what is pending for this CPU, `server`. If more is, it comes when this is over.
#[inline(never)]
pub(super) fn acknowledge(server: u64, listener: &mut impl Listener) -> Heard {
    // SAFETY: accepts what is pending for this CPU, which is done with below.
    let outcome = unsafe { hcall::call(Hcall::Xirr, [0; 4]) };
    let [accepted, ..] = outcome.values;
    let heard = match accepted & 0x00ff_ffff {
        0 => return Heard::Other,
        IPI => {
            // SAFETY: as above.
            let _ = unsafe { hcall::call(Hcall::Ipi, [server, LEAST, 0, 0]) };
            Heard::Other
        }
        source => {
            // A source that is to be held is off already.
            listener.came(u32::try_from(source).unwrap_or(0));
            Heard::Devices
        }
    };
    // SAFETY: as above.
    let _ = unsafe { hcall::call(Hcall::Eoi, [accepted, 0, 0, 0]) };
    heard
}
