//! The mock does what every backend must, and the suite notices backends that do not.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;
use std::vec::Vec;

use types::PageSize;

use super::*;
use crate::conformance::{self, Subject};
use crate::{
    Backend, BackendError, Binding, Capabilities, DirtyRead, DirtyTracking, Partial, Run,
    StageOneInvalidation, TableId, TableOptions, Window, WindowLimits,
};

/// The mock as it is, with the endpoints of one kind of its units.
struct Plain {
    mock: Mock,
    endpoints: [Endpoint; 2],
}

fn endpoint(unit: UnitId, source: u32) -> Endpoint {
    Endpoint { unit, source }
}

impl Plain {
    fn smmu() -> Self {
        Self {
            mock: Mock::new().with_smmu(SMMU, Leaves::SmallAndHuge),
            endpoints: [endpoint(SMMU, 3), endpoint(SMMU, 4)],
        }
    }

    fn tce() -> Self {
        Self {
            mock: Mock::new().with_tce(TCE).with_tce(OTHER_SMMU),
            endpoints: [endpoint(TCE, 0), endpoint(OTHER_SMMU, 0)],
        }
    }
}

fn reach(mock: &mut Mock, endpoint: Endpoint, at: Iova) -> Option<(Pa, Permissions)> {
    let read = mock.dma(endpoint, at, Dma::Read).ok();
    let write = mock.dma(endpoint, at, Dma::Write).ok();
    match (read, write) {
        (Some((pa, _)), Some((same, _))) => {
            assert_eq!(pa, same);
            Some((pa, Permissions::ReadWrite))
        }
        (Some((pa, _)), None) => Some((pa, Permissions::Read)),
        (None, Some((pa, _))) => Some((pa, Permissions::Write)),
        (None, None) => None,
    }
}

impl Subject for Plain {
    type Backend = Mock;

    fn backend(&mut self) -> &mut Mock {
        &mut self.mock
    }

    fn endpoints(&self) -> [Endpoint; 2] {
        self.endpoints
    }

    fn reach(&mut self, endpoint: Endpoint, at: Iova) -> Option<(Pa, Permissions)> {
        reach(&mut self.mock, endpoint, at)
    }

    fn fail_allocations_after(&mut self, allocations: Option<u64>) {
        self.mock.fail_allocations_after(allocations);
    }
}

#[test]
fn the_smmu_like_mock_conforms() {
    conformance::check(Plain::smmu);
}

#[test]
fn the_tce_like_mock_conforms() {
    conformance::check(Plain::tce);
}

/// What a backend may get wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The last page of a run is forgotten.
    MapsTooLittle,
    /// A page more is mapped.
    MapsTooMuch,
    /// Only part of what was asked is unmapped.
    UnmapsTooLittle,
    /// Translations stay cached.
    NeverInvalidates,
    /// Rights are not looked at.
    AllRights,
    /// A switch is only pretended.
    InstallsNothing,
    /// Abort is only pretended.
    NeverAborts,
    /// A failed mapping stays half done.
    NoRollback,
    /// A removed window is still used.
    KeepsWindows,
    /// Any size is accepted.
    AnyWindow,
    /// Tables of the second endpoint get what the first's get.
    Shares,
    /// Destroyed tables come back as they were.
    RecyclesTables,
    /// Where putting windows back failed, it says so and changes nothing, but a window was gone by then.
    HalfReset,
}

const FAULTS: [Fault; 13] = [
    Fault::MapsTooLittle,
    Fault::MapsTooMuch,
    Fault::UnmapsTooLittle,
    Fault::NeverInvalidates,
    Fault::AllRights,
    Fault::InstallsNothing,
    Fault::NeverAborts,
    Fault::NoRollback,
    Fault::KeepsWindows,
    Fault::AnyWindow,
    Fault::Shares,
    Fault::RecyclesTables,
    Fault::HalfReset,
];

/// The mock with one fault.
struct Faulty {
    mock: Mock,
    fault: Fault,
    made: Vec<TableId>,
    recycled: Option<TableId>,
    /// Calls that change windows until all fail.
    calls_left: Option<u64>,
    /// What windows are said to be there, where that is not true.
    claimed: Option<Vec<Window>>,
}

impl Faulty {
    fn page(&self, table: TableId) -> u64 {
        self.mock
            .windows(table)
            .first()
            .map_or(4096, |window| window.pages.smallest())
    }
}

