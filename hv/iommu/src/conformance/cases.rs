//! The cases.

use alloc::vec::Vec;

use types::{Iova, PageSize, Span};

use super::{Case, Rig, Subject, largest, model, run, span};
use crate::area::Permissions;
use crate::backend::{
    Backend, BackendError, Binding, Endpoint, PageSizes, Run, TableId, TableOptions, UnitId,
};

pub(super) fn all<S: Subject>() -> Vec<Case<S>> {
    let cases: [Case<S>; 22] = [
        ("what does not exist is refused", what_does_not_exist),
        ("windows are ordered and disjoint", windows_are_ordered),
        ("a fresh table shows nothing", fresh_tables),
        ("a mapping is exact", a_mapping_is_exact),
        ("a mapping has the rights it was given", rights),
        ("the last page of every window can be used", the_last_page),
        ("large pages lead where small ones would", large_pages),
        ("what was unmapped is gone", unmapped_is_gone),
        (
            "what was mapped before binding is there after",
            before_binding,
        ),
        ("a mapping that fails leaves nothing", failing_mappings),
        (
            "abort hides everything, and binding shows it again",
            abort_and_back,
        ),
        (
            "a switch shows the new table and nothing of the old",
            switch,
        ),
        ("a refused binding changes nothing", refused_bindings),
        ("endpoints do not see each other's tables", isolation),
        (
            "a new table has nothing of a destroyed one",
            tables_are_reused,
        ),
        ("an entry is exchanged in one step", exchange),
        ("windows come and go", windows_come_and_go),
        ("impossible windows are refused", impossible_windows),
        ("windows are put back", reset),
        (
            "whatever fails while windows are put back, those are there that are said to be",
            reset_that_fails,
        ),
        ("a window belongs to its table", windows_of_two_tables),
        (
            "random steps do what a map of pages does",
            model::random_steps,
        ),
    ];
    Vec::from(cases)
}

fn what_does_not_exist<S: Subject>(rig: &mut Rig<S>) {
    let nobody = UnitId::new(u32::MAX);
    assert_eq!(rig.backend().capabilities(nobody), None);
    let nothing = TableId::new(u32::MAX);
    assert!(rig.backend().windows(nothing).is_empty());
    assert_eq!(rig.backend().window_limits(nothing).available, 0);
    let options = TableOptions {
        nest_parent: false,
        dirty: false,
    };
    let endpoint = Endpoint {
        unit: nobody,
        source: 0,
    };
    let refused = rig.backend().create_table(endpoint, options);
    assert_eq!(refused, Err(BackendError::Unsupported));
    let one = rig.one;
    let caps = rig.backend().capabilities(one.unit).expect("a unit");
    for options in [(true, false), (false, true)] {
        let (nest_parent, dirty) = options;
        let refused = rig
            .backend()
            .create_table(one, TableOptions { nest_parent, dirty });
        let supported = if dirty { caps.dirty } else { caps.nesting };
        match refused {
            Ok(table) => {
                assert!(supported, "{options:?}");
                rig.backend().destroy_table(table);
            }
            Err(error) => assert_eq!((supported, error), (false, BackendError::Unsupported)),
        }
    }
}

fn windows_are_ordered<S: Subject>(rig: &mut Rig<S>) {
    let one = rig.one;
    let table = rig.table(one);
    let windows = rig.windows(table);
    assert!(!windows.is_empty());
    for pair in windows.windows(2) {
        assert!(pair[0].span.last() < pair[1].span.start());
    }
    for window in windows {
        assert_ne!(window.pages, PageSizes::NONE);
        let page = PageSize::from_bytes(window.pages.smallest()).expect("a page size");
        assert!(window.span.is_aligned(page), "{window:?}");
    }
}

