//! What the monitor can do: the same on every architecture.

use alloc::string::String;
use alloc::vec::Vec;

use log::LevelFilter;
use types::{Bdf, Iova, Ipa};

use crate::guests::ticks_of_us;
use crate::tenant::{Registers, Slot};
use crate::{
    Arch, Control, Ending, ExitCause, Frames, Guests, Iommu, Plug, Refusal, State, VcpuState,
    VmStatus, Walk,
};

/// How long vCPUs may take to leave their cores: they leave at their next exit, and are called.
const STOP_TIMEOUT_US: u64 = 1_000_000;
/// How long a VM may take to be made ready elsewhere before `restart` answers that it is starting.
const START_TIMEOUT_US: u64 = 10_000_000;
/// How long a vCPU may take to show its registers.
const PEEK_TIMEOUT_US: u64 = 100_000;

/// Waits until `done`, not longer than so many microseconds.
fn wait<A: Arch>(us: u64, mut done: impl FnMut() -> bool) -> bool {
    let deadline = A::ticks().saturating_add(ticks_of_us::<A>(us));
    loop {
        if done() {
            return true;
        }
        if A::ticks() > deadline {
            return false;
        }
        hal::relax();
    }
}

fn microseconds<A: Arch>(ticks: u64) -> u64 {
    let us = u128::from(ticks).saturating_mul(1_000_000);
    let us = us.checked_div(u128::from(A::frequency())).unwrap_or(0);
    u64::try_from(us).unwrap_or(u64::MAX)
}

/// Whether a VM is off, but its devices are still on their way back: nobody else can have them yet.
fn is_giving_back<A: Arch>(vm: &A::Vm) -> bool {
    vm.lifecycle.is_off() && A::holds_devices(vm)
}

fn ran_us<A: Arch>(slot: &Slot<A::Vcpu, A::Beside>) -> u64 {
    microseconds::<A>(slot.clock.total(A::ticks()))
}

impl<A: Arch> Guests<A> {
    fn end_and_wait(&self, vm: usize, ending: Ending) -> Result<&A::Vm, Refusal> {
        let vm = self.vm(vm)?;
        // One that resets itself without end is mostly about to start: it is taken once it runs.
        let mut ends = false;
        wait::<A>(START_TIMEOUT_US, || {
            self.poll_starts(None);
            ends =
                vm.lifecycle.is_running() && self.end_from_outside(vm, ending, A::this_core(self));
            ends || vm.lifecycle.is_off()
        });
        if !ends {
            return Err(match vm.lifecycle.is_off() {
                true => Refusal::NotRunning,
                false => Refusal::Stuck,
            });
        }
        let gone = || !matches!(vm.lifecycle.state(), State::Ending(_)) && !is_giving_back::<A>(vm);
        if wait::<A>(STOP_TIMEOUT_US, gone) {
            Ok(vm)
        } else {
            Err(Refusal::Stuck)
        }
    }

    /// The registers of a vCPU, which its own core is asked for while it is there.
    fn registers(&self, slot: &Slot<A::Vcpu, A::Beside>) -> Result<Registers, Refusal> {
        let _ = slot.take_view();
        let mut asked = false;
        let mut shown = None;
        wait::<A>(PEEK_TIMEOUT_US, || {
            if let Some(vcpu) = slot.vcpu.try_lock() {
                slot.want_view(false);
                shown = Some(A::view(&vcpu));
            } else {
                shown = slot.take_view();
                if shown.is_none() && !asked {
                    slot.want_view(true);
                    self.call(slot.core);
                    asked = true;
                }
            }
            shown.is_some()
        });
        shown.ok_or(Refusal::Stuck)
    }
}

impl<A: Arch> Control for &Guests<A> {
    fn vms(&self) -> Vec<VmStatus> {
        let status = |vm: &A::Vm| VmStatus {
            name: vm.name.clone(),
            state: vm.lifecycle.state(),
            vcpus: vm.slots.len(),
            memory: vm.bytes,
            starts: vm.lifecycle.starts(),
            exits: vm.slots.iter().map(Slot::exits).sum(),
            ran_us: vm.slots.iter().map(ran_us::<A>).sum(),
        };
        self.vms.iter().map(status).collect()
    }

