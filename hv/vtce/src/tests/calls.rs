//! The calls for entries.

use super::*;

#[test]
fn a_put_is_translated_to_the_bit() {
    let mut rig = Rig::new();
    assert_eq!(rig.put(0x3000, 0x5000 | 3), Status::SUCCESS);
    assert_eq!(rig.put(0x4000, (65 * MEG) | 1), Status::SUCCESS);
    assert_eq!(
        rig.real(0).into_iter().collect::<Vec<_>>(),
        [(0x3000, 0x10_0000_5003), (0x4000, 0x20_0011_0001)]
    );
    assert_eq!(rig.get(0x3000), Some(0x5003));
    assert_eq!(rig.get(0x4000), Some((65 * MEG) | 1));
    assert_eq!(rig.get(0x5000), Some(0));
    assert_eq!(rig.put(0x3000, 0), Status::SUCCESS);
    assert_eq!(rig.get(0x3000), Some(0));
    assert_eq!(rig.real(0).len(), 1);
    rig.audit();
}

#[test]
fn what_is_wrong_with_a_put_is_a_parameter() {
    let mut rig = Rig::new();
    let last = (1 << 30) - 0x1000;
    assert_eq!(rig.put(last, 0x5003), Status::SUCCESS);
    let wrong = [
        (1 << 30, 0x5003, "beyond the window"),
        (u64::MAX, 0x5003, "far beyond it"),
        (0x800, 0x5003, "not at a page"),
        (0, 0x5103, "the memory not at a page"),
        (0, (128 * MEG) | 3, "no memory"),
        (0, (256 * MEG) | 3, "read-only memory, to be written"),
        (0, (256 * MEG) | 2, "read-only memory, to be written only"),
        (0, 1 << 60 | 3, "no address at all"),
        (0, !0, "all ones"),
        (0, 0x10_0000_5003, "a physical address of its own memory"),
        (0, OTHER_RAM | 3, "a physical address of another's memory"),
    ];
    for (at, tce, what) in wrong {
        assert_eq!(rig.put(at, tce), Status::PARAMETER, "{what}");
    }
    assert_eq!(rig.put(0, (256 * MEG) | 1), Status::SUCCESS);
    assert_eq!(rig.real(0).len(), 2);
    rig.audit();
}

#[test]
fn windows_of_others_are_no_windows() {
    let mut rig = Rig::new();
    for liobn in [OTHER_LIOBN, LIOBN | 1, 0, LIOBN | 1 << 32, u64::MAX] {
        for (number, rest) in [(PUT, [0, 0x5003]), (GET, [0, 0]), (STUFF, [0, 1])] {
            let [third, fourth] = rest;
            let answer = rig.call(number, [liobn, 0, third, fourth]);
            assert_eq!((answer.status, answer.value), (Status::PARAMETER, None));
        }
        assert_eq!(rig.indirect(liobn, 0, &[0x5003]), Status::PARAMETER);
    }
    assert!(rig.real(0).is_empty() && rig.real(1).is_empty());
    // The other one's own calls reach its own bridge, and its own memory.
    let answer = rig
        .other
        .hypercall(&mut rig.core, &rig.ram, PUT, [OTHER_LIOBN, 0, 0x5003, 0]);
    assert_eq!(answer.unwrap().status, Status::SUCCESS);
    assert_eq!(rig.real(1)[&0], OTHER_RAM + 0x5003);
    assert!(rig.real(0).is_empty());
}

#[test]
fn a_list_in_a_row_is_one_call_below() {
    let mut rig = Rig::new();
    let list: Vec<u64> = (0..512).map(|n| (MEG + n * 4096) | 3).collect();
    let before = rig.platform().calls();
    assert_eq!(rig.indirect(LIOBN, 0, &list), Status::SUCCESS);
    let after = rig.platform().calls();
    assert_eq!(after.lists, before.lists + 1);
    assert_eq!(after.puts, before.puts);
    assert_eq!(rig.core.census().pages, 512);
    assert_eq!(rig.real(0).len(), 512);
    assert_eq!(rig.ram.reads.get(), 1, "the list is read once");
    rig.audit();
    // And cleared by one.
    assert_eq!(rig.stuff(0, 0, 512), Status::SUCCESS);
    assert_eq!(rig.platform().calls().stuffs, after.stuffs + 1);
    assert!(rig.real(0).is_empty());
}

