//! Taking stock: DMA windows, memory, CPUs; each window is closed before any device is looked at.

use alloc::boxed::Box;
use alloc::vec::Vec;

use boot::Frames;
use machine::{CpuStatus, Machine};
use types::{Pa, Span};

use crate::memory::Ram;
use crate::nested::{self, Nested};
use crate::rtas::Rtas;
use crate::{LOW, bus, cpu, entry, heap, smp, windows};

/// What the hypervisor holds once stock is taken.
pub(crate) struct Holdings {
    /// Free memory.
    pub(crate) frames: Frames<Ram>,
    /// Windows that may be open.
    pub(crate) open_windows: usize,
}

/// Takes stock of the machine and prints the boot report.
pub(crate) fn take(machine: &Machine) -> Holdings {
    // First of all: nothing may reach memory.
    let open_windows = close_windows(machine);
    machine.report(&mut |line| log::info!("{line}"));
    let rtas = machine.rtas.as_ref();
    match rtas {
        Some(rtas) => report_hypertas(&rtas.hypertas),
        None => log::warn!("rtas: none described: no other CPU, no PCI"),
    }
    match nested::probe() {
        Nested::V1 => log::info!("nested: {}", Nested::V1),
        other => log::warn!("nested: {other}"),
    }
    let rtas = rtas.map(Rtas::new);
    let (ram, frames) = frames(machine);
    let nested = check_nested(nested, ram, &frames);
    start_cpus(machine, rtas.as_ref(), &frames);
    for bridge in &machine.host_bridges {
        // SAFETY: the machine is ours, and no guest exists yet.
        let _ = unsafe { bus::take(bridge, rtas.as_ref()) };
    }
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
        open_windows,
    }
}

/// Sees that what the platform offers works.
fn check_nested(nested: Nested, ram: Ram, frames: &Frames<Ram>) -> Nested {
    if nested != Nested::V1 {
        return nested;
    }
    match nested::check(ram, frames) {
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

fn close_windows(machine: &Machine) -> usize {
    let mut open = 0;
    for bridge in &machine.host_bridges {
        let segment = bridge.segment;
        let Some(window) = &bridge.dma_window else {
            log::info!("pci {segment:04x}: no DMA window");
            continue;
        };
        match windows::close(window) {
            Ok(entries) => log::info!(
                "pci {segment:04x}: LIOBN {:#x}: {entries} entries cleared: no device reaches \
                 memory",
                window.liobn.bits()
            ),
            Err(error) => {
                open += 1;
                log::error!(
                    "pci {segment:04x}: LIOBN {:#x}: {error}",
                    window.liobn.bits()
                );
            }
        }
    }
    open
}

fn report_hypertas(groups: &[alloc::string::String]) {
    const PER_LINE: usize = 6;
    for groups in groups.chunks(PER_LINE) {
        log::info!("hypertas: {}", groups.join(" "));
    }
}

fn frames(machine: &Machine) -> (Ram, Frames<Ram>) {
    let span = |(start, end): (u64, u64)| {
        Pa::new(start)
            .ok()
            .and_then(|start| Span::from_len(start, end - start.bits()))
    };
    let ours: Vec<Span<Pa>> = [(0, LOW), entry::image()]
        .into_iter()
        .filter_map(span)
        .collect();
    let reserved = machine
        .reservations
        .iter()
        .map(|reservation| reservation.span);
    let taken: Vec<Span<Pa>> = ours
        .iter()
        .copied()
        .chain(reserved)
        .chain(machine.chosen.initrd)
        .collect();
    let accessible: &'static [Span<Pa>] = Box::leak(without(&machine.memory, &ours).into());
    // SAFETY: RAM by the tree, without the image; Rust objects live in the image only.
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

/// `memory` less `holes`.
fn without(memory: &[Span<Pa>], holes: &[Span<Pa>]) -> Vec<Span<Pa>> {
    boot::usable(memory, holes)
}

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
