//! The services for windows, as Linux uses them.

use tce::fake::DYNAMIC_BASE;

use super::*;
use crate::{Progress, Properties, Refusal};

const NAME: [u32; 3] = [0, BUID_HIGH, BUID_LOW];

fn query(rig: &mut Rig) -> Vec<u32> {
    let outcome = rig.service(Service::Query, &NAME, 6);
    assert_eq!(outcome.status, 0);
    outcome.values().to_vec()
}

#[test]
fn a_query_says_what_can_be_had() {
    let mut rig = Rig::new();
    // One more window, 2^20 entries, pages of 4K and 64K: the guest's memory has no larger ones.
    assert_eq!(query(&mut rig), [1, 0, 1 << 20, 0x3, 0]);
    let short = rig.service(Service::Query, &NAME, 5);
    assert_eq!(
        (short.status, short.values()),
        (0, &[1, 1 << 20, 0x3, 0][..])
    );
    // The other guest's memory has larger pages.
    let name = [0, BUID_HIGH, BUID_LOW + 3];
    let outcome = rig.other.service(&mut rig.core, Service::Query, &name, 6);
    assert_eq!(outcome.values()[3], 0x103);
}

#[test]
fn a_query_says_no_more_entries_than_the_hardware_has_for_any_page_size() {
    // The policy allows more than the bridge's tables can have, which is 2^20 whatever the page size.
    let mut rig = Rig::with(Policy {
        entries: 22,
        ..Policy::usual()
    });
    assert_eq!(query(&mut rig), [1, 0, 1 << 20, 0x3, 0]);
    for page in [12, 16] {
        assert_eq!(rig.create(page, page + 21).status, -3);
        let made = rig.create(page, page + 20);
        assert_eq!(made.status, 0, "what a query says can be had");
        let gone = rig.service(Service::Remove, &made.values()[..1], 1);
        assert_eq!(gone.status, 0);
    }
}

#[test]
fn a_window_is_made_used_and_removed() {
    let mut rig = Rig::new();
    let made = rig.create(16, 32);
    assert_eq!(made.status, 0);
    let liobn = made.values()[0];
    assert_eq!(made.values(), [0x8000_0001, 0x0800_0000, 0]);
    assert_eq!(query(&mut rig)[0], 0);
    assert_eq!(rig.create(16, 32).status, -1, "there is no further one");
    // Direct mapping, as Linux does it: all memory by lists of 512.
    let pages = (64 * MEG) >> 16;
    for first in (0..pages).step_by(512) {
        let list: Vec<u64> = (first..first + 512).map(|n| n << 16 | 3).collect();
        let at = DYNAMIC_BASE + (first << 16);
        assert_eq!(rig.indirect(liobn.into(), at, &list), Status::SUCCESS);
    }
    assert_eq!(rig.core.census().pages, pages);
    assert_eq!(
        rig.platform()
            .dma(0, types::Iova::truncated(DYNAMIC_BASE + 0x12_3456)),
        Some((0x10_0012_3456, 3))
    );
    // An offset from the window's start is no address in it.
    assert_eq!(
        rig.indirect(liobn.into(), 0, &[0x1_0003]),
        Status::PARAMETER
    );
    // A page that the machine has not in one piece is refused, though the guest has it.
    let crooked = rig.call(
        PUT,
        [liobn.into(), DYNAMIC_BASE + (1 << 31), (64 * MEG) | 3, 0],
    );
    assert_eq!(crooked.status, Status::SUCCESS, "aligned to 64K after all");
    rig.audit();
    let gone = rig.service(Service::Remove, &[liobn], 1);
    assert_eq!(gone.status, 0);
    assert!(rig.real(0).is_empty());
    assert_eq!(query(&mut rig)[0], 1);
    assert_eq!(rig.service(Service::Remove, &[liobn], 1).status, -3);
    assert_eq!(
        rig.call(PUT, [liobn.into(), DYNAMIC_BASE, 0x1_0003, 0])
            .status,
        Status::PARAMETER
    );
    rig.audit();
}

