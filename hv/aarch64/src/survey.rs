//! Taking stock: memory, CPUs, interrupt controller, SMMUs; each SMMU is locked before any device
//! is looked at.

use alloc::boxed::Box;
use alloc::vec::Vec;

use boot::Frames;
use hal::Mmio;
use machine::{CpuStatus, InterruptController, Machine, Mapping, ReservationSource};
use smmuv3::Locked;
use types::{Pa, Span};

use crate::console::SystemCounter;
use crate::cpu::{self, MAX_CPUS};
use crate::features::Features;
use crate::memory::{self, Ram, Registers};
use crate::mmu::{self, Map, Use};
use crate::smp;

/// What the hypervisor holds once stock is taken.
pub(crate) struct Holdings {
    /// Free memory.
    pub(crate) frames: Frames<Ram>,
    /// SMMUs, locked.
    pub(crate) smmus: Vec<Locked<Registers>>,
}

impl Holdings {
    /// Whether every SMMU still aborts everything: true from the survey until a VM gets a device.
    pub(crate) fn all_locked(&self) -> bool {
        self.smmus.iter().all(|smmu| {
            let state = smmu.state();
            state.gbpa.abort() && !state.cr0.smmuen()
        })
    }
}

/// Takes stock of the machine and prints the boot report.
pub(crate) fn take(machine: &Machine, fdt: Span<Pa>, mut map: Map) -> Holdings {
    // First of all: nothing may reach memory.
    let smmus = lock_smmus(machine, &mut map);

    machine.report(&mut |line| log::info!("{line}"));
    let features = Features::read();
    log::info!("boot cpu: mpidr {:#x}, {features}", cpu::mpidr());

    let frames = frames(machine, fdt, &mut map);
    start_cpus(machine, &frames, &mut map);
    report_gic(machine, &features, &mut map);

    let (used, size) = memory::heap_use();
    log::info!("heap: {} of {} KiB used", used.div_ceil(1024), size / 1024);
    Holdings { frames, smmus }
}

fn lock_smmus(machine: &Machine, map: &mut Map) -> Vec<Locked<Registers>> {
    let mut locked = Vec::new();
    for (index, smmu) in machine.smmus.iter().enumerate() {
        let span = smmu.registers;
        if let Err(error) = map.identity(span, Use::Device) {
            log::error!("smmu{index} at {span}: cannot be mapped: {error:?}");
            continue;
        }
        // SAFETY: the tree says that an SMMU is there; it is mapped now, and this is its driver.
        let registers = unsafe { Registers::new(span) };
        match Locked::take(registers, &SystemCounter) {
            Ok(smmu) => {
                let (found, state) = (smmu.found(), smmu.state());
                log::info!("smmu{index} at {:#x}: {}", span.start(), smmu.identity());
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

fn frames(machine: &Machine, fdt: Span<Pa>, map: &mut Map) -> Frames<Ram> {
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
        .collect();
    let mapped: &'static [Span<Pa>] = Box::leak(mmu::without(&machine.memory, &unmapped).into());
    let mut lost = 0;
    for span in mapped {
        if map.identity(*span, Use::Data).is_err() {
            lost += 1;
            log::error!("memory {span} cannot be mapped; not used");
        }
    }
    // SAFETY: RAM by the tree, mapped just now, without the image, the tree itself and what
    // firmware forbids; Rust objects live in the image and the heap inside it.
    let ram = unsafe { Ram::new(if lost == 0 { mapped } else { &[] }) };
    let taken: Vec<Span<Pa>> = machine
        .reservations
        .iter()
        .map(|reservation| reservation.span)
        .chain(machine.chosen.initrd)
        .collect();
    let free = boot::usable(mapped, &taken);
    let frames = Frames::new(ram, &free);
    log::info!(
        "frames: {} MiB free in {} ranges",
        frames.free_frames() / 256,
        free.len()
    );
    frames
}

fn start_cpus(machine: &Machine, frames: &Frames<Ram>, map: &mut Map) {
    let me = cpu::mpidr();
    if !machine.cpus.iter().any(|cpu| cpu.id == me) {
        log::warn!("boot cpu: mpidr {me:#x} is not in the device tree");
    }
    let others = machine.cpus.iter().filter(|cpu| cpu.id != me);
    let mut index = 1;
    for other in others {
        if other.status == CpuStatus::Failed {
            continue;
        }
        if index >= MAX_CPUS {
            log::warn!(
                "cpu {:#x} and later ones: not started, {MAX_CPUS} is the most",
                other.id
            );
            break;
        }
        match smp::start(index, other.id, frames, map) {
            Ok(()) => log::info!("cpu{index}: mpidr {:#x} online", other.id),
            Err(error) => log::error!("cpu{index}: mpidr {:#x}: {error}", other.id),
        }
        index += 1;
    }
    log::info!("cpus: {} online of {}", smp::online(), machine.cpus.len());
}

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
            "gicd: architecture v{}, {} interrupts, typer {typer:#x}",
            pidr2 >> 4 & 0xf,
            32 * ((typer & 0x1f) + 1)
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
