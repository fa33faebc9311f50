//! From the boot bundle to running VMs.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use boot::{Frames, Verdict};
use bundle::{Bundle, ConsoleUart, GuestDevice, HostDevice, PeerToPeer, UnsafeDma, VmConfig};
use machine::{InterruptController, Machine};
use pci::vconfig::Pin;
use types::{Bdf, Ipa, Pa, Span};
use vm::{LeftOut, Made, Placement};

use crate::guest::{self, Assigned, Core, GuestPci, Handover, Iommus, Vm};
use crate::hardware::{Found, Function, Hardware};
use crate::memory::{self, Ram};
use crate::mmu::Use;
use crate::panic;
use crate::serial::{self, Port};
use crate::survey::Holdings;
use crate::{cpu, gic};

/// Makes the VMs of the bundle and runs them on all CPUs.
#[optimize(size)]
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
        devices,
        ..
    } = holdings;
    let frames: &'static Frames<Ram> = Box::leak(Box::new(frames));
    let mut regions = controller.redistributors.iter();
    if regions.any(|region| map.identity(*region, Use::Device).is_err()) {
        panic::end(Verdict::Fatal("the redistributors cannot be mapped"));
    }
    // SAFETY: the survey mapped the distributor as device memory; nobody else drives it.
    if let Err(error) = unsafe { gic::start_distributor(controller.distributor) } {
        log::error!(
            "gic: the distributor at {}: {error}",
            controller.distributor
        );
        panic::end(Verdict::Fatal("the distributor cannot be started"));
    }

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
    let wanted = wanted(bundle);
    let iommus = if wanted.is_empty() {
        Iommus::Locked(smmus)
    } else {
        let redistributors: Vec<Option<gic::Frame>> = cores
            .iter()
            .zip(&seats)
            .map(|(core, seat)| core.redistributor.filter(|_| seat.is_online))
            .collect();
        let found = Found {
            machine,
            smmus,
            devices,
            ram,
            frames,
            redistributors: &redistributors,
        };
        Iommus::Driven(Box::leak(Box::new(Hardware::new(found, &mut map, &wanted))))
    };
    let time_at_zero = serial::time_at_zero(machine, &mut map);
    let make = |config: &VmConfig, number: usize, place: &mut dyn FnMut(usize) -> usize| {
        let port = Port::of(config, machine, &mut map)
            .map_err(|why| LeftOut::new(format!("left out: no serial port: {why}")))?;
        let assigned = assign(config, bundle, &iommus, number).map_err(|more| LeftOut {
            why: String::from("left out: its devices cannot be given to it:"),
            more,
        })?;
        let devices = match &iommus {
            Iommus::Driven(hardware) if !assigned.is_empty() => Some(guest::Devices {
                hardware,
                assigned: &assigned,
            }),
            _ => None,
        };
        let vm = Vm::build(config, bundle, ram, frames, number, devices, place)
            .map_err(|error| LeftOut::new(format!("{error}")))?;
        let vm = vm.with_console(port).with_time_at_zero(time_at_zero);
        let lines = lines(config, &vm);
        Ok(Made { vm, lines })
    };
    let (vms, vcpus) = vm::make_vms(
        bundle.manifest().vms(),
        ConsoleUart::Pl011,
        Placement::new(cores.len(), online),
        || memory::frames(frames),
        make,
    );
    for (core, vcpus) in cores.iter_mut().zip(vcpus) {
        core.vcpus = vcpus;
    }
    let console = machine.stdout().and_then(|uart| uart.interrupt);
    guest::start(Handover {
        vms,
        cores,
        console,
        iommus,
        frames,
    });
    guest::serve(cpu::index())
}

/// What there is to tell of a VM.
fn lines(config: &VmConfig, vm: &Vm) -> Vec<String> {
    let mut lines: Vec<String> = vm.pci.iter().flat_map(GuestPci::lines).collect();
    lines.extend(vm.pci.as_ref().map(GuestPci::summary));
    let in_place = |(span, pa): &(Span<Ipa>, Pa)| span.start().bits() == pa.bits();
    if config.unsafe_dma == UnsafeDma::Identity && vm.ram().iter().all(in_place) {
        for (span, _) in vm.ram() {
            lines.push(format!("its memory is where the machine has it, {span}"));
        }
    }
    lines
}

/// Every device that a VM is to have, once.
fn wanted(bundle: &Bundle<'static>) -> Vec<(u16, Bdf)> {
    let vms = bundle.manifest().vms().iter();
    let mut wanted: Vec<(u16, Bdf)> = vms
        .flat_map(|vm| pci_devices(vm).map(|(at, _)| at))
        .collect();
    types::sort(&mut wanted);
    wanted.dedup();
    wanted
}

/// The PCI functions a VM is to have, and where its guest is to find them.
fn pci_devices(config: &VmConfig) -> impl Iterator<Item = ((u16, Bdf), Option<Bdf>)> + '_ {
    config
        .devices
        .iter()
        .filter_map(|device| match (device.host, device.guest) {
            (HostDevice::Pci { segment, bdf }, None) => Some(((segment, bdf), None)),
            (HostDevice::Pci { segment, bdf }, Some(GuestDevice::Pci(guest))) => {
                Some(((segment, bdf), Some(guest)))
            }
            _ => None,
        })
}

