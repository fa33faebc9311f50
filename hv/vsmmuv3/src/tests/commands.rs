//! The command queue: what is consumed, what is handed down, what stops it.

use smmuv3::spec::{Depth, Range, regs};
use types::{Asid, SubstreamId};

use super::{
    CD, CFGI_ALL, CMDQ, Guest, NH_ALL, NSNH_ALL, RAM, RAM_BYTES, S1, SYNC, cfgi_ste, qemu, sid,
};
use crate::{Failure, Health, Invalidation, Options, SingleAddress, VaRange, Width, Work};

fn asid(bits: u16) -> Asid {
    Asid::new(bits).unwrap()
}

const ILL: u32 = 1 << 24;
const ABT: u32 = 2 << 24;
const ATC: u32 = 3 << 24;

/// `CMD_TLBI_NH_VA` with a range of `TG`, `SCALE`, `NUM`, `TTL`.
fn va(asid: u64, va: u64, [tg, scale, num, ttl]: [u64; 4], leaf: u64) -> [u64; 2] {
    [
        0x12 | num << 12 | scale << 20 | asid << 48,
        va | ttl << 8 | tg << 10 | leaf,
    ]
}

#[test]
fn a_sync_alone_is_consumed_without_touching_hardware() {
    let mut guest = Guest::nested();
    guest.send(&[SYNC]);
    assert_eq!(guest.cons(), 1);
    assert!(guest.hardware.batches.is_empty());
    assert_eq!(guest.take_pulses(), [0, 0, 0]);
}

#[test]
fn invalidations_wait_for_the_sync_and_go_in_one_batch() {
    let mut guest = Guest::nested();
    guest.send(&[NH_ALL]);
    guest.send(&[[0x11 | 7 << 48, 0]]);
    assert_eq!(guest.cons(), 2);
    assert!(guest.hardware.batches.is_empty());
    guest.send(&[SYNC]);
    // By address space is part of all.
    assert_eq!(guest.hardware.batches, [[Invalidation::All]]);
    guest.send(&[SYNC]);
    assert_eq!(guest.hardware.batches.len(), 1);
}

#[test]
fn every_tlb_command_is_decoded_and_the_guests_vmid_is_ignored() {
    let mut guest = Guest::nested();
    let vmid = 0x1234 << 32;
    guest.send(&[
        [0x11 | vmid | 7 << 48, 0],
        [0x12 | vmid | 7 << 48, 0x1_2345_6001],
        [0x13 | vmid, 0x1_2345_6000],
        SYNC,
    ]);
    let single = |depth| VaRange {
        va: 0x1_2345_6000,
        range: Range::LEAF,
        depth,
    };
    assert_eq!(
        guest.hardware.batches,
        [[
            Invalidation::Asid(asid(7)),
            Invalidation::Va {
                asid: asid(7),
                at: single(Depth::Leaf)
            },
            Invalidation::Vaa(single(Depth::All)),
        ]]
    );
    guest.send(&[[0x10 | vmid, 0], SYNC]);
    guest.send(&[NSNH_ALL, SYNC]);
    assert_eq!(
        guest.hardware.batches[1..],
        [[Invalidation::All], [Invalidation::All]]
    );
}

#[test]
fn eight_bit_asids_have_eight_bits() {
    let mut identity = qemu();
    identity.idr0 = identity.idr0.with_asid16(false);
    let mut guest = Guest::with(&identity, Options::default());
    guest.bring_up();
    guest.send(&[[0x11 | 0x1207 << 48, 0], SYNC]);
    assert_eq!(guest.hardware.batches, [[Invalidation::Asid(asid(7))]]);
}

#[test]
fn a_range_is_handed_down_as_it_is() {
    let mut guest = Guest::nested();
    guest.send(&[va(7, 0x4000_0000, [1, 3, 30, 3], 1), SYNC]);
    let Invalidation::Va { at, .. } = guest.hardware.batches[0][0] else {
        panic!();
    };
    assert_eq!(
        at.range,
        Range {
            num: 30,
            scale: 3,
            granule: 1,
            level: 3
        }
    );
    assert_eq!(at.last(), Some(0x4000_0000 + 31 * 8 * 4096 - 1));
}

