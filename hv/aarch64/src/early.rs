//! From the first Rust to the MMU: no locks, no heap, no unaligned access.

use core::fmt::Write;

use boot::Verdict;
use dtoolkit::fdt::Fdt;
use types::{Pa, Span};

use crate::console::{self, LastWords};
use crate::cpu::identity;
use crate::mmu::{Map, Use};
use crate::panic;

/// The largest device tree that is read. The boot protocol allows 2 MiB; more is read as well, as
/// long as it is plausible.
const MAX_FDT_BYTES: u32 = 16 * 1024 * 1024;

/// Magic number of a flattened device tree. [Devicetree Specification v0.4 §5.2]
const FDT_MAGIC: u32 = 0xd00d_feed;

/// What the early code hands on.
pub(crate) struct Handover {
    /// The device tree, mapped read-only.
    pub(crate) fdt: &'static [u8],
    /// Where it lies.
    pub(crate) fdt_span: Span<Pa>,
    /// The map in use.
    pub(crate) map: Map,
    /// The counter at entry.
    pub(crate) entry_ticks: u64,
}

pub(crate) extern "C" fn main(fdt: u64, entry_ticks: u64) -> ! {
    // Without a tree there is no console to complain on.
    let Ok(fdt_span) = fdt_span(fdt) else {
        panic::power_off()
    };
    // SAFETY: `fdt_span` has seen the header there, and nobody writes to it.
    let fdt = unsafe { blob(fdt_span) };
    let map = Map::new().and_then(|mut map| {
        map.identity(fdt_span, Use::Constants)?;
        Ok(map)
    });
    let Ok(map) = map else {
        complain(fdt, "no room for the first page tables")
    };
    // SAFETY: the image is mapped, with the stack and all data in use, and so is the tree.
    unsafe { map.enable() };
    map.mark_live();
    crate::run(Handover {
        fdt,
        fdt_span,
        map,
        entry_ticks,
    })
}

/// Entered at another exception level than EL2: say so and stop.
pub(crate) extern "C" fn wrong_level(fdt: u64, level: u64) -> ! {
    panic::use_hvc();
    let Ok(span) = fdt_span(fdt) else {
        panic::power_off()
    };
    // SAFETY: as in `main`.
    let fdt = unsafe { blob(span) };
    if let Some(mut out) = console_before_map(fdt) {
        let _ = writeln!(
            out,
            "bulkhead: entered at EL{level}, which is not EL2. With QEMU add virtualization=on to \
             -M virt; with U-Boot or other firmware, let it enter the image at EL2."
        );
    }
    complain(fdt, "not entered at EL2")
}

/// Ends the run before there is a map.
fn complain(fdt: &[u8], reason: &str) -> ! {
    if let Some(mut out) = console_before_map(fdt) {
        let _ = writeln!(out, "{}", Verdict::Fatal(reason));
    }
    panic::power_off()
}

fn console_before_map(fdt: &[u8]) -> Option<LastWords> {
    let base = Fdt::new(fdt).ok().and_then(console::find)?;
    // SAFETY: the tree says a PL011 is there, and the MMU is off.
    Some(unsafe { LastWords::at(base) })
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
    if magic != FDT_MAGIC || total > MAX_FDT_BYTES {
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
