//! Dirty tracking: every relation of the bitmap's page to the table's.

use super::*;
use crate::mock::{HUGE_PAGE, Leaves, SMALL_PAGE};
use crate::{DirtyRead, DirtyTracking, DomainId, DomainOptions, Feature};

struct Tracked {
    f: Fixture,
    device: DeviceId,
    domain: DomainId,
}

fn tracked(leaves: Leaves) -> Tracked {
    let mut f = Fixture::with_leaves(leaves);
    let device = f.device(SMMU);
    let options = DomainOptions {
        nest_parent: false,
        dirty_tracking: true,
    };
    let domain = f.core.create_domain(device, f.ioas, options).unwrap();
    f.core.attach(device, Target::Domain(domain)).unwrap();
    Tracked { f, device, domain }
}

impl Tracked {
    fn on(&mut self) {
        self.f
            .core
            .set_dirty_tracking(self.domain, DirtyTracking::On)
            .unwrap();
    }

    fn write(&mut self, at: u64) {
        self.f.dma(self.device, at, Dma::Write).unwrap();
    }

    fn read(&mut self, at: u64, bytes: u64, page: u64, read: DirtyRead) -> Vec<u8> {
        let bits = usize::try_from(bytes / page).unwrap();
        let mut bitmap = alloc::vec![0; bits.div_ceil(8)];
        self.f
            .core
            .read_dirty(self.domain, of(at, bytes), page, read, &mut bitmap)
            .unwrap();
        bitmap
    }

    fn bits(&mut self, at: u64, bytes: u64, page: u64, read: DirtyRead) -> Vec<u64> {
        let bitmap = self.read(at, bytes, page, read);
        (0..bytes / page)
            .filter(|bit| bitmap[usize::try_from(bit / 8).unwrap()] & 1 << (bit % 8) != 0)
            .collect()
    }
}

#[test]
fn tracking_needs_a_domain_made_for_it() {
    let mut f = Fixture::new();
    let device = f.device(SMMU);
    let plain = f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    let on = f.core.set_dirty_tracking(plain, DirtyTracking::On);
    assert_eq!(refused(on), Error::Unsupported(Feature::DirtyTracking));
}

#[test]
fn a_unit_that_cannot_track_is_refused() {
    let mut f = Fixture::new();
    let device = f.device(TCE);
    let options = DomainOptions {
        nest_parent: false,
        dirty_tracking: true,
    };
    assert_eq!(
        refused(f.core.create_domain(device, f.ioas, options)),
        Error::Unsupported(Feature::DirtyTracking)
    );
    assert_eq!(f.core.backend().tables(), 0);
}

#[test]
fn a_device_elsewhere_cannot_join_a_tracking_domain() {
    let mut t = tracked(Leaves::Small);
    let other = t.f.device(TCE);
    let attach = t.f.core.attach(other, Target::Domain(t.domain));
    assert_eq!(refused(attach), Error::OtherUnit(SMMU));
}

#[test]
fn reading_needs_tracking() {
    let mut t = tracked(Leaves::Small);
    t.f.map(AT, 0, PAGE).unwrap();
    let mut bitmap = [0];
    let read = |t: &mut Tracked, bitmap: &mut [u8]| {
        t.f.core
            .read_dirty(t.domain, of(AT, PAGE), SMALL_PAGE, DirtyRead::Keep, bitmap)
    };
    assert_eq!(refused(read(&mut t, &mut bitmap)), Error::NotTracking);
    t.on();
    assert!(read(&mut t, &mut bitmap).is_ok());
    t.f.core
        .set_dirty_tracking(t.domain, DirtyTracking::Off)
        .unwrap();
    assert_eq!(refused(read(&mut t, &mut bitmap)), Error::NotTracking);
}

#[test]
fn switching_on_forgets_what_was_written_before() {
    let mut t = tracked(Leaves::Small);
    t.f.map(AT, 0, PAGE).unwrap();
    t.on();
    t.write(AT);
    t.on();
    assert_eq!(t.bits(AT, PAGE, SMALL_PAGE, DirtyRead::Keep), []);
    t.write(AT);
    assert_eq!(t.bits(AT, PAGE, SMALL_PAGE, DirtyRead::Keep), [0]);
}

