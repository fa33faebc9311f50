//! What must hold between any two calls, whatever was asked before.

use alloc::collections::BTreeMap;
use core::ops::ControlFlow;

use super::{Leaf, Mock};
use crate::backend::{Binding, Endpoint, TableId};
use crate::domain::DomainKind;
use crate::ioas::{Ioas, ReservedBy};
use crate::{Iommu, PAGE};

impl Mock {
    /// Translations that a device may still hold although the tables no longer say so.
    #[must_use]
    pub fn lingering(&self) -> usize {
        self.tables.values().map(super::Table::lingering).sum()
    }
}

/// Asserts every invariant of the core against itself and against the mock's tables.
///
/// # Panics
/// When one does not hold, which is a bug of the core.
pub fn check(core: &Iommu<Mock>) {
    check_spaces(core);
    check_memory(core);
    check_bindings(core);
    check_users(core);
}

fn check_spaces(core: &Iommu<Mock>) {
    let mut tables = 0;
    let mut unconfirmed = false;
    for (_, ioas) in core.ioas.iter() {
        for shown in &ioas.domains {
            tables += 1;
            check_table(core, ioas, shown.domain.index(), shown.table);
        }
        let mut next = Some(0);
        ioas.areas.visit(0, u64::MAX, |area| {
            assert!(next.is_some_and(|next| area.start >= next), "areas overlap");
            next = area.last.checked_add(1);
            unconfirmed |= area.flags.is_stale();
            if let Some(reserved) = ioas.reserved_overlap(area.span()) {
                panic_reserved(reserved, area);
            }
            ControlFlow::<()>::Continue(())
        });
        for reserved in &ioas.reserved {
            let alive = match reserved.by {
                ReservedBy::Domain(id) => core.domains.get(id).is_some(),
                ReservedBy::Device(id) => core.devices.get(id).is_some_and(|d| d.attached),
            };
            assert!(alive, "{} is reserved for nobody", reserved.span);
            let cut = ioas.allowed.iter().any(|a| a.overlaps(reserved.span));
            assert!(!cut, "{} was promised", reserved.span);
        }
    }
    assert_eq!(core.backend.tables(), tables, "tables without a space");
    if !unconfirmed {
        assert_eq!(core.backend.lingering(), 0, "cached translations linger");
    }
}

#[expect(clippy::panic, reason = "a failed check")]
fn panic_reserved(reserved: types::Span<types::Iova>, area: crate::area::Area) {
    panic!("{area:?} is mapped over {reserved}")
}

fn check_table(core: &Iommu<Mock>, ioas: &Ioas, domain: u32, table: TableId) {
    // Areas and leaves come in the order of addresses; what is passed over is none of an area's.
    let mut walked = core.backend.walk(table).into_iter().peekable();
    let mut others: BTreeMap<u64, Leaf> = BTreeMap::new();
    let mut take = |at: u64| {
        while let Some((iova, leaf)) = walked.next_if(|(iova, _)| iova.bits() <= at) {
            if iova.bits() == at {
                return Some(leaf);
            }
            others.insert(iova.bits(), leaf);
        }
        None
    };
    ioas.areas.visit(0, u64::MAX, |area| {
        let Some(memory) = core.memory.at(area.memory) else {
            return ControlFlow::Break(assert_never("an area without memory"));
        };
        if area.flags.is_stale() || memory.is_revoked() {
            return ControlFlow::Continue(());
        }
        let mut at = area.start;
        while at <= area.last {
            let Some(leaf) = take(at) else {
                return ControlFlow::Break(assert_never("an area is not shown"));
            };
            let expected = memory.at(area.offset + (at - area.start));
            let fits =
                expected.is_some_and(|extent| extent.pa == leaf.pa && extent.bytes >= leaf.bytes);
            assert!(fits, "{at:#x} leads to {}", leaf.pa);
            assert_eq!(leaf.permissions, area.flags.permissions());
            assert_eq!(leaf.memory, memory.memory_type());
            at += leaf.bytes;
        }
        assert_eq!(at - 1, area.last, "an area ends in mid-leaf");
        ControlFlow::Continue(())
    });
    let mut leaves = others;
    leaves.extend(walked.map(|(at, leaf)| (at.bits(), leaf)));
    if let Some(paging) = core.domains.at(domain).and_then(|d| d.paging()) {
        for doorbell in &paging.doorbells {
            let iova = core.msi_pages.get(*doorbell).map(|d| d.iova());
            let mut at = iova.unwrap_or(0);
            let end = at + PAGE;
            while at < end {
                let leaf = leaves.remove(&at);
                at += leaf.map_or_else(|| assert_never("a doorbell is not shown"), |l| l.bytes);
            }
        }
    }
    assert!(leaves.is_empty(), "shown without an area: {leaves:x?}");
}

