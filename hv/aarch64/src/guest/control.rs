//! What the loop over VMs asks of this machine.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use boot::{Frames, Verdict};
use hal::Clock;
use machine::Interrupt;
use types::{Bdf, Iova, Ipa};
use vm::{Arrival, Departure, Iommu, Line, Registers, SharedTerminal, Walk};

use super::pci::GuestPci;
use super::run::{self, Core, Guests, Iommus, Thread};
use super::vcpu::{Vcpu, Whereabouts};
use super::vm::{BuildError, Slot, Start, Vm};
use super::{devices, events};
use crate::console::{self, Port, SystemCounter};
use crate::memory::{self, Ram};
use crate::{cpu, panic};

/// What VMs share.
pub(super) struct Machine {
    /// The interrupt of the console, if it has one.
    pub(super) console: Option<Interrupt>,
    pub(super) iommus: Iommus,
    pub(super) frames: &'static Frames<Ram>,
}

impl vm::Arch for Machine {
    type Vcpu = Vcpu;
    type Beside = Start;
    type Vm = Vm;
    type Core = Core;
    type Thread = Thread;
    type Wire = Port;
    type Error = BuildError;

    fn ticks() -> u64 {
        SystemCounter.ticks()
    }

    fn frequency() -> u64 {
        SystemCounter.frequency()
    }

    fn this_core(_: &Guests) -> usize {
        cpu::index()
    }

    fn terminal() -> &'static SharedTerminal<Port> {
        &console::TERMINAL
    }

    fn line(vm: &Vm) -> Line {
        vm.line()
    }

    fn power_off(reason: &str) -> ! {
        panic::end(Verdict::Good(reason))
    }

    fn give_up(reason: &str) -> ! {
        panic::end(Verdict::Fatal(reason))
    }

    fn park() -> ! {
        panic::park()
    }

    fn make_ready(vm: &Vm) -> Result<(), BuildError> {
        vm.make_ready()
    }

    fn waits_for_devices(vm: &Vm) -> Option<u64> {
        vm.waits_for_devices()
    }

    fn give_back_devices(vm: &Vm) {
        vm.give_back_devices();
    }

    fn holds_devices(vm: &Vm) -> bool {
        vm.holds_devices()
    }

    fn receive(guests: &Guests, vm: &Vm, byte: u8, from: usize) {
        run::kick(guests, vm, devices::receive(vm, &[byte]), from);
    }

    fn look_around(guests: &Guests, core: usize) {
        events::look_around(guests, core);
    }

    fn spent(guests: &Guests, core: usize) -> Option<(usize, u64)> {
        guests.machine.iommus.hardware()?.spent(core)
    }

    fn next_look(guests: &Guests, core: usize) -> Option<u64> {
        events::next_hearing(guests, core)
    }

    fn idle(guests: &Guests, core: usize, _: &mut Thread, due: Option<u64>) {
        run::idle(guests, core, due);
    }

    fn stay(
        guests: &Guests,
        thread: &mut Thread,
        arrival: &Arrival<'_, Self>,
        vcpu: &mut Vcpu,
    ) -> Departure {
        run::stay(guests, thread, arrival, vcpu)
    }

    fn due(vm: &Vm, _: usize, vcpu: &Vcpu) -> u64 {
        vcpu.deadline(vm.counter_offset()).unwrap_or(u64::MAX)
    }

    fn has_come(vm: &Vm, index: usize, vcpu: &Vcpu) -> bool {
        // What another vCPU left when it went off is for this one to go on with.
        let has_work = vm.pci.as_ref().is_some_and(GuestPci::has_work);
        has_work || vm.gic.has_interrupt(index, vcpu.interface())
    }

    fn starts_again(_: &Vm, _: usize, slot: &Slot) -> bool {
        slot.beside.lock().is_some()
    }

    fn view(vcpu: &Vcpu) -> Registers {
        vcpu.view(Whereabouts::OffCore)
    }

    fn walk(vm: &Vm, address: Ipa) -> Walk {
        vm.walk(address)
    }

    #[optimize(size)]
    fn devices(vm: &Vm) -> Vec<String> {
        let Some(pci) = &vm.pci else {
            return Vec::new();
        };
        let mut lines = pci.lines();
        lines.push(pci.summary());
        lines.extend(pci.smmu_lines());
        lines
    }

    #[optimize(size)]
    fn stream(vm: &Vm, device: Bdf, address: Iova) -> Option<Vec<String>> {
        vm.pci.as_ref()?.walk(vm, device, address)
    }

    #[optimize(size)]
    fn iommus(&self) -> Vec<Iommu> {
        let state = |smmu: &smmuv3::Locked<memory::Registers>| {
            let state = smmu.state();
            format!(
                "{}: GBPA.ABORT {}, SMMUEN {}",
                if state.gbpa.abort() && !state.cr0.smmuen() {
                    "locked, every transaction aborts"
                } else {
                    "NOT LOCKED"
                },
                u8::from(state.gbpa.abort()),
                u8::from(state.cr0.smmuen()),
            )
        };
        match &self.iommus {
            Iommus::Locked(smmus) => {
                let iommus = smmus.iter().enumerate();
                let locked = iommus.map(|(index, smmu)| Iommu {
                    name: format!("smmu{index}"),
                    state: state(smmu),
                });
                locked.collect()
            }
            Iommus::Driven(hardware) => {
                let driven = hardware.states().into_iter();
                driven.map(|(name, state)| Iommu { name, state }).collect()
            }
        }
    }

    fn frames(&self) -> vm::Frames {
        memory::frames(self.frames)
    }
}
