//! The interrupt presentation controllers of the machine's CPUs: used for one thing, to make a CPU
//! leave a guest. [LoPAPR §14.5.4.5]

use crate::hcall::{self, Hcall};

/// What `H_XIRR` names when another CPU asked.
const IPI: u64 = 2;
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

/// Takes back what made this CPU, `server`, leave its guest or wake. Gives the source of a device, if it
/// was one.
pub(crate) fn acknowledge(server: u64) -> Option<u32> {
    // SAFETY: accepts what is pending for this CPU, which is done with below.
    let outcome = unsafe { hcall::call(Hcall::Xirr, [0; 4]) };
    let [accepted, ..] = outcome.values;
    match accepted & 0x00ff_ffff {
        0 => return None,
        IPI => {
            // SAFETY: as above.
            let _ = unsafe { hcall::call(Hcall::Ipi, [server, LEAST, 0, 0]) };
        }
        _ => {}
    }
    // SAFETY: as above.
    let _ = unsafe { hcall::call(Hcall::Eoi, [accepted, 0, 0, 0]) };
    let source = accepted & 0x00ff_ffff;
    u32::try_from(source).ok().filter(|_| source != IPI)
}
