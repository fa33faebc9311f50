//! Event records under any bytes at all: the fuzz target's executions, on the stable toolchain.
#![expect(
    clippy::cast_possible_truncation,
    reason = "fields and registers cut to their widths"
)]

mod exercise;
mod replay;
