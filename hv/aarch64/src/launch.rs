//! From the boot bundle to running VMs.

use alloc::boxed::Box;
use alloc::vec::Vec;

use boot::Verdict;
use bundle::{Bundle, Start};
use machine::{InterruptController, Machine};

use crate::guest::{self, Core, Handover, Vm};
use crate::mmu::Use;
use crate::panic;
use crate::survey::Holdings;
use crate::{cpu, gic};

/// Makes the VMs of the bundle and runs them on all CPUs.
pub(crate) fn vms(machine: &Machine, bundle: &Bundle<'static>, holdings: Holdings) -> ! {
    let Some(InterruptController::GicV3(controller)) = &machine.interrupt_controller else {
        panic::end(Verdict::Fatal("VMs need a GICv3"));
    };
    let Holdings {
        frames,
        mut map,
        ram,
        seats,
        smmus,
        ..
    } = holdings;
    let frames = Box::leak(Box::new(frames));
    let mut regions = controller.redistributors.iter();
    if regions.any(|region| map.identity(*region, Use::Device).is_err()) {
        panic::end(Verdict::Fatal("the redistributors cannot be mapped"));
    }
    // SAFETY: the survey mapped the distributor as device memory; nobody else drives it.
    unsafe { gic::start_distributor(controller.distributor) };

    let mut cores: Vec<Core> = seats
        .iter()
        .map(|seat| Core {
            mpidr: seat.mpidr,
            // SAFETY: the regions are mapped, and each redistributor is started once, here.
            redistributor: unsafe { gic::start_redistributor(controller, seat.mpidr) },
            vcpus: Vec::new(),
        })
        .collect();
    let online: Vec<usize> = (0..seats.len())
        .filter(|seat| seats.get(*seat).is_some_and(|seat| seat.is_online))
        .collect();
    let mut vms = Vec::new();
    let mut next_core = 0;
    for config in bundle.manifest().vms() {
        let number = vms.len();
        let place = |vcpu: usize| {
            let core = match config.pin.get(vcpu) {
                Some(pinned) => *pinned as usize,
                None => online
                    .get(next_core % online.len().max(1))
                    .copied()
                    .unwrap_or(0),
            };
            next_core += usize::from(config.pin.is_empty());
            let core = core % cores.len();
            if let Some(core) = cores.get_mut(core) {
                core.vcpus.push((number, vcpu));
            }
            core
        };
        match Vm::build(config, bundle, ram, frames, number, place) {
            Ok(vm) => {
                log::info!(
                    "vm {}: {} MiB, {} vCPUs, {} frames left",
                    vm.name,
                    config.memory >> 20,
                    config.cpus,
                    frames.free_frames()
                );
                if config.start != Start::Boot {
                    log::info!("vm {}: not started at boot", vm.name);
                }
                vms.push(vm);
            }
            Err(error) => {
                log::error!("vm {}: {error}", config.name);
                for core in &mut cores {
                    core.vcpus.retain(|(vm, _)| *vm != number);
                }
            }
        }
    }
    if vms.is_empty() {
        panic::end(Verdict::Fatal("no VM of the bundle can be run"));
    }
    let console = machine
        .stdout()
        .and_then(|uart| uart.interrupt)
        .map(|interrupt| interrupt.number);
    guest::start(Handover {
        vms,
        cores,
        console,
        smmus,
        frames,
    });
    guest::serve(cpu::index())
}