#[test]
fn a_list_may_mix_everything() {
    let mut rig = Rig::new();
    let list = [
        0x5003,
        0x6003,
        0,
        0x7001,
        0x8001,
        0x8001,
        0x9003,
        (64 * MEG - 0x1000) | 3,
        (64 * MEG) | 3,
        0xdead_b000,
        (256 * MEG) | 1,
    ];
    assert_eq!(rig.put(0x2000, 0x1_0003), Status::SUCCESS);
    assert_eq!(rig.indirect(LIOBN, 0, &list), Status::SUCCESS);
    for (n, tce) in (0..).zip(list) {
        let expected = physical(tce, 4096);
        assert_eq!(rig.real(0).get(&(n << 12)).copied(), expected, "{n}");
        let read = if tce & 3 == 0 { 0 } else { tce };
        assert_eq!(rig.get(n << 12), Some(read), "{n}");
    }
    rig.audit();
}

#[test]
fn one_wrong_entry_spoils_the_whole_list() {
    let mut rig = Rig::new();
    assert_eq!(rig.put(0x1000, 0x1_0003), Status::SUCCESS);
    let before = rig.real(0);
    for wrong in [(128 * MEG) | 3, 0x5803, OTHER_RAM | 3, (256 * MEG) | 2] {
        for at in [0, 5, 9] {
            let mut list: Vec<u64> = (0..10).map(|n| (MEG + n * 4096) | 3).collect();
            list[at] = wrong;
            assert_eq!(rig.indirect(LIOBN, 0, &list), Status::PARAMETER);
            assert_eq!(rig.real(0), before);
        }
    }
    rig.audit();
}

#[test]
fn a_row_ends_with_its_slot() {
    let mut rig = Rig::new();
    // A slot that ends in the middle of a page, with more memory behind it in the machine.
    let memory = rig
        .core
        .add_ram(
            VM,
            &[Extent {
                pa: Pa::new(0x50_0000_0000).unwrap(),
                bytes: MEG,
            }],
        )
        .unwrap();
    let page = PageSize::SIZE_4K;
    let at = 512 * MEG;
    let odd = slot(memory, at, 3 * 4096 + 2048, Permissions::ReadWrite, page);
    rig.dma.add_slot(odd).unwrap();
    for pages in 1..6 {
        let list: Vec<u64> = (0..pages).map(|n| (at + n * 4096) | 3).collect();
        let status = rig.indirect(LIOBN, 0, &list);
        assert_eq!(status == Status::SUCCESS, pages <= 3, "{pages}");
        assert_eq!(rig.real(0).len() as u64, pages.min(3));
    }
    // The usual ones end with a page.
    let last = (64 * MEG - 4096) | 3;
    for (list, good) in [
        ([last, (64 * MEG) | 3], true),
        ([(288 * MEG - 4096) | 1, (288 * MEG) | 1], false),
    ] {
        let status = rig.indirect(LIOBN, 0, &list);
        assert_eq!(status == Status::SUCCESS, good);
    }
    rig.audit();
}

#[test]
fn lists_have_bounds() {
    let mut rig = Rig::new();
    rig.ram.put_list(LIST, &[0x5003; 512]);
    let call = |rig: &mut Rig, at, list, count| {
        let status = rig.call(INDIRECT, [LIOBN, at, list, count]).status;
        assert!(status == Status::SUCCESS || rig.real(0).is_empty());
        status
    };
    let end = 1 << 30;
    for (at, list, count, what) in [
        (0, LIST, 0, "no entries"),
        (0, LIST, 513, "more than a page of them"),
        (0, LIST, u64::MAX, "many more"),
        (0, LIST + 8, 1, "not at a page"),
        (0, LIST - 0x1000, 1, "not in memory"),
        (0, !0xfff, 1, "nowhere at all"),
        (end - 0x1000, LIST, 2, "out of the window"),
        (end, LIST, 1, "behind the window"),
    ] {
        assert_eq!(call(&mut rig, at, list, count), Status::PARAMETER, "{what}");
    }
    for count in [0, 513, u64::MAX, 1 << 63] {
        assert_eq!(rig.stuff(0, 0, count), Status::PARAMETER);
    }
    assert_eq!(call(&mut rig, end - 0x1000, LIST, 1), Status::SUCCESS);
}

#[test]
fn stuffing_with_rights_is_the_same_page_everywhere() {
    let mut rig = Rig::new();
    assert_eq!(rig.stuff(0x4000, 0x5001, 3), Status::SUCCESS);
    assert_eq!(
        rig.real(0).into_iter().collect::<Vec<_>>(),
        [
            (0x4000, 0x10_0000_5001),
            (0x5000, 0x10_0000_5001),
            (0x6000, 0x10_0000_5001)
        ]
    );
    assert_eq!(rig.stuff(0x5000, 0xffff_f000, 2), Status::SUCCESS);
    assert_eq!(rig.real(0).len(), 1);
    assert_eq!(rig.stuff(0x5000, (128 * MEG) | 1, 1), Status::PARAMETER);
    rig.audit();
}

