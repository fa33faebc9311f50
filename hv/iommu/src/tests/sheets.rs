//! Sheets: pages that are shown one by one.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::Config;
use types::PageSize;

use super::*;
use crate::mock::{DEFAULT_WINDOW_BYTES, DYNAMIC_WINDOW_BASE};
use crate::{BackendError, DomainId, SheetId};

/// A device behind a TCE-like unit, whose default window is a sheet.
struct Rig {
    f: Fixture,
    device: DeviceId,
    domain: DomainId,
    sheet: SheetId,
    base: u64,
    page: u64,
}

fn rig() -> Rig {
    let mut f = Fixture::new();
    let device = f.device(TCE);
    let domain = f.core.attach(device, Target::Ioas(f.ioas)).unwrap();
    let window = of(0, DEFAULT_WINDOW_BYTES);
    let sheet = f.core.open_sheet(f.ioas, window, PageSize::SIZE_4K);
    Rig {
        sheet: sheet.unwrap(),
        f,
        device,
        domain,
        base: 0,
        page: PAGE,
    }
}

impl Rig {
    fn put(&mut self, at: u64, offset: u64, bytes: u64) -> Result<(), Error> {
        let request = self.f.request(Placement::Fixed(iova(at)), offset, bytes);
        self.f.core.put_pages(self.f.ioas, &request)
    }

    /// Puts one page as a guest's call does: the cheap way, and where that is none, the other.
    fn put_page(&mut self, number: u64, offset: u64) -> Result<(), Error> {
        self.put_one(number, (self.f.ram, offset), Permissions::ReadWrite)
    }

    fn put_one(
        &mut self,
        number: u64,
        (memory, offset): (MemoryId, u64),
        permissions: Permissions,
    ) -> Result<(), Error> {
        let (ioas, place) = (self.f.ioas, (self.sheet, number));
        let what = (memory, offset);
        if self.f.core.put_page(ioas, place, what, permissions) {
            return Ok(());
        }
        let at = number.checked_mul(self.page).ok_or(Error::Overflow)?;
        let request = Map {
            placement: Placement::Fixed(iova(self.base + at)),
            memory,
            offset,
            bytes: self.page,
            permissions,
        };
        self.f.core.put_pages(ioas, &request)
    }

    fn clear(&mut self, at: u64, bytes: u64) -> Result<u64, Error> {
        self.f.core.clear_pages(self.f.ioas, of(at, bytes))
    }

