//! Random steps against a map of pages.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use types::{Iova, Span};

use super::{Rig, Subject, run};
use crate::area::Permissions;
use crate::backend::{Backend, Run, TableId};

/// The same numbers every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % bound
    }
}

struct Modelled {
    id: TableId,
    /// Areas by first page: how many pages, from which page of memory, for what.
    areas: BTreeMap<u64, (u64, u64, Permissions)>,
}

impl Modelled {
    fn is_free(&self, first: u64, pages: u64) -> bool {
        let before = self.areas.range(..first + pages).next_back();
        before.is_none_or(|(at, (pages, ..))| at + pages <= first)
    }

    fn at(&self, page: u64) -> Option<(u64, Permissions)> {
        let (at, (pages, memory, permissions)) = self.areas.range(..=page).next_back()?;
        (page - at < *pages).then_some((memory + (page - at), *permissions))
    }
}

/// Pages of the window that are used.
const PAGES: u64 = 1600;

pub(super) fn random_steps<S: Subject>(rig: &mut Rig<S>) {
    let one = rig.one;
    let mut numbers = Numbers(0x5eed_1234_5678_9abc);
    let mut tables: Vec<Modelled> = Vec::new();
    for _ in 0..2 {
        let id = rig.table(one);
        tables.push(Modelled {
            id,
            areas: BTreeMap::new(),
        });
    }
    let window = rig.first_window(tables[0].id);
    let page = window.pages.smallest();
    let start = window.span.start().bits();
    let mut bound: Option<usize> = None;
    for step in 0..600 {
        let which = usize::from(numbers.below(4) == 0);
        let table = &mut tables[which];
        match numbers.below(10) {
            0..=4 => {
                let pages = match numbers.below(4) {
                    0 => 1 + numbers.below(600),
                    _ => 1 + numbers.below(6),
                };
                let first = numbers.below(PAGES - pages);
                let memory = numbers.below(1 << 20);
                let permissions = match numbers.below(3) {
                    0 => Permissions::Read,
                    1 => Permissions::Write,
                    _ => Permissions::ReadWrite,
                };
                if !table.is_free(first, pages) {
                    continue;
                }
                let run = Run {
                    permissions,
                    ..run(&window, first, pages, memory)
                };
                let id = table.id;
                table.areas.insert(first, (pages, memory, permissions));
                rig.map(id, &run);
            }
            5..=7 => {
                let from = numbers.below(PAGES);
                let Some((at, (pages, ..))) = table.areas.range(from..).next() else {
                    continue;
                };
                let (at, pages) = (*at, *pages);
                table.areas.remove(&at);
                let id = table.id;
                let gone = Span::from_len(Iova::truncated(start + at * page), pages * page);
                rig.unmap(id, gone.expect("an area"));
            }
            8 => {
                let id = table.id;
                rig.bind(one, id);
                bound = Some(which);
            }
            _ => {
                rig.abort(one);
                bound = None;
            }
        }
        // Everything now and then, a sample after each step.
        let every = if step % 50 == 49 { 1 } else { 37 };
        let mut at = numbers.below(every);
        while at < PAGES {
            let expected = bound.and_then(|bound| tables[bound].at(at));
            let into = numbers.below(page);
            let expected = expected
                .map(|(memory, permissions)| (super::MEMORY + memory * page + into, permissions));
            let found = rig.reach(one, start + at * page + into);
            assert_eq!(found, expected, "page {at} after step {step}");
            at += every;
        }
    }
    rig.abort(one);
    for table in tables {
        rig.backend().destroy_table(table.id);
    }
}