fn fresh_tables<S: Subject>(rig: &mut Rig<S>) {
    let (one, other) = (rig.one, rig.other);
    let table = rig.table(one);
    let window = rig.first_window(table);
    let probes = [
        window.span.start().bits(),
        window.span.last().bits(),
        window.span.start().bits() + window.pages.smallest(),
        u64::MAX,
        1 << 59,
    ];
    for at in probes {
        rig.nothing_at(one, at);
        rig.nothing_at(other, at);
    }
    rig.bind(one, table);
    for at in probes {
        rig.nothing_at(one, at);
        rig.nothing_at(other, at);
    }
}

fn a_mapping_is_exact<S: Subject>(rig: &mut Rig<S>) {
    let one = rig.one;
    let table = rig.bound();
    for window in rig.windows(table) {
        // Around the ends of what one call, and one table page, hold.
        for (first, pages) in [
            (1, 1),
            (3, 2),
            (509, 7),
            (511, 1),
            (1, 511),
            (2, 512),
            (5, 1030),
        ] {
            let run = run(&window, first, pages, 1);
            rig.map(table, &run);
            rig.shows(one, &run);
            rig.unmap(table, span(&run));
            rig.hides(one, &run);
        }
    }
}

fn rights<S: Subject>(rig: &mut Rig<S>) {
    let one = rig.one;
    let table = rig.bound();
    let window = rig.first_window(table);
    let kinds = [
        Permissions::Read,
        Permissions::Write,
        Permissions::ReadWrite,
    ];
    for (first, permissions) in (1..).zip(kinds) {
        let run = Run {
            permissions,
            ..run(&window, first * 2, 1, first)
        };
        rig.map(table, &run);
        rig.shows(one, &run);
    }
}

fn the_last_page<S: Subject>(rig: &mut Rig<S>) {
    let one = rig.one;
    let table = rig.bound();
    for window in rig.windows(table) {
        let page = window.pages.smallest();
        let last = Run {
            iova: Iova::truncated(window.span.last().bits() - (page - 1)),
            ..run(&window, 0, 1, 3)
        };
        rig.map(table, &last);
        rig.shows(one, &last);
        rig.unmap(table, span(&last));
        rig.hides(one, &last);
    }
}

fn large_pages<S: Subject>(rig: &mut Rig<S>) {
    let one = rig.one;
    let table = rig.bound();
    let window = rig.first_window(table);
    let page = largest(window.pages).bytes().min(16 << 20);
    let start = window.span.start().bits().next_multiple_of(page) + 4 * page;
    let small = window.pages.smallest();
    // A small page, a large one, a small one, in a run.
    let run = Run {
        iova: Iova::truncated(start - small),
        pa: types::Pa::truncated(super::MEMORY + page - small),
        bytes: page + 2 * small,
        ..run(&window, 0, 1, 0)
    };
    rig.map(table, &run);
    let ends = [
        0,
        small - 1,
        small,
        small + page / 2,
        small + page - 1,
        page + small,
    ];
    for into in ends {
        assert_eq!(
            rig.reach(one, run.iova.bits() + into),
            Some((run.pa.bits() + into, run.permissions)),
            "{into:#x}"
        );
    }
    rig.nothing_at(one, run.iova.bits() - 1);
    rig.nothing_at(one, run.iova.bits() + run.bytes);
    rig.unmap(table, span(&run));
    for into in ends {
        rig.nothing_at(one, run.iova.bits() + into);
    }
}

fn unmapped_is_gone<S: Subject>(rig: &mut Rig<S>) {
    let one = rig.one;
    let table = rig.bound();
    let window = rig.first_window(table);
    let runs = [
        run(&window, 4, 4, 100),
        run(&window, 8, 600, 200),
        run(&window, 608, 1, 900),
    ];
    for run in &runs {
        rig.map(table, run);
    }
    // The middle one goes; its neighbours stay to the last byte.
    rig.unmap(table, span(&runs[1]));
    rig.hides(one, &runs[1]);
    rig.shows_inside(one, &runs[0]);
    rig.shows_inside(one, &runs[2]);
    rig.map(table, &runs[1]);
    rig.shows_inside(one, &runs[1]);
    // One call may unmap several areas, and what is between them.
    let all = Span::new(runs[0].iova, span(&runs[2]).last()).expect("in order");
    rig.unmap(table, all);
    for run in &runs {
        rig.hides(one, run);
    }
}

