//! Negative controls: what the executions look for would be seen.

use bulkhead_vsmmuv3::{Invalidation, Physical, VaRange};
use smmuv3::spec::{Depth, Range};
use types::{Asid, StreamId};

use crate::model::Need;
use crate::rig::{Rig, covers, promise, settle};
use crate::tables::{Memory, RAM, Says, entry, judge};

fn asid(bits: u16) -> Asid {
    Asid::new(bits).unwrap()
}

fn pages(va: u64, num: u8, level: u8) -> VaRange {
    VaRange {
        va,
        range: Range {
            num,
            scale: 0,
            granule: 1,
            level,
        },
        depth: Depth::Leaf,
    }
}

#[test]
#[should_panic(expected = "this is not done")]
fn an_invalidation_left_out_is_noticed() {
    let mut needs = vec![Need::Asid(5), Need::All, Need::Wait];
    settle(&mut needs, vec![vec![Invalidation::Asid(asid(5))]]);
}

#[test]
#[should_panic(expected = "this is not done")]
fn an_invalidation_of_before_does_not_count_for_what_is_asked_later() {
    let mut needs = vec![Need::All, Need::Wait, Need::Asid(5), Need::Wait];
    settle(&mut needs, vec![vec![Invalidation::All]]);
}

#[test]
#[should_panic(expected = "this is not done")]
fn an_invalidation_before_a_context_does_not_count_for_what_is_asked_behind_it() {
    let context = Need::Context {
        stream: 8,
        substream: None,
    };
    let done = Invalidation::Context {
        stream: StreamId::new(8).unwrap(),
        substream: None,
    };
    let mut needs = vec![Need::All, context, Need::Asid(5), Need::Wait];
    settle(&mut needs, vec![vec![Invalidation::All, done]]);
}

#[test]
fn what_no_wait_follows_is_left_for_later() {
    let mut needs = vec![Need::All, Need::Wait, Need::Asid(5)];
    settle(&mut needs, vec![vec![Invalidation::All]]);
    assert_eq!(needs, [Need::Asid(5)]);
}

#[test]
fn a_range_covers_its_own_pages_address_space_and_level_and_no_others() {
    let done = Invalidation::Va {
        asid: asid(5),
        at: pages(0x1000, 3, 3),
    };
    let span = |asid, first, last, level, tables| Need::Span {
        asid,
        first,
        last,
        level,
        tables,
    };
    assert!(covers(&done, &span(Some(5), 0x1000, 0x4fff, 3, false)));
    for other in [
        span(Some(6), 0x1000, 0x4fff, 3, false),
        span(None, 0x1000, 0x4fff, 3, false),
        span(Some(5), 0x0, 0x4fff, 3, false),
        span(Some(5), 0x1000, 0x5fff, 3, false),
        span(Some(5), 0x1000, 0x4fff, 2, false),
        span(Some(5), 0x1000, 0x4fff, 3, true),
        Need::All,
        Need::Asid(5),
    ] {
        assert!(!covers(&done, &other), "{other:x?}");
    }
    // Global translations survive an invalidation by address space.
    let by_asid = Invalidation::Asid(asid(5));
    assert!(!covers(&by_asid, &span(Some(5), 0x1000, 0x1fff, 3, false)));
}

#[test]
#[should_panic(expected = "reserved")]
fn the_hardware_takes_no_reserved_range() {
    let (mut rig, _) = Rig::new(0);
    let entry = Invalidation::Vaa(pages(0x1000, 0, 0));
    let _ = rig.hardware.invalidate(&[entry]);
}

#[test]
#[should_panic(expected = "none of the guest's")]
fn the_hardware_takes_no_stream_of_another() {
    let (mut rig, _) = Rig::new(0);
    let stream = StreamId::new(8).unwrap();
    let entry = Invalidation::Context {
        stream,
        substream: None,
    };
    let _ = rig.hardware.invalidate(&[entry]);
}

#[test]
fn the_walker_tells_a_missing_entry_from_one_that_is_out_of_reach_and_one_that_is_bad() {
    let (_, promise) = promise(0);
    let mut memory = Memory::new();
    let two_levels = 1 << 16 | 8 << 6 | 16;
    let find = |memory: &Memory, stream| entry(memory, &promise, (RAM, two_levels), stream);
    assert_eq!(find(&memory, 8), Err(Says::NoEntry));
    memory.put(RAM, &[0x8000 | 9]);
    assert_eq!(find(&memory, 8), Err(Says::NotFetched(0x8000 + 8 * 64)));
    memory.put(RAM, &[(RAM + 0x4000) | 9]);
    memory.put(RAM + 0x4000 + 8 * 64, &[1 | 6 << 1]);
    let ste = find(&memory, 8).unwrap();
    assert_eq!(judge(&ste, &promise), Err(Says::Bad));
    assert_eq!(find(&memory, 0x1_0000), Err(Says::NoEntry));
}
