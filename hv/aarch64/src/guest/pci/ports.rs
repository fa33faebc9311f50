//! The ports that lead to a guest's devices.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use firmware::DevicePath;
use pci::vconfig::{GuestSegment, Siblings};
use types::Bdf;

use super::Assigned;

/// Ports that lead to the buses the guest's devices are on: where each is, and its bus.
#[optimize(size)]
fn ports(assigned: &[Assigned]) -> Result<Vec<(Bdf, u8)>, String> {
    let mut buses: Vec<u8> = assigned.iter().map(|seat| seat.guest.bus()).collect();
    types::sort(&mut buses);
    buses.dedup();
    let mut device = 0;
    let mut ports = Vec::new();
    for bus in buses.into_iter().filter(|bus| *bus != 0) {
        let taken = |number: u8| {
            assigned
                .iter()
                .any(|seat| seat.guest.bus() == 0 && seat.guest.device() == number)
        };
        device += 1;
        while taken(device) {
            device += 1;
        }
        let port = Bdf::new(0, device, 0).map_err(|error| error.to_string())?;
        ports.push((port, bus));
    }
    Ok(ports)
}

pub(super) fn add_ports(segment: &mut GuestSegment, assigned: &[Assigned]) -> Result<(), String> {
    for (port, bus) in ports(assigned)? {
        segment
            .add_port(port, Siblings::None, bus)
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The way to each of a VM's devices.
///
/// # Errors
/// There is no place for a port.
pub(in crate::guest) fn paths(assigned: &[Assigned]) -> Result<Vec<DevicePath>, String> {
    let ports = ports(assigned)?;
    let path = |seat: &Assigned| {
        let bridges = ports.iter().filter(|(_, bus)| *bus == seat.guest.bus());
        DevicePath::new(bridges.map(|(port, _)| *port).collect(), seat.guest)
    };
    Ok(assigned.iter().map(path).collect())
}
