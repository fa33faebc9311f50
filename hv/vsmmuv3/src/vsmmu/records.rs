//! Records and errors that the guest is told of.

use smmuv3::spec::{Event, EventId};
use types::StreamId;

use super::outcome::{Delivery, Health, Interrupts, Line};
use super::streams::Verdict;
use super::{Run, VSmmu};
use crate::events::{self, Put};
use crate::memory::GuestMemory;
use crate::registers::{EVENTQ_ABT_ERR, EVENTQEN, IRQ_EVENTQ, IRQ_GERROR, SFM_ERR, SMMUEN};

impl VSmmu {
    /// Tells the guest of a hardware event of one of its streams, as far as it may see it.
    ///
    /// Neither waits nor touches hardware. `interrupts` of the outcome are to be sent.
    pub fn report(
        &mut self,
        stream: StreamId,
        hardware: &Event,
        memory: &impl GuestMemory,
    ) -> (Delivery, Interrupts) {
        let mut interrupts = Interrupts::NONE;
        let Some(known) = self.stream(stream).copied() else {
            return (Delivery::Filtered, interrupts);
        };
        if !self.registers.is_on(SMMUEN) {
            return (Delivery::Filtered, interrupts);
        }
        let record = match (hardware.id(), known.verdict) {
            // What the hardware calls a bad entry is one that was made for a missing one.
            (EventId::CBadSte, Verdict::NoEntry | Verdict::NotFetched { .. }) => {
                self.emulated(&known)
            }
            // A driver's hardware, not a guest's.
            _ if self.features.has_stage_two() => Some(hardware.with_sid(stream.bits())),
            _ => events::for_guest(hardware, stream, self.features.substream_bits()),
        };
        let delivery = match record {
            None => Delivery::Filtered,
            Some(record) => self.put(&record, memory, &mut interrupts),
        };
        (delivery, interrupts)
    }

    /// Makes an error active, and says so if it was not.
    pub(super) fn error(
        &mut self,
        bit: u32,
        memory: &impl GuestMemory,
        interrupts: &mut Interrupts,
    ) {
        if self.registers.raise_error(bit) && self.registers.irq_ctrl & IRQ_GERROR != 0 {
            interrupts.add(Line::Gerror);
            self.send_gerror(memory);
        }
    }

    pub(super) fn broken<M: GuestMemory, P>(&mut self, run: &mut Run<'_, M, P>) {
        self.health = Health::Broken;
        self.error(SFM_ERR, run.memory, &mut run.interrupts);
    }

    pub(super) fn put(
        &mut self,
        record: &Event,
        memory: &impl GuestMemory,
        interrupts: &mut Interrupts,
    ) -> Delivery {
        if self.registers.cr0 & EVENTQEN == 0 {
            self.counters.events_lost = self.counters.events_lost.wrapping_add(1);
            return Delivery::Off;
        }
        let most = self.features.idr1.evtqs();
        // Nothing is written until the guest knows that something could not be. [IHI 0070 §7.2.1]
        if self.registers.active_errors() & EVENTQ_ABT_ERR != 0 {
            self.counters.events_lost = self.counters.events_lost.wrapping_add(1);
            return Delivery::Lost;
        }
        match self.events.put(record, memory, most) {
            Put::Queued => {
                self.counters.events = self.counters.events.wrapping_add(1);
                if self.registers.irq_ctrl & IRQ_EVENTQ != 0 {
                    interrupts.add(Line::Event);
                    self.send_event(memory, interrupts);
                }
                return Delivery::Delivered;
            }
            Put::Overflow => {}
            Put::NotWritable => self.error(EVENTQ_ABT_ERR, memory, interrupts),
        }
        self.counters.events_lost = self.counters.events_lost.wrapping_add(1);
        Delivery::Lost
    }
}
