//! Stage 2: descriptors to the byte, refusals that change nothing, break-before-make under the eyes
//! of a walker.

use crate::walker::{Machine, TABLES, Watched, WatchedFrames};
use pagetable::{
    Error, Fault, FaultKind, Geometry, NotLive, OutputSize, PageTable, Stage2, Stage2Access,
    Stage2Attributes, Stage2Memory,
};
use types::{Ipa, Pa, PageSize, Span};

type Tree<'a> = PageTable<Stage2<Ipa>, Watched<'a>, &'a WatchedFrames<'a>>;

const RAM: Stage2Attributes = Stage2Attributes::RAM;
const ROM: Stage2Attributes = Stage2Attributes::ROM;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn tree<'a>(machine: &'a Machine, frames: &'a WatchedFrames<'a>, bits: u8) -> Tree<'a> {
    let geometry = Geometry::new::<Stage2<Ipa>>(bits, OutputSize::Bits44).unwrap();
    let tree = PageTable::new(geometry, machine.watched(), frames).unwrap();
    machine.walker.start(tree.root(), geometry);
    tree
}

fn span(start: u64, bytes: u64) -> Span<Ipa> {
    Span::from_len(Ipa::new(start).unwrap(), bytes).unwrap()
}

fn pa(bits: u64) -> Pa {
    Pa::new(bits).unwrap()
}

fn ipa(bits: u64) -> Ipa {
    Ipa::new(bits).unwrap()
}

fn translation(level: u8) -> Fault {
    Fault {
        level,
        kind: FaultKind::Translation,
    }
}

#[test]
fn a_gibibyte_is_one_entry() {
    let machine = Machine::new();
    let frames = machine.frames();
    let mut tree = tree(&machine, &frames, 40);
    tree.map(span(GIB, GIB), pa(4 * GIB), RAM, &mut &machine.walker)
        .unwrap();
    assert_eq!(machine.walker.writes.get(), 1);
    assert_eq!(machine.word(TABLES + 8), 0x1_0000_07fd);
    assert_eq!(frames.frames.live_blocks(), 1);
    let leaf = tree.walk(ipa(GIB + 0x1234)).unwrap();
    assert_eq!(leaf.pa, pa(4 * GIB + 0x1234));
    assert_eq!((leaf.level, leaf.size), (1, PageSize::SIZE_1G));
    assert_eq!(leaf.start, ipa(GIB));
}

#[test]
fn blocks_are_as_large_as_both_addresses_and_the_caller_allow() {
    let machine = Machine::new();
    let frames = machine.frames();
    let mut tree = tree(&machine, &frames, 40);
    // 4 KiB below a 2 MiB boundary to 4 KiB above the next: page, block, page.
    tree.map(
        span(2 * MIB - 4096, 2 * MIB + 8192),
        pa(0x1_0000_0000 + 2 * MIB - 4096),
        RAM,
        &mut NotLive,
    )
    .unwrap();
    let found = |at| tree.walk(ipa(at)).map(|leaf| (leaf.level, leaf.pa.bits()));
    assert_eq!(found(2 * MIB - 1), Ok((3, 0x1_0000_0000 + 2 * MIB - 1)));
    assert_eq!(found(2 * MIB), Ok((2, 0x1_0000_0000 + 2 * MIB)));
    assert_eq!(found(4 * MIB), Ok((3, 0x1_0000_0000 + 4 * MIB)));
    assert_eq!(found(2 * MIB - 4097), Err(translation(3)));
    assert_eq!(found(6 * MIB), Err(translation(2)));
    assert_eq!(found(GIB), Err(translation(1)));
    let sizes: Vec<_> = tree
        .leaves(span(0, GIB))
        .map(|leaf| leaf.size.shift())
        .collect();
    assert_eq!(sizes, [12, 21, 12]);

    let mut other = self::tree(&machine, &frames, 40);
    other
        .map_up_to(PageSize::SIZE_2M, span(GIB, GIB), pa(0), RAM, &mut NotLive)
        .unwrap();
    assert_eq!(other.walk(ipa(GIB)).unwrap().size, PageSize::SIZE_2M);
    // Not congruent: pages, though the range is large.
    other
        .map(span(0, 4 * MIB), pa(4096), RAM, &mut NotLive)
        .unwrap();
    assert_eq!(other.walk(ipa(0)).unwrap().size, PageSize::SIZE_4K);
}

