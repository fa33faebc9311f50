//! Devices on their way to a VM that starts: their resets take a tenth of a second, in which the core does
//! something else.

use core::sync::atomic::Ordering;

use hal::Clock;

use super::recovery::{Masters, RESET_US};
use super::{Devices, Held, Memory, View};
use crate::console::TimeBase;
use crate::spr;

/// How far a bridge's devices are, before a start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Readiness {
    /// A guest has had them since their last reset.
    #[default]
    Used,
    /// They are being reset, until then at most.
    Resetting(u64),
    /// They are as they came out of reset.
    Fresh,
}

/// How soon a reset that is under way is looked at again.
const LOOK_US: u64 = 1_000;

impl Devices {
    /// A VM that is to start gets its bridges, as far as they are nobody's, and their devices begin their
    /// resets. When to look again, in ticks; `None` once [`Devices::take`] can finish without a wait, or
    /// has to say why it cannot. No vCPU of it runs.
    pub(crate) fn prepare(&self, memory: &Memory) -> Option<u64> {
        let view = View {
            memory,
            leave: &|| {},
        };
        let mut all = self.held.lock();
        for at in &self.bridges {
            if !all.iter().any(|held| held.bridge == *at)
                && let Ok(held) = self.take_one(*at, view)
            {
                all.push(held);
            }
        }
        self.has_bridges.store(!all.is_empty(), Ordering::Release);
        let mut waits = false;
        for held in all.iter_mut() {
            self.move_on(held, view);
            waits |= matches!(held.readiness, Readiness::Resetting(_));
        }
        waits.then(|| spr::timebase() + TimeBase.ticks_of_us(LOOK_US))
    }

    /// Begins the resets of a bridge's devices, or looks how far they are.
    fn move_on(&self, held: &mut Held, view: View<'_>) {
        let bridge = &self.hardware.bridges[held.bridge];
        match held.readiness {
            Readiness::Fresh => {}
            Readiness::Used if bridge.used.load(Ordering::Acquire) == 0 => {}
            Readiness::Used => {
                (held.isolated, held.returns) = (false, false);
                // What it asks for is part of what is done here anyway.
                while held.pe.restart() != eeh::Effect::None {}
                // A device that goes on is one that `take` refuses.
                if self.set_masters(held, Masters::None) {
                    self.begin_resets(held);
                    let end = spr::timebase() + TimeBase.ticks_of_us(RESET_US);
                    held.readiness = Readiness::Resetting(end);
                }
            }
            Readiness::Resetting(end) => {
                let late = spr::timebase() > end;
                if !self.poll_resets(held) && !late {
                    return;
                }
                if late && !held.resets.is_empty() {
                    log::warn!("vm {}: a device's reset does not end", self.vm);
                }
                self.show(held, view);
                held.readiness = Readiness::Fresh;
            }
        }
    }
}
