//! Guests: their vCPUs on physical CPUs, and what happens when they trap.

mod context;
mod control;
mod debug;
mod devices;
mod enter;
mod events;
mod irq;
mod pci;
mod run;
mod smmu;
mod sysreg;
mod trap;
mod vcpu;
mod vm;

pub(crate) use context::{read_register, write_register};
pub(crate) use pci::{Assigned, GuestPci};
pub(crate) use run::{Core, Handover, Iommus, serve, start};
pub(crate) use vm::{Devices, Vm};