#[test]
fn linux_without_a_free_window_removes_the_default_one_and_gets_it_back() {
    let mut rig = Rig::new();
    assert_eq!(rig.create(16, 32).status, 0);
    let default = u32::try_from(LIOBN).unwrap();
    assert_eq!(rig.service(Service::Remove, &[default], 1).status, 0);
    assert_eq!(rig.put(0, 0x5003), Status::PARAMETER);
    assert_eq!(rig.dma.bridges()[0].windows().len(), 1);
    // The last created one goes, and the default one is there again.
    assert_eq!(rig.service(Service::Remove, &[0x8000_0001], 1).status, 0);
    assert_eq!(rig.put(0, 0x5003), Status::SUCCESS);
    // Without any, the first is at zero with the pages that were asked for.
    assert_eq!(rig.service(Service::Remove, &[default], 1).status, 0);
    let made = rig.create(16, 33);
    assert_eq!(made.values(), [default, 0, 0]);
    assert_eq!(rig.put(0, 0x1_0003), Status::SUCCESS);
    assert_eq!(rig.put(0x1000, 0x1_0003), Status::PARAMETER, "64K pages");
    assert_eq!(rig.service(Service::Reset, &NAME, 1).status, 0);
    assert!(rig.real(0).is_empty());
    assert_eq!(rig.put(0x1000, 0x5003), Status::SUCCESS);
    assert_eq!(query(&mut rig)[0], 1);
    rig.audit();
}

#[test]
fn impossible_windows_are_refused() {
    let mut rig = Rig::new();
    for (page, window, what) in [
        (12, 33, "more entries than the policy has"),
        (16, 64, "no size"),
        (16, u32::MAX, "no size at all"),
        (16, 15, "smaller than its page"),
        (21, 40, "pages that the memory does not have"),
        (24, 40, "larger ones"),
        (13, 30, "pages that nobody has"),
        (0, 30, "no pages"),
        (u32::MAX, 30, "no pages at all"),
    ] {
        assert_eq!(rig.create(page, window).status, -3, "{what}");
        assert_eq!(rig.platform().windows(0).len(), 1);
    }
    for name in [
        [1, BUID_HIGH, BUID_LOW],
        [0, 0, 0],
        [0, BUID_HIGH, BUID_LOW + 3],
    ] {
        assert_eq!(rig.service(Service::Query, &name, 6).status, -3);
        assert_eq!(rig.service(Service::Reset, &name, 1).status, -3);
        let [config, high, low] = name;
        let arguments = [config, high, low, 16, 30];
        assert_eq!(rig.service(Service::Create, &arguments, 4).status, -3);
    }
    for liobn in [0x8000_0300, 0x8000_0001, 0, u32::MAX] {
        assert_eq!(rig.service(Service::Remove, &[liobn], 1).status, -3);
    }
    // Other numbers of cells than the services have.
    for service in Service::ALL {
        for arguments in 0..7 {
            let cells = &[0, BUID_HIGH, BUID_LOW, 16, 30, 0, 0][..arguments];
            for results in [0, 2, 3, 7, 16] {
                assert_eq!(rig.service(service, cells, results).status, -3);
            }
        }
    }
    assert_eq!(rig.platform().windows(0).len(), 1);
}

#[test]
fn a_full_window_goes_in_bounded_steps() {
    let mut rig = Rig::new();
    assert_eq!(rig.create(12, 32).status, 0);
    let liobn = 0x8000_0001;
    // No entry follows the one before.
    for chunk in 0..24 {
        let list: Vec<u64> = (0..512)
            .map(|n| ((n * 2 % 512 + n / 256) << 12) | 3)
            .collect();
        let at = DYNAMIC_BASE + (chunk << 21);
        assert_eq!(rig.indirect(liobn, at, &list), Status::SUCCESS);
    }
    assert!(rig.core.census().pages > 10_000);
    let mut calls = 0;
    loop {
        let pages = rig.core.census().pages;
        let outcome = rig.service(Service::Remove, &[0x8000_0001], 1);
        calls += 1;
        assert!(pages - rig.core.census().pages <= 4096);
        rig.audit();
        if outcome.status == 0 {
            break;
        }
        assert_eq!(outcome.status, -2);
    }
    assert_eq!(calls, 3, "the third finds the rest and removes the window");
    assert_eq!(rig.core.census().pages, 0);
}

#[test]
fn a_vm_that_ends_leaves_nothing() {
    let mut rig = Rig::new();
    assert_eq!(rig.create(12, 32).status, 0);
    for chunk in 0..12 {
        let list: Vec<u64> = (0..512).map(|n| ((n * 7 % 512) << 12) | 3).collect();
        let at = DYNAMIC_BASE + (chunk << 21);
        assert_eq!(rig.indirect(0x8000_0001, at, &list), Status::SUCCESS);
    }
    assert_eq!(rig.put(0, 0x5003), Status::SUCCESS);
    assert_eq!(rig.dma.remove_bridge(0), Err(Refusal::Taken));
    let mut calls = 1;
    while rig.dma.clear(&mut rig.core).unwrap() == Progress::More {
        calls += 1;
        assert!(calls < 10);
    }
    assert_eq!(calls, 2);
    assert!(rig.real(0).is_empty());
    assert_eq!(rig.platform().windows(0).len(), 1);
    rig.dma.remove_bridge(0).unwrap();
    for memory in rig.memories.clone() {
        rig.core.destroy_memory(memory).unwrap();
    }
}