fn before_binding<S: Subject>(rig: &mut Rig<S>) {
    let one = rig.one;
    let table = rig.table(one);
    let window = rig.first_window(table);
    let early = run(&window, 10, 520, 7);
    rig.map(table, &early);
    rig.hides(one, &early);
    rig.bind(one, table);
    rig.shows(one, &early);
    let late = run(&window, 4, 1, 9);
    rig.map(table, &late);
    rig.shows(one, &late);
    rig.unmap(table, span(&early));
    rig.hides(one, &early);
}

fn failing_mappings<S: Subject>(rig: &mut Rig<S>) {
    let one = rig.one;
    let table = rig.bound();
    let window = rig.first_window(table);
    let neighbour = run(&window, 0, 2, 50);
    rig.map(table, &neighbour);
    // Long enough to need several table pages, wherever entries are kept.
    let long = run(&window, 2, 2050, 300);
    let mut failures = 0;
    loop {
        rig.subject.fail_allocations_after(Some(failures));
        let result = rig.try_map(table, &long);
        rig.subject.fail_allocations_after(None);
        if result.is_ok() {
            break;
        }
        assert_eq!(result, Err(BackendError::OutOfMemory));
        rig.hides(one, &long);
        rig.shows(one, &neighbour);
        // Each of the first, then some.
        failures += 1 + failures / 8;
        assert!(failures < 100_000, "it never succeeds");
    }
    assert!(failures > 0, "nothing was made to fail");
    rig.shows_inside(one, &long);
    rig.shows_inside(one, &neighbour);
}

fn abort_and_back<S: Subject>(rig: &mut Rig<S>) {
    let one = rig.one;
    let table = rig.bound();
    let window = rig.first_window(table);
    let run = run(&window, 500, 30, 1);
    rig.map(table, &run);
    for _ in 0..3 {
        rig.shows(one, &run);
        rig.abort(one);
        rig.hides(one, &run);
        rig.abort(one);
        rig.hides(one, &run);
        // Going back to what was live just before needs no memory.
        rig.subject.fail_allocations_after(Some(0));
        rig.bind(one, table);
        rig.subject.fail_allocations_after(None);
        rig.bind(one, table);
    }
    rig.shows(one, &run);
    rig.subject.fail_allocations_after(Some(0));
    rig.abort(one);
    rig.subject.fail_allocations_after(None);
    rig.hides(one, &run);
    // What is unmapped meanwhile does not come back.
    rig.unmap(table, span(&run));
    rig.bind(one, table);
    rig.hides(one, &run);
}

fn switch<S: Subject>(rig: &mut Rig<S>) {
    let one = rig.one;
    let old = rig.bound();
    let window = rig.first_window(old);
    let both = run(&window, 0, 4, 0);
    let only_old = run(&window, 600, 10, 1000);
    rig.map(old, &both);
    rig.map(old, &only_old);
    let new = rig.table(one);
    let moved = run(&window, 0, 4, 3000);
    let only_new = run(&window, 1200, 700, 2000);
    rig.map(new, &moved);
    rig.map(new, &only_new);
    rig.shows(one, &both);
    rig.bind(one, new);
    rig.shows(one, &moved);
    rig.shows(one, &only_new);
    rig.hides(one, &only_old);
    rig.bind(one, old);
    rig.shows(one, &both);
    rig.shows(one, &only_old);
    rig.hides(one, &only_new);
    // Mapping in a table that nobody is bound to reaches nobody.
    let hidden = run(&window, 40, 2, 5000);
    rig.map(new, &hidden);
    rig.hides(one, &hidden);
    rig.backend().destroy_table(new);
    rig.shows(one, &both);
}