#[test]
fn every_range_that_goes_down_is_legal_and_covers_what_was_asked() {
    let mut guest = Guest::nested();
    for tg in 1..=3_u64 {
        let page = 1_u64 << (10 + 2 * tg);
        for scale in [0, 1, 5, 19, 20, 31] {
            for num in [0, 1, 31] {
                for ttl in 0..4 {
                    for start in [0, page, 0x7fff_ffff_0000, 0xffff_ffff_ffff_0000] {
                        let before = guest.hardware.batches.len();
                        guest.send(&[va(1, start, [tg, scale, num, ttl], 0), SYNC]);
                        let [what] = guest.hardware.batches[before][..] else {
                            panic!();
                        };
                        let Invalidation::Va { at, .. } = what else {
                            assert_eq!(what, Invalidation::All);
                            continue;
                        };
                        let bytes = u128::from(num + 1) << scale;
                        let asked = u128::from(start) + bytes * u128::from(page) - 1;
                        assert!(u128::from(at.last().unwrap()) >= asked);
                        assert_eq!(at.va, start);
                        let range = at.range;
                        assert!(range.level > 0 || range.num > 0 || range.scale > 0);
                        assert!(range.level != 1 || range.granule == 1);
                        let leaf = match (range.granule, range.level) {
                            (1, 1) => 30,
                            (1, 2) => 21,
                            (2, 2) => 25,
                            (3, 2) => 29,
                            (granule, _) => 10 + 2 * u32::from(granule),
                        };
                        assert!(start.trailing_zeros() >= leaf, "{range:?} from {start:#x}");
                    }
                }
            }
        }
    }
    assert_eq!(guest.r32(regs::GERROR), 0);
}

#[test]
fn a_range_of_one_without_a_level_is_reserved_and_becomes_two() {
    let mut guest = Guest::nested();
    guest.send(&[va(7, 0x1000, [1, 0, 0, 0], 0), SYNC]);
    let [Invalidation::Va { at, .. }] = guest.hardware.batches[0][..] else {
        panic!();
    };
    assert_eq!((at.range.num, at.last()), (1, Some(0x2fff)));
}

#[test]
fn a_level_whose_leaves_begin_elsewhere_is_any_level() {
    let mut guest = Guest::nested();
    for (granule, aligned) in [(1, 21), (2, 25), (3, 29)] {
        let page = 1 << (10 + 2 * granule);
        // One leaf of level 2, and one granule behind its start: no level, and so two granules.
        for (start, wanted) in [(1 << aligned, (2, 0)), ((1 << aligned) + page, (0, 1))] {
            guest.send(&[va(7, start, [granule, 0, 0, 2], 0), SYNC]);
            let batch = guest.hardware.batches.pop().unwrap();
            let [Invalidation::Va { at, .. }] = batch[..] else {
                panic!();
            };
            assert_eq!((at.range.level, at.range.num), wanted, "{start:#x}");
            assert_eq!(at.va, start);
        }
    }
}

#[test]
fn a_misaligned_or_endless_range_becomes_everything() {
    let mut guest = Guest::nested();
    for command in [
        va(7, 0x1000, [3, 0, 4, 0], 0),
        va(7, 0xffff_ffff_ffff_0000, [1, 31, 31, 0], 0),
    ] {
        guest.send(&[command, SYNC]);
        assert_eq!(guest.hardware.batches.pop().unwrap(), [Invalidation::All]);
    }
}

#[test]
fn a_granule_that_the_hardware_lacks_becomes_everything() {
    let mut identity = qemu();
    identity.idr5 = identity.idr5.with_gran64k(false);
    let mut guest = Guest::with(&identity, Options::default());
    guest.bring_up();
    guest.send(&[va(7, 0x1_0000, [3, 0, 1, 0], 0), SYNC]);
    assert_eq!(guest.hardware.batches, [[Invalidation::All]]);
}

