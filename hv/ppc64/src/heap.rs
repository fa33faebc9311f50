//! The hypervisor's heap: a fixed part of the image's memory, below 4 GiB, so that firmware can be
//! handed pieces of it.

use linked_list_allocator::LockedHeap;

use crate::entry;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Lets allocations begin.
///
/// # Safety
/// Must be called once.
pub(crate) unsafe fn start() {
    let (start, end) = entry::heap();
    #[expect(clippy::cast_possible_truncation, reason = "usize is 64 bits here")]
    let (start, bytes) = (start as usize, (end - start) as usize);
    let start = core::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the linker script sets this memory apart, and the caller calls once.
    unsafe { HEAP.lock().init(start, bytes) };
}

/// Bytes used and bytes free.
pub(crate) fn usage() -> (usize, usize) {
    let heap = HEAP.lock();
    (heap.used(), heap.free())
}