#[test]
fn no_call_reaches_a_bridge_that_is_shut_and_it_comes_back_empty() {
    let mut rig = Rig::new();
    assert_eq!(rig.create(12, 32).status, 0);
    for chunk in 0..12 {
        let list: Vec<u64> = (0..512).map(|n| ((n * 7 % 512) << 12) | 3).collect();
        let at = DYNAMIC_BASE + (chunk << 21);
        assert_eq!(rig.indirect(0x8000_0001, at, &list), Status::SUCCESS);
    }
    assert_eq!(rig.put(0, 0x5003), Status::SUCCESS);
    let options = *rig.dma.bridges()[0].options();
    rig.dma.shut_bridge(7).unwrap();
    rig.dma.shut_bridge(0).unwrap();
    // The guest goes on meanwhile, between the parts of the work too.
    let mut calls = 0;
    loop {
        assert_eq!(rig.put(0, 0x5003), Status::PARAMETER);
        assert_eq!(
            rig.indirect(0x8000_0001, DYNAMIC_BASE, &[3]),
            Status::PARAMETER
        );
        assert_eq!(rig.create(12, 30).status, -3);
        assert!(rig.dma.add_bridge(&mut rig.core, options).is_err());
        calls += 1;
        if rig.dma.clear_shut(&mut rig.core).unwrap() == Progress::Done {
            break;
        }
    }
    assert_eq!(calls, 2);
    assert!(rig.real(0).is_empty());
    assert_eq!(rig.platform().windows(0).len(), 1);
    assert_eq!(rig.put(0, 0x5003), Status::PARAMETER);
    rig.dma.add_bridge(&mut rig.core, options).unwrap();
    assert_eq!(rig.put(0, 0x5003), Status::SUCCESS);
    rig.audit();
}

#[test]
fn the_device_tree_names_what_is_there() {
    let rig = Rig::new();
    let bridge = &rig.dma.bridges()[0];
    let tokens = Service::ALL.map(Service::token);
    assert_eq!(
        bridge.properties(&rig.core, tokens).unwrap(),
        Some(Properties {
            dma_window: [0x8000_0000, 0, 0, 0, 0x4000_0000],
            ddw_applicable: Some([0x2026, 0x2027, 0x2028]),
            ddw_extensions: Some([2, 0x2029, 1]),
        })
    );
}

#[test]
fn bridges_and_slots_do_not_overlap() {
    let mut rig = Rig::new();
    let again = options(0, rig.ioas, rig.domain);
    assert_eq!(
        rig.dma.add_bridge(&mut rig.core, again),
        Err(Refusal::Taken)
    );
    let memory = rig.memories[0];
    let page = PageSize::SIZE_4K;
    for (at, bytes) in [(0, 0x1000), (63 * MEG, 2 * MEG), (0, 1 << 40)] {
        let slot = slot(memory, at, bytes, Permissions::Read, page);
        assert_eq!(rig.dma.add_slot(slot), Err(Refusal::Taken));
    }
}

#[test]
fn without_memory_nothing_is_new() {
    let mut rig = Rig::new();
    let old: Vec<u64> = (0..300).map(|n| ((n * 7 % 512) << 12) | 3).collect();
    assert_eq!(rig.indirect(LIOBN, 0x1_0000, &old), Status::SUCCESS);
    let before = rig.real(0);
    let mut growths = 0;
    loop {
        rig.core.budget_mut().limit(Some(growths));
        let list: Vec<u64> = (0..300).map(|n| ((n * 11 % 512) << 12) | 1).collect();
        // In entries near the old ones, and in those behind.
        let status = rig.indirect(LIOBN, 400 << 12, &list);
        rig.core.budget_mut().limit(None);
        rig.audit();
        if status == Status::SUCCESS {
            break;
        }
        assert_eq!(status, Status::RESOURCE);
        // Going back needs memory, too: what cannot be restored is empty, and nothing is new.
        for (at, tce) in rig.real(0) {
            assert_eq!(before.get(&at), Some(&tce), "growth {growths}");
        }
        assert_eq!(rig.stuff(0, 0, 512), Status::SUCCESS);
        assert_eq!(rig.stuff(512 << 12, 0, 512), Status::SUCCESS);
        assert_eq!(rig.indirect(LIOBN, 0x1_0000, &old), Status::SUCCESS);
        assert_eq!(rig.real(0), before);
        growths += 1 + growths / 4;
        assert!(growths < 100_000);
    }
    assert!(growths > 0);
}
