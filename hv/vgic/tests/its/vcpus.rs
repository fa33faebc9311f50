//! LPIs of vCPUs: priority, order, enabling.

use bulkhead_vgic::{Kicks, Lpi, LpiSource};

use crate::rig::{DISK, NET, Rig, inv, mapti};

/// Events 0 to 9 of the network card are LPIs 8192 to 8201 at vCPU 0.
fn ten() -> Rig {
    let mut rig = Rig::mapped(2);
    for event in 0..10 {
        let _ = rig.send(&[mapti(NET, event, 8192 + event, 0)]);
    }
    rig
}

fn set(rig: &mut Rig, event: u32, config: u8) -> Kicks {
    rig.configure(8192 + event, config);
    rig.send(&[inv(NET, event)])
}

#[test]
fn equals_wait_in_the_order_they_came() {
    let rig = ten();
    for event in [3, 9, 0, 5] {
        let _ = rig.signal(NET, event);
    }
    assert_eq!(rig.drain(0), [8195, 8201, 8192, 8197]);
}

#[test]
fn the_more_urgent_overtakes() {
    let mut rig = ten();
    for (event, config) in [(0, 0xf9), (1, 0x01), (2, 0x81), (3, 0x79)] {
        let _ = set(&mut rig, event, config);
    }
    for event in 0..5 {
        let _ = rig.signal(NET, event);
    }
    assert_eq!(rig.drain(0), [8193, 8195, 8194, 8196, 8192]);
}

#[test]
fn all_32_levels_are_told_apart() {
    let mut rig = Rig::mapped(1);
    for event in 0..32 {
        let _ = rig.send(&[mapti(DISK, event, 8192 + event, 0)]);
        rig.configure(8192 + event, u8::try_from(31 - event).unwrap() << 3 | 1);
        let _ = rig.send(&[inv(DISK, event)]);
        let _ = rig.signal(DISK, event);
    }
    let expected: Vec<_> = (8192..8224).rev().collect();
    assert_eq!(rig.drain(0), expected);
}

#[test]
fn what_is_given_back_is_first_among_equals() {
    let rig = ten();
    for event in [4, 6] {
        let _ = rig.signal(NET, event);
    }
    rig.vits.take(0, 8196);
    assert!(rig.vits.give_back(0, 8196).is_empty());
    assert_eq!(rig.drain(0), [8196, 8198]);
}

#[test]
fn a_message_while_in_a_list_register_is_merged_when_that_comes_back() {
    let rig = ten();
    let _ = rig.signal(NET, 0);
    rig.vits.take(0, 8192);
    assert_eq!(rig.signal(NET, 0), Kicks::of(0));
    assert!(rig.vits.give_back(0, 8192).is_empty());
    assert_eq!(rig.drain(0), [8192]);
}

#[test]
fn what_was_not_taken_cannot_be_given_back() {
    let rig = ten();
    for intid in [0, 8191, 8192, 8200, 16383, 16384, u32::MAX] {
        assert!(rig.vits.give_back(0, intid).is_empty());
        assert!(rig.vits.give_back(77, intid).is_empty());
        rig.vits.take(77, intid);
    }
    assert_eq!(rig.first(0), None);
    // Nor by another vCPU.
    let _ = rig.signal(NET, 0);
    rig.vits.take(0, 8192);
    let _ = rig.vits.give_back(1, 8192);
    assert_eq!((rig.first(0), rig.first(1)), (None, None));
}

#[test]
fn an_lpi_disabled_while_in_a_list_register_waits_when_it_comes_back() {
    let mut rig = ten();
    let _ = rig.signal(NET, 0);
    rig.vits.take(0, 8192);
    // The vCPU is told, since its list register is out of date.
    assert_eq!(set(&mut rig, 0, 0xa0), Kicks::of(0));
    let _ = rig.vits.give_back(0, 8192);
    assert_eq!(rig.first(0), None);
    assert_eq!(set(&mut rig, 0, 0xa1), Kicks::of(0));
    assert_eq!(rig.drain(0), [8192]);
}

