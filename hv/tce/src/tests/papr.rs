//! The backend that calls a platform.

use alloc::vec::Vec;

use iommu::conformance::{self, Subject};
use iommu::{
    Backend, BackendError, Binding, Endpoint, MemoryType, PageSizes, Permissions, Run, TableId,
    TableOptions, UnitId,
};
use proptest::prelude::*;
use types::{Iova, Pa, PageSize, Span};

use crate::fake::{DEFAULT_BYTES, DYNAMIC_BASE, FakePlatform, liobn};
use crate::{
    AuditPlace, AuditScope, Broken, Ddw, HcallError, HostBridge, Multi, PaprBackend, Platform, Tce,
};

const ONE: UnitId = UnitId::new(0);
const OTHER: UnitId = UnitId::new(1);

fn endpoint(unit: UnitId) -> Endpoint {
    Endpoint { unit, source: 0 }
}

fn iova(at: u64) -> Iova {
    Iova::truncated(at)
}

/// A backend over two host bridges of a fake platform.
struct Rig {
    backend: PaprBackend<FakePlatform>,
    tables: Vec<TableId>,
    growths: Option<u64>,
}

impl Rig {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl Fn(&mut HostBridge)) -> Self {
        let mut bridges = [FakePlatform::bridge(0), FakePlatform::bridge(1)];
        bridges.iter_mut().for_each(change);
        Self {
            backend: PaprBackend::new(FakePlatform::new(2), &bridges).unwrap(),
            tables: Vec::new(),
            growths: None,
        }
    }

    fn platform(&self) -> &FakePlatform {
        self.backend.platform()
    }

    fn table(&mut self) -> TableId {
        let options = TableOptions {
            nest_parent: false,
            dirty: false,
        };
        let table = self.backend.create_table(endpoint(ONE), options).unwrap();
        self.tables.push(table);
        table
    }

    fn bound(&mut self) -> TableId {
        let table = self.table();
        self.bind(table).unwrap();
        table
    }

    fn bind(&mut self, table: TableId) -> Result<(), BackendError> {
        self.backend.install(endpoint(ONE), &Binding::Table(table))
    }

    fn abort(&mut self) -> Result<(), BackendError> {
        self.backend.install(endpoint(ONE), &Binding::Abort)
    }

    /// Asserts that the platform has what the backend says, to the last entry.
    fn audit(&self) {
        for unit in [ONE, OTHER] {
            self.backend.audit(unit, AuditScope::Used, &mut |wrong| {
                panic!("{wrong:?}");
            });
        }
        assert!(self.backend.is_sure());
    }
}

impl Subject for Rig {
    type Backend = PaprBackend<FakePlatform>;

    fn backend(&mut self) -> &mut Self::Backend {
        &mut self.backend
    }

    fn endpoints(&self) -> [Endpoint; 2] {
        [endpoint(ONE), endpoint(OTHER)]
    }

    fn reach(&mut self, endpoint: Endpoint, at: Iova) -> Option<(Pa, Permissions)> {
        let (pa, rights) = self.platform().dma(endpoint.unit.bits(), at)?;
        let permissions = Tce::from_bits(rights).permissions()?;
        Some((Pa::new(pa).unwrap(), permissions))
    }

    fn fail_allocations_after(&mut self, allocations: Option<u64>) {
        self.growths = allocations;
        for table in 0..64 {
            self.backend
                .fail_entries_after(TableId::new(table), allocations);
        }
    }

    fn fail_windows_after(&mut self, calls: Option<u64>) -> bool {
        self.platform().fail_services_after(calls);
        true
    }

    fn invariants(&mut self) {
        self.audit();
    }
}

fn run_of(at: u64, pages: u64, pa: u64, page: PageSize) -> Run {
    Run {
        iova: iova(at),
        pa: Pa::new(pa).unwrap(),
        bytes: pages * page.bytes(),
        permissions: Permissions::ReadWrite,
        memory: MemoryType::Normal,
        leaves: PageSizes::new(&[page]),
    }
}

fn run(at: u64, pages: u64, pa: u64) -> Run {
    run_of(at, pages, pa, PageSize::SIZE_4K)
}

fn span(run: &Run) -> Span<Iova> {
    Span::from_len(run.iova, run.bytes).unwrap()
}

#[test]
fn it_conforms() {
    conformance::check(Rig::new);
}

