//! The backend with tables in memory, against a host bridge that caches.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use hal::PhysMemory;
use hal::fake::{FakeFrames, FakeMemory};
use iommu::conformance::{self, Subject};
use iommu::{
    Backend, BackendError, Binding, Endpoint, MemoryType, PageSizes, Permissions, Run, TableId,
    TableOptions, UnitId,
};
use proptest::prelude::*;
use types::{Iova, Pa, PageSize, PeNumber, Span};

use crate::Tce;
use crate::ioda::{Bridge, BridgeError, Half, Ioda, IodaBackend, Tve, Unclosed};

const ONE: UnitId = UnitId::new(0);
const TABLES: u64 = 0x1000_0000;
const TABLES_BYTES: usize = 16 << 20;

/// A host bridge as hardware: it walks tables by their format, on its own, and caches what it found,
/// emptiness included, until told to forget.
#[derive(Debug)]
struct Hardware {
    memory: &'static FakeMemory,
    windows: RefCell<BTreeMap<(UnitId, PeNumber, u8), u64>>,
    cache: RefCell<BTreeMap<(UnitId, PeNumber, u64), u64>>,
    kills: Cell<u64>,
    /// Calls until those that fail, and how many those are.
    calls_left: Cell<Option<u64>>,
    failures_left: Cell<u64>,
    /// It does not forget.
    deaf: Cell<bool>,
}

impl Hardware {
    fn new(memory: &'static FakeMemory) -> Self {
        // As firmware leaves it: the high window without translation (a page size of zero).
        let open = 1 << 8;
        Self {
            memory,
            windows: RefCell::new(BTreeMap::from([(
                (ONE, PeNumber::new(1).unwrap(), 1),
                open,
            )])),
            cache: RefCell::default(),
            kills: Cell::new(0),
            calls_left: Cell::new(None),
            failures_left: Cell::new(0),
            deaf: Cell::new(false),
        }
    }

    fn fail_after(&self, calls: u64, failures: u64) {
        self.calls_left.set(Some(calls));
        self.failures_left.set(failures);
    }

    fn heal(&self) {
        self.calls_left.set(None);
    }

    fn call(&self) -> Result<(), BridgeError> {
        match self.calls_left.get() {
            None => Ok(()),
            Some(0) => match self.failures_left.get() {
                0 => Ok(()),
                n => {
                    self.failures_left.set(n - 1);
                    Err(BridgeError(-6))
                }
            },
            Some(n) => {
                self.calls_left.set(Some(n - 1));
                Ok(())
            }
        }
    }

    fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(Pa::new(at).unwrap(), &mut bytes).unwrap();
        u64::from_be_bytes(bytes)
    }

    fn dma(&self, unit: UnitId, pe: PeNumber, at: u64) -> Option<(u64, u64)> {
        // Bits 63:60 are for messages and nothing else.
        if at >> 60 != 0 {
            return None;
        }
        let half = u8::from(at >> 59 & 1 == 1);
        let tve = *self.windows.borrow().get(&(unit, pe, half))?;
        let (levels, table, page) = (tve >> 13 & 7, tve >> 8 & 31, tve & 31);
        if table == 0 {
            return None;
        }
        if page == 0 {
            return Some((at & ((1 << 50) - 1), 3));
        }
        let shift = page + 11;
        let bits = table + 8;
        let key = (unit, pe, at >> shift);
        let cached = self.cache.borrow().get(&key).copied();
        let entry = cached.unwrap_or_else(|| {
            let mut base = tve >> 16 << 12;
            let mut entry = 0;
            for level in (0..=levels).rev() {
                // As QEMU's: bit 59, which chose the window, is one of the table's, too, where that reaches so far.
                let index = at.unbounded_shr(u32::try_from(shift + bits * level).unwrap());
                let index = index & ((1 << bits) - 1);
                entry = self.word(base | index << 3);
                base = entry & !0xfff;
                if entry & 3 == 0 {
                    break;
                }
            }
            entry
        });
        self.cache.borrow_mut().insert(key, entry);
        let mask = (1 << shift) - 1;
        (entry & 3 != 0).then_some((entry & !3 & !mask | at & mask, entry & 3))
    }
}

