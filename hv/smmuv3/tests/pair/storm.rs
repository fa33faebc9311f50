//! Guests that change everything they have, and invalidate as they must: after each `CMD_SYNC` what
//! the hardware has cached says the same as what is in memory.

use bulkhead_smmuv3::spec::regs;
use proptest::prelude::{ProptestConfig, any, proptest};
use vsmmuv3::{End, Width};

use crate::board::Model;
use crate::engine::Fault;
use crate::nested::{CDS, DATA, DISK, NET, Part, RAM, RAM_BYTES, TABLES, World, leaf};

/// A second address space of each guest, and its context descriptor.
const OTHER: [u64; 3] = [RAM + 0x8000, RAM + 0x9000, RAM + 0xa000];
const OTHER_CD: u64 = CDS + 0x200;
/// The pages that lie where else a block is.
const BELOW: u64 = RAM + 0xb000;
/// The 2 MiB that a block maps.
const BLOCK: u64 = 1 << 21;

/// The probes: the pages that change, some of the block, one that is never mapped.
const PROBES: [u64; 11] = [
    0,
    0x1000,
    0x2000,
    0x3000,
    0x4000,
    0x5000,
    0x6000,
    0x7000,
    BLOCK,
    BLOCK | 0x12_3000,
    1 << 30,
];

fn world(ranges: bool) -> World {
    let mut world = World::cold(Model {
        ranges,
        ..Model::default()
    });
    for vm in 0..2 {
        second_space(&world, vm);
        world.bring_up(vm);
    }
    world
}

fn second_space(world: &World, vm: usize) {
    world.put(vm, OTHER[0], &[OTHER[1] | 3]);
    world.put(vm, OTHER[1], &[OTHER[2] | 3]);
    world.cd(vm, OTHER_CD, 2, OTHER[0]);
    world.put(vm, BELOW, &[leaf(DATA + 0x8000)]);
}

fn target(world: &World, vm: usize, choice: u8) -> u64 {
    match choice % 8 {
        0 => 0,
        1 => leaf(world.pa(1 - vm, DATA)),
        2 => leaf(DATA + 0x3000) | 1 << 7,
        4 => leaf(RAM + RAM_BYTES),
        n => leaf(DATA + u64::from(n) * 0x1000),
    }
}

/// One way of saying that a page of an address space is not what it was.
fn invalidation(how: u8, asid: u64, at: u64, ranges: bool) -> [u64; 2] {
    match how % if ranges { 8 } else { 4 } {
        0 => [0x12 | asid << 48, at],
        1 => [0x13, at | 1],
        2 => [0x10, 0],
        3 => [0x30, 0],
        4 => [0x12 | asid << 48, at | 3 << 8 | 1 << 10 | 1],
        5 => [0x13 | 7 << 12, 1 << 10],
        6 => [0x12 | asid << 48 | 1 << 12, (at & !0x1fff) | 1 << 10],
        _ => [0x13 | 3 << 12 | 1 << 20, 1 << 10 | 3 << 8 | 1],
    }
}

fn step(world: &mut World, ranges: bool, [what, a, b, c]: [u8; 4]) {
    let vm = usize::from(a & 1);
    let stream = if a & 2 == 0 { DISK } else { NET };
    let source = u64::from(stream) << 32;
    match what % 9 {
        0..=2 => {
            let tables = if a & 4 == 0 { TABLES } else { OTHER };
            let page = u64::from(b & 7);
            let descriptor = target(world, vm, c);
            world.put(vm, tables[2] + page * 8, &[descriptor]);
            // By every number that a context descriptor may have for it.
            let commands = [1, 2, 3].map(|asid| invalidation(b >> 3, asid, page << 12, ranges));
            world.send(vm, &commands);
        }
        3 => {
            let block = [0, leaf(RAM) & !2, BELOW | 3][usize::from(b % 3)];
            world.put(vm, TABLES[1] + 8, &[block]);
            let commands: &[_] = match (c % 3, ranges) {
                (0, true) => &[
                    [0x13 | 31 << 12 | 4 << 20, BLOCK | 1 << 10],
                    [0x13 | 31 << 12 | 4 << 20, (BLOCK + BLOCK) | 1 << 10],
                ],
                _ => &[[0x10, 0]],
            };
            world.send(vm, commands);
        }
        4 => {
            let ste = [1, 1 | 4 << 1, 1 | 5 << 1 | CDS, 1 | 5 << 1 | OTHER_CD, 0];
            world.ste(vm, stream, [ste[usize::from(b % 5)], 0]);
            let commands: &[_] = match c % 3 {
                0 => &[[3 | source, 1]],
                1 => &[[4 | source, 2]],
                _ => &[[4, 31]],
            };
            world.send(vm, commands);
        }
        5 => {
            let root = [TABLES[0], OTHER[0], RAM + RAM_BYTES][usize::from(b % 3)];
            let asid = u64::from(c & 1) * 2 + 1;
            world.cd(vm, CDS, asid, root);
            let commands = [
                [5 | u64::from(DISK) << 32, 1],
                [6 | u64::from(NET) << 32, 0],
                [0x10, 0],
            ];
            world.send(vm, &commands);
        }
        6 => {
            let parts: &[_] = match b % 3 {
                0 => &[Part::Data],
                1 => &[Part::Tables],
                _ => &[Part::Data, Part::Tables],
            };
            for part in parts {
                let World { core, vms, .. } = world;
                vms[vm].unmap(core, *part);
                compare(world);
            }
            for part in parts {
                let World { core, vms, .. } = world;
                vms[vm].map(core, *part);
            }
        }
        7 => {
            world.write(vm, regs::CR0, Width::Word, 0xc);
            world.write(
                vm,
                regs::GBPA,
                Width::Word,
                1 << 31 | u64::from(b & 1) << 20,
            );
            compare(world);
            world.write(vm, regs::CR0, Width::Word, 0xd);
        }
        _ => {
            world.reset(vm);
            compare(world);
            world.bring_up(vm);
            // Its new driver trusts in no TLB of before.
            world.send(vm, &[[4, 31], [0x30, 0]]);
        }
    }
}

