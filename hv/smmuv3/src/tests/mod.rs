//! The driver against an SMMU in memory.

mod conformance;
mod errors;
mod hardware;
mod products;

use std::boxed::Box;

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}
