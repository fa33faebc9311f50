//! What the platform has, held against what was written.

use iommu::UnitId;

use super::{Discrepancy, Live, PaprBackend, TableWindow, Unit};
use crate::platform::Platform;
use crate::{CHUNK, Entries, Tce};

/// What [`PaprBackend::audit`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditScope {
    /// Every entry of every window.
    Everything,
    /// The 512 entries around each that is in use.
    Used,
}

/// Where an audit goes on, of one that is done in parts.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuditPlace {
    /// Which window, counted from the first one there is.
    pub window: usize,
    entry: u64,
}

impl AuditPlace {
    /// How many entries are a part: an audit reads each back by a call of the platform, and whoever does it has
    /// what guests need for their own calls.
    pub const PART: u64 = 1024;

    /// The next entries of the window that are used, a whole chunk, which the place is moved behind.
    pub fn chunk(&mut self, entries: &Entries) -> Option<(u64, u64)> {
        let live = entries.first_live(self.entry)?;
        let first = live & !CHUNK.saturating_sub(1);
        self.entry = first.saturating_add(CHUNK).min(entries.len());
        Some((first, self.entry))
    }

    /// Goes on with the next window.
    pub fn next_window(&mut self) {
        self.window = self.window.saturating_add(1);
        self.entry = 0;
    }
}

impl<P: Platform> PaprBackend<P> {
    /// Reads entries of a host bridge back and reports those that are not what was written. Gives how
    /// many were read.
    pub fn audit(
        &self,
        unit: UnitId,
        scope: AuditScope,
        report: &mut dyn FnMut(Discrepancy),
    ) -> u64 {
        let mut read = 0_u64;
        match scope {
            AuditScope::Used => {
                let mut place = AuditPlace::default();
                loop {
                    let part = self.audit_part(unit, &mut place, report);
                    if part == 0 {
                        return read;
                    }
                    read = read.saturating_add(part);
                }
            }
            AuditScope::Everything => {
                let Some(unit) = self.unit(unit) else {
                    return 0;
                };
                for live in &unit.live {
                    let all = (0, live.shape.entries());
                    self.look(live, self.written(unit, live), all, report);
                    read = read.saturating_add(all.1);
                }
                read
            }
        }
    }

    /// A part of an audit of what is used, from a place on, which is moved behind it: [`AuditPlace::PART`] entries
    /// at most, so that others have their turn between the parts. 0 when nothing is left.
    pub fn audit_part(
        &self,
        unit: UnitId,
        place: &mut AuditPlace,
        report: &mut dyn FnMut(Discrepancy),
    ) -> u64 {
        let mut read = 0_u64;
        let Some(unit) = self.unit(unit) else {
            return 0;
        };
        while let Some(live) = unit.live.get(place.window) {
            let window = self.written(unit, live);
            let next = window.and_then(|window| place.chunk(&window.entries));
            let Some((first, end)) = next else {
                place.next_window();
                continue;
            };
            self.look(live, window, (first, end), report);
            read = read.saturating_add(end.saturating_sub(first));
            if read >= AuditPlace::PART {
                break;
            }
        }
        read
    }

    /// What was written to a window of a unit's.
    fn written(&self, unit: &Unit, live: &Live) -> Option<&TableWindow> {
        let table = self.table(unit.bound?)?;
        let mut windows = table.windows.iter();
        windows.find(|window| window.shape == live.shape)
    }

    /// Reads entries back.
    fn look(
        &self,
        live: &Live,
        window: Option<&TableWindow>,
        (first, end): (u64, u64),
        report: &mut dyn FnMut(Discrepancy),
    ) {
        for index in first..end {
            let expected = window.map_or(Tce::EMPTY, |window| window.entries.get(index));
            let at = live.shape.at(index);
            let found = self.platform.get(live.liobn, at);
            if found != Ok(expected) {
                report(Discrepancy {
                    liobn: live.liobn,
                    at,
                    expected,
                    found,
                });
            }
        }
    }
}
