//! Failures on request, so that tests can see each fatal path end in a verdict.

use alloc::vec::Vec;
use core::hint::black_box;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

use boot::SelfTest;

/// Fails in the way asked for.
#[optimize(size)]
pub(crate) fn provoke(test: SelfTest) {
    log::warn!("provoking {test:?}, as the command line asks");
    match test {
        SelfTest::Panic => panic!("asked for by the command line"),
        SelfTest::Exception => {
            // SAFETY: deliberately none: nothing is mapped there.
            let _ = unsafe { with_exposed_provenance::<u64>(0x10).read_volatile() };
        }
        SelfTest::StackOverflow => {
            black_box(recurse(black_box(0)));
        }
        SelfTest::OutOfMemory => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(black_box(alloc::vec![0_u8; 4096]));
            }
        }
        SelfTest::PanicInPanic => panic!("{}", PanicsWhenPrinted),
        SelfTest::WriteText => {
            let code = with_exposed_provenance_mut::<u32>(provoke as fn(SelfTest) as usize);
            // SAFETY: deliberately none: the code is mapped read-only.
            unsafe { code.write_volatile(0) };
        }
        SelfTest::ExecuteData => {
            let data = [0xd65f_03c0_u32; 4]; // ret
            // SAFETY: deliberately none: the stack is not executable.
            let function: extern "C" fn() = unsafe { core::mem::transmute(data.as_ptr()) };
            function();
        }
    }
    log::error!("{test:?} did not fail");
}

#[expect(unconditional_recursion, reason = "it is the point")]
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let block = black_box([depth; 64]);
    recurse(black_box(depth + 1)) + block[0]
}

struct PanicsWhenPrinted;

impl core::fmt::Display for PanicsWhenPrinted {
    fn fmt(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        panic!("asked for by the command line, while printing a panic")
    }
}
