//! Run-time services, by the hypercall.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::entry;
use crate::hcall::{RTAS, call};

/// A block of cells for each CPU.
#[repr(C, align(64))]
struct Block([AtomicU32; 16]);

static BLOCKS: [Block; 2] = [const { Block([const { AtomicU32::new(0) }; 16]) }; 2];

/// Calls a service from `cpu`; its results.
pub fn service<const RESULTS: usize>(cpu: usize, token: u32, arguments: &[u32]) -> [i32; RESULTS] {
    let block = &BLOCKS[cpu].0;
    let head = [token, arguments.len() as u32, RESULTS as u32];
    for (cell, value) in block.iter().zip(head.iter().chain(arguments)) {
        cell.store(value.to_be(), Ordering::Relaxed);
    }
    call(
        RTAS,
        [
            core::ptr::from_ref(block).expose_provenance() as u64,
            0,
            0,
            0,
        ],
    );
    core::array::from_fn(|i| {
        let cell = &block[3 + arguments.len() + i];
        u32::from_be(cell.load(Ordering::Relaxed)).cast_signed()
    })
}

/// Starts the second CPU at the guest's entry.
pub fn start_second(argument: u32) -> i32 {
    let [status] = service(0, 0x2006, &[1, entry::secondary() as u32, argument]);
    status
}

/// Stops this CPU.
pub fn stop_self(cpu: usize) -> ! {
    let [status] = service(cpu, 0x2007, &[]);
    panic!("stop-self has come back with {status}")
}

/// Whether the second CPU is stopped.
pub fn second_is_stopped() -> bool {
    service::<2>(0, 0x2005, &[1]) == [0, 0]
}

/// Turns the VM off.
pub fn power_off() -> ! {
    loop {
        let [_] = service(0, 0x2003, &[0, 0]);
    }
}

/// Starts the VM anew.
pub fn reboot() -> ! {
    loop {
        let [_] = service(0, 0x2004, &[]);
    }
}