impl Ioda for &'static Hardware {
    fn set_window(
        &self,
        unit: UnitId,
        pe: PeNumber,
        half: Half,
        tve: Tve,
    ) -> Result<(), BridgeError> {
        self.call()?;
        let half = u8::from(half == Half::High);
        self.windows
            .borrow_mut()
            .insert((unit, pe, half), tve.bits());
        Ok(())
    }

    fn kill(&self, unit: UnitId, pe: PeNumber) -> Result<(), BridgeError> {
        self.call()?;
        self.kills.set(self.kills.get() + 1);
        if !self.deaf.get() {
            self.cache
                .borrow_mut()
                .retain(|(u, p, _), _| (*u, *p) != (unit, pe));
        }
        Ok(())
    }
}

type Under = IodaBackend<&'static Hardware, &'static FakeMemory, &'static FakeFrames<'static>>;

struct Rig {
    backend: Under,
    hardware: &'static Hardware,
    frames: &'static FakeFrames<'static>,
}

fn bridge(page: PageSize) -> Bridge {
    Bridge {
        pes: 8,
        pages: PageSizes::new(&[
            PageSize::SIZE_4K,
            PageSize::SIZE_64K,
            PageSize::SIZE_2M,
            PageSize::SIZE_1G,
        ]),
        default_page: page,
        default_bytes: 1 << 31,
        entries: 28,
    }
}

fn leak<T>(value: T) -> &'static T {
    alloc::boxed::Box::leak(alloc::boxed::Box::new(value))
}

fn endpoint(pe: u32) -> Endpoint {
    Endpoint {
        unit: ONE,
        source: pe,
    }
}

impl Rig {
    fn new() -> Self {
        Self::with(PageSize::SIZE_4K)
    }

    fn with(page: PageSize) -> Self {
        let memory = leak(FakeMemory::new(Pa::new(TABLES).unwrap(), TABLES_BYTES));
        let hardware = leak(Hardware::new(memory));
        let frames = leak(FakeFrames::new(memory));
        let units = vec![bridge(page), bridge(page)];
        let backend = IodaBackend::new(hardware, units, memory, frames).unwrap();
        Self {
            backend,
            hardware,
            frames,
        }
    }

    fn table(&mut self) -> TableId {
        let options = TableOptions {
            nest_parent: false,
            dirty: false,
        };
        self.backend.create_table(endpoint(1), options).unwrap()
    }

    fn bind(&mut self, pe: u32, table: TableId) -> Result<(), BackendError> {
        self.backend.install(endpoint(pe), &Binding::Table(table))
    }

    fn dma(&self, pe: u16, at: u64) -> Option<(u64, u64)> {
        self.hardware.dma(ONE, PeNumber::new(pe).unwrap(), at)
    }
}

impl Subject for Rig {
    type Backend = Under;

    fn backend(&mut self) -> &mut Under {
        &mut self.backend
    }

    fn endpoints(&self) -> [Endpoint; 2] {
        [endpoint(1), endpoint(2)]
    }

    fn reach(&mut self, endpoint: Endpoint, at: Iova) -> Option<(Pa, Permissions)> {
        let pe = PeNumber::new(u16::try_from(endpoint.source).unwrap()).unwrap();
        let (pa, rights) = self.hardware.dma(endpoint.unit, pe, at.bits())?;
        Some((Pa::new(pa).unwrap(), Tce::from_bits(rights).permissions()?))
    }

    fn fail_allocations_after(&mut self, allocations: Option<u64>) {
        let nth = allocations.map(|n| usize::try_from(n).unwrap());
        self.frames.fail_from(nth);
    }

    fn fail_windows_after(&mut self, calls: Option<u64>) -> bool {
        match calls {
            Some(calls) => self.hardware.fail_after(calls, 1),
            None => self.hardware.heal(),
        }
        true
    }

    fn invariants(&mut self) {
        assert!(self.backend.is_sure());
    }
}

fn run(at: u64, pages: u64, pa: u64) -> Run {
    Run {
        iova: Iova::truncated(at),
        pa: Pa::new(pa).unwrap(),
        bytes: pages << 12,
        permissions: Permissions::ReadWrite,
        memory: MemoryType::Normal,
        leaves: PageSizes::new(&[PageSize::SIZE_4K]),
    }
}

fn span(run: &Run) -> Span<Iova> {
    Span::from_len(run.iova, run.bytes).unwrap()
}

#[test]
fn it_conforms() {
    conformance::check(Rig::new);
}

