//! What interrupts a core: other cores, and devices, whose interrupts go to the VMs that own them.

use core::sync::atomic::{Ordering, fence};

use papr::Servers;
use vm::ExitCause;

use super::{Core, Guests, kick};
use crate::guest::vm::Vm;
use crate::presentation::{self, Afterwards, Heard, Listener};
use crate::{console, messages, spr};

/// What made a core leave its guest or wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Devices' interrupts alone, all of which are due now for the vCPU that is here.
    Its,
    /// Something else, or something else as well: the core looks at everything after this.
    Other(ExitCause),
}

/// Whose the interrupt of a device was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// It is due for the vCPU that is here, which is the only one to look.
    Its,
    /// Another's, nobody's, or it does not let it through.
    Another,
}

/// Takes back what called this core. `here` is the VM and the vCPU that are on it, if any are.
#[optimize(speed)]
pub(super) fn answer(guests: &Guests, core: &Core, here: Option<(&Vm, usize)>) -> Answer {
    let mut devices = Devices {
        guests,
        core,
        here,
        typed: false,
        others: false,
        cause: ExitCause::Kick,
    };
    let heard = presentation::acknowledge(&mut devices);
    let Devices {
        typed,
        others,
        cause,
        ..
    } = devices;
    if heard == Heard::Devices && !typed && !others {
        // Whoever called meanwhile has interrupted this core, too, which has not yet been taken back.
        return Answer::Its;
    }
    if typed {
        guests.read_keys(vm::CONSOLE_CORE);
    }
    // Whoever finds this still set has done what this core is to see before.
    core.called.store(false, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    Answer::Other(cause)
}

/// What devices had to say.
struct Devices<'a> {
    guests: &'a Guests,
    core: &'a Core,
    here: Option<(&'a Vm, usize)>,
    /// The terminal's was among them.
    typed: bool,
    /// Others than the vCPU's that is here were.
    others: bool,
    cause: ExitCause,
}

impl Listener for Devices<'_> {
    // There are two places that call it; in one of them a call would be felt.
    #[inline(always)]
    #[optimize(speed)]
    fn came(&mut self, source: u32) -> Afterwards {
        let now = spr::timebase();
        if let Some(afterwards) = console::came(source, now) {
            self.typed = true;
            self.cause = ExitCause::OtherInterrupt;
            return afterwards;
        }
        self.cause = ExitCause::Message;
        let (whose, afterwards) = deliver(self.guests, self.core, self.here, source, now);
        self.others |= whose == Whose::Another;
        afterwards
    }
}

/// Passes the interrupt of a device on to the VM that owns it.
#[inline(always)]
#[optimize(speed)]
fn deliver(
    guests: &Guests,
    core: &Core,
    here: Option<(&Vm, usize)>,
    source: u32,
    now: u64,
) -> (Whose, Afterwards) {
    let Some(hardware) = guests.machine.hardware else {
        return (Whose::Another, Afterwards::Held);
    };
    let (came, afterwards) = hardware.messages.came(source, now);
    let Some((came, vm)) = came.and_then(|came| Some((came, guests.vms.get(came.vm)?))) else {
        return (Whose::Another, afterwards);
    };
    let told = match came.kind {
        messages::Kind::Message => vm.platform.signal(came.source),
        messages::Kind::Pin => vm.platform.raise(came.source),
    };
    let Ok(told) = told else {
        return (Whose::Another, afterwards);
    };
    if let Some((vm_here, index)) = here
        && core::ptr::eq(vm_here, vm)
        && told == Servers::one(index)
    {
        return (Whose::Its, afterwards);
    }
    tell(guests, core, vm, told);
    (Whose::Another, afterwards)
}

/// Tells vCPUs of others, or not of here.
#[inline(never)]
fn tell(guests: &Guests, core: &Core, vm: &Vm, told: Servers) {
    let mut cores = guests.cores.iter();
    let number = cores.position(|other| core::ptr::eq(other, core));
    kick(guests, vm, told, number.unwrap_or(usize::MAX));
}