#[test]
fn without_range_invalidation_its_fields_are_ignored() {
    let mut identity = qemu();
    identity.idr3 = identity.idr3.with_ril(false);
    let mut guest = Guest::with(&identity, Options::default());
    guest.bring_up();
    guest.send(&[va(7, 0x5000, [1, 3, 30, 3], 1), SYNC]);
    let [Invalidation::Va { at, .. }] = guest.hardware.batches[0][..] else {
        panic!();
    };
    assert_eq!((at.va, at.range), (0x5000, Range::LEAF));
}

#[test]
fn a_single_address_is_widened_where_the_hardware_forgets_only_4_kib() {
    let options = Options {
        single_address: SingleAddress::FourKilobytes,
        ..Options::default()
    };
    let mut guest = Guest::with(&qemu(), options);
    guest.bring_up();
    guest.send(&[[0x12 | 7 << 48, 0x1_2345_6000], SYNC]);
    // Global translations too: by ASID would leave them.
    assert_eq!(guest.hardware.batches, [[Invalidation::All]]);
    // A range says how far it goes, and is not widened.
    guest.send(&[va(7, 0x20_0000, [1, 9, 0, 2], 1), SYNC]);
    assert!(matches!(
        guest.hardware.batches[1][..],
        [Invalidation::Va { .. }]
    ));
}

#[test]
fn a_full_batch_goes_down_before_the_sync() {
    let mut guest = Guest::nested();
    for at in 0..40_u64 {
        guest.send(&[[0x11 | at << 48, 0], [0x13, at << 12]]);
    }
    assert_eq!(guest.hardware.batches.len(), 1);
    assert_eq!(guest.hardware.batches[0].len(), 64);
    guest.send(&[SYNC]);
    assert_eq!(guest.hardware.batches.concat().len(), 80);
}

#[test]
fn prefetches_are_taken_and_do_nothing() {
    let mut guest = Guest::nested();
    guest.send(&[
        [1 | 8 << 32, 0],
        [2 | 8 << 32, 0x1000],
        [1 | 0xffff << 32, 0],
        SYNC,
    ]);
    assert_eq!(guest.cons(), 4);
    assert!(guest.hardware.batches.is_empty() && guest.hardware.streams.is_empty());
}

#[test]
fn commands_that_the_guest_was_not_told_of_are_illegal() {
    let forbidden = [
        (0x00, "reserved"),
        (0x07, "CFGI_VMS_PIDM"),
        (0x14, "reserved"),
        (0x18, "TLBI_EL3_ALL"),
        (0x1a, "TLBI_EL3_VA"),
        (0x20, "TLBI_EL2_ALL"),
        (0x21, "TLBI_EL2_ASID"),
        (0x22, "TLBI_EL2_VA"),
        (0x23, "TLBI_EL2_VAA"),
        (0x28, "TLBI_S12_VMALL"),
        (0x2a, "TLBI_S2_IPA"),
        (0x40, "ATC_INV"),
        (0x41, "PRI_RESP"),
        (0x44, "RESUME"),
        (0x45, "STALL_TERM"),
        (0x50, "TLBI_SNH_ALL"),
        (0x60, "Secure"),
        (0x70, "DPTI_ALL"),
        (0x73, "DPTI_PA"),
        (0xff, "reserved"),
    ];
    for (opcode, name) in forbidden {
        let mut guest = Guest::nested();
        guest.send(&[SYNC, [opcode, 0], NH_ALL, SYNC]);
        assert_eq!(guest.cons(), ILL | 1, "{name}");
        assert_eq!(guest.r32(regs::GERROR), 1, "{name}");
        assert_eq!(guest.take_pulses(), [0, 1, 0], "{name}");
        assert!(guest.hardware.batches.is_empty(), "{name}");
    }
}

#[test]
fn every_opcode_is_either_taken_or_illegal() {
    let mut taken = std::vec::Vec::new();
    for opcode in 0..=255_u64 {
        let mut guest = Guest::nested();
        guest.send(&[[opcode, 0]]);
        match guest.cons() {
            1 => taken.push(opcode),
            ILL => {}
            other => panic!("{opcode:#x}: {other:#x}"),
        }
    }
    assert_eq!(
        taken,
        [1, 2, 3, 4, 5, 6, 0x10, 0x11, 0x12, 0x13, 0x30, 0x46]
    );
}

