//! Random changes against a plain map of 4 KiB pages, with a walker that looks at every write.

use std::collections::BTreeMap;

use crate::walker::Machine;
use pagetable::{Error, Geometry, OutputSize, PageTable, Stage2, Stage2Attributes, Stage2Memory};
use proptest::prelude::*;
use types::{Ipa, Pa, PageSize, Span};

const BASE: u64 = (1 << 30) - (4 << 20);
const PAGES: u64 = 2048;

#[derive(Clone, Debug)]
enum Op {
    Map(u64, u64, u64, u8),
    Unmap(u64, u64),
    Protect(u64, u64, u8),
}

fn attributes(kind: u8) -> Stage2Attributes {
    match kind {
        0 => Stage2Attributes::RAM,
        1 => Stage2Attributes::ROM,
        2 => Stage2Attributes::DEVICE,
        _ => Stage2Attributes {
            memory: Stage2Memory::NormalNonCacheable,
            ..Stage2Attributes::RAM
        },
    }
}

fn op() -> impl Strategy<Value = Op> {
    let start = prop_oneof![0..PAGES, (0..4_u64).prop_map(|block| block * 512)];
    let pages = prop_oneof![1..8_u64, 1..PAGES, Just(512), Just(1024)];
    let to = prop_oneof![Just(0_u64), Just(512), 0..1024_u64];
    let range = (start, pages).prop_map(|(start, pages)| (start, pages.min(PAGES - start)));
    prop_oneof![
        3 => (range.clone(), to, 0..4_u8).prop_map(|((s, n), t, k)| Op::Map(s, n, t, k)),
        2 => range.clone().prop_map(|(s, n)| Op::Unmap(s, n)),
        2 => (range, 0..4_u8).prop_map(|((s, n), k)| Op::Protect(s, n, k)),
    ]
}

fn ipa(page: u64) -> Ipa {
    Ipa::truncated(BASE + (page << 12))
}

fn span(start: u64, pages: u64) -> Span<Ipa> {
    Span::from_len(ipa(start), pages << 12).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn the_tree_translates_as_a_plain_map_does(
        ops in prop::collection::vec((op(), prop::option::weighted(0.2, 0..3_usize)), 1..24),
        probes in prop::collection::vec(0..PAGES, 8),
        bits in prop_oneof![Just(40_u8), Just(44)],
    ) {
        let machine = Machine::new();
        let frames = machine.frames();
        let geometry = Geometry::new::<Stage2<Ipa>>(bits, OutputSize::Bits48).unwrap();
        let mut tree: PageTable<Stage2<Ipa>, _, _> =
            PageTable::new(geometry, machine.watched(), &frames).unwrap();
        machine.walker.start(tree.root(), geometry);
        for page in probes {
            machine.walker.probe(ipa(page).bits());
        }
        let mut model: BTreeMap<u64, (u64, Stage2Attributes)> = BTreeMap::new();
        let mut caches = &machine.walker;

        for (op, fail) in ops {
            let (Op::Map(start, pages, ..) | Op::Unmap(start, pages) | Op::Protect(start, pages, _)) = op;
            for edge in [start, start + pages - 1, start.saturating_sub(1), start + pages] {
                machine.walker.probe(ipa(edge).bits());
            }
            let mapped = model.range(start..start + pages).next().map(|(&page, _)| page);
            let hole = (start..start + pages).find(|page| !model.contains_key(page));
            frames.frames.fail_from(fail);
            let live = frames.frames.live_blocks();
            let done = match op {
                Op::Map(_, _, to, kind) => {
                    // Congruent modulo 2 MiB as often as not.
                    let to = (1 << 36) + ((start + to) << 12);
                    let result = tree.map(
                        span(start, pages), Pa::truncated(to), attributes(kind), &mut caches);
                    if let Some(mapped) = mapped {
                        prop_assert_eq!(result, Err(Error::AlreadyMapped { at: ipa(mapped) }));
                    } else if result.is_ok() {
                        for page in 0..pages {
                            model.insert(start + page, (to + (page << 12), attributes(kind)));
                        }
                    }
                    result
                }
                Op::Unmap(..) => {
                    let count = model.range(start..start + pages).count() as u64;
                    let result = tree.unmap(span(start, pages), &mut caches);
                    if let Ok(bytes) = result {
                        prop_assert_eq!(bytes, count << 12);
                        model.retain(|&page, _| page < start || start + pages <= page);
                    }
                    result.map(|_| ())
                }
                Op::Protect(_, _, kind) => {
                    let result = tree.protect(span(start, pages), attributes(kind), &mut caches);
                    if result.is_ok() {
                        prop_assert_eq!(hole, None);
                        for (_, (_, old)) in model.range_mut(start..start + pages) {
                            *old = attributes(kind);
                        }
                    } else if let (Some(hole), None) = (hole, fail) {
                        prop_assert_eq!(result, Err(Error::NotMapped { at: ipa(hole) }));
                    }
                    result
                }
            };
            frames.frames.fail_from(None);
            if done.is_err() {
                prop_assert_eq!(frames.frames.live_blocks(), live, "a refused change kept a frame");
            }
            if let Err(error) = done {
                let expected = match error {
                    Error::OutOfFrames(_) => fail.is_some(),
                    Error::AlreadyMapped { .. } | Error::NotMapped { .. } => true,
                    _ => false,
                };
                prop_assert!(expected, "{:?}", error);
            }
            machine.assert_clean();
        }

        for page in 0..PAGES {
            let found = tree.walk(ipa(page)).ok().map(|leaf| (leaf.pa.bits(), leaf.attributes));
            prop_assert_eq!(found, model.get(&page).copied(), "page {}", page);
        }
        let leaves: u64 = tree.leaves(span(0, PAGES)).map(|leaf| leaf.size.bytes() >> 12).sum();
        prop_assert_eq!(leaves, model.len() as u64);
        let aligned = tree.leaves(span(0, PAGES)).all(|leaf| {
            leaf.pa.bits() & leaf.size.mask() == 0 && leaf.size <= PageSize::SIZE_2M
        });
        prop_assert!(aligned);

        // Nothing mapped, no table but the root; then nothing at all.
        tree.unmap(span(0, PAGES), &mut caches).unwrap();
        prop_assert_eq!(frames.frames.live_blocks(), 1);
        tree.destroy(&mut caches).unwrap();
        prop_assert_eq!(frames.frames.live_blocks(), 0);
        machine.assert_clean();
    }
}