#[test]
fn writes_without_tracking_leave_no_trace() {
    let mut t = tracked(Leaves::Small);
    t.f.map(AT, 0, PAGE).unwrap();
    t.write(AT);
    t.on();
    assert_eq!(t.bits(AT, PAGE, SMALL_PAGE, DirtyRead::Keep), []);
}

#[test]
fn reads_do_not_make_pages_dirty() {
    let mut t = tracked(Leaves::Small);
    t.f.map(AT, 0, PAGE).unwrap();
    t.on();
    t.f.dma(t.device, AT, Dma::Read).unwrap();
    assert_eq!(t.bits(AT, PAGE, SMALL_PAGE, DirtyRead::Keep), []);
}

#[test]
fn a_clearing_read_sees_each_write_once() {
    let mut t = tracked(Leaves::Small);
    t.f.map(AT, 0, 4 * PAGE).unwrap();
    t.on();
    t.write(AT + PAGE);
    for _ in 0..2 {
        assert_eq!(t.bits(AT, 4 * PAGE, PAGE, DirtyRead::Keep), [1]);
    }
    assert_eq!(t.bits(AT, 4 * PAGE, PAGE, DirtyRead::Clear), [1]);
    assert_eq!(t.bits(AT, 4 * PAGE, PAGE, DirtyRead::Clear), []);
}

#[test]
fn a_write_after_a_clearing_read_is_seen_although_it_was_cached() {
    let mut t = tracked(Leaves::Small);
    t.f.map(AT, 0, PAGE).unwrap();
    t.on();
    for _ in 0..3 {
        t.write(AT);
        assert_eq!(t.bits(AT, PAGE, SMALL_PAGE, DirtyRead::Clear), [0]);
    }
}

/// Every second page of `bytes` is written, read with pages of `page`.
fn every_second(leaves: Leaves, bytes: u64, page: u64, read: DirtyRead) {
    let mut t = tracked(leaves);
    t.f.map(AT, 0, bytes).unwrap();
    t.on();
    let stride = 2 * page.max(SMALL_PAGE);
    let mut expected = Vec::new();
    let mut at = 0;
    while at < bytes {
        t.write(AT + at + 5);
        let leaf =
            t.f.walk(t.device)
                .into_iter()
                .find(|(start, l)| *start <= AT + at && AT + at < start + l.bytes)
                .unwrap();
        let first = (leaf.0 - AT).max(at / page * page) / page;
        let (first, last) = if leaf.1.bytes >= page {
            (
                (leaf.0 - AT) / page,
                (leaf.0 - AT + leaf.1.bytes - 1) / page,
            )
        } else {
            (first, first)
        };
        expected.extend(first..=last);
        at += stride.max(leaf.1.bytes * 2);
    }
    expected.dedup();
    assert_eq!(t.bits(AT, bytes, page, read), expected);
    let left = match read {
        DirtyRead::Clear => Vec::new(),
        DirtyRead::Keep => expected,
    };
    assert_eq!(t.bits(AT, bytes, page, DirtyRead::Keep), left);
}

#[test]
fn the_bitmap_of_8k_in_table_pages_is_exact() {
    every_second(Leaves::Small, 8 << 10, SMALL_PAGE, DirtyRead::Clear);
}

#[test]
fn the_bitmap_of_16k_in_table_pages_is_exact() {
    every_second(Leaves::Small, 16 << 10, SMALL_PAGE, DirtyRead::Keep);
}

#[test]
fn the_bitmap_of_64k_in_table_pages_is_exact() {
    every_second(Leaves::Small, 64 << 10, SMALL_PAGE, DirtyRead::Clear);
}

#[test]
fn the_bitmap_of_128k_in_larger_pages_is_exact() {
    every_second(Leaves::Small, 128 << 10, 4 * PAGE, DirtyRead::Clear);
}

#[test]
fn the_bitmap_of_320k_that_fills_no_whole_word_is_exact() {
    every_second(Leaves::Small, 320 << 10, PAGE, DirtyRead::Keep);
}

