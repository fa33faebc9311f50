//! From the boot bundle to running VMs.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

use boot::{Frames, Verdict};
use bundle::{Bundle, ConsoleUart};
use papr::Characteristics;
use vm::{LeftOut, Made, Placement};

use crate::guest::{self, Core, Devices, Handover, Machine, Vm};
use crate::hardware::{self, Hardware};
use crate::hcall::{self, Hcall, SUCCESS};
use crate::memory::{self, Ram};
use crate::nested::{self, LostSlice, PartitionTable, Watched};
use crate::presentation::Sources;
use crate::survey::Holdings;
use crate::{console, flatten, panic, smp};

/// Makes the VMs of the bundle and runs them on all CPUs.
#[optimize(size)]
pub(crate) fn vms(
    described: &machine::Machine,
    tree: &[u8],
    bundle: Bundle<'static>,
    holdings: Holdings,
) -> ! {
    let Holdings {
        frames,
        ram,
        rtas,
        windows,
        devices,
        ..
    } = holdings;
    let tree = match flatten::model(tree) {
        Ok(tree) => &*Box::leak(Box::new(tree)),
        Err(error) => {
            log::error!("device tree: {error}");
            panic::end(Verdict::Fatal("the device tree cannot be used"));
        }
    };
    let bridges = hardware::found(described, devices);
    let frames: &'static Frames<Ram> = Box::leak(Box::new(frames));
    check_watch(ram, frames);
    let partitions = match PartitionTable::new(ram, frames) {
        Ok(table) => &*Box::leak(Box::new(table)),
        Err(error) => {
            log::error!("nested: {error}");
            panic::end(Verdict::Fatal("the platform cannot run VMs for us"));
        }
    };
    let rtas = rtas.map(|rtas| &*Box::leak(Box::new(rtas)));
    let hardware = rtas.and_then(|rtas| match Hardware::new(bridges, rtas, ram, frames) {
        Ok(hardware) => Some(&*Box::leak(Box::new(hardware))),
        Err(error) => {
            log::error!("pci: no device can be given to a VM: {error}");
            None
        }
    });
    let machine = Machine {
        tree,
        bundle: Box::leak(Box::new(bundle)),
        ram,
        frames,
        rtas,
        hardware,
        partitions,
        characteristics: characteristics(),
    };
    let mut cores: Vec<Core> = smp::cpus().into_iter().map(Core::new).collect();
    let placement = Placement::new(cores.len(), (0..cores.len()).collect());
    let (vms, vcpus) = vm::make_vms(
        machine.bundle.manifest().vms(),
        ConsoleUart::Hvc,
        placement,
        || memory::frames(frames),
        |config, number, place| match Vm::build(config, machine, number, place) {
            Ok(vm) => Ok(Made {
                lines: vm.devices.iter().flat_map(Devices::describe).collect(),
                vm,
            }),
            Err(error) => Err(LeftOut::new(format!("{error}"))),
        },
    );
    for (core, vcpus) in cores.iter_mut().zip(vcpus) {
        core.vcpus = vcpus;
    }
    if let Some(rtas) = rtas {
        console::listen(Sources::new(rtas));
    }
    guest::start(Handover {
        hardware,
        vms,
        cores,
        windows,
        frames,
    });
    guest::serve();
    smp::park()
}

/// What the platform says of its CPUs is true of a guest's.
fn characteristics() -> Option<Characteristics> {
    // SAFETY: reads.
    let outcome = unsafe { hcall::call(Hcall::GetCpuCharacteristics, [0; 4]) };
    let [character, behaviour, _] = outcome.values;
    (outcome.status == SUCCESS).then_some(Characteristics {
        character,
        behaviour,
    })
}

/// Sees that a guest whose slice has lost its end is made to leave by another CPU, or that the end is not
/// lost where there is none.
fn check_watch(ram: Ram, frames: &Frames<Ram>) {
    match (
        nested::check(ram, frames, LostSlice::Provoke),
        smp::watched(),
    ) {
        (Ok(_), Watched::ByOthers) => {
            log::info!("nested: a guest whose slice was lost was made to leave");
        }
        (Ok(_), Watched::ByNobody) => {
            log::info!("nested: a slice that was over before it began ended at once");
        }
        (Err(error), _) => {
            log::error!("nested: {error}");
            panic::end(Verdict::Fatal("slices of guests may not end"));
        }
    }
}