#[test]
fn it_conforms_with_larger_pages() {
    conformance::check(|| Rig::with(PageSize::SIZE_64K));
}

#[test]
fn a_bridge_that_does_not_forget_is_noticed() {
    let deaf = || {
        let rig = Rig::new();
        rig.hardware.deaf.set(true);
        rig
    };
    let cases: Vec<&str> = conformance::names::<Rig>().collect();
    let noticed = cases
        .iter()
        .filter(|name| std::panic::catch_unwind(|| conformance::check_one(name, deaf)).is_err());
    assert!(noticed.count() > 5);
}

#[test]
fn what_firmware_left_open_is_closed_first() {
    let memory = leak(FakeMemory::new(Pa::new(TABLES).unwrap(), TABLES_BYTES));
    let hardware = leak(Hardware::new(memory));
    let pe = PeNumber::new(1).unwrap();
    assert_eq!(hardware.dma(ONE, pe, 1 << 59 | 0x5000), Some((0x5000, 3)));
    let frames = leak(FakeFrames::new(memory));
    let units = || vec![bridge(PageSize::SIZE_4K)];
    hardware.fail_after(3, 1);
    assert_eq!(
        IodaBackend::new(hardware, units(), memory, frames).unwrap_err(),
        Unclosed::Bridge {
            unit: ONE,
            pe,
            error: BridgeError(-6)
        }
    );
    hardware.heal();
    let _backend = IodaBackend::new(hardware, units(), memory, frames).unwrap();
    assert_eq!(hardware.dma(ONE, pe, 1 << 59 | 0x5000), None);
}

#[test]
fn every_table_is_given_back() {
    let mut rig = Rig::new();
    let table = rig.table();
    rig.bind(1, table).unwrap();
    let window = rig
        .backend
        .create_window(table, PageSize::SIZE_4K, 1 << 40)
        .unwrap();
    for n in 0..20 {
        let there = run(window.span.start().bits() + (n << 35), 3, 1 << 40);
        rig.backend.map(table, &there).unwrap();
    }
    assert!(rig.frames.live_blocks() > 20);
    rig.backend.install(endpoint(1), &Binding::Abort).unwrap();
    rig.backend.destroy_table(table);
    assert_eq!(rig.frames.live_blocks(), 0);
}

#[test]
fn nothing_of_a_table_is_visible_before_its_page_is_zeroed_and_linked() {
    // Five levels' worth of addresses, each page found at its own place and nowhere else.
    let mut rig = Rig::new();
    let table = rig.table();
    rig.bind(1, table).unwrap();
    let window = rig
        .backend
        .create_window(table, PageSize::SIZE_4K, 1 << 40)
        .unwrap();
    let base = window.span.start().bits();
    let mut pages = BTreeSet::new();
    for bit in 12..40 {
        let at = base | 1 << bit;
        rig.backend
            .map(table, &run(at, 1, (bit + 1) << 40))
            .unwrap();
        pages.insert(at);
        for bit in 12..40 {
            let at = base | 1 << bit;
            let expected = pages.contains(&at).then_some(((bit + 1) << 40 | 5, 3));
            assert_eq!(rig.dma(1, at | 5), expected, "{at:#x}");
        }
    }
}

#[test]
fn a_table_is_for_one_bridge() {
    let memory = leak(FakeMemory::new(Pa::new(TABLES).unwrap(), TABLES_BYTES));
    let hardware = leak(Hardware::new(memory));
    let frames = leak(FakeFrames::new(memory));
    let plain = Bridge {
        pages: PageSizes::new(&[PageSize::SIZE_4K]),
        ..bridge(PageSize::SIZE_4K)
    };
    let units = vec![bridge(PageSize::SIZE_64K), plain];
    let mut backend = IodaBackend::new(hardware, units, memory, frames).unwrap();
    let options = TableOptions {
        nest_parent: false,
        dirty: false,
    };
    let table = backend.create_table(endpoint(1), options).unwrap();
    // The other one does not even have pages of that size.
    let other = Endpoint {
        unit: UnitId::new(1),
        source: 1,
    };
    let refused = backend.install(other, &Binding::Table(table));
    assert_eq!(refused, Err(BackendError::Incompatible));
    backend
        .install(endpoint(1), &Binding::Table(table))
        .unwrap();
}

