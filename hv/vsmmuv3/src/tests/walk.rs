//! The walk that the monitor shows, against tables written by the manual's bit numbers.

use std::vec::Vec;

use iommu::NestedConfig;
use smmuv3::spec::{EventId, regs};
use types::{Ipa, Pa, SubstreamId};

use super::{BYPASS, CD, Guest, L1, L2, RAM, RAM_BYTES, S1, cfgi_ste, sid};
use crate::{Access, BadSte, End, MOST_STEPS, Step, Walk};

/// Where stage 2 puts the guest's RAM.
const PHYSICAL: u64 = 0x1_0000_0000;
/// A table for each level, 16 KiB aligned.
const TABLES: [u64; 4] = [
    RAM + 0x1_0000,
    RAM + 0x1_4000,
    RAM + 0x1_8000,
    RAM + 0x1_c000,
];
const DATA: u64 = RAM + 0x2_0000;
/// Table, not a leaf.
const TABLE: u64 = 3;
/// A page, or with bit 1 clear a block: accessed.
const PAGE: u64 = 3 | 1 << 10;
const BLOCK: u64 = 1 | 1 << 10;

/// A valid descriptor of 64-bit tables that records its faults: `T0SZ`, and no upper range.
const fn cd(t0sz: u64) -> u64 {
    t0sz | 1 << 30 | 1 << 31 | 5 << 32 | 1 << 41 | 1 << 45 | 1 << 46
}

fn pa(ipa: u64) -> u64 {
    ipa - RAM + PHYSICAL
}

fn stage_two(ipa: Ipa) -> Option<Pa> {
    let offset = ipa.bits().checked_sub(RAM)?;
    (offset < RAM_BYTES as u64).then(|| Pa::new(PHYSICAL + offset).unwrap())
}

fn walk(guest: &Guest, at: u64, access: Access) -> Walk {
    let stream = (sid(8), None);
    guest.smmu.walk(stream, at, access, &guest.ram, stage_two)
}

fn end(guest: &Guest, at: u64) -> End {
    walk(guest, at, Access::Read).end()
}

fn reached(ipa: u64) -> End {
    End::Reached(Pa::new(pa(ipa)).unwrap())
}

/// Four levels of 4 KiB tables: address 0x8_4020_1000 is in entry 1 of each.
const AT: u64 = 1 << 39 | 1 << 30 | 1 << 21 | 1 << 12;

fn guest() -> Guest {
    let guest = Guest::nested();
    guest.ram.put(CD, &[cd(16), TABLES[0], 0, 0]);
    for level in 0..3 {
        guest
            .ram
            .put(TABLES[level] + 8, &[TABLES[level + 1] | TABLE]);
    }
    guest.ram.put(TABLES[3] + 8, &[DATA | PAGE]);
    guest
}

#[test]
fn a_walk_shows_every_table_it_read_and_where_it_lies() {
    let guest = guest();
    let walk = walk(&guest, AT | 0x123, Access::Write);
    assert_eq!(walk.end(), reached(DATA | 0x123));
    let steps: Vec<_> = walk.steps().copied().collect();
    assert_eq!(steps.len(), 8);
    assert_eq!(
        steps[0],
        Step::StreamTable {
            at: L1,
            descriptor: L2 | 9
        }
    );
    assert!(matches!(steps[1], Step::Ste { at, judged: Ok(_), .. } if at == L2 + 8 * 64));
    let physical = |ipa| Pa::new(pa(ipa)).unwrap();
    assert!(matches!(steps[2], Step::Cd { at: CD, pa, .. } if pa == physical(CD)));
    for level in 0..4_u8 {
        let at = TABLES[usize::from(level)] + 8;
        let [descriptor] = guest.ram.get(at);
        assert_eq!(
            steps[3 + usize::from(level)],
            Step::Table {
                level,
                at,
                pa: physical(at),
                descriptor
            }
        );
    }
    assert_eq!(
        steps[7],
        Step::Output {
            ipa: DATA | 0x123,
            pa: physical(DATA | 0x123)
        }
    );
}

