//! What the guests of our own have in common: entry, exceptions, console, PSCI, GICv3, options; and
//! for those that have a device: PCI, the ITS, QEMU's `edu`, an SMMUv3 of the guest's own.
//!
//! A guest is a flat binary for the platform of `docs/manifest.md` (which is QEMU's `virt`, so it
//! runs there without the hypervisor too). It is entered at EL1 with the MMU off and stays so
//! unless it says otherwise. Addresses are constants on purpose: a guest that measures or attacks
//! knows where its platform is. Registers are accessed by plain offsets for the same reason: wrong
//! widths, wrong values and wrong places are what some guests are about.
//!
//! A binary names its parts with [`guest!`].
#![no_std]
#![expect(unsafe_code, reason = "the guests are made of register accesses")]

pub mod console;
pub mod cpu;
pub mod edu;
pub mod exception;
pub mod gic;
pub mod its;
pub mod mmio;
pub mod options;
pub mod pci;
pub mod platform;
pub mod psci;
pub mod random;
pub mod smmu;

/// Names the functions of a guest: `main` for the first CPU, `secondary` for those turned on with
/// [`cpu::start`], and `exception` for all exceptions of all CPUs.
#[macro_export]
macro_rules! guest {
    (main: $main:path, secondary: $secondary:path, exception: $exception:path $(,)?) => {
        // SAFETY: the only function of this name in the binary; the entry code calls it once.
        #[unsafe(no_mangle)]
        extern "C" fn guest_main(tree: usize) -> ! {
            let main: fn($crate::options::Options) -> ! = $main;
            $crate::cpu::use_vectors();
            main($crate::options::Options::from_tree(tree))
        }

        // SAFETY: likewise, for each CPU that is turned on.
        #[unsafe(no_mangle)]
        extern "C" fn guest_secondary(cpu: usize) -> ! {
            let secondary: fn(usize) -> ! = $secondary;
            $crate::cpu::use_vectors();
            secondary(cpu)
        }

        // SAFETY: likewise, from the vectors.
        #[unsafe(no_mangle)]
        extern "C" fn guest_exception(frame: &mut $crate::exception::Frame) {
            let exception: fn(&mut $crate::exception::Frame) = $exception;
            exception(frame);
        }

        #[panic_handler]
        fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
            $crate::println!("guest: {info}");
            $crate::psci::system_off()
        }
    };
}