#[test]
fn secure_configuration_commands_are_illegal() {
    for opcode in [1, 2, 3, 4, 5, 6] {
        let mut guest = Guest::nested();
        guest.send(&[[opcode | 1 << 10, 0]]);
        assert_eq!(guest.cons(), ILL, "{opcode:#x}");
    }
}

#[test]
fn a_sync_with_a_reserved_signal_is_illegal() {
    let mut guest = Guest::nested();
    guest.send(&[[0x46 | 3 << 12, 0]]);
    assert_eq!(guest.cons(), ILL);
}

#[test]
fn a_sync_that_asks_for_an_interrupt_pulses_the_wire_and_writes_nothing() {
    let mut guest = Guest::nested();
    let target = RAM + 0x1_8000;
    guest.send(&[[0x46 | 1 << 12 | 0x1234 << 32, target]]);
    assert_eq!(guest.take_pulses(), [0, 0, 1]);
    assert_eq!(guest.ram.get(target), [0]);
    assert!(guest.ram.writes.borrow().is_empty());
}

#[test]
fn nothing_is_consumed_until_the_error_is_acknowledged() {
    let mut guest = Guest::nested();
    guest.send(&[[0xff, 0], NH_ALL, SYNC]);
    guest.send(&[SYNC]);
    guest.w32(regs::IRQ_CTRL, 5);
    let _ = guest.go_on();
    assert_eq!(guest.cons(), ILL);
    assert!(guest.hardware.batches.is_empty());
}

#[test]
fn after_the_acknowledgement_the_entry_is_fetched_again() {
    let mut guest = Guest::nested();
    guest.send(&[SYNC, [0xff, 0], NH_ALL, SYNC]);
    assert_eq!(guest.cons(), ILL | 1);
    // As Linux does: the bad entry becomes a sync, then the error is acknowledged.
    guest.ram.put(CMDQ + 16, &SYNC);
    guest.w32(regs::GERRORN, 1);
    assert_eq!(guest.cons(), 4);
    assert_eq!(guest.hardware.batches, [[Invalidation::All]]);
    assert_eq!(guest.r32(regs::GERROR), guest.r32(regs::GERRORN));
}

#[test]
fn an_entry_left_bad_stops_again() {
    let mut guest = Guest::nested();
    guest.send(&[[0xff, 0]]);
    for round in 1..=5 {
        assert_eq!(guest.cons(), ILL);
        assert_eq!(guest.r32(regs::GERROR), round & 1);
        assert_eq!(guest.take_pulses(), [0, 1, 0]);
        guest.w32(regs::GERRORN, round & 1);
    }
}

#[test]
fn an_error_pulses_only_when_its_interrupt_is_on() {
    let mut guest = Guest::nested();
    guest.w32(regs::IRQ_CTRL, 4);
    guest.send(&[[0xff, 0]]);
    assert_eq!(guest.r32(regs::GERROR), 1);
    assert_eq!(guest.take_pulses(), [0, 0, 0]);
}

#[test]
fn a_queue_outside_memory_is_an_abort() {
    for base in [
        0,
        0x0900_0000,
        RAM + RAM_BYTES as u64,
        1 << 39,
        0x000f_ffff_ffff_f000,
    ] {
        let mut guest = Guest::nested();
        guest.w32(regs::CR0, 0);
        guest.w64(regs::CMDQ_BASE, base | 6);
        guest.w32(regs::CMDQ_CONS, 0);
        guest.w32(regs::CMDQ_PROD, 3);
        guest.w32(regs::CR0, 0xc);
        assert_eq!(guest.cons(), ABT, "{base:#x}");
        assert_eq!(guest.r32(regs::GERROR), 1);
        // It is tried again after the acknowledgement.
        guest.w32(regs::GERRORN, 1);
        assert_eq!(
            (guest.cons(), guest.r32(regs::GERROR)),
            (ABT, 0),
            "{base:#x}"
        );
    }
}

