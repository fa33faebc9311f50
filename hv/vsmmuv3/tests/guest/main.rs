//! A guest's SMMU under any bytes at all: the fuzz target's executions, on the stable toolchain.
#![expect(
    clippy::cast_possible_truncation,
    reason = "addresses of a few dozen kilobytes, and fields cut on purpose"
)]

mod controls;
mod exercise;
mod model;
mod mutants;
mod replay;
mod rig;
mod tables;