#[test]
fn it_conforms_without_calls_for_several_entries() {
    conformance::check(|| Rig::with(|bridge| bridge.multi = Multi::No));
}

#[test]
fn it_conforms_without_further_windows() {
    conformance::check(|| Rig::with(|bridge| bridge.ddw = Ddw::None));
}

#[test]
fn it_conforms_without_a_reset_of_windows() {
    conformance::check(|| Rig::with(|bridge| bridge.ddw = Ddw::Create));
}

#[test]
fn entries_are_written_to_the_bit() {
    let mut rig = Rig::new();
    let table = rig.bound();
    rig.backend
        .map(table, &run(0x3000, 2, 0x12_3456_7000))
        .unwrap();
    let read_only = Run {
        permissions: Permissions::Read,
        ..run(0x8000, 1, 0x9000)
    };
    rig.backend.map(table, &read_only).unwrap();
    let entries: Vec<(u64, u64)> = rig
        .platform()
        .entries(0)
        .into_iter()
        .map(|(at, tce)| (at, tce.bits()))
        .collect();
    assert_eq!(
        entries,
        [
            (0x3000, 0x12_3456_7003),
            (0x4000, 0x12_3456_8003),
            (0x8000, 0x9001)
        ]
    );
    assert_eq!(
        rig.backend.entry(table, iova(0x4fff)),
        Some(Tce::from_bits(0x12_3456_8003))
    );
}

#[test]
fn each_run_takes_the_fewest_calls() {
    let mut rig = Rig::new();
    let table = rig.bound();
    // Pages of the run, whether it starts a chunk, and the calls: puts, lists, entries in lists.
    let cases = [
        (1, 0, (1, 0, 0)),
        (2, 0, (0, 1, 2)),
        (512, 0, (0, 1, 512)),
        (513, 0, (1, 1, 512)),
        (512, 100, (0, 2, 512)),
        (2048, 0, (0, 4, 2048)),
    ];
    for (pages, first, (puts, lists, listed)) in cases {
        let run = run(first << 12, pages, 1 << 30);
        let before = rig.platform().calls();
        rig.backend.map(table, &run).unwrap();
        let after = rig.platform().calls();
        assert_eq!(
            (
                after.puts - before.puts,
                after.lists - before.lists,
                after.listed - before.listed
            ),
            (puts, lists, listed),
            "{pages} pages"
        );
        rig.backend.unmap(table, span(&run));
        let cleared = rig.platform().calls();
        let single = u64::from(pages == 1);
        assert_eq!(cleared.puts - after.puts, single, "{pages} pages");
        assert_eq!(cleared.stuffs - after.stuffs, 1 - single, "{pages} pages");
    }
}

#[test]
fn a_table_that_is_not_bound_is_no_call() {
    let mut rig = Rig::new();
    let table = rig.table();
    let before = rig.platform().calls();
    rig.backend.map(table, &run(0, 1000, 1 << 30)).unwrap();
    rig.backend.unmap(table, span(&run(0, 10, 0)));
    assert_eq!(rig.platform().calls(), before);
    rig.bind(table).unwrap();
    assert_eq!(rig.platform().entries(0).len(), 990);
    rig.audit();
}

#[test]
fn a_platform_with_leftovers_is_emptied_first() {
    let platform = FakePlatform::new(1);
    platform
        .put(liobn(0, 0), iova(0x5000), Tce::from_bits(0xdead_b003))
        .unwrap();
    let spec = crate::WindowSpec {
        page: PageSize::SIZE_64K,
        shift: 32,
    };
    platform.create_window(crate::fake::BUID, 0, spec).unwrap();
    platform
        .put(liobn(0, 1), iova(DYNAMIC_BASE), Tce::from_bits(0x1_0003))
        .unwrap();
    let backend = PaprBackend::new(&platform, &[FakePlatform::bridge(0)]).unwrap();
    assert!(platform.entries(0).is_empty());
    assert_eq!(platform.windows(0).len(), 1);
    drop(backend);
    // And one that does not let itself be emptied is not taken.
    platform
        .put(liobn(0, 0), iova(0x5000), Tce::from_bits(0xdead_b003))
        .unwrap();
    platform.fail_writes_after(Some(0), None);
    assert_eq!(
        PaprBackend::new(&platform, &[FakePlatform::bridge(0)]).unwrap_err(),
        Broken::Call {
            unit: ONE,
            base: Iova::ZERO,
            error: HcallError::Hardware
        }
    );
}

