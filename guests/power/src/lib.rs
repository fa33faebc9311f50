//! What the POWER guests of our own have in common: entry, exceptions, hypercalls, console, options.
//!
//! A guest is an ELF for the platform of `docs/papr.md`. It runs in real mode, little-endian, unless
//! it says otherwise. It depends on nothing of the hypervisor, so that a mistake in a shared
//! definition shows as a difference. A binary names its parts with [`guest!`].
#![no_std]
#![feature(asm_experimental_arch)]
#![expect(unsafe_code, reason = "the guests are made of register accesses")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "parts of registers, and addresses below 4 GiB"
)]

pub mod cage;
pub mod console;
pub mod cpu;
pub mod edu;
mod entry;
pub mod hcall;
pub mod mmio;
#[path = "../../src/options.rs"]
pub mod options;
pub mod pci;
#[path = "../../src/random.rs"]
pub mod random;
pub mod rtas;
pub mod tce;
pub mod wait;

/// Names the functions of a guest: `main` for the first CPU, `secondary` for the one that is started.
#[macro_export]
macro_rules! guest {
    (main: $main:path, secondary: $secondary:path $(,)?) => {
        // SAFETY: the only function of this name in the binary; the entry code calls it once.
        #[unsafe(no_mangle)]
        extern "C" fn guest_main(tree: usize) -> ! {
            let main: fn($crate::options::Options) -> ! = $main;
            $crate::cage::use_vectors();
            main($crate::options::Options::from_tree(tree))
        }

        // SAFETY: likewise, for the CPU that is started.
        #[unsafe(no_mangle)]
        extern "C" fn guest_secondary(argument: usize) -> ! {
            let secondary: fn(usize) -> ! = $secondary;
            $crate::cage::enter_cpu(1);
            secondary(argument)
        }

        #[panic_handler]
        fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
            $crate::println!("guest: {info}");
            $crate::rtas::power_off()
        }
    };
}
