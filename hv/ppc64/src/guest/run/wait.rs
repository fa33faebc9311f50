//! How a vCPU waits that has its core for itself: the core sleeps, with the vCPU's registers in it.
//!
//! Nothing that comes is lost: whoever has something for the vCPU, or wants this core, says so first and then interrupts
//! the core. What was said before the last look here has been seen, and the interrupt of what was said later is pending
//! when the core is to sleep, which then does not.

use papr::{Ceded, Wake};
use vm::ExitCause;

use super::answer::{Answer, answer};
use super::{LOOK_US, Residency, due};
use crate::guest::vm::Vm;
use crate::spr;

/// What has become of a vCPU that waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// It goes on, with an external interrupt, and nothing else is to be looked at.
    Interrupted,
    /// It goes on, after a look at everything.
    Over,
    /// It still waits, and the monitor wants the core.
    Still,
}

impl Residency<'_> {
    /// What follows `H_CEDE` of a vCPU with whom no other wants the core.
    // The calls beside it are not to feel what it needs: it changes nothing of the residency, whose fields can be kept in
    // registers, and is not inlined.
    #[optimize(speed)]
    #[inline(never)]
    pub(super) fn cede(&self) -> Waited {
        self.slot.causes.count(ExitCause::Wait);
        let platform = &self.vm.platform;
        match platform.cede(self.index, self.surroundings) {
            Ceded::Waits => {}
            Ceded::Interrupt => return Waited::Interrupted,
            Ceded::Due => return Waited::Over,
        }
        let due = self.loaded.decrementer_expires();
        let is_due = due.wrapping_sub(spr::timebase()).cast_signed() <= 0;
        if !is_due && self.vm.lifecycle.is_running() && !self.is_wanted_elsewhere() {
            self.loaded.sleep(due.min(self.slice_end));
            match answer(self.guests, self.core, Some((self.vm, self.index))) {
                Answer::Its => {
                    platform.resume(self.index, self.surroundings);
                    return Waited::Interrupted;
                }
                Answer::Other(_) => self.show(),
            }
        }
        self.waits_on()
    }

    /// Sleeps on the core until something is there for the vCPU. No other vCPU wants the core.
    pub(super) fn wait(&self) -> Waited {
        self.vm.platform.goes(self.index, self.surroundings);
        self.waits_on()
    }

    /// The same, once it has left its thread.
    #[inline(never)]
    fn waits_on(&self) -> Waited {
        let mut look_at = self.slice_end;
        let platform = &self.vm.platform;
        let due = due(self.vm, self.index, self.loaded.decrementer_expires());
        loop {
            let now = spr::timebase();
            if platform.wake(self.index) == Wake::Due
                || due <= now
                || !self.vm.lifecycle.is_running()
            {
                platform.resume(self.index, self.surroundings);
                return Waited::Over;
            }
            if self.is_wanted_elsewhere() {
                return Waited::Still;
            }
            if now >= look_at {
                // It may bring something for the vCPU.
                self.look();
                look_at = now + Vm::ticks(LOOK_US);
                continue;
            }
            self.loaded.sleep(due.min(look_at));
            let _ = answer(self.guests, self.core, Some((self.vm, self.index)));
            self.show();
        }
    }
}
