//! Failures on request, so that tests can see each fatal path end in a verdict.

use alloc::vec::Vec;
use core::hint::black_box;

use boot::{SelfTest, Verdict};

use crate::panic;

/// Fails in the way asked for.
pub(crate) fn provoke(test: SelfTest) -> ! {
    log::warn!("provoking {test:?}, as the command line asks");
    match test {
        SelfTest::Panic => panic!("asked for by the command line"),
        SelfTest::Exception => {
            // SAFETY: deliberately none: the word is no instruction.
            unsafe { core::arch::asm!(".long 0") };
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
        // Real mode protects nothing, so there is nothing that could fail.
        SelfTest::WriteText | SelfTest::ExecuteData => {
            panic::end(Verdict::Fatal("real mode has no protection to provoke"))
        }
    }
    panic::end(Verdict::Fatal("what was provoked did not fail"))
}

#[expect(unconditional_recursion, reason = "it is the point")]
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let block = black_box([depth; 32]);
    recurse(black_box(depth + 1)) + block[0]
}

struct PanicsWhenPrinted;

impl core::fmt::Display for PanicsWhenPrinted {
    fn fmt(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        panic!("asked for by the command line, while printing a panic")
    }
}
