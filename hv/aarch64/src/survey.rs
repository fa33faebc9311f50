//! Taking stock: memory, CPUs, interrupt controller, SMMUs; each SMMU is locked before any device
//! is looked at.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use boot::{Devices, Frames};
use bundle::Bundle;
use hal::Mmio;
use machine::{ConfigAccess, CpuStatus, InterruptController, Machine, Mapping, ReservationSource};
use pci::{BusRange, Ecam, GroupPolicy};
use smmuv3::{Errata, Locked};
use types::{Pa, Span};

use crate::console::SystemCounter;
use crate::cpu::{self, MAX_CPUS};
use crate::early;
use crate::features::Features;
use crate::memory::{self, Guarded, Ram, Registers};
use crate::mmu::{self, Map, Use};
use crate::smp;

/// A physical CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    /// Its affinity.
    pub(crate) mpidr: u64,
    /// Whether it has arrived.
    pub(crate) is_online: bool,
}

/// What the hypervisor holds once stock is taken.
pub(crate) struct Holdings {
    /// Free memory.
    pub(crate) frames: Frames<Ram>,
    /// All RAM that is mapped.
    pub(crate) ram: Ram,
    /// The CPUs, by their numbers.
    pub(crate) seats: Vec<Seat>,
    /// SMMUs, locked.
    pub(crate) smmus: Vec<Locked<Registers>>,
    /// How many the device tree describes: one that cannot be locked is missing among them.
    smmus_described: usize,
    /// What is behind each host bridge, none of it mastering the bus.
    pub(crate) devices: Vec<Devices>,
    /// The map.
    pub(crate) map: Map,
}

impl Holdings {
    /// Whether every SMMU of the machine aborts everything: true from the survey until a VM gets a
    /// device. An SMMU that could not be locked makes it false.
    pub(crate) fn all_locked(&self) -> bool {
        self.smmus_described == self.smmus.len()
            && self.smmus.iter().all(|smmu| {
                let state = smmu.state();
                state.gbpa.abort() && !state.cr0.smmuen()
            })
    }
}

/// Takes stock of the machine and prints the boot report.
#[optimize(size)]
pub(crate) fn take(machine: &Machine, fdt: Span<Pa>, mut map: Map) -> Holdings {
    // First of all: nothing may reach memory.
    let smmus = lock_smmus(machine, &mut map);

    machine.report(&mut |line| log::info!("{line}"));
    let features = Features::read();
    log::info!("boot cpu: mpidr {:#x}, {features}", cpu::mpidr());

    let (frames, ram) = frames(machine, fdt, &mut map);
    let seats = start_cpus(machine, &frames, &mut map);
    report_gic(machine, &features, &mut map);
    let devices = take_devices(machine, &mut map);

    let (used, size) = memory::heap_use();
    log::info!("heap: {} of {} KiB used", used.div_ceil(1024), size / 1024);
    Holdings {
        ram,
        seats,
        frames,
        smmus,
        smmus_described: machine.smmus.len(),
        devices,
        map,
    }
}

#[optimize(size)]
fn lock_smmus(machine: &Machine, map: &mut Map) -> Vec<Locked<Registers>> {
    let mut locked = Vec::new();
    for (index, smmu) in machine.smmus.iter().enumerate() {
        let span = smmu.registers;
        if let Err(error) = map.identity(span, Use::Device) {
            log::error!("smmu{index} at {span}: cannot be mapped: {error}");
            continue;
        }
        // SAFETY: the tree says that an SMMU is there; it is mapped now, and this is its driver.
        let registers = unsafe { Registers::new(span) };
        match Locked::take(registers, &SystemCounter) {
            Ok(smmu) => {
                let (found, state) = (smmu.found(), smmu.state());
                log::info!("smmu{index} at {:#x}: {}", span.start(), smmu.identity());
                log::info!("smmu{index}: {}", Errata::of(smmu.identity().iidr));
                log::info!(
                    "smmu{index}: locked: GBPA.ABORT {} (was {}), SMMUEN {} (was {}): every \
                     transaction behind it aborts",
                    u8::from(state.gbpa.abort()),
                    u8::from(found.gbpa.abort()),
                    u8::from(state.cr0.smmuen()),
                    u8::from(found.cr0.smmuen()),
                );
                if let Err(reason) = smmu.identity().usable() {
                    log::warn!("smmu{index}: cannot isolate VMs: {reason}");
                }
                locked.push(smmu);
            }
            Err(error) => log::error!("smmu{index} at {:#x}: not locked: {error}", span.start()),
        }
    }
    locked
}