#[test]
fn descriptors_are_exact_at_every_level() {
    let machine = Machine::new();
    let frames = machine.frames();
    let mut tree = tree(&machine, &frames, 44);
    assert_eq!(tree.geometry().root_level(), 0);
    let device = Stage2Attributes::DEVICE;
    tree.map(span(0x900_0000, 4096), pa(0x900_0000), device, &mut NotLive)
        .unwrap();
    let l0 = machine.word(TABLES);
    let l1 = machine.word(l0 & !0xfff);
    let l2 = machine.word((l1 & !0xfff) + (0x900_0000 >> 21) * 8);
    let l3 = machine.word(l2 & !0xfff);
    for link in [l0, l1, l2] {
        assert_eq!(link & 0xfff, 3);
        assert_eq!(link >> 48, 0);
    }
    assert_eq!(l3, 0x0040_0000_0900_07c7);
    tree.map(span(0xa00_0000, 2 * MIB), pa(0xa00_0000), RAM, &mut NotLive)
        .unwrap();
    assert_eq!(
        machine.word((l1 & !0xfff) + (0xa00_0000 >> 21) * 8),
        0xa00_07fd
    );
}

#[test]
fn tables_side_by_side_are_one_root() {
    let machine = Machine::new();
    let frames = machine.frames();
    let mut tree = tree(&machine, &frames, 41);
    let last = (1 << 41) - GIB;
    tree.map(span(last, GIB), pa(0), RAM, &mut NotLive).unwrap();
    assert_eq!(machine.word(tree.root().bits() + 4 * 4096 - 8), 0x7fd);
    assert!(tree.walk(ipa((1 << 41) - 1)).is_ok());
    assert_eq!(
        tree.walk(ipa(1 << 41)).unwrap_err().kind,
        FaultKind::InputSize
    );
    assert_eq!(tree.leaves(span(0, 1 << 50)).count(), 1);
    tree.destroy(&mut NotLive).unwrap();
    assert_eq!(frames.frames.live_blocks(), 0);
}

#[test]
fn a_bad_range_is_refused() {
    let machine = Machine::new();
    let frames = machine.frames();
    let mut tree = tree(&machine, &frames, 40);
    let mut map = |start, bytes, to| tree.map(span(start, bytes), pa(to), RAM, &mut NotLive);
    assert_eq!(map(1, 4096, 0), Err(Error::Misaligned { value: 1 }));
    assert_eq!(map(0, 4097, 0), Err(Error::Misaligned { value: 4097 }));
    assert_eq!(map(0, 4096, 8), Err(Error::Misaligned { value: 8 }));
    assert_eq!(
        map((1 << 40) - 4096, 8192, 0),
        Err(Error::InputRange {
            last: ipa((1 << 40) + 4095)
        })
    );
    assert_eq!(
        map(0, 8192, (1 << 44) - 4096),
        Err(Error::OutputRange {
            pa: pa((1 << 44) - 4096)
        })
    );
    assert_eq!(
        map((1 << 56) - 4096, 4096, 0),
        Err(Error::InputRange {
            last: ipa((1 << 56) - 1)
        })
    );
    assert_eq!(map((1 << 40) - 4096, 4096, (1 << 44) - 4096), Ok(()));
}

#[test]
fn mapping_over_anything_changes_nothing() {
    let machine = Machine::new();
    let frames = machine.frames();
    let mut tree = tree(&machine, &frames, 40);
    tree.map(span(8 * MIB, 4096), pa(0), RAM, &mut NotLive)
        .unwrap();
    let before = machine.image();
    assert_eq!(
        tree.map(span(0, GIB), pa(0), RAM, &mut NotLive),
        Err(Error::AlreadyMapped { at: ipa(8 * MIB) })
    );
    assert_eq!(machine.image(), before);
}

#[test]
fn a_hole_in_a_gibibyte_is_made_by_break_before_make() {
    let machine = Machine::new();
    let frames = machine.frames();
    let mut tree = tree(&machine, &frames, 40);
    let hole = GIB + 6 * MIB + 4096;
    for at in [
        GIB,
        hole - 4096,
        hole,
        hole + 4096,
        GIB + 8 * MIB,
        2 * GIB - 1,
    ] {
        machine.walker.probe(at);
    }
    tree.map(span(GIB, GIB), pa(0), RAM, &mut &machine.walker)
        .unwrap();
    assert_eq!(tree.unmap(span(hole, 4096), &mut &machine.walker), Ok(4096));
    machine.assert_clean();
    assert_eq!(machine.walker.syncs.get(), 1);
    let found = |at| tree.walk(ipa(at)).map(|leaf| (leaf.level, leaf.pa.bits()));
    assert_eq!(found(hole), Err(translation(3)));
    assert_eq!(found(hole - 1), Ok((3, 6 * MIB + 4095)));
    assert_eq!(found(hole + 4096), Ok((3, 6 * MIB + 8192)));
    assert_eq!(found(GIB + 8 * MIB), Ok((2, 8 * MIB)));
    assert_eq!(found(2 * GIB - 1), Ok((2, GIB - 1)));
}

