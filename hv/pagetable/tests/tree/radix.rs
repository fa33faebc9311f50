//! POWER's radix trees: the same rules, other descriptors.

use crate::walker::{Architecture, Machine, TABLES, Watched, WatchedFrames};
use pagetable::{Error, FaultKind, NotLive, PageTable, Radix, RadixAccess, RadixAttributes};
use types::{Ipa, Pa, PageSize, Span};

type Tree<'a> = PageTable<Radix, Watched<'a>, &'a WatchedFrames<'a>>;

const RAM: RadixAttributes = RadixAttributes::RAM;
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn tree<'a>(machine: &'a Machine, frames: &'a WatchedFrames<'a>) -> Tree<'a> {
    let tree = PageTable::new_radix(machine.watched(), frames).unwrap();
    machine.walker.machine.set(Architecture::Power);
    machine.walker.start(tree.root(), tree.geometry());
    tree
}

fn span(start: u64, bytes: u64) -> Span<Ipa> {
    Span::from_len(Ipa::new(start).unwrap(), bytes).unwrap()
}

fn big_endian(machine: &Machine, pa: u64) -> u64 {
    machine.word(pa).swap_bytes()
}

#[test]
fn descriptors_are_exact_and_big_endian() {
    let machine = Machine::new();
    let frames = machine.frames();
    let mut tree = tree(&machine, &frames);
    assert_eq!(tree.root().bits(), TABLES);
    assert_eq!(tree.partition_entry(), 0xc000_0000_8000_00ad);
    let mut map = |at, bytes, to, attributes| {
        tree.map(span(at, bytes), Pa::truncated(to), attributes, &mut NotLive)
            .unwrap();
    };
    map(GIB, GIB, 4 * GIB, RAM);
    map(4 * MIB, 2 * MIB, 6 * MIB, RAM);
    map(0x1000, 0x1000, 0x6_0000_0000_7000, RadixAttributes::DEVICE);
    map((1 << 52) - GIB, GIB, 0, RAM);

    // The root has 8,192 entries in 64 KiB.
    let upper = big_endian(&machine, TABLES);
    let last = big_endian(&machine, TABLES + 8191 * 8);
    for link in [upper, last] {
        assert_eq!(
            (link >> 60, link & 0xfff),
            (8, 9),
            "V, next level of 9 bits"
        );
    }
    let next = |link: u64| link & 0x0fff_ffff_ffff_ff00;
    assert_eq!(
        big_endian(&machine, next(last) + 511 * 8),
        0xc000_0000_0000_0187
    );
    assert_eq!(big_endian(&machine, next(upper) + 8), 0xc000_0001_0000_0187);
    let level_2 = next(big_endian(&machine, next(upper)));
    assert_eq!(big_endian(&machine, level_2 + 2 * 8), 0xc000_0000_0060_0187);
    let level_3 = next(big_endian(&machine, level_2));
    assert_eq!(big_endian(&machine, level_3 + 8), 0xc006_0000_0000_71a6);

    let leaf = tree.walk(Ipa::truncated(0x1234)).unwrap();
    assert_eq!(leaf.pa.bits(), 0x6_0000_0000_7234);
    assert_eq!(
        (leaf.size, leaf.attributes),
        (PageSize::SIZE_4K, RadixAttributes::DEVICE)
    );
    let beyond = tree.walk(Ipa::truncated(1 << 52)).unwrap_err();
    assert_eq!(beyond.kind, FaultKind::InputSize);
    tree.destroy(&mut NotLive).unwrap();
    assert_eq!(frames.frames.live_blocks(), 0);
}

#[test]
fn changes_are_made_by_way_of_an_invalid_entry() {
    let machine = Machine::new();
    let frames = machine.frames();
    let mut tree = tree(&machine, &frames);
    let mut walker = &machine.walker;
    let hole = GIB + 6 * MIB + 4096;
    for at in [GIB, hole - 4096, hole, GIB + 8 * MIB, 2 * GIB] {
        machine.walker.probe(at);
    }
    tree.map(span(GIB, GIB + 4096), Pa::ZERO, RAM, &mut walker)
        .unwrap();
    let taken = Error::AlreadyMapped {
        at: Ipa::truncated(2 * GIB),
    };
    let over = tree.map(span(2 * GIB, GIB), Pa::ZERO, RAM, &mut walker);
    assert_eq!(over, Err(taken));
    assert_eq!(tree.unmap(span(hole, 4096), &mut walker), Ok(4096));
    let read = RadixAttributes {
        access: RadixAccess::Read,
        ..RAM
    };
    tree.protect(span(GIB + 8 * MIB, GIB - 8 * MIB + 4096), read, &mut walker)
        .unwrap();
    machine.assert_clean();
    let found = |at| {
        tree.walk(Ipa::truncated(at))
            .ok()
            .map(|leaf| leaf.attributes)
    };
    assert_eq!(found(hole - 1), Some(RAM));
    assert_eq!(found(hole), None);
    assert_eq!(found(GIB + 8 * MIB), Some(read));
    assert_eq!(found(2 * GIB), Some(read));
    assert_eq!(tree.unmap(span(0, 1 << 52), &mut walker), Ok(GIB));
    assert_eq!(frames.frames.live_blocks(), 1);
    machine.assert_clean();

    // The negative control: a change of permissions that no cache was told of.
    tree.map(span(GIB, 4096), Pa::ZERO, RAM, &mut NotLive)
        .unwrap();
    tree.protect(span(GIB, 4096), read, &mut NotLive).unwrap();
    assert_eq!(machine.walker.violations.borrow().len(), 1);
}