#[test]
fn a_queue_that_ends_outside_memory_is_consumed_up_to_there() {
    let options = Options {
        commands_log2: 19,
        ..Options::default()
    };
    let mut guest = Guest::with(&qemu(), options);
    // 8 MiB from the beginning of RAM, of which there are 16384 entries.
    guest.w64(regs::CMDQ_BASE, RAM | 19);
    guest.w32(regs::CMDQ_CONS, 16382);
    guest.w32(regs::CMDQ_PROD, 16386);
    for at in 0..2 {
        guest.ram.put(RAM + RAM_BYTES as u64 - 32 + at * 16, &SYNC);
    }
    guest.w32(regs::CR0, 0xc);
    assert_eq!(guest.cons(), ABT | 16384);
}

#[test]
fn a_size_beyond_the_limit_is_cut() {
    let mut guest = Guest::nested();
    guest.w32(regs::CR0, 0);
    guest.w64(regs::CMDQ_BASE, (RAM + 0x1_0000) | 31);
    guest.w32(regs::CMDQ_CONS, 0);
    guest.w32(regs::CMDQ_PROD, 1024 + 3);
    // 2^10 entries of 16 bytes, all syncs.
    for at in 0..1024 {
        guest.ram.put(RAM + 0x1_0000 + at * 16, &SYNC);
    }
    guest.w32(regs::CR0, 0xc);
    assert_eq!(guest.cons(), 1024, "one lap, and no more");
}

#[test]
fn a_base_is_aligned_to_the_size_of_the_queue() {
    let mut guest = Guest::nested();
    guest.w32(regs::CR0, 0);
    guest.w64(regs::CMDQ_BASE, CMDQ | 0x3e0 | 6);
    guest.w32(regs::CMDQ_CONS, 0);
    guest.ram.put(CMDQ, &[[0x46, 0], [0x46, 0]].concat());
    guest.w32(regs::CMDQ_PROD, 2);
    guest.w32(regs::CR0, 0xc);
    assert_eq!(guest.cons(), 2);
}

#[test]
fn a_queue_wraps_over_and_over() {
    let mut guest = Guest::nested();
    for round in 0..300_u32 {
        guest.send(&[NH_ALL, SYNC, SYNC]);
        assert_eq!(guest.cons(), ((round + 1) * 3) & 127);
    }
    assert_eq!(guest.hardware.batches.len(), 300);
}

#[test]
fn a_queue_of_one_entry_works() {
    let mut guest = Guest::nested();
    guest.w32(regs::CR0, 0);
    guest.w64(regs::CMDQ_BASE, CMDQ);
    guest.w32(regs::CMDQ_PROD, 0);
    guest.w32(regs::CMDQ_CONS, 0);
    guest.w32(regs::CR0, 0xc);
    guest.ram.put(CMDQ, &SYNC);
    for prod in [1, 0, 1] {
        guest.w32(regs::CMDQ_PROD, prod);
        assert_eq!(guest.cons(), prod);
    }
}

#[test]
fn a_full_queue_is_consumed_whole() {
    let mut guest = Guest::nested();
    guest.send(&[SYNC; 64]);
    assert_eq!(guest.cons(), 64);
    guest.send(&[SYNC; 64]);
    assert_eq!(guest.cons(), 0);
}

#[test]
fn a_producer_beyond_a_lap_gets_a_lap() {
    let mut guest = Guest::nested();
    guest.put(&[SYNC; 64]);
    guest.w32(regs::CMDQ_PROD, 127);
    assert_eq!(guest.cons(), 64);
    assert_eq!(guest.smmu.counters().commands, 64);
    // Nothing more until the next write.
    let outcome = guest.go_on();
    assert_eq!((outcome.work, guest.cons()), (Work::Done, 64));
}

#[test]
fn nothing_is_consumed_while_the_queue_is_off() {
    let mut guest = Guest::nested();
    guest.w32(regs::CR0, 5);
    guest.send(&[NH_ALL, SYNC]);
    assert_eq!(guest.cons(), 0);
    guest.w32(regs::CR0, 0xd);
    assert_eq!(guest.cons(), 2);
}

