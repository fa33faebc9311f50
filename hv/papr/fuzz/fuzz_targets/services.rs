//! Any block, anywhere in a memory of anything: no panic, and a VM that does not end has an answer.
#![no_main]

mod surroundings;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use surroundings::{MEMORY, Surroundings, platform};

fuzz_target!(|bytes: &[u8]| {
    let Some((&[high, low, vcpu], rest)) = bytes.split_first_chunk() else {
        return;
    };
    let mut memory = vec![0; MEMORY];
    let at = usize::from(u16::from_be_bytes([high, low]));
    for (to, from) in memory[at..].iter_mut().zip(rest) {
        *to = *from;
    }
    let env = Surroundings(RefCell::new(memory));
    let platform = platform();
    let mut gpr = [0; 32];
    gpr[3] = 0xf000;
    gpr[4] = at as u64;
    let _ = platform.hypercall(usize::from(vcpu % 4), &mut gpr, 0, &env);
    assert!([0, -4].contains(&gpr[3].cast_signed()));
});