fn refused_bindings<S: Subject>(rig: &mut Rig<S>) {
    let (one, other) = (rig.one, rig.other);
    let table = rig.bound();
    let window = rig.first_window(table);
    let run = run(&window, 1, 3, 1);
    rig.map(table, &run);
    let refused = rig
        .backend()
        .install(one, &Binding::Table(TableId::new(u32::MAX)));
    assert!(refused.is_err());
    rig.shows(one, &run);
    if one.unit != other.unit {
        let foreign = rig.table(other);
        let refused = rig.backend().install(one, &Binding::Table(foreign));
        // An SMMU's tables suit every SMMU; a host bridge's do not.
        if refused.is_ok() {
            rig.bind(one, table);
        } else {
            assert_eq!(refused, Err(BackendError::Incompatible));
        }
        rig.shows(one, &run);
        rig.nothing_at(other, run.iova.bits());
    }
}

fn isolation<S: Subject>(rig: &mut Rig<S>) {
    let (one, other) = (rig.one, rig.other);
    let mine = rig.bound();
    let theirs = rig.table(other);
    rig.bind(other, theirs);
    let window = rig.first_window(mine);
    let here = run(&window, 2, 8, 0);
    let there = run(&window, 6, 8, 4000);
    rig.map(mine, &here);
    rig.nothing_at(other, here.iova.bits());
    rig.map(theirs, &there);
    rig.shows(one, &here);
    rig.shows(other, &there);
    rig.unmap(mine, span(&here));
    rig.hides(one, &here);
    rig.shows(other, &there);
    rig.abort(other);
    rig.hides(other, &there);
    rig.map(mine, &here);
    rig.shows(one, &here);
    rig.hides(other, &there);
}

fn tables_are_reused<S: Subject>(rig: &mut Rig<S>) {
    let one = rig.one;
    let mut last: Option<Run> = None;
    for round in 0..40 {
        let table = rig.table(one);
        let window = rig.first_window(table);
        if round % 2 == 0 {
            rig.bind(one, table);
        }
        if let Some(last) = &last {
            rig.hides(one, last);
        }
        let run = run(&window, round * 13, 20 + round * 3, round * 1000);
        rig.map(table, &run);
        rig.bind(one, table);
        rig.shows(one, &run);
        rig.abort(one);
        rig.unmap(table, span(&run));
        rig.backend().destroy_table(table);
        last = Some(run);
    }
    let table = rig.table(one);
    let window = rig.first_window(table);
    let kept = run(&window, 0, 300, 0);
    // Destroyed with everything mapped, as a domain is.
    rig.map(table, &kept);
    rig.bind(one, table);
    rig.abort(one);
    rig.backend().destroy_table(table);
    let table = rig.bound();
    rig.hides(one, &kept);
    rig.abort(one);
    rig.backend().destroy_table(table);
}

fn exchange<S: Subject>(rig: &mut Rig<S>) {
    let one = rig.one;
    let table = rig.bound();
    let window = rig.first_window(table);
    let old = run(&window, 100, 3, 0);
    rig.map(table, &old);
    let middle = Run {
        permissions: Permissions::Read,
        ..run(&window, 101, 1, 77)
    };
    match rig.backend().exchange(table, &middle) {
        Err(error) => {
            assert_eq!(error, BackendError::Unsupported);
            rig.shows(one, &old);
        }
        Ok(()) => {
            rig.shows_inside(one, &middle);
            rig.shows_inside(one, &run(&window, 100, 1, 0));
            rig.shows_inside(one, &run(&window, 102, 1, 2));
            let hole = run(&window, 200, 1, 0);
            assert!(rig.backend().exchange(table, &hole).is_err(), "a hole");
            rig.hides(one, &hole);
            let two = run(&window, 101, 2, 0);
            assert!(rig.backend().exchange(table, &two).is_err(), "two entries");
            rig.shows_inside(one, &middle);
            rig.unmap(table, span(&old));
            rig.hides(one, &old);
        }
    }
}

