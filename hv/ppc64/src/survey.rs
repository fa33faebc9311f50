//! Taking stock: DMA windows, memory, CPUs; each window is closed before any device is looked at.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use boot::{Frames, Verdict};
use bundle::Bundle;
use machine::{CpuStatus, Machine};
use pci::Topology;
use types::{Pa, Span};

use crate::memory::{self, Ram};
use crate::nested::{self, LostSlice, Nested};
use crate::rtas::Rtas;
use crate::{LOW, bus, cpu, entry, heap, panic, presentation, smp, windows};

/// What the hypervisor holds once stock is taken.
pub(crate) struct Holdings {
    /// Free memory.
    pub(crate) frames: Frames<Ram>,
    /// All memory that is not the hypervisor's image, nor the bundle.
    pub(crate) ram: Ram,
    /// Windows that may be open.
    pub(crate) open_windows: usize,
    /// What there is to tell of each.
    pub(crate) windows: Vec<vm::Iommu>,
    /// What is behind each host bridge, none of it mastering the bus.
    pub(crate) devices: Vec<Topology>,
    /// The platform's run-time services.
    pub(crate) rtas: Option<Rtas>,
    /// Whether guests can be run.
    pub(crate) nested: Nested,
}

/// Takes stock of the machine and prints the boot report.
#[optimize(size)]
pub(crate) fn take(machine: &Machine) -> Holdings {
    // First of all: nothing may reach memory.
    let (open_windows, windows) = close_windows(machine);
    machine.report(&mut |line| log::info!("{line}"));
    let rtas = machine.rtas.as_ref();
    match rtas {
        Some(rtas) => report_hypertas(&rtas.hypertas),
        None => log::warn!("rtas: none described: no other CPU, no PCI"),
    }
    let nested = nested::probe();
    match nested {
        Nested::V1 => log::info!("nested: {}", Nested::V1),
        other => log::warn!("nested: {other}"),
    }
    let rtas = rtas.map(Rtas::new);
    let (ram, frames) = frames(machine);
    if let Err(error) = presentation::start(machine, &frames) {
        log::error!("interrupts: {error}");
        panic::end(Verdict::Fatal("this machine's CPUs get no interrupts"));
    }
    start_cpus(machine, rtas.as_ref(), &frames);
    let nested = check_nested(nested, ram, &frames);
    let bridges = machine.host_bridges.iter();
    let devices = bridges.filter_map(|bridge| {
        // SAFETY: the machine is ours, and no guest exists yet.
        unsafe { bus::take(bridge, rtas.as_ref()) }
    });
    let devices: Vec<Topology> = devices.collect();
    if machine.host_bridges.is_empty() {
        log::info!("pci: no device");
    }
    let (used, free) = heap::usage();
    log::info!(
        "heap: {} of {} KiB used",
        used.div_ceil(1024),
        (used + free) / 1024
    );
    Holdings {
        frames,
        ram,
        open_windows,
        windows,
        devices,
        nested,
        rtas,
    }
}

/// The boot bundle, if the boot loader brought one that can be read.
#[optimize(size)]
pub(crate) fn bundle(machine: &Machine) -> Result<Option<Bundle<'static>>, ()> {
    let Some(span) = machine.chosen.initrd else {
        log::info!("bundle: none (no initrd)");
        return Ok(None);
    };
    let in_memory = machine
        .memory
        .iter()
        .any(|memory| memory.contains_span(span));
    let (ours, end) = entry::image();
    let apart = span.last().bits() < ours || span.start().bits() >= end;
    if !in_memory || !apart || span.start().bits() < LOW {
        log::error!("bundle: initrd {span} is not all in memory, or not apart from ours");
        return Err(());
    }
    // SAFETY: nobody writes to it: it is left out of what is handed out as RAM.
    let bytes = unsafe { memory::blob(span) };
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