#[test]
fn a_walk_changes_nothing_and_reads_a_bounded_number_of_places() {
    let guest = guest();
    let before = guest.ram.bytes.borrow().clone();
    let streams = guest.smmu.streams().to_vec();
    for at in [0, AT, 1 << 47, u64::MAX, 0x8000_0000_0000_0000] {
        let reads = guest.ram.reads.get();
        assert!(walk(&guest, at, Access::Read).steps().count() <= MOST_STEPS);
        assert!(guest.ram.reads.get() - reads <= MOST_STEPS);
    }
    assert_eq!(*guest.ram.bytes.borrow(), before);
    assert_eq!(guest.smmu.streams(), streams);
    assert_eq!(guest.hardware.batches.len(), 0);
}

#[test]
fn while_the_smmu_is_off_a_walk_shows_what_gbpa_says() {
    let mut guest = guest();
    guest.w32(regs::CR0, 0xc);
    let aborts = walk(&guest, DATA, Access::Read);
    assert_eq!(aborts.end(), End::Aborts);
    let off = Step::Off(NestedConfig::ABORT);
    assert_eq!(aborts.steps().collect::<Vec<_>>(), [&off]);
    guest.w32(regs::GBPA, 1 << 31);
    assert_eq!(end(&guest, DATA), reached(DATA));
}

#[test]
fn a_walk_tells_the_ways_in_which_an_entry_is_missing_or_bad() {
    let mut guest = guest();
    let stream = |guest: &Guest, stream| {
        let walk = guest
            .smmu
            .walk((sid(stream), None), AT, Access::Read, &guest.ram, stage_two);
        walk.end()
    };
    assert_eq!(stream(&guest, 0x1_0000), End::Fault(EventId::CBadStreamid));
    assert_eq!(stream(&guest, 0x100), End::Fault(EventId::CBadStreamid));
    guest.ram.put(L1, &[0x1000_0000 | 9]);
    assert_eq!(stream(&guest, 8), End::Fault(EventId::FSteFetch));
    guest.ram.put(L1, &[L2 | 9]);
    guest.ste(8, [7 << 1 | 1, 0, 0, 0]);
    let bad = walk(&guest, AT, Access::Read);
    assert_eq!(bad.end(), End::Fault(EventId::CBadSte));
    let judged = Err(BadSte::StageTwo);
    assert!(
        bad.steps()
            .any(|step| matches!(step, Step::Ste { judged: j, .. } if *j == judged))
    );
    guest.ste(8, [1, 0, 0, 0]);
    assert_eq!(end(&guest, AT), End::Aborts);
    guest.ste(8, [BYPASS, 0, 0, 0]);
    assert_eq!(end(&guest, DATA), reached(DATA));
    // What the tables say now; what the hardware has is what they said at the last command.
    assert!(guest.translates(8));
    guest.send(&[cfgi_ste(8)]);
    assert!(!guest.translates(8));
}

#[test]
fn blocks_of_every_size_are_leaves() {
    let guest = guest();
    guest.ram.put(TABLES[2] + 8, &[0x4000_0000 | BLOCK]);
    assert_eq!(end(&guest, AT | 0x123), reached(0x4000_1123));
    guest.ram.put(TABLES[1] + 8, &[0x4000_0000 | BLOCK]);
    let low = AT & 0x3_ffff & 0x3fff_ffff;
    assert_eq!(
        end(&guest, (1 << 39 | 1 << 30) | low),
        reached(0x4000_0000 | low)
    );
    // There are none at level 0, and no tables at level 3.
    guest.ram.put(TABLES[0] + 8, &[0x4000_0000 | BLOCK]);
    assert_eq!(end(&guest, AT), End::Fault(EventId::FTranslation));
}

