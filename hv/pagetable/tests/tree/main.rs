//! Trees on the build host, under the eyes of a walker.

extern crate bulkhead_pagetable as pagetable;

mod el2;
mod model;
mod radix;
mod share;
mod stage2;
mod walker;
