//! What a VM's platform reaches for, here.

use core::sync::atomic::{Ordering, fence};

use papr::{Date, Environment, NotGuestMemory, Served, Servers};

use super::devices::View;
use super::run::{self, Guests};
use super::vm::Vm;
use crate::{console, spr};

/// How long another vCPU may take to leave its guest: it is made to leave at once.
const LEAVE_TIMEOUT_US: u64 = 1_000_000;

/// The surroundings of a VM one of whose vCPUs is on `core`.
pub(super) struct Surroundings<'a> {
    pub(super) guests: &'a Guests,
    pub(super) vm: &'a Vm,
    pub(super) core: usize,
}

impl Surroundings<'_> {
    /// What devices change of the VM.
    pub(super) fn view<'v>(&'v self, leave: &'v dyn Fn()) -> View<'v> {
        View {
            memory: &self.vm.memory,
            leave,
        }
    }

    /// Every other vCPU of the VM leaves its guest: whoever enters from now on finds what is in the tables
    /// now, and whoever was inside drops what it has cached by leaving. Two vCPUs that wait for each
    /// other here do not: neither is inside. False when one does not leave in time.
    fn all_leave(&self) -> bool {
        fence(Ordering::SeqCst);
        let deadline = spr::timebase() + Vm::ticks(LEAVE_TIMEOUT_US);
        for slot in &self.vm.slots {
            if slot.core == self.core {
                continue;
            }
            let exits = slot.exits();
            if slot.beside.inside.load(Ordering::SeqCst) {
                self.guests.call(slot.core);
            }
            while slot.beside.inside.load(Ordering::SeqCst) && slot.exits() == exits {
                if spr::timebase() > deadline {
                    return false;
                }
                hal::relax();
            }
        }
        true
    }

    /// The same, and it comes back only when it is so.
    pub(super) fn leave(&self) {
        while !self.all_leave() {
            log::error!("vm {}: a vCPU does not leave its core", self.vm.name);
        }
    }
}

impl Environment for Surroundings<'_> {
    fn memory_bytes(&self) -> u64 {
        self.vm.memory.bytes()
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), NotGuestMemory> {
        let bytes = buffer.len();
        let result = self.vm.memory.read(at, buffer);
        result.map_err(|_| NotGuestMemory { at, bytes })
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        let result = self.vm.memory.write(at, bytes);
        result.map_err(|_| NotGuestMemory {
            at,
            bytes: bytes.len(),
        })
    }

    #[optimize(speed)]
    #[inline]
    fn change_cell(&self, at: u64, change: impl FnOnce(u32) -> u32) {
        // What is not its memory is nobody's to change.
        let _ = self.vm.memory.change_cell(at, change);
    }

    fn code_changed(&self, at: u64, bytes: u64) {
        self.vm.memory.flush_code(at, bytes);
    }

    fn print(&self, bytes: &[u8]) {
        console::guest(self.vm.number, bytes);
    }

    fn typed(&self, buffer: &mut [u8]) -> usize {
        let mut input = self.vm.input.lock();
        let count = input.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(input.drain(..count)) {
            *to = from;
        }
        count
    }

    fn now(&self) -> Option<Date> {
        self.vm.now()
    }

    fn timebase(&self) -> u64 {
        let offset = self.vm.timebase_offset.load(Ordering::Acquire);
        spr::timebase().wrapping_add_signed(offset)
    }

    fn random(&self) -> Option<u64> {
        spr::random()
    }

    fn kick(&self, vcpus: Servers) {
        run::kick(self.guests, self.vm, vcpus, self.core);
    }

    #[optimize(speed)]
    fn put_tce(&self, arguments: [u64; 4]) -> bool {
        match self.vm.devices.as_ref() {
            Some(devices) => devices.put_tce(arguments),
            None => false,
        }
    }

    #[optimize(speed)]
    fn device_hypercall(&self, number: u64, arguments: [u64; 4]) -> Option<(u64, Option<u64>)> {
        let devices = self.vm.devices.as_ref()?;
        devices.hypercall(&self.vm.memory, number, arguments)
    }

    fn device_service(&self, token: u32, arguments: &[u32], results: usize) -> Option<Served> {
        let devices = self.vm.devices.as_ref()?;
        let core = self.vm.slots.first().map_or(0, |slot| slot.core);
        let server = self.guests.cores.get(core)?.cpu.server();
        let server = u32::try_from(server).ok()?;
        let leave = || self.leave();
        devices.service(server, self.view(&leave), token, arguments, results)
    }

    fn ended(&self, source: u32) {
        if let Some(devices) = &self.vm.devices {
            devices.ended(source);
        }
    }

    fn set_process_table(&self, entry: u64) -> bool {
        let tree = self.vm.memory.partition_entry();
        let partitions = self.vm.machine.partitions;
        if partitions.set(self.vm.lpid(), tree, entry).is_err() {
            return false;
        }
        self.all_leave()
    }
}