#[test]
fn the_largest_window_of_each_page_size_can_be_used_whole() {
    for page in [
        PageSize::SIZE_4K,
        PageSize::SIZE_64K,
        PageSize::SIZE_2M,
        PageSize::SIZE_1G,
    ] {
        let mut rig = Rig::new();
        let table = rig.table();
        rig.bind(1, table).unwrap();
        for half in Half::BOTH {
            if half == Half::High {
                rig.backend.remove_window(table, Iova::ZERO).unwrap();
            }
            let limits = rig.backend.window_limits(table);
            let mut sizes = (page.shift()..=59).rev().map(|shift| 1_u64 << shift);
            let window = sizes.find_map(|bytes| {
                let made = rig.backend.create_window(table, page, bytes);
                if let Err(error) = made {
                    assert_eq!(error, BackendError::BadWindow, "{page} {bytes:#x}");
                }
                made.ok()
            });
            let span = window.unwrap().span;
            let bytes = span.len().unwrap();
            assert!(bytes <= limits.largest, "{page} {bytes:#x}");
            if page == PageSize::SIZE_1G {
                assert_eq!(bytes, limits.largest, "the largest is to be had");
            }
            for at in [span.start().bits(), span.last().bits() - page.mask()] {
                let there = Run {
                    iova: Iova::truncated(at),
                    pa: Pa::new(5 << 40).unwrap(),
                    bytes: page.bytes(),
                    leaves: PageSizes::new(&[page]),
                    ..run(0, 1, 0)
                };
                rig.backend.map(table, &there).unwrap();
                let found = rig.dma(1, at + 7);
                assert_eq!(found, Some((5 << 40 | 7, 3)), "{page} {at:#x}");
            }
        }
    }
}

#[test]
fn two_pes_may_use_one_table_and_both_forget() {
    let mut rig = Rig::new();
    let table = rig.table();
    rig.bind(1, table).unwrap();
    rig.bind(2, table).unwrap();
    let there = run(0x4000, 2, 1 << 40);
    rig.backend.map(table, &there).unwrap();
    assert!(rig.dma(1, 0x4000).is_some() && rig.dma(2, 0x5000).is_some());
    rig.backend.unmap(table, span(&there));
    assert!(rig.dma(2, 0x5000).is_some(), "still cached");
    rig.backend.invalidate(table, span(&there)).unwrap();
    assert_eq!(rig.dma(1, 0x4000), None);
    assert_eq!(rig.dma(2, 0x5000), None);
}

#[test]
fn every_change_is_followed_by_a_kill_and_nothing_else_is() {
    let mut rig = Rig::new();
    let table = rig.table();
    let kills = |rig: &Rig| rig.hardware.kills.get();
    let before = kills(&rig);
    rig.backend.map(table, &run(0, 4, 1 << 40)).unwrap();
    assert_eq!(kills(&rig), before, "nobody is bound");
    rig.bind(1, table).unwrap();
    assert_eq!(kills(&rig), before + 1);
    rig.backend.map(table, &run(0x10_0000, 4, 1 << 40)).unwrap();
    assert_eq!(kills(&rig), before + 2);
    rig.backend.exchange(table, &run(0, 1, 2 << 40)).unwrap();
    assert_eq!(kills(&rig), before + 3);
    rig.backend.unmap(table, span(&run(0, 4, 0)));
    rig.backend.invalidate(table, span(&run(0, 4, 0))).unwrap();
    rig.backend.invalidate(table, span(&run(0, 4, 0))).unwrap();
    assert_eq!(
        kills(&rig),
        before + 4,
        "nothing has changed since the first"
    );
}

#[test]
fn a_bridge_that_fails_at_any_call_leaves_the_old_state() {
    for failing in 0..4 {
        let mut rig = Rig::new();
        let (old, new) = (rig.table(), rig.table());
        rig.backend.map(old, &run(0, 2, 1 << 40)).unwrap();
        rig.backend.map(new, &run(0, 2, 2 << 40)).unwrap();
        rig.bind(1, old).unwrap();
        let shows = |rig: &Rig| rig.dma(1, 0).map(|(pa, _)| pa >> 40);
        rig.hardware.fail_after(failing, 1);
        let result = rig.bind(1, new);
        rig.hardware.heal();
        let expected = if result.is_ok() { 2 } else { 1 };
        assert_eq!(failing < 3, result.is_err());
        assert_eq!(shows(&rig), Some(expected), "{failing}");
        assert!(rig.backend.is_sure());
        // A window that cannot be given or taken is not.
        let windows = rig.backend.windows(old).len();
        rig.bind(1, old).unwrap();
        rig.hardware.fail_after(failing, 1);
        let made = rig.backend.create_window(old, PageSize::SIZE_4K, 1 << 32);
        rig.hardware.heal();
        let now = rig.backend.windows(old).len();
        assert_eq!(now - windows, usize::from(made.is_ok()), "{failing}");
        assert_eq!(shows(&rig), Some(1));
        // And a mapping that is not confirmed is not there.
        rig.hardware.fail_after(0, 1);
        let late = run(0x8000, 1, 3 << 40);
        assert_eq!(rig.backend.map(old, &late), Err(BackendError::Timeout));
        rig.hardware.heal();
        assert_eq!(rig.dma(1, 0x8000), None);
    }
}

