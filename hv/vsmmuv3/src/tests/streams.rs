//! Streams: the guest's tables, entries, and every transition that moves them.

use iommu::{Ats, ContextFormat, DefaultSubstream, NestedConfig, StageOne, Translate};
use smmuv3::spec::regs;
use types::StreamId;

use super::{
    ABORTS, BYPASS, CD, CFGI_ALL, Guest, L1, L2, LINEAR, RAM, RAM_BYTES, Ram, S1, SYNC, cfgi_range,
    cfgi_ste, qemu, sid,
};
use crate::entry::{Missing, StreamTable};
use crate::{
    BadSte, Features, GuestSte, Health, Invalidation, MOST_STREAMS, Options, Refusal, StreamError,
    Verdict, Width, Work,
};

fn translate(base: u64) -> NestedConfig {
    NestedConfig {
        stage_one: StageOne::Translate(Translate {
            format: ContextFormat::Linear,
            default_substream: DefaultSubstream::Terminate,
            substream_bits: 0,
            base,
        }),
        ats: Ats::Off,
    }
}

fn judge(words: [u64; 2]) -> Result<NestedConfig, BadSte> {
    let features = Features::derive(&qemu(), Options::default()).unwrap();
    GuestSte([words[0], words[1], 0, 0, 0, 0, 0, 0]).judge(&features)
}

fn judge_rich(words: [u64; 2]) -> Result<NestedConfig, BadSte> {
    let options = Options {
        ats: Ats::On,
        ..Options::default()
    };
    let features = Features::derive(&super::rich(), options).unwrap();
    GuestSte([words[0], words[1], 0, 0, 0, 0, 0, 0]).judge(&features)
}

#[test]
fn an_entry_translates_bypasses_or_aborts() {
    assert_eq!(judge([S1 | CD, 0]), Ok(translate(CD)));
    assert_eq!(judge([BYPASS, 0]), Ok(NestedConfig::BYPASS));
    for config in 0..4 {
        assert_eq!(judge([1 | config << 1, 0]), Ok(NestedConfig::ABORT));
    }
}

#[test]
fn an_entry_that_is_not_valid_or_wants_stage_2_is_bad() {
    assert_eq!(judge([0, 0]), Err(BadSte::Invalid));
    assert_eq!(judge([S1 & !1 | CD, 0]), Err(BadSte::Invalid));
    assert_eq!(judge([6 << 1 | 1, 0]), Err(BadSte::StageTwo));
    assert_eq!(judge([7 << 1 | 1 | CD, 0]), Err(BadSte::StageTwo));
}

#[test]
fn fields_that_linux_sets_and_that_mean_nothing_here_are_masked() {
    // SHCFG incoming, STRW, MTCFG, MEV, S2HWU, S1CIR/COR/CSH as Linux writes them.
    let noise = 1 << 44 | 2 << 30 | 1 << 36 | 0xf << 32 | 1 << 19 | 0xfd;
    let features = Features::derive(&qemu(), Options::default()).unwrap();
    let rest = [u64::MAX; 6];
    let ste = |word0, word1| {
        let [a, b, c, d, e, f] = rest;
        GuestSte([word0, word1, a, b, c, d, e, f]).judge(&features)
    };
    assert_eq!(ste(BYPASS, noise), Ok(NestedConfig::BYPASS));
    assert_eq!(ste(S1 | CD, noise & !3), Ok(translate(CD)));
    assert_eq!(ste(ABORTS, u64::MAX), Ok(NestedConfig::ABORT));
}

#[test]
fn stalls_are_not_to_be_spoken_of() {
    assert_eq!(judge([S1 | CD, 1 << 27]), Err(BadSte::Stall));
    // Without stage 1 the field is ignored.
    assert_eq!(judge([BYPASS, 1 << 27]), Ok(NestedConfig::BYPASS));
}

#[test]
fn substreams_beyond_the_promise_are_bad() {
    // Where there are none, the field is ignored.
    assert_eq!(judge([S1 | CD | 1 << 59, 0]), Ok(translate(CD)));
    assert_eq!(
        judge_rich([S1 | CD | 17 << 59, 2]),
        Err(BadSte::Substreams(17))
    );
    assert!(judge_rich([S1 | CD | 16 << 59, 2]).is_ok());
}