#[test]
fn the_walker_sees_a_change_made_without_invalidation() {
    // The negative control of every test that says `assert_clean`.
    let machine = Machine::new();
    let frames = machine.frames();
    let mut tree = tree(&machine, &frames, 40);
    machine.walker.probe(GIB);
    tree.map(span(GIB, GIB), pa(0), RAM, &mut NotLive).unwrap();
    tree.unmap(span(GIB, 4096), &mut NotLive).unwrap();
    tree.map(span(GIB, 4096), pa(0), RAM, &mut NotLive).unwrap();
    assert_eq!(machine.walker.violations.borrow().len(), 1);
    tree.unmap(span(GIB, GIB), &mut NotLive).unwrap();
    let freed_while_cached = machine.walker.violations.borrow().len();
    assert_eq!(freed_while_cached, 3, "{:?}", machine.walker.violations);
}

#[test]
fn permissions_change_in_place_and_memory_types_by_break_before_make() {
    let machine = Machine::new();
    let frames = machine.frames();
    let mut tree = tree(&machine, &frames, 40);
    let range = span(2 * MIB - 4096, 4 * MIB + 8192);
    for at in [2 * MIB - 1, 2 * MIB, 4 * MIB, 6 * MIB] {
        machine.walker.probe(at);
    }
    let mut walker = &machine.walker;
    tree.map(range, pa(GIB + 2 * MIB - 4096), RAM, &mut walker)
        .unwrap();
    let frames_before = frames.frames.live_blocks();

    machine.walker.writes.set(0);
    tree.protect(range, ROM, &mut walker).unwrap();
    assert_eq!(machine.walker.writes.get(), 4, "one write a leaf");
    let write_only = Stage2Attributes {
        access: Stage2Access::Write,
        memory: Stage2Memory::NormalNonCacheable,
        ..RAM
    };
    machine.walker.writes.set(0);
    tree.protect(range, write_only, &mut walker).unwrap();
    assert_eq!(machine.walker.writes.get(), 8, "invalid, then the new one");
    assert!(tree.leaves(range).all(|leaf| leaf.attributes == write_only));
    assert_eq!(tree.leaves(range).count(), 4);
    assert_eq!(frames.frames.live_blocks(), frames_before);
    machine.assert_clean();
}

#[test]
fn protecting_part_of_a_block_splits_it_and_a_hole_is_refused() {
    let machine = Machine::new();
    let frames = machine.frames();
    let mut tree = tree(&machine, &frames, 40);
    let mut walker = &machine.walker;
    let page = span(GIB + 4096, 4096);
    machine.walker.probe(GIB + 4096);
    tree.map(span(GIB, 2 * MIB), pa(0), RAM, &mut walker)
        .unwrap();
    let device = Stage2Attributes::DEVICE;
    tree.protect(page, device, &mut walker).unwrap();
    assert_eq!(tree.walk(ipa(GIB + 4096)).unwrap().attributes, device);
    assert_eq!(tree.walk(ipa(GIB + 8192)).unwrap().attributes, RAM);
    let before = machine.image();
    assert_eq!(
        tree.protect(span(GIB, 4 * MIB), ROM, &mut walker),
        Err(Error::NotMapped {
            at: ipa(GIB + 2 * MIB)
        })
    );
    assert_eq!(machine.image(), before);
    machine.assert_clean();
}

#[test]
fn tables_that_become_empty_are_given_back() {
    let machine = Machine::new();
    let frames = machine.frames();
    let mut tree = tree(&machine, &frames, 44);
    let mut walker = &machine.walker;
    for at in [0, GIB - 4096, GIB, 3 * GIB] {
        machine.walker.probe(at);
        tree.map(span(at, 4096), pa(at), RAM, &mut walker).unwrap();
    }
    assert_eq!(frames.frames.live_blocks(), 2 + 3 + 4);
    assert_eq!(tree.unmap(span(GIB - 4096, 8192), &mut walker), Ok(8192));
    assert_eq!(frames.frames.live_blocks(), 2 + 2 + 2);
    assert_eq!(tree.unmap(span(0, 1 << 44), &mut walker), Ok(8192));
    assert_eq!(frames.frames.live_blocks(), 1);
    assert_eq!(tree.unmap(span(0, 1 << 44), &mut walker), Ok(0));
    machine.assert_clean();
}

