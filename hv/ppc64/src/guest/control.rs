//! What the monitor can do here.

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hal::Clock;
use log::LevelFilter;
use types::{Bdf, Ipa};
use vm::{Control, Ending, Iommu, Refusal, State, VcpuState, VmStatus, Walk};

use super::run::{self, Guests};
use super::vm::{Activity, Slot, Vm};
use crate::console::TimeBase;
use crate::{heap, spr};

/// How long vCPUs may take to leave their cores: they leave at their next exit, and are called.
const STOP_TIMEOUT_US: u64 = 1_000_000;
/// How long a VM may take to be made ready elsewhere before `restart` answers that it is starting.
const START_TIMEOUT_US: u64 = 10_000_000;
/// How long a vCPU may take to show its registers.
const PEEK_TIMEOUT_US: u64 = 100_000;

/// Waits until `done`, not longer than so many microseconds.
fn wait(us: u64, done: impl Fn() -> bool) -> bool {
    let deadline = spr::timebase() + Vm::ticks(us);
    loop {
        if done() {
            return true;
        }
        if spr::timebase() > deadline {
            return false;
        }
        spr::relax();
    }
}

fn microseconds(ticks: u64) -> u64 {
    let us = u128::from(ticks) * 1_000_000 / u128::from(TimeBase.frequency().max(1));
    u64::try_from(us).unwrap_or(u64::MAX)
}

fn ran_us(slot: &Slot) -> u64 {
    microseconds(slot.clock.total(spr::timebase()))
}

impl Guests {
    fn vm(&self, vm: usize) -> Result<&Vm, Refusal> {
        self.vms.get(vm).ok_or(Refusal::NotRunning)
    }

    fn end(&self, vm: usize, ending: Ending) -> Result<&Vm, Refusal> {
        let vm = self.vm(vm)?;
        if !run::stop(self, vm, ending, run::this_core(self)) {
            return Err(Refusal::NotRunning);
        }
        let gone = || !matches!(vm.lifecycle.state(), State::Ending(_));
        if wait(STOP_TIMEOUT_US, gone) {
            Ok(vm)
        } else {
            Err(Refusal::Stuck)
        }
    }

    /// The registers of a vCPU, which its own core is asked for while it is there.
    fn registers(&self, slot: &Slot) -> Result<Vec<(&'static str, u64)>, Refusal> {
        *slot.view.lock() = None;
        let deadline = spr::timebase() + Vm::ticks(PEEK_TIMEOUT_US);
        let mut asked = false;
        loop {
            if let Some(vcpu) = slot.vcpu.try_lock() {
                slot.peek.store(false, Ordering::Release);
                return Ok(vcpu.view());
            }
            if let Some(view) = slot.view.lock().take() {
                return Ok(view);
            }
            if !asked {
                slot.peek.store(true, Ordering::Release);
                run::call(self, slot.core);
                asked = true;
            }
            if spr::timebase() > deadline {
                return Err(Refusal::Stuck);
            }
            spr::relax();
        }
    }
}

impl Control for &Guests {
    fn vms(&self) -> Vec<VmStatus> {
        let status = |vm: &Vm| VmStatus {
            name: vm.name.clone(),
            state: vm.lifecycle.state(),
            vcpus: vm.slots.len(),
            memory: vm.bytes(),
            starts: vm.lifecycle.starts(),
            exits: vm
                .slots
                .iter()
                .map(|slot| slot.exits.load(Ordering::Relaxed))
                .sum(),
            ran_us: vm.slots.iter().map(ran_us).sum(),
        };
        self.vms.iter().map(status).collect()
    }

    fn now_us(&self) -> u64 {
        microseconds(spr::timebase())
    }

    fn start(&mut self, vm: usize) -> Result<(), Refusal> {
        let vm = self.vm(vm)?;
        if !vm.lifecycle.claim() {
            return Err(Refusal::Running);
        }
        run::begin(self, vm, None);
        match vm.lifecycle.state() {
            State::Failed => Err(Refusal::CannotStart),
            _ => Ok(()),
        }
    }

    fn stop(&mut self, vm: usize) -> Result<(), Refusal> {
        self.end(vm, Ending::Stop).map(|_| ())
    }

    fn restart(&mut self, vm: usize) -> Result<(), Refusal> {
        let vm = self.end(vm, Ending::Restart)?;
        wait(START_TIMEOUT_US, || vm.lifecycle.state() != State::Starting);
        match vm.lifecycle.state() {
            State::Failed => Err(Refusal::CannotStart),
            _ => Ok(()),
        }
    }

    fn vcpu(&self, vm: usize, vcpu: usize) -> Result<VcpuState, Refusal> {
        let slot = self.vm(vm)?.slots.get(vcpu).ok_or(Refusal::NoVcpu)?;
        Ok(VcpuState {
            core: slot.core,
            activity: match slot.activity() {
                Activity::Off => vm::Activity::Off,
                Activity::Ready => vm::Activity::Ready,
                Activity::Waiting => vm::Activity::Waiting,
            },
            exits: slot.exits.load(Ordering::Relaxed),
            ran_us: ran_us(slot),
            registers: self.registers(slot)?,
        })
    }

    fn walk(&self, vm: usize, address: u64) -> Result<Walk, Refusal> {
        let address = Ipa::new(address).map_err(|_| Refusal::TooWide)?;
        Ok(self.vm(vm)?.memory.walk(address))
    }

    fn iommus(&self) -> Vec<Iommu> {
        self.windows.clone()
    }

    fn devices(&self, vm: usize) -> Result<Vec<String>, Refusal> {
        let vm = self.vm(vm)?;
        let Some(devices) = &vm.devices else {
            return Ok(Vec::new());
        };
        let mut lines = devices.describe();
        let (looked, wrong) = devices.audit();
        lines.push(alloc::format!(
            "audit: {looked} entries looked at, {wrong} wrong"
        ));
        Ok(lines)
    }

    fn stream(&self, vm: usize, _: Bdf, _: u64) -> Result<Vec<String>, Refusal> {
        self.vm(vm)?;
        Err(Refusal::NoDevice)
    }

    fn frames(&self) -> vm::Frames {
        let (used, free) = heap::usage();
        vm::Frames {
            free: self.frames.free_frames(),
            total: self.frames.total(),
            heap_used: used,
            heap_total: used + free,
        }
    }

    fn set_log(&mut self, level: LevelFilter) {
        log::set_max_level(level);
    }
}