#[test]
fn formats_need_two_level_tables() {
    let mut linear = super::rich();
    linear.idr0 = linear.idr0.with_cd2l(false);
    let linear = Features::derive(&linear, Options::default()).unwrap();
    for bits in 0..4 {
        // With one descriptor the field is ignored.
        let one = S1 | CD | bits << 4;
        assert_eq!(judge([one, 0]), Ok(translate(CD)));
        assert_eq!(judge_rich([one, 0]), Ok(translate(CD)));
        let many = GuestSte([one | 4 << 59, 0, 0, 0, 0, 0, 0, 0]).judge(&linear);
        let is_bad = many == Err(BadSte::Format(bits as u8));
        assert_eq!(is_bad, matches!(bits, 1 | 2));
    }
    for (bits, format) in [
        (0, ContextFormat::Linear),
        (1, ContextFormat::TwoLevel4K),
        (2, ContextFormat::TwoLevel64K),
        // Reserved, and as 0.
        (3, ContextFormat::Linear),
    ] {
        let Ok(config) = judge_rich([S1 | CD | bits << 4 | 4 << 59, 0]) else {
            panic!();
        };
        let StageOne::Translate(translate) = config.stage_one else {
            panic!();
        };
        assert_eq!((translate.format, translate.substream_bits), (format, 4));
    }
}

#[test]
fn the_default_substream_is_judged_where_there_are_substreams() {
    for (bits, default) in [
        (0, DefaultSubstream::Terminate),
        (1, DefaultSubstream::Bypass),
        (2, DefaultSubstream::Substream0),
        // Reserved, and as 0.
        (3, DefaultSubstream::Terminate),
    ] {
        let Ok(config) = judge_rich([S1 | CD | 4 << 59, bits]) else {
            panic!();
        };
        let StageOne::Translate(translate) = config.stage_one else {
            panic!();
        };
        assert_eq!(translate.default_substream, default);
    }
    assert_eq!(judge_rich([S1 | CD, 3]), judge([S1 | CD, 0]));
}

#[test]
fn ats_is_full_or_off() {
    let ats = |eats: u64| judge_rich([S1 | CD, eats << 28]);
    assert_eq!(ats(0).map(|config| config.ats), Ok(Ats::Off));
    assert_eq!(ats(1).map(|config| config.ats), Ok(Ats::On));
    assert_eq!(ats(2), Err(BadSte::Eats(2)));
    // Reserved without device permission tables, and as 0.
    assert_eq!(ats(3).map(|config| config.ats), Ok(Ats::Off));
    // Not offered: reserved, and ignored.
    for eats in 0..4 {
        assert_eq!(judge([S1 | CD, eats << 28]), Ok(translate(CD)));
    }
}

#[test]
fn context_descriptors_beyond_the_address_space_are_bad() {
    assert_eq!(judge([S1 | 1 << 40, 0]), Err(BadSte::Context(1 << 40)));
    assert_eq!(
        judge([S1 | ((1 << 40) - 64), 0]),
        Ok(translate((1 << 40) - 64))
    );
    // Where no RAM is, stage 2 takes care of it: nothing to judge.
    assert_eq!(judge([S1, 0]), Ok(translate(0)));
}

#[test]
fn every_entry_is_judged_without_a_config_that_the_core_refuses() {
    let mut seed = 0x1234_5678_9abc_def1_u64;
    let mut legal = 0;
    for _ in 0..50_000 {
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let words = [next() | 1, next()];
        for config in [judge(words), judge_rich(words)].into_iter().flatten() {
            let record = config.encode();
            assert_eq!(NestedConfig::decode(record.len(), &record), Ok(config));
            legal += 1;
        }
    }
    assert!(legal > 1000, "{legal}");
}

#[test]
fn nothing_is_read_until_the_smmu_is_on() {
    let mut guest = Guest::new();
    guest.queues_on();
    guest.two_level();
    guest.ste(8, [S1 | CD, 0, 0, 0]);
    guest.send(&[cfgi_ste(8), CFGI_ALL, SYNC]);
    assert_eq!(guest.smmu.counters().entries_read, 0);
    assert!(guest.hardware.streams.is_empty());
}