#[test]
fn each_fault_of_a_leaf_is_told() {
    let guest = guest();
    let leaf = TABLES[3] + 8;
    for (descriptor, access, expected) in [
        (0, Access::Read, End::Fault(EventId::FTranslation)),
        (DATA | 1, Access::Read, End::Fault(EventId::FTranslation)),
        (DATA | 3, Access::Read, End::Fault(EventId::FAccess)),
        (DATA | PAGE | 1 << 7, Access::Read, reached(DATA)),
        (
            DATA | PAGE | 1 << 7,
            Access::Write,
            End::Fault(EventId::FPermission),
        ),
        // Beyond the 40 bits that the guest was told, and beyond its memory within them.
        (1 << 40 | PAGE, Access::Read, End::Fault(EventId::FAddrSize)),
        (1 << 39 | PAGE, Access::Read, End::StageTwo(1 << 39)),
    ] {
        guest.ram.put(leaf, &[descriptor]);
        assert_eq!(walk(&guest, AT, access).end(), expected, "{descriptor:#x}");
    }
    // A table above may take the right to write away.
    guest.ram.put(leaf, &[DATA | PAGE]);
    assert_eq!(walk(&guest, AT, Access::Write).end(), reached(DATA));
    guest.ram.put(TABLES[1] + 8, &[TABLES[2] | TABLE | 1 << 62]);
    let refused = End::Fault(EventId::FPermission);
    assert_eq!(walk(&guest, AT, Access::Write).end(), refused);
    assert_eq!(walk(&guest, AT, Access::Read).end(), reached(DATA));
}

#[test]
fn tables_that_stage_2_does_not_map_are_told_by_their_address() {
    let guest = guest();
    for elsewhere in [0x0900_0000, RAM + RAM_BYTES as u64, 1 << 38] {
        guest.ram.put(TABLES[1] + 8, &[elsewhere | TABLE]);
        assert_eq!(end(&guest, AT), End::StageTwo(elsewhere + 8));
        guest.ste(8, [S1 | elsewhere, 0, 0, 0]);
        assert_eq!(end(&guest, AT), End::StageTwo(elsewhere));
        guest.ste(8, [S1 | CD, 0, 0, 0]);
    }
}

#[test]
fn context_descriptors_that_the_hardware_would_refuse_are_bad() {
    let guest = guest();
    assert_eq!(end(&guest, AT), reached(DATA));
    for bits in [
        // Not valid, not AArch64, big-endian, stalls, updates flags, ends silently.
        1 << 31,
        1 << 41,
        1 << 15,
        1 << 44,
        1 << 42,
        1 << 43,
        1 << 46,
    ] {
        guest.ram.put(CD, &[cd(16) ^ bits]);
        assert_eq!(end(&guest, AT), End::Fault(EventId::CBadCd), "{bits:#x}");
    }
    // Inputs too large and too small; a granule that there is not.
    for word0 in [cd(15), cd(40), cd(16) | 3 << 6] {
        guest.ram.put(CD, &[word0]);
        assert_eq!(end(&guest, AT), End::Fault(EventId::CBadCd), "{word0:#x}");
    }
    // The lower range is off.
    guest.ram.put(CD, &[cd(16) | 1 << 14]);
    assert_eq!(end(&guest, AT), End::Fault(EventId::FTranslation));
}

#[test]
fn the_input_ends_where_t0sz_says_and_the_top_byte_may_be_ignored() {
    let guest = guest();
    // 39 bits: the walk starts at level 1.
    guest.ram.put(CD, &[cd(25), TABLES[1]]);
    let at = AT & !(1 << 39);
    assert_eq!(end(&guest, at), reached(DATA));
    assert_eq!(end(&guest, AT), End::Fault(EventId::FTranslation));
    let tagged = at | 0xab << 56;
    assert_eq!(end(&guest, tagged), End::Fault(EventId::FTranslation));
    guest.ram.put(CD, &[cd(25) | 1 << 38]);
    assert_eq!(end(&guest, tagged), reached(DATA));
}

