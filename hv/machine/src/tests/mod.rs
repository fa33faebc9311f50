//! Trees as QEMU makes them, and trees that nobody should make.

mod flat;
mod hostile;
mod papr;
mod properties;
mod samples;
mod virt;