#[test]
fn a_bridge_that_never_answers_is_known() {
    let mut rig = Rig::new();
    let table = rig.table();
    rig.bind(1, table).unwrap();
    let there = run(0, 1, 1 << 40);
    rig.backend.map(table, &there).unwrap();
    assert!(rig.dma(1, 0).is_some());
    rig.hardware.fail_after(0, u64::MAX);
    rig.backend.unmap(table, span(&there));
    let waiting = rig.backend.invalidate(table, span(&there));
    assert_eq!(waiting, Err(BackendError::Timeout));
    let aborted = rig.backend.install(endpoint(1), &Binding::Abort);
    assert_eq!(aborted, Err(BackendError::Timeout));
    assert!(!rig.backend.is_sure());
    rig.hardware.heal();
    assert_eq!(rig.backend.invalidate(table, span(&there)), Ok(()));
    assert_eq!(rig.dma(1, 0), None);
}

#[test]
fn no_bypass_is_to_be_had() {
    let mut rig = Rig::new();
    let refused = rig.backend.install(endpoint(1), &Binding::Identity);
    assert_eq!(refused, Err(BackendError::Unsupported));
    for at in [0, 0x1000, 1 << 59, 1 << 59 | 0x1000, 1 << 60] {
        assert_eq!(rig.dma(1, at), None);
    }
}

/// What a table shows, page by page of 4 KiB or more: by bus address, how large and where.
type Shown = BTreeMap<u64, (u64, u64)>;

/// A step: what, of which table, for which PE, where, how many pages, and when a call fails.
type Step = (u8, usize, u16, u64, u64, Option<u64>);