#[optimize(size)]
fn frames(machine: &Machine, fdt: Span<Pa>, map: &mut Map) -> (Frames<Ram>, Ram) {
    let unmapped: Vec<Span<Pa>> = machine
        .reservations
        .iter()
        .filter(|reservation| {
            matches!(
                reservation.source,
                ReservationSource::Node {
                    mapping: Mapping::Forbidden,
                    ..
                }
            )
        })
        .map(|reservation| reservation.span)
        .chain([fdt])
        .chain(machine.chosen.initrd)
        .collect();
    let mapped = mmu::without(&machine.memory, &unmapped);
    let mut lost = 0;
    for span in &mapped {
        if map.identity(*span, Use::Data).is_err() {
            lost += 1;
            log::error!("memory {span} cannot be mapped; not used");
        }
    }
    // Every access looks for its span from the first on, and most are in the largest.
    let mut by_size = mapped.clone();
    types::sort_by_key(&mut by_size, |span| core::cmp::Reverse(span.len()));
    // SAFETY: RAM by the tree, mapped just now, without the image, the tree itself, the bundle and
    // what firmware forbids; Rust objects live in the image and the heap inside it.
    let ram = unsafe {
        Ram::new(if lost == 0 {
            Box::leak(by_size.into())
        } else {
            &[]
        })
    };
    let taken: Vec<Span<Pa>> = machine
        .reservations
        .iter()
        .map(|reservation| reservation.span)
        .collect();
    let free = boot::usable(&mapped, &taken);
    let frames = Frames::new(ram, &free);
    log::info!(
        "frames: {} MiB free in {} ranges",
        frames.free_frames() / 256,
        free.len()
    );
    (frames, ram)
}

#[optimize(size)]
fn start_cpus(machine: &Machine, frames: &Frames<Ram>, map: &mut Map) -> Vec<Seat> {
    let me = cpu::mpidr();
    if !machine.cpus.iter().any(|cpu| cpu.id == me) {
        log::warn!("boot cpu: mpidr {me:#x} is not in the device tree");
    }
    let others = machine.cpus.iter().filter(|cpu| cpu.id != me);
    let mut running = Vec::from([Seat {
        mpidr: me,
        is_online: true,
    }]);
    for other in others {
        if other.status == CpuStatus::Failed {
            continue;
        }
        let index = running.len();
        if index >= MAX_CPUS {
            log::warn!(
                "cpu {:#x} and later ones: not started, {MAX_CPUS} is the most",
                other.id
            );
            break;
        }
        match smp::start(index, other.id, frames, map) {
            Ok(()) => {
                log::info!("cpu{index}: mpidr {:#x} online", other.id);
                running.push(Seat {
                    mpidr: other.id,
                    is_online: true,
                });
            }
            Err(error) => {
                log::error!("cpu{index}: mpidr {:#x}: {error}", other.id);
                // Its number is used up: it may yet arrive.
                running.push(Seat {
                    mpidr: other.id,
                    is_online: false,
                });
            }
        }
    }
    log::info!("cpus: {} online of {}", smp::online(), machine.cpus.len());
    running
}