/// The devices of a VM, each with its place in the guest; or what is in the way.
#[optimize(size)]
fn assign(
    config: &VmConfig,
    bundle: &Bundle<'static>,
    iommus: &Iommus,
    vm: usize,
) -> Result<Vec<Assigned>, Vec<String>> {
    let others = config
        .devices
        .iter()
        .filter(|device| !matches!(device.host, HostDevice::Pci { .. }));
    let others: Vec<String> = others
        .map(|device| format!("{}: this machine has PCI functions only", device.host))
        .collect();
    if !others.is_empty() {
        return Err(others);
    }
    let Iommus::Driven(hardware) = iommus else {
        return Ok(Vec::new());
    };
    let wishes: Vec<(u16, Bdf)> = pci_devices(config).map(|(host, _)| host).collect();
    let obstacles = hardware.obstacles(&wishes, vm);
    if !obstacles.is_empty() {
        return Err(obstacles);
    }
    let chosen: Vec<Bdf> = pci_devices(config).filter_map(|(_, guest)| guest).collect();
    // Device 0 of the first bus is the guest's host bridge.
    let mut free = (1..32).filter_map(|device| Bdf::new(0, device, 0).ok());
    let mut assigned = Vec::new();
    for ((segment, bdf), guest) in pci_devices(config) {
        let guest = guest.or_else(|| free.find(|place| !chosen.contains(place)));
        let function = hardware.find(segment, bdf);
        let (Some(guest), Some(function)) = (guest, function) else {
            return Err(Vec::from([format!(
                "{segment:04x}:{bdf}: no place is free"
            )]));
        };
        let is_confined = hardware
            .functions
            .get(function)
            .is_some_and(|f| f.smmu.is_some());
        match (is_confined, config.unsafe_dma) {
            (true, _) => {}
            (false, UnsafeDma::Identity) => log::warn!(
                "vm {}: UNSAFE: {segment:04x}:{bdf} is behind no SMMU: it, and so the guest, can read and write \
                 ALL memory, the hypervisor's and every other VM's, and raise any interrupt",
                config.name
            ),
            (false, UnsafeDma::Refused) => {
                return Err(Vec::from([format!(
                    "{segment:04x}:{bdf}: it is behind no SMMU, and unsafe_dma is not \"identity\""
                )]));
            }
        }
        let pin = pin_of(config, bundle, hardware, function);
        let same = |device: &&bundle::Device| device.host == HostDevice::Pci { segment, bdf };
        let device = config.devices.iter().find(same);
        let p2p = device.map_or(PeerToPeer::Refused, |device| device.p2p);
        let smmu = device.map_or(0, |device| device.smmu);
        assigned.push(Assigned {
            function,
            guest,
            pin,
            p2p,
            smmu,
        });
    }
    let untranslated = untranslated_peers(&assigned, hardware);
    if untranslated.is_empty() {
        Ok(assigned)
    } else {
        Err(untranslated)
    }
}

/// Devices whose BARs the VM's others are to reach, where what they write would not go through the SMMU.
#[optimize(size)]
fn untranslated_peers(assigned: &[Assigned], hardware: &Hardware) -> Vec<String> {
    let functions = |seat: &Assigned| hardware.functions.get(seat.function);
    let unconfined = assigned
        .iter()
        .filter_map(functions)
        .find(|f| f.smmu.is_none());
    let shown = assigned
        .iter()
        .filter(|seat| seat.p2p == PeerToPeer::Allowed);
    let why = |function: &Function| match unconfined {
        Some(other) => Some(format!(
            "{:04x}:{} is behind no SMMU",
            other.segment, other.bdf
        )),
        None => (!hardware.is_alone(function))
            .then(|| "it shares its isolation group, where others reach it directly".into()),
    };
    shown
        .filter_map(functions)
        .filter_map(|function| {
            let why = why(function)?;
            let (segment, bdf) = (function.segment, function.bdf);
            Some(format!(
                "{segment:04x}:{bdf}: p2p: the path to it is not translated: {why}"
            ))
        })
        .collect()
}

/// Whether a VM's guest sees the interrupt pin of a function. A line is one VM's: what others with
/// functions on it do must not take its time, and the other way round.
#[optimize(size)]
fn pin_of(
    config: &VmConfig,
    bundle: &Bundle<'static>,
    hardware: &Hardware,
    function: usize,
) -> Pin {
    let line = |function: usize| Some(hardware.functions.get(function)?.line?.number);
    let Some(wanted) = line(function) else {
        return Pin::Hidden;
    };
    let mut others = bundle.manifest().vms().iter();
    let sharing = others.find(|other| {
        let mut theirs = pci_devices(other).filter_map(|((s, bdf), _)| hardware.find(s, bdf));
        other.name != config.name
            && theirs.any(|other| other != function && line(other) == Some(wanted))
    });
    match (sharing, hardware.functions.get(function)) {
        (Some(other), Some(function)) => {
            log::info!(
                "vm {}: {:04x}:{} has no interrupt pin there: its line is also one of vm {}'s",
                config.name,
                function.segment,
                function.bdf,
                other.name
            );
            Pin::Hidden
        }
        _ => Pin::Shown,
    }
}
