//! Where the parts of the running image lie. All addresses are physical: the map is the identity.

use types::{Pa, Span};

use crate::memory::HEAP_BYTES;

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __boot_guard: u8;
    static __boot_stack_bottom: u8;
    static __emergency_stack_top: u8;
    static __heap_start: u8;
}

/// The address of a symbol or function, as a number.
pub(crate) fn address_of<T: ?Sized>(item: *const T) -> u64 {
    item.addr() as u64
}

macro_rules! symbol {
    ($name:ident) => {
        Pa::truncated(address_of(&raw const $name))
    };
}

/// A part of the image with permissions of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Code: read and execute.
    Text,
    /// Constants and relocated pointers: read.
    Constants,
    /// Data, `.bss` and the stacks: read and write.
    Data,
}

/// The whole image in memory, guard and stacks included.
pub(crate) fn whole() -> Span<Pa> {
    between(symbol!(__image_start), end())
}

/// The first byte behind the image. The heap is its last part; a symbol behind it would be further from the
/// code than the code model reaches.
fn end() -> Pa {
    Pa::truncated(address_of(&raw const __heap_start) + HEAP_BYTES as u64)
}

/// The guard below the boot CPU's stack, which must not be mapped.
pub(crate) fn boot_guard() -> Span<Pa> {
    between(symbol!(__boot_guard), symbol!(__boot_stack_bottom))
}

/// The parts to map, page aligned, in ascending order.
pub(crate) fn parts() -> [(Span<Pa>, Part); 4] {
    [
        (
            between(symbol!(__image_start), symbol!(__text_end)),
            Part::Text,
        ),
        (
            between(symbol!(__text_end), symbol!(__rodata_end)),
            Part::Constants,
        ),
        (
            between(symbol!(__rodata_end), symbol!(__boot_guard)),
            Part::Data,
        ),
        (between(symbol!(__boot_stack_bottom), end()), Part::Data),
    ]
}

/// The top of the stack for exceptions that find the boot CPU's stack unusable.
pub(crate) fn emergency_stack_top() -> u64 {
    address_of(&raw const __emergency_stack_top)
}

/// How far into the image an address of code lies, for symbolising.
pub(crate) fn offset(address: u64) -> Option<u64> {
    let image = whole();
    let pa = Pa::new(address).ok()?;
    image.contains(pa).then(|| address - image.start().bits())
}

fn between(start: Pa, end: Pa) -> Span<Pa> {
    // The linker script puts the symbols in this order; an empty part would be a broken image.
    Span::new(start, Pa::truncated(end.bits() - 1)).unwrap_or_else(|| crate::panic::power_off())
}