#[test]
fn turning_on_loads_every_stream() {
    let mut guest = Guest::new();
    guest.queues_on();
    guest.two_level();
    guest.ste(8, [S1 | CD, 0, 0, 0]);
    guest.ram.put(L1 + 8, &[(RAM + 0x1_8000) | 9]);
    guest.ram.put(RAM + 0x1_8000, &[BYPASS]);
    guest.w32(regs::CR0, 0xd);
    assert_eq!(
        guest.hardware.streams,
        [(sid(8), translate(CD)), (sid(0x100), NestedConfig::BYPASS)]
    );
    assert_eq!(guest.r32(regs::CR0ACK), 0xd);
}

#[test]
fn turning_off_puts_every_stream_where_gbpa_says() {
    for (gbpa, config) in [
        (0x8010_0000, NestedConfig::ABORT),
        (0x8000_0000, NestedConfig::BYPASS),
    ] {
        let mut guest = Guest::nested();
        guest.w32(regs::GBPA, gbpa);
        guest.w32(regs::CR0, 0xc);
        assert_eq!(guest.live(8), config);
        assert_eq!(guest.live(0x100), config);
        assert_eq!(guest.smmu.stream(sid(8)).unwrap().verdict(), Verdict::Off);
    }
}

/// A guest with so many streams that one call cannot move all.
fn many() -> Guest {
    let mut guest = Guest::new();
    for stream in 0x200..0x200 + 200 {
        guest.add(stream);
    }
    guest.queues_on();
    guest.hardware.streams.clear();
    guest
}

#[test]
fn the_acknowledgement_waits_for_the_last_stream() {
    let mut guest = many();
    guest.linear();
    guest.w32(regs::STRTAB_BASE_CFG, 10);
    let mut outcome = guest.write_once(regs::CR0, Width::Word, 0xd);
    let mut calls = 0;
    while outcome.work == Work::More {
        assert_eq!(guest.r32(regs::CR0), 0xd);
        assert_eq!(guest.r32(regs::CR0ACK), 0xc);
        outcome = guest.go_on();
        calls += 1;
    }
    assert!(calls > 3);
    assert_eq!(guest.r32(regs::CR0ACK), 0xd);
    assert_eq!(guest.smmu.counters().entries_read, 202);
}

#[test]
fn gbpa_update_stays_until_the_last_stream_follows() {
    let mut guest = many();
    let mut outcome = guest.write_once(regs::GBPA, Width::Word, 1 << 31);
    while outcome.work == Work::More {
        assert_eq!(guest.r32(regs::GBPA) >> 31, 1);
        // Writes meanwhile are ignored, as the manual lets us.
        let _ = guest.write_once(regs::GBPA, Width::Word, 0x8010_0000);
        outcome = guest.go_on();
    }
    assert_eq!(guest.r32(regs::GBPA), 0);
    assert!(
        guest
            .smmu
            .streams()
            .iter()
            .all(|s| s.live() == NestedConfig::BYPASS)
    );
}

#[test]
fn gbpa_written_while_turning_off_reaches_every_stream() {
    let mut guest = many();
    guest.linear();
    guest.w32(regs::CR0, 0xd);
    let outcome = guest.write_once(regs::CR0, Width::Word, 0xc);
    assert_eq!(outcome.work, Work::More);
    guest.w32(regs::GBPA, 0x8000_0000);
    assert_eq!((guest.r32(regs::CR0ACK), guest.r32(regs::GBPA)), (0xc, 0));
    assert!(
        guest
            .smmu
            .streams()
            .iter()
            .all(|s| s.live() == NestedConfig::BYPASS)
    );
}

#[test]
fn turning_on_and_off_in_a_storm_ends_where_the_last_write_says() {
    let mut guest = many();
    guest.linear();
    for stream in [8, 0x100, 0x200, 0x2c7] {
        guest.ram.put(LINEAR + stream * 64, &[S1 | CD]);
    }
    guest.w32(regs::STRTAB_BASE_CFG, 10);
    for round in 0..2000 {
        let outcome = guest.write_once(regs::CR0, Width::Word, 0xc | round & 1);
        assert!(outcome.health == Health::Good);
    }
    guest.w32(regs::CR0, 0xd);
    assert_eq!(guest.r32(regs::CR0ACK), 0xd);
    for stream in [8, 0x100, 0x200, 0x2c7] {
        assert!(guest.translates(stream), "{stream:#x}");
    }
    guest.w32(regs::CR0, 0xc);
    assert!(
        guest
            .smmu
            .streams()
            .iter()
            .all(|s| s.live() == NestedConfig::ABORT)
    );
}

