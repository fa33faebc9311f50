//! The driver and the emulation as each other's double, DMA included.
#![expect(
    clippy::cast_possible_truncation,
    reason = "fields and registers cut to their widths"
)]

mod board;
mod bridges;
mod driver;
mod engine;
mod groups;
mod guests;
mod lost;
mod nested;
mod storm;
mod units;
