//! `devtool`: what a Linux guest cannot do with its shell. No C library, only system calls of Linux on arm64 and ppc64le
//! (where of these only `reads` has been used).
//!
//! ```text
//! devtool vfio FUNCTION GROUP            drives an edu device by VFIO: see `check`
//! devtool vfio-pair F1 G1 F2 G2          drives two of them side by side: see `pair`
//! devtool kexec KERNEL INITRD ARGUMENTS  starts a kernel in place of this one: see `kexec`
//! devtool reads DISK ORDER COUNT [direct]  reads blocks of a disk: see `reads`
//! devtool sums DISK                      reads a disk's start again and again: see `sums`
//! devtool use [wires|either] [restart|verify]   uses each disk and network interface: see `works`
//! devtool iommu WANT                     looks at isolation groups: see `groups`
//! ```
//!
//! It ends with 0 when all is as it should be, with 1 when something is not; its last line says what. Those that are an
//! action of a guest's give its verdict themselves.
#![no_std]
#![no_main]

mod abi;
mod check;
mod groups;
mod kexec;
mod linux;
mod log;
mod pair;
mod reads;
mod sums;
mod sysfs;
mod vfio;
mod works;

use core::fmt;

use linux::{Arguments, Errno};

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        let mut line = $crate::linux::Output::default();
        // There is nobody to tell that nothing can be told.
        let _ = writeln!(line, $($arg)*);
    }};
}

/// Why the program ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failure {
    /// It was called with something else than it knows.
    Usage,
    /// A system call was refused.
    Call(&'static str, Errno),
    /// Something is not as it should be.
    Wrong(&'static str),
    /// Something is not as it should be, with the numbers that were found and wanted.
    Differs(&'static str, u64, u64),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage => f.write_str(
                "usage: devtool vfio FUNCTION GROUP, vfio-pair FUNCTION GROUP FUNCTION GROUP, kexec KERNEL INITRD ARGUMENTS, reads DISK ORDER COUNT [direct], sums DISK, use [wires] [restart|verify], or iommu WANT",
            ),
            Self::Call(what, error) => write!(f, "{what}: {error}"),
            Self::Wrong(what) => f.write_str(what),
            Self::Differs(what, found, wanted) => {
                write!(f, "{what}: {found:#x}, not {wanted:#x}")
            }
        }
    }
}

/// Called once, by the entry code.
fn main(arguments: Arguments) -> i32 {
    let (mut who, mut name) = ("devtool", "");
    let result = match arguments.get(1) {
        Some("vfio") => check::command(arguments),
        Some("vfio-pair") => pair::command(arguments),
        Some("kexec") => kexec::command(arguments),
        Some("reads") => reads::command(arguments),
        Some("sums") => sums::command(arguments),
        Some("use") => {
            (who, name) = ("action ", "use");
            works::command(arguments)
        }
        Some("iommu") => {
            (who, name) = ("action ", "iommu");
            groups::command(arguments)
        }
        _ => Err(Failure::Usage),
    };
    match result {
        Ok(()) => 0,
        Err(failure) => {
            println!("{who}{name}: FAILED: {failure}");
            1
        }
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("devtool: FAILED: {info}");
    linux::exit(2)
}