#[test]
fn cfgi_ste_reads_one_entry_once() {
    let mut guest = Guest::nested();
    let before = guest.smmu.counters().entries_read;
    guest.ste(8, [BYPASS, 0, 0, 0]);
    guest.send(&[cfgi_ste(8), SYNC]);
    assert_eq!(guest.smmu.counters().entries_read, before + 1);
    assert_eq!(guest.hardware.streams, [(sid(8), NestedConfig::BYPASS)]);
}

#[test]
fn a_change_without_a_command_is_not_seen() {
    let mut guest = Guest::nested();
    guest.ste(8, [BYPASS, 0, 0, 0]);
    guest.send(&[super::NSNH_ALL, SYNC]);
    assert!(guest.hardware.streams.is_empty());
    assert!(guest.translates(8));
}

#[test]
fn an_unchanged_entry_means_new_context_descriptors() {
    let mut guest = Guest::nested();
    guest.send(&[cfgi_ste(8), SYNC]);
    assert!(guest.hardware.streams.is_empty());
    assert_eq!(
        guest.hardware.batches,
        [[Invalidation::Context {
            stream: sid(8),
            substream: None
        }]]
    );
}

#[test]
fn level_1_is_read_again_each_time() {
    let mut guest = Guest::nested();
    // 0x100 has no level-2 table yet.
    assert_eq!(
        guest.smmu.stream(sid(0x100)).unwrap().verdict(),
        Verdict::NoEntry
    );
    let table = RAM + 0x1_8000;
    guest.ram.put(table, &[S1 | CD]);
    // Linked without a command, as Linux does.
    guest.ram.put(L1 + 8, &[table | 9]);
    guest.send(&[cfgi_ste(0x100), SYNC]);
    assert!(guest.translates(0x100));
    guest.ram.put(L1 + 8, &[0]);
    guest.send(&[cfgi_ste(0x100), SYNC]);
    assert_eq!(guest.live(0x100), NestedConfig::INVALID);
}

#[test]
fn spans_end_where_they_say() {
    // Span n: 2^(n-1) entries. Split 8: at most 9.
    for (span, stream, has) in [
        (0, 0, false),
        (1, 0, true),
        (1, 1, false),
        (4, 7, true),
        (4, 8, false),
        (9, 255, true),
        (10, 0, false),
        (31, 0, false),
    ] {
        let mut guest = Guest::nested();
        if stream != 8 {
            guest.add(stream);
        }
        let table = RAM + 0x2_0000;
        guest.ram.put(table + u64::from(stream) * 64, &[BYPASS]);
        guest.ram.put(L1, &[table | span]);
        guest.send(&[cfgi_ste(stream), SYNC]);
        let expected = if has {
            NestedConfig::BYPASS
        } else {
            NestedConfig::INVALID
        };
        assert_eq!(guest.live(stream), expected, "span {span}, stream {stream}");
    }
}

#[test]
fn a_split_decides_which_bits_are_whose() {
    for (split, effective) in [(6, 6), (8, 8), (10, 10), (0, 6), (7, 6), (31, 6)] {
        let mut guest = Guest::new();
        guest.queues_on();
        guest.w64(regs::STRTAB_BASE, L1);
        guest.w32(regs::STRTAB_BASE_CFG, 1 << 16 | split << 6 | 16);
        guest.add(0x440);
        let table = RAM + 0x2_0000;
        let (index, leaf) = (0x440_u64 >> effective, 0x440 & ((1 << effective) - 1));
        guest.ram.put(L1 + index * 8, &[table | (effective + 1)]);
        guest.ram.put(table + leaf * 64, &[BYPASS]);
        guest.w32(regs::CR0, 0xd);
        assert_eq!(guest.live(0x440), NestedConfig::BYPASS, "{split}");
    }
}

#[test]
fn a_linear_table_ends_where_it_says() {
    let mut guest = Guest::new();
    guest.queues_on();
    guest.linear();
    guest.add(0x1ff);
    guest.add(0x200);
    guest.ram.put(LINEAR + 0x1ff * 64, &[BYPASS]);
    guest.ram.put(LINEAR + 0x200 * 64, &[BYPASS]);
    guest.w32(regs::CR0, 0xd);
    assert_eq!(guest.live(0x1ff), NestedConfig::BYPASS);
    assert_eq!(guest.live(0x200), NestedConfig::ABORT);
    assert_eq!(
        guest.smmu.stream(sid(0x200)).unwrap().verdict(),
        Verdict::NoEntry
    );
}

