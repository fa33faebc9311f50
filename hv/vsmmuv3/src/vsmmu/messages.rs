//! Messages of the SMMU's own: 32-bit writes that nothing translates. [IHI 0070 §3.18]
//!
//! What is said is in the registers before its message goes out; where a message may go is
//! [`GuestMemory::send`]'s to decide.

use types::Ipa;

use super::outcome::Interrupts;
use super::{MESSAGE_COST, Run, VSmmu};
use crate::memory::{GuestMemory, NotGuestMemory};
use crate::registers::{MSI_CMDQ_ABT_ERR, MSI_EVENTQ_ABT_ERR, MSI_GERROR_ABT_ERR};

impl VSmmu {
    /// Sends a message to an address that was cut to the promised size.
    fn send(
        &mut self,
        address: u64,
        data: u32,
        memory: &impl GuestMemory,
    ) -> Result<(), NotGuestMemory> {
        let sent = memory.send(Ipa::truncated(address), data);
        let count = match sent {
            Ok(()) => &mut self.counters.messages,
            Err(_) => &mut self.counters.messages_aborted,
        };
        *count = count.wrapping_add(1);
        sent
    }

    /// A `CMD_SYNC` that asked for an interrupt is complete.
    ///
    /// Zero is looked for in the whole field, before it is cut. [IHI 0070 §4.7.3]
    pub(super) fn send_sync<M: GuestMemory, P>(
        &mut self,
        address: u64,
        data: u32,
        run: &mut Run<'_, M, P>,
    ) {
        if address == 0 {
            return;
        }
        run.spend(MESSAGE_COST);
        let address = self.features.truncate(address);
        if self.send(address, data, run.memory).is_err() {
            self.error(MSI_CMDQ_ABT_ERR, run.memory, &mut run.interrupts);
        }
    }

    /// A record is in the event queue.
    pub(super) fn send_event(&mut self, memory: &impl GuestMemory, interrupts: &mut Interrupts) {
        let message = self.registers.eventq_message;
        if message.address != 0 && self.send(message.address, message.data, memory).is_err() {
            self.error(MSI_EVENTQ_ABT_ERR, memory, interrupts);
        }
    }

    /// An error became active.
    ///
    /// One of this message itself makes no further one. [IHI 0070 §7.5.1]
    pub(super) fn send_gerror(&mut self, memory: &impl GuestMemory) {
        let message = self.registers.gerror_message;
        if message.address != 0 && self.send(message.address, message.data, memory).is_err() {
            self.registers.raise_error(MSI_GERROR_ABT_ERR);
        }
    }
}
