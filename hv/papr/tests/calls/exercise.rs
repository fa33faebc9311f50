//! What bytes are made of: calls of vCPUs, or a block of a run-time service. Nothing panics, and each has an
//! answer that PAPR knows. The fuzz targets and the tests share it.

use std::cell::RefCell;

#[path = "surroundings.rs"]
mod surroundings;

use surroundings::{MEMORY, Surroundings, platform};

/// Any calls of three vCPUs and one that is not there, with any arguments; how many they were.
pub(crate) fn calls(bytes: &[u8]) -> usize {
    let env = Surroundings(RefCell::new(vec![0x20; MEMORY]));
    let platform = platform();
    let mut made = 0;
    for chunk in bytes.chunks_exact(16) {
        let &[vcpu, high, low, msr, ref arguments @ ..] = chunk else {
            continue;
        };
        let mut gpr = [0; 32];
        gpr[3] = (u64::from(u16::from_be_bytes([high, low])) << 2) & 0xf_ffff;
        for (to, argument) in gpr[4..].iter_mut().zip(arguments.chunks_exact(3)) {
            let &[kind, a, b] = argument else { continue };
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
        let status = gpr[3].cast_signed();
        assert!((-256..=18).contains(&status), "{status}");
        let _ = (platform.wake(vcpu), platform.take_start(vcpu));
        platform.goes(vcpu, &env);
        let _ = platform.signal(0x1100);
        made += 1;
    }
    made
}

/// Any block, anywhere in a memory of anything; 1, when there was one.
pub(crate) fn services(bytes: &[u8]) -> usize {
    let Some((&[high, low, vcpu], rest)) = bytes.split_first_chunk() else {
        return 0;
    };
    let mut memory = vec![0; MEMORY];
    let at = usize::from(u16::from_be_bytes([high, low]));
    for (to, from) in memory[at..].iter_mut().zip(rest) {
        *to = *from;
    }
    let env = Surroundings(RefCell::new(memory));
    let mut gpr = [0; 32];
    gpr[3] = 0xf000;
    gpr[4] = at as u64;
    let _ = platform().hypercall(usize::from(vcpu % 4), &mut gpr, 0, &env);
    let status = gpr[3].cast_signed();
    assert!([0, -4].contains(&status), "{status}");
    1
}
