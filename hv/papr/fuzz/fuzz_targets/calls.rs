//! Any calls of three vCPUs, with any arguments: no panic, and each has a status that PAPR knows.
#![no_main]

mod surroundings;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use surroundings::{MEMORY, Surroundings, platform};

fuzz_target!(|bytes: &[u8]| {
    let env = Surroundings(RefCell::new(vec![0x20; MEMORY]));
    let platform = platform();
    let mut chunks = bytes.chunks_exact(16);
    while let Some(&[vcpu, high, low, msr, ref arguments @ ..]) = chunks.next() {
        let mut gpr = [0; 32];
        gpr[3] = u64::from(u16::from_be_bytes([high, low])) << 2 & 0xf_ffff;
        for (to, argument) in gpr[4..].iter_mut().zip(arguments.chunks_exact(3)) {
            let [kind, a, b] = argument.try_into().unwrap();
            let value = u64::from(u16::from_be_bytes([a, b]));
            *to = match kind % 4 {
                0 => value,
                1 => value << (kind >> 2),
                2 => (MEMORY as u64).wrapping_sub(value % 64),
                _ => u64::MAX.wrapping_sub(value),
            };
        }
        let vcpu = usize::from(vcpu % 4);
        let _ = platform.hypercall(vcpu, &mut gpr, u64::from(msr) << 8, &env);
        assert!((-256..=18).contains(&gpr[3].cast_signed()));
        let _ = (platform.wake(vcpu), platform.take_start(vcpu));
        platform.goes(vcpu, &env);
        let _ = platform.signal(0x1100);
    }
});
