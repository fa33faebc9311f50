//! The parts of a guest's address space in which its devices' tables may be those of its CPUs.

use alloc::vec::Vec;

use types::{Ipa, PageSize, Span};

use super::{GuestPlatform, PciWindow};

impl GuestPlatform {
    /// The units of 1 GiB that have memory and no part of a PCI window, in runs. Where a guest can place a BAR, tables of its
    /// CPUs are no tables for its devices: these would reach the BAR, and their caches would keep it when it moves.
    #[must_use]
    pub fn memory_units(&self) -> Vec<Span<Ipa>> {
        let windows = self.pci.iter().flat_map(|host| &host.windows);
        let windows: Vec<Span<Ipa>> = windows.filter_map(PciWindow::span).collect();
        let mask = PageSize::SIZE_1G.mask();
        let mut runs: Vec<Span<Ipa>> = Vec::new();
        for span in &self.memory {
            let end = span.last().bits();
            let after = |run: &Span<Ipa>| run.last().bits().saturating_add(1);
            let mut at = runs
                .last()
                .map_or(0, after)
                .max(span.start().bits() & !mask);
            while at <= end {
                let unit = Span::new(Ipa::truncated(at), Ipa::truncated(at | mask));
                at = (at | mask).saturating_add(1);
                let Some(unit) = unit.filter(|unit| !windows.iter().any(|it| it.overlaps(*unit)))
                else {
                    continue;
                };
                match runs.last_mut() {
                    Some(run) if after(run) == unit.start().bits() => {
                        *run = Span::new(run.start(), unit.last()).unwrap_or(*run);
                    }
                    _ => runs.push(unit),
                }
            }
        }
        runs
    }
}