#[test]
fn without_frames_nothing_changes_and_nothing_leaks() {
    type Change = fn(&mut Tree<'_>, &mut &crate::walker::Walker) -> Result<(), Error<Ipa>>;
    let map: Change =
        |tree, walker| tree.map(span(4 * GIB - 4096, 64 * MIB + 8192), pa(4096), RAM, walker);
    let unmap: Change = |tree, walker| {
        tree.unmap(span(GIB + 5 * MIB + 4096, GIB), walker)
            .map(|_| ())
    };
    let protect: Change = |tree, walker| {
        tree.protect(
            span(GIB + 5 * MIB + 4096, 6 * MIB),
            Stage2Attributes::DEVICE,
            walker,
        )
    };
    for (change, needs) in [(map, 2 + 1 + 33), (unmap, 4), (protect, 3)] {
        let machine = Machine::new();
        let frames = machine.frames();
        let mut tree = tree(&machine, &frames, 40);
        let mut walker = &machine.walker;
        for at in [GIB, GIB + 5 * MIB + 4096, 2 * GIB + 5 * MIB, 3 * GIB - 1] {
            machine.walker.probe(at);
        }
        tree.map(span(GIB, 2 * GIB), pa(0), RAM, &mut walker)
            .unwrap();
        let before = machine.image();
        let live = frames.frames.live_blocks();
        let mut failures = 0;
        for nth in 0..64 {
            frames.frames.fail_from(Some(nth));
            let result = change(&mut tree, &mut walker);
            frames.frames.fail_from(None);
            match result {
                Err(Error::OutOfFrames(_)) => failures += 1,
                other => {
                    other.unwrap();
                    break;
                }
            }
            assert_eq!(frames.frames.live_blocks(), live, "frame {nth}");
            let now = machine.image();
            // Free frames may hold anything; tables in use may not have changed.
            assert_eq!(now[..live << 13], before[..live << 13], "frame {nth}");
        }
        assert_eq!(failures, needs, "one failure a frame needed");
        machine.assert_clean();
        tree.unmap(span(0, 1 << 40), &mut walker).unwrap();
        tree.destroy(&mut walker).unwrap();
        assert_eq!(frames.frames.live_blocks(), 0);
        machine.assert_clean();
    }
}

#[test]
fn a_foreign_descriptor_is_a_typed_fault() {
    let machine = Machine::new();
    let frames = machine.frames();
    let mut tree = tree(&machine, &frames, 40);
    tree.map(span(0, GIB), pa(0), RAM, &mut NotLive).unwrap();
    let set = |value: u64| {
        hal::PhysMemory::write_u64(&machine.memory, pa(TABLES), value.to_le()).unwrap();
    };
    set(0x7fd & !0x400);
    assert_eq!(tree.walk(ipa(0)).unwrap_err().kind, FaultKind::AccessFlag);
    set(0x1003);
    let fault = tree.walk(ipa(0)).unwrap_err();
    assert_eq!(
        (fault.level, fault.kind),
        (2, FaultKind::NotMemory { pa: pa(0x1000) })
    );
    set(0x7fc);
    assert_eq!(tree.walk(ipa(0)), Err(translation(1)));
}

#[test]
fn the_common_operations_touch_few_words() {
    let machine = Machine::new();
    let frames = machine.frames();
    let mut tree = tree(&machine, &frames, 40);
    let mut walker = &machine.walker;
    tree.map(span(GIB, 8 * MIB), pa(4096), RAM, &mut walker)
        .unwrap();
    let mut cost = |what: &mut dyn FnMut(&mut Tree<'_>)| {
        machine.walker.reads.set(0);
        machine.walker.writes.set(0);
        what(&mut tree);
        (machine.walker.reads.get(), machine.walker.writes.get())
    };
    let page = span(GIB + 4 * MIB, 4096);
    let walk = cost(&mut |tree| assert!(tree.walk(page.start()).is_ok()));
    assert_eq!(walk, (3, 0), "one read a level");
    let unmap = cost(&mut |tree| assert_eq!(tree.unmap(page, &mut walker), Ok(4096)));
    assert_eq!(unmap, (2 + 1 + 1, 1), "find, look at one neighbour, check");
    let map = cost(&mut |tree| tree.map(page, pa(0), RAM, &mut walker).unwrap());
    assert_eq!(map, (2 + 1, 1), "find, check, then write");
    let block = span(2 * GIB, GIB);
    let map = cost(&mut |tree| tree.map(block, pa(0), RAM, &mut walker).unwrap());
    assert_eq!(map, (2, 1));
    let unmap = cost(&mut |tree| assert_eq!(tree.unmap(block, &mut walker), Ok(GIB)));
    assert_eq!(unmap, (2, 1));
    let bulk = span(4 * GIB, 2 * MIB);
    let map = cost(&mut |tree| tree.map(bulk, pa(4096), RAM, &mut walker).unwrap());
    assert!(
        map.0 <= 8 && map.1 <= 512 + 8,
        "{map:?}: 512 pages, one write each"
    );
}