#[test]
fn a_call_that_fails_half_way_leaves_nothing() {
    // Every write of the mapping fails in turn, once; the rollback's writes succeed.
    for failing in 0..5 {
        let mut rig = Rig::new();
        let table = rig.bound();
        rig.backend.map(table, &run(0, 1, 0x7000)).unwrap();
        let long = run(0x1000, 2000, 1 << 30);
        rig.platform().fail_writes_after(Some(failing), Some(1));
        let result = rig.backend.map(table, &long);
        rig.platform().fail_writes_after(None, None);
        if failing < 4 {
            assert_eq!(result, Err(BackendError::Unsupported), "{failing}");
            assert_eq!(rig.platform().entries(0).len(), 1, "{failing}");
        } else {
            assert_eq!(result, Ok(()), "four lists carry it");
        }
        rig.audit();
        rig.backend.unmap(table, span(&long));
        rig.backend.map(table, &long).unwrap();
        rig.audit();
    }
}

#[test]
fn what_cannot_be_cleared_is_known_and_cleared_later() {
    let mut rig = Rig::new();
    let table = rig.bound();
    let long = run(0x1000, 2000, 1 << 30);
    let neighbour = run(0, 1, 0x7000);
    rig.backend.map(table, &long).unwrap();
    rig.backend.map(table, &neighbour).unwrap();
    rig.platform().fail_writes_after(Some(0), None);
    rig.backend.unmap(table, span(&long));
    assert!(!rig.backend.is_sure());
    // Nobody hears that it is gone while it is not; who asks for something else is not stopped.
    let waiting = rig.backend.invalidate(table, span(&long));
    assert_eq!(waiting, Err(BackendError::Timeout));
    assert_eq!(rig.backend.invalidate(table, span(&neighbour)), Ok(()));
    assert_eq!(rig.abort(), Err(BackendError::Timeout));
    rig.platform().fail_writes_after(None, None);
    assert_eq!(rig.backend.invalidate(table, span(&long)), Ok(()));
    assert!(rig.backend.is_sure());
    assert_eq!(rig.platform().entries(0).len(), 1);
    rig.audit();
}

#[test]
fn a_failing_rollback_is_known_too() {
    let mut rig = Rig::new();
    let table = rig.bound();
    let long = run(0x1000, 600, 1 << 30);
    rig.platform().fail_writes_after(Some(0), None);
    assert_eq!(rig.backend.map(table, &long), Err(BackendError::Timeout));
    assert!(!rig.backend.is_sure());
    rig.platform().fail_writes_after(None, None);
    assert_eq!(rig.abort(), Ok(()));
    assert!(rig.backend.is_sure());
    assert!(rig.platform().entries(0).is_empty());
}

#[test]
fn a_switch_that_fails_at_any_call_leaves_the_old_table() {
    for failing in 0..12 {
        let mut rig = Rig::new();
        let old = rig.bound();
        rig.backend.map(old, &run(0, 1500, 1 << 30)).unwrap();
        let before = rig.platform().entries(0);
        let new = rig.table();
        rig.backend
            .map(new, &run(0x80_0000, 1500, 2 << 30))
            .unwrap();
        rig.platform().fail_writes_after(Some(failing), Some(1));
        let result = rig.bind(new);
        rig.platform().fail_writes_after(None, None);
        if result.is_ok() {
            assert!(failing >= 6, "{failing}");
            continue;
        }
        assert_eq!(rig.platform().entries(0), before, "{failing}");
        rig.audit();
        rig.bind(new).unwrap();
        rig.audit();
        rig.platform().fail_writes_after(Some(failing), Some(1));
        let aborted = rig.abort();
        rig.platform().fail_writes_after(None, None);
        match aborted {
            Ok(()) => assert!(rig.platform().entries(0).is_empty()),
            Err(_) => rig.audit(),
        }
    }
}

#[test]
fn a_switch_exchanges_entry_after_entry() {
    let mut rig = Rig::new();
    let old = rig.bound();
    rig.backend.map(old, &run(0, 4, 1 << 30)).unwrap();
    let new = rig.table();
    rig.backend.map(new, &run(0, 4, 2 << 30)).unwrap();
    let before = rig.platform().calls();
    rig.bind(new).unwrap();
    let after = rig.platform().calls();
    // One list, and nothing that would have emptied an entry first.
    assert_eq!(after.stuffs, before.stuffs);
    assert_eq!(after.lists, before.lists + 1);
}