#[test]
fn a_vcpu_that_has_lpis_disabled_gets_none() {
    let rig = ten();
    let _ = rig.signal(NET, 0);
    rig.vits.set_tables(0, None);
    assert_eq!(rig.first(0), None);
    assert!(rig.signal(NET, 1).is_empty());
    rig.enable_lpis(0);
    let _ = rig.vits.run(&rig.ram);
    // What was pending is gone.
    assert_eq!(rig.first(0), None);
    assert_eq!(rig.signal(NET, 1), Kicks::of(0));
    assert_eq!(rig.drain(0), [8193]);
}

#[test]
fn disabling_lpis_of_one_vcpu_leaves_the_others_alone() {
    let mut rig = ten();
    let _ = rig.send(&[mapti(DISK, 0, 9000, 1)]);
    let _ = (rig.signal(DISK, 0), rig.signal(NET, 0));
    rig.vits.set_tables(0, None);
    assert_eq!(rig.drain(1), [9000]);
}

#[test]
fn what_was_in_a_list_register_when_lpis_were_disabled_is_gone() {
    let rig = ten();
    let _ = rig.signal(NET, 0);
    rig.vits.take(0, 8192);
    rig.vits.set_tables(0, None);
    let _ = rig.vits.give_back(0, 8192);
    rig.enable_lpis(0);
    let _ = rig.vits.run(&rig.ram);
    assert_eq!(rig.first(0), None);
}

#[test]
fn configuration_changed_while_lpis_were_disabled_is_read_when_they_are_enabled() {
    let rig = ten();
    rig.vits.set_tables(0, None);
    rig.configure(8192, 0x11);
    rig.enable_lpis(0);
    assert!(rig.vits.has_work());
    assert!(rig.vits.run(&rig.ram).is_done());
    assert!(!rig.vits.has_work());
    let _ = rig.signal(NET, 0);
    let expected = Lpi {
        intid: 8192,
        priority: 0x10,
    };
    assert_eq!(rig.vits.first(0), Some(expected));
}

#[test]
fn vcpus_that_do_not_exist_have_nothing() {
    let rig = ten();
    rig.enable_lpis(2);
    rig.enable_lpis(usize::MAX);
    assert!(rig.vits.run(&rig.ram).is_done());
    assert_eq!((rig.first(2), rig.first(usize::MAX)), (None, None));
}

#[test]
fn taking_from_the_middle_of_a_list_keeps_the_rest() {
    let rig = ten();
    for event in 0..10 {
        let _ = rig.signal(NET, event);
    }
    for intid in [8197, 8192, 8201] {
        rig.vits.take(0, intid);
    }
    assert_eq!(rig.drain(0), [8193, 8194, 8195, 8196, 8198, 8199, 8200]);
}

#[test]
fn cores_may_signal_and_command_at_once() {
    let mut rig = ten();
    let vits = rig.vits.clone();
    std::thread::scope(|scope| {
        let signals = scope.spawn(move || {
            for round in 0..20_000_u32 {
                let _ = vits.signal(NET, round % 10);
                if let Some(Lpi { intid, .. }) = vits.first(0) {
                    vits.take(0, intid);
                    if round % 3 == 0 {
                        let _ = vits.give_back(0, intid);
                    }
                }
            }
        });
        for round in 0..300_u64 {
            for event in 0..10 {
                let _ = rig.send(&[crate::rig::movi(NET, event, round & 1), inv(NET, event)]);
            }
            let _ = rig.drain(1);
        }
        signals.join().unwrap();
    });
    assert_eq!(rig.vits.faults(), (0, None));
    let mut left = [rig.drain(0), rig.drain(1)].concat();
    let count = left.len();
    left.sort_unstable();
    left.dedup();
    assert_eq!(left.len(), count, "an LPI waits in one place");
}
