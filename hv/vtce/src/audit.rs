//! What is mapped, held against what the guest wrote.

use iommu::{Backend, IoasId, Iommu, Permissions};
use tce::{AuditPlace, Tce};
use types::{Iova, Liobn, Pa};

use crate::bridge::{Dma, GuestWindow};

/// An entry for which something else is mapped than the guest wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The guest's name of the window.
    pub liobn: Liobn,
    /// The bus address.
    pub at: Iova,
    /// What the guest wrote.
    pub wrote: Tce,
    /// Where that leads, and for what; `None` for an empty entry, and one that leads to memory which
    /// the guest does not have any more.
    pub expected: Option<(Pa, Permissions)>,
    /// What the core says.
    pub found: Option<(Pa, Permissions)>,
}

impl Dma {
    /// Looks at the 512 entries around each that is live, and reports those that are mapped otherwise.
    /// Gives how many were looked at. That the hardware has what the core says is the backend's to
    /// audit.
    pub fn audit<B: Backend>(&self, core: &Iommu<B>, report: &mut dyn FnMut(Wrong)) -> u64 {
        let mut looked = 0_u64;
        let mut place = AuditPlace::default();
        loop {
            let part = self.audit_part(core, &mut place, report);
            if part == 0 {
                return looked;
            }
            looked = looked.saturating_add(part);
        }
    }

    /// A part of it, from a place on, which is moved behind it: [`AuditPlace::PART`] entries at most. 0 when
    /// nothing is left.
    pub fn audit_part<B: Backend>(
        &self,
        core: &Iommu<B>,
        place: &mut AuditPlace,
        report: &mut dyn FnMut(Wrong),
    ) -> u64 {
        let mut looked = 0_u64;
        while looked < AuditPlace::PART {
            let bridges = self.bridges.iter();
            let mut windows = bridges.flat_map(|bridge| {
                let windows = bridge.windows.iter();
                windows.map(move |window| (bridge.options.ioas, window))
            });
            let Some((ioas, window)) = windows.nth(place.window) else {
                break;
            };
            let Some((first, end)) = place.chunk(&window.entries) else {
                place.next_window();
                continue;
            };
            for index in first..end {
                self.look(core, ioas, window, index, report);
            }
            looked = looked.saturating_add(end.saturating_sub(first));
        }
        looked
    }

    fn look<B: Backend>(
        &self,
        core: &Iommu<B>,
        ioas: IoasId,
        window: &GuestWindow,
        index: u64,
        report: &mut dyn FnMut(Wrong),
    ) {
        let wrote = window.entries.get(index);
        let at = window.at(index);
        let found = core.translate(ioas, at).ok();
        let whole = found.filter(|found| found.bytes >= window.page.bytes());
        let found = whole.map(|found| (found.pa, found.permissions));
        let place = self.slots.place(wrote, window.page);
        let expected = place.and_then(|place| {
            let memory = core.memory(place.memory).ok()?;
            // Registers that were taken away for a while show nothing.
            if memory.is_revoked() {
                return None;
            }
            Some((memory.at(place.offset)?.pa, place.permissions))
        });
        if found != expected {
            report(Wrong {
                liobn: window.liobn,
                at,
                wrote,
                expected,
                found,
            });
        }
    }
}
