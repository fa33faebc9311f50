//! Taking stock of what is behind a host bridge.

use core::fmt;

use machine::{Machine, Prefetch};
use pci::{
    BusRange, ConfigSpace, ExtraRoots, Group, GroupPolicy, PlacePolicy, Placement, ScanPolicy,
    Topology, Window, WindowKind,
};
use types::{Bdf, StreamId};

/// What is behind one host bridge. No function of it masters the bus.
#[derive(Debug)]
pub struct Devices {
    /// The functions.
    pub topology: Topology,
    /// Where their BARs are.
    pub placement: Placement,
    /// Which of them belong together.
    pub groups: alloc::vec::Vec<Group>,
}

/// Enumerates a host bridge, gives its BARs addresses and derives the isolation groups; hands the
/// report to `line`.
///
/// # Errors
/// [`pci::Error`]: the firmware's description of the bridge contradicts itself.
pub fn devices(
    machine: &Machine,
    bridge: &machine::HostBridge,
    space: &dyn ConfigSpace,
    policy: GroupPolicy,
    line: &mut dyn FnMut(fmt::Arguments<'_>),
) -> Result<Devices, pci::Error> {
    let host = host_bridge(bridge)?;
    let scan = ScanPolicy {
        extra_roots: ExtraRoots::Probe,
        ..ScanPolicy::default()
    };
    let mut topology = pci::enumerate(space, &host, scan);
    let placement = pci::place(space, &host, &mut topology, PlacePolicy::default())?;
    let groups = pci::groups(&topology, policy);
    let stream = |bdf: Bdf| -> Option<StreamId> {
        machine
            .iommu_of(bridge.segment, bdf)
            .map(|(_, stream)| stream)
    };
    pci::report(&topology, &placement, &groups, &stream, line);
    Ok(Devices {
        topology,
        placement,
        groups,
    })
}

/// The bridge as the PCI code wants it.
fn host_bridge(bridge: &machine::HostBridge) -> Result<pci::HostBridge, pci::Error> {
    let (first, last) = bridge.buses;
    let windows = bridge.windows.iter().map(|window| Window {
        kind: match (window.kind, window.prefetch) {
            (machine::WindowKind::Io, _) => WindowKind::Io,
            (machine::WindowKind::Memory32, Prefetch::Allowed) => WindowKind::Prefetchable,
            // A 64-bit window serves whatever has 64-bit BARs.
            _ => WindowKind::Memory,
        },
        bus: window.bus,
        cpu: window.cpu.start(),
        size: window.cpu.len().unwrap_or(u64::MAX),
    });
    Ok(pci::HostBridge {
        segment: bridge.segment,
        buses: BusRange::new(first, last)?,
        windows: windows.collect(),
    })
}