#[test]
fn the_bitmap_of_64m_in_small_leaves_is_exact() {
    every_second(Leaves::Small, 64 << 20, 16 * PAGE, DirtyRead::Clear);
}

#[test]
fn the_bitmap_of_64m_in_huge_leaves_shows_whole_leaves() {
    every_second(Leaves::SmallAndHuge, 64 << 20, PAGE, DirtyRead::Clear);
}

#[test]
fn the_bitmap_of_128m_in_huge_leaves_shows_whole_leaves() {
    every_second(Leaves::SmallAndHuge, 128 << 20, PAGE, DirtyRead::Keep);
}

#[test]
fn pages_larger_than_huge_leaves_are_dirty_when_one_of_them_is() {
    every_second(Leaves::SmallAndHuge, 32 << 20, 4 << 20, DirtyRead::Clear);
}

#[test]
fn pages_smaller_than_the_tables_all_get_its_news() {
    let mut t = tracked(Leaves::Small);
    t.f.map(AT, 0, 2 * SMALL_PAGE).unwrap();
    t.on();
    t.write(AT + SMALL_PAGE + 1);
    let bits = t.bits(AT, 2 * SMALL_PAGE, 512, DirtyRead::Keep);
    assert_eq!(bits, [4, 5, 6, 7]);
}

#[test]
fn a_read_of_part_of_a_huge_leaf_does_not_lose_the_rest() {
    let mut t = tracked(Leaves::SmallAndHuge);
    t.f.map(AT, 0, HUGE_PAGE).unwrap();
    t.on();
    t.write(AT);
    assert_eq!(t.bits(AT, PAGE, PAGE, DirtyRead::Clear), [0]);
    let all = t.bits(AT, HUGE_PAGE, PAGE, DirtyRead::Clear);
    assert_eq!(all.len() as u64, HUGE_PAGE / PAGE);
    assert_eq!(t.bits(AT, HUGE_PAGE, PAGE, DirtyRead::Keep), []);
}

#[test]
fn bits_that_were_set_stay_set() {
    let mut t = tracked(Leaves::Small);
    t.f.map(AT, 0, 8 * PAGE).unwrap();
    t.on();
    t.write(AT);
    let mut bitmap = [0x80, 0xaa];
    t.f.core
        .read_dirty(
            t.domain,
            of(AT, 8 * PAGE),
            PAGE,
            DirtyRead::Keep,
            &mut bitmap,
        )
        .unwrap();
    assert_eq!(bitmap, [0x81, 0xaa]);
}

#[test]
fn holes_are_clean() {
    let mut t = tracked(Leaves::Small);
    t.f.map(AT + 2 * PAGE, 0, PAGE).unwrap();
    t.on();
    t.write(AT + 2 * PAGE);
    assert_eq!(t.bits(AT, 8 * PAGE, PAGE, DirtyRead::Clear), [2]);
}

#[test]
fn a_bitmap_that_does_not_fit_is_refused() {
    let mut t = tracked(Leaves::Small);
    t.f.map(AT, 0, 16 * PAGE).unwrap();
    t.on();
    let mut read = |span, page, bytes: usize| {
        let mut bitmap = alloc::vec![0; bytes];
        t.f.core
            .read_dirty(t.domain, span, page, DirtyRead::Keep, &mut bitmap)
    };
    let whole = of(AT, 16 * PAGE);
    assert_eq!(
        refused(read(whole, PAGE, 1)),
        Error::BufferTooSmall { needed: 2 }
    );
    assert_eq!(refused(read(whole, 0, 64)), Error::BadBitmap);
    assert_eq!(refused(read(whole, 3000, 64)), Error::BadBitmap);
    assert_eq!(
        refused(read(of(AT + 1024, PAGE), 1024, 64)),
        Error::BadBitmap
    );
    assert_eq!(refused(read(of(AT, PAGE - 1), PAGE, 64)), Error::BadBitmap);
    assert_eq!(refused(read(of(AT, PAGE), 2 * PAGE, 64)), Error::BadBitmap);
    assert_eq!(
        refused(read(everything(), PAGE, 64)),
        Error::OutsideWindows { span: everything() }
    );
    assert!(read(whole, PAGE, 2).is_ok());
}
