//! From the first Rust to the MMU: no locks, no heap, no unaligned access.

use core::fmt::Write;

use boot::Verdict;
use dtoolkit::fdt::Fdt;
use types::{Address, Pa, PageSize, Span};

use crate::console::{self, LastWords};
use crate::cpu::identity;
use crate::panic;

/// The largest device tree we read; the boot protocol allows 2 MiB.
const MAX_FDT_BYTES: u64 = 2 * 1024 * 1024;

/// Magic number of a flattened device tree.
const FDT_MAGIC: u32 = 0xd00d_feed;

pub(crate) extern "C" fn main(fdt: u64) -> ! {
    let span = match fdt_span(fdt) {
        Ok(span) => span,
        // Without a tree there is no console to complain on.
        Err(()) => panic::power_off(),
    };
    // SAFETY: `fdt_span` has seen the header there, and nobody writes to it.
    let blob = unsafe { blob(span) };
    let _ = blob;
    crate::run(span)
}

/// Entered at another exception level than EL2: say so and stop.
pub(crate) extern "C" fn wrong_level(fdt: u64, level: u64) -> ! {
    panic::use_hvc();
    if let Ok(span) = fdt_span(fdt) {
        // SAFETY: as in `main`.
        let blob = unsafe { blob(span) };
        if let Some(base) = Fdt::new(blob).ok().and_then(console::find) {
            // SAFETY: the device tree says a PL011 is there, and the MMU is off.
            let mut out = unsafe { LastWords::at(base) };
            let _ = writeln!(
                out,
                "bulkhead: entered at EL{level}; it must be entered at EL2 \
                 (QEMU: -M virt,virtualization=on; U-Boot and firmware: do not drop to EL1)"
            );
            let _ = writeln!(out, "{}", Verdict::Fatal("not entered at EL2"));
        }
    }
    panic::power_off()
}

/// Where the tree lies, by its header.
fn fdt_span(fdt: u64) -> Result<Span<Pa>, ()> {
    let pa = Pa::new(fdt).map_err(|_| ())?;
    if fdt == 0 || !fdt.is_multiple_of(8) {
        return Err(());
    }
    let header = core::ptr::with_exposed_provenance::<[u32; 2]>(identity(pa));
    // SAFETY: whoever entered us promises a tree at x0; reading two aligned words of it is the
    // least that can be done to check.
    let [magic, total] = unsafe { header.read_volatile() }.map(u32::from_be);
    if magic != FDT_MAGIC || u64::from(total) > MAX_FDT_BYTES {
        return Err(());
    }
    Span::from_len(pa, total.into()).ok_or(())
}

/// # Safety
/// The span must be readable memory that nobody writes to.
pub(crate) unsafe fn blob(span: Span<Pa>) -> &'static [u8] {
    let start = core::ptr::with_exposed_provenance::<u8>(identity(span.start()));
    let bytes = identity(span.last()) - identity(span.start()) + 1;
    // SAFETY: passed on to the caller.
    unsafe { core::slice::from_raw_parts(start, bytes) }
}
