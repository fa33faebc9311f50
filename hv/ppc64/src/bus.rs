//! The PCI host bridges: what is below them, and where its registers are.

use alloc::vec::Vec;

use machine::{ConfigAccess, HostBridge, Prefetch};
use pci::{BusRange, GroupPolicy, PlacePolicy, ScanPolicy, Topology};

use crate::config::RtasConfig;
use crate::rtas::Rtas;

/// Finds, silences, places and reports everything below the bridge. `None` when it cannot be
/// reached.
///
/// # Safety
/// The devices below it must be ours to configure, and none may have been given away.
#[optimize(size)]
pub(crate) unsafe fn take(bridge: &HostBridge, rtas: Option<&Rtas>) -> Option<Topology> {
    let segment = bridge.segment;
    let (ConfigAccess::Rtas { buid }, Some(rtas)) = (bridge.config, rtas) else {
        log::warn!(target: "pci", "segment {segment:04x}: its configuration space cannot be reached");
        return None;
    };
    let (first, last) = bridge.buses;
    let host = match BusRange::new(first, last) {
        Ok(buses) => pci::HostBridge {
            segment,
            buses,
            windows: windows(bridge),
        },
        Err(error) => {
            log::error!(target: "pci", "segment {segment:04x}: {error}");
            return None;
        }
    };
    // SAFETY: passed on to the caller.
    let space = unsafe { RtasConfig::new(rtas, buid) };
    let mut topology = pci::enumerate(&space, &host, ScanPolicy::default());
    let placement = match pci::place(&space, &host, &mut topology, PlacePolicy::default()) {
        Ok(placement) => placement,
        Err(error) => {
            log::error!(target: "pci", "segment {segment:04x}: {error}: nothing is placed");
            pci::Placement::default()
        }
    };
    let groups = pci::groups(&topology, GroupPolicy::WholeHost);
    let mut line = |line: core::fmt::Arguments<'_>| log::info!(target: "pci", "{line}");
    pci::report(&topology, &placement, &groups, &|_| None, &mut line);
    Some(topology)
}

fn windows(bridge: &HostBridge) -> Vec<pci::Window> {
    let windows = bridge.windows.iter().filter_map(|window| {
        let kind = match (window.kind, window.prefetch) {
            (machine::WindowKind::Io, _) => pci::WindowKind::Io,
            (_, Prefetch::Allowed) => pci::WindowKind::Prefetchable,
            (_, Prefetch::Forbidden) => pci::WindowKind::Memory,
        };
        Some(pci::Window {
            kind,
            bus: window.bus,
            cpu: window.cpu.start(),
            size: window.cpu.len()?,
        })
    });
    windows.collect()
}
