//! VMs on a PAPR platform of ours: their memory, their vCPUs on the machine's threads.

mod control;
mod devices;
mod environment;
mod kernel;
mod memory;
mod run;
mod tree;
mod vm;

pub(crate) use devices::Devices;
pub(crate) use run::{Core, Handover, serve, start, watch_others};
pub(crate) use vm::{Machine, Vm};