    fn users(&mut self) -> u32 {
        match self.f.core.destroy_memory(self.f.ram) {
            Err(Error::Busy { users, .. }) => users,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_page_is_reached_and_keeps_its_memory_until_it_is_cleared() {
    let mut r = rig();
    r.put(0x10_0000, 0, 3 * PAGE).unwrap();
    r.put_page(0x200, 7 * PAGE).unwrap();
    r.put_page(0x201, 9 * PAGE).unwrap();
    assert_eq!(r.f.reads(r.device, 0x10_0123), Some(RAM + 0x123));
    assert_eq!(r.f.reads(r.device, 0x20_0004), Some(RAM + 7 * PAGE + 4));
    assert_eq!(r.f.reads(r.device, 0x10_3000), None);
    assert_eq!((r.users(), r.f.census().areas), (5, 0));
    let found = r.f.core.translate(r.f.ioas, iova(0x20_1008)).unwrap();
    assert_eq!(found.pa, pa(RAM + 9 * PAGE + 8));
    assert_eq!(found.bytes, PAGE - 8);
    // A range with holes, and one page that is not the last of its neighbours.
    assert!(r.f.core.clear_page(r.f.ioas, r.sheet, 0x200) || r.clear(0x20_0000, PAGE) == Ok(1));
    assert_eq!(r.f.reads(r.device, 0x20_0000), None);
    assert_eq!(r.clear(0x10_1000, 0x20_0000), Ok(3));
    assert_eq!(r.users(), 1);
    assert_eq!(r.clear(0x10_0000, PAGE), Ok(1));
    assert_eq!(r.clear(0x10_0000, PAGE), Ok(0));
    assert_eq!(r.f.walk(r.device), []);
    r.f.core.destroy_memory(r.f.ram).unwrap();
}

#[test]
fn what_may_not_be_mapped_may_not_be_put() {
    let mut r = rig();
    let foreign = r.f.core.add_ram(OTHER_VM, &[extent(RAM * 2, 1 << 20)]);
    let foreign = foreign.unwrap();
    let mut request = r.f.request(Placement::Fixed(iova(0)), 0, PAGE);
    request.memory = foreign;
    let ioas = r.f.ioas;
    let other = Error::OtherOwner {
        object: foreign.any(),
        owner: OTHER_VM,
    };
    assert_eq!(r.f.core.put_pages(ioas, &request), Err(other));
    let quick = r.put_one(0, (foreign, 0), Permissions::Read);
    assert_eq!(quick, Err(other));
    r.f.core
        .grant(foreign, VM, Permissions::Read)
        .expect("its owner may");
    let quick = r.put_one(0, (foreign, 0), Permissions::Write);
    assert_eq!(quick, Err(Error::PermissionDenied));
    r.put_one(0, (foreign, 0), Permissions::Read).unwrap();
    r.clear(0, PAGE).unwrap();
    for (at, offset, bytes) in [
        (0, RAM_BYTES, PAGE),
        (0, RAM_BYTES - PAGE, 2 * PAGE),
        (0, u64::MAX - 4095, PAGE),
        (0, 8, PAGE),
        (8, 0, PAGE),
        (0, 0, PAGE + 8),
        (0, 0, 0),
        (DEFAULT_WINDOW_BYTES - PAGE, 0, 2 * PAGE),
        (DEFAULT_WINDOW_BYTES, 0, PAGE),
        (u64::MAX - 4095, 0, PAGE),
    ] {
        refused(r.put(at, offset, bytes));
    }
    for number in [DEFAULT_WINDOW_BYTES / PAGE, u64::MAX] {
        refused(r.put_page(number, 0));
    }
    for offset in [RAM_BYTES, 8, u64::MAX - 4095] {
        refused(r.put_page(0, offset));
    }
    r.f.core.close_sheet(ioas, r.sheet).unwrap();
    let gone = r.put_page(0, 0);
    assert_eq!(gone, Err(Error::NotMapped { at: iova(0) }));
    assert_eq!((r.f.walk(r.device), r.f.census().pages), (Vec::new(), 0));
}

#[test]
fn memory_that_is_not_contiguous_is_no_page() {
    let mut r = rig();
    let pieces = [
        extent(RAM * 2, PAGE),
        extent(RAM * 3 + 8, PAGE),
        extent(RAM * 4, 8),
        extent(RAM * 5 + 8, PAGE - 8),
    ];
    let ram = r.f.core.add_ram(VM, &pieces).unwrap();
    for (offset, good) in [(0, true), (PAGE, false), (2 * PAGE, false)] {
        for near in [0, 1] {
            let put = r.put_one(near + offset / PAGE * 4, (ram, offset), Permissions::Read);
            assert_eq!(put.is_ok(), good, "{offset:#x}");
        }
    }
}

#[test]
fn pages_and_areas_do_not_share_addresses() {
    let mut r = rig();
    r.put(0x10_0000, 0, PAGE).unwrap();
    let existing = of(0x10_0000, PAGE);
    let over = r.f.map(0xf_f000, 0, 3 * PAGE);
    assert_eq!(over, Err(Error::Overlaps { existing }));
    // Beside it there is room for an area, and not for a page on that.
    let area = r.f.map(0x20_0000, 0, 2 * PAGE).unwrap();
    let over = Err(Error::Overlaps { existing: area });
    assert_eq!(r.put(0x20_1000, 0, PAGE), over);
    assert_eq!(r.put_page(0x201, 0), over);
    let sheet =
        r.f.core
            .open_sheet(r.f.ioas, of(0x30_0000, PAGE), PageSize::SIZE_4K);
    assert!(matches!(sheet, Err(Error::Overlaps { .. })));
    // Where an area is, pages beside it can still be cleared and put.
    r.put_page(0x101, PAGE).unwrap();
    assert_eq!(r.clear(0x10_0000, 2 * PAGE), Ok(2));
    r.f.unmap(0x20_0000, 2 * PAGE).unwrap();
    r.put_page(0x201, 0).unwrap();
}

#[test]
fn a_page_is_exchanged_in_one_step_or_not_at_all() {
    let mut r = rig();
    r.put(0x10_0000, 0, 2 * PAGE).unwrap();
    r.put(0x10_0000, 5 * PAGE, PAGE).unwrap();
    assert_eq!(r.f.reads(r.device, 0x10_0000), Some(RAM + 5 * PAGE));
    let existing = of(0x10_0000, PAGE);
    let both = r.put(0x10_0000, 0, 2 * PAGE);
    assert_eq!(both, Err(Error::Overlaps { existing }));
    r.f.core.backend_mut().fail_exchanges_after(Some(0));
    let failed = r.put_page(0x100, 8 * PAGE);
    assert_eq!(failed, Err(Error::Backend(BackendError::Unsupported)));
    r.f.core.backend_mut().fail_exchanges_after(None);
    assert_eq!(r.f.reads(r.device, 0x10_0000), Some(RAM + 5 * PAGE));
    assert_eq!(r.users(), 2);
    // To another object: it is that one which is kept.
    let other = r.f.core.add_ram(VM, &[extent(RAM * 2, 1 << 20)]).unwrap();
    r.put_one(0x100, (other, 0), Permissions::Read).unwrap();
    assert_eq!(r.users(), 1);
    assert!(r.f.core.destroy_memory(other).is_err());
    assert_eq!(r.clear(0x10_0000, 2 * PAGE), Ok(2));
    r.f.core.destroy_memory(other).unwrap();
    r.f.core.destroy_memory(r.f.ram).unwrap();
}

#[test]
fn a_page_that_is_not_surely_gone_keeps_its_memory_and_serves_nobody() {
    let mut r = rig();
    r.put(0x10_0000, 0, 3 * PAGE).unwrap();
    r.f.core.backend_mut().fail_invalidations_after(Some(0));
    let late = Err(Error::Backend(BackendError::Timeout));
    assert_eq!(r.clear(0x10_0000, 2 * PAGE), late);
    r.f.core.backend_mut().fail_invalidations_after(None);
    assert_eq!(r.users(), 3);
    assert!(r.f.core.translate(r.f.ioas, iova(0x10_0000)).is_err());
    assert!(r.f.core.translate(r.f.ioas, iova(0x10_2000)).is_ok());
    let not_mapped = Err(Error::NotMapped {
        at: iova(0x10_0000),
    });
    assert_eq!(r.put_page(0x100, 0), not_mapped);
    assert_eq!(r.clear(0x10_0000, 3 * PAGE), Ok(3));
    r.put_page(0x100, 0).unwrap();
}

#[test]
fn a_window_goes_with_its_sheet_when_no_page_is_shown() {
    let mut r = rig();
    let window =
        r.f.core
            .create_window(r.domain, PageSize::SIZE_64K, 1 << 30)
            .unwrap();
    assert_eq!(window.span.start().bits(), DYNAMIC_WINDOW_BASE);
    let ioas = r.f.ioas;
    let wrong = r.f.core.open_sheet(ioas, window.span, PageSize::SIZE_4K);
    assert!(matches!(wrong, Err(Error::Misaligned { .. })), "{wrong:?}");
    let big = r.f.core.open_sheet(ioas, window.span, PageSize::SIZE_64K);
    let small = r.sheet;
    r.sheet = big.unwrap();
    (r.base, r.page) = (DYNAMIC_WINDOW_BASE, 0x1_0000);
    let put = |r: &mut Rig| r.put_page(3, 0x2_0000);
    put(&mut r).unwrap();
    put(&mut r).unwrap();
    assert_eq!(
        r.f.reads(r.device, DYNAMIC_WINDOW_BASE + 0x3_0010),
        Some(RAM + 0x2_0010)
    );
    refused(r.f.core.remove_window(r.domain, window.span.start()));
    refused(r.f.core.reset_windows(r.domain));
    r.f.core
        .clear_pages(ioas, of(DYNAMIC_WINDOW_BASE, 1 << 20))
        .unwrap();
    r.f.core
        .remove_window(r.domain, window.span.start())
        .unwrap();
    refused(put(&mut r));
    // The other one is as it was.
    r.sheet = small;
    (r.base, r.page) = (0, PAGE);
    r.put_page(1, 0).unwrap();
    r.clear(0, 2 * PAGE).unwrap();
    r.f.core.reset_windows(r.domain).unwrap();
    r.put_page(1, 0).unwrap();
}

#[test]
fn a_further_table_shows_what_there_is_and_an_address_space_lets_go_of_all() {
    let mut r = rig();
    r.put(0x10_0000, 0, 700 * PAGE).unwrap();
    r.put_page(0x50, 0).unwrap();
    let other = r.f.device(TCE);
    let options = crate::DomainOptions::default();
    let domain = r.f.core.create_domain(other, r.f.ioas, options).unwrap();
    r.f.core.attach(other, Target::Domain(domain)).unwrap();
    assert_eq!(r.f.walk(other), r.f.walk(r.device));
    assert_eq!(r.f.walk(other).len(), 701);
    r.put_page(0x51, PAGE).unwrap();
    r.put_page(0x51, 2 * PAGE).unwrap();
    for device in [other, r.device] {
        assert_eq!(r.f.reads(device, 0x5_1000), Some(RAM + 2 * PAGE));
    }
    assert_eq!(r.clear(0x10_0000, 700 * PAGE), Ok(700));
    assert_eq!(r.f.walk(other).len(), 2);
    for device in [other, r.device] {
        r.f.core.detach(device).unwrap();
    }
    r.f.core.destroy_domain(domain).unwrap();
    assert_eq!(r.users(), 2);
    r.f.core.destroy_ioas(r.f.ioas).unwrap();
    r.f.core.destroy_memory(r.f.ram).unwrap();
}

#[test]
fn without_memory_nothing_is_put() {
    let mut r = rig();
    for growths in 0.. {
        r.f.core.budget_mut().limit(Some(growths));
        let sheet =
            r.f.core
                .open_sheet(r.f.ioas, of(0, PAGE), PageSize::SIZE_4K);
        assert!(sheet.is_err(), "there is one");
        let put = r.put(511 * PAGE, 0, 2 * PAGE);
        r.f.core.budget_mut().limit(None);
        if put.is_ok() {
            assert!(growths > 0);
            break;
        }
        assert_eq!(put, Err(Error::OutOfMemory));
        assert_eq!((r.f.walk(r.device), r.f.census().pages), (Vec::new(), 0));
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Put(u64, u64, u64),
    Page(u64, u64, bool),
    Clear(u64, u64),
    ClearPage(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let page = || 500..530_u64;
    prop_oneof![
        2 => (page(), 0..64_u64, 1..9_u64).prop_map(|(at, from, count)| Op::Put(at, from, count)),
        4 => (page(), 0..64_u64, any::<bool>()).prop_map(|(at, from, other)| Op::Page(at, from, other)),
        2 => (page(), 1..20_u64).prop_map(|(at, count)| Op::Clear(at, count)),
        2 => page().prop_map(Op::ClearPage),
    ]
}

proptest! {
    #![proptest_config(Config::with_cases(128))]
    #[test]
    fn a_sheet_is_a_map_of_pages(
        ops in proptest::collection::vec((op(), 0..8_u64), 1..60),
    ) {
        let mut r = rig();
        let other = r.f.core.add_ram(VM, &[extent(RAM * 2, 1 << 20)]).unwrap();
        let mut model = BTreeMap::new();
        for (op, fault) in ops {
            // Now and then the hardware does not do what it is told.
            let mock = r.f.core.backend_mut();
            mock.fail_allocations_after((fault == 0).then_some(0));
            mock.fail_exchanges_after((fault == 1).then_some(0));
            match op {
                Op::Put(at, from, count) => {
                    let free = (at..at + count).all(|page| !model.contains_key(&page));
                    let put = r.put(at * PAGE, from * PAGE, count * PAGE);
                    prop_assert!(put.is_ok() || !free || fault == 0);
                    prop_assert!(put.is_err() || free || count == 1);
                    if put.is_ok() {
                        model.extend((0..count).map(|n| (at + n, RAM + (from + n) * PAGE)));
                    }
                }
                Op::Page(at, from, is_other) => {
                    let (memory, base) = if is_other { (other, RAM * 2) } else { (r.f.ram, RAM) };
                    let what = (memory, from * PAGE);
                    let put = r.put_one(at, what, Permissions::ReadWrite);
                    prop_assert!(put.is_ok() || fault < 2);
                    if put.is_ok() {
                        model.insert(at, base + from * PAGE);
                    }
                }
                Op::Clear(at, count) => {
                    let before = model.len();
                    model.retain(|page, _| !(at..at + count).contains(page));
                    let gone = (before - model.len()) as u64;
                    prop_assert_eq!(r.clear(at * PAGE, count * PAGE), Ok(gone));
                }
                Op::ClearPage(at) => {
                    if !r.f.core.clear_page(r.f.ioas, r.sheet, at) {
                        r.clear(at * PAGE, PAGE).unwrap();
                    }
                    model.remove(&at);
                }
            }
            let leaves = r.f.walk(r.device);
            let real = leaves.into_iter().map(|(at, leaf)| (at / PAGE, leaf.pa.bits()));
            prop_assert_eq!(real.collect::<BTreeMap<_, _>>(), model.clone());
            prop_assert_eq!(r.f.census().pages, model.len() as u64);
            for page in 495..540 {
                let found = r.f.core.translate(r.f.ioas, iova(page * PAGE)).ok();
                prop_assert_eq!(found.map(|found| found.pa.bits()), model.get(&page).copied());
            }
        }
        r.f.core.backend_mut().fail_allocations_after(None);
        r.clear(0, DEFAULT_WINDOW_BYTES).unwrap();
        // Both are free again: each page was counted once.
        r.f.core.destroy_memory(other).unwrap();
        r.f.core.destroy_memory(r.f.ram).unwrap();
    }
}