#[test]
fn a_table_size_beyond_the_stream_ids_is_cut() {
    // The stream IDs of the guest have 16 bits, so that a table of 2^20 entries has all that can be asked for. It
    // is aligned to all it was said to be: 64 MiB, as RAM is.
    let mut guest = Guest::new();
    guest.queues_on();
    guest.w64(regs::STRTAB_BASE, RAM + 0x40);
    guest.w32(regs::STRTAB_BASE_CFG, 20);
    guest.w32(regs::CR0, 0xd);
    guest.ram.put(RAM + 8 * 64, &[BYPASS]);
    guest.send(&[cfgi_ste(8), SYNC]);
    assert_eq!(guest.live(8), NestedConfig::BYPASS);
}

#[test]
fn a_base_is_aligned_to_the_size_that_was_written() {
    // 2^24 entries are a gigabyte, to which RAM is aligned. Of 2^25, or in two levels of 2^33 with descriptors for 64
    // entries each, the base is what is left of it: nothing.
    for (config, bytes_log2) in [
        (24, 30),
        (25, 31),
        (63, 64),
        (1 << 16 | 6 << 6 | 33, 30),
        (1 << 16 | 6 << 6 | 34, 31),
    ] {
        let base = RAM + 0x1_0040;
        let table = StreamTable::new(base, config, 16);
        let base = match bytes_log2 {
            64 => 0,
            log2 => base >> log2 << log2,
        };
        let found = table.find(&Ram::new(), StreamId::new(0).unwrap());
        match base {
            RAM => assert_ne!(found, Err(Missing::Fetch(0)), "{config:#x}"),
            _ => assert_eq!(found, Err(Missing::Fetch(0)), "{config:#x}"),
        }
    }
}

#[test]
fn a_base_is_aligned_to_the_size_of_the_table() {
    let mut guest = Guest::new();
    guest.queues_on();
    guest.w64(regs::STRTAB_BASE, LINEAR + 0x1000);
    guest.w32(regs::STRTAB_BASE_CFG, 9);
    guest.ram.put(LINEAR + 8 * 64, &[BYPASS]);
    guest.w32(regs::CR0, 0xd);
    assert_eq!(guest.live(8), NestedConfig::BYPASS);
}

#[test]
fn a_reserved_table_format_is_linear() {
    for format in [2_u32, 3] {
        let mut guest = Guest::new();
        guest.queues_on();
        guest.linear();
        guest.w32(regs::STRTAB_BASE_CFG, format << 16 | 9);
        guest.ram.put(LINEAR + 8 * 64, &[BYPASS]);
        guest.w32(regs::CR0, 0xd);
        assert_eq!(guest.live(8), NestedConfig::BYPASS);
    }
}

#[test]
fn tables_outside_memory_abort_their_streams() {
    for base in [
        0,
        0x0900_0000,
        RAM + RAM_BYTES as u64,
        0x000f_ffff_ffff_0000,
    ] {
        let mut guest = Guest::new();
        guest.queues_on();
        guest.w64(regs::STRTAB_BASE, base);
        guest.w32(regs::STRTAB_BASE_CFG, 1 << 16 | 8 << 6 | 16);
        guest.w32(regs::CR0, 0xd);
        let verdict = guest.smmu.stream(sid(8)).unwrap().verdict();
        assert!(
            matches!(verdict, Verdict::NotFetched { .. }),
            "{base:#x}: {verdict:?}"
        );
        assert_eq!(guest.live(8), NestedConfig::INVALID);
    }
    // A level-2 table elsewhere.
    let mut guest = Guest::nested();
    guest.ram.put(L1, &[0x0800_0000 | 9]);
    guest.send(&[cfgi_ste(8), SYNC]);
    assert_eq!(
        guest.smmu.stream(sid(8)).unwrap().verdict(),
        Verdict::NotFetched { at: 0x0800_0200 }
    );
}

