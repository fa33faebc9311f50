//! The backends against platforms in memory.

mod ioda;
mod papr;
