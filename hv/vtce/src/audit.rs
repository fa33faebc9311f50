//! What is mapped, held against what the guest wrote.

use iommu::{Backend, Iommu, Permissions};
use tce::{CHUNK, Tce};
use types::{Iova, Liobn, Pa};

use crate::bridge::Dma;

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
        for bridge in &self.bridges {
            for window in &bridge.windows {
                let mut from = 0;
                while let Some(live) = window.entries.first_live(from) {
                    let first = live & !CHUNK.saturating_sub(1);
                    let end = first.saturating_add(CHUNK).min(window.entries.len());
                    for index in first..end {
                        looked = looked.saturating_add(1);
                        let wrote = window.entries.get(index);
                        let at = window.at(index);
                        let found = core.translate(bridge.options.ioas, at).ok();
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
                    from = end;
                }
            }
        }
        looked
    }
}
