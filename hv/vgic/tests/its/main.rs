//! The guest's ITS, driven as a guest drives it.

mod commands;
mod creation;
mod exercise;
mod linux;
#[expect(
    dead_code,
    clippy::cast_possible_truncation,
    reason = "shared with the tests of the rest of the GIC"
)]
#[path = "../guest/machine.rs"]
mod machine;
mod model;
mod queue;
mod registers;
mod replay;
mod rig;
mod vcpus;