#[test]
fn windows_have_the_shapes_that_were_asked_for() {
    let mut rig = Rig::new();
    let table = rig.bound();
    let window = rig
        .backend
        .create_window(table, PageSize::SIZE_2M, 1 << 40)
        .unwrap();
    assert_eq!(
        window.span,
        Span::from_len(iova(DYNAMIC_BASE), 1 << 40).unwrap()
    );
    assert_eq!(
        rig.platform().windows(0)[1],
        (liobn(0, 1), DYNAMIC_BASE, PageSize::SIZE_2M, 1 << 19)
    );
    assert_eq!(
        rig.backend.liobn(table, iova(DYNAMIC_BASE)),
        Some(liobn(0, 1))
    );
    // Addresses are absolute, also there.
    let big = run_of(DYNAMIC_BASE + (2 << 21), 3, 6 << 21, PageSize::SIZE_2M);
    rig.backend.map(table, &big).unwrap();
    assert_eq!(
        rig.platform().dma(0, iova(DYNAMIC_BASE + (2 << 21) + 5)),
        Some(((6 << 21) + 5, 3))
    );
    // A page that is not aligned as the window wants it is no entry.
    let crooked = run_of(DYNAMIC_BASE, 1, 1 << 20, PageSize::SIZE_2M);
    assert_eq!(
        rig.backend.map(table, &crooked),
        Err(BackendError::Incompatible)
    );
}

#[test]
fn no_window_is_so_large_that_the_platform_dies_of_it() {
    let mut rig = Rig::with(|bridge| bridge.entries = 63);
    let table = rig.bound();
    // The fake panics where QEMU would abort: at 2^32 entries.
    for shift in 44..64 {
        assert_eq!(
            rig.backend
                .create_window(table, PageSize::SIZE_4K, 1 << shift),
            Err(BackendError::BadWindow),
            "2^{shift}"
        );
    }
    assert_eq!(rig.platform().windows(0).len(), 1);
}

#[test]
fn the_last_created_window_brings_the_default_one_back() {
    let mut rig = Rig::new();
    let table = rig.bound();
    let page = PageSize::SIZE_64K;
    rig.backend.create_window(table, page, 1 << 32).unwrap();
    rig.backend.remove_window(table, Iova::ZERO).unwrap();
    let bases = |rig: &Rig| -> Vec<u64> {
        let windows = rig.backend.windows(table).iter();
        windows.map(|window| window.span.start().bits()).collect()
    };
    assert_eq!(bases(&rig), [DYNAMIC_BASE]);
    rig.backend
        .remove_window(table, iova(DYNAMIC_BASE))
        .unwrap();
    assert_eq!(bases(&rig), [0]);
    assert_eq!(
        rig.backend.windows(table)[0].span.len(),
        Some(DEFAULT_BYTES)
    );
    // Without any window, the first that is created is at zero, with pages as asked for.
    rig.backend.remove_window(table, Iova::ZERO).unwrap();
    assert_eq!(bases(&rig), [0; 0]);
    let window = rig.backend.create_window(table, page, 1 << 33).unwrap();
    assert_eq!(window.span.start(), Iova::ZERO);
    rig.backend
        .map(table, &run_of(0, 2, 1 << 32, page))
        .unwrap();
    rig.audit();
    rig.abort().unwrap();
    rig.backend.destroy_table(table);
    assert_eq!(rig.platform().windows(0).len(), 1);
    assert_eq!(rig.platform().windows(0)[0].2, PageSize::SIZE_4K);
}

#[test]
fn a_service_that_fails_leaves_the_windows_that_are_said_to_be_there() {
    for failing in 0..3 {
        let mut rig = Rig::new();
        let table = rig.bound();
        let steps = |rig: &mut Rig| {
            let page = PageSize::SIZE_64K;
            let made = rig.backend.create_window(table, page, 1 << 32).is_ok();
            let removed = rig.backend.remove_window(table, Iova::ZERO).is_ok();
            let reset = rig.backend.reset_windows(table).is_ok();
            (made, removed, reset)
        };
        rig.platform().fail_services_after(Some(failing));
        let done = steps(&mut rig);
        assert_ne!(done, (true, true, true));
        let shown: Vec<u64> = rig
            .backend
            .windows(table)
            .iter()
            .map(|window| window.span.start().bits())
            .collect();
        let have: Vec<u64> = rig.platform().windows(0).iter().map(|w| w.1).collect();
        assert_eq!(shown, have, "service {failing}");
        rig.platform().fail_services_after(None);
        rig.backend.reset_windows(table).unwrap();
        assert_eq!(steps(&mut rig), (true, true, true));
    }
}

