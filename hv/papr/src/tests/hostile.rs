//! Calls at random: nothing panics, work is bounded, and a vCPU's state stays one that makes sense.

use proptest::prelude::{any, prop, proptest};

use super::{EDGE, Fake, LEVEL, MEMORY, platform};
use crate::hcall::number as n;
use crate::{After, Environment};

const NUMBERS: [u64; 27] = [
    n::SET_SPRG0,
    n::PAGE_INIT,
    n::LOGICAL_CI_LOAD,
    n::LOGICAL_CI_STORE,
    n::LOGICAL_ICBI,
    n::LOGICAL_DCBF,
    n::GET_TERM_CHAR,
    n::PUT_TERM_CHAR,
    n::EOI,
    n::CPPR,
    n::IPI,
    n::IPOLL,
    n::XIRR,
    n::REGISTER_VPA,
    n::CEDE,
    n::CONFER,
    n::PROD,
    n::VIO_SIGNAL,
    n::GET_CPU_CHARACTERISTICS,
    n::JOIN,
    n::HOME_NODE_ASSOCIATIVITY,
    n::XIRR_X,
    n::RANDOM,
    n::SET_MODE,
    n::REGISTER_PROC_TBL,
    n::SIGNAL_SYS_RESET,
    n::RTAS,
];

/// Values that are near something.
fn argument(kind: u8, value: u64) -> u64 {
    let end = MEMORY as u64;
    match kind % 8 {
        0 => value,
        1 => value % 8,
        2 => value % end,
        3 => (value % end) & !0xfff,
        4 => end.wrapping_sub(value % 40),
        5 => u64::MAX.wrapping_sub(value % 4096),
        6 => 1 << (value % 64),
        _ => u64::from(if value & 1 == 0 { EDGE } else { LEVEL }),
    }
}

proptest! {
    #[test]
    fn no_call_panics_or_answers_nothing(
        calls in prop::collection::vec(
            (0_usize..4, any::<prop::sample::Index>(), any::<[(u8, u64); 4]>(), any::<u64>()), 1..60),
        blocks in prop::collection::vec((any::<u16>(), 0_u32..0x30, 0_u32..18, 0_u32..18), 0..20),
    ) {
        let (platform, env) = (platform(3), Fake::new());
        for (at, token, inputs, outputs) in blocks {
            let cells = [0x2000 + token, inputs, outputs, u32::from(at), 1, 5];
            let block: std::vec::Vec<u8> = cells.iter().flat_map(|c| c.to_be_bytes()).collect();
            let _ = env.write(u64::from(at) & !3, &block);
        }
        for (vcpu, number, arguments, msr) in calls {
            let mut gpr = [0; 32];
            gpr[3] = NUMBERS[number.index(NUMBERS.len())];
            for (to, (kind, value)) in gpr[4..].iter_mut().zip(arguments) {
                *to = argument(kind, value);
            }
            let after = platform.hypercall(vcpu, &mut gpr, msr, &env);
            let status = gpr[3].cast_signed();
            assert!((-256..=18).contains(&status), "{status}");
            match after {
                After::Off => assert!(!platform.runs(vcpu)),
                After::Join => assert!(platform.has_joined(vcpu)),
                _ => {}
            }
            let _ = platform.wake(vcpu);
            platform.goes(vcpu, &env);
            assert!(env.printed.borrow().len() <= 16 * 60);
        }
    }
}
