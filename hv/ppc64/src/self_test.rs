//! Failures on request, so that tests can see each fatal path end in a verdict.

use boot::{SelfTest, Verdict};

use crate::panic;

/// Fails in the way asked for.
pub(crate) fn provoke(test: SelfTest) -> ! {
    test.provoke();
    match test {
        SelfTest::Exception => {
            // SAFETY: deliberately none: the word is no instruction.
            unsafe { core::arch::asm!(".long 0") };
        }
        // Real mode protects nothing, so there is nothing that could fail.
        SelfTest::WriteText | SelfTest::ExecuteData => {
            panic::end(Verdict::Fatal("real mode has no protection to provoke"))
        }
        _ => {}
    }
    panic::end(Verdict::Fatal("what was provoked did not fail"))
}