#[test]
fn turning_the_queue_off_completes_what_was_consumed() {
    let mut guest = Guest::nested();
    guest.send(&[NH_ALL]);
    assert!(guest.hardware.batches.is_empty());
    guest.w32(regs::CR0, 5);
    assert_eq!(guest.hardware.batches, [[Invalidation::All]]);
}

#[test]
fn one_call_consumes_a_bounded_number_and_says_that_there_is_more() {
    let options = Options {
        commands_log2: 19,
        ..Options::default()
    };
    let mut guest = Guest::with(&qemu(), options);
    guest.queues_on();
    guest.w32(regs::CR0, 0);
    // 2^13 entries, all RAM holds from there.
    guest.w64(regs::CMDQ_BASE, (RAM + 0x2_0000) | 13);
    for at in 0..8192 {
        guest
            .ram
            .put(RAM + 0x2_0000 + at * 16, &[0x11 | at << 48, 0]);
    }
    guest.w32(regs::CR0, 0xc);
    let before = guest.ram.reads.get();
    let mut outcome = guest.write_once(regs::CMDQ_PROD, Width::Word, 8192);
    let mut calls = 1;
    while outcome.work == Work::More {
        assert!(guest.ram.reads.get() - before <= calls * 128);
        outcome = guest.go_on();
        calls += 1;
    }
    assert!(calls >= 64, "{calls}");
    assert_eq!(guest.cons(), 8192);
    assert_eq!(guest.hardware.batches.concat().len(), 8192 - 64);
}

#[test]
fn the_guest_can_look_and_ring_while_work_is_left() {
    let mut guest = Guest::nested();
    guest.w32(regs::CR0, 0);
    guest.w64(regs::CMDQ_BASE, (RAM + 0x1_0000) | 10);
    for at in 0..1024 {
        guest.ram.put(RAM + 0x1_0000 + at * 16, &SYNC);
    }
    guest.w32(regs::CR0, 0xc);
    let outcome = guest.write_once(regs::CMDQ_PROD, Width::Word, 500);
    assert_eq!(outcome.work, Work::More);
    let first = guest.cons();
    assert!(first > 0 && first < 500);
    let _ = guest.write_once(regs::CMDQ_PROD, Width::Word, 510);
    let second = guest.cons();
    assert!(second > first);
    let outcome = guest.go_on();
    guest.finish(outcome);
    assert_eq!(guest.cons(), 510);
}

#[test]
fn turning_the_queue_off_in_the_middle_stops_there() {
    let mut guest = Guest::nested();
    guest.w32(regs::CR0, 0);
    guest.w64(regs::CMDQ_BASE, (RAM + 0x1_0000) | 10);
    for at in 0..1024 {
        guest.ram.put(RAM + 0x1_0000 + at * 16, &SYNC);
    }
    guest.w32(regs::CR0, 0xc);
    let outcome = guest.write_once(regs::CMDQ_PROD, Width::Word, 1000);
    assert_eq!(outcome.work, Work::More);
    let at = guest.cons();
    let outcome = guest.write_once(regs::CR0, Width::Word, 0);
    assert_eq!((outcome.work, guest.cons()), (Work::Done, at));
}

#[test]
fn context_descriptors_go_by_the_guests_stream() {
    let mut guest = Guest::nested();
    guest.send(&[[5 | 8 << 32, 1], [6 | 8 << 32, 0], SYNC]);
    assert_eq!(
        guest.hardware.batches,
        [[
            Invalidation::Context {
                stream: sid(8),
                substream: SubstreamId::new(0).ok()
            },
            Invalidation::Context {
                stream: sid(8),
                substream: None
            }
        ]]
    );
}

#[test]
fn context_descriptors_of_streams_without_any_are_nobodys() {
    let mut guest = Guest::nested();
    // 0x100 aborts, 0x55 is no stream of this VM.
    guest.send(&[[5 | 0x100 << 32, 1], [6 | 0x55 << 32, 0], SYNC]);
    assert_eq!(guest.cons(), 3);
    assert!(guest.hardware.batches.is_empty());
}

