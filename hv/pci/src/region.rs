//! What the host bridge's windows have left.

use alloc::vec::Vec;

use crate::host::{HostBridge, WindowKind};
use crate::layout::Class;

/// Legacy devices and "not assigned" live below this.
const FIRST_IO: u64 = 0x1000;
const FOUR_GIB: u64 = 1 << 32;

/// A part of a window in which addresses are given out: inclusive spans that are free.
#[derive(Clone, Debug)]
struct Region {
    class: Class,
    prefetchable_only: bool,
    first: u64,
    last: u64,
    free: Vec<(u64, u64)>,
}

/// All regions of a host bridge.
#[derive(Clone, Debug)]
pub(crate) struct Regions(Vec<Region>);

/// `address` rounded up to a multiple of the power of two `align`.
pub(crate) fn align_up(address: u64, align: u64) -> Option<u64> {
    let mask = align.wrapping_sub(1);
    address.checked_add(mask).map(|sum| sum & !mask)
}

/// Where `size` bytes with this alignment start in a free span.
fn fit((first, last): (u64, u64), size: u64, align: u64) -> Option<u64> {
    let start = align_up(first, align)?;
    let end = start.checked_add(size.checked_sub(1)?)?;
    (end <= last).then_some(start)
}

impl Regions {
    pub(crate) fn new(host: &HostBridge, page: u64) -> Self {
        let mut regions = Vec::new();
        let mut add = |class, prefetchable_only, first: u64, last: u64| {
            if first <= last {
                let free = Vec::from([(first, last)]);
                regions.push(Region {
                    class,
                    prefetchable_only,
                    first,
                    last,
                    free,
                });
            }
        };
        for window in &host.windows {
            let Some(last) = window.last() else { continue };
            let only = window.kind == WindowKind::Prefetchable;
            if window.kind == WindowKind::Io {
                let last = last.min(u32::MAX.into());
                add(Class::Io, false, window.bus.max(FIRST_IO), last);
            } else {
                let low = last.min(FOUR_GIB.wrapping_sub(1));
                add(Class::Low, only, window.bus.max(page), low);
                add(Class::High, only, window.bus.max(FOUR_GIB), last);
            }
        }
        Self(regions)
    }

    fn of(&self, class: Class, prefetchable: bool) -> impl Iterator<Item = &Region> {
        self.0.iter().filter(move |region| {
            region.class == class && (prefetchable || !region.prefetchable_only)
        })
    }

    /// Bytes of the largest region for this class, 0 when there is none.
    pub(crate) fn largest(&self, class: Class, prefetchable: bool) -> u64 {
        self.of(class, prefetchable)
            .map(|region| region.last.wrapping_sub(region.first).saturating_add(1))
            .max()
            .unwrap_or(0)
    }

    /// Whether an empty region would have room.
    pub(crate) fn could_fit(&self, class: Class, size: u64, prefetchable: bool) -> bool {
        self.of(class, prefetchable)
            .any(|region| fit((region.first, region.last), size, size).is_some())
    }

    /// Takes a span that must be wholly free.
    pub(crate) fn carve(&mut self, io: bool, first: u64, last: u64) -> bool {
        for region in &mut self.0 {
            if (region.class == Class::Io) == io && region.carve(first, last) {
                return true;
            }
        }
        false
    }

    /// Takes `size` bytes at the lowest address that has room.
    pub(crate) fn take(
        &mut self,
        class: Class,
        prefetchable: bool,
        size: u64,
        align: u64,
    ) -> Option<u64> {
        // Windows for prefetchable memory only are of no use to others: they go first.
        for only in [true, false] {
            let same = |region: &&mut Region| {
                region.class == class && region.prefetchable_only == only && (prefetchable || !only)
            };
            for region in self.0.iter_mut().filter(same) {
                let start = region.free.iter().find_map(|&span| fit(span, size, align));
                if let Some(start) = start {
                    let last = start.checked_add(size.checked_sub(1)?)?;
                    return region.carve(start, last).then_some(start);
                }
            }
        }
        None
    }
}

impl Region {
    fn carve(&mut self, first: u64, last: u64) -> bool {
        let Some(index) = self
            .free
            .iter()
            .position(|&(start, end)| start <= first && first <= last && last <= end)
        else {
            return false;
        };
        let (start, end) = self.free.remove(index);
        // In order: what is left above first, so that what is left below ends up before it.
        if let Some(above) = last.checked_add(1).filter(|&above| above <= end) {
            self.free.insert(index, (above, end));
        }
        if let Some(below) = first.checked_sub(1).filter(|&below| below >= start) {
            self.free.insert(index, (start, below));
        }
        true
    }
}
