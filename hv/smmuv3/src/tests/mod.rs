//! The driver against an SMMU in memory.

mod conformance;
mod hardware;
