//! The exits that a vCPU makes most often, and what they need of all that is looked at between two entries: the
//! calls by which it takes an interrupt, ends it and waits for the next, and the interrupt of its own device.
//!
//! Between such exits nobody looks at anything else, because nothing else can have changed that is to be seen at once: who
//! wants this core to look calls it, which is an exit of another kind.

use core::sync::atomic::Ordering;

use papr::Platform;
use vm::ExitCause;

use super::Residency;
use super::answer::{Answer, answer};
use super::wait::Waited;
use crate::nested::{Exit, Location, Order, Refused, SYSTEM_RESET, Vector};
use crate::spr;

const EXTERNAL: u64 = 0x500;

/// Why [`Residency::enter`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// A hypercall that is still to be served.
    Call,
    /// Another exit that is still to be handled.
    For(Exit),
    /// All is done that is to be done for the last exit.
    Done,
    /// The vCPU waits, and the monitor wants the core.
    Waiting,
}

impl Residency<'_> {
    /// Runs the vCPU until it leaves by itself for something that needs a look at more than its own interrupts, by the end
    /// of its slice, or because it was called.
    #[optimize(speed)]
    #[inline]
    pub(super) fn enter(&mut self, mut now: u64) -> Result<Left, Refused> {
        self.prepare();
        let mut due = self.vm.platform.has_interrupt(self.index);
        loop {
            let vector = self.once(now, due)?;
            due = match vector {
                Vector::HYPERCALL if self.loaded.vcpu.is_privileged() => {
                    let gpr = &mut self.loaded.vcpu.registers.gpr;
                    if let Some(due) = self.vm.platform.present(self.index, gpr) {
                        self.slot.causes.count(ExitCause::Presentation);
                        due
                    } else if !self.shared && Platform::take_cede(gpr) {
                        self.loaded.vcpu.let_interrupts_through();
                        match self.cede() {
                            Waited::Interrupted => true,
                            Waited::Over => return Ok(Left::Done),
                            Waited::Still => return Ok(Left::Waiting),
                        }
                    } else {
                        return Ok(Left::Call);
                    }
                }
                Vector::EXTERNAL | Vector::VIRTUALIZATION => {
                    match answer(self.guests, self.core, Some((self.vm, self.index))) {
                        Answer::Its => self.slot.causes.count(ExitCause::Message),
                        Answer::Other(cause) => {
                            self.slot.causes.count(cause);
                            self.show();
                            return Ok(Left::Done);
                        }
                    }
                    true
                }
                _ => return Ok(Left::For(self.loaded.vcpu.exit(vector))),
            };
            now = spr::timebase();
            if now >= self.slice_end {
                return Ok(Left::Done);
            }
        }
    }

    /// What another vCPU, or this one by another call, may have changed of how interrupts arrive.
    #[optimize(speed)]
    #[inline]
    fn prepare(&mut self) {
        let platform = &self.vm.platform;
        let vcpu = &mut *self.loaded.vcpu;
        let order = if platform.has_little_endian_interrupts() {
            Order::Little
        } else {
            Order::Big
        };
        let location = if platform.has_alternate_location() {
            Location::Alternate
        } else {
            Location::Low
        };
        vcpu.set_interrupts(order, location);
        if platform.take_system_reset(self.index) {
            vcpu.interrupt(SYSTEM_RESET, 0);
        }
    }

    /// One entry, with an external interrupt if one is due: the vector by which it was left.
    #[optimize(speed)]
    #[inline]
    fn once(&mut self, now: u64, due: bool) -> Result<Vector, Refused> {
        let mut deadline = self.slice_end;
        if due {
            let vcpu = &mut *self.loaded.vcpu;
            if vcpu.lets_interrupts_through() {
                vcpu.interrupt(EXTERNAL, 0);
            }
            deadline = deadline.min(now + self.pending);
        }
        let inside = &self.slot.beside.inside;
        inside.store(true, Ordering::SeqCst);
        // SAFETY: the tree maps frames that were allocated for this guest.
        let vector = unsafe { self.loaded.run_to_vector(deadline) };
        inside.store(false, Ordering::SeqCst);
        self.slot.count_exit();
        vector
    }
}
