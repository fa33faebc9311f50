//! Failures on request that are the same on every machine.

use alloc::vec::Vec;
use core::fmt;
use core::hint::black_box;

use crate::SelfTest;

impl SelfTest {
    /// Fails in the way asked for. Comes back from what is each architecture's to provoke (an exception, a store to
    /// code, a jump to data), and from what this build does not check.
    pub fn provoke(self) {
        log::warn!("provoking {self:?}, as the command line asks");
        match self {
            Self::Panic => panic!("asked for by the command line"),
            Self::StackOverflow => {
                black_box(recurse(black_box(0)));
            }
            Self::OutOfMemory => {
                let mut hoard = Vec::new();
                loop {
                    hoard.push(black_box(alloc::vec![0_u8; 4096]));
                }
            }
            Self::PanicInPanic => panic!("{}", PanicsWhenPrinted),
            Self::Overflow => {
                black_box(black_box(u8::MAX) + black_box(1));
            }
            Self::Exception | Self::WriteText | Self::ExecuteData => {}
        }
    }
}

#[expect(unconditional_recursion, reason = "it is the point")]
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let block = black_box([depth; 32]);
    recurse(black_box(depth + 1)) + block[0]
}

struct PanicsWhenPrinted;

impl fmt::Display for PanicsWhenPrinted {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("asked for by the command line, while printing a panic")
    }
}