#[test]
fn a_range_covers_its_aligned_streams_and_no_others() {
    // range r: 2^(r+1) streams.
    for (stream, range, eight, hundred) in [
        (8, 0, true, false),
        (9, 0, true, false),
        (10, 0, false, false),
        (0, 2, false, false),
        (0, 3, true, false),
        (0xff, 7, true, false),
        (0, 8, true, true),
        (0x100, 0, false, true),
        (0xffff_ffff, 30, false, false),
        (0, 30, true, true),
        (0, 31, true, true),
        (0xffff_ffff, 31, true, true),
    ] {
        let mut guest = Guest::nested();
        let table = RAM + 0x1_8000;
        guest.ram.put(L1 + 8, &[table | 9]);
        guest.ram.put(table, &[BYPASS]);
        guest.ste(8, [BYPASS, 0, 0, 0]);
        guest.send(&[cfgi_range(stream, range), SYNC]);
        assert_eq!(
            guest.live(8) == NestedConfig::BYPASS,
            eight,
            "{stream:#x} {range}"
        );
        assert_eq!(
            guest.live(0x100) == NestedConfig::BYPASS,
            hundred,
            "{stream:#x} {range}"
        );
    }
}

#[test]
fn a_command_for_many_streams_is_consumed_when_the_last_is_done() {
    let mut guest = many();
    guest.linear();
    guest.w32(regs::STRTAB_BASE_CFG, 10);
    guest.w32(regs::CR0, 0xd);
    guest.put(&[CFGI_ALL, SYNC]);
    let before = guest.smmu.counters().entries_read;
    let mut outcome = guest.write_once(regs::CMDQ_PROD, Width::Word, 2);
    let mut calls = 1;
    while outcome.work == Work::More && calls < 1000 {
        assert_eq!(guest.cons(), 0);
        let reads = guest.ram.reads.get();
        outcome = guest.go_on();
        assert!(guest.ram.reads.get() - reads <= 64);
        calls += 1;
        if guest.smmu.counters().entries_read == before + 202 {
            break;
        }
    }
    guest.finish(outcome);
    assert_eq!(guest.cons(), 2);
    assert!(calls > 5);
}

#[test]
fn turning_the_queue_off_in_the_middle_of_a_sweep_leaves_the_command() {
    let mut guest = many();
    guest.linear();
    guest.w32(regs::CR0, 0xd);
    guest.put(&[CFGI_ALL]);
    let outcome = guest.write_once(regs::CMDQ_PROD, Width::Word, 1);
    assert_eq!(outcome.work, Work::More);
    let outcome = guest.write_once(regs::CR0, Width::Word, 5);
    assert_eq!((outcome.work, guest.cons()), (Work::Done, 0));
    assert_eq!(guest.r32(regs::CR0ACK), 5);
    guest.w32(regs::CR0, 0xd);
    assert_eq!(guest.cons(), 1);
}

#[test]
fn commands_for_streams_that_are_not_there_are_harmless() {
    let mut guest = Guest::nested();
    guest.send(&[
        cfgi_ste(0),
        cfgi_ste(0xffff_ffff),
        cfgi_range(0x4000, 3),
        SYNC,
    ]);
    assert_eq!(guest.cons(), 4);
    assert!(guest.hardware.streams.is_empty());
    assert!(guest.take_events().is_empty());
}

#[test]
fn an_entry_changed_after_it_was_copied_is_judged_as_copied() {
    let mut guest = Guest::nested();
    guest.ste(8, [S1 | CD, 0, 0, 0]);
    guest.ram.put(L2 + 9 * 64, &[S1 | CD]);
    guest.put(&[cfgi_ste(8), SYNC]);
    let now = guest.ram.reads.get();
    // Reads: the command, level 1, the entry. The guest changes it right after.
    guest
        .ram
        .ambush
        .borrow_mut()
        .push((now + 2, L2 + 8 * 64, 7 << 1 | 1));
    guest.w32(regs::CMDQ_PROD, 2);
    assert!(guest.translates(8));
    assert_eq!(guest.ram.reads.get() - now, 3, "nothing is read twice");
    assert_eq!(guest.smmu.stream(sid(8)).unwrap().verdict(), Verdict::Legal);
}