#[expect(clippy::panic, reason = "a failed check")]
fn assert_never(what: &str) -> u64 {
    panic!("{what}")
}

fn check_memory(core: &Iommu<Mock>) {
    let mut users: BTreeMap<u32, u32> = BTreeMap::new();
    for (_, ioas) in core.ioas.iter() {
        let mut bars = 0;
        ioas.areas.visit(0, u64::MAX, |area| {
            *users.entry(area.memory).or_default() += 1;
            let memory = core.memory.at(area.memory);
            if memory.is_some_and(|memory| memory.device().is_some()) {
                bars += 1;
            }
            ControlFlow::<()>::Continue(())
        });
        assert_eq!(ioas.bar_areas, bars);
        for pin in &ioas.pins {
            let mut at = Some(pin.span.start().bits());
            while let Some(here) = at.filter(|at| *at <= pin.span.last().bits()) {
                let area = ioas.areas.find(here);
                at = area.map_or_else(
                    || Some(assert_never("pinned memory is not mapped")),
                    |area| area.last.checked_add(1),
                );
            }
        }
    }
    for (id, memory) in core.memory.iter() {
        let counted = users.remove(&id.index()).unwrap_or(0);
        assert_eq!(memory.areas, counted, "{id:?}");
        if memory.device().is_some() {
            assert_eq!(memory.shown().len(), counted as usize);
        }
    }
    assert!(users.is_empty(), "areas of dead memory");
}

fn check_bindings(core: &Iommu<Mock>) {
    for (_, group) in core.groups.iter() {
        let members = group.devices.iter();
        let attached = members
            .filter(|id| core.devices.get(**id).is_some_and(|d| d.attached))
            .count();
        assert_eq!(group.attached as usize, attached);
        assert_eq!(group.domain.is_some(), attached > 0);
        let expected = group
            .domain
            .and_then(|domain| core.binding(domain).ok())
            .unwrap_or(Binding::Abort);
        for source in &group.sources {
            let endpoint = Endpoint {
                unit: group.unit(),
                source: *source,
            };
            assert_eq!(core.backend.binding(endpoint), expected, "{endpoint}");
        }
    }
}

fn check_users(core: &Iommu<Mock>) {
    for (id, domain) in core.domains.iter() {
        let groups = core.groups.iter().filter(|(_, g)| g.domain == Some(id));
        let viommus = core.viommus.iter().filter(|(_, v)| v.parent() == id);
        assert_eq!(domain.users as usize, groups.count() + viommus.count());
    }
    for (id, viommu) in core.viommus.iter() {
        let nested = core.domains.iter().filter(
            |(_, domain)| matches!(domain.kind, DomainKind::Nested { viommu, .. } if viommu == id),
        );
        assert_eq!(viommu.users as usize, nested.count());
    }
    for (id, ioas) in core.ioas.iter() {
        let accesses = core.accesses.iter();
        let accesses = accesses.filter(|(_, access)| access.ioas() == Some(id));
        assert_eq!(ioas.users as usize, ioas.domains.len() + accesses.count());
    }
    for (_, vdevice) in core.vdevices.iter() {
        if let Some(device) = vdevice.device() {
            assert!(
                core.devices
                    .get(device)
                    .is_some_and(|d| d.owner().is_some())
            );
        }
    }
}