#[test]
fn a_live_entry_is_replaced_in_one_step() {
    let mut rig = Rig::new();
    let list: Vec<u64> = (0..16).map(|n| (MEG + n * 4096) | 3).collect();
    assert_eq!(rig.indirect(LIOBN, 0, &list), Status::SUCCESS);
    let before = rig.platform().calls();
    assert_eq!(rig.put(0x7000, 0x1_0001), Status::SUCCESS);
    let after = rig.platform().calls();
    assert_eq!((after.puts, after.stuffs), (before.puts + 1, before.stuffs));
    assert_eq!(rig.real(0)[&0x7000], 0x10_0001_0001);
    assert_eq!(rig.real(0).len(), 16);
    rig.audit();
    // The same again is nothing to do; neither is clearing what is empty.
    assert_eq!(rig.put(0x7000, 0x1_0001), Status::SUCCESS);
    assert_eq!(rig.put(0x70_0000, 0), Status::SUCCESS);
    assert_eq!(rig.platform().calls(), after);
}

#[test]
fn memory_stays_alive_as_long_as_an_entry_leads_to_it() {
    let mut rig = Rig::new();
    let list: Vec<u64> = (0..4).map(|n| (MEG + n * 4096) | 3).collect();
    assert_eq!(rig.indirect(LIOBN, 0, &list), Status::SUCCESS);
    let memory = rig.memories[0];
    rig.dma.remove_slots(memory);
    assert_eq!(rig.put(0x9000, 0x5003), Status::PARAMETER, "nothing new");
    for (at, left) in [(0x1000, 3), (0x3000, 2), (0, 1), (0x2000, 0)] {
        assert!(rig.core.destroy_memory(memory).is_err());
        assert_eq!(rig.put(at, 0), Status::SUCCESS);
        assert_eq!(rig.real(0).len(), left);
    }
    rig.core.destroy_memory(memory).unwrap();
}

#[test]
fn calls_that_are_not_ours_are_left_alone() {
    let mut rig = Rig::new();
    for number in [0, 0x24, 0x13d, 0xf000, u64::MAX] {
        let answer = rig
            .dma
            .hypercall(&mut rig.core, &rig.ram, number, [LIOBN, 0, 0x5003, 1]);
        assert_eq!(answer, None);
    }
    for number in crate::HYPERCALLS {
        let answer = rig
            .dma
            .hypercall(&mut rig.core, &rig.ram, number, [LIOBN, 0, 0, 1]);
        assert!(answer.is_some());
    }
}

#[test]
fn the_page_lists_what_is_served() {
    let page = include_str!("../../../../docs/tce.md");
    let rows = || {
        page.lines().filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
            let number = cells.next()?.strip_prefix("0x")?;
            Some((name, u64::from_str_radix(number, 16).ok()?))
        })
    };
    let calls: Vec<u64> = rows()
        .filter(|(name, _)| name.starts_with("H_"))
        .map(|(_, number)| number)
        .collect();
    assert_eq!(calls, crate::HYPERCALLS);
    let services: Vec<(&str, u64)> = rows().filter(|(name, _)| name.contains("dma")).collect();
    let served = Service::ALL.map(|service| (service.name(), u64::from(service.token())));
    assert_eq!(services, served);
}

#[test]
fn an_audit_in_parts_looks_at_all_windows() {
    let mut rig = Rig::new();
    let made = rig.create(12, 24);
    let [liobn, high, low] = made.values() else {
        panic!("{made:?}");
    };
    let base = u64::from(*high) << 32 | u64::from(*low);
    for chunk in 0..3_u64 {
        let at = (chunk * 512) << 12;
        assert_eq!(rig.put(2 * at, 0x5003), Status::SUCCESS);
        let put = rig.call(PUT, [(*liobn).into(), base + at, 0x5003, 0]);
        assert_eq!(put.status, Status::SUCCESS);
    }
    let mut place = tce::AuditPlace::default();
    let mut part = || {
        rig.dma
            .audit_part(&rig.core, &mut place, &mut |wrong| panic!("{wrong:?}"))
    };
    assert_eq!([part(), part(), part(), part()], [1024, 1024, 1024, 0]);
    let whole = rig.dma.audit(&rig.core, &mut |wrong| panic!("{wrong:?}"));
    assert_eq!(whole, 6 * 512);
}
