//! Any bytes as what a guest of three vCPUs does, eight for each step: no panic, the list registers
//! come to rest, and hardware is never given what it must not have.
#![no_main]

use bulkhead_vgic::{Level, Width};
use libfuzzer_sys::fuzz_target;

use machine::{Machine, SGI_FRAME, TIMER};

#[allow(dead_code)]
#[path = "../../tests/guest/machine.rs"]
mod machine;

fuzz_target!(|bytes: &[u8]| {
    let mut m = Machine::new(3, 100, 2);
    for step in bytes.chunks_exact(8) {
        let &[what, vcpu, low, high, a, b, c, d] = step else {
            continue;
        };
        let vcpu = usize::from(vcpu) % 3;
        let place = u16::from_le_bytes([low, high]);
        let offset = u64::from(place);
        // The same bits at every place a field of a wide register may be in.
        let value = u64::from(u32::from_le_bytes([a, b, c, d])) * 0x1_0000_0001;
        let level = if a & 1 == 0 { Level::High } else { Level::Low };
        match what % 12 {
            0 => m.write(vcpu, offset & 0xffc, value),
            1 => m.write_at(vcpu, offset, Width::from_sas(d), value),
            2 => m.write_private(
                vcpu,
                usize::from(d) % 4,
                SGI_FRAME + (offset & 0xffc),
                value,
            ),
            3 => m.write_private(vcpu, vcpu, offset & 0xfc, value),
            4 => {
                let _ = m.sgi(vcpu, value);
            }
            5 => m.deactivate(vcpu, u32::from(place)),
            6 => m.line(u32::from(place & 0xff), level),
            7 => m.pulse(u32::from(place & 0xff)),
            8 => m.ppi(vcpu, u32::from(place & 0x1f), level),
            9 => {
                let _ = m.acknowledge(vcpu);
            }
            10 => m.end(vcpu, u32::from(place)),
            _ if m.cores[vcpu].physical & 1 << TIMER == 0 => m.timer(vcpu),
            _ => {}
        }
    }
});