#[test]
fn a_level_2_table_moved_between_two_reads_is_the_old_one() {
    let mut guest = Guest::nested();
    let other = RAM + 0x1_8000;
    guest.ram.put(other + 8 * 64, &[BYPASS]);
    guest.put(&[cfgi_ste(8), SYNC]);
    let now = guest.ram.reads.get();
    guest.ram.ambush.borrow_mut().push((now + 1, L1, other | 9));
    guest.w32(regs::CMDQ_PROD, 2);
    assert!(guest.translates(8));
    guest.send(&[cfgi_ste(8), SYNC]);
    assert_eq!(guest.live(8), NestedConfig::BYPASS);
}

#[test]
fn a_refused_stream_aborts_and_the_guest_is_told() {
    let mut guest = Guest::nested();
    guest.ste(8, [BYPASS, 0, 0, 0]);
    guest.hardware.refusals.push(Err(Refusal::Refused));
    guest.send(&[cfgi_ste(8), SYNC]);
    assert_eq!(
        guest.hardware.streams,
        [
            (sid(8), NestedConfig::BYPASS),
            (sid(8), NestedConfig::INVALID)
        ]
    );
    assert_eq!(guest.live(8), NestedConfig::INVALID);
    assert!(guest.take_events().is_empty());
    assert!(guest.access(8).is_some());
    assert_eq!(guest.take_events(), [[8 << 32 | 4, 0, 0, 0]]);
    assert_eq!(guest.smmu.health(), Health::Good);
    // The next time it may work.
    guest.send(&[cfgi_ste(8), SYNC]);
    assert_eq!(guest.live(8), NestedConfig::BYPASS);
}

#[test]
fn a_stream_that_cannot_even_be_invalid_aborts_and_the_guest_is_told_at_once() {
    let refused = Err(Refusal::Refused);
    // A legal entry; one that is not valid.
    for (word, refusals, tries) in [
        (BYPASS, std::vec![refused, refused], 3),
        (0, std::vec![refused], 2),
    ] {
        let mut guest = Guest::nested();
        guest.ste(8, [word, 0, 0, 0]);
        guest.hardware.refusals = refusals;
        guest.send(&[cfgi_ste(8), SYNC]);
        assert_eq!(guest.hardware.streams.len(), tries);
        assert_eq!(guest.live(8), NestedConfig::ABORT);
        assert_eq!(guest.take_events(), [[8 << 32 | 4, 0, 0, 0]]);
        assert_eq!(guest.smmu.health(), Health::Good);
    }
}

#[test]
fn a_stream_that_cannot_even_abort_breaks_the_smmu() {
    for refusals in [
        std::vec![Err(Refusal::Failed)],
        std::vec![Err(Refusal::Failed), Err(Refusal::Refused)],
        std::vec![Err(Refusal::Refused); 3],
    ] {
        let mut guest = Guest::nested();
        guest.ste(8, [BYPASS, 0, 0, 0]);
        guest.hardware.refusals = refusals;
        guest.put(&[cfgi_ste(8), SYNC]);
        let outcome = guest.write_once(regs::CMDQ_PROD, Width::Word, 2);
        let health = guest.finish(outcome);
        assert_eq!(health, Health::Broken);
        assert_eq!(guest.r32(regs::GERROR), 1 << 8);
    }
}

#[test]
fn a_switch_that_is_not_confirmed_is_never_said_to_be_done() {
    // By a command, however far the budget goes.
    let mut guest = many();
    guest.linear();
    guest.w32(regs::CR0, 0xd);
    guest.hardware.refusals = std::vec![Err(Refusal::Failed)];
    for stream in 0..0x200 {
        guest.ram.put(LINEAR + stream * 64, &[BYPASS]);
    }
    guest.put(&[CFGI_ALL, SYNC]);
    let outcome = guest.write_once(regs::CMDQ_PROD, Width::Word, 2);
    assert_eq!(guest.finish(outcome), Health::Broken);
    assert_eq!((guest.cons(), guest.smmu.counters().commands), (0, 0));
    // By an enable.
    let mut guest = Guest::nested();
    guest.hardware.refusals = std::vec![Err(Refusal::Failed)];
    let outcome = guest.write_once(regs::CR0, Width::Word, 0xc);
    assert_eq!(guest.finish(outcome), Health::Broken);
    assert_eq!((guest.r32(regs::CR0), guest.r32(regs::CR0ACK)), (0xc, 0xd));
    // The negative control: hardware that confirms.
    let mut guest = Guest::nested();
    guest.w32(regs::CR0, 0xc);
    assert_eq!(guest.r32(regs::CR0ACK), 0xc);
}