fn dynamic<S: Subject>(rig: &mut Rig<S>) -> bool {
    let unit = rig.one.unit;
    let caps = rig.backend().capabilities(unit).expect("a unit");
    if caps.dynamic_windows {
        return true;
    }
    let table = rig.bound();
    assert_eq!(rig.backend().window_limits(table).available, 0);
    let page = PageSize::SIZE_64K;
    let windows = rig.windows(table);
    let refused = rig.backend().create_window(table, page, 1 << 32);
    assert!(matches!(
        refused,
        Err(BackendError::NoWindow | BackendError::Unsupported)
    ));
    assert!(
        rig.backend()
            .remove_window(table, Iova::truncated(1 << 59))
            .is_err()
    );
    assert_eq!(rig.windows(table), windows);
    false
}

fn windows_come_and_go<S: Subject>(rig: &mut Rig<S>) {
    if !dynamic(rig) {
        return;
    }
    let one = rig.one;
    let table = rig.bound();
    let before = rig.windows(table);
    let limits = rig.backend().window_limits(table);
    assert!(limits.available > 0);
    for shift in 12..=24 {
        let Ok(page) = PageSize::from_shift(shift) else {
            continue;
        };
        if !limits.pages.contains(page) {
            continue;
        }
        let bytes = page.bytes() << 12;
        let made = rig.backend().create_window(table, page, bytes);
        let window = made.expect("a window");
        assert_eq!(window.pages, PageSizes::new(&[page]));
        assert_eq!(window.span.len(), Some(bytes));
        let now = rig.windows(table);
        assert!(now.contains(&window) && now.len() == before.len() + 1);
        assert_eq!(
            rig.backend().window_limits(table).available,
            limits.available - 1
        );
        let there = run(&window, 0, 520, 0);
        let last = run(&window, 4095, 1, 7);
        let default = run(&before[0], 3, 2, 9);
        rig.map(table, &there);
        rig.map(table, &last);
        rig.map(table, &default);
        rig.shows(one, &there);
        rig.shows(one, &last);
        rig.shows(one, &default);
        for run in [&there, &last] {
            rig.unmap(table, span(run));
            rig.hides(one, run);
        }
        let base = window.span.start();
        assert_eq!(rig.backend().remove_window(table, base), Ok(()));
        assert_eq!(rig.windows(table), before);
        assert_eq!(
            rig.backend().remove_window(table, base),
            Err(BackendError::NoWindow)
        );
        rig.hides(one, &there);
        rig.shows(one, &default);
        rig.unmap(table, span(&default));
    }
}

fn impossible_windows<S: Subject>(rig: &mut Rig<S>) {
    if !dynamic(rig) {
        return;
    }
    let table = rig.bound();
    let before = rig.windows(table);
    let page = PageSize::SIZE_64K;
    for (page, bytes) in [
        (page, 0),
        (page, 4096),
        (page, 3 << 20),
        (page, 1 << 63),
        (PageSize::SIZE_512G, 1 << 45),
        (PageSize::SIZE_4K, 1 << 50),
    ] {
        let refused = rig.backend().create_window(table, page, bytes);
        assert_eq!(refused, Err(BackendError::BadWindow), "{page} {bytes:#x}");
        assert_eq!(rig.windows(table), before);
    }
    let mut more = 0;
    while rig.backend().create_window(table, page, 1 << 32).is_ok() {
        more += 1;
        assert!(more < 16, "windows without end");
    }
    assert!(more > 0);
    let refused = rig.backend().create_window(table, page, 1 << 32);
    assert_eq!(refused, Err(BackendError::NoWindow));
    assert_eq!(rig.windows(table).len(), before.len() + more);
    assert_eq!(rig.backend().window_limits(table).available, 0);
}