    fn now_us(&self) -> u64 {
        microseconds::<A>(A::ticks())
    }

    fn start(&mut self, vm: usize) -> Result<(), Refusal> {
        // One that has just gone off by itself may have devices that this one wants.
        wait::<A>(STOP_TIMEOUT_US, || {
            !self.vms.iter().any(is_giving_back::<A>)
        });
        let vm = self.vm(vm)?;
        if !vm.lifecycle.claim() {
            return Err(Refusal::Running);
        }
        self.begin(vm, None);
        match vm.lifecycle.state() {
            State::Failed => Err(Refusal::CannotStart),
            _ => Ok(()),
        }
    }

    fn stop(&mut self, vm: usize) -> Result<(), Refusal> {
        self.end_and_wait(vm, Ending::Stop).map(|_| ())
    }

    fn restart(&mut self, vm: usize) -> Result<(), Refusal> {
        let vm = self.end_and_wait(vm, Ending::Restart)?;
        wait::<A>(START_TIMEOUT_US, || {
            self.poll_starts(None);
            vm.lifecycle.state() != State::Starting
        });
        match vm.lifecycle.state() {
            State::Failed => Err(Refusal::CannotStart),
            _ => Ok(()),
        }
    }

    fn vcpu(&self, vm: usize, vcpu: usize) -> Result<VcpuState, Refusal> {
        let slot = self.vm(vm)?.slots.get(vcpu).ok_or(Refusal::NoVcpu)?;
        Ok(VcpuState {
            core: slot.core,
            activity: slot.activity(),
            exits: slot.exits(),
            ran_us: ran_us::<A>(slot),
            registers: self.registers(slot)?,
        })
    }

    fn walk(&self, vm: usize, address: u64) -> Result<Walk, Refusal> {
        let address = Ipa::new(address).map_err(|_| Refusal::TooWide)?;
        Ok(A::walk(self.vm(vm)?, address))
    }

    fn exits(&self, vm: usize) -> Result<Vec<(ExitCause, u64)>, Refusal> {
        let slots = &self.vm(vm)?.slots;
        let sum = |cause| slots.iter().map(|slot| slot.causes.of(cause)).sum();
        let counts = ExitCause::ALL.map(|cause| (cause, sum(cause)));
        Ok(counts.into_iter().filter(|(_, count)| *count > 0).collect())
    }

    fn devices(&self, vm: usize) -> Result<Vec<String>, Refusal> {
        Ok(A::devices(self.vm(vm)?))
    }

    fn freeze(&self, vm: usize) -> Result<usize, Refusal> {
        match A::freeze(self, self.vm(vm)?) {
            None => Err(Refusal::NoErrors),
            Some(0) => Err(Refusal::NotRunning),
            Some(bridges) => Ok(bridges),
        }
    }

    fn plug(&self, vm: usize, bridge: u64, plug: Plug) -> Result<(), Refusal> {
        let vm = self.vm(vm)?;
        if !vm.lifecycle.is_running() {
            return Err(Refusal::NotRunning);
        }
        A::plug(self, vm, bridge, plug).unwrap_or(Err(Refusal::NoPlug))
    }

    fn stream(&self, vm: usize, device: Bdf, address: u64) -> Result<Vec<String>, Refusal> {
        let address = Iova::new(address).map_err(|_| Refusal::TooWide)?;
        A::stream(self.vm(vm)?, device, address).ok_or(Refusal::NoDevice)
    }

    fn iommus(&self) -> Vec<Iommu> {
        self.machine.iommus()
    }

    fn frames(&self) -> Frames {
        self.machine.frames()
    }

    fn set_log(&mut self, level: LevelFilter) {
        log::set_max_level(level);
    }
}