impl Backend for Faulty {
    fn capabilities(&self, unit: UnitId) -> Option<Capabilities> {
        self.mock.capabilities(unit)
    }
    fn create_table(
        &mut self,
        endpoint: Endpoint,
        options: TableOptions,
    ) -> Result<TableId, BackendError> {
        if let Some(table) = self.recycled.take() {
            return Ok(table);
        }
        let table = self.mock.create_table(endpoint, options)?;
        self.made.push(table);
        Ok(table)
    }
    fn destroy_table(&mut self, table: TableId) {
        if self.fault == Fault::RecyclesTables && self.recycled.is_none() {
            self.recycled = Some(table);
        } else {
            self.mock.destroy_table(table);
        }
    }
    fn windows(&self, table: TableId) -> &[Window] {
        match &self.claimed {
            Some(claimed) => claimed,
            None => self.mock.windows(table),
        }
    }
    fn create_window(
        &mut self,
        table: TableId,
        page: PageSize,
        bytes: u64,
    ) -> Result<Window, BackendError> {
        if self.fault == Fault::AnyWindow && !bytes.is_power_of_two() {
            return self.mock.create_window(table, page, 1 << 32);
        }
        self.mock.create_window(table, page, bytes)
    }
    fn remove_window(&mut self, table: TableId, base: Iova) -> Result<(), BackendError> {
        if self.fault == Fault::KeepsWindows {
            return Ok(());
        }
        self.mock.remove_window(table, base)
    }
    fn reset_windows(&mut self, table: TableId) -> Result<(), BackendError> {
        match self.calls_left {
            Some(0) => {
                if self.fault == Fault::HalfReset
                    && let [.., last] = *self.mock.windows(table)
                {
                    self.claimed = Some(self.mock.windows(table).into());
                    self.mock.remove_window(table, last.span.start())?;
                }
                return Err(BackendError::Timeout);
            }
            Some(left) => self.calls_left = Some(left - 1),
            None => {}
        }
        self.claimed = None;
        self.mock.reset_windows(table)
    }
    fn window_limits(&self, table: TableId) -> WindowLimits {
        self.mock.window_limits(table)
    }
    fn map(&mut self, table: TableId, run: &Run) -> Result<(), BackendError> {
        let page = self.page(table);
        let mut run = *run;
        match self.fault {
            Fault::MapsTooLittle if run.bytes > page => run.bytes -= page,
            Fault::MapsTooMuch if run.bytes == page => run.bytes += page,
            Fault::AllRights => run.permissions = Permissions::ReadWrite,
            Fault::NoRollback => {
                let mut at = 0;
                while at < run.bytes {
                    let piece = Run {
                        iova: iova(run.iova.bits() + at),
                        pa: pa(run.pa.bits() + at),
                        bytes: page,
                        ..run
                    };
                    self.mock.map(table, &piece)?;
                    at += page;
                }
                return Ok(());
            }
            Fault::Shares => {
                for other in self.made.clone() {
                    if other != table {
                        let _ = self.mock.map(other, &run);
                    }
                }
            }
            _ => {}
        }
        self.mock.map(table, &run)
    }
    fn unmap(&mut self, table: TableId, span: Span<Iova>) {
        let page = self.page(table);
        let mut span = span;
        if self.fault == Fault::UnmapsTooLittle
            && let Some(shorter) = span.len().and_then(|bytes| bytes.checked_sub(page))
            && let Some(shorter) = Span::from_len(span.start(), shorter)
        {
            span = shorter;
        }
        self.mock.unmap(table, span);
    }
    fn invalidate(&mut self, table: TableId, span: Span<Iova>) -> Result<(), BackendError> {
        if self.fault == Fault::NeverInvalidates {
            return Ok(());
        }
        self.mock.invalidate(table, span)
    }
    fn install(&mut self, endpoint: Endpoint, binding: &Binding) -> Result<(), BackendError> {
        let bound = self.mock.binding(endpoint) != Binding::Abort;
        if self.fault == Fault::InstallsNothing && bound
            || self.fault == Fault::NeverAborts && *binding == Binding::Abort
        {
            return Ok(());
        }
        self.mock.install(endpoint, binding)
    }
    fn invalidate_stage_one(
        &mut self,
        parent: TableId,
        what: &mut dyn Iterator<Item = StageOneInvalidation>,
    ) -> Result<(), Partial> {
        self.mock.invalidate_stage_one(parent, what)
    }
    fn set_dirty_tracking(
        &mut self,
        table: TableId,
        tracking: DirtyTracking,
    ) -> Result<(), BackendError> {
        self.mock.set_dirty_tracking(table, tracking)
    }
    fn read_dirty(
        &mut self,
        table: TableId,
        span: Span<Iova>,
        read: DirtyRead,
        report: &mut dyn FnMut(Span<Iova>),
    ) -> Result<(), BackendError> {
        self.mock.read_dirty(table, span, read, report)
    }
}

struct FaultySubject(Faulty);

impl Subject for FaultySubject {
    type Backend = Faulty;

    fn backend(&mut self) -> &mut Faulty {
        &mut self.0
    }

    fn endpoints(&self) -> [Endpoint; 2] {
        Plain::tce().endpoints
    }

    fn reach(&mut self, endpoint: Endpoint, at: Iova) -> Option<(Pa, Permissions)> {
        reach(&mut self.0.mock, endpoint, at)
    }

    fn fail_allocations_after(&mut self, allocations: Option<u64>) {
        self.0.mock.fail_allocations_after(allocations);
    }

    fn fail_windows_after(&mut self, calls: Option<u64>) -> bool {
        self.0.calls_left = calls;
        true
    }
}

/// The cases that notice a fault.
fn noticed(fault: Fault) -> Vec<&'static str> {
    let fresh = || {
        FaultySubject(Faulty {
            mock: Plain::tce().mock,
            fault,
            made: Vec::new(),
            recycled: None,
            calls_left: None,
            claimed: None,
        })
    };
    conformance::names::<FaultySubject>()
        .filter(|name| {
            let run = AssertUnwindSafe(|| conformance::check_one(name, fresh));
            catch_unwind(run).is_err()
        })
        .collect()
}

#[test]
fn every_fault_is_noticed() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(std::boxed::Box::new(|_| {}));
    let found: Vec<(Fault, Vec<&str>)> = FAULTS.map(|fault| (fault, noticed(fault))).into();
    std::panic::set_hook(hook);
    let missed: Vec<String> = found
        .iter()
        .filter(|(_, cases)| cases.is_empty())
        .map(|(fault, _)| std::format!("{fault:?}"))
        .collect();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
    let [.., (_, cases)] = &found[..] else {
        panic!("no faults");
    };
    let [case] = cases[..] else {
        panic!("half a reset is noticed by {cases:?}");
    };
    assert!(case.contains("while windows are put back"), "{case}");
    // No case notices everything: they look at different things.
    for name in conformance::names::<FaultySubject>() {
        let by = found.iter().filter(|(_, cases)| cases.contains(&name));
        assert!(by.count() < FAULTS.len(), "{name}");
    }
}
