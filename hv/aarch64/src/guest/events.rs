//! What SMMUs tell is read on this core or that, and told to the guests it concerns.

use super::run::{Guests, kick};
use super::vm::Slot;
use crate::hardware::{Hardware, Seat, Told};

/// How often an interrupt of an SMMU has its event queue looked at, of which each look is bounded.
const DRAINS_AN_INTERRUPT: usize = 16;

/// An interrupt of an SMMU's, on a core that is to read what it tells; `from` is the core if it has a vCPU on it.
pub(super) fn interrupt(guests: &Guests, hardware: &Hardware, core: usize, from: usize) {
    // What is left waits for the next interrupt or the next look around: a flood takes turns.
    for _ in 0..DRAINS_AN_INTERRUPT {
        drain(guests, hardware, core, from);
        if !hardware.has_records(core) {
            break;
        }
    }
}

/// Takes the records out of the queues of the SMMUs that are this core's to read; `from` is the core if it has a
/// vCPU on it.
pub(super) fn drain(guests: &Guests, hardware: &Hardware, core: usize, from: usize) {
    hardware.drain(core, |vm, function, event| {
        let told = guests.vms.get(vm).and_then(|vm| {
            let kicks = vm.pci.as_ref()?.report(vm, function, event)?;
            Some((vm, kicks))
        });
        let Some((vm, kicks)) = told else {
            return Told::Nobody;
        };
        kick(guests, vm, kicks, from);
        Told::Guest
    });
    hardware.settle(core, |vm| own_seat(guests, vm));
}

/// The core on which a VM pays for what its devices make others do: the one of its cores that it shares with the
/// fewest other VMs.
fn own_seat(guests: &Guests, vm: usize) -> Option<Seat> {
    let lodgers = |core: usize| {
        let on = |slot: &Slot| slot.core == core;
        let mut vms = guests.vms.iter();
        vms.by_ref().filter(|vm| vm.slots.iter().any(on)).count()
    };
    let cores = guests.vms.get(vm)?.slots.iter().map(|slot| slot.core);
    let core = cores.min_by_key(|core| lodgers(*core))?;
    let mpidr = guests.cores.get(core)?.mpidr;
    Some(Seat { core, mpidr })
}

/// Event records that were too many for one look, and messages.
pub(super) fn look_around(guests: &Guests, core: usize) {
    let Some(hardware) = guests.machine.iommus.hardware() else {
        return;
    };
    hardware.let_messages_through(core);
    if hardware.reads(core) {
        if hardware.has_records(core) {
            drain(guests, hardware, core, usize::MAX);
        }
        hardware.look_around(core);
    }
}

/// When this core is to look around for the sake of devices that flooded.
pub(super) fn next_hearing(guests: &Guests, core: usize) -> Option<u64> {
    guests.machine.iommus.hardware()?.next_look(core)
}