fn do_step(
    rig: &mut Rig,
    tables: &[TableId; 2],
    shown: &mut [Shown; 2],
    step: Step,
) -> [Option<Option<usize>>; 2] {
    let (what, which, pe, at, pages, failing) = step;
    let table = tables[which];
    let windows = rig.backend.windows(table).to_vec();
    let window = usize::try_from(at).unwrap().checked_rem(windows.len());
    let window = window.map(|place| windows[place]);
    let mut bound = [None; 2];
    if let Some(failing) = failing {
        rig.hardware.fail_after(failing, 1);
    }
    match (what, window) {
        (0..=3, Some(window)) => {
            let page = window.pages.smallest();
            // At either end of the window, and in the middle.
            let of_window = window.span.len().unwrap() / page;
            let pages = pages.min(of_window);
            let first = (of_window - pages) * (at % 5) / 4;
            let start = window.span.start().bits() + first * page;
            let end = start + pages * page;
            let there = Run {
                iova: Iova::truncated(start),
                pa: Pa::new((at + 1) << 40).unwrap(),
                bytes: pages * page,
                leaves: window.pages,
                ..run(0, 1, 0)
            };
            let taken = shown[which].range(..end).next_back();
            if taken.is_none_or(|(other, (bytes, _))| other + bytes <= start)
                && rig.backend.map(table, &there).is_ok()
            {
                let all = (0..pages).map(|n| n * page);
                shown[which].extend(all.map(|n| (start + n, (page, there.pa.bits() + n))));
            }
        }
        (4, _) => {
            let some = usize::try_from(at).unwrap().checked_rem(shown[which].len());
            let some = some.and_then(|n| shown[which].iter().nth(n));
            if let Some((start, (page, _))) = some.map(|(at, page)| (*at, *page)) {
                let new = Run {
                    iova: Iova::truncated(start),
                    pa: Pa::new((at + 77) << 40).unwrap(),
                    bytes: page,
                    ..run(0, 1, 0)
                };
                if rig.backend.exchange(table, &new).is_ok() {
                    shown[which].insert(start, (page, new.pa.bits()));
                }
            }
        }
        (5, Some(window)) => {
            rig.backend.unmap(table, window.span);
            let waited = rig.backend.invalidate(table, window.span);
            rig.hardware.heal();
            // Whoever waits does so until it is certain.
            if waited.is_err() {
                rig.backend.invalidate(table, window.span).unwrap();
            }
            shown[which].retain(|at, _| !window.span.contains(Iova::truncated(*at)));
        }
        (6, _) => {
            let size = [PageSize::SIZE_4K, PageSize::SIZE_64K, PageSize::SIZE_2M];
            let page = size[usize::try_from(at % 3).unwrap()];
            let _ = rig
                .backend
                .create_window(table, page, page.bytes() << (at % 28));
        }
        (7, Some(window)) => {
            let mut inside = shown[which].keys();
            if !inside.any(|at| window.span.contains(Iova::truncated(*at))) {
                let _ = rig.backend.remove_window(table, window.span.start());
            }
        }
        (8, _) => {
            if shown[which].is_empty() {
                let _ = rig.backend.reset_windows(table);
            }
        }
        (9, _) => {
            let done = rig.bind(pe.into(), table).is_ok();
            bound[usize::from(pe) - 1] = done.then_some(Some(which));
        }
        _ => {
            let done = rig.backend.install(endpoint(pe.into()), &Binding::Abort);
            bound[usize::from(pe) - 1] = done.is_ok().then_some(None);
        }
    }
    rig.hardware.heal();
    bound
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Whatever is done, and whichever call fails on the way: a PE finds what its table shows, to the page,
    /// or the backend says that it is not sure.
    #[test]
    fn a_pe_finds_what_its_table_shows(steps in proptest::collection::vec(
        (0u8..11, 0usize..2, 1u16..3, 0u64..60, prop_oneof![1u64..4, 1u64..1300], proptest::option::of(0u64..6)), 1..40,
    )) {
        let mut rig = Rig::new();
        let tables = [rig.table(), rig.table()];
        let mut shown: [Shown; 2] = Default::default();
        let mut bound = [None; 2];
        for step in steps {
            let now = do_step(&mut rig, &tables, &mut shown, step);
            for (bound, now) in bound.iter_mut().zip(now) {
                *bound = now.unwrap_or(*bound);
            }
            if !rig.backend.is_sure() {
                break;
            }
            let probes = shown.iter().flat_map(|shown| {
                let all = shown.len();
                shown.iter().step_by(1 + all / 64).chain(shown.last_key_value())
            });
            let mut probes: Vec<u64> = probes
                .flat_map(|(at, (page, _))| [*at, at + page - 1, at + page, at.wrapping_sub(1)])
                .collect();
            let ends = tables.iter().flat_map(|table| rig.backend.windows(*table));
            probes.extend(ends.flat_map(|window| {
                [window.span.start(), window.span.last()].map(Iova::bits)
            }));
            for (pe, bound) in (1..).zip(bound) {
                let table: Option<&Shown> = bound.map(|which: usize| &shown[which]);
                let windows = bound.map_or(&[][..], |which| rig.backend.windows(tables[which]));
                for at in &probes {
                    // Far behind a window a bridge finds its beginning again: it has no end in a bridge.
                    let far = windows.iter().any(|window| {
                        let (start, bytes) = (window.span.start().bits(), window.span.len().unwrap());
                        at >> 59 == start >> 59 && at - start >= 2 * bytes
                    });
                    if far {
                        continue;
                    }
                    let page = table.and_then(|shown| shown.range(..=at).next_back());
                    let there = page.filter(|(start, (bytes, _))| at - *start < *bytes);
                    let expected = there.map(|(start, (_, pa))| (pa + (at - start), 3));
                    prop_assert_eq!(rig.dma(pe, *at), expected, "PE {} at {:#x}", pe, at);
                }
            }
        }
        for pe in 1..3 {
            rig.backend.install(endpoint(pe), &Binding::Abort).unwrap();
        }
        let was_sure = rig.backend.is_sure();
        for table in tables {
            rig.backend.destroy_table(table);
        }
        if was_sure {
            prop_assert_eq!(rig.frames.live_blocks(), 0);
        }
    }
}
