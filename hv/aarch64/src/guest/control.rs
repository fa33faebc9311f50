//! What the monitor can do here.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hal::Clock;
use log::LevelFilter;
use types::{Bdf, Iova, Ipa};
use vm::{Control, Ending, ExitCause, Iommu, Refusal, State, VcpuState, VmStatus, Walk};

use super::run::{self, Guests, Iommus};
use super::vcpu::Whereabouts;
use super::vm::{Activity, Slot, Vm};
use crate::console::SystemCounter;
use crate::{cpu, gic, memory};

/// How long vCPUs may take to leave their cores: they leave at their next exit, and are kicked.
const STOP_TIMEOUT_US: u64 = 1_000_000;
/// How long a VM may take to be made ready elsewhere before `restart` answers that it is starting.
const START_TIMEOUT_US: u64 = 10_000_000;
/// How long a vCPU may take to show its registers.
const PEEK_TIMEOUT_US: u64 = 100_000;

/// Waits until `done`, not longer than so many microseconds.
fn wait(us: u64, done: impl Fn() -> bool) -> bool {
    let deadline = SystemCounter.ticks() + SystemCounter.ticks_of_us(us);
    loop {
        if done() {
            return true;
        }
        if SystemCounter.ticks() > deadline {
            return false;
        }
        core::hint::spin_loop();
    }
}

fn microseconds(ticks: u64) -> u64 {
    let us = u128::from(ticks) * 1_000_000 / u128::from(SystemCounter.frequency().max(1));
    u64::try_from(us).unwrap_or(u64::MAX)
}

fn ran_us(slot: &Slot) -> u64 {
    microseconds(slot.clock.total(SystemCounter.ticks()))
}

impl Guests {
    fn vm(&self, vm: usize) -> Result<&Vm, Refusal> {
        self.vms.get(vm).ok_or(Refusal::NotRunning)
    }

    fn end(&self, vm: usize, ending: Ending) -> Result<&Vm, Refusal> {
        let vm = self.vm(vm)?;
        if !run::stop(self, vm, ending, cpu::index()) {
            return Err(Refusal::NotRunning);
        }
        let gone = || !matches!(vm.lifecycle.state(), State::Ending(_)) && !vm.is_giving_back();
        if wait(STOP_TIMEOUT_US, gone) {
            Ok(vm)
        } else {
            Err(Refusal::Stuck)
        }
    }

    /// The registers of a vCPU, which its own core is asked for while it is there.
    fn registers(&self, slot: &Slot) -> Result<Vec<(&'static str, u64)>, Refusal> {
        *slot.view.lock() = None;
        let deadline = SystemCounter.ticks() + SystemCounter.ticks_of_us(PEEK_TIMEOUT_US);
        let mut asked = false;
        loop {
            if let Some(vcpu) = slot.vcpu.try_lock() {
                slot.peek.store(false, Ordering::Release);
                return Ok(vcpu.view(Whereabouts::OffCore));
            }
            if let Some(view) = slot.view.lock().take() {
                return Ok(view);
            }
            if !asked && let Some(core) = self.cores.get(slot.core) {
                slot.peek.store(true, Ordering::Release);
                gic::kick(core.mpidr);
                asked = true;
            }
            if SystemCounter.ticks() > deadline {
                return Err(Refusal::Stuck);
            }
            core::hint::spin_loop();
        }
    }
}

impl Control for &Guests {
    fn vms(&self) -> Vec<VmStatus> {
        let status = |vm: &Vm| VmStatus {
            name: vm.name.clone(),
            state: vm.lifecycle.state(),
            vcpus: vm.slots.len(),
            memory: vm.bytes,
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
        microseconds(SystemCounter.ticks())
    }

    fn start(&mut self, vm: usize) -> Result<(), Refusal> {
        // One that has just gone off by itself may have devices that this one wants.
        wait(STOP_TIMEOUT_US, || !self.vms.iter().any(Vm::is_giving_back));
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
        wait(START_TIMEOUT_US, || {
            run::poll_starts(self, None);
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
        Ok(self.vm(vm)?.walk(address))
    }

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

    fn exits(&self, vm: usize) -> Result<Vec<(ExitCause, u64)>, Refusal> {
        let slots = &self.vm(vm)?.slots;
        let sum = |cause| slots.iter().map(|slot| slot.causes.of(cause)).sum();
        let counts = ExitCause::ALL.map(|cause| (cause, sum(cause)));
        Ok(counts.into_iter().filter(|(_, count)| *count > 0).collect())
    }

    fn devices(&self, vm: usize) -> Result<Vec<String>, Refusal> {
        let Some(pci) = &self.vm(vm)?.pci else {
            return Ok(Vec::new());
        };
        let mut lines = pci.lines();
        lines.push(pci.summary());
        lines.extend(pci.smmu_line());
        Ok(lines)
    }

    fn stream(&self, vm: usize, device: Bdf, address: u64) -> Result<Vec<String>, Refusal> {
        let address = Iova::new(address).map_err(|_| Refusal::TooWide)?;
        let vm = self.vm(vm)?;
        let pci = vm.pci.as_ref().ok_or(Refusal::NoDevice)?;
        pci.walk(vm, device, address).ok_or(Refusal::NoDevice)
    }

    fn frames(&self) -> vm::Frames {
        let (heap_used, heap_total) = memory::heap_use();
        vm::Frames {
            free: self.frames.free_frames(),
            total: self.frames.total(),
            heap_used,
            heap_total,
        }
    }

    fn set_log(&mut self, level: LevelFilter) {
        log::set_max_level(level);
    }
}
