//! Automatic placement: the first free range that is aligned to the largest useful page.

use core::ops::ControlFlow;

use crate::area::span;
use crate::backend::Backend;
use crate::ioas::{HugePages, Ioas};
use crate::memory::Memory;
use crate::{Error, Iommu, PAGE};

/// The largest page worth aligning to while no domain says which it has.
const LARGEST_USEFUL: u64 = 1 << 30;

impl<B: Backend> Iommu<B> {
    /// The largest page that a mapping could use, in bytes: no larger than the length rounded up
    /// to a power of two, than the alignment of the memory, than a page some window has.
    fn useful_alignment(&self, ioas: &Ioas, memory: &Memory, offset: u64, bytes: u64) -> u64 {
        if ioas.huge_pages == HugePages::Off {
            return PAGE;
        }
        let length = bytes.checked_next_power_of_two().unwrap_or(LARGEST_USEFUL);
        let pa = memory.at(offset).map_or(0, |extent| extent.pa.bits());
        let of_memory = 1_u64
            .checked_shl(pa.trailing_zeros())
            .unwrap_or(LARGEST_USEFUL);
        let largest = ioas
            .domains
            .iter()
            .flat_map(|shown| self.backend.windows(shown.table))
            .filter_map(|window| window.pages.bits().checked_ilog2())
            .max()
            .and_then(|shift| 1_u64.checked_shl(shift))
            .unwrap_or(LARGEST_USEFUL);
        length.min(of_memory).min(largest)
    }

    /// Where `bytes` bytes of `memory` from `offset` could go.
    ///
    /// Never the first page (a null pointer of some driver) nor the last (whose end overflows).
    pub(crate) fn place(
        &self,
        ioas: &Ioas,
        memory: &Memory,
        offset: u64,
        bytes: u64,
    ) -> Result<u64, Error> {
        let useful = self.useful_alignment(ioas, memory, offset, bytes);
        let least = ioas
            .domains
            .iter()
            .flat_map(|shown| self.backend.windows(shown.table))
            .map(|window| window.pages.smallest())
            .min()
            .unwrap_or(1)
            .max(ioas.base_alignment());
        for value in [bytes, offset] {
            if value & least.saturating_sub(1) != 0 {
                return Err(Error::Misaligned {
                    value,
                    alignment: least,
                });
            }
        }
        let (low, high) = (PAGE, u64::MAX.saturating_sub(PAGE));
        let found = ioas.unreserved(|start, last| {
            let try_range = |start: u64, last: u64| {
                let (start, last) = (start.max(low), last.min(high));
                if start > last {
                    return None;
                }
                ioas.areas.holes((start, last), bytes, |from, to| {
                    self.fit(ioas, (from, to), bytes, (useful, offset))
                })
            };
            let found = if ioas.allowed.is_empty() {
                try_range(start, last)
            } else {
                let mut allowed = ioas.allowed.iter();
                allowed.find_map(|allowed| {
                    let both = allowed.intersection(span(start, last))?;
                    try_range(both.start().bits(), both.last().bits())
                })
            };
            match found {
                Some(at) => ControlFlow::Break(at),
                None => ControlFlow::Continue(()),
            }
        });
        found.ok_or(Error::NoSpace { bytes })
    }

    /// The first good address in a hole.
    fn fit(
        &self,
        ioas: &Ioas,
        (from, to): (u64, u64),
        bytes: u64,
        (useful, offset): (u64, u64),
    ) -> Option<u64> {
        // The windows may differ in page size, so the alignment is that of the place itself.
        let floor = self.floor(ioas, span(from, from)).ok()?;
        if (bytes | offset) & floor.saturating_sub(1) != 0 {
            return None;
        }
        let alignment = useful.max(floor);
        let mut start = from.checked_next_multiple_of(alignment)?;
        let mut last = start.checked_add(bytes.checked_sub(1)?)?;
        if let Some(revoking) = &ioas.revoking
            && revoking.span.overlaps(span(start, last))
        {
            // What is being unmapped is not free yet, holes in it included.
            let after = revoking.span.last().bits().checked_add(1)?;
            start = after.checked_next_multiple_of(alignment)?;
            last = start.checked_add(bytes.checked_sub(1)?)?;
        }
        (last <= to && self.floor(ioas, span(start, last)).is_ok()).then_some(start)
    }
}