#[test]
fn the_upper_range_has_a_table_of_its_own() {
    let guest = guest();
    // T1SZ 16, TG1 4 KiB, EPD1 off; the lower range off.
    let word0 = cd(16) & !(1 << 30) | 16 << 16 | 2 << 22 | 1 << 14;
    guest.ram.put(CD, &[word0, 0, TABLES[0]]);
    let at = 0xffff_0000_0000_0000 | AT;
    assert_eq!(end(&guest, at), reached(DATA));
    assert_eq!(end(&guest, AT), End::Fault(EventId::FTranslation));
    assert_eq!(
        end(&guest, at & !(1 << 50)),
        End::Fault(EventId::FTranslation)
    );
}

#[test]
fn granules_of_16_and_64_kib_are_walked() {
    let guest = guest();
    // 16 KiB, 47 bits: levels 1, 2, 3 of 11 bits each; entry 2 of each.
    guest.ram.put(CD, &[cd(17) | 2 << 6, TABLES[0]]);
    let at = 2 << 36 | 2 << 25 | 2 << 14;
    for level in 0..2 {
        guest
            .ram
            .put(TABLES[level] + 16, &[TABLES[level + 1] | TABLE]);
    }
    guest.ram.put(TABLES[2] + 16, &[DATA | PAGE]);
    assert_eq!(end(&guest, at | 0x3456), reached(DATA | 0x3456));
    // 64 KiB, 42 bits: levels 2 and 3 of 13 bits each.
    guest.ram.put(CD, &[cd(22) | 1 << 6, RAM + 0x1_0000]);
    guest
        .ram
        .put(RAM + 0x1_0000 + 24, &[(RAM + 0x3_0000) | TABLE]);
    guest.ram.put(RAM + 0x3_0000 + 32, &[DATA | PAGE]);
    let at = 3 << 29 | 4 << 16;
    assert_eq!(end(&guest, at | 0x789a), reached(DATA | 0x789a));
}

#[test]
fn substreams_have_their_own_descriptors() {
    let mut guest = Guest::rich();
    guest.bring_up();
    for level in 0..3 {
        guest
            .ram
            .put(TABLES[level] + 8, &[TABLES[level + 1] | TABLE]);
    }
    guest.ram.put(TABLES[3] + 8, &[DATA | PAGE]);
    // Two levels, leaves of 4 KiB: descriptor 65 is the second of the second leaf.
    let leaf = RAM + 0x2_4000;
    guest.ram.put(CD, &[0, leaf | 1]);
    guest.ram.put(leaf + 64, &[cd(16), TABLES[0]]);
    guest.ste(8, [S1 | CD | 1 << 4 | 7 << 59, 0, 0, 0]);
    let end = |guest: &Guest, substream: Option<u32>| {
        let substream = substream.map(|bits| SubstreamId::new(bits).unwrap());
        guest
            .smmu
            .walk((sid(8), substream), AT, Access::Read, &guest.ram, stage_two)
            .end()
    };
    assert_eq!(end(&guest, Some(65)), reached(DATA));
    assert_eq!(end(&guest, Some(64)), End::Fault(EventId::CBadCd));
    assert_eq!(end(&guest, Some(3)), End::Fault(EventId::CBadSubstreamid));
    assert_eq!(end(&guest, Some(128)), End::Fault(EventId::CBadSubstreamid));
    // S1DSS: terminate, bypass, substream 0.
    assert_eq!(end(&guest, None), End::Fault(EventId::FStreamDisabled));
    guest.ste(8, [S1 | CD | 1 << 4 | 7 << 59, 1, 0, 0]);
    assert_eq!(end(&guest, None), End::StageTwo(AT));
    guest.ste(8, [S1 | CD | 1 << 4 | 7 << 59, 2, 0, 0]);
    assert_eq!(end(&guest, None), End::Fault(EventId::CBadSubstreamid));
}
