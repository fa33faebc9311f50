//! The exits that a vCPU makes most often, and what they need of all that is looked at between two entries: the
//! calls by which it takes an interrupt and ends it, and the interrupt of its own device.
//!
//! Between such exits nobody looks at anything else, because nothing else can have changed that is to be seen at once: who
//! wants this core to look calls it, which is an exit of another kind.

use core::sync::atomic::Ordering;

use vm::ExitCause;

use super::Residency;
use super::answer::{Answer, answer};
use crate::nested::{Exit, Location, Order, Refused, SYSTEM_RESET, Vector};
use crate::spr;

const EXTERNAL: u64 = 0x500;

impl Residency<'_> {
    /// Runs the vCPU until it leaves by itself for something that needs a look at more than its own interrupts, by the end
    /// of its slice, or because it was called: `None` when all is done that is to be done for this exit.
    #[optimize(speed)]
    #[inline]
    pub(super) fn enter(&mut self, mut now: u64) -> Result<Option<Exit>, Refused> {
        self.prepare();
        let mut due = self.vm.platform.has_interrupt(self.index);
        loop {
            let vector = self.once(now, due)?;
            due = match vector {
                Vector::HYPERCALL if self.loaded.vcpu.is_privileged() => {
                    let gpr = &mut self.loaded.vcpu.registers.gpr;
                    let Some(due) = self.vm.platform.present(self.index, gpr) else {
                        return Ok(Some(Exit::Hcall));
                    };
                    self.slot.causes.count(ExitCause::Presentation);
                    due
                }
                Vector::EXTERNAL | Vector::VIRTUALIZATION => {
                    match answer(self.guests, self.core, Some((self.vm, self.index))) {
                        Answer::Its => self.slot.causes.count(ExitCause::Message),
                        Answer::Other(cause) => {
                            self.slot.causes.count(cause);
                            self.show();
                            return Ok(None);
                        }
                    }
                    true
                }
                _ => return Ok(Some(self.loaded.vcpu.exit(vector))),
            };
            now = spr::timebase();
            if now >= self.slice_end {
                return Ok(None);
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