#[test]
fn a_corrupted_entry_is_found() {
    let mut rig = Rig::new();
    let table = rig.bound();
    rig.backend.map(table, &run(0x1000, 2, 0x8000)).unwrap();
    let look = |rig: &Rig, scope| {
        let mut wrong = Vec::new();
        let read = rig
            .backend
            .audit(ONE, scope, &mut |found| wrong.push(found.at.bits()));
        (read, wrong)
    };
    assert_eq!(look(&rig, AuditScope::Used), (512, Vec::new()));
    let stray = Tce::from_bits(0xbad_f00d_3003);
    rig.platform().corrupt(liobn(0, 0), iova(0x2000), stray);
    assert_eq!(look(&rig, AuditScope::Used).1, [0x2000]);
    // Far from anything that is used, it takes a look at everything.
    rig.platform()
        .corrupt(liobn(0, 0), iova(0x3fff_f000), stray);
    assert_eq!(look(&rig, AuditScope::Used).1, [0x2000]);
    assert_eq!(
        look(&rig, AuditScope::Everything),
        (1 << 18, [0x2000, 0x3fff_f000].into())
    );
}

#[test]
fn an_audit_in_parts_reads_what_a_whole_one_does() {
    let mut rig = Rig::new();
    let table = rig.bound();
    for chunk in (0..10).step_by(2) {
        let at = (chunk * 512) << 12;
        rig.backend.map(table, &run(at, 1, 0x8000)).unwrap();
    }
    let stray = Tce::from_bits(0xbad_f00d_3003);
    let last = (8 * 512 + 511) << 12;
    rig.platform().corrupt(liobn(0, 0), iova(last), stray);
    let mut place = AuditPlace::default();
    let mut wrong = Vec::new();
    let mut part = || {
        rig.backend
            .audit_part(ONE, &mut place, &mut |found| wrong.push(found.at.bits()))
    };
    let parts = [part(), part(), part(), part()];
    assert_eq!(parts, [1024, 1024, 512, 0]);
    assert_eq!(wrong, [last]);
    let whole = rig.backend.audit(ONE, AuditScope::Used, &mut |_| {});
    assert_eq!(whole, parts.iter().sum());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever fails when: what the platform has is what the backend says, or it says that it is
    /// not sure; and once the platform works again, one abort puts everything right.
    #[test]
    fn nothing_is_left_behind(steps in proptest::collection::vec(
        (0u8..7, 0u64..40, 1u64..1100, proptest::option::of(0u64..4)), 1..30,
    )) {
        let mut rig = Rig::new();
        let tables = [rig.table(), rig.table()];
        let mut mapped: [Vec<Run>; 2] = Default::default();
        for (what, at, pages, failing) in steps {
            let which = usize::from(at % 2 == 1);
            let table = tables[which];
            rig.platform().fail_writes_after(failing, Some(2));
            match what {
                0..=2 => {
                    let new = run(at << 22, pages.min(1024), (at + 1) << 30);
                    if mapped[which].iter().all(|run| run.iova != new.iova)
                        && rig.backend.map(table, &new).is_ok()
                    {
                        mapped[which].push(new);
                    }
                }
                3 | 4 => {
                    if let Some(gone) = mapped[which].pop() {
                        rig.backend.unmap(table, span(&gone));
                        rig.platform().fail_writes_after(None, None);
                        rig.backend.invalidate(table, span(&gone)).unwrap();
                    }
                }
                5 => { let _ = rig.bind(table); }
                _ => { let _ = rig.abort(); }
            }
            rig.platform().fail_writes_after(None, None);
            if rig.backend.is_sure() {
                rig.audit();
            }
        }
        rig.abort().unwrap();
        rig.audit();
        prop_assert!(rig.platform().entries(0).is_empty());
        for (which, table) in tables.into_iter().enumerate() {
            rig.bind(table).unwrap();
            rig.audit();
            let pages: u64 = mapped[which].iter().map(|run| run.bytes >> 12).sum();
            prop_assert_eq!(rig.platform().entries(0).len() as u64, pages);
        }
    }
}