fn reset<S: Subject>(rig: &mut Rig<S>) {
    if !dynamic(rig) {
        return;
    }
    let one = rig.one;
    let table = rig.bound();
    let before = rig.windows(table);
    let page = PageSize::SIZE_64K;
    let made = rig.backend().create_window(table, page, 1 << 30);
    made.expect("a window");
    let base = before[0].span.start();
    assert_eq!(rig.backend().remove_window(table, base), Ok(()));
    rig.nothing_at(one, base.bits());
    assert_eq!(rig.backend().reset_windows(table), Ok(()));
    assert_eq!(rig.windows(table), before);
    let run = run(&before[0], 0, 3, 0);
    rig.map(table, &run);
    rig.shows(one, &run);
    rig.unmap(table, span(&run));
    assert_eq!(rig.backend().reset_windows(table), Ok(()));
    assert_eq!(rig.windows(table), before);
}

fn reset_that_fails<S: Subject>(rig: &mut Rig<S>) {
    if !dynamic(rig) || !rig.subject.fail_windows_after(None) {
        return;
    }
    let one = rig.one;
    let table = rig.bound();
    let before = rig.windows(table);
    let mut failures = 0;
    loop {
        let made = rig
            .backend()
            .create_window(table, PageSize::SIZE_64K, 1 << 32);
        let made = made.expect("a window");
        let base = before[0].span.start();
        assert_eq!(rig.backend().remove_window(table, base), Ok(()));
        rig.subject.fail_windows_after(Some(failures));
        let result = rig.backend().reset_windows(table);
        rig.subject.fail_windows_after(None);
        let now = rig.windows(table);
        for window in before.iter().chain([&made]) {
            let probe = run(window, 1, 2, 5);
            if now.contains(window) {
                rig.map(table, &probe);
                rig.shows(one, &probe);
                rig.unmap(table, span(&probe));
            }
            rig.hides(one, &probe);
        }
        if result.is_ok() {
            assert_eq!(now, before);
            break;
        }
        // Once the hardware works again, all is as at first.
        assert_eq!(rig.backend().reset_windows(table), Ok(()));
        assert_eq!(rig.windows(table), before);
        failures += 1;
        assert!(failures < 100, "it never succeeds");
    }
    assert!(failures > 0, "nothing was made to fail");
}

fn windows_of_two_tables<S: Subject>(rig: &mut Rig<S>) {
    if !dynamic(rig) {
        return;
    }
    let one = rig.one;
    let wide = rig.bound();
    let made = rig
        .backend()
        .create_window(wide, PageSize::SIZE_64K, 1 << 32);
    let window = made.expect("a window");
    let there = run(&window, 5, 6, 0);
    rig.map(wide, &there);
    let plain = rig.table(one);
    assert!(!rig.windows(plain).contains(&window));
    let first = rig.first_window(plain);
    let here = run(&first, 5, 6, 50);
    rig.map(plain, &here);
    // Directly or, where that cannot be, over abort.
    match rig.backend().install(one, &Binding::Table(plain)) {
        Ok(()) => {}
        Err(error) => {
            assert_eq!(error, BackendError::Incompatible);
            rig.shows(one, &there);
            rig.nothing_at(one, here.iova.bits());
            rig.abort(one);
            rig.bind(one, plain);
        }
    }
    rig.shows(one, &here);
    rig.hides(one, &there);
    rig.abort(one);
    rig.bind(one, wide);
    rig.shows(one, &there);
    rig.nothing_at(one, here.iova.bits());
    rig.backend().destroy_table(plain);
    rig.shows(one, &there);
    rig.abort(one);
    rig.backend().destroy_table(wide);
    let fresh = rig.bound();
    assert!(!rig.windows(fresh).contains(&window));
    rig.hides(one, &there);
}