#[test]
fn streams_are_added_once_and_within_bounds() {
    let mut guest = Guest::new();
    let mut add = |stream| {
        guest
            .smmu
            .add_stream(sid(stream), &guest.ram, &mut guest.hardware)
            .map(|_| ())
    };
    assert_eq!(add(8), Err(StreamError::Exists(sid(8))));
    assert_eq!(add(0x1_0000), Err(StreamError::OutOfRange(sid(0x1_0000))));
    assert_eq!(add(u32::MAX), Err(StreamError::OutOfRange(sid(u32::MAX))));
    for stream in 0x1000..0x1000 + MOST_STREAMS as u32 - 2 {
        assert_eq!(add(stream), Ok(()));
    }
    assert_eq!(add(0xffff), Err(StreamError::NoRoom));
}

#[test]
fn a_stream_added_to_a_running_smmu_gets_what_the_tables_say() {
    let mut guest = Guest::nested();
    guest.ste(0x10, [BYPASS, 0, 0, 0]);
    guest.add(0x10);
    assert_eq!(guest.hardware.streams, [(sid(0x10), NestedConfig::BYPASS)]);
}

#[test]
fn a_removed_stream_is_not_touched_again() {
    let mut guest = Guest::nested();
    guest.smmu.remove_stream(sid(8));
    guest.smmu.remove_stream(sid(8));
    guest.ste(8, [BYPASS, 0, 0, 0]);
    guest.send(&[cfgi_ste(8), CFGI_ALL, SYNC]);
    guest.w32(regs::CR0, 0xc);
    assert!(
        guest
            .hardware
            .streams
            .iter()
            .all(|(stream, _)| *stream != sid(8))
    );
}

#[test]
fn what_was_asked_of_a_removed_stream_goes_with_it() {
    let mut guest = Guest::nested();
    // Its descriptors, twice, around what is of no stream.
    guest.send(&[cfgi_ste(8), [0x11 | 5 << 48, 0], [8 << 32 | 6, 0]]);
    assert_eq!(guest.hardware.batches.len(), 0);
    guest.smmu.remove_stream(sid(8));
    guest.send(&[SYNC]);
    let asid = types::Asid::new(5).unwrap();
    assert_eq!(guest.hardware.batches, [[Invalidation::Asid(asid)]]);
    // The negative control: without the removal all three go down.
    let mut guest = Guest::nested();
    guest.send(&[cfgi_ste(8), [0x11 | 5 << 48, 0], [8 << 32 | 6, 0], SYNC]);
    assert_eq!(guest.hardware.batches.concat().len(), 3);
}

#[test]
fn a_reset_takes_every_stream_away_from_the_guests_tables_and_flushes_last() {
    let mut guest = many();
    guest.linear();
    guest.w32(regs::STRTAB_BASE_CFG, 10);
    guest.ram.put(LINEAR + 0x210 * 64, &[S1 | CD]);
    guest.w32(regs::CR0, 0xd);
    assert!(guest.translates(0x210));
    guest.hardware.streams.clear();
    let mut outcome = guest.smmu.reset(&guest.ram, &mut guest.hardware);
    while outcome.work == Work::More {
        assert!(guest.hardware.batches.is_empty());
        outcome = guest.go_on();
    }
    assert_eq!(guest.hardware.batches, [[Invalidation::All]]);
    assert!(
        guest
            .smmu
            .streams()
            .iter()
            .all(|s| s.live() == NestedConfig::ABORT)
    );
    let of_0x210 = guest
        .hardware
        .streams
        .iter()
        .find(|(id, _)| *id == sid(0x210));
    assert_eq!(of_0x210, Some(&(sid(0x210), NestedConfig::ABORT)));
}

#[test]
fn a_guest_that_turns_on_during_a_reset_still_gets_the_flush() {
    let mut guest = many();
    let outcome = guest.smmu.reset(&guest.ram, &mut guest.hardware);
    assert_eq!(outcome.work, Work::More);
    guest.linear();
    guest.w32(regs::CR0, 0xd);
    assert_eq!(guest.hardware.batches.concat(), [Invalidation::All]);
    assert_eq!(guest.r32(regs::CR0ACK), 0xd);
}
