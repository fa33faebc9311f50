//! What a guest's SMMU reaches by itself: the guest's memory, and its ITS.

use core::cell::Cell;

use types::Ipa;
use vgic::Kicks;
use vsmmuv3::{GuestMemory, NotGuestMemory};

use crate::guest::vm::Vm;

/// The reach of one SMMU, for the time of a call.
pub(super) struct Reach<'a> {
    vm: &'a Vm,
    /// The DeviceID of its own messages.
    device: Option<u16>,
    /// vCPUs whose LPIs changed.
    told: Cell<Kicks>,
}

impl<'a> Reach<'a> {
    pub(super) fn new(vm: &'a Vm, device: Option<u16>) -> Self {
        Self {
            vm,
            device,
            told: Cell::new(Kicks::NONE),
        }
    }

    /// Passes on what messages to the ITS brought, and says whom to call.
    pub(super) fn post(&self) -> Kicks {
        match self.told.take() {
            Kicks::NONE => Kicks::NONE,
            told => self.vm.gic.post_lpis_to(told),
        }
    }
}

impl GuestMemory for Reach<'_> {
    fn read(&self, ipa: Ipa, buffer: &mut [u8]) -> Result<(), NotGuestMemory> {
        let bytes = buffer.len();
        self.vm
            .copy_out(ipa, buffer)
            .ok_or(NotGuestMemory { ipa, bytes })
    }

    fn read_words(&self, ipa: Ipa, words: &mut [u64]) -> Result<(), NotGuestMemory> {
        let bytes = size_of_val(words);
        self.vm
            .copy_words(ipa, words)
            .ok_or(NotGuestMemory { ipa, bytes })
    }

    fn write(&self, ipa: Ipa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        let fail = NotGuestMemory {
            ipa,
            bytes: bytes.len(),
        };
        if !self.vm.is_memory_span(ipa, bytes.len()) {
            return Err(fail);
        }
        self.vm.copy_in(ipa, bytes).ok_or(fail)
    }

    fn send(&self, ipa: Ipa, data: u32) -> Result<(), NotGuestMemory> {
        if self.vm.store_word(ipa, data).is_some() {
            return Ok(());
        }
        let pci = self.vm.pci.as_ref();
        let (Some(pci), Some(device)) = (pci.filter(|pci| pci.is_doorbell(ipa)), self.device)
        else {
            return Err(NotGuestMemory { ipa, bytes: 4 });
        };
        let told = pci.vits.signal(device.into(), data);
        self.told.set(self.told.get().union(told));
        Ok(())
    }
}
