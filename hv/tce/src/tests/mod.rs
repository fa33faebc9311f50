//! The backends against platforms in memory.

mod papr;
