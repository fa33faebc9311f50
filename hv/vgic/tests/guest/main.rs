//! The virtual GIC against virtual CPU interfaces that work as the architecture's do.
#![expect(
    clippy::cast_possible_truncation,
    reason = "a model of registers cuts fields out of words"
)]

mod behaviour;
mod cores;
mod deliver;
mod linux;
mod lpis;
mod machine;
mod model;
mod registers;
