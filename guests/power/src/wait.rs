//! Waiting without taking the CPU, and interrupts of devices meanwhile.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::cage::{self, Left};
use crate::{cpu, hcall};

/// The first source that messages get here, and how many are counted.
const FIRST: u64 = 0x1300;
const COUNTED: usize = 128;

static CAME: [AtomicU64; COUNTED] = [const { AtomicU64::new(0) }; COUNTED];
static STRANGE: AtomicU64 = AtomicU64::new(0);

/// Waits until the time base says so. What interrupts meanwhile is counted.
pub fn until(when: u64) {
    loop {
        take();
        let left = when.saturating_sub(cpu::now());
        if left == 0 {
            return;
        }
        cpu::set_decrementer(left.cast_signed());
        match cage::run(cede, 0, 0) {
            Left::Exception(0x500 | 0x900) | Left::Completed => {}
            Left::Exception(vector) => panic!("vector {vector:#x} at {:#x?}", cage::last(0)),
        }
        cpu::set_decrementer(i64::from(i32::MAX));
    }
}

extern "C" fn cede(_: u64, _: u64) {
    hcall::call(hcall::CEDE, [0; 4]);
}

/// Takes what interrupts there are.
pub fn take() {
    hcall::call(hcall::CPPR, [0xff, 0, 0, 0]);
    loop {
        let (_, accepted) = hcall::call(hcall::XIRR, [0; 4]);
        let source = accepted & 0xff_ffff;
        if source == 0 {
            return;
        }
        let counter = source
            .checked_sub(FIRST)
            .and_then(|at| CAME.get(at as usize));
        counter.unwrap_or(&STRANGE).fetch_add(1, Ordering::Relaxed);
        hcall::call(hcall::EOI, [accepted, 0, 0, 0]);
    }
}

/// How often a source has interrupted.
pub fn came(source: u32) -> u64 {
    let counter = u64::from(source)
        .checked_sub(FIRST)
        .and_then(|at| CAME.get(at as usize));
    counter.map_or(0, |counter| counter.load(Ordering::Relaxed))
}

/// How often any other has.
pub fn strange(own: u32) -> u64 {
    let all: u64 = CAME.iter().map(|came| came.load(Ordering::Relaxed)).sum();
    all - came(own) + STRANGE.load(Ordering::Relaxed)
}