fn compare(world: &World) {
    for vm in 0..2 {
        let own = world.pa(vm, RAM)..world.pa(vm, RAM) + RAM_BYTES;
        for stream in [DISK, NET] {
            for at in PROBES {
                let cached = world.dma(vm, stream, at);
                let fresh = world.fresh(vm, stream, at);
                assert_eq!(cached, fresh, "VM {vm}, stream {stream:#x}, {at:#x}");
                if let Ok(pa) = cached {
                    assert!(own.contains(&pa), "{pa:#x} is not the VM's");
                }
                let end = world.walk(vm, stream, at);
                let agrees = match (end, fresh) {
                    (End::Reached(pa), Ok(at)) => pa.bits() == at,
                    (End::Aborts, Err(Fault::Silent)) => true,
                    // An entry that is not valid is one that aborts, below.
                    (End::Fault(_), Err(Fault::Silent)) => true,
                    (End::Fault(id), Err(Fault::Recorded { id: of, stage2, .. })) => {
                        u64::from(id.bits()) == of && !stage2
                    }
                    // A table beyond the guest's memory is stage 2's to refuse.
                    (End::StageTwo(_), Err(Fault::Recorded { stage2, .. })) => stage2,
                    _ => false,
                };
                assert!(agrees, "the monitor says {end:?}, the hardware {fresh:?}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "VM 0, stream 0x8, 0x5000")]
fn a_guest_that_does_not_invalidate_is_noticed() {
    let world = world(true);
    compare(&world);
    world.put(0, TABLES[2] + 5 * 8, &[leaf(DATA + 0x6000)]);
    compare(&world);
}

#[test]
#[should_panic(expected = "VM 0, stream")]
fn hardware_that_forgets_nothing_is_noticed() {
    let mut world = world(true);
    compare(&world);
    world.board.hardware.engine.borrow_mut().deaf = true;
    world.put(0, TABLES[2] + 5 * 8, &[leaf(DATA + 0x6000)]);
    world.send(0, &[[0x10, 0]]);
    compare(&world);
}

/// Every page of a level-3 table leads somewhere, is cached, and then leads elsewhere.
fn all_pages_changed(world: &World) {
    for data in [DATA, DATA + 0x1_0000] {
        for page in 0..512 {
            let to = leaf(data + page % 16 * 0x1000);
            world.put(0, TABLES[2] + page * 8, &[to]);
        }
        if data == DATA {
            for page in 0..512 {
                assert!(world.dma(0, DISK, page << 12).is_ok());
            }
        }
    }
}

/// Pages of which the hardware still has the old translation.
fn stale(world: &World) -> Vec<u64> {
    let is_stale = |page: &u64| {
        let at = page << 12;
        world.dma(0, DISK, at) != world.fresh(0, DISK, at)
    };
    (0..512).filter(is_stale).collect()
}

#[test]
fn a_batch_of_many_odd_ranges_forgets_all_of_them() {
    let mut world = world(true);
    all_pages_changed(&world);
    assert_eq!(stale(&world).len(), 512);
    // Seven pages each, which is no power of two, in one address space; the last ones are left out.
    let commands: Vec<_> = (0..60_u64)
        .map(|n| [0x12 | 1 << 48 | 6 << 12, (n * 7) << 12 | 1 << 10 | 1])
        .collect();
    world.send(0, &commands);
    let left = stale(&world);
    assert!(left.iter().all(|page| *page >= 420), "{left:?}");
    world.send(0, &[[0x10, 0]]);
    assert_eq!(stale(&world), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest writes into an invalidation: no command of ours is reserved (the engine sees to
    /// that), and what it covers by the manual is forgotten.
    #[test]
    fn an_invalidation_covers_what_it_says(
        [num, scale] in [0..32_u64, 0..6_u64],
        [granule, level] in [0..4_u64, 0..4_u64],
        page in 0..512_u64,
        bits in any::<u8>(),
    ) {
        let mut world = world(bits & 1 == 0);
        all_pages_changed(&world);
        let by_asid = bits & 2 == 0;
        let opcode = if by_asid { 0x12 | 1 << 48 } else { 0x13 };
        let leaf = u64::from(bits >> 2 & 1);
        let low = opcode | num << 12 | scale << 20;
        world.send(0, &[[low, page << 12 | level << 8 | granule << 10 | leaf]]);
        // Without ranges the fields are ignored: one leaf. A level that is not the leaves' says nothing
        // of them, nor does a granule that is not the table's.
        let ranged = bits & 1 == 0 && granule != 0;
        let covered = match (ranged, granule, level) {
            (false, ..) => page..page + 1,
            (true, 1, 0 | 3) => page..page + ((num + 1) << scale),
            _ => 0..0,
        };
        let left = stale(&world);
        let missed = left.iter().find(|page| covered.contains(page));
        assert_eq!(missed, None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_cached_is_what_is_in_memory(
        steps in proptest::collection::vec(any::<[u8; 4]>(), 1..60),
    ) {
        let mut world = world(true);
        for what in steps {
            step(&mut world, true, what);
            compare(&world);
            world.events();
        }
    }

    #[test]
    fn what_is_cached_is_what_is_in_memory_without_ranges(
        steps in proptest::collection::vec(any::<[u8; 4]>(), 1..60),
    ) {
        let mut world = world(false);
        for what in steps {
            step(&mut world, false, what);
            compare(&world);
            world.events();
        }
    }
}
