//! What the loop over VMs asks of this machine.

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use boot::{Frames, Verdict};
use hal::Clock;
use types::Ipa;
use vm::{Arrival, Departure, Iommu, Line, Plug, Refusal, Registers, SharedTerminal, Walk};

use super::devices::Devices;
use super::environment::Surroundings;
use super::run::{self, Core, Guests};
use super::vm::{Beside, BuildError, Slot, Vm};
use crate::console::{self, TimeBase, Vty};
use crate::hardware::Hardware;
use crate::memory::{self, Ram};
use crate::nested::{GuestThread, Vcpu};
use crate::{panic, smp, spr};

/// What VMs share.
pub(super) struct Platform {
    pub(super) hardware: Option<&'static Hardware>,
    pub(super) windows: Vec<Iommu>,
    pub(super) frames: &'static Frames<Ram>,
}

impl vm::Arch for Platform {
    type Vcpu = Vcpu;
    type Beside = Beside;
    type Vm = Vm;
    type Core = Core;
    type Thread = GuestThread;
    type Wire = Vty;
    type Error = BuildError;

    fn ticks() -> u64 {
        spr::timebase()
    }

    fn frequency() -> u64 {
        TimeBase.frequency()
    }

    fn this_core(guests: &Guests) -> usize {
        run::this_core(guests)
    }

    fn terminal() -> &'static SharedTerminal<Vty> {
        &console::TERMINAL
    }

    fn line(vm: &Vm) -> Line {
        match vm.platform.config().terminal {
            Some(_) => Line::Shared,
            None => Line::Absent,
        }
    }

    fn power_off(reason: &str) -> ! {
        panic::end(Verdict::Good(reason))
    }

    fn give_up(reason: &str) -> ! {
        panic::end(Verdict::Fatal(reason))
    }

    fn park() -> ! {
        smp::park()
    }

    fn make_ready(vm: &Vm) -> Result<(), BuildError> {
        vm.make_ready()
    }

    fn waits_for_devices(vm: &Vm) -> Option<u64> {
        vm.devices.as_ref()?.prepare(&vm.memory)
    }

    fn give_back_devices(vm: &Vm) {
        if let Some(devices) = &vm.devices
            && !devices.give_back(&vm.memory)
        {
            log::error!("vm {}: keeps devices, which may still be at work", vm.name);
        }
    }

    fn holds_devices(vm: &Vm) -> bool {
        vm.devices.as_ref().is_some_and(Devices::has_bridges)
    }

    fn receive(guests: &Guests, vm: &Vm, byte: u8, from: usize) {
        run::kick(guests, vm, vm.receive(byte), from);
    }

    fn look_around(guests: &Guests, core: usize) {
        run::look_around(guests, core);
    }

    fn idle(guests: &Guests, core: usize, thread: &mut GuestThread, due: Option<u64>) {
        if let Some(core) = guests.cores.get(core) {
            run::idle(guests, core, thread, due);
        }
    }

    fn stay(
        guests: &Guests,
        thread: &mut GuestThread,
        arrival: &Arrival<'_, Self>,
        vcpu: &mut Vcpu,
    ) -> Departure {
        run::stay(guests, thread, arrival, vcpu)
    }

    fn due(vm: &Vm, index: usize, vcpu: &Vcpu) -> u64 {
        run::due(vm, index, vcpu.decrementer_expires())
    }

    fn waits(slot: &Slot) {
        slot.beside.waited.store(true, Ordering::Release);
    }

    fn has_come(vm: &Vm, index: usize, _: &Vcpu) -> bool {
        vm.platform.wake(index) == papr::Wake::Due
    }

    fn starts_again(vm: &Vm, index: usize, _: &Slot) -> bool {
        vm.platform.is_starting(index)
    }

    fn view(vcpu: &Vcpu) -> Registers {
        vcpu.view()
    }

    fn walk(vm: &Vm, address: Ipa) -> Walk {
        vm.memory.walk(address)
    }

    fn devices(vm: &Vm) -> Vec<String> {
        let Some(devices) = &vm.devices else {
            return Vec::new();
        };
        let mut lines = devices.describe();
        let (looked, wrong) = devices.audit();
        lines.push(alloc::format!(
            "audit: {looked} entries looked at, {wrong} wrong"
        ));
        lines
    }

    fn freeze(guests: &Guests, vm: &Vm) -> Option<usize> {
        let devices = vm.devices.as_ref()?;
        let core = run::this_core(guests);
        let surroundings = Surroundings { guests, vm, core };
        let leave = || surroundings.leave();
        Some(devices.inject(surroundings.view(&leave)))
    }

    fn plug(guests: &Guests, vm: &Vm, bridge: u64, plug: Plug) -> Option<Result<(), Refusal>> {
        let Some(devices) = &vm.devices else {
            return Some(Err(Refusal::NoBridge));
        };
        let core = run::this_core(guests);
        let surroundings = Surroundings { guests, vm, core };
        let leave = || surroundings.leave();
        let plugged = devices.plug(bridge, plug, surroundings.view(&leave));
        Some(plugged.and_then(|connector| {
            if vm.lifecycle.is_off() {
                // It has ended meanwhile, and given back what it had then.
                let _ = devices.give_back(&vm.memory);
                return Err(Refusal::NotRunning);
            }
            // One that comes is told of once its devices are through their resets.
            if plug == Plug::Out {
                let action = papr::Action::Remove;
                let event = papr::HotPlug { connector, action };
                run::kick(guests, vm, vm.platform.announce(event), core);
            }
            Ok(())
        }))
    }

    fn iommus(&self) -> Vec<Iommu> {
        self.windows.clone()
    }

    fn frames(&self) -> vm::Frames {
        memory::frames(self.frames)
    }
}