#[test]
fn a_substream_beyond_the_table_is_ignored() {
    let mut guest = Guest::rich();
    guest.bring_up();
    guest.ste(8, [S1 | CD | 4 << 59, 0, 0, 0]);
    guest.send(&[cfgi_ste(8), SYNC]);
    guest.hardware.batches.clear();
    guest.send(&[
        [5 | 8 << 32 | 15 << 12, 1],
        [5 | 8 << 32 | 16 << 12, 1],
        SYNC,
    ]);
    assert_eq!(
        guest.hardware.batches,
        [[Invalidation::Context {
            stream: sid(8),
            substream: SubstreamId::new(15).ok()
        }]]
    );
}

#[test]
fn a_substream_is_ignored_where_there_is_one_descriptor() {
    let mut guest = Guest::nested();
    guest.send(&[[5 | 8 << 32 | 0xf_ffff << 12, 1], SYNC]);
    assert_eq!(
        guest.hardware.batches,
        [[Invalidation::Context {
            stream: sid(8),
            substream: SubstreamId::new(0).ok()
        }]]
    );
}

/// A guest whose stream 8 has ATS on.
fn with_ats() -> Guest {
    let mut guest = Guest::rich();
    guest.bring_up();
    guest.ste(8, [S1 | CD, 1 << 28, 0, 0]);
    guest.send(&[cfgi_ste(8), SYNC]);
    guest.hardware.batches.clear();
    guest
}

#[test]
fn atc_invalidations_are_spans_of_streams_with_ats() {
    let mut guest = with_ats();
    guest.send(&[
        [0x40 | 8 << 32, 0x1234_5000],
        [0x40 | 8 << 32, 0x1234_5000 | 4],
        [0x40 | 8 << 32 | 1 << 11 | 5 << 12, 52],
        SYNC,
    ]);
    let atc = |substream, first, last| Invalidation::Atc {
        stream: sid(8),
        substream,
        first,
        last,
    };
    assert_eq!(
        guest.hardware.batches,
        [[
            atc(None, 0x1234_5000, 0x1234_5fff),
            atc(None, 0x1234_0000, 0x1234_ffff),
            atc(SubstreamId::new(5).ok(), 0, u64::MAX),
        ]]
    );
}

#[test]
fn every_atc_size_is_a_span() {
    let mut guest = with_ats();
    for size in 0..64 {
        guest.send(&[[0x40 | 8 << 32, 0xffff_ffff_ffff_f000 | size], SYNC]);
        let [[Invalidation::Atc { first, last, .. }]] = guest
            .hardware
            .batches
            .iter()
            .map(|b| [b[0]])
            .collect::<std::vec::Vec<_>>()[..]
        else {
            panic!();
        };
        assert_eq!(last, u64::MAX);
        let bytes = if size >= 52 { 0 } else { 4096_u64 << size };
        assert_eq!(first, 0_u64.wrapping_sub(bytes), "{size}");
        guest.hardware.batches.clear();
    }
}

#[test]
fn atc_invalidations_of_other_streams_are_nobodys() {
    let mut guest = with_ats();
    guest.send(&[[0x40 | 0x100 << 32, 0], [0x40 | 0x77 << 32, 52], SYNC]);
    assert_eq!(guest.cons(), guest.prod);
    assert!(guest.hardware.batches.is_empty());
}

#[test]
fn a_device_that_does_not_answer_stops_the_sync() {
    let mut guest = with_ats();
    guest.hardware.failures.push(Err(Failure::AtcTimeout));
    let at = guest.prod + 1;
    guest.send(&[[0x40 | 8 << 32, 0], SYNC]);
    assert_eq!(guest.cons(), ATC | at);
    assert_eq!(guest.take_pulses(), [0, 1, 0]);
    // The sync is repeated, and has nothing left to wait for.
    guest.w32(regs::GERRORN, 1);
    assert_eq!(guest.cons(), guest.prod);
    assert_eq!(guest.smmu.health(), Health::Good);
}

