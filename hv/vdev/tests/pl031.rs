//! The clock, as a driver sees it.

use bulkhead_vdev::{Line, Pl031, Width};
use proptest::prelude::{any, proptest};

const DR: u64 = 0x00;
const MR: u64 = 0x04;
const LR: u64 = 0x08;
const CR: u64 = 0x0c;
const IMSC: u64 = 0x10;
const RIS: u64 = 0x14;
const MIS: u64 = 0x18;
const ICR: u64 = 0x1c;

fn get(rtc: &mut Pl031, offset: u64, now: u64) -> u64 {
    rtc.read(offset, Width::Word, now).0
}

fn put(rtc: &mut Pl031, offset: u64, value: u64, now: u64) -> Option<Line> {
    rtc.write(offset, Width::Word, value, now).line
}

#[test]
fn a_driver_finds_an_arm_pl031_that_runs() {
    let mut rtc = Pl031::new(0, 0);
    let ids: Vec<_> = (0..8).map(|n| get(&mut rtc, 0xfe0 + 4 * n, 0)).collect();
    assert_eq!(ids, [0x31, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
    assert_eq!(get(&mut rtc, CR, 0), 1);
    let _ = put(&mut rtc, CR, 0, 0);
    assert_eq!(get(&mut rtc, CR, 0), 1);
    assert_eq!(get(&mut rtc, 0x100, 0), 0);
}

#[test]
fn the_counter_follows_time_and_can_be_set() {
    let mut rtc = Pl031::new(1_700_000_000, 5);
    assert_eq!(get(&mut rtc, DR, 5), 1_700_000_000);
    assert_eq!(get(&mut rtc, DR, 65), 1_700_000_060);
    assert_eq!(put(&mut rtc, LR, 0xffff_ffff, 65), None);
    assert_eq!(get(&mut rtc, LR, 66), 0xffff_ffff);
    assert_eq!(get(&mut rtc, DR, 66), 0);
    let _ = put(&mut rtc, DR, 77, 66);
    assert_eq!(get(&mut rtc, DR, 66), 0, "the counter itself is read-only");
}

#[test]
fn a_reset_forgets_all_but_the_time() {
    let mut rtc = Pl031::new(1_700_000_000, 5);
    let _ = put(&mut rtc, LR, 4_000_000_000, 10);
    let _ = put(&mut rtc, MR, 4_000_000_001, 10);
    let _ = put(&mut rtc, IMSC, 1, 12);
    assert_eq!(rtc.line(), Line::Asserted);
    rtc.reset(20);
    assert_eq!(get(&mut rtc, DR, 25), 4_000_000_015);
    assert_eq!((get(&mut rtc, MR, 25), get(&mut rtc, RIS, 25)), (0, 0));
    assert_eq!(rtc.line(), Line::Released);
}

#[test]
fn an_alarm_fires_once_at_its_second() {
    let mut rtc = Pl031::new(100, 0);
    assert_eq!(put(&mut rtc, MR, 110, 0), None);
    assert_eq!(rtc.deadline(), None, "masked");
    assert_eq!(put(&mut rtc, IMSC, 1, 0), None);
    assert_eq!(rtc.deadline(), Some(10));
    assert_eq!(rtc.advance(9).line, None);
    assert_eq!(rtc.advance(10).line, Some(Line::Asserted));
    assert_eq!((get(&mut rtc, RIS, 10), get(&mut rtc, MIS, 10)), (1, 1));
    assert_eq!(put(&mut rtc, ICR, 0, 10), None, "zero clears nothing");
    assert_eq!(put(&mut rtc, ICR, 1, 10), Some(Line::Released));
    assert_eq!(rtc.advance(1_000).line, None);
    // The same second comes round again after 2^32 of them.
    assert_eq!(rtc.deadline(), Some(10 + (1 << 32)));
}

#[test]
fn an_alarm_may_be_noticed_late_and_by_a_read() {
    let mut rtc = Pl031::new(0, 0);
    let _ = put(&mut rtc, MR, 7, 0);
    let _ = put(&mut rtc, IMSC, 1, 0);
    let (value, effects) = rtc.read(RIS, Width::Byte, 20);
    assert_eq!((value, effects.line), (1, Some(Line::Asserted)));
}

#[test]
fn an_alarm_for_this_second_fires_at_once_and_one_in_the_past_does_not() {
    let mut rtc = Pl031::new(50, 0);
    let _ = put(&mut rtc, IMSC, 1, 0);
    assert_eq!(put(&mut rtc, MR, 49, 0), None);
    assert_eq!(put(&mut rtc, MR, 50, 0), Some(Line::Asserted));
    assert_eq!(put(&mut rtc, IMSC, 0, 0), Some(Line::Released));
    assert_eq!((get(&mut rtc, RIS, 0), get(&mut rtc, MIS, 0)), (1, 0));
}

proptest! {
    #[test]
    fn any_access_at_any_time_is_taken(
        steps in proptest::collection::vec((any::<bool>(), 0_u64..0x1000, any::<u64>(), any::<u32>()), 0..100),
        start in any::<u64>(),
    ) {
        let mut now = start;
        let mut rtc = Pl031::new(0, now);
        let mut followed = rtc.line();
        for (read, offset, value, later) in steps {
            now = now.saturating_add(later.into());
            let offset = if offset < 0x800 { offset % 0x20 } else { offset };
            let effects = if read {
                rtc.read(offset, Width::Double, now).1
            } else {
                rtc.write(offset, Width::Double, value, now)
            };
            followed = effects.line.unwrap_or(followed);
            assert_eq!(followed, rtc.line());
            let asserted = get(&mut rtc, MIS, now) != 0;
            assert_eq!(followed == Line::Asserted, asserted);
        }
    }
}