/// Sees that what the platform offers works.
fn check_nested(nested: Nested, ram: Ram, frames: &Frames<Ram>) -> Nested {
    if nested != Nested::V1 {
        return nested;
    }
    match nested::check(ram, frames, LostSlice::Spare) {
        Ok(ticks) => {
            log::info!("nested: a guest ran and left in each way; {ticks} ticks a hypercall");
            nested
        }
        Err(error) => {
            log::error!("nested: guests cannot be run: {error}");
            Nested::Broken
        }
    }
}

#[optimize(size)]
fn close_windows(machine: &Machine) -> (usize, Vec<vm::Iommu>) {
    let mut open = 0;
    let mut told = Vec::new();
    for bridge in &machine.host_bridges {
        let segment = bridge.segment;
        let Some(window) = &bridge.dma_window else {
            log::info!("pci {segment:04x}: no DMA window");
            continue;
        };
        match windows::close(window) {
            Ok(entries) => {
                log::info!(
                    "pci {segment:04x}: LIOBN {:#x}: {entries} entries cleared: no device reaches \
                     memory",
                    window.liobn.bits()
                );
                told.push(vm::Iommu {
                    name: format!("pci {segment:04x}, LIOBN {:#x}", window.liobn.bits()),
                    state: format!("locked, none of {entries} entries gives memory"),
                });
            }
            Err(error) => {
                open += 1;
                log::error!(
                    "pci {segment:04x}: LIOBN {:#x}: {error}",
                    window.liobn.bits()
                );
            }
        }
    }
    (open, told)
}

fn report_hypertas(groups: &[String]) {
    let mut line = String::new();
    for group in groups {
        if line.len() + group.len() > 80 {
            log::info!("hypertas:{line}");
            line.clear();
        }
        line.push(' ');
        line.push_str(group);
    }
    log::info!("hypertas:{line}");
}

#[optimize(size)]
fn frames(machine: &Machine) -> (Ram, Frames<Ram>) {
    let span = |(start, end): (u64, u64)| {
        Pa::new(start)
            .ok()
            .and_then(|start| Span::from_len(start, end - start.bits()))
    };
    let ours: Vec<Span<Pa>> = [(0, LOW), entry::image()]
        .into_iter()
        .filter_map(span)
        .chain(machine.chosen.initrd)
        .collect();
    let reserved = machine
        .reservations
        .iter()
        .map(|reservation| reservation.span);
    let taken: Vec<Span<Pa>> = ours.iter().copied().chain(reserved).collect();
    let accessible: &'static [Span<Pa>] = Box::leak(boot::usable(&machine.memory, &ours).into());
    // SAFETY: RAM by the tree, without the image and the initrd; Rust objects live in these only.
    let ram = unsafe { Ram::new(accessible) };
    let free = boot::usable(&machine.memory, &taken);
    let frames = Frames::new(ram, &free);
    log::info!(
        "frames: {} MiB free in {} ranges",
        frames.free_frames() / 256,
        free.len()
    );
    (ram, frames)
}

#[optimize(size)]
fn start_cpus(machine: &Machine, rtas: Option<&Rtas>, frames: &Frames<Ram>) {
    let Some((first, others)) = machine.cpus.split_first() else {
        log::warn!("cpus: none described; this one goes on alone");
        return;
    };
    // Firmware starts the first of the tree and leaves the others stopped.
    cpu::BOOT_CPU.set_server(first.id);
    if let Some(rtas) = rtas {
        for (number, other) in (1..).zip(others) {
            let server = u32::try_from(other.id).unwrap_or(u32::MAX);
            if other.status == CpuStatus::Failed {
                continue;
            }
            match smp::start(number, server, rtas, frames) {
                Ok(()) => log::info!("cpu{number}: server {server} online"),
                Err(error) => log::error!("cpu{number}: server {server}: {error}"),
            }
        }
    }
    log::info!("cpus: {} online of {}", smp::online(), machine.cpus.len());
}