#[test]
fn a_device_that_did_not_answer_a_full_batch_stops_the_next_sync() {
    let mut guest = with_ats();
    guest.hardware.failures.push(Err(Failure::AtcTimeout));
    for at in 0..65_u64 {
        guest.send(&[[0x40 | 8 << 32, at << 12]]);
    }
    assert_eq!(guest.hardware.batches.len(), 1);
    assert_eq!(guest.r32(regs::GERROR), 0);
    guest.send(&[SYNC]);
    assert_eq!(guest.cons() >> 24, 3);
}

#[test]
fn hardware_that_does_not_confirm_ends_the_service() {
    let mut guest = Guest::nested();
    guest.hardware.failures.push(Err(Failure::Failed));
    guest.put(&[NH_ALL, SYNC, SYNC]);
    let outcome = guest.write_once(regs::CMDQ_PROD, Width::Word, 3);
    assert_eq!((outcome.health, outcome.work), (Health::Broken, Work::Done));
    // The sync is never complete, and the guest is told why.
    assert_eq!(guest.cons(), 1);
    assert_eq!(guest.r32(regs::GERROR), 1 << 8);
    assert_eq!(guest.take_pulses(), [0, 1, 0]);
    guest.w32(regs::GERRORN, 1 << 8);
    guest.send(&[SYNC]);
    assert_eq!(guest.cons(), 1);
}

#[test]
fn a_command_patched_after_it_was_copied_has_no_effect() {
    let mut guest = Guest::nested();
    guest.put(&[NH_ALL, SYNC]);
    // While the first entry is read, another vCPU makes it a bad one.
    let now = guest.ram.reads.get();
    guest.ram.ambush.borrow_mut().push((now, CMDQ, 0xff));
    guest.w32(regs::CMDQ_PROD, 2);
    assert_eq!((guest.cons(), guest.r32(regs::GERROR)), (2, 0));
    assert_eq!(guest.hardware.batches, [[Invalidation::All]]);
    assert_eq!(guest.ram.reads.get() - now, 1, "both entries are read once");
}

#[test]
fn all_configuration_goes_with_one_command() {
    let mut guest = Guest::nested();
    guest.ste(8, [super::BYPASS, 0, 0, 0]);
    guest.send(&[CFGI_ALL, SYNC]);
    assert_eq!(guest.live(8), iommu::NestedConfig::BYPASS);
}

#[test]
fn the_same_as_a_record_of_the_core_covers_as_much() {
    use iommu::GuestInvalidation as Core;
    let at = |num, scale| VaRange {
        va: 0x1000,
        range: Range {
            num,
            scale,
            granule: 1,
            level: 3,
        },
        depth: Depth::Leaf,
    };
    let range = |last| iommu::VaRange {
        first: 0x1000,
        last,
        granule_shift: 12,
        level: 3,
        scope: iommu::VaScope::Leaves,
    };
    assert_eq!(Invalidation::All.for_core(), Core::All);
    assert_eq!(Invalidation::Asid(asid(3)).for_core(), Core::Asid(asid(3)));
    for (at, last) in [
        (at(0, 0), 0x1fff),
        (at(1, 0), 0x2fff),
        (at(0, 1), 0x2fff),
        (at(4, 3), 0x1000 + 40 * 0x1000 - 1),
    ] {
        let range = range(last);
        assert_eq!(
            Invalidation::Va { asid: asid(3), at }.for_core(),
            Core::Range {
                asid: Some(asid(3)),
                range
            }
        );
        assert_eq!(
            Invalidation::Vaa(at).for_core(),
            Core::Range { asid: None, range }
        );
    }
    let leaf = VaRange {
        va: 0x1000,
        range: Range::LEAF,
        depth: Depth::All,
    };
    assert_eq!(
        Invalidation::Vaa(leaf).for_core(),
        Core::Page {
            asid: None,
            va: 0x1000
        }
    );
    assert_eq!(
        Invalidation::Context {
            stream: sid(8),
            substream: None
        }
        .for_core(),
        Core::Context {
            virtual_id: 8,
            substream: None
        }
    );
    assert_eq!(
        Invalidation::Atc {
            stream: sid(8),
            substream: None,
            first: 0,
            last: 0xfff
        }
        .for_core(),
        Core::Atc {
            virtual_id: 8,
            start: 0,
            last: 0xfff
        }
    );
}