/// The boot bundle, if the boot loader brought one that can be read.
#[optimize(size)]
pub(crate) fn bundle(machine: &Machine, map: &mut Map) -> Result<Option<Bundle<'static>>, ()> {
    let Some(span) = machine.chosen.initrd else {
        log::info!("bundle: none (no initrd)");
        return Ok(None);
    };
    let in_memory = machine
        .memory
        .iter()
        .any(|memory| memory.contains_span(span));
    if !in_memory || map.identity(span, Use::Constants).is_err() {
        log::error!("bundle: initrd {span} is not all in memory");
        return Err(());
    }
    // SAFETY: mapped read-only just now; nobody writes to it, as it is left out of RAM.
    let bytes = unsafe { early::blob(span) };
    match Bundle::parse(bytes) {
        Ok(bundle) => {
            bundle.report(&mut |line| log::info!("{line}"));
            Ok(Some(bundle))
        }
        Err(error) => {
            log::error!("bundle: {error}");
            Err(())
        }
    }
}

#[optimize(size)]
fn take_devices(machine: &Machine, map: &mut Map) -> Vec<Devices> {
    if machine.host_bridges.is_empty() {
        log::info!("pci: no host bridge");
    }
    let mut found = Vec::new();
    for bridge in &machine.host_bridges {
        let ConfigAccess::Ecam(span) = bridge.config else {
            log::warn!(
                "pci {:04x}: configuration space is not in memory",
                bridge.segment
            );
            continue;
        };
        let buses = BusRange::new(bridge.buses.0, bridge.buses.1);
        let (Ok(buses), Ok(())) = (buses, map.identity(span, Use::Device)) else {
            log::error!(
                "pci {:04x}: ECAM at {span} cannot be mapped",
                bridge.segment
            );
            continue;
        };
        // SAFETY: the tree says that configuration space is there; it is mapped now, and only this
        // code uses it.
        let ecam = Ecam::new(unsafe { Guarded::new(span) }, buses);
        let mut line = |text: fmt::Arguments<'_>| log::info!("pci {text}");
        match boot::devices(machine, bridge, &ecam, GroupPolicy::Acs, &mut line) {
            Ok(devices) => found.push(devices),
            Err(error) => log::error!("pci {:04x}: {error}", bridge.segment),
        }
    }
    found
}

#[optimize(size)]
fn report_gic(machine: &Machine, features: &Features, map: &mut Map) {
    let Some(InterruptController::GicV3(gic)) = &machine.interrupt_controller else {
        log::warn!("gic: no GICv3: guests cannot be run");
        return;
    };
    if map.identity(gic.distributor, Use::Device).is_ok() {
        // SAFETY: the tree says that a distributor is there; it is mapped now and only read.
        let gicd = unsafe { Registers::new(gic.distributor) };
        let typer = gicd.read32(0x4);
        let pidr2 = gicd.read32(0xffe8);
        log::info!(
            "gicd: architecture v{}, {} interrupts, {} security states, typer {typer:#x}",
            pidr2 >> 4 & 0xf,
            32 * ((typer & 0x1f) + 1),
            1 + (typer >> 10 & 1)
        );
    }
    for its in &machine.itss {
        if map.identity(its.registers, Use::Device).is_ok() {
            // SAFETY: as above.
            let registers = unsafe { Registers::new(its.registers) };
            let typer = registers.read64(0x8);
            log::info!(
                "its at {:#x}: {} event id bits, {} device id bits, typer {typer:#x}",
                its.registers.start(),
                (typer >> 8 & 0x1f) + 1,
                (typer >> 13 & 0x1f) + 1
            );
        }
    }
    if features.gic_registers() {
        use aarch64_cpu::registers::{ICH_VTR_EL2, Readable};
        let vtr = ICH_VTR_EL2.get();
        log::info!(
            "gic cpu interface: {} list registers, {} priority bits, vtr {vtr:#x}",
            (vtr & 0x1f) + 1,
            (vtr >> 29 & 0x7) + 1
        );
    }
}
