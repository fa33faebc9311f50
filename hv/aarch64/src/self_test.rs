//! Failures on request, so that tests can see each fatal path end in a verdict.

use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

use boot::SelfTest;

/// Fails in the way asked for.
#[optimize(size)]
pub(crate) fn provoke(test: SelfTest) {
    test.provoke();
    match test {
        SelfTest::Exception => {
            // SAFETY: deliberately none: nothing is mapped there.
            let _ = unsafe { with_exposed_provenance::<u64>(0x10).read_volatile() };
        }
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
        _ => {}
    }
    log::error!("{test:?} did not fail");
}
